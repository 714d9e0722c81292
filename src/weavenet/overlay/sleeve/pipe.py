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

What comes may be larger than our bridge and our fast data path take, as a host without one gives its pods an MTU of
65535; both would drop it without a word. It is treated as a router would: cut if it may be, else its sender is told, by
sleeve. What we relay by sleeve stays as it is.

Per pair of peers everything but the frame is the same, so it is made once, and found by the tags or the names as they
stand in the packet; a new table forgets it all.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

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
    encode_frame_header,
    is_special,
    names_of,
    peers_of,
    split_frames,
)

_T = TypeVar("_T")

HEAD_BYTES = 32  # of a special frame, as much as anybody looks at
_TAGGED_MIN_BYTES = 22  # two MACs, two tags, an EtherType
_OUTER, _INNER = b"\x88\xa8", b"\x81\x00"
_FLOODED = 0x20
_SHORT_ID_HIGH = 0x0F
_GROUP = 1  # in the first octet of a MAC
_PAIRS_MAX = 1 << 16  # remembered at once; there are 2**24 of them


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


class Large(msgspec.Struct, frozen=True):
    """A frame that came in the other format (fast_pipe.py), and is larger than we take."""

    connection: ConnectionNumber
    origin: ShortID
    destination: ShortID
    frame: bytes


