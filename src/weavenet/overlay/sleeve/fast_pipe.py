"""Frames into datagrams and back in the fast format (fast_wire.py): the per-packet path between two of our own peers.

What comes from the kernel begins with its virtio_net header, and has the inner one of the two VLAN tags (pipe.py) in
its place; the outer one stands beside it. What goes to the kernel has both in their place.

    | virtio 10 | dst 6 | src 6 | 8100 0 origin | the frame's own EtherType ...

What is larger than the path takes is not for this format: it is handed to the other pipe as an ordinary frame, whose
sender that one tells, or which it cuts. So is what comes and is larger than we take.
"""

import struct
from collections.abc import Iterable

import msgspec

from weavenet.address import Endpoint
from weavenet.codec.ip import DONT_FRAGMENT as IPV4_DONT_FRAGMENT
from weavenet.codec.ip import ETHERNET_HEADER_BYTES, FLAGS_AT, ipv4_header_bytes
from weavenet.effects import ConnectionNumber
from weavenet.identity import ShortID
from weavenet.overlay.sleeve.fast_cut import segments, with_checksum
from weavenet.overlay.sleeve.fast_peer import Buffer, FastPeer, FastSend
from weavenet.overlay.sleeve.fast_run import NUMBER_AT, NUMBER_BYTES, Run
from weavenet.overlay.sleeve.fast_wire import (
    KINDS,
    LABEL_BYTES,
    NEEDS_CHECKSUM,
    RECORD,
    SHORT_ID_MASK,
    VIRTIO,
    VIRTIO_NEEDS_CHECKSUM,
)
from weavenet.overlay.sleeve.pipe import Counters, Large
from weavenet.overlay.sleeve.table import EMPTY_TABLE, SleeveTable

_TAG_BYTES = 4
_MACS_AT, _TAG_AT, _REST_AT = VIRTIO.size, VIRTIO.size + 12, VIRTIO.size + 12 + _TAG_BYTES
_TAG = struct.Struct("!HH")
_C_VLAN, _S_VLAN = 0x8100, 0x88A8
_TAGS = struct.Struct("!HHHH")
_NUMBERS_MAX = 65_536
_KIND_AT = 9  # in a record
_REMEMBERED_MAX = 4096
_START_MAX, _OFFSET_MAX = 0xFFFF, 0xFF  # that a record has room for
_PLAIN_VIRTIO = bytes(VIRTIO.size)

# What one call of the kernel brought: in the first so many bytes of this, datagrams of that length, from there.
Received = tuple[bytearray, int, int, Endpoint]


class FastArrived(msgspec.Struct):
    """What came of a batch of datagrams."""

    frames: list[list[Buffer]]  # for the kernel; they refer to the buffers, so write them before those are used again
    others: list[tuple[bytes, Endpoint]]  # datagrams in Weave's format
    large: list[Large]  # larger than we take


