"""Who was asked for which record, so that news that comes from twenty neighbours is fetched from one.

Whoever announces a record first is asked for it. The next few who do are kept as alternatives, and one of them is asked
if nothing has come for a second. An announcement of something still newer is followed at once, and the alternatives
stay: whoever announces and does not deliver delays a record and cannot keep it away.

Nothing is kept for longer than that, and there is a limit on how much is; beyond it a record is asked for as if nobody
had been asked yet. Source: the announcing of lazy links in Plumtree (Leitão, Pereira, Rodrigues 2007).
"""

import msgspec

from weavenet.effects import ConnectionNumber, Now
from weavenet.identity import PeerName
from weavenet.mesh.compact import Version
from weavenet.mesh.records import Peer

# How long one who has announced a record may take to send it before another is asked.
ANSWER_TIMEOUT_S = 1.0
ASKED_MAX = 20_000
ALTERNATIVES_MAX = 3


class _Asked(msgspec.Struct):
    """Somebody was asked for a record that is at least this good."""

    whom: ConnectionNumber
    version: Version
    due_s: float
    others: list[ConnectionNumber]  # who has announced it, too


class Late(msgspec.Struct, frozen=True):
    """A record that has not come, and who has announced it and was not asked yet."""

    version: Version
    others: list[ConnectionNumber]


class Asking:
    """What we have asked for and not got yet."""

    def __init__(self) -> None:
        """Have asked for nothing."""
        # In the order of their times: each is put at the end with the same delay.
        self._asked: dict[PeerName, _Asked] = {}

    def announced(self, version: Version, by: ConnectionNumber, now: Now) -> bool:
        """Note that somebody has a record that is news to us. Return whether to ask for it there."""
        name = PeerName(version.name)
        asked = self._asked.get(name)
        if asked is None:
            if len(self._asked) < ASKED_MAX:
                self.ask(version, by, [], now)
            return True
        if (asked.version.number, asked.version.uid) < (version.number, version.uid):
            self.ask(version, by, asked.others, now)
            return True
        if by != asked.whom and by not in asked.others and len(asked.others) < ALTERNATIVES_MAX:
            asked.others.append(by)
        return False

    def ask(self, version: Version, whom: ConnectionNumber, others: list[ConnectionNumber], now: Now) -> None:
        """Remember that somebody is being asked, and who could be instead."""
        name = PeerName(version.name)
        self._asked.pop(name, None)
        self._asked[name] = _Asked(whom, version, now.monotonic_s + ANSWER_TIMEOUT_S, others)

    def received(self, peer: Peer) -> None:
        """Note that a record has come."""
        asked = self._asked.get(peer.name)
        if asked is not None and (peer.version, peer.uid) >= (asked.version.number, asked.version.uid):
            del self._asked[peer.name]

    def take_late(self, now: Now) -> list[Late]:
        """Return and forget all that should have come by now."""
        late = [asked for asked in self._asked.values() if asked.due_s <= now.monotonic_s]
        for asked in late:
            del self._asked[PeerName(asked.version.name)]
        return [Late(asked.version, asked.others) for asked in late]

    def next_deadline(self) -> float | None:
        """When there will be something late, in monotonic seconds."""
        return next((asked.due_s for asked in self._asked.values()), None)
