"""Everything that can happen to a node, as values: the closed union that the shell and the simulator feed it."""

from dataclasses import dataclass

from weavenet.address import Address, Cidr, Endpoint
from weavenet.effects import ConnectionNumber, RequestNumber
from weavenet.identity import ShortID
from weavenet.mesh.connector import Target
from weavenet.mesh.keyring import Password


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
class SleeveFrameArrived:
    """A frame with both MACs zero came by sleeve: where from, its whole length, its first bytes, if all are zero."""

    connection: ConnectionNumber
    remote: Endpoint
    length: int
    head: bytes
    intact: bool


@dataclass(frozen=True, slots=True)
class SleeveTooBig:
    """The kernel refused to send a datagram to a peer: the path takes packets of that many bytes."""

    connection: ConnectionNumber
    pmtu_bytes: int


@dataclass(frozen=True, slots=True)
class SleeveFailed:
    """Datagrams to a peer cannot be sent at all; the text is shown to users."""

    connection: ConnectionNumber
    error: str


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
class Cancel:
    """The caller of a request is gone."""

    request: RequestNumber


@dataclass(frozen=True, slots=True)
class ShutDown:
    """`weave reset`: hand our ranges to another peer; this node will not come back."""


@dataclass(frozen=True, slots=True)
class AddKey:
    """`weave key add`: accept another password."""

    request: RequestNumber
    name: str
    password: Password


@dataclass(frozen=True, slots=True)
class UseKey:
    """`weave key use`: new connections, and those that can move, use this password from now on."""

    request: RequestNumber
    name: str


@dataclass(frozen=True, slots=True)
class RetireKey:
    """`weave key retire`: this password is not accepted any more."""

    request: RequestNumber
    name: str


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The time that `next_deadline` named has come."""


IpamInput = Allocate | Claim | Release | ReleaseAddress | AwaitConsensus | TakeOver | Cancel | ShutDown
KeyInput = AddKey | UseKey | RetireKey
Request = IpamInput | KeyInput

Input = (
    TcpAccepted
    | TcpDialled
    | DialFailed
    | TcpReceived
    | TcpClosed
    | TcpWritable
    | SpecialFrameArrived
    | SleeveFrameArrived
    | SleeveTooBig
    | SleeveFailed
    | FloodMissed
    | Connect
    | Forget
    | TimerFired
    | IpamInput
    | KeyInput
)