class FastPipe:
    """One host's sleeve, towards peers that know the fast format."""

    def __init__(self, counters: Counters) -> None:
        """Know nobody; `apply` tells. What happens is counted with what the other pipe does."""
        self._counters = counters
        self._table = EMPTY_TABLE
        self._peers: dict[ConnectionNumber, FastPeer] = {}
        self._by_label: dict[bytes, FastPeer] = {}
        self._ways: dict[int, FastPeer] = {}
        self._tags: dict[int, bytes] = {}
        self._run: Run | None = None
        self._limit = 0

    def apply(self, table: SleeveTable) -> None:
        """Go by this table from now on. A connection that stays keeps its counters; one that is gone is forgotten."""
        self._table = table
        self._limit = table.mtu_bytes + ETHERNET_HEADER_BYTES
        self._ways.clear()
        former, self._peers = self._peers, {}
        for known in table.connections:
            if known.fast_label is None:
                continue
            peer = former.get(known.number)
            if peer is None:
                peer = FastPeer(known, known.fast_label)
            peer.apply(known)
            self._peers[known.number] = peer
        self._by_label = {peer.label: peer for peer in self._peers.values()}

    # --- to the peers -------------------------------------------------------------------------------------------------

    def outgoing(self, frames: Iterable[tuple[memoryview, int]]) -> tuple[list[FastSend], list[bytes]]:
        """Turn frames of the kernel's, each with its outer tag, into datagrams; and into frames for the other pipe."""
        sends: list[FastSend] = []
        others: list[bytes] = []
        touched: dict[ConnectionNumber, FastPeer] = {}
        for view, outer in frames:
            if len(view) < _REST_AT + 2:
                self._counters.drop_malformed += 1
                continue
            flags, kind, _, segment_bytes, start, offset = VIRTIO.unpack_from(view)
            tag_kind, inner = _TAG.unpack_from(view, _TAG_AT)
            peer = self._ways.get(outer & SHORT_ID_MASK) or self._find_way(outer & SHORT_ID_MASK)
            if peer is None or tag_kind != _C_VLAN:
                self._counters.drop_malformed += tag_kind != _C_VLAN
                continue
            touched[peer.known.number] = peer
            start -= _TAG_BYTES
            limit = peer.known.mtu_bytes + ETHERNET_HEADER_BYTES
            length = len(view) - _MACS_AT - _TAG_BYTES
            ids = (inner & SHORT_ID_MASK | NEEDS_CHECKSUM, outer & SHORT_ID_MASK)
            if (kind or flags & VIRTIO_NEEDS_CHECKSUM) and not (0 <= start <= _START_MAX and offset <= _OFFSET_MAX):
                self._counters.drop_malformed += 1  # from a pod that makes up its own headers
                continue
            if kind:
                header_bytes = self._header_bytes(view, start)
                if kind in KINDS and segment_bytes and 0 < header_bytes <= limit - segment_bytes:
                    self._cut(peer, view, (*ids, start, offset, kind, segment_bytes), header_bytes, sends)
                else:
                    others += _segments(view, outer, start, segment_bytes)
            elif length > limit or RECORD.size + length > peer.room:
                others.append(_whole(view, outer, flags, start, offset))
            else:
                if not flags & VIRTIO_NEEDS_CHECKSUM:
                    ids, start, offset = (inner & SHORT_ID_MASK, ids[1]), 0, 0
                record = RECORD.pack(*ids, length, start, offset, 0, 0, 0)
                if peer.parts_bytes + RECORD.size + length > peer.room:
                    peer.flush(sends)
                peer.parts += (record, view[_MACS_AT:_TAG_AT], view[_REST_AT:])
                peer.parts_bytes += RECORD.size + length
                self._counters.sent += 1
        for peer in touched.values():
            peer.flush(sends)
            peer.send = None
        return sends, others

    def _find_way(self, destination: int) -> FastPeer | None:
        """Find out where frames to a peer go, and remember it; None, and counted, if nowhere."""
        peer = self._peers.get(self._table.routes.get(ShortID(destination), ConnectionNumber(0)))
        if peer is None:
            self._counters.drop_no_route += 1
        elif peer.known.remote is None:
            self._counters.drop_no_contact += 1
        else:
            self._ways[destination] = peer
            return peer
        return None

    @staticmethod
    def _header_bytes(view: memoryview, start: int) -> int:
        at = _MACS_AT + _TAG_BYTES + start + 12
        return start + (view[at] >> 4) * 4 if start >= 0 and at < len(view) else 0

    def _cut(
        self,
        peer: FastPeer,
        view: memoryview,
        record: tuple[int, int, int, int, int, int],
        header_bytes: int,
        sends: list[FastSend],
    ) -> None:
        """Put a packet of many segments into datagrams, each with as many as fit."""
        origin, destination, start, offset, kind, segment_bytes = record
        at = _MACS_AT + _TAG_BYTES + header_bytes
        header = b"".join((view[_MACS_AT:_TAG_AT], view[_REST_AT:at]))
        per_datagram = (peer.room - RECORD.size - header_bytes) // segment_bytes
        payload_bytes = len(view) - at
        if per_datagram <= 0 or payload_bytes > segment_bytes * _NUMBERS_MAX or len(header) != header_bytes:
            self._counters.drop_too_big += 1
            return
        peer.flush(sends)
        self._counters.sent += 1
        step = per_datagram * segment_bytes
        first = 0
        for begin in range(at, len(view), step):
            piece = view[begin : begin + step]
            length = header_bytes + len(piece)
            if first == 0 or len(piece) < step:
                lead = RECORD.pack(origin, destination, length, start, offset, kind, segment_bytes, 0)[:NUMBER_AT]
                lead = peer.label + lead if peer.sealer is None else lead
            head = lead + first.to_bytes(NUMBER_BYTES, "big") + header
            first += per_datagram
            if peer.sealer is None:
                peer.emit((head, piece), LABEL_BYTES + RECORD.size + length, sends)
            else:
                sealed = peer.sealer.seal(head + piece)
                peer.emit((peer.label, sealed), LABEL_BYTES + len(sealed), sends)

    # --- from the peers -----------------------------------------------------------------------------------------------

    def incoming(self, received: Iterable[Received]) -> FastArrived:
        """Turn what came into frames for the kernel."""
        arrived = FastArrived([], [], [])
        for buffer, size, step, remote in received:
            view = memoryview(buffer)
            for at in range(0, size, step):
                end = min(at + step, size)
                run = self._run
                if run is not None and run.is_plain and end - at == run.length and buffer.startswith(run.expected, at):
                    run.extend(view[at + len(run.expected) : end])
                    continue
                peer = self._by_label.get(bytes(view[at : at + LABEL_BYTES]))
                if peer is None:
                    arrived.others.append((bytes(view[at:end]), remote))
                elif peer.sealer is None:
                    self._records(peer, view[at + LABEL_BYTES : end], arrived)
                else:
                    opened = peer.open(view[at + LABEL_BYTES : end])
                    if opened is None:
                        self._counters.drop_sealed += 1
                    elif run is not None and run.follows(peer, opened):
                        run.extend(memoryview(opened)[len(run.expected) :])
                    else:
                        self._records(peer, memoryview(opened), arrived)
        self._end_run(arrived)
        return arrived

    def _records(self, peer: FastPeer, data: memoryview, arrived: FastArrived) -> None:
        at, end = 0, len(data)
        while at < end:
            record = bytes(data[at : at + RECORD.size])
            at += RECORD.size
            length = int.from_bytes(record[4:6], "big")
            if at > end or length > end - at or length < ETHERNET_HEADER_BYTES:
                self._counters.drop_malformed += 1
                return
            frame = data[at : at + length]
            at += length
            if not record[_KIND_AT]:
                self._end_run(arrived)
                self._frame_arrived(peer, record, frame, arrived)
            elif self._run is None or not self._run.takes(peer, record, frame):
                self._end_run(arrived)
                try:
                    self._run = Run(peer, record, frame)
                except ValueError:
                    self._counters.drop_malformed += 1

    def _frame_arrived(self, peer: FastPeer, record: bytes, frame: memoryview, arrived: FastArrived) -> None:
        origin, destination, length, start, offset, _, _, _ = RECORD.unpack(record)
        ids = origin << 16 | destination
        if length > self._limit and self._is_held(ids):
            whole = with_checksum(bytes(frame), start, offset) if origin & NEEDS_CHECKSUM else bytes(frame)
            arrived.large.append(Large(peer.known.number, *_short_ids(ids), whole))
            return
        tags = self._tags.get(ids) or self._find_tags(ids)
        virtio = _PLAIN_VIRTIO
        if origin & NEEDS_CHECKSUM:
            virtio = VIRTIO.pack(VIRTIO_NEEDS_CHECKSUM, 0, 0, 0, start + len(tags) & 0xFFFF, offset)
        arrived.frames.append([b"".join((virtio, frame[:12], tags, frame[12:]))])
        self._counters.received += 1

    def _end_run(self, arrived: FastArrived) -> None:
        """Give the kernel the segments that came in a row."""
        run = self._run
        if run is None:
            return
        self._run = None
        if run.shape.header_bytes + min(run.segment_bytes, run.size) > self._limit and self._is_held(run.ids):
            cut = _worth_sending(run.frame(), run.shape.transport_at, run.segment_bytes)
            arrived.large += [Large(run.peer.known.number, *_short_ids(run.ids), one) for one in cut]
            return
        self._counters.received += 1
        arrived.frames.append(run.packet(self._tags.get(run.ids) or self._find_tags(run.ids)))

    def _is_held(self, ids: int) -> bool:
        return _short_ids(ids)[1] in self._table.held

    def _find_tags(self, ids: int) -> bytes:
        if len(self._tags) >= _REMEMBERED_MAX:
            self._tags.clear()
        origin, destination = _short_ids(ids)
        self._tags[ids] = tags = _TAGS.pack(_S_VLAN, destination, _C_VLAN, origin)
        return tags


