"""With which password to dial whom, where several are valid: Weave's peers have one, and do not say which.

The first guess is what worked there the last time, if it is still valid, then the one in use, then the others. A wrong
guess costs a connection attempt. As long as there are others to try, the next attempt follows at once; when all were
wrong the target waits as any target that failed. A remote that sealed something with one of our passwords before it
refused us has told which is right.
"""

import msgspec

from weavenet.address import Endpoint
from weavenet.mesh.keyring import Keyring, Password

TARGETS_MAX = 4096


class _Memory(msgspec.Struct):
    best: Password | None = None
    tried: set[Password] = msgspec.field(default_factory=set)  # since it worked, or all were wrong


class Guesses:
    """What is known of each target."""

    def __init__(self, ring: Keyring | None) -> None:
        """Know nothing of any. `ring` may be replaced at any time; without one nothing is guessed."""
        self.ring = ring
        self._by_target: dict[Endpoint, _Memory] = {}

    def guess(self, target: Endpoint) -> Password | None:
        """Return what to try next."""
        ring = self.ring
        if ring is None:
            return None
        memory = self._by_target.get(target, _Memory())
        order = _order(memory, ring)
        return next((password for password in order if password not in memory.tried), order[0])

    def worked(self, target: Endpoint, password: Password) -> None:
        """Note that a remote has proved to know it. What is in use needs no remembering."""
        if self.ring is None or password == self.ring.in_use.password:
            self._by_target.pop(target, None)
        else:
            self._remember(target).best = password
            self._remember(target).tried.clear()

    def failed(self, target: Endpoint, tried: Password, hint: Password | None) -> bool:
        """Note a wrong guess; say whether to make another at once."""
        ring = self.ring
        if ring is None or len(ring) == 1:
            return False
        memory = self._remember(target)
        memory.tried.add(tried)
        if hint is not None:
            memory.best = hint
        if all(key.password in memory.tried for key in ring) or hint in memory.tried:
            memory.tried.clear()
            return False
        return True

    def _remember(self, target: Endpoint) -> _Memory:
        if target not in self._by_target and len(self._by_target) >= TARGETS_MAX:
            del self._by_target[next(iter(self._by_target))]  # the oldest
        return self._by_target.setdefault(target, _Memory())


def _order(memory: _Memory, ring: Keyring) -> list[Password]:
    order = [key.password for key in ring]
    if memory.best in order:
        order.remove(memory.best)
        order.insert(0, memory.best)
    return order
