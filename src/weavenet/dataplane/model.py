"""What there is of ours in a host's kernel, as values: one bridge, one VXLAN device, one veth pair per pod.

    pod's namespace          host's namespace
    ┌──────────┐
    │   eth0 ──┼── veth pair ── vethwepl… ─┐
    └──────────┘                           ├─ weave (bridge) ─ vxlan-6784 ─ UDP to the other peers
    ┌──────────┐                           │                   └ tc programs choose the peer
    │   eth0 ──┼── veth pair ── vethwepl… ─┘
    └──────────┘

The same types say what is (linux/kernel.py observes it) and what should be (desired.py), so that the difference between
two such values is all there is to do (plan.py).

What is ours must be provable from the kernel alone, because the agent may have restarted, crashed, or been replaced by
a newer one since. So every device carries an alias (`ip link` shows it): `weavenet` for bridge and VXLAN device, and
`weavenet:<container id>/<ifname>` for the host's end of a pod's veth pair, followed by ` hairpin` where frames may
leave by the port they came in on. That last word is here because the bridge forgets the flag of a port that leaves it.
A pod may be on other bridges of the host as well; ` on <bridge>` then comes before that. Such a bridge is somebody
else's, and only the ports are ours.
An alias can be set at any time, survives a renaming, and is limited to 255 bytes (IFALIASZ, <linux/if.h>).
"""

import hashlib
from collections.abc import Iterable
from typing import NewType

import msgspec

from weavenet.address import Address, Cidr, Range
from weavenet.dataplane.limits import Limiter, RateLimit
from weavenet.identity import NAME_BYTES, PeerName, peer_name_to_bytes

MacAddress = NewType("MacAddress", int)

IFNAME_LENGTH_MAX = 15  # IFNAMSIZ less the terminating zero, <linux/if.h>
ALIAS_LENGTH_MAX = 255  # IFALIASZ likewise

DEVICE_ALIAS = "weavenet"
_POD_ALIAS_PREFIX = "weavenet:"
_HAIRPIN_SUFFIX = " hairpin"
_BRIDGE_MARK = " on "

# Weave's prefix for host ends, with the first characters of the container id behind it: what administrators look for.
HOST_END_PREFIX = "vethwepl"
_HOST_END_ID_LENGTH = IFNAME_LENGTH_MAX - len(HOST_END_PREFIX)
_FIRST_IFNAME = "eth0"
_NAME_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_HASHED_MARK = "x"  # not a hex digit, so no container id of a runtime begins with it


def format_mac(mac: MacAddress) -> str:
    """Write a MAC address as six lower-case two-digit groups."""
    return ":".join(f"{byte:02x}" for byte in mac_to_bytes(mac))


def mac_to_bytes(mac: MacAddress) -> bytes:
    """Return the six bytes of a MAC address."""
    return mac.to_bytes(NAME_BYTES, "big")


def mac_from_bytes(raw: bytes) -> MacAddress:
    """Read a MAC address from its bytes."""
    return MacAddress(int.from_bytes(raw, "big"))


def bridge_mac(name: PeerName) -> MacAddress:
    """Return the MAC address of a peer's bridge, which is its peer name, as in Weave."""
    return mac_from_bytes(peer_name_to_bytes(name))


# --- the host ---------------------------------------------------------------------------------------------------------


class NeighbourTimes(msgspec.Struct, frozen=True):
    """How soon an ARP entry is doubted, and how it is then asked after (arp(7))."""

    base_reachable_ms: int
    delay_probe_s: int
    unicast_probes: int

    def __str__(self) -> str:
        return (
            f"base_reachable_time_ms={self.base_reachable_ms} delay_first_probe_time={self.delay_probe_s} "
            f"ucast_solicit={self.unicast_probes}"
        )


KERNEL_NEIGHBOUR_TIMES = NeighbourTimes(30_000, 5, 3)  # net/ipv4/arp.c, arp_tbl
# Weave's, for the bridge and for interfaces in pods. Addresses move between pods, whose MAC addresses differ.
OUR_NEIGHBOUR_TIMES = NeighbourTimes(5_000, 2, 1)


