"""One simulated host: a disk, the node that runs on it (or does not), and the containers that hold its addresses.

Effects are performed one at a time, and a crash may be due before any of them: that is what tells whether an address
can be promised before it is on disk.
"""

import random
from collections.abc import Callable

import msgspec

from weavenet.address import Address
from weavenet.effects import (
    CloseTcp,
    ConnectionNumber,
    Dial,
    Effect,
    Note,
    Now,
    Persist,
    Reconcile,
    Reply,
    RequestNumber,
    SendSleeveFrame,
    SendSpecialFrame,
    SendTcp,
)
from weavenet.identity import PeerName
from weavenet.mesh.connector import Target
from weavenet.node.node import Node, NodeConfig
from weavenet.sim.disk import Disk
from weavenet.sim.network import Pipe


class SeededEntropy:
    """Entropy that a seed determines."""

    def __init__(self, seed: str) -> None:
        """Start a stream of its own for each seed text."""
        self._rng = random.Random(seed)  # noqa: S311 - replayable is the point

    def bits(self, count: int) -> int:
        """Return a uniform integer of that many bits."""
        return self._rng.getrandbits(count)

    def octets(self, count: int) -> bytes:
        """Return that many uniform bytes."""
        return self._rng.randbytes(count)

    def fraction(self) -> float:
        """Return a uniform number in [0, 1)."""
        return self._rng.random()


class Waiting(msgspec.Struct):
    """A request that has no answer yet: for whom, and what kind."""

    ident: str
    since_s: float


class Host:
    """A machine with an address, and everything on it."""

    def __init__(self, address: Address, name: PeerName, targets: tuple[Target, ...]) -> None:
        """Set up the machine; nothing runs yet."""
        self.address = address
        self.name = name
        self.targets = targets
        self.disk = Disk()
        self.node: Node | None = None
        self.clock_error_s = 0.0
        self.compact = True  # whether it has compact gossip, as Weave's peers do not
        self.life = 0  # counts starts, so that what was meant for a former process is dropped
        self.effects_until_crash: int | None = None
        self.pipes: dict[ConnectionNumber, Pipe] = {}
        self.waiting: dict[RequestNumber, Waiting] = {}
        self.dials: set[ConnectionNumber] = set()
        self.next_accepted = 2
        self.next_request = 1
        self.timer_due_s: float | None = None

    def boot(self, config: NodeConfig, seed: str, now: Now) -> list[Effect]:
        """Start a process on this host's disk."""
        assert self.node is None, "already running"
        self.life += 1
        self.node = Node(config, SeededEntropy(f"{seed}/{self.name}/{self.life}"), now)
        return self.node.start(self.disk.load(), self.targets, now)

    def stop(self) -> None:
        """The process is gone: everything it had in memory with it."""
        self.node = None
        self.effects_until_crash = None
        self.pipes.clear()
        self.waiting.clear()
        self.dials.clear()
        self.timer_due_s = None


class Performer:
    """Performs effects in order, until the crash that is due, if one is."""

    def __init__(
        self,
        *,
        dial: Callable[[Host, Dial], None],
        send: Callable[[Host, SendTcp], None],
        close: Callable[[Host, CloseTcp], None],
        special: Callable[[Host, SendSpecialFrame], None],
        sleeve: Callable[[Host, SendSleeveFrame], None],
        reconcile: Callable[[Host], None],
        reply: Callable[[Host, Reply], None],
        crash: Callable[[Host], None],
        trace: Callable[[Host, Effect], None],
    ) -> None:
        """Name what each effect does in this world; `trace` sees every one that was performed."""
        self._dial, self._send, self._close = dial, send, close
        self._sleeve, self._reconcile = sleeve, reconcile
        self._special, self._reply, self._crash, self._trace = special, reply, crash, trace

    def perform(self, host: Host, effects: list[Effect]) -> None:
        """Perform effects; a crash leaves the rest undone."""
        for effect in effects:
            if host.effects_until_crash is not None:
                if host.effects_until_crash == 0:
                    self._crash(host)
                    return
                host.effects_until_crash -= 1
            self._perform_one(host, effect)
            self._trace(host, effect)

    def _perform_one(self, host: Host, effect: Effect) -> None:
        match effect:
            case Dial():
                self._dial(host, effect)
            case SendTcp():
                self._send(host, effect)
            case CloseTcp():
                self._close(host, effect)
            case SendSpecialFrame():
                self._special(host, effect)
            case SendSleeveFrame():
                self._sleeve(host, effect)
            case Persist(changes):
                host.disk.apply(changes)
            case Reply():
                self._reply(host, effect)
            case Reconcile():
                self._reconcile(host)
            case Note():
                pass
