"""Devices, as rtnetlink tells of them and takes orders about them.

    ifinfomsg    family u8 │ - u8 │ type u16 │ index i32 │ flags u32 │ which flags to change u32     <linux/rtnetlink.h>

A request that changes a device names it by index, never by name: a name can be another device's by now. RTM_NEWLINK
without NLM_F_CREATE is what changes a device. RTM_SETLINK would take the same message, but leaves out, silently, what
belongs to a kind of device (IFLA_LINKINFO); and a device that is just being created takes neither an alias nor what
belongs to a bridge's port (rtnl_newlink_create in net/core/rtnetlink.c). Hence the second message after each creation.
"""

import errno
import struct

import msgspec

from weavenet.dataplane.model import MacAddress, mac_from_bytes, mac_to_bytes
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
    read_text,
    text,
    u8,
    u32,
)

_IFINFO = struct.Struct("=BxHiII")
_UP = 1  # IFF_UP
_AF_INET6 = 10

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER, _IFLA_LINKINFO = 1, 3, 4, 5, 10, 18
_IFLA_IFALIAS, _IFLA_AF_SPEC, _IFLA_NET_NS_FD, _IFLA_EXT_MASK = 20, 26, 28, 29
_IFLA_NUM_TX_QUEUES, _IFLA_NUM_RX_QUEUES, _IFLA_LINK_NETNSID, _IFLA_TARGET_NETNSID = 31, 32, 37, 46
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_KIND, _INFO_SLAVE_DATA = 1, 2, 4, 5
_VETH_INFO_PEER = 1
_BR_STP_STATE = 5
_BRPORT_MODE = 4  # hairpin
_VXLAN_ID, _VXLAN_LEARNING, _VXLAN_PORT, _VXLAN_COLLECT_METADATA = 1, 7, 15, 25
_INET6_ADDR_GEN_MODE, _ADDR_GEN_MODE_EUI64, _ADDR_GEN_MODE_NONE = 8, 0, 1
_RTEXT_FILTER_SKIP_STATS = 8  # two thirds of an answer would be counters

_ABSENT = frozenset({errno.ENODEV})
_NAMESPACE_OR_DEVICE_ABSENT = frozenset({errno.ENODEV, errno.EINVAL})  # rtnl_get_net_ns_capable, net/core/rtnetlink.c


class Link(msgspec.Struct, frozen=True):
    """A device."""

    index: int
    name: str
    kind: str  # bridge, vxlan, veth ...; blank for a physical one
    alias: str
    mac: MacAddress
    mtu: int
    up: bool
    master: int  # index of what it is a port of; 0 for nothing
    peer: int  # of a veth: index of the other end, in its own namespace; 0 if unknown
    peer_namespace: int | None  # of a veth: the id that this namespace has for that of the other end
    hairpin: bool
    stp: bool
    vxlan_port: int
    vxlan_external: bool
    vxlan_learning: bool
    ipv6_link_local: bool


def read_link(body: bytes) -> Link:
    """Decode a device. Raises KernelError."""
    if len(body) < _IFINFO.size:
        raise KernelError(f"a netlink message about a device has only {len(body)} bytes")
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    attributes = parse_attributes(body[_IFINFO.size :])
    info = parse_attributes(attributes.get(_IFLA_LINKINFO, b""))
    kind = read_text(info, _INFO_KIND)
    data = parse_attributes(info.get(_INFO_DATA, b""))
    port: dict[int, bytes] = {}
    if read_text(info, _INFO_SLAVE_KIND) == "bridge":
        port = parse_attributes(info.get(_INFO_SLAVE_DATA, b""))
    inet6 = parse_attributes(parse_attributes(attributes.get(_IFLA_AF_SPEC, b"")).get(_AF_INET6, b""))
    return Link(
        index=index,
        name=read_text(attributes, _IFLA_IFNAME),
        kind=kind,
        alias=read_text(attributes, _IFLA_IFALIAS),
        mac=mac_from_bytes(attributes.get(_IFLA_ADDRESS, b"")),
        mtu=read_number(attributes, _IFLA_MTU),
        up=bool(flags & _UP),
        master=read_number(attributes, _IFLA_MASTER),
        peer=read_number(attributes, _IFLA_LINK),
        peer_namespace=read_number(attributes, _IFLA_LINK_NETNSID) if _IFLA_LINK_NETNSID in attributes else None,
        hairpin=bool(read_number(port, _BRPORT_MODE)),
        stp=kind == "bridge" and bool(read_number(data, _BR_STP_STATE)),
        vxlan_port=int.from_bytes(data.get(_VXLAN_PORT, b""), "big") if kind == "vxlan" else 0,
        vxlan_external=kind == "vxlan" and bool(read_number(data, _VXLAN_COLLECT_METADATA)),
        vxlan_learning=kind == "vxlan" and bool(read_number(data, _VXLAN_LEARNING)),
        ipv6_link_local=bool(inet6) and read_number(inet6, _INET6_ADDR_GEN_MODE) != _ADDR_GEN_MODE_NONE,
    )


