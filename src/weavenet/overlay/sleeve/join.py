"""Segments of TCP that came one by one, in Weave's format: put together again, as a network card does on receipt.

What follows on the way to the pod (two devices, a bridge, a firewall, TCP itself) costs as much for a packet of many
segments as for one of them, and TCP acknowledges the whole once. Segments are joined if they are of one flow, in order,
of one length (but for a shorter last one), and differ in nothing but what a card would change. Both their checksums are
verified first, as the joined packet has none: whoever gets it takes it for good, or makes the checksum itself.

Only what came in one batch is joined, so that nothing waits. A frame has both VLAN tags (pipe.py):

    0      12     16     20     22                    34          42          46    50    54  55      56
    | MACs | 88a8 | 8100 | 0800 | IPv4 without options | addresses | TCP: ports | seq | ack | n | flags | win sum | ...

Sources: net/ipv4/tcp_offload.c for what may be joined, <linux/virtio_net.h>, RFC 1071.
"""

import struct
from collections.abc import Iterable

from weavenet.codec.ip import checksum
from weavenet.overlay.sleeve.fast_peer import Buffer
from weavenet.overlay.sleeve.fast_wire import TCPV4, VIRTIO, VIRTIO_NEEDS_CHECKSUM

# For the kernel: as it is, or in parts of which the first begins with a virtio_net header.
Joined = bytes | list[Buffer]

_ETHERTYPE_AT, _IPV4_AT, _ADDRESSES_AT, _TCP_AT = 20, 22, 34, 42
_SEQUENCE_AT, _ACKNOWLEDGED_AT, _FLAGS_AT, _WINDOW_AT, _CHECKSUM_AT, _URGENT_AT = 46, 50, 55, 56, 58, 60
_PAYLOAD_AT_MIN = 62
_CHECKSUM_OFFSET = _CHECKSUM_AT - _TCP_AT
_IPV4_OF_FIVE_WORDS = b"\x08\x00\x45"  # the EtherType, the version, the header's length
_DONT_FRAGMENT = b"\x40\x00"
_TCP = 6
_ACK, _PUSH = 0x10, 0x08
_PACKET_BYTES_MAX = 65_535
_SEGMENT_BYTES_MIN = 8  # TCP_MIN_GSO_SIZE of <net/tcp.h>
_PARTS_MAX = 512  # half of IOV_MAX: what sendmsg(2) takes
_ONES = 0xFFFF
# Folding a long number at multiples of 16 bits keeps what is left of it modulo 0xFFFF, and is faster than dividing.
_FOLDS = tuple((16 * words, (1 << 16 * words) - 1) for words in (384, 192, 96, 48, 24))


def join(frames: Iterable[bytes]) -> list[Joined]:
    """Put together what belongs together; what is of one flow stays in order."""
    joined: list[bytes | _Run] = []
    runs: dict[bytes, _Run] = {}
    for frame in frames:
        payload_at = _payload_at(frame)
        if not payload_at:
            joined.append(frame)
            continue
        flow = frame[:24] + frame[30:32] + frame[_ADDRESSES_AT:_SEQUENCE_AT]
        run = runs.get(flow)
        if run is None or not run.takes(frame, payload_at):
            runs[flow] = run = _Run(frame, payload_at)
            joined.append(run)
    return [one.packet() if isinstance(one, _Run) else one for one in joined]


