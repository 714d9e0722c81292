"""Connecting a pod to the bridge, taking it off again, and looking at what it has.

    in the host's namespace                            in the pod's, by a thread that enters it
    1  veth pair, far end born in the pod's  0.5 ms
    2  alias, hairpin, up                    0.05
                                             0.15      a thread, setns(2), a netlink socket
                                             0.1    3  router advertisements off (a sysctl, before anything is up)
                                             0.2    4  address, ARP times, up, routes: one sendmsg()
    5  carrier noticed                       0.03
                                             0.05   6  gratuitous ARP

That is 1.2 ms where weavenet was written (two cores of a virtual machine; medians of 60), against 10 ms for the same
steps through pyroute2, one call each.

Step 5: a bridge forwards for a port only once it has heard that the port has a carrier, and the kernel tells it so from
a work queue, some time after both ends came up (net/core/link_watch.c). Reading the carrier by ETHTOOL_GLINK does that
work on the spot. Without it the gratuitous ARP, and the pod's first packets, would go nowhere; this is also why the
kernel's own (sysctl arp_notify) does not do: it is sent while the interface comes up, before step 5.

Step 6: others may remember the address at the MAC address of the pod that had it before, and bridges and peers have yet
to learn on which side of them the new one is. The packet socket is closed in passing (removal.py).

Both ends get their MAC addresses from us, because asking afterwards which the kernel drew costs more than drawing them.

Taking a pod off is deleting the host's end; the pod's end, its addresses and routes go with it, in less than 1 ms as
far as anybody can tell (removal.py). The namespace is not needed, and may be gone.
"""

import array
import errno
import fcntl
import os
import socket
import struct
from contextlib import suppress

from weavenet.address import Cidr, address_to_bytes
from weavenet.dataplane.limits import RateLimit, limiter_of, parse_limiter
from weavenet.dataplane.model import (
    ALIAS_LENGTH_MAX,
    OUR_NEIGHBOUR_TIMES,
    MacAddress,
    PodInterface,
    PodLink,
    PodRoute,
    host_end_names,
    mac_from_bytes,
    mac_to_bytes,
    parse_pod_alias,
    pod_alias,
    pod_routes,
    sort_routes,
)
from weavenet.errors import KernelError, RefusedError
from weavenet.linux.limits import (
    limit_from_pod,
    limit_towards_pod,
    read_limit_from_pod,
    read_limit_towards_pod,
)
from weavenet.linux.links import (
    Link,
    VethEnd,
    change_link,
    create_veth,
    find_link,
    find_link_by_index,
    set_alias,
    set_hairpin,
    set_ipv6_link_local,
)
from weavenet.linux.netlink import Kind, Netlink, Request, parse_attributes, read_number, u32
from weavenet.linux.netns import is_own_namespace, refuse_own_namespace, run_in_namespace
from weavenet.linux.removal import Leftovers
from weavenet.linux.routes import add_address, add_route, list_addresses, list_routes, set_neighbour_times
from weavenet.linux.sysctl import write_accept_ra

_SIOCETHTOOL = 0x8946  # <linux/sockios.h>
_ETHTOOL_GLINK = 0x0A  # <linux/ethtool.h>
_IFREQ_POINTER = struct.Struct("@16sP16x")
_NETNSA_NSID, _NETNSA_FD = 1, 3  # <linux/net_namespace.h>
_NSID_UNKNOWN = 0xFFFF_FFFF

_ETH_P_ARP = 0x0806
# Hardware Ethernet, protocol IPv4, their address lengths, operation: request (RFC 826; RFC 5227 section 3 on why a
# request rather than a reply).
_ARP_HEAD = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1)