# --- asking -----------------------------------------------------------------------------------------------------------


def find_link(netlink: Netlink, name: str) -> Link | None:
    """Return the device of this name, if there is one. Raises KernelError."""
    body = _ifinfo() + text(_IFLA_IFNAME, name) + _without_counters()
    answer = netlink.get(Request(f"look at {name}", Kind.GETLINK, body, forgiven=_ABSENT))
    return None if answer is None else read_link(answer)


def find_link_by_index(netlink: Netlink, index: int) -> Link | None:
    """Return the device of this index, if there is one. Raises KernelError."""
    body = _ifinfo(index) + _without_counters()
    answer = netlink.get(Request(f"look at device {index}", Kind.GETLINK, body, forgiven=_ABSENT))
    return None if answer is None else read_link(answer)


def find_far_mac(netlink: Netlink, veth: Link) -> MacAddress | None:
    """Return the MAC address of a veth's other end, in whatever namespace; None if that is gone. Raises KernelError.

    The kernel answers about another namespace from here, by the number that this one has for it. That saves a thread
    that goes there with a socket of its own, and for 1,000 pods takes as long as listing them does: 0.1 s.
    """
    body = _ifinfo(veth.peer) + _without_counters()
    if veth.peer_namespace is not None:
        body += u32(_IFLA_TARGET_NETNSID, veth.peer_namespace)
    request = Request(f"look at the other end of {veth.name}", Kind.GETLINK, body, forgiven=_NAMESPACE_OR_DEVICE_ABSENT)
    answer = netlink.get(request)
    if answer is None:
        return None
    return mac_from_bytes(parse_attributes(answer[_IFINFO.size :]).get(_IFLA_ADDRESS, b""))


def require_link(netlink: Netlink, name: str) -> Link:
    """Return the device of this name. Raises KernelError, also if there is none."""
    link = find_link(netlink, name)
    if link is None:
        raise KernelError(f"there is no device {name!r}")
    return link


def list_links(netlink: Netlink, kind: str) -> list[Link]:
    """Return all devices of a kind; the kernel picks them out. Raises KernelError."""
    body = _ifinfo() + _without_counters() + nested(_IFLA_LINKINFO, text(_INFO_KIND, kind))
    answers = netlink.dump(Request(f"list {kind} devices", Kind.GETLINK, body))
    # A kernel that did not know how to pick (before 4.20), or has no such kind, sends them all.
    return [link for link in map(read_link, answers) if link.kind == kind]


def list_names(netlink: Netlink) -> dict[int, str]:
    """Return all devices' names, by index. Raises KernelError."""
    answers = netlink.dump(Request("list devices", Kind.GETLINK, _ifinfo() + _without_counters()))
    return {link.index: link.name for link in map(read_link, answers)}


# --- orders -----------------------------------------------------------------------------------------------------------


def create_bridge(name: str, mac: MacAddress, mtu: int) -> Request:
    """Make a bridge, down, without spanning tree."""
    info = nested(_IFLA_LINKINFO, text(_INFO_KIND, "bridge"), nested(_INFO_DATA, u32(_BR_STP_STATE, 0)))
    body = _ifinfo() + text(_IFLA_IFNAME, name) + set_mac(mac) + set_mtu(mtu) + info
    return Request(f"create bridge {name}", Kind.NEWLINK, body, NEW)


def create_vxlan(name: str, port: int, mtu: int) -> Request:
    """Make a VXLAN device, down, in external mode, that does not learn."""
    data = nested(
        _INFO_DATA,
        u32(_VXLAN_ID, 0),
        u8(_VXLAN_COLLECT_METADATA, 1),
        u8(_VXLAN_LEARNING, 0),
        attribute(_VXLAN_PORT, port.to_bytes(2, "big")),
    )
    info = nested(_IFLA_LINKINFO, text(_INFO_KIND, "vxlan"), data)
    body = _ifinfo() + text(_IFLA_IFNAME, name) + set_mtu(mtu) + info
    return Request(f"create VXLAN device {name} on UDP port {port}", Kind.NEWLINK, body, NEW)


