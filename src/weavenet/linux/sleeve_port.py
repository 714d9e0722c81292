"""The door by which frames come to user space, and go back, for peers that are reached by sleeve.

    programs on weave-sleeve ── veth pair ── weave-sleeve-u: a packet socket, which the forwarder has

A TAP would do the same with one device less, but needs /dev/net/tun, which a container without privileges may not open
(runc took it off its list in version 1.2). A packet socket needs no device file, and once it is open, no rights at all.

Two things a TAP does by itself are asked for here. The pair's near end offloads nothing, so that the kernel fills in
checksums and cuts large segments before they come; and the outer VLAN tag, which the kernel takes off every frame it
receives, is put back from what it says beside the frame. Sources: packet(7), veth(4), <linux/if_packet.h>,
<linux/ethtool.h>, net/core/dev.c (skb_vlan_untag in __netif_receive_skb_core).
"""

import array
import fcntl
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from weavenet.dataplane.model import DEVICE_ALIAS
from weavenet.errors import KernelError
from weavenet.linux.links import (
    VethEnd,
    change_link,
    create_veth,
    delete_link,
    find_link,
    require_link,
    set_alias,
    set_ipv6_link_local,
)
from weavenet.linux.netlink import Netlink
from weavenet.linux.netns import open_namespace
from weavenet.linux.pods import draw_mac

FRAME_BYTES_MAX = 65_600

_OWN_NAMESPACE = "/proc/thread-self/ns/net"
_MTU_BYTES = 65_535
_BUFFER_BYTES = 4 << 20
_ETH_P_ALL = 0x0003
_SOL_PACKET, _PACKET_AUXDATA, _PACKET_IGNORE_OUTGOING = 263, 8, 23
_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_AUXDATA = struct.Struct("=IIIHHHH")  # status, length, captured, mac, net, VLAN tag, VLAN protocol
_TAG = struct.Struct("!HH")
_VLAN_VALID = 1 << 4  # TP_STATUS_VLAN_VALID
_MACS_BYTES = 12
_SIOCETHTOOL = 0x8946
_ETHTOOL_STXCSUM = 0x17
_IFREQ_POINTER = struct.Struct("@16sP16x")


class VethPair(NamedTuple):
    """A pair of ours: the programs are on the near end, a packet socket on the far end."""

    near: str
    far: str
    is_cut: bool  # whether the kernel cuts what is large, and makes checksums, before it comes to the socket


class SocketOption(NamedTuple):
    """Something to switch on."""

    level: int
    name: int


SLEEVE_PAIR = VethPair("weave-sleeve", "weave-sleeve-u", is_cut=True)


def open_port() -> tuple[socket.socket, int]:
    """Make the pair, or take the one there is; return the forwarder's socket and the near end's interface index.

    Both are of the calling thread's network namespace. Raises KernelError.
    """
    return open_pair(SLEEVE_PAIR)


def open_pair(pair: VethPair, options: Sequence[SocketOption] = ()) -> tuple[socket.socket, int]:
    """Do what open_port does, with any pair, and switch on what the socket is to have besides. Raises KernelError."""
    with Netlink() as netlink:
        if find_link(netlink, pair.near) is None:
            namespace = open_namespace(_OWN_NAMESPACE)
            try:
                near, far = VethEnd(pair.near, draw_mac()), VethEnd(pair.far, draw_mac())
                netlink.execute(create_veth(near, far, namespace=namespace, mtu=_MTU_BYTES, master=0))
            finally:
                os.close(namespace)
        quiet = set_ipv6_link_local(on=False)
        for name in (pair.near, pair.far):
            index = require_link(netlink, name).index
            alias = set_alias(DEVICE_ALIAS)
            netlink.execute(change_link(index, f"switch {name} on", alias, quiet, up=True))
        index = require_link(netlink, pair.near).index
    try:
        if pair.is_cut:
            _offload_nothing(pair.near)
        return _open_socket(pair.far, options), index
    except OSError as error:
        raise KernelError(f"cannot open a packet socket on {pair.far}: {error.strerror}; sleeve needs it") from error


def remove_pair(pair: VethPair) -> bool:
    """Remove a pair from the calling thread's network namespace; False if it was not there. Raises KernelError."""
    with Netlink() as netlink:
        link = find_link(netlink, pair.near)
        if link is None or link.alias != DEVICE_ALIAS:
            return False
        netlink.execute(delete_link(link.index, pair.near))
        return True


def receive_frames(port: socket.socket, count: int) -> Iterator[bytes]:
    """Take up to so many frames that wait, whole as they were before the kernel took their outer tag off."""
    for _ in range(count):
        try:
            frame, ancillary, _flags, _sender = port.recvmsg(FRAME_BYTES_MAX, 64)
        except BlockingIOError:
            return
        for level, kind, data in ancillary:
            if level == _SOL_PACKET and kind == _PACKET_AUXDATA and len(data) >= _AUXDATA.size:
                status, _, _, _, _, tag, protocol = _AUXDATA.unpack_from(data)
                if status & _VLAN_VALID:
                    frame = frame[:_MACS_BYTES] + _TAG.pack(protocol, tag) + frame[_MACS_BYTES:]
        yield frame


def _open_socket(far: str, options: Sequence[SocketOption]) -> socket.socket:
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
    try:
        port.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        port.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        for switch in options:
            port.setsockopt(switch.level, switch.name, 1)
        for option in (_SO_RCVBUFFORCE, _SO_SNDBUFFORCE):  # CAP_NET_ADMIN may exceed the host's limit
            port.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
        port.bind((far, _ETH_P_ALL))
    except OSError:
        port.close()
        raise
    return port


def _offload_nothing(name: str) -> None:
    """Have checksums made by the kernel; without them the device can offload no segmentation either."""
    value = array.array("I", [_ETHTOOL_STXCSUM, 0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCETHTOOL, _IFREQ_POINTER.pack(name.encode(), value.buffer_info()[0]))
