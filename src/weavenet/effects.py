"""All that a core may be given, and all that it may ask for or tell its siblings.

A core method is a plain `def`: an input and `now` in, a list of effects and signals out. The shell performs effects in
the order of one outbox, so `Persist` before `SendTcp` *is* the durability rule. Signals never reach the shell: the node
routes each to the core that needs it (node/node.py), and effects of that core take the signal's place in the order.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import NewType, Protocol

import msgspec

from weavenet.address import Cidr, Endpoint
from weavenet.identity import ConnectionUID, PeerName

# A TCP connection as shell and cores call it. Dialled ones get odd numbers from the core, accepted ones even numbers
# from the shell, so that both can count without asking each other. Never reused within a process.
ConnectionNumber = NewType("ConnectionNumber", int)
# A request of the API or of CNI that waits for a `Reply`.
RequestNumber = NewType("RequestNumber", int)


class Now(msgspec.Struct, frozen=True):
    """The time at which an input arrived: monotonic for intervals, wall clock only for what people or peers read."""

    monotonic_s: float
    wall_s: float


class Entropy(Protocol):
    """Where a core gets its random numbers: the operating system in the agent, a seed in the simulator."""

    def bits(self, count: int) -> int:
        """Return a uniform integer of that many bits."""
        ...

    def octets(self, count: int) -> bytes:
        """Return that many uniform bytes."""
        ...

    def fraction(self) -> float:
        """Return a uniform number in [0, 1)."""
        ...


class Level(Enum):
    """How loud a note is."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class GossipKind(Enum):
    """How a gossip message came, or is to go."""

    NEIGHBOUR = 4  # periodic or on a new connection; the source is the immediate sender
    UNICAST = 5
    BROADCAST = 6


# --- effects: what the shell does, in order ---------------------------------------------------------------------------


class Dial(msgspec.Struct, frozen=True):
    """Open a TCP connection; answered by an opened or a failed input for the same number."""

    connection: ConnectionNumber
    remote: Endpoint


class SendTcp(msgspec.Struct, frozen=True):
    """Write bytes to a connection; writing to one that has closed is not an error."""

    connection: ConnectionNumber
    data: bytes


class CloseTcp(msgspec.Struct, frozen=True):
    """Close a connection, at once (RST) and without a further input about it. Unknown numbers are fine."""

    connection: ConnectionNumber


class SendSpecialFrame(msgspec.Struct, frozen=True):
    """Send a frame that is not pod traffic (a fastdp heartbeat: both MACs zero) through the VXLAN device."""

    remote: Endpoint
    vni: int
    frame: bytes


class SendSleeveFrame(msgspec.Struct, frozen=True):
    """Send a frame that is not pod traffic (both MACs zero) to a connection's peer by sleeve."""

    connection: ConnectionNumber
    frame: bytes
    dont_fragment: bool


class PutValue(msgspec.Struct, frozen=True):
    """Store a value under a key: `peername`, `ring`, `targets`."""

    key: str
    value: bytes


@dataclass(frozen=True, slots=True)  # as a struct prints all its fields
class PutSecret:
    """Store a value that must not be seen, under a key: `keyring`."""

    key: str
    value: bytes = field(repr=False)


class PutAllocation(msgspec.Struct, frozen=True):
    """Store that an identifier (a container) holds an address."""

    ident: str
    address: Cidr
    is_container: bool


class DropAllocation(msgspec.Struct, frozen=True):
    """Forget that an identifier holds an address."""

    ident: str
    address: Cidr


class ClearStore(msgspec.Struct, frozen=True):
    """Forget every value and allocation: the data are of another peer or another range."""


StoreChange = PutValue | PutSecret | PutAllocation | DropAllocation | ClearStore


class Persist(msgspec.Struct, frozen=True):
    """Make changes durable, as one transaction, before any later effect is performed. Failing is fatal."""

    changes: tuple[StoreChange, ...]


class Reconcile(msgspec.Struct, frozen=True):
    """Something about the wanted state of the kernel may have changed: look again."""


class Note(msgspec.Struct, frozen=True):
    """Something worth telling an operator. The text carries no time and no level."""

    level: Level
    text: str


class Granted(msgspec.Struct, frozen=True):
    """The outcome of a request for addresses."""

    addresses: tuple[Cidr, ...]


class Done(msgspec.Struct, frozen=True):
    """The outcome of a request that has nothing to report."""


class TookOver(msgspec.Struct, frozen=True):
    """The outcome of taking over a dead peer's ranges: how many addresses became ours."""

    count: int


