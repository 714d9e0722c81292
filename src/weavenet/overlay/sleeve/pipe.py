"""Frames into datagrams and back: the per-packet path, in batches of buffers and without IO.

The data plane's programs hand over a frame with two VLAN tags in front of its EtherType, and take it back that way:

    | dst 6 | src 6 | 88a8 | f 0 destination | 8100 | 0 origin | the frame's own EtherType ...
                             3 1     12                   12      bits

Both are short IDs. `f` is 1 for a frame that is being flooded. The kernel decides who gets a frame and relays; all that
is decided here is by which way a datagram leaves (docs/protocol/sleeve.md, B8) and how many frames it holds (B11):

    may not be fragmented, fits        don't-fragment socket
    may not be fragmented, too big     dropped if flooded; else its sender is told, by a frame back into the kernel
    not IPv4, or fragments pass        socket on which the kernel may fragment
    else                               cut here, if it must be, and sent on the don't-fragment socket
"""

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from weavenet.address import Endpoint
from weavenet.codec import ip
from weavenet.effects import ConnectionNumber
from weavenet.identity import PeerName, ShortID
from weavenet.overlay.sleeve.crypto import DatagramOpener, DatagramSealer
from weavenet.overlay.sleeve.table import EMPTY_TABLE, SleeveConnection, SleeveTable
from weavenet.overlay.sleeve.wire import (
    DATAGRAM_BYTES_MAX,
    FRAME_HEADER_BYTES,
    FRAMES_PER_DATAGRAM_MAX,
    NAME_BYTES,
    PLAIN_OVERHEAD_BYTES,
    SEALED_OVERHEAD_BYTES,
    Carried,
    decode_frames,
    encode_frame_header,
    is_special,
)

HEAD_BYTES = 32  # of a special frame, as much as anybody looks at
_TAGGED_MIN_BYTES = 22  # two MACs, two tags, an EtherType
_OUTER, _INNER = b"\x88\xa8", b"\x81\x00"
_FLOODED = 0x20
_SHORT_ID_HIGH = 0x0F


class Datagram(msgspec.Struct, frozen=True):
    """Something to send."""

    connection: ConnectionNumber
    remote: Endpoint
    payload: bytes
    dont_fragment: bool


class Special(msgspec.Struct, frozen=True):
    """A frame of the overlay's own that came: what the connection's core wants to know of it."""

    connection: ConnectionNumber
    remote: Endpoint
    length: int
    head: bytes
    intact: bool  # all zeros


class Counters(msgspec.Struct):
    """What happened, in frames; names of drops start with `drop`."""

    sent: int = 0
    received: int = 0
    drop_no_route: int = 0
    drop_no_contact: int = 0
    drop_too_big: int = 0
    drop_malformed: int = 0
    drop_unknown_sender: int = 0
    drop_sealed: int = 0
    drop_unknown_peer: int = 0


class _Queue(msgspec.Struct):
    """Frames that wait for a datagram on one way."""

    parts: list[bytes] = msgspec.field(default_factory=list)
    length: int = 0


class _Live:
    """A connection and what belongs to its life."""

    __slots__ = ("_all_openers", "_all_sealers", "known", "openers", "overhead", "queues", "sealer")

    def __init__(self, known: SleeveConnection) -> None:
        self.known = known
        self.overhead = PLAIN_OVERHEAD_BYTES if known.key is None else SEALED_OVERHEAD_BYTES
        self.queues = (_Queue(), _Queue())
        # All that there were, as a key that comes back must count on (the mesh limits how many a connection can have).
        self._all_sealers: dict[bytes, DatagramSealer] = {}
        self._all_openers: dict[bytes, DatagramOpener] = {}
        self.openers: list[DatagramOpener] = []  # the one that opened the last datagram is the first
        self.apply(known)

    def apply(self, known: SleeveConnection) -> None:
        keys_changed = known.opening != self.known.opening or not self.openers
        self.known = known
        self.sealer = self._all_sealers.get(known.key) if known.key is not None else None
        if known.key is not None and self.sealer is None:
            self.sealer = self._all_sealers[known.key] = DatagramSealer(known.key, dialled=known.dialled)
        if keys_changed:
            for key in known.opening:
                if key not in self._all_openers:
                    self._all_openers[key] = DatagramOpener(key, dialled=known.dialled)
            self.openers = [self._all_openers[key] for key in known.opening]

    def open(self, sealed: bytes) -> tuple[bytes | None, str]:
        """Return the frames, or None, and what is wrong, with whichever key it is."""
        problem = ""
        for index, opener in enumerate(self.openers):
            frames, problem = opener.open(sealed)
            if not problem:
                if index:
                    self.openers.insert(0, self.openers.pop(index))
                return frames, ""
        return None, problem