class Programs(msgspec.Struct, frozen=True):
    """Which tc programs are on the VXLAN device: the tag (a hash of the instructions) of either, blank for none."""

    ingress: str
    egress: str

    def __str__(self) -> str:
        return f"ingress {self.ingress or 'none'} egress {self.egress or 'none'}"


NO_PROGRAMS = Programs("", "")


class Bridge(msgspec.Struct, frozen=True):
    """The bridge that pods and the overlay are plugged into."""

    name: str
    ours: bool  # carries our alias
    mac: MacAddress
    mtu: int
    up: bool
    stp: bool
    accept_ra: bool  # whether IPv6 router advertisements configure the host
    # Whether taking away the first address of a subnet spares the others. By the kernel's default it takes them, too,
    # and so would changing one exposed address for another (sysctl promote_secondaries).
    promote_secondaries: bool
    neighbours: NeighbourTimes
    addresses: tuple[Cidr, ...] = ()  # ascending; IPv4 only


class Vxlan(msgspec.Struct, frozen=True):
    """The VXLAN device. In `external` mode each packet brings its own VNI and remote, from the tc programs."""

    name: str
    ours: bool
    port: int
    external: bool
    learning: bool
    mtu: int
    up: bool
    master: str  # name of the bridge it is a port of; blank for none
    ipv6_link_local: bool  # whether the kernel gives it an IPv6 address, and so has it speak to the whole overlay
    programs: Programs


class Stranger(msgspec.Struct, frozen=True):
    """A device that has one of our names, but is of another kind."""

    name: str
    kind: str


class PodPort(msgspec.Struct, frozen=True, order=True):
    """The host's end of a pod's veth pair."""

    name: str
    container_id: str
    ifname: str  # of the other end, in the pod
    up: bool
    master: str  # name of the bridge it is a port of; blank for none
    hairpin: bool
    hairpin_wanted: bool  # what its alias says
    bridge: str = ""  # somebody else's that its alias says it belongs on; blank for the agent's own
    mac: MacAddress | None = None  # of the other end; None where it was not asked for, or is just going away


class HostNetwork(msgspec.Struct, frozen=True):
    """All that is ours, or in our way, in the host's network namespace."""

    bridge: Bridge | Stranger | None = None
    vxlan: Vxlan | Stranger | None = None
    pods: tuple[PodPort, ...] = ()  # ascending
    limiters: tuple[Limiter, ...] = ()  # ascending
    others: frozenset[str] = (
        frozenset()
    )  # names of somebody else's bridges that pods' ports belong on, and that are there


NOTHING = HostNetwork()


class HostRoute(msgspec.Struct, frozen=True, order=True):
    """A route of the host's main table."""

    destination: Cidr
    device: str  # blank for a route without one, such as a blackhole

    def __str__(self) -> str:
        return f"{self.destination} dev {self.device}" if self.device else str(self.destination)


def overlapping_routes(routes: Iterable[HostRoute], wanted: Range, bridge: str) -> tuple[HostRoute, ...]:
    """Return the routes that take some of these addresses elsewhere; default routes and the bridge's do not count."""
    return tuple(
        route
        for route in sorted(routes)
        if route.destination.prefix_length and route.device != bridge and route.destination.range.overlaps(wanted)
    )


# --- pods -------------------------------------------------------------------------------------------------------------


class PodRoute(msgspec.Struct, frozen=True):
    """A route in a pod; without a gateway it is on-link."""

    destination: Cidr
    gateway: Address | None = None


class OtherBridge(msgspec.Struct, frozen=True):
    """A bridge of the host's that is not ours, which a pod is to be on."""

    name: str
    mtu: int
    addresses: tuple[Cidr, ...]  # ascending; IPv4 only


class PodLink(msgspec.Struct, frozen=True):
    """A pod's connection to a bridge, as wanted."""

    container_id: str
    ifname: str  # in the pod
    netns: int  # descriptor of its network namespace, open at least until attach_pod returns
    address: Cidr
    gateway: Address | None
    routes: tuple[PodRoute, ...]  # none: a default route by way of the gateway, if there is one
    mtu: int
    hairpin: bool
    mac: MacAddress | None = None  # None: drawn at random
    ingress: RateLimit | None = None  # of what goes to the pod
    egress: RateLimit | None = None  # of what comes from it
    bridge: str = ""  # blank: the agent's own


