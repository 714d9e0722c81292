"""Heartbeats that match no connection yet.

Weave's first heartbeat usually comes too early: it is sent when the sender has added the connection, and thrown away by
a receiver that has not. It is kept here for a moment, and counts when its connection appears. An early heartbeat is
early by about one TCP round trip, and few connections are added at a time, so few are kept.
"""

import msgspec

from weavenet.address import Address
from weavenet.identity import ConnectionUID

# implementation
REMEMBERED_MAX = 32
REMEMBERED_S = 2.0


class EarlyHeartbeat(msgspec.Struct, frozen=True):
    """A heartbeat by fastdp: its VNI and where it came from."""

    vni: int
    remote: Address
    arrived_s: float


class EarlyHeartbeats:
    """The latest few."""

    def __init__(self) -> None:
        """There are none."""
        self._kept: dict[ConnectionUID, EarlyHeartbeat] = {}  # oldest first

    def keep(self, uid: ConnectionUID, early: EarlyHeartbeat) -> None:
        """Remember one, in place of an earlier one of the same connection."""
        self._kept.pop(uid, None)
        self._kept[uid] = early
        if len(self._kept) > REMEMBERED_MAX:
            del self._kept[next(iter(self._kept))]

    def take(self, uid: ConnectionUID, now_s: float) -> EarlyHeartbeat | None:
        """Return a connection's, if it came a moment ago, and forget it."""
        for known in list(self._kept):
            if self._kept[known].arrived_s + REMEMBERED_S < now_s:
                del self._kept[known]
        return self._kept.pop(uid, None)