class PodLinks:
    """The pods' connections to the agent's bridge, and to others, of the network namespace in which this was made."""

    def __init__(self, bridge: str, netlink: Netlink, leftovers: Leftovers) -> None:
        """Use an open netlink socket; `bridge` is the agent's. Raises KernelError."""
        self._bridge = bridge
        self._netlink = netlink
        self._leftovers = leftovers
        self._control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def close(self) -> None:
        """Close what was opened; pods stay connected."""
        self._control.close()

    def attach(self, link: PodLink) -> PodInterface:
        """Connect a pod. On failure nothing of it is left. Raises KernelError."""
        refuse_own_namespace(link.netns)
        alias = pod_alias(link)
        if len(alias.encode()) > ALIAS_LENGTH_MAX:
            raise KernelError(f"container id {link.container_id!r} is too long for the alias of a device")
        mac = draw_mac() if link.mac is None else link.mac
        host_mac = draw_mac()
        host_end = self._create(link, VethEnd(link.ifname, mac), host_mac)
        index = _index(host_end)
        try:
            self._netlink.execute(
                change_link(
                    index,
                    f"mark {host_end} as ours and switch it on",
                    set_alias(alias),
                    set_hairpin(on=link.hairpin),
                    set_ipv6_link_local(on=False),
                    up=True,
                )
            )
            self._limit(link, index)  # before the pod can send
            announcer = run_in_namespace(link.netns, lambda: self._configure(link, host_end, mac))
        except BaseException:
            with suppress(KernelError):
                self._leftovers.remove_link(index, host_end)
            with suppress(KernelError):
                self._remove_limiter(link.container_id, link.ifname)
            raise
        self._leftovers.finish(announcer.close)
        return PodInterface(
            ifname=link.ifname,
            mac=mac,
            mtu=link.mtu,
            up=True,
            addresses=(link.address,),
            routes=sort_routes(pod_routes(link)),
            host_end=host_end,
            host_mac=host_mac,
            ingress=link.ingress,
            egress=link.egress,
        )

    def detach(self, container_id: str, ifname: str, namespace: int | None) -> bool:
        """Take a pod off the network; False if it was not on it. Raises KernelError."""
        host_end = self._find(container_id, ifname)
        if host_end is None and namespace is not None:
            host_end = self._find_inside(ifname, namespace)
        if host_end is not None:
            self._leftovers.remove_link(host_end.index, host_end.name)
        self._remove_limiter(container_id, ifname)
        return host_end is not None

    def inspect(self, namespace: int, ifname: str) -> PodInterface | None:
        """Return an interface of a pod as it is; None if there is none by this name. Raises KernelError."""
        refuse_own_namespace(namespace)
        found = run_in_namespace(namespace, lambda: _look(ifname))
        if found is None:
            return None
        inside, addresses, routes = found
        host_end = self._other_end(inside, namespace)
        ingress, egress = (None, None) if host_end is None else self._read_limits(host_end)
        return PodInterface(
            ifname=inside.name,
            mac=inside.mac,
            mtu=inside.mtu,
            up=inside.up,
            addresses=addresses,
            routes=routes,
            host_end="" if host_end is None else host_end.name,
            host_mac=None if host_end is None else host_end.mac,
            ingress=ingress,
            egress=egress,
        )

    def has_default_route(self, namespace: int, besides: str) -> bool:
        """Say whether a pod has a default route by another interface than this one. Raises KernelError."""
        refuse_own_namespace(namespace)
        return run_in_namespace(namespace, lambda: _has_default_route(besides))

    # --- attaching ---

    def _create(self, link: PodLink, far: VethEnd, host_mac: MacAddress) -> str:
        """Make the veth pair, and return the name of the host's end."""
        bridge = _index(link.bridge or self._bridge)
        refusal: RefusedError | None = None
        for name in host_end_names(link.container_id, link.ifname):
            near = VethEnd(name, host_mac)
            try:
                self._netlink.execute(create_veth(near, far, namespace=link.netns, mtu=link.mtu, master=bridge))
            except RefusedError as error:
                refusal = error
                if error.number != errno.EEXIST:
                    raise
                holder = find_link(self._netlink, name)
                if holder is None:
                    raise KernelError(f"cannot connect the pod: it already has an interface {link.ifname}") from error
                if _owner(holder) == (link.container_id, link.ifname):
                    raise KernelError(
                        f"container {link.container_id} is already connected, by {name}; delete that connection first"
                    ) from error
            else:
                return name
        assert refusal is not None
        raise refusal

    def _configure(self, link: PodLink, host_end: str, mac: MacAddress) -> socket.socket:
        """Set up the pod's end, from within its namespace; return a socket to be closed when there is time."""
        index = _index(link.ifname)
        write_accept_ra(link.ifname, accept=False)
        with Netlink() as netlink:
            netlink.execute(
                add_address(index, link.ifname, link.address),
                set_neighbour_times(index, link.ifname, OUR_NEIGHBOUR_TIMES),
                change_link(index, f"switch {link.ifname} on", up=True),
                *(add_route(index, link.ifname, route) for route in pod_routes(link)),
            )
        self._notice_carrier(host_end)
        return announce(link.ifname, mac, link.address)

    def _notice_carrier(self, device: str) -> None:
        """Have the kernel tell a device's bridge, now, that the device has a carrier."""
        value = array.array("I", [_ETHTOOL_GLINK, 0])
        request = _IFREQ_POINTER.pack(device.encode(), value.buffer_info()[0])
        # Otherwise it happens soon enough by itself, so a failure here is none of the connection.
        with suppress(OSError):
            fcntl.ioctl(self._control, _SIOCETHTOOL, request)

    # --- limits ---

    def _limit(self, link: PodLink, index: int) -> None:
        if link.ingress is not None:
            limit_towards_pod(self._netlink, index, link.ingress)
        if link.egress is not None:
            self._remove_limiter(link.container_id, link.ifname)  # of an earlier attachment that ended without a DEL
            limiter = limiter_of(link.container_id, link.ifname)
            limit_from_pod(self._netlink, index, limiter, link.egress, mtu=link.mtu)

    def _read_limits(self, host_end: Link) -> tuple[RateLimit | None, RateLimit | None]:
        owner = _owner(host_end)
        towards_pod = read_limit_towards_pod(self._netlink, host_end.index)
        if owner is None:
            return towards_pod, None
        return towards_pod, read_limit_from_pod(self._netlink, host_end.index, limiter_of(*owner))

    def _remove_limiter(self, container_id: str, ifname: str) -> None:
        limiter = limiter_of(container_id, ifname)
        link = find_link(self._netlink, limiter.name)
        if link is not None and parse_limiter(link.name, link.alias) == limiter:
            self._leftovers.remove_link(link.index, link.name)

    # --- finding ---

    def _find(self, container_id: str, ifname: str) -> Link | None:
        """Find a host's end that is ours, or that Weave Net made, by its name; the alias, or its absence, proves it."""
        for name in host_end_names(container_id, ifname):
            link = find_link(self._netlink, name)
            if link is None or link.kind != "veth":
                continue
            if _owner(link) == (container_id, ifname) or self._is_unmarked_port(link):
                return link
        return None

    def _find_inside(self, ifname: str, namespace: int) -> Link | None:
        """Find the host's end of a pod's interface that Weave Net made, by following it from inside."""
        if is_own_namespace(namespace):
            return None
        found = run_in_namespace(namespace, lambda: _look(ifname))
        host_end = None if found is None else self._other_end(found[0], namespace)
        return host_end if host_end is not None and self._is_unmarked_port(host_end) else None

    def _is_unmarked_port(self, link: Link) -> bool:
        if link.alias or not link.master:
            return False
        bridge = find_link(self._netlink, self._bridge)
        return bridge is not None and bridge.index == link.master

    def _other_end(self, inside: Link, namespace: int) -> Link | None:
        """Return the other end of a pod's veth, if it is in the host's namespace.

        An index alone says little, for every namespace counts its own; so the ends must name each other, and the near
        one must name the namespace of the far one.
        """
        if inside.kind != "veth" or not inside.peer:
            return None
        link = find_link_by_index(self._netlink, inside.peer)
        if link is None or link.kind != "veth" or link.peer != inside.index or link.peer_namespace is None:
            return None
        return link if link.peer_namespace == self._namespace_number(namespace) else None

    def _namespace_number(self, namespace: int) -> int | None:
        """Return the number by which the host's namespace calls another."""
        request = Request("look up a namespace's number", Kind.GETNSID, bytes(4) + u32(_NETNSA_FD, namespace))
        answer = self._netlink.get(request)
        number = _NSID_UNKNOWN if answer is None else read_number(parse_attributes(answer[4:]), _NETNSA_NSID)
        return None if number == _NSID_UNKNOWN else number


