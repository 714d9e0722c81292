"""The door by which large packets come to user space whole, and go back: as sleeve_port.py's, but nothing is cut.

A veth pair offloads everything, so a packet of many TCP segments, or whose checksum is still to be made, crosses it as
it is. The packet socket says which by a virtio_net header before each frame, in both directions (PACKET_VNET_HDR).
The kernel takes the outer VLAN tag off what it receives, as ever; here it stays beside the frame, as nobody needs it in
its place. Sources: packet(7), <linux/virtio_net.h>, net/packet/af_packet.c.
"""

import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress

from weavenet.linux.sleeve_port import SocketOption, VethPair, open_pair

FAST_PAIR = VethPair("weave-fast", "weave-fast-u", is_cut=False)

_PACKET_VNET_HDR = SocketOption(263, 15)
_SOL_PACKET, _PACKET_AUXDATA = 263, 8
_AUXDATA = struct.Struct("=IIIHHHH")  # status, length, captured, mac, net, VLAN tag, VLAN protocol
_ANCILLARY_BYTES = socket.CMSG_SPACE(_AUXDATA.size)


def open_fast_port() -> tuple[socket.socket, int]:
    """Make the pair, or take the one there is; return the forwarder's socket and the near end's interface index.

    Both are of the calling thread's network namespace. Raises KernelError.
    """
    return open_pair(FAST_PAIR, options=[_PACKET_VNET_HDR])


def receive_whole(port: socket.socket, buffers: Sequence[bytearray]) -> Iterator[tuple[memoryview, int]]:
    """Take frames that wait, one in each buffer at most: virtio_net header and frame, and the outer tag (0: none)."""
    for buffer in buffers:
        try:
            size, ancillary, _flags, _sender = port.recvmsg_into([buffer], _ANCILLARY_BYTES)
        except BlockingIOError:
            return
        tag = _AUXDATA.unpack_from(ancillary[0][2])[5] if ancillary else 0
        yield memoryview(buffer)[:size], tag


def send_whole(port: socket.socket, frames: Sequence[Sequence[bytes | memoryview]]) -> None:
    """Give frames to the kernel, each in parts of which the first begins with the virtio_net header."""
    for parts in frames:
        with suppress(OSError):  # a full queue drops, as any queue does; and the kernel looks at what peers made up
            if len(parts) == 1:
                port.send(parts[0])
            else:
                port.sendmsg(parts)
