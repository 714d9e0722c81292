"""The datagrams of sleeve's fast format, which two of our own peers speak when both say so in their introduction.

    plain                       sealed (fast_crypto.py)
    0  6  the connection        0   6  the connection
    6     records               6   8  counter
                               14      AES-GCM of the records, with a tag of 16

    a record:  0  4 bits  flags: 1 the checksum is to be made
                 12 bits  origin, a short ID
               2 12 bits  destination, a short ID
               4  2       length n, big-endian as all
               6  2       where the checksum of the payload starts in the frame
               8  1       and how far behind that it is to be put
               9  1       what kind of segments, as <linux/virtio_net.h> has it; 0: an ordinary frame
              10  2       bytes per segment
              12  2       number of the first segment
              14  n       Ethernet

A sender's TCP hands over up to 64 KB at a time, under one header, to be cut to segments by the network card. Here it
stays one until it is in the other pod. A datagram takes as many segments as fit, and with them the header as it was: so
each can be understood alone, the loss of one loses nothing else, and who receives several in a row puts them together
again without having waited (fast_cut.py).

Neither prefix nor record is longer than those of Weave's format (wire.py), so that a path's MTU is good for both. The
name of the connection has the group bit set: no Weave peer can have it as its own name, as it is that of a bridge.
"""

import struct

from weavenet.identity import ConnectionUID
from weavenet.overlay.sleeve.wire import FRAME_HEADER_BYTES, NAME_BYTES, PLAIN_OVERHEAD_BYTES, SEALED_OVERHEAD_BYTES

FAST_FORMAT = "segments-1"  # as the feature calls it

LABEL_BYTES = NAME_BYTES
COUNTER_BYTES, TAG_BYTES = 8, 16
RECORD = struct.Struct("!HHHHBBHH")
NEEDS_CHECKSUM = 0x1000
SHORT_ID_MASK = 0x0FFF
# <linux/virtio_net.h>
VIRTIO = struct.Struct("=BBHHHH")  # flags, kind, header length, segment bytes, checksum start, checksum offset
VIRTIO_NEEDS_CHECKSUM = 1
TCPV4, TCPV6, WITH_ECN = 1, 4, 0x80
KINDS = frozenset({TCPV4, TCPV6, TCPV4 | WITH_ECN, TCPV6 | WITH_ECN})

_GROUP = 0x01

assert RECORD.size == FRAME_HEADER_BYTES
assert LABEL_BYTES == PLAIN_OVERHEAD_BYTES
assert LABEL_BYTES + COUNTER_BYTES + TAG_BYTES == SEALED_OVERHEAD_BYTES


def label_of(uid: ConnectionUID) -> bytes:
    """Return what a connection's datagrams begin with, in both directions."""
    raw = uid.to_bytes(8, "big")
    return bytes((raw[2] | _GROUP, *raw[3:]))
