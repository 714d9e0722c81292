"""Everything that can happen to a node, as values: the closed union that the shell and the simulator feed it."""

import msgspec

from weavenet.address import Address, Cidr, Endpoint
from weavenet.effects import ConnectionNumber, RequestNumber
from weavenet.identity import ShortID
from weavenet.mesh.connector import Target
from weavenet.mesh.keyring import Password


class TcpAccepted(msgspec.Struct, frozen=True):
    """Somebody dialled us."""

    connection: ConnectionNumber
    local: Endpoint
    remote: Endpoint


class TcpDialled(msgspec.Struct, frozen=True):
    """A `Dial` succeeded."""

    connection: ConnectionNumber
    local: Endpoint


class DialFailed(msgspec.Struct, frozen=True):
    """A `Dial` failed; the text is shown to users."""

    connection: ConnectionNumber
    error: str


class TcpReceived(msgspec.Struct, frozen=True):
    """Bytes arrived."""

    connection: ConnectionNumber
    data: bytes


class TcpClosed(msgspec.Struct, frozen=True):
    """The other side closed or reset the connection; an empty text is a clean end of stream."""

    connection: ConnectionNumber
    error: str


class TcpWritable(msgspec.Struct, frozen=True):
    """The connection's send buffer filled up, or drained."""

    connection: ConnectionNumber
    writable: bool


class SpecialFrameArrived(msgspec.Struct, frozen=True):
    """A frame with both MACs zero came by VXLAN: its VNI, outer source, whole length, and first bytes."""

    vni: int
    remote: Address
    length: int
    head: bytes


class SleeveFrameArrived(msgspec.Struct, frozen=True):
    """A frame with both MACs zero came by sleeve: where from, its whole length, its first bytes, if all are zero."""

    connection: ConnectionNumber
    remote: Endpoint
    length: int
    head: bytes
    intact: bool


class SleeveTooBig(msgspec.Struct, frozen=True):
    """The kernel refused to send a datagram to a peer: the path takes packets of that many bytes."""

    connection: ConnectionNumber
    pmtu_bytes: int


class SleeveFailed(msgspec.Struct, frozen=True):
    """Datagrams to a peer cannot be sent at all; the text is shown to users."""

    connection: ConnectionNumber
    error: str


class FloodMissed(msgspec.Struct, frozen=True):
    """The data plane saw a broadcast from an origin it has no next hops for."""

    origin: ShortID


class Connect(msgspec.Struct, frozen=True):
    """`weave connect`: these peers are wanted; with `replace`, only these."""

    targets: tuple[Target, ...]
    replace: bool


class Forget(msgspec.Struct, frozen=True):
    """`weave forget`: these are no longer wanted, spelled as when they were added."""

    texts: tuple[str, ...]


class Allocate(msgspec.Struct, frozen=True):
    """Give this identifier an address; None is the default subnet."""

    request: RequestNumber
    ident: str
    subnet: Cidr | None
    is_container: bool


class Claim(msgspec.Struct, frozen=True):
    """Give this identifier this very address."""

    request: RequestNumber
    ident: str
    address: Cidr
    is_container: bool
    no_error_on_unknown: bool


class Release(msgspec.Struct, frozen=True):
    """Free all addresses of an identifier."""

    request: RequestNumber
    ident: str


class ReleaseAddress(msgspec.Struct, frozen=True):
    """Free one address of an identifier."""

    request: RequestNumber
    ident: str
    address: Address


class AwaitConsensus(msgspec.Struct, frozen=True):
    """`weave prime`: answer when there is a ring."""

    request: RequestNumber


class TakeOver(msgspec.Struct, frozen=True):
    """`weave rmpeer`: make a dead peer's ranges ours. It is named by peer name or nickname."""

    request: RequestNumber
    ident: str


class CountPeers(msgspec.Struct, frozen=True):
    """So many peers are there, for the election of the first ring; 0: guess."""

    peer_count: int


class Cancel(msgspec.Struct, frozen=True):
    """The caller of a request is gone."""

    request: RequestNumber


class ShutDown(msgspec.Struct, frozen=True):
    """`weave reset`: hand our ranges to another peer; this node will not come back."""


class AddKey(msgspec.Struct, frozen=True):
    """`weave key add`: accept another password."""

    request: RequestNumber
    name: str
    password: Password


class UseKey(msgspec.Struct, frozen=True):
    """`weave key use`: new connections, and those that can move, use this password from now on."""

    request: RequestNumber
    name: str


class RetireKey(msgspec.Struct, frozen=True):
    """`weave key retire`: this password is not accepted any more."""

    request: RequestNumber
    name: str


class TimerFired(msgspec.Struct, frozen=True):
    """The time that `next_deadline` named has come."""


IpamInput = Allocate | Claim | Release | ReleaseAddress | AwaitConsensus | TakeOver | CountPeers | Cancel | ShutDown
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