def _short_ids(ids: int) -> tuple[ShortID, ShortID]:
    return ShortID(ids >> 16 & SHORT_ID_MASK), ShortID(ids & SHORT_ID_MASK)


def _worth_sending(frame: bytes, start: int, segment_bytes: int) -> list[bytes]:
    """Return a packet's segments, too large as they are; only the first if all one can do is to tell the sender."""
    tells = ipv4_header_bytes(frame) and frame[FLAGS_AT] & IPV4_DONT_FRAGMENT
    cut = segments(frame, start, segment_bytes)
    return [piece for piece, _ in zip(cut, range(1 if tells else _NUMBERS_MAX), strict=False)]


def _whole(view: memoryview, outer: int, flags: int, start: int, offset: int) -> bytes:
    """Return a frame as the other pipe wants it: with both tags, and nothing left open."""
    frame = _untagged(view)
    if flags & VIRTIO_NEEDS_CHECKSUM:
        frame = with_checksum(frame, start, offset)
    return _tagged(frame, view, outer)


def _segments(view: memoryview, outer: int, start: int, segment_bytes: int) -> list[bytes]:
    """Return a packet's segments as the other pipe wants them."""
    return [_tagged(piece, view, outer) for piece in _worth_sending(_untagged(view), start, segment_bytes)]


def _untagged(view: memoryview) -> bytes:
    return b"".join((view[_MACS_AT:_TAG_AT], view[_REST_AT:]))


def _tagged(frame: bytes, view: memoryview, outer: int) -> bytes:
    return b"".join((frame[:12], _TAG.pack(_S_VLAN, outer), view[_TAG_AT:_REST_AT], frame[12:]))