class Arrived(msgspec.Struct):
    """What came of a batch of datagrams."""

    frames: list[bytes]  # for the kernel
    specials: list[Special]
    answers: list[Datagram]  # to send: to those whose packets are too large for what comes next


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
        self._ways: dict[bytes, _Way] = {}
        self._arrivals: dict[bytes, _Arrival] = {}
        self._short_ids: dict[PeerName, ShortID] = {}

    def apply(self, table: SleeveTable) -> None:
        """Go by this table from now on. A connection that stays keeps its counters; one that is gone is forgotten."""
        self._table = table
        self._ways.clear()
        self._arrivals.clear()
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
        ways = self._ways
        for frame in tagged:
            way = ways.get(frame[12:20]) or self._find_way(frame)
            if way is None:
                continue
            live = way.live
            touched[live.known.number] = live
            told = self._enqueue(live, way.names, frame[:12] + frame[20:], datagrams, flooded=way.flooded)
            if told is not None:
                back.append(told[:12] + way.tags_back + told[12:])
        for live in touched.values():
            self._flush_both(live, datagrams)
        return datagrams, back

    def _find_way(self, frame: bytes) -> "_Way | None":
        """Find out where frames with these tags go, and remember it; None, and counted, if nowhere."""
        if len(frame) < _TAGGED_MIN_BYTES or frame[12:14] != _OUTER or frame[16:18] != _INNER:
            self.counters.drop_malformed += 1
            return None
        destination = ShortID((frame[14] & _SHORT_ID_HIGH) << 8 | frame[15])
        origin = ShortID((frame[18] & _SHORT_ID_HIGH) << 8 | frame[19])
        live = self._live.get(self._table.routes.get(destination, ConnectionNumber(0)))
        source, target = self._table.names.get(origin), self._table.names.get(destination)
        if live is None or source is None or target is None:
            self.counters.drop_no_route += 1
            return None
        if live.known.remote is None:
            self.counters.drop_no_contact += 1
            return None
        way = _Way(live, names_of(source, target), bool(frame[14] & _FLOODED), _tags(destination, origin))
        _remember(self._ways, frame[12:20], way)
        return way

    def special(self, number: ConnectionNumber, frame: bytes, *, dont_fragment: bool) -> Datagram | None:
        """Make the datagram of a frame of the overlay's own; None if it is not known where to."""
        live = self._live.get(number)
        if live is None or live.known.remote is None:
            return None
        header = encode_frame_header(self._table.ours, live.known.peer, len(frame))
        return self._datagram(live, (header, frame), dont_fragment=dont_fragment)

    def _enqueue(
        self, live: _Live, names: bytes, frame: bytes, datagrams: list[Datagram], *, flooded: bool
    ) -> bytes | None:
        """Put a frame where it leaves; return what its sender must be told, if it is too big."""
        known = live.known
        fits = len(frame) <= known.mtu_bytes + ip.ETHERNET_HEADER_BYTES
        is_ipv4 = ip.ipv4_header_bytes(frame)
        if is_ipv4 and frame[ip.FLAGS_AT] & ip.DONT_FRAGMENT:
            if fits:
                self._append(live, names, frame, datagrams, dont_fragment=True)
                return None
            if flooded:
                self.counters.drop_too_big += 1
                return None
            return ip.fragmentation_needed(frame, known.mtu_bytes)
        if known.fragments_pass or not is_ipv4:
            self._append(live, names, frame, datagrams, dont_fragment=False)
        elif fits:
            self._append(live, names, frame, datagrams, dont_fragment=True)
        else:
            for piece in ip.fragment(frame, known.mtu_bytes):
                self._append(live, names, piece, datagrams, dont_fragment=True)
        return None

    def _append(
        self, live: _Live, names: bytes, frame: bytes, datagrams: list[Datagram], *, dont_fragment: bool
    ) -> None:
        queue = live.queues[dont_fragment]
        limit = (live.known.payload_bytes_max if dont_fragment else DATAGRAM_BYTES_MAX) - live.overhead
        length = FRAME_HEADER_BYTES + len(frame)
        if length > limit:
            self.counters.drop_too_big += 1
            return
        parts = queue.parts
        full = len(parts) >= 3 * FRAMES_PER_DATAGRAM_MAX
        if parts and (queue.length + length > limit or full or not dont_fragment):
            # Where the kernel may fragment, one lost piece loses the whole, so a datagram there holds one frame.
            self._flush(live, datagrams, dont_fragment=dont_fragment)
        parts += (names, len(frame).to_bytes(2, "big"), frame)
        queue.length += length
        self.counters.sent += 1

    def _flush(self, live: _Live, datagrams: list[Datagram], *, dont_fragment: bool) -> None:
        queue = live.queues[dont_fragment]
        if queue.parts:
            datagrams.append(self._datagram(live, queue.parts, dont_fragment=dont_fragment))
            queue.parts.clear()
            queue.length = 0

    def _flush_both(self, live: _Live, datagrams: list[Datagram]) -> None:
        self._flush(live, datagrams, dont_fragment=False)
        self._flush(live, datagrams, dont_fragment=True)

    def _datagram(self, live: _Live, parts: Sequence[bytes], *, dont_fragment: bool) -> Datagram:
        known = live.known
        assert known.remote is not None
        if live.sealer is None:
            payload = b"".join((self._ours, *parts))
        else:
            payload = self._ours + live.sealer.seal(b"".join(parts), dont_fragment=dont_fragment)
        return Datagram(known.number, known.remote, payload, dont_fragment)

    # --- from the peers -----------------------------------------------------------------------------------------------

    def incoming(self, received: Sequence[tuple[bytes, Endpoint]]) -> Arrived:
        """Turn datagrams into frames for the kernel, what the connections' cores must hear of, and answers."""
        arrived = Arrived([], [], [])
        tagged, arrivals = arrived.frames, self._arrivals
        limit = self._table.mtu_bytes + ip.ETHERNET_HEADER_BYTES
        count = 0
        for datagram, remote in received:
            live = self._by_peer.get(datagram[:NAME_BYTES])
            if live is None:
                self.counters.drop_unknown_sender += 1
                continue
            if live.sealer is None:
                frames, problem = split_frames(datagram, NAME_BYTES)
            else:
                opened, problem = live.open(datagram[NAME_BYTES:])
                if opened is None:
                    self.counters.drop_sealed += 1 if problem else 0
                    continue
                frames, problem = split_frames(opened)
            if problem:
                self.counters.drop_malformed += 1
            for names, frame in frames:
                if is_special(frame):
                    arrived.specials += self._special_received(live, names, frame, remote)
                    continue
                arrival = arrivals.get(names) or self._find_arrival(names)
                if arrival is None or len(frame) < ip.ETHERNET_HEADER_BYTES:
                    self.counters.drop_unknown_peer += 1
                    continue
                count += 1
                if len(frame) > limit and arrival.is_held:
                    self._too_big_here(live, names, frame, arrived)
                else:
                    tagged.append(frame[:12] + arrival.tags + frame[12:])
        self.counters.received += count
        return arrived

    def incoming_large(self, large: Iterable[Large]) -> Arrived:
        """Cut what can be cut, and answer the rest."""
        arrived = Arrived([], [], [])
        for one in large:
            live = self._live.get(one.connection)
            source, target = self._table.names.get(one.origin), self._table.names.get(one.destination)
            if live is None or source is None or target is None:
                self.counters.drop_unknown_peer += 1
                continue
            names = names_of(source, target)
            if self._arrivals.get(names) or self._find_arrival(names):
                self._too_big_here(live, names, one.frame, arrived)
        return arrived

    def _find_arrival(self, names: bytes) -> "_Arrival | None":
        """Find out which tags frames of these peers get, and remember it; None if we do not know one of the two."""
        source, target = peers_of(names)
        origin, destination = self._short_ids.get(source), self._short_ids.get(target)
        if origin is None or destination is None:
            return None
        arrival = _Arrival(_tags(origin, destination), destination in self._table.held)
        _remember(self._arrivals, names, arrival)
        return arrival

    def _too_big_here(self, live: _Live, names: bytes, frame: bytes, arrived: Arrived) -> None:
        """Deal with a frame that nobody would get beyond here: cut it, or tell its sender."""
        mtu_bytes = self._table.mtu_bytes
        if not ip.ipv4_header_bytes(frame):
            self.counters.drop_too_big += 1
        elif not frame[ip.FLAGS_AT] & ip.DONT_FRAGMENT:
            tags = self._arrivals[names].tags
            arrived.frames += [piece[:12] + tags + piece[12:] for piece in ip.fragment(frame, mtu_bytes)]
        elif frame[0] & _GROUP or live.known.remote is None:
            self.counters.drop_too_big += 1
        else:
            # By the way it came: routes are the same both ways, or differ for a moment.
            told = ip.fragmentation_needed(frame, mtu_bytes)
            self._append(live, names[NAME_BYTES:] + names[:NAME_BYTES], told, arrived.answers, dont_fragment=True)
            self._flush(live, arrived.answers, dont_fragment=True)

    def _special_received(self, live: _Live, names: bytes, frame: bytes, remote: Endpoint) -> Iterator[Special]:
        if peers_of(names) == (live.known.peer, self._table.ours):
            head = frame[:HEAD_BYTES]
            yield Special(live.known.number, remote, len(frame), head, intact=not any(frame))


class _Way(msgspec.Struct):
    """Where frames with certain tags go."""

    live: _Live
    names: bytes
    flooded: bool
    tags_back: bytes  # of what is said to their sender


class _Arrival(msgspec.Struct):
    """What frames of a certain pair of peers get."""

    tags: bytes
    is_held: bool  # to the table's MTU


def _remember(known: dict[bytes, _T], key: bytes, what: _T) -> None:
    if len(known) >= _PAIRS_MAX:
        known.clear()
    known[key] = what


def _tags(origin: ShortID, destination: ShortID) -> bytes:
    return b"\x88\xa8%c%c\x81\x00%c%c" % (destination >> 8, destination & 0xFF, origin >> 8, origin & 0xFF)
