"""What there is to know about IPAM, as values; api/text.py words it. Source: docs/protocol.md, "IPAM status"."""

from enum import Enum

import msgspec

from weavenet.address import Address, Cidr
from weavenet.identity import PeerName


class Phase(Enum):
    """Where IPAM stands, in Weave's words for the status line."""

    UNREACHABLE = "all IP ranges owned by unreachable peers - use 'rmpeer' if they are dead"
    WAITING_FOR_SPACE = "waiting for IP(s) to become available"
    READY = "ready"
    AWAITING_CONSENSUS = "awaiting consensus"
    PRIMING = "priming"
    IDLE = "idle"


class RangeStatus(msgspec.Struct, frozen=True):
    """One range and its owner; a range that wraps around is two of these."""

    token: Address
    size: int
    peer: PeerName
    nickname: str
    is_known_peer: bool  # in the router's peer table; ours always is
    version: int


class ElectionStatus(msgspec.Struct, frozen=True):
    """How an election goes. An observer only waits for one: it counts no nodes and has no quorum."""

    elector: bool
    known_nodes: int
    quorum: int


class IpamStatus(msgspec.Struct, frozen=True):
    """All of it. `ranges` has our own first, then the others in address order."""

    phase: Phase
    election: ElectionStatus | None
    universe: Cidr
    universe_size: int
    default_subnet: Cidr
    active_count: int  # addresses in use on this host
    ranges: tuple[RangeStatus, ...]
    pending_claims: tuple[tuple[str, Cidr], ...]
    pending_allocates: tuple[tuple[str, Cidr], ...]

    @property
    def summary(self) -> str:
        """The status line."""
        if self.phase is Phase.AWAITING_CONSENSUS and self.election is not None:
            return f"{self.phase.value} (quorum: {self.election.quorum}, known: {self.election.known_nodes})"
        return self.phase.value