def draw_mac() -> MacAddress:
    """Draw a random MAC address: locally administered, and of one station (IEEE 802, section 8.4)."""
    raw = bytearray(os.urandom(6))
    raw[0] = raw[0] & 0xFE | 0x02
    return mac_from_bytes(bytes(raw))


def _owner(link: Link) -> tuple[str, str] | None:
    parsed = parse_pod_alias(link.alias)
    return None if parsed is None else parsed.owner


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError as error:
        raise KernelError(f"there is no device {name!r}") from error


def _look(ifname: str) -> tuple[Link, tuple[Cidr, ...], tuple[PodRoute, ...]] | None:
    """Return an interface, its addresses and its routes, in the calling thread's network namespace."""
    with Netlink() as netlink:
        link = find_link(netlink, ifname)
        if link is None:
            return None
        routes = (route for route in list_routes(netlink) if route.device == link.index and not route.by_kernel)
        found = sort_routes(PodRoute(route.destination, route.gateway) for route in routes)
        return link, list_addresses(netlink, link.index), found


def _has_default_route(besides: str) -> bool:
    with Netlink() as netlink:
        link = find_link(netlink, besides)
        own = None if link is None else link.index
        return any(route.destination.prefix_length == 0 and route.device != own for route in list_routes(netlink))


def announce(ifname: str, mac: MacAddress, address: Cidr) -> socket.socket:
    """Send a gratuitous ARP request from an interface of the calling thread's network namespace.

    Returns the socket, whose closing takes the kernel a while, for whoever has time for it.
    """
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    raw_mac, raw_address = mac_to_bytes(mac), address_to_bytes(address.address)
    frame = b"\xff" * 6 + raw_mac + struct.pack("!H", _ETH_P_ARP)
    frame += _ARP_HEAD + raw_mac + raw_address + bytes(6) + raw_address
    # Nobody is worse off for not having heard it than as if it had been lost on the way.
    with suppress(OSError):
        opened.sendto(frame, (ifname, _ETH_P_ARP))
    return opened
