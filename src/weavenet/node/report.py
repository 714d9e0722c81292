"""What a node says about itself, as values with Weave's exact JSON names: the body of `GET /report`.

Everything that shows state is made from one `Report`: the `weave status` texts, the metrics, `weave ps`. It is plain
data and knows nothing of the cores it was gathered from (that is node/status.py) nor of how it is shown (api/).

Attribute names are ours and JSON names are Go's field names, upper-case first letters and all. A list without elements
is `null` there, as Go writes a nil slice; hence the many `| None`, and `listed`. What Weave does not have is under the
one key `Weavenet`, so that every other key stays exactly Weave's. Sources: docs/protocol.md, "Report"; Weave
router/status.go, ipam/status.go, mesh status.go.
"""

from collections.abc import Iterable, Mapping
from typing import TypeVar

import msgspec
from msgspec import field

AttributeValue = str | int | bool

IN_USE = "in use"  # the state of the overlay that carries a connection's traffic

EXPOSED = "weave:expose"  # Weave's identifier for the host's own attachment: the bridge's addresses

_T = TypeVar("_T")


def listed(items: Iterable[_T]) -> tuple[_T, ...] | None:
    """Return the items as Go's JSON has them: an empty list is null."""
    return tuple(items) or None


class VersionCheck(msgspec.Struct, frozen=True, rename="pascal"):
    """Whether newer releases are looked for. We never do: a node does not phone home."""

    enabled: bool = False
    success: bool = False
    new_version: str = ""
    next_check_at: str = "0001-01-01T00:00:00Z"  # Go's zero time


# --- router -----------------------------------------------------------------------------------------------------------


class PeerConnection(msgspec.Struct, frozen=True, rename="pascal"):
    """A connection as the peer at one end of it sees it."""

    name: str
    nick_name: str
    address: str
    outbound: bool
    established: bool


class Peer(msgspec.Struct, frozen=True, rename="pascal"):
    """A peer of the mesh, ourselves among them."""

    name: str
    nick_name: str
    uid: int = field(name="UID")
    short_id: int = field(name="ShortID")
    version: int
    connections: tuple[PeerConnection, ...] | None


class UnicastRoute(msgspec.Struct, frozen=True, rename="pascal"):
    """The next hop towards a peer; our own row has the zero name."""

    dest: str
    via: str


class BroadcastRoute(msgspec.Struct, frozen=True, rename="pascal"):
    """The next hops for frames that one peer broadcasts."""

    source: str
    via: tuple[str, ...] | None


class Connection(msgspec.Struct, frozen=True, rename="pascal"):
    """A connection of ours, or the attempt at one."""

    address: str
    outbound: bool
    state: str  # pending, established, waiting, failed, connecting, retrying
    info: str
    attrs: Mapping[str, AttributeValue] | None


class Vport(msgspec.Struct, frozen=True, rename="pascal"):
    """A port of the fast data path."""

    id: int = field(name="ID")
    name: str
    type_name: str


class Flow(msgspec.Struct, frozen=True, rename="pascal"):
    """A flow that Weave's Open vSwitch data path has cached; ours has none."""

    flow_keys: tuple[str, ...] | None
    actions: tuple[str, ...] | None
    packets: int
    bytes: int
    used: int


class OverlayDiagnostics(msgspec.Struct, frozen=True, rename="pascal"):
    """What the fast data path looks like."""

    vports: tuple[Vport, ...] | None = None
    flows: tuple[Flow, ...] | None = None


class Mac(msgspec.Struct, frozen=True, rename="pascal"):
    """A MAC address and the peer behind which it was last seen."""

    mac: str
    name: str
    nick_name: str
    last_seen: str  # RFC 3339


class Router(msgspec.Struct, frozen=True, rename="pascal"):
    """The mesh and the overlays."""

    protocol: str
    protocol_min_version: int
    protocol_max_version: int
    encryption: bool
    peer_discovery: bool
    name: str
    nick_name: str
    port: int
    peers: tuple[Peer, ...] | None
    unicast_routes: tuple[UnicastRoute, ...] | None
    broadcast_routes: tuple[BroadcastRoute, ...] | None
    connections: tuple[Connection, ...] | None
    termination_count: int
    targets: tuple[str, ...] | None
    overlay_diagnostics: Mapping[str, OverlayDiagnostics | None]
    trusted_subnets: tuple[str, ...]  # the one list that Weave never writes as null
    interface: str
    capture_stats: Mapping[str, int] | None
    macs: tuple[Mac, ...] | None = field(name="MACs")


