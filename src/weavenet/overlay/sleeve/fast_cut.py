"""Segments of TCP under one header: what header a part of them has, and a frame's checksum, which the kernel left open.

What Linux calls a GSO packet is one header and a payload of many segments. A run of the segments, from some number on,
is such a packet again with a header that differs in a few fields, the same that a network card changes when it cuts:

    IPv4   total length, identification + number of the first segment, header checksum        IPv6   payload length
    TCP    sequence + bytes before it; FIN and PSH only on the last segment, CWR only on the first
           checksum, which is that of the pseudo header as long as somebody else is to finish it: the new length

Sources: RFC 791, RFC 8200, RFC 9293, RFC 3168 (CWR); net/ipv4/tcp_offload.c and udp(7) for what a card does.
"""

import struct
from collections.abc import Iterator

import msgspec

from weavenet.codec.ip import ETHERNET_HEADER_BYTES, checksum

_MACS_BYTES = 12
_VLAN_TYPES = frozenset({0x8100, 0x88A8})
_VLANS_MAX = 2
_IPV4, _IPV6 = 0x0800, 0x86DD
_IPV4_HEADER_MIN, _IPV6_HEADER, _TCP_HEADER_MIN = 20, 40, 20
_FIN, _PSH, _CWR = 0x01, 0x08, 0x80
_TCP_CHECKSUM_AT = 16


class Shape(msgspec.Struct, frozen=True):
    """Where things are in a frame with TCP in it."""

    network_at: int
    transport_at: int
    header_bytes: int  # all of it: where the payload starts
    is_ipv4: bool
    payload_bytes: int  # as the header has it


def shape_of(frame: bytes | memoryview, transport_at: int) -> Shape | None:
    """Read a frame, of which the header is enough; None if it makes no sense."""
    network = _network_of(frame)
    if network is None or transport_at + _TCP_HEADER_MIN > len(frame):
        return None
    at, is_ipv4 = network
    if at + (_IPV4_HEADER_MIN if is_ipv4 else _IPV6_HEADER) > transport_at:
        return None
    data_offset = (frame[transport_at + 12] >> 4) * 4
    header_bytes = transport_at + data_offset
    if data_offset < _TCP_HEADER_MIN or header_bytes > len(frame):
        return None
    if is_ipv4:
        if at + (frame[at] & 0x0F) * 4 != transport_at:
            return None
        end = at + (frame[at + 2] << 8 | frame[at + 3])
    else:
        end = at + _IPV6_HEADER + (frame[at + 4] << 8 | frame[at + 5])
    if end < header_bytes:
        return None
    return Shape(at, transport_at, header_bytes, is_ipv4, end - header_bytes)


def header_of_run(header: bytes, shape: Shape, *, segment_bytes: int, first: int, payload_bytes: int) -> bytes:
    """Return the header of that many bytes from segment number `first` on, given that of the whole."""
    changed = bytearray(header)
    network, transport = shape.network_at, shape.transport_at
    before = first * segment_bytes
    is_last = before + payload_bytes >= shape.payload_bytes
    total = shape.header_bytes - network + payload_bytes
    if shape.is_ipv4:
        identification = (changed[network + 4] << 8 | changed[network + 5]) + first & 0xFFFF
        struct.pack_into("!HH", changed, network + 2, total, identification)
        struct.pack_into("!H", changed, network + 10, 0)
        struct.pack_into("!H", changed, network + 10, checksum(changed[network:transport]))
    else:
        struct.pack_into("!H", changed, network + 4, total - _IPV6_HEADER)
    (sequence,) = struct.unpack_from("!I", changed, transport + 4)
    struct.pack_into("!I", changed, transport + 4, sequence + before & 0xFFFF_FFFF)
    changed[transport + 13] &= 0xFF & ~(0 if is_last else _FIN | _PSH) & ~(_CWR if first else 0)
    (pseudo,) = struct.unpack_from("!H", changed, transport + _TCP_CHECKSUM_AT)
    pseudo += 0xFFFF + payload_bytes - shape.payload_bytes  # one's complement: 0xFFFF is nothing
    struct.pack_into("!H", changed, transport + _TCP_CHECKSUM_AT, (pseudo & 0xFFFF) + (pseudo >> 16) & 0xFFFF)
    return bytes(changed)


def segments(frame: bytes, transport_at: int, segment_bytes: int) -> Iterator[bytes]:
    """Cut a packet into one frame per segment, as a network card would; nothing if it makes no sense."""
    shape = shape_of(frame, transport_at)
    if shape is None or segment_bytes <= 0 or shape.header_bytes + shape.payload_bytes > len(frame):
        return
    header = frame[: shape.header_bytes]
    for first, start in enumerate(range(0, shape.payload_bytes, segment_bytes)):
        at = shape.header_bytes + start
        piece = frame[at : min(at + segment_bytes, shape.header_bytes + shape.payload_bytes)]
        cut = header_of_run(header, shape, segment_bytes=segment_bytes, first=first, payload_bytes=len(piece))
        yield with_checksum(cut + piece, transport_at, _TCP_CHECKSUM_AT)


def with_checksum(frame: bytes, start: int, offset: int) -> bytes:
    """Return a frame with the checksum that was left open, over all from `start`, in place of the pseudo header's."""
    at = start + offset
    if start < ETHERNET_HEADER_BYTES or at + 2 > len(frame):
        return frame  # of somebody who does not know what he wants
    value = checksum(frame[start:]) or 0xFFFF  # UDP says "none" by 0; for TCP both are the same
    return frame[:at] + value.to_bytes(2, "big") + frame[at + 2 :]


def _network_of(frame: bytes | memoryview) -> tuple[int, bool] | None:
    """Return where the IP header is, and whether it is IPv4's; None if there is none."""
    at = _MACS_BYTES
    for _ in range(_VLANS_MAX + 1):
        if at + 2 > len(frame):
            return None
        kind = frame[at] << 8 | frame[at + 1]
        if kind not in _VLAN_TYPES:
            return (at + 2, kind == _IPV4) if kind in {_IPV4, _IPV6} else None
        at += 4
    return None