class SleevePipe:
    """One host's sleeve."""

    def __init__(self) -> None:
        """Know nobody; `apply` tells."""
        self.counters = Counters()
        self._table = EMPTY_TABLE
        self._ours = bytes(NAME_BYTES)
        self._live: dict[ConnectionNumber, _Live] = {}
        self._by_peer: dict[bytes, _Live] = {}
        self._short_ids: dict[PeerName, ShortID] = {}

    def apply(self, table: SleeveTable) -> None:
        """Go by this table from now on. A connection that stays keeps its counters; one that is gone is forgotten."""
        self._table = table
        self._ours = table.ours.to_bytes(NAME_BYTES, "big")
        former, self._live = self._live, {}
        for known in table.connections:
            live = former.get(known.number)
            if live is None:
                live = _Live(known)
            live.apply(known)
            self._live[known.number] = live
        self._by_peer = {live.known.peer.to_bytes(NAME_BYTES, "big"): live for live in self._live.values()}
        self._short_ids = {name: short_id for short_id, name in table.names.items()}

    # --- to the peers -------------------------------------------------------------------------------------------------

    def outgoing(self, tagged: Iterable[bytes]) -> tuple[list[Datagram], list[bytes]]:
        """Turn frames of the kernel's into datagrams; and frames for it, where a sender must be told of its MTU."""
        datagrams: list[Datagram] = []
        back: list[bytes] = []
        touched: dict[ConnectionNumber, _Live] = {}
        for frame in tagged:
            if len(frame) < _TAGGED_MIN_BYTES or frame[12:14] != _OUTER or frame[16:18] != _INNER:
                self.counters.drop_malformed += 1
                continue
            destination = ShortID((frame[14] & _SHORT_ID_HIGH) << 8 | frame[15])
            origin = ShortID((frame[18] & _SHORT_ID_HIGH) << 8 | frame[19])
            live = self._live.get(self._table.routes.get(destination, ConnectionNumber(0)))
            source, target = self._table.names.get(origin), self._table.names.get(destination)
            if live is None or source is None or target is None:
                self.counters.drop_no_route += 1
                continue
            if live.known.remote is None:
                self.counters.drop_no_contact += 1
                continue
            touched[live.known.number] = live
            inner = Carried(source, target, frame[:12] + frame[20:])
            told = self._enqueue(live, inner, datagrams, flooded=bool(frame[14] & _FLOODED))
            if told is not None:
                back.append(_tag(told, origin=destination, destination=origin))
        for live in touched.values():
            for way in (False, True):
                self._flush(live, datagrams, dont_fragment=way)
        return datagrams, back

    def special(self, number: ConnectionNumber, frame: bytes, *, dont_fragment: bool) -> Datagram | None:
        """Make the datagram of a frame of the overlay's own; None if it is not known where to."""
        live = self._live.get(number)
        if live is None or live.known.remote is None:
            return None
        header = encode_frame_header(self._table.ours, live.known.peer, len(frame))
        return self._datagram(live, header + frame, dont_fragment=dont_fragment)

    def _enqueue(self, live: _Live, one: Carried, datagrams: list[Datagram], *, flooded: bool) -> bytes | None:
        """Put a frame where it leaves; return what its sender must be told, if it is too big."""
        known, frame = live.known, one.frame
        fits = len(frame) <= known.mtu_bytes + ip.ETHERNET_HEADER_BYTES
        if ip.may_not_be_fragmented(frame):
            if fits:
                self._append(live, one, datagrams, dont_fragment=True)
                return None
            if flooded:
                self.counters.drop_too_big += 1
                return None
            return ip.fragmentation_needed(frame, known.mtu_bytes)
        if known.fragments_pass or not ip.ipv4_header_bytes(frame):
            self._append(live, one, datagrams, dont_fragment=False)
        elif fits:
            self._append(live, one, datagrams, dont_fragment=True)
        else:
            for piece in ip.fragment(frame, known.mtu_bytes):
                self._append(live, Carried(one.origin, one.destination, piece), datagrams, dont_fragment=True)
        return None

    def _append(self, live: _Live, one: Carried, datagrams: list[Datagram], *, dont_fragment: bool) -> None:
        queue = live.queues[dont_fragment]
        limit = (live.known.payload_bytes_max if dont_fragment else DATAGRAM_BYTES_MAX) - live.overhead
        length = FRAME_HEADER_BYTES + len(one.frame)
        if length > limit:
            self.counters.drop_too_big += 1
            return
        full = len(queue.parts) >= 2 * FRAMES_PER_DATAGRAM_MAX
        if queue.parts and (queue.length + length > limit or full or not dont_fragment):
            # Where the kernel may fragment, one lost piece loses the whole, so a datagram there holds one frame.
            self._flush(live, datagrams, dont_fragment=dont_fragment)
        queue.parts.append(encode_frame_header(one.origin, one.destination, len(one.frame)))
        queue.parts.append(one.frame)
        queue.length += length
        self.counters.sent += 1

    def _flush(self, live: _Live, datagrams: list[Datagram], *, dont_fragment: bool) -> None:
        queue = live.queues[dont_fragment]
        if queue.parts:
            datagrams.append(self._datagram(live, b"".join(queue.parts), dont_fragment=dont_fragment))
            queue.parts.clear()
            queue.length = 0

    def _datagram(self, live: _Live, frames: bytes, *, dont_fragment: bool) -> Datagram:
        assert live.known.remote is not None
        body = frames if live.sealer is None else live.sealer.seal(frames, dont_fragment=dont_fragment)
        return Datagram(live.known.number, live.known.remote, self._ours + body, dont_fragment)

    # --- from the peers -----------------------------------------------------------------------------------------------

    def incoming(self, received: Sequence[tuple[bytes, Endpoint]]) -> tuple[list[bytes], list[Special]]:
        """Turn datagrams into frames for the kernel, and what the connections' cores must hear of."""
        tagged: list[bytes] = []
        specials: list[Special] = []
        for datagram, remote in received:
            live = self._by_peer.get(datagram[:NAME_BYTES])
            if live is None:
                self.counters.drop_unknown_sender += 1
                continue
            body = datagram[NAME_BYTES:]
            if live.sealer is not None:
                opened, problem = live.open(body)
                if opened is None:
                    self.counters.drop_sealed += 1 if problem else 0
                    continue
                body = opened
            frames, problem = decode_frames(body)
            if problem:
                self.counters.drop_malformed += 1
            for one in frames:
                if is_special(one.frame):
                    specials += self._special_received(live, one, remote)
                else:
                    tagged += self._admit(one)
        return tagged, specials

    def _admit(self, one: Carried) -> Iterator[bytes]:
        origin, destination = self._short_ids.get(one.origin), self._short_ids.get(one.destination)
        if origin is None or destination is None or len(one.frame) < ip.ETHERNET_HEADER_BYTES:
            self.counters.drop_unknown_peer += 1
            return
        self.counters.received += 1
        yield _tag(one.frame, origin=origin, destination=destination)

    def _special_received(self, live: _Live, one: Carried, remote: Endpoint) -> Iterator[Special]:
        if one.origin == live.known.peer and one.destination == self._table.ours:
            head = one.frame[:HEAD_BYTES]
            yield Special(live.known.number, remote, len(one.frame), head, intact=not any(one.frame))


def _tag(frame: bytes, *, origin: ShortID, destination: ShortID) -> bytes:
    tags = b"\x88\xa8%c%c\x81\x00%c%c" % (destination >> 8, destination & 0xFF, origin >> 8, origin & 0xFF)
    return frame[:12] + tags + frame[12:]
