"""Addresses, routes, and the pace of ARP, as rtnetlink tells of them and takes orders about them.

    ifaddrmsg    family u8 │ prefix length u8 │ flags u8 │ scope u8 │ index u32                        <linux/if_addr.h>
    rtmsg        family u8 │ destination length u8 │ source length u8 │ tos u8 │ table u8 │ protocol u8
                 scope u8 │ type u8 │ flags u32                                                      <linux/rtnetlink.h>
    ndtmsg       family u8 │ - u8 │ - u16                                                            <linux/neighbour.h>

IPv4 only. A dump can ask for the entries of one device or table; the kernel is told to take that seriously
(NETLINK_GET_STRICT_CHK), and what comes is still looked at.
"""

import errno
import struct

import msgspec

from weavenet.address import Address, Cidr, address_from_bytes, address_to_bytes
from weavenet.dataplane.model import NeighbourTimes, PodRoute
from weavenet.errors import KernelError
from weavenet.linux.netlink import (
    NEW,
    Kind,
    Netlink,
    Request,
    attribute,
    nested,
    parse_attributes,
    read_number,
    text,
    u32,
    u64,
)

_IFADDR = struct.Struct("=BBBBI")
_RTMSG = struct.Struct("=BBBBBBBBI")
_NDTMSG = struct.Struct("=Bxxx")
_AF_INET = 2

_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST = 1, 2, 4
_BROADCAST_PREFIX_MAX = 30  # /31 is point to point (RFC 3021), /32 a lone host

_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_TABLE = 1, 4, 5, 15
_RT_TABLE_MAIN = 254
_RTPROT_KERNEL, _RTPROT_STATIC = 2, 4
_RT_SCOPE_UNIVERSE, _RT_SCOPE_LINK = 0, 253
_RTN_UNICAST = 1

_NDTA_NAME, _NDTA_PARMS = 1, 6
_NDTPA_IFINDEX, _NDTPA_BASE_REACHABLE_MS, _NDTPA_DELAY_PROBE_MS, _NDTPA_UNICAST_PROBES = 1, 4, 7, 10

_EXISTS = frozenset({errno.EEXIST})
_NO_ADDRESS = frozenset({errno.EADDRNOTAVAIL, errno.ENODEV})


class Route(msgspec.Struct, frozen=True):
    """A route of the main table."""

    destination: Cidr
    gateway: Address | None
    device: int  # index; 0 for none
    by_kernel: bool  # comes and goes with an address


# --- addresses --------------------------------------------------------------------------------------------------------


def list_addresses(netlink: Netlink, index: int) -> tuple[Cidr, ...]:
    """Return a device's addresses, ascending; none if there is no such device. Raises KernelError."""
    body = _IFADDR.pack(_AF_INET, 0, 0, 0, index)
    request = Request(f"list the addresses of device {index}", Kind.GETADDR, body, forgiven=frozenset({errno.ENODEV}))
    found: set[Cidr] = set()
    for answer in netlink.dump(request):
        if len(answer) < _IFADDR.size:
            raise KernelError(f"a netlink message about an address has only {len(answer)} bytes")
        family, length, _, _, device = _IFADDR.unpack_from(answer)
        attributes = parse_attributes(answer[_IFADDR.size :])
        raw = attributes.get(_IFA_LOCAL, attributes.get(_IFA_ADDRESS))
        if family == _AF_INET and device == index and raw is not None:
            found.add(Cidr(address_from_bytes(raw), length))
    return tuple(sorted(found))


def add_address(index: int, device: str, address: Cidr) -> Request:
    """Give a device an address. That it has it already is fine."""
    return Request(f"add address {address} to {device}", Kind.NEWADDR, _address(index, address), NEW, _EXISTS)


def remove_address(index: int, device: str, address: Cidr) -> Request:
    """Take an address from a device. That it does not have it is fine."""
    body = _address(index, address)
    return Request(f"remove address {address} from {device}", Kind.DELADDR, body, forgiven=_NO_ADDRESS)


def _address(index: int, address: Cidr) -> bytes:
    raw = address_to_bytes(address.address)
    body = _IFADDR.pack(_AF_INET, address.prefix_length, 0, _RT_SCOPE_UNIVERSE, index)
    body += attribute(_IFA_LOCAL, raw) + attribute(_IFA_ADDRESS, raw)
    if address.prefix_length <= _BROADCAST_PREFIX_MAX:
        body += attribute(_IFA_BROADCAST, address_to_bytes(address.broadcast))
    return body


# --- routes -----------------------------------------------------------------------------------------------------------


def list_routes(netlink: Netlink) -> list[Route]:
    """Return the routes of the main table. Raises KernelError."""
    body = _RTMSG.pack(_AF_INET, 0, 0, 0, _RT_TABLE_MAIN, 0, 0, 0, 0)
    # A table with no routes in it may not exist, which a strict kernel says with ENOENT.
    request = Request("list routes", Kind.GETROUTE, body, forgiven=frozenset({errno.ENOENT}))
    routes: list[Route] = []
    for answer in netlink.dump(request):
        if len(answer) < _RTMSG.size:
            raise KernelError(f"a netlink message about a route has only {len(answer)} bytes")
        family, length, _, _, table, protocol, _, _, _ = _RTMSG.unpack_from(answer)
        attributes = parse_attributes(answer[_RTMSG.size :])
        if family != _AF_INET or read_number(attributes, _RTA_TABLE, table) != _RT_TABLE_MAIN:
            continue
        gateway = attributes.get(_RTA_GATEWAY)
        routes.append(
            Route(
                destination=Cidr(address_from_bytes(attributes.get(_RTA_DST, bytes(4))), length),
                gateway=None if gateway is None else address_from_bytes(gateway),
                device=read_number(attributes, _RTA_OIF),
                by_kernel=protocol == _RTPROT_KERNEL,
            )
        )
    return routes


def add_route(index: int, device: str, route: PodRoute) -> Request:
    """Add a route by way of a device. Of two to one destination the first one stays, as with other CNI plugins."""
    scope = _RT_SCOPE_LINK if route.gateway is None else _RT_SCOPE_UNIVERSE
    length = route.destination.prefix_length
    body = _RTMSG.pack(_AF_INET, length, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, scope, _RTN_UNICAST, 0)
    if length:
        body += attribute(_RTA_DST, address_to_bytes(route.destination.address))
    if route.gateway is not None:
        body += attribute(_RTA_GATEWAY, address_to_bytes(route.gateway))
    body += u32(_RTA_OIF, index)
    return Request(f"add route to {route.destination} on {device}", Kind.NEWROUTE, body, NEW, _EXISTS)


# --- neighbours -------------------------------------------------------------------------------------------------------


def set_neighbour_times(index: int, device: str, times: NeighbourTimes) -> Request:
    """Set the pace of a device's ARP entries: the same as the sysctls below net/ipv4/neigh, but in a batch."""
    parameters = nested(
        _NDTA_PARMS,
        u32(_NDTPA_IFINDEX, index),
        u64(_NDTPA_BASE_REACHABLE_MS, times.base_reachable_ms),
        u64(_NDTPA_DELAY_PROBE_MS, times.delay_probe_s * 1000),
        u32(_NDTPA_UNICAST_PROBES, times.unicast_probes),
    )
    body = _NDTMSG.pack(_AF_INET) + text(_NDTA_NAME, "arp_cache") + parameters
    return Request(f"set ARP times of {device}", Kind.SETNEIGHTBL, body)
