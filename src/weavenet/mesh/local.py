"""The connections of the local peer: each from the dial or the accept to the end, and all of them as a table.

    dialling ──► introducing ──► added ──► established
                      ▲
    accepted ─────────┘

A connection counts for the topology once it is *added*, of which there is at most one per remote peer, and carries
packets once its overlay has *established* itself. What happens to it is decided in router.py; here is only what is so.
Source: docs/protocol.md, "Connections of the local peer", and Weave's mesh connection.go and local_peer.go.
"""

from collections.abc import Sequence
from math import inf

import msgspec

from weavenet.address import Endpoint
from weavenet.effects import ConnectionNumber, Now, Output, SendTcp
from weavenet.errors import ProtocolError
from weavenet.identity import ConnectionUID, PeerName
from weavenet.mesh.connection import Connection
from weavenet.mesh.connector import Connected
from weavenet.mesh.gossip import GossipData, Pending, Slot
from weavenet.mesh.keyring import Password
from weavenet.mesh.session import OverlayKeys

# What a remote can make us send by asking. A mesh of a thousand peers has a megabyte of state, which may be asked for
# once in a while; whoever asks all the time gets it at the speed of the second.
ALLOWANCE_BYTES_MAX = 8 << 20
ALLOWANCE_BYTES_PER_S = 128 << 10


class Allowance(msgspec.Struct):
    """How much we may still send in answers, in bytes: it is used up by sending and grows with time."""

    left: float = ALLOWANCE_BYTES_MAX
    at_s: float = 0.0

    def has_some(self, now: Now) -> bool:
        """Say whether there is any left. Whoever knows only later how much it needs may then use more than that."""
        self.left = min(ALLOWANCE_BYTES_MAX, self.left + (now.monotonic_s - self.at_s) * ALLOWANCE_BYTES_PER_S)
        self.at_s = now.monotonic_s
        return self.left > 0

    def take(self, size_bytes: int, now: Now) -> bool:
        """Use some of it. False: there is not as much left, and nothing was used."""
        if not self.has_some(now) or size_bytes > self.left:
            return False
        self.left -= size_bytes
        return True


class ConnectionStatus(msgspec.Struct, frozen=True):
    """What a user sees of a connection that has been added."""

    connection: ConnectionNumber
    remote: Endpoint
    outbound: bool
    established: bool
    name: PeerName
    nickname: str
    encrypted: bool  # whether overlay traffic must be


class LocalConnection(msgspec.Struct, eq=False):
    """One connection of ours."""

    number: ConnectionNumber
    remote: Endpoint
    outbound: bool
    direct: bool  # a user named this address, so whoever is there may be new to us
    trusted: bool  # whether we trust the remote's address
    local: Endpoint | None = None
    protocol: Connection | None = None  # None while dialling
    due_s: float = inf  # the protocol's next deadline: asked for after every input, and changed by few
    name: PeerName | None = None  # the remote's, once it is registered; the topology holds it for us
    uid: ConnectionUID | None = None
    guess: Password | None = None  # what we dialled with, as long as the remote has not proved to know it
    overlay_keys: OverlayKeys | None = None  # where overlay traffic must be sealed: with what, as was told
    added: bool = False
    established: bool = False
    writable: bool = True
    pending: Pending = msgspec.field(default_factory=Pending)
    compact: bool = False  # both ends can compare state and announce news (exchange.py)
    allowance: Allowance = msgspec.field(default_factory=Allowance)
    failure: str | None = None  # why it must end, found out where it could not be ended

    def send(self, message: bytes, out: list[Output]) -> None:
        """Send a message now. One that is too long is the end of the connection, as it is in Weave."""
        assert self.protocol is not None
        if self.failure is not None:
            return
        try:
            out.append(SendTcp(self.number, self.protocol.send(message)))
        except ProtocolError as error:
            self.failure = str(error)

    def queue(self, slot: Slot, data: GossipData) -> None:
        """Have data sent when the connection can take them. A remote too slow even for merged data is dropped."""
        if not self.pending.add(slot, data):
            self.failure = "too much gossip waits for the remote to read"


class LocalConnections:
    """All of them, by number, and the added ones by the remote's name."""

    def __init__(self) -> None:
        """Have none."""
        self._by_number: dict[ConnectionNumber, LocalConnection] = {}
        self._added: dict[PeerName, LocalConnection] = {}
        # What `all` and `added` answer, until a connection begins, is added or ends: both are asked after every input.
        self._all_in_order: list[LocalConnection] = []
        self._added_in_order: list[LocalConnection] = []

    def __len__(self) -> int:
        return len(self._by_number)

    @property
    def added_count(self) -> int:
        """How many have been added."""
        return len(self._added)

    def get(self, number: ConnectionNumber) -> LocalConnection | None:
        """Return a connection, unless it is over."""
        return self._by_number.get(number)

    def to(self, name: PeerName) -> LocalConnection | None:
        """Return the connection to a peer that has been added, if there is one."""
        return self._added.get(name)

    def all(self) -> Sequence[LocalConnection]:
        """Return every connection, in the order of their beginning as far as numbers tell."""
        return self._all_in_order

    def added(self) -> Sequence[LocalConnection]:
        """Return those that have been added, by the remote's name."""
        return self._added_in_order

    def _sort(self) -> None:
        # New lists: whoever goes through the old ones may be ending connections on the way.
        self._all_in_order = [link for _, link in sorted(self._by_number.items())]
        self._added_in_order = [link for _, link in sorted(self._added.items())]

    def begin(self, link: LocalConnection) -> None:
        """Know a new connection."""
        assert link.number not in self._by_number, f"connection number {link.number} is used twice"
        self._by_number[link.number] = link
        self._sort()

    def add(self, link: LocalConnection) -> None:
        """Make it the connection to its remote."""
        assert link.name is not None
        assert link.name not in self._added
        link.added = True
        self._added[link.name] = link
        self._sort()

    def end(self, link: LocalConnection) -> None:
        """Forget a connection."""
        del self._by_number[link.number]
        if link.added:
            assert link.name is not None
            del self._added[link.name]
        self._sort()

    def connected(self) -> list[Connected]:
        """Return the added ones as the connector sees them."""
        return [Connected(name, link.remote, link.outbound) for name, link in sorted(self._added.items())]

    def first_failed(self) -> LocalConnection | None:
        """Return a connection that must end, if there is one."""
        for link in self._by_number.values():
            if link.failure is not None:
                return link
        return None
