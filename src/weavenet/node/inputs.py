"""Everything that can happen to a node, as values: the closed union that the shell and the simulator feed it."""

from dataclasses import dataclass

from weavenet.address import Address, Cidr, Endpoint
from weavenet.effects import ConnectionNumber, RequestNumber
from weavenet.identity import ShortID
from weavenet.mesh.connector import Target


@dataclass(frozen=True, slots=True)
class TcpAccepted:
    """Somebody dialled us."""

    connection: ConnectionNumber
    local: Endpoint
    remote: Endpoint


@dataclass(frozen=True, slots=True)
class TcpDialled:
    """A `Dial` succeeded."""

    connection: ConnectionNumber
    local: Endpoint


@dataclass(frozen=True, slots=True)
class DialFailed:
    """A `Dial` failed; the text is shown to users."""

    connection: ConnectionNumber
    error: str


@dataclass(frozen=True, slots=True)
class TcpReceived:
    """Bytes arrived."""

    connection: ConnectionNumber
    data: bytes


@dataclass(frozen=True, slots=True)
class TcpClosed:
    """The other side closed or reset the connection; an empty text is a clean end of stream."""

    connection: ConnectionNumber
    error: str


@dataclass(frozen=True, slots=True)
class TcpWritable:
    """The connection's send buffer filled up, or drained."""

    connection: ConnectionNumber
    writable: bool


@dataclass(frozen=True, slots=True)
class SpecialFrameArrived:
    """A frame with both MACs zero came by VXLAN: its VNI, outer source, whole length, and first bytes."""

    vni: int
    remote: Address
    length: int
    head: bytes


@dataclass(frozen=True, slots=True)
class FloodMissed:
    """The data plane saw a broadcast from an origin it has no next hops for."""

    origin: ShortID


@dataclass(frozen=True, slots=True)
class Connect:
    """`weave connect`: these peers are wanted; with `replace`, only these."""

    targets: tuple[Target, ...]
    replace: bool


@dataclass(frozen=True, slots=True)
class Forget:
    """`weave forget`: these are no longer wanted, spelled as when they were added."""

    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Allocate:
    """Give this identifier an address; None is the default subnet."""

    request: RequestNumber
    ident: str
    subnet: Cidr | None
    is_container: bool


@dataclass(frozen=True, slots=True)
class Claim:
    """Give this identifier this very address."""

    request: RequestNumber
    ident: str
    address: Cidr
    is_container: bool
    no_error_on_unknown: bool


@dataclass(frozen=True, slots=True)
class Release:
    """Free all addresses of an identifier."""

    request: RequestNumber
    ident: str


@dataclass(frozen=True, slots=True)
class ReleaseAddress:
    """Free one address of an identifier."""

    request: RequestNumber
    ident: str
    address: Address


@dataclass(frozen=True, slots=True)
class AwaitConsensus:
    """`weave prime`: answer when there is a ring."""

    request: RequestNumber


@dataclass(frozen=True, slots=True)
class TakeOver:
    """`weave rmpeer`: make a dead peer's ranges ours. It is named by peer name or nickname."""

    request: RequestNumber
    ident: str


@dataclass(frozen=True, slots=True)
class CountPeers:
    """So many peers are there, for the election of the first ring; 0: guess."""

    peer_count: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """The caller of a request is gone."""

    request: RequestNumber


@dataclass(frozen=True, slots=True)
class ShutDown:
    """`weave reset`: hand our ranges to another peer; this node will not come back."""


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The time that `next_deadline` named has come."""


IpamInput = Allocate | Claim | Release | ReleaseAddress | AwaitConsensus | TakeOver | CountPeers | Cancel | ShutDown

Input = (
    TcpAccepted
    | TcpDialled
    | DialFailed
    | TcpReceived
    | TcpClosed
    | TcpWritable
    | SpecialFrameArrived
    | FloodMissed
    | Connect
    | Forget
    | TimerFired
    | IpamInput
)
