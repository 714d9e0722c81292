"""Whether and how a first ring is being agreed on, as seen by one peer.

An election begins when somebody needs an address, not when a peer starts: by then more peers know each other. A peer
that has not needed the ring takes part in others' elections without a quorum of its own, and so never concludes
anything; it waits for somebody's ring. An observer takes no part, but waits all the same.

Source: docs/protocol.md, "Establish ring". Weave forgets the election with the process. A peer that restarts is then a
new participant which promised nothing, and two rings can come of that: p1 and p2 decide, p2 restarts, p2 and p3 decide
something else. So the table is stored with each change, and a restarted peer goes on as the participant it was.
"""

from collections.abc import Mapping

from weavenet.identity import PeerName
from weavenet.ipam.modes import Consensus, InitMode, Observer, Uncounted
from weavenet.ipam.paxos import Elector, NodeClaims, NodeID
from weavenet.ipam.ring import normalise_peers
from weavenet.ipam.status import ElectionStatus
from weavenet.ipam.wire import StoredElection


class Election:
    """Our part in agreeing on the first ring; of no interest once there is one."""

    def __init__(self, us: NodeID, mode: InitMode) -> None:
        """Begin outside of any election."""
        self.is_awaited = False  # we need a ring, and wait for an election's end
        self._peer_count = mode.peer_count if isinstance(mode, Consensus) else None
        self._is_counted = not isinstance(mode, Uncounted)
        self._elector = None if isinstance(mode, Observer) else Elector(us)

    @property
    def is_elector(self) -> bool:
        """Whether we have a vote."""
        return self._elector is not None

    def resume(self, stored: StoredElection) -> None:
        """Go on as the participant that we were before a restart."""
        if self._elector is not None:
            self._elector = Elector.restore(stored.us, stored.claims)

    def stored(self) -> StoredElection | None:
        """Return what must not be forgotten."""
        return StoredElection(self._elector.us, self._elector.claims()) if self._elector is not None else None

    def claims(self) -> Mapping[NodeID, NodeClaims] | None:
        """Return what others are told; None is an observer."""
        return self._elector.claims() if self._elector is not None else None

    def open(self, active_targets: int) -> int | None:
        """Begin to wait for a ring, and propose one if we have a vote. Return the quorum if it had to be guessed."""
        self.is_awaited = True
        if self._elector is None or not self._is_counted:
            return None
        # Without a number, the peers that we were told to connect to are all there are, besides us.
        self._elector.quorum = (self._peer_count or active_targets + 1) // 2 + 1
        self._elector.propose()
        return self._elector.quorum if self._peer_count is None else None

    def count(self, peer_count: int) -> bool:
        """Learn how many peers there are; 0 is to be guessed. Return whether that was waited for."""
        if self._is_counted:
            return False
        self._is_counted, self._peer_count = True, peer_count or None
        was_awaited, self.is_awaited = self.is_awaited, False
        return was_awaited

    def propose_again(self) -> None:
        """Outbid whatever stopped the last proposal."""
        if self._elector is not None and self._is_counted:
            self._elector.propose()

    def hear(self, claims: Mapping[NodeID, NodeClaims]) -> bool:
        """Take in another peer's table. Return whether others should be told. Raises GossipError."""
        return self._elector is not None and self._elector.update(claims) and self._elector.think()

    def decided(self) -> tuple[PeerName, ...]:
        """Return the peers of the ring that was decided on, in the ring's order; none if we cannot tell."""
        value = self._elector.consensus() if self._elector is not None else None
        return normalise_peers(value.value) if value is not None else ()

    def close(self) -> None:
        """Stop waiting: there is a ring, or we want none any more."""
        self.is_awaited = False

    def status(self) -> ElectionStatus | None:
        """Describe an election that we wait for."""
        if not self.is_awaited:
            return None
        if self._elector is None:
            return ElectionStatus(elector=False, known_nodes=0, quorum=0)
        return ElectionStatus(elector=True, known_nodes=len(self._elector.claims()), quorum=self._elector.quorum)