class Cancelled(msgspec.Struct, frozen=True):
    """The outcome of a request that was given up, by its caller or by our shutting down."""


class Refused(msgspec.Struct, frozen=True):
    """The outcome of a request that cannot be served; the text is for the user."""

    reason: str


Outcome = Granted | Done | TookOver | Cancelled | Refused


class Reply(msgspec.Struct, frozen=True):
    """Answer a waiting request."""

    request: RequestNumber
    outcome: Outcome


Effect = Dial | SendTcp | CloseTcp | SendSpecialFrame | SendSleeveFrame | Persist | Reconcile | Note | Reply


# --- signals: what one core tells another, through the node -----------------------------------------------------------


class GossipArrived(msgspec.Struct, frozen=True):
    """Mesh: a message for a registered channel came. Its owner may relay it, or refuse it and so close the connection.

    For NEIGHBOUR gossip `source` is the immediate sender, for the others the origin.
    """

    connection: ConnectionNumber
    channel: str
    kind: GossipKind
    source: PeerName
    data: bytes


@dataclass(frozen=True, slots=True)  # as a struct prints all its fields
class ConnectionAdded:
    """Mesh: a connection finished its introduction and is in the topology; overlays may start talking."""

    connection: ConnectionNumber
    remote_name: PeerName
    local: Endpoint
    remote: Endpoint
    outbound: bool
    uid: ConnectionUID
    overlay_key: bytes | None = field(repr=False)  # the session key where overlay traffic must be encrypted
    overlays: tuple[str, ...] | None  # the remote's, in its order; None: it never sent the feature
    sleeve_formats: tuple[str, ...] = ()  # those the remote understands beside Weave's


class ConnectionGone(msgspec.Struct, frozen=True):
    """Mesh: a connection that had been added is no more."""

    connection: ConnectionNumber
    remote_name: PeerName


class OverlayControlArrived(msgspec.Struct, frozen=True):
    """Mesh: the overlay payload of a tag 7 message: index byte, overlay tag byte, rest.

    `bare`: it came as a message of the overlay's own tag, from a peer that never named overlays.
    """

    connection: ConnectionNumber
    payload: bytes
    bare: bool = False


@dataclass(frozen=True, slots=True)
class OverlayKeysChanged:
    """Mesh: overlay traffic of a connection is to be sealed with another key, or to be opened with others, from now on.

    The one that the remote seals with is among the others; which it is may change at any moment.
    """

    connection: ConnectionNumber
    sealing: bytes = field(repr=False)
    opening: tuple[bytes, ...] = field(repr=False)


class PeersRemoved(msgspec.Struct, frozen=True):
    """Mesh: these peers can no longer be reached in any way and were forgotten, with what each was called."""

    names: tuple[PeerName, ...]
    nicknames: tuple[str, ...]


class RoutesChanged(msgspec.Struct, frozen=True):
    """Mesh: routes were recalculated, or short IDs moved; what the data plane knows may be stale."""


class OverlayEstablished(msgspec.Struct, frozen=True):
    """Overlay: packets flow both ways; the connection counts as established."""

    connection: ConnectionNumber


class OverlayFailed(msgspec.Struct, frozen=True):
    """Overlay: nothing works over this connection; it must end."""

    connection: ConnectionNumber
    reason: str


class SendOverlayControl(msgspec.Struct, frozen=True):
    """Overlay: send a tag 7 message with this payload (index byte, overlay tag byte, rest).

    `bare`: the peer never named overlays, so the overlay tag is that of the message, and there is no index.
    """

    connection: ConnectionNumber
    payload: bytes
    bare: bool = False


class LinksChanged(msgspec.Struct, frozen=True):
    """Overlay: the set of usable links, or the overlay one uses, changed."""


class SendUnicast(msgspec.Struct, frozen=True):
    """IPAM: send a message to one peer by way of the mesh."""

    channel: str
    destination: PeerName
    data: bytes


class SendBroadcast(msgspec.Struct, frozen=True):
    """IPAM: tell every peer the channel's latest state, encoded when it is really sent."""

    channel: str


Signal = (
    GossipArrived
    | ConnectionAdded
    | ConnectionGone
    | OverlayControlArrived
    | OverlayKeysChanged
    | PeersRemoved
    | RoutesChanged
    | OverlayEstablished
    | OverlayFailed
    | SendOverlayControl
    | LinksChanged
    | SendUnicast
    | SendBroadcast
)

Output = Effect | Signal
