"""Segments in a row, of one packet, as they come: put together for the kernel without copying them.

Nothing is kept from one batch to the next, so that no packet waits and nobody can make us hold anything.
"""

from weavenet.overlay.sleeve.fast_cut import header_of_run, shape_of
from weavenet.overlay.sleeve.fast_peer import Buffer, FastPeer
from weavenet.overlay.sleeve.fast_wire import KINDS, RECORD, VIRTIO, VIRTIO_NEEDS_CHECKSUM

SEGMENT_BYTES_MIN = 8  # TCP_MIN_GSO_SIZE of <net/tcp.h>
NUMBER_BYTES = 2
NUMBER_AT = RECORD.size - NUMBER_BYTES

_MACS_BYTES = 12
_PARTS_MAX = 512  # half of IOV_MAX
_LENGTH_AT, _LENGTH_END = 4, 6


class Run:
    """The segments of one packet, from some number on."""

    __slots__ = (
        "_fixed",
        "_offset",
        "_parts",
        "_room",
        "expected",
        "first",
        "header",
        "ids",
        "is_plain",
        "kind",
        "length",
        "next",
        "peer",
        "segment_bytes",
        "shape",
        "size",
    )

    def __init__(self, peer: FastPeer, record: bytes, frame: memoryview) -> None:
        """Begin with what came in one record. Raises ValueError for what makes no sense."""
        origin, destination, _, start, self._offset, self.kind, self.segment_bytes, self.first = RECORD.unpack(record)
        shape = shape_of(frame, start)
        if shape is None or self.kind not in KINDS or self.segment_bytes < SEGMENT_BYTES_MIN:
            raise ValueError(f"no segments of TCP: {record.hex()}")
        self.shape = shape
        self.header = bytes(frame[: shape.header_bytes])
        self._room = shape.payload_bytes - self.first * self.segment_bytes
        if not 0 < len(frame) - shape.header_bytes <= self._room:
            raise ValueError(f"more or less segments than the packet has: {record.hex()}")
        self.peer = peer
        self.is_plain = peer.sealer is None
        self.ids = origin << 16 | destination
        self.next = self.first
        self.size = 0
        self._parts: list[Buffer] = []
        # What a datagram with the next segments, as many as this one, begins with; nearly all go by this alone.
        self._fixed = (peer.label if self.is_plain else b"") + record[:NUMBER_AT]
        self.length = len(self._fixed) + NUMBER_BYTES + len(frame)
        self.expected = b""
        self.extend(frame[shape.header_bytes :])

    def takes(self, peer: FastPeer, record: bytes, frame: memoryview) -> bool:
        """Whether these segments are the next ones of the same packet; if so they are part of it now."""
        number = int.from_bytes(record[NUMBER_AT:], "big")
        fixed = self._fixed[-NUMBER_AT:]
        header_bytes = len(self.header)
        if (
            number != self.next
            or peer is not self.peer
            or record[:_LENGTH_AT] != fixed[:_LENGTH_AT]
            or record[_LENGTH_END:NUMBER_AT] != fixed[_LENGTH_END:]
            or not 0 < len(frame) - header_bytes <= self._room
            or bytes(frame[:header_bytes]) != self.header
        ):
            return False
        self.extend(frame[header_bytes:])
        return True

    def follows(self, peer: FastPeer, records: bytes) -> bool:
        """Whether sealed records are the next segments, as many as before, and nothing else."""
        return len(records) == self.length and records.startswith(self.expected) and peer is self.peer

    def extend(self, payload: memoryview) -> None:
        """Take the next segments."""
        size = len(payload)
        self._parts.append(payload)
        self.size += size
        self._room -= size
        if size % self.segment_bytes or self._room <= 0 or len(self._parts) >= _PARTS_MAX:
            self.next = self.length = -1  # nothing can follow
            return
        self.next += size // self.segment_bytes
        if self._room < size:
            self.length = -1  # nothing as large as this
        self.expected = self._fixed + self.next.to_bytes(NUMBER_BYTES, "big") + self.header

    def packet(self, tags: bytes) -> list[Buffer]:
        """Return one packet of all there is, for the kernel: virtio_net header, tags in their place."""
        shape, header, kind, segment_bytes = self.shape, self.header, self.kind, self.segment_bytes
        if self.size != shape.payload_bytes:
            header = header_of_run(
                header, shape, segment_bytes=segment_bytes, first=self.first, payload_bytes=self.size
            )
        if self.size <= segment_bytes:
            kind = segment_bytes = 0
        start, header_bytes = shape.transport_at + len(tags), shape.header_bytes + len(tags)
        virtio = VIRTIO.pack(VIRTIO_NEEDS_CHECKSUM, kind, header_bytes, segment_bytes, start, self._offset)
        return [b"".join((virtio, header[:_MACS_BYTES], tags, header[_MACS_BYTES:])), *self._parts]

    def frame(self) -> bytes:
        """Return the same as one frame as it is, its checksum left open."""
        header = header_of_run(
            self.header, self.shape, segment_bytes=self.segment_bytes, first=self.first, payload_bytes=self.size
        )
        return b"".join((header, *self._parts))
