"""What an overlay must know of the IPv4 packets it carries: whether they may be cut, cutting them, and saying no.

A frame here is Ethernet without its checksum; "IPv4" is an EtherType of 0x0800 and a header that makes sense. All else
(ARP, IPv6, VLAN tags) is carried as it is. Sources: RFC 791 sections 2.3 and 3.1, RFC 792, RFC 1191 section 4, RFC
1071.

    0      6      12   14                       34                     34 + options
    | dst  | src  |0800| 4i tos len id  flags+off ttl proto sum src dst | ...
"""

import struct
from collections.abc import Iterator

ETHERNET_HEADER_BYTES = 14
FLAGS_AT = ETHERNET_HEADER_BYTES + 6  # in a frame with an IPv4 header
DONT_FRAGMENT = 0x40  # there
ETHERNET_FRAME_MIN_BYTES = 60  # without the checksum; shorter ones are filled up with zeros

_IPV4 = b"\x08\x00"
_HEADER_MIN = 20
_MORE_FRAGMENTS, _OFFSET_MASK = 0x2000, 0x1FFF
_FRAGMENT_UNIT = 8
_ICMP, _UNREACHABLE, _FRAGMENTATION_NEEDED = 1, 3, 4
_ICMP_TTL = 64
_ICMP_QUOTED_BYTES = 8  # of the packet's payload


def ipv4_header_bytes(frame: bytes | memoryview) -> int:
    """Return the length of a frame's IPv4 header, or 0 if it has none that makes sense."""
    at = ETHERNET_HEADER_BYTES
    if len(frame) < at + _HEADER_MIN or frame[12:14] != _IPV4 or frame[at] >> 4 != 4:
        return 0
    length = (frame[at] & 0x0F) * 4
    total = frame[at + 2] << 8 | frame[at + 3]
    return length if _HEADER_MIN <= length <= total <= len(frame) - at else 0


def fragment(frame: bytes, mtu_bytes: int) -> Iterator[bytes]:
    """Cut the IPv4 packet of a frame into pieces of at most that many bytes, header included, each in a frame.

    A piece of what was a fragment already keeps its place in the whole. What follows the packet in the frame is
    padding, and is dropped. The MTU leaves room for the header and eight bytes at least (RFC 791: 68).
    """
    at = ETHERNET_HEADER_BYTES
    header_bytes = ipv4_header_bytes(frame)
    assert header_bytes, "only IPv4 is cut"
    step = (mtu_bytes - header_bytes) // _FRAGMENT_UNIT * _FRAGMENT_UNIT
    assert step > 0, f"an MTU of {mtu_bytes} has no room for a fragment"
    header = frame[at : at + header_bytes]
    (total, flags) = struct.unpack_from("!2xH2xH", header)
    payload = frame[at + header_bytes : at + total]
    for start in range(0, len(payload), step):
        piece = payload[start : start + step]
        more = _MORE_FRAGMENTS if start + step < len(payload) else 0
        offset = (flags & _OFFSET_MASK) + start // _FRAGMENT_UNIT
        cut = bytearray(header)
        struct.pack_into("!H", cut, 2, header_bytes + len(piece))
        struct.pack_into("!H", cut, 6, flags & ~_OFFSET_MASK | more | offset & _OFFSET_MASK)
        _seal(cut, 10)
        yield _padded(frame[:at] + bytes(cut) + piece)


def fragmentation_needed(frame: bytes, mtu_bytes: int) -> bytes:
    """Return the frame that tells a packet's sender to send no more than that many bytes at a time (RFC 1191).

    It seems to come from whom the packet was for, since the sender may know no one else here.
    """
    at = ETHERNET_HEADER_BYTES
    header_bytes = ipv4_header_bytes(frame)
    assert header_bytes, "only a sender of IPv4 is told"
    quoted = frame[at : at + header_bytes + _ICMP_QUOTED_BYTES]
    icmp = bytearray(struct.pack("!BBHHH", _UNREACHABLE, _FRAGMENTATION_NEEDED, 0, 0, min(mtu_bytes, 0xFFFF)) + quoted)
    _seal(icmp, 2)
    source, destination = frame[at + 12 : at + 16], frame[at + 16 : at + 20]
    total = _HEADER_MIN + len(icmp)
    header = bytearray(
        struct.pack("!BBHHHBBH", 0x45, frame[at + 1], total, 0, 0, _ICMP_TTL, _ICMP, 0) + destination + source
    )
    _seal(header, 10)
    return _padded(frame[6:12] + frame[:6] + _IPV4 + bytes(header) + bytes(icmp))


def checksum(data: bytes | bytearray) -> int:
    """Return the Internet checksum of some bytes (RFC 1071)."""
    if len(data) % 2:
        data = bytes(data) + b"\0"
    # The sum of 16-bit words is the same number modulo 65535 as the whole read as one integer: 2**16 is 1 there.
    folded = int.from_bytes(data, "big") % 0xFFFF
    return 0xFFFF - folded if folded or not any(data) else 0


def _seal(header: bytearray, at: int) -> None:
    struct.pack_into("!H", header, at, 0)
    struct.pack_into("!H", header, at, checksum(header))


def _padded(frame: bytes) -> bytes:
    return frame.ljust(ETHERNET_FRAME_MIN_BYTES, b"\0")