class PodInterface(msgspec.Struct, frozen=True):
    """A pod's interface, as it is; what CNI answers and checks."""

    ifname: str
    mac: MacAddress
    mtu: int
    up: bool
    addresses: tuple[Cidr, ...]  # ascending; IPv4 only
    routes: tuple[PodRoute, ...]  # of the main table, by destination; without what comes with an address by itself
    host_end: str  # name of the other end; blank if it is not in the host's namespace
    host_mac: MacAddress | None
    ingress: RateLimit | None = None
    egress: RateLimit | None = None


class PodAlias(msgspec.Struct, frozen=True):
    """What the alias of a host's end says."""

    container_id: str
    ifname: str
    hairpin: bool
    bridge: str = ""  # blank: the agent's own

    def __str__(self) -> str:
        bridge = f"{_BRIDGE_MARK}{self.bridge}" if self.bridge else ""
        return f"{_POD_ALIAS_PREFIX}{self.container_id}/{self.ifname}{bridge}{_HAIRPIN_SUFFIX if self.hairpin else ''}"

    @property
    def owner(self) -> tuple[str, str]:
        """Whose it is: container id and interface."""
        return self.container_id, self.ifname


def pod_alias(link: PodLink) -> str:
    """Return the alias that says that a host's end is ours, whose it is, and where it belongs."""
    return str(PodAlias(link.container_id, link.ifname, link.hairpin, link.bridge))


def parse_pod_alias(alias: str) -> PodAlias | None:
    """Read an alias; None if it is not one of ours."""
    if not alias.startswith(_POD_ALIAS_PREFIX):
        return None
    rest = alias.removeprefix(_POD_ALIAS_PREFIX)
    hairpin = rest.endswith(_HAIRPIN_SUFFIX)
    whose, _, bridge = rest.removesuffix(_HAIRPIN_SUFFIX).partition(_BRIDGE_MARK)
    container_id, slash, ifname = whose.rpartition("/")
    if not (slash and container_id and ifname) or " " in ifname or " " in bridge:
        return None
    return PodAlias(container_id, ifname, hairpin, bridge)


def host_end_names(container_id: str, ifname: str) -> tuple[str, ...]:
    """Return the names to try for the host's end, the best first.

    For `eth0` of a container with a proper id it is Weave's name; a second one, from a hash of the whole, is for two
    ids that begin alike, and for everything else.
    """
    digest = int.from_bytes(hashlib.sha256(f"{container_id}/{ifname}".encode()).digest(), "big")
    digits = ""
    for _ in range(_HOST_END_ID_LENGTH - len(_HASHED_MARK)):
        digest, digit = divmod(digest, len(_NAME_DIGITS))
        digits += _NAME_DIGITS[digit]
    hashed = f"{HOST_END_PREFIX}{_HASHED_MARK}{digits}"
    start = container_id[:_HOST_END_ID_LENGTH]
    if ifname != _FIRST_IFNAME or len(start) < _HOST_END_ID_LENGTH or not (start.isascii() and start.isalnum()):
        return (hashed,)
    return (HOST_END_PREFIX + start, hashed)


def pod_routes(link: PodLink) -> tuple[PodRoute, ...]:
    """Return the routes to install for a link, in the order in which the kernel will take them.

    Weave's rules: routes that were asked for have their own gateway, or else the link's, or are on-link; if none was
    asked for, the default route leads to the gateway. A gateway outside the subnet first needs a way to itself.
    """
    wanted = link.routes or ((PodRoute(Cidr(Address(0), 0)),) if link.gateway is not None else ())
    subnet = link.address.network
    routes: list[PodRoute] = []
    for route in wanted:
        gateway = route.gateway if route.gateway is not None else link.gateway
        if gateway is not None and gateway not in subnet.range:
            routes.append(PodRoute(Cidr(gateway, 32)))
        if route.destination.network != subnet or gateway is not None:
            routes.append(PodRoute(route.destination.network, gateway))
    return tuple(dict.fromkeys(routes))


def sort_routes(routes: Iterable[PodRoute]) -> tuple[PodRoute, ...]:
    """Put routes in the order in which a PodInterface has them."""
    return tuple(sorted(routes, key=lambda route: (route.destination, route.gateway or 0)))