# --- ipam -------------------------------------------------------------------------------------------------------------


class Paxos(msgspec.Struct, frozen=True, rename="pascal"):
    """How far the election of the first ring is. Who is no elector waits for others to hold it."""

    elector: bool
    known_nodes: int
    quorum: int


class RingEntry(msgspec.Struct, frozen=True, rename="pascal"):
    """A range of the ring: from its token, that many addresses."""

    token: str
    size: int
    peer: str
    nickname: str
    is_known_peer: bool
    version: int


class ReportedCidr(msgspec.Struct, frozen=True, rename="pascal"):
    """An address and its prefix length."""

    addr: str
    prefix_len: int


class PendingClaim(msgspec.Struct, frozen=True, rename="pascal"):
    """A claim that waits for another peer."""

    ident: str
    cidr: ReportedCidr = field(name="CIDR")


class Ipam(msgspec.Struct, frozen=True, rename="pascal"):
    """Who owns which addresses. `entries` is null until there is a ring."""

    paxos: Paxos | None
    range: str
    range_num_ips: int = field(name="RangeNumIPs")
    active_ips: int = field(name="ActiveIPs")
    default_subnet: str
    entries: tuple[RingEntry, ...] | None
    pending_claims: tuple[PendingClaim, ...] | None
    pending_allocates: tuple[str, ...] | None


# --- ours -------------------------------------------------------------------------------------------------------------


class OverlayState(msgspec.Struct, frozen=True, rename="pascal"):
    """How one overlay of a connection stands: in use, stands by, trying, silent, failed, not offered; and why."""

    overlay: str
    state: str
    reason: str


class Traffic(msgspec.Struct, frozen=True, rename="pascal"):
    """What went between a peer's pods and ours. A packet of many TCP segments counts as one, with all its bytes."""

    sent_packets: int
    sent_bytes: int
    received_packets: int
    received_bytes: int


class OverlayLink(msgspec.Struct, frozen=True, rename="pascal"):
    """How frames reach a peer that we have a connection with."""

    peer: str
    nick_name: str
    connection: str  # the other end of it, as in Connections
    overlay: str
    remote: str  # outer address and port
    established: bool
    mtu: int = field(name="MTU")
    overlays: tuple[OverlayState, ...] | None = None
    rtt_us: int | None = field(
        name="RTTMicroseconds", default=None
    )  # of the mesh's TCP; null if the kernel cannot tell
    traffic: Traffic | None = None  # null if the data plane cannot tell


class Attachment(msgspec.Struct, frozen=True, rename="pascal"):
    """An interface on the bridge and the addresses behind it."""

    container_id: str = field(name="ContainerID")
    interface: str  # its name on the host
    mac: str = field(name="MAC")  # of the pod's end; of the bridge for the host; blank if it is just going away
    addresses: tuple[str, ...] | None = None


class Kubernetes(msgspec.Struct, frozen=True, rename="pascal"):
    """What the agent and the Kubernetes API have to do with each other."""

    server: str
    reachable: bool | None  # null: not asked yet
    since: str  # RFC 3339: how long that has been so
    last_error: str
    nodes: int
    peers: tuple[str, ...] | None  # addresses that the API names
    awaiting_count: bool  # of peers: without it no first ring is elected
    registered: bool  # in the list of peers
    reclaimed: int  # departed peers, since the agent started
    reclaim: tuple[str, ...] | None  # departed peers that wait, and why
    network_condition: str  # what became of telling the node that it has a network
    uninstall_wanted: bool


class Weavenet(msgspec.Struct, frozen=True, rename="pascal"):
    """What Weave's report has no place for."""

    links: tuple[OverlayLink, ...] | None = None
    attachments: tuple[Attachment, ...] | None = None
    counters: Mapping[str, int] = {}  # of the data plane, by event: packets dropped and why, floods missed
    sleeve_counters: Mapping[str, int] = {}  # of the process that forwards by sleeve, likewise, since it started
    problems: tuple[str, ...] | None = None  # what stands between the kernel and what it should be
    kubernetes: Kubernetes | None = None


class Report(msgspec.Struct, frozen=True, rename="pascal", omit_defaults=True):
    """All of it. What is off is missing."""

    ready: bool
    version: str
    version_check: VersionCheck
    router: Router
    ipam: Ipam | None = field(default=None, name="IPAM")
    weavenet: Weavenet | None = None
