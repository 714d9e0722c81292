"""Which peer a short ID stands for, when 4096 numbers must do for everybody and are drawn at random.

Two peers may draw the same number. The one with the lowest name is its *principal* and may use it; whoever learns that
it is not the principal of its own number draws another. In between, and when there are more peers than numbers, the
others wait behind the principal.

The data plane puts short IDs into tunnel IDs and remembers them, so it must hear when a number comes to mean somebody
else. That is either a change of principal or the re-use of a number that had become free, and to notice the latter a
freed number leaves a tombstone. A number seen for the first time invalidates nothing.

Source: docs/protocol.md, "Short ids", and Weave's mesh peers.go.
"""

from bisect import bisect_left, insort

from weavenet.effects import Entropy
from weavenet.identity import SHORT_ID_BITS, SHORT_ID_COUNT, PeerName, ShortID

# Weave's number of tries before it lists what is free.
_RANDOM_DRAWS = 10


class ShortIDs:
    """The index of one peer: who uses which number, and which of them the number stands for."""

    def __init__(self) -> None:
        """Know no number."""
        # Users in the order of names, so the first is the principal; an empty list is a tombstone.
        self._users: dict[ShortID, list[PeerName]] = {}

    def principal(self, short_id: ShortID) -> PeerName | None:
        """Return the peer that the number stands for, if there is one."""
        users = self._users.get(short_id)
        return users[0] if users else None

    def principals(self) -> dict[ShortID, PeerName]:
        """Return all numbers in use, in order, with the peer each stands for."""
        return {short_id: users[0] for short_id, users in sorted(self._users.items()) if users}

    def add(self, short_id: ShortID, name: PeerName) -> bool:
        """Note that a peer uses a number. Say whether the number meant something else before."""
        users = self._users.get(short_id)
        if users is None:
            self._users[short_id] = [name]
            return False
        insort(users, name)
        return users[0] == name

    def remove(self, short_id: ShortID, name: PeerName) -> bool:
        """Note that a peer that was added uses the number no more. Say whether the number means another peer now."""
        users = self._users[short_id]
        place = bisect_left(users, name)
        assert users[place] == name, f"{name} was not added under {short_id}"
        del users[place]
        return place == 0 and bool(users)

    def draw(self, entropy: Entropy) -> ShortID | None:
        """Choose a number that nobody uses; None if there is none."""
        for _ in range(_RANDOM_DRAWS):
            drawn = ShortID(entropy.bits(SHORT_ID_BITS))
            if self.principal(drawn) is None:
                return drawn
        free = [number for number in map(ShortID, range(SHORT_ID_COUNT)) if self.principal(number) is None]
        return free[int(entropy.fraction() * len(free))] if free else None