def create_ifb(name: str, mtu: int) -> Request:
    """Make a device by way of which traffic can be queued, down."""
    info = nested(_IFLA_LINKINFO, text(_INFO_KIND, "ifb"))
    one_queue = u32(_IFLA_NUM_TX_QUEUES, 1) + u32(_IFLA_NUM_RX_QUEUES, 1)
    body = _ifinfo() + text(_IFLA_IFNAME, name) + set_mtu(mtu) + one_queue + info
    return Request(f"create ifb device {name}", Kind.NEWLINK, body, NEW)


class VethEnd(msgspec.Struct, frozen=True):
    """One end of a veth pair that is to be made."""

    name: str
    mac: MacAddress


def create_veth(near: VethEnd, far: VethEnd, *, namespace: int, mtu: int, master: int) -> Request:
    """Make a veth pair, both ends down: one here and a port of a bridge, the other in the namespace of a descriptor.

    The far end cannot be up from the start, because it has no near end yet when the kernel makes it (veth_open gives
    ENOTCONN). One queue each: a queue is a directory in sysfs, which is most of what making a device costs, the kernel
    makes as many as there are processors, and veth is not faster with more unless XDP is used on it.
    """
    one_queue = u32(_IFLA_NUM_TX_QUEUES, 1) + u32(_IFLA_NUM_RX_QUEUES, 1)
    peer = nested(
        _VETH_INFO_PEER,
        _ifinfo(),
        text(_IFLA_IFNAME, far.name),
        set_mac(far.mac),
        set_mtu(mtu),
        u32(_IFLA_NET_NS_FD, namespace),
        one_queue,
    )
    info = nested(_IFLA_LINKINFO, text(_INFO_KIND, "veth"), nested(_INFO_DATA, peer))
    body = (
        _ifinfo()
        + text(_IFLA_IFNAME, near.name)
        + set_mac(near.mac)
        + set_mtu(mtu)
        + set_master(master)
        + one_queue
        + info
    )
    return Request(f"create veth pair {near.name} and {far.name}", Kind.NEWLINK, body, NEW)


def change_link(index: int, operation: str, *attributes: bytes, up: bool | None = None) -> Request:
    """Change a device."""
    flags, mask = (0, 0) if up is None else (_UP if up else 0, _UP)
    return Request(operation, Kind.NEWLINK, _ifinfo(index, flags, mask) + b"".join(attributes))


def delete_link(index: int, name: str) -> Request:
    """Delete a device. That it is gone already is fine."""
    return Request(f"delete {name}", Kind.DELLINK, _ifinfo(index), forgiven=_ABSENT)


def set_alias(value: str) -> bytes:
    """Return the attribute for a device's alias."""
    # Without the zero at the end: the kernel keeps what it is given, and counts it against the limit.
    return attribute(_IFLA_IFALIAS, value.encode())


def set_mac(value: MacAddress) -> bytes:
    """Return the attribute for a device's MAC address."""
    return attribute(_IFLA_ADDRESS, mac_to_bytes(value))


def set_mtu(value: int) -> bytes:
    """Return the attribute for a device's MTU."""
    return u32(_IFLA_MTU, value)


def set_master(index: int) -> bytes:
    """Return the attribute for what a device is a port of; 0 for nothing."""
    return u32(_IFLA_MASTER, index)


def set_hairpin(*, on: bool) -> bytes:
    """Return the attribute for a bridge port's hairpin mode."""
    data = nested(_INFO_SLAVE_DATA, u8(_BRPORT_MODE, int(on)))
    return nested(_IFLA_LINKINFO, text(_INFO_SLAVE_KIND, "bridge"), data)


def set_stp(*, on: bool) -> bytes:
    """Return the attribute for a bridge's spanning tree protocol."""
    return nested(_IFLA_LINKINFO, text(_INFO_KIND, "bridge"), nested(_INFO_DATA, u32(_BR_STP_STATE, int(on))))


def set_learning(*, on: bool) -> bytes:
    """Return the attribute for a VXLAN device's learning."""
    return nested(_IFLA_LINKINFO, text(_INFO_KIND, "vxlan"), nested(_INFO_DATA, u8(_VXLAN_LEARNING, int(on))))


def set_ipv6_link_local(*, on: bool) -> bytes:
    """Return the attribute for whether a device gets an IPv6 address when it comes up."""
    mode = _ADDR_GEN_MODE_EUI64 if on else _ADDR_GEN_MODE_NONE
    return nested(_IFLA_AF_SPEC, nested(_AF_INET6, u8(_INET6_ADDR_GEN_MODE, mode)))


def _ifinfo(index: int = 0, flags: int = 0, mask: int = 0) -> bytes:
    return _IFINFO.pack(0, 0, index, flags, mask)


def _without_counters() -> bytes:
    return u32(_IFLA_EXT_MASK, _RTEXT_FILTER_SKIP_STATS)