class _Run:
    """Segments in a row; perhaps one that none can follow."""

    __slots__ = ("_first", "_is_open", "_next", "_parts", "_payload_at", "_same", "_segment_bytes", "_size")

    def __init__(self, frame: bytes, payload_at: int) -> None:
        self._first = frame
        self._payload_at = payload_at
        self._segment_bytes = self._size = len(frame) - payload_at
        self._is_open = frame[_FLAGS_AT] == _ACK and self._size >= _SEGMENT_BYTES_MIN
        self._next = _sequence(frame) + self._size & 0xFFFF_FFFF
        self._same = _same(frame, payload_at)
        self._parts: list[Buffer] = []

    def takes(self, frame: bytes, payload_at: int) -> bool:
        """Whether this segment follows; if so it is part of the run now."""
        self._is_open = self._is_open and self._follows(frame, payload_at)
        if not self._is_open:
            return False
        if not self._parts:
            self._parts = [b"", memoryview(self._first)[payload_at:]]
        size = len(frame) - payload_at
        self._parts.append(memoryview(frame)[payload_at:])
        self._size += size
        self._next = self._next + size & 0xFFFF_FFFF
        if frame[_FLAGS_AT] & _PUSH:
            self._first = self._first[:_FLAGS_AT] + bytes([_ACK | _PUSH]) + self._first[_WINDOW_AT:]
        self._is_open = size == self._segment_bytes and not frame[_FLAGS_AT] & _PUSH
        return True

    def _follows(self, frame: bytes, payload_at: int) -> bool:
        return (
            _sequence(frame) == self._next
            and payload_at == self._payload_at
            and 0 < len(frame) - payload_at <= self._segment_bytes
            and len(frame) - _IPV4_AT + self._size <= _PACKET_BYTES_MAX
            and len(self._parts) < _PARTS_MAX
            and frame[_FLAGS_AT] & ~_PUSH == _ACK
            and _same(frame, payload_at) == self._same
            and (self._parts or _is_intact(self._first))
            and _is_intact(frame)
        )

    def packet(self) -> Joined:
        """Return all there is as one."""
        if not self._parts:
            return self._first
        header = bytearray(self._first[: self._payload_at])
        tcp_bytes = self._payload_at - _TCP_AT + self._size
        struct.pack_into("!H", header, _IPV4_AT + 2, _TCP_AT - _IPV4_AT + tcp_bytes)
        struct.pack_into("!H", header, _IPV4_AT + 10, 0)
        struct.pack_into("!H", header, _IPV4_AT + 10, checksum(header[_IPV4_AT:_TCP_AT]))
        pseudo = bytes(header[_ADDRESSES_AT:_TCP_AT]) + struct.pack("!HH", _TCP, tcp_bytes)
        struct.pack_into("!H", header, _CHECKSUM_AT, _ONES - checksum(pseudo))  # the sum, to be completed
        virtio = VIRTIO.pack(
            VIRTIO_NEEDS_CHECKSUM, TCPV4, self._payload_at, self._segment_bytes, _TCP_AT, _CHECKSUM_OFFSET
        )
        self._parts[0] = virtio + header
        return self._parts


def _payload_at(frame: bytes) -> int:
    """Return where the payload of a frame with TCP begins; 0 if it is none that could be joined with others."""
    if (
        len(frame) < _PAYLOAD_AT_MIN
        or frame[_ETHERTYPE_AT : _IPV4_AT + 1] != _IPV4_OF_FIVE_WORDS
        or frame[_IPV4_AT + 6 : _IPV4_AT + 8] != _DONT_FRAGMENT
        or frame[_IPV4_AT + 9] != _TCP
        or frame[_IPV4_AT + 2] << 8 | frame[_IPV4_AT + 3] != len(frame) - _IPV4_AT
    ):
        return 0
    at = _TCP_AT + (frame[_FLAGS_AT - 1] >> 4) * 4
    return at if _PAYLOAD_AT_MIN <= at <= len(frame) else 0


def _sequence(frame: bytes) -> int:
    return int.from_bytes(frame[_SEQUENCE_AT:_ACKNOWLEDGED_AT], "big")


def _same(frame: bytes, payload_at: int) -> bytes:
    """Return what segments that are joined have in common besides their flow: all but sequence, flags and checksum."""
    return frame[_ACKNOWLEDGED_AT:_FLAGS_AT] + frame[_WINDOW_AT:_CHECKSUM_AT] + frame[_URGENT_AT:payload_at]


def _is_intact(frame: bytes) -> bool:
    """Whether both checksums are right."""
    if int.from_bytes(frame[_IPV4_AT:_TCP_AT], "big") % _ONES:
        return False
    rest = int.from_bytes(frame[_ADDRESSES_AT:], "big") << 8 * (len(frame) & 1)
    for bits, mask in _FOLDS:
        rest = (rest >> bits) + (rest & mask)
    return (rest + _TCP + len(frame) - _TCP_AT) % _ONES == 0
