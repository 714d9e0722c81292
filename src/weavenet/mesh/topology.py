"""The peers of the mesh and their connections, as every peer tells it to every other.

Each peer is the only author of its own record: its nickname, its short ID, and the list of its connections. It numbers
the versions of that record, so of two that meet the higher version wins, and copies may travel by any way, late, twice
or out of order. A restarted peer begins again at version 0 with another UID. What it hears about its former life makes
it jump past that version; until then a higher UID decides between equal versions, which is arbitrary and enough.

A connection list may name peers whose own record has not come yet. They enter as *placeholders* with UID 0 and
version 0, which any real record beats, because a route may lead through them and their names must be passed on. What
can no longer be reached over anybody's connections is collected as garbage, unless a local connection still refers
to it.

An update is one gob stream, and two values in it make a peer:

    peerSummary, []connectionSummary,  peerSummary, []connectionSummary, ...

Records are immutable and replaced whole, so whoever holds one (routes, status) has a consistent picture. Source:
docs/protocol.md, "Topology", and Weave's mesh peers.go and peer.go.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from weavenet.codec.gob import BOOL, BYTES, STRING, UINT16, UINT64, Decoder, Encoder, Field, Struct, slice_of
from weavenet.effects import Entropy
from weavenet.errors import GossipError
from weavenet.identity import (
    NAME_BYTES,
    SHORT_ID_COUNT,
    UNKNOWN_PEER,
    UNKNOWN_UID,
    PeerName,
    PeerUID,
    ShortID,
    format_peer_name,
    peer_name_from_bytes,
    peer_name_to_bytes,
)
from weavenet.mesh.routes import walk
from weavenet.mesh.short_ids import ShortIDs

# What one lying peer can make us remember. Weave has no limits here; short IDs stop being useful at 4096 peers, and its
# connection limit is 200, so these leave room for meshes larger than any that can work.
PEERS_MAX = 20_000
CONNECTIONS_MAX = 1 << 21
NICKNAME_CHARACTERS_MAX = 1024
ADDRESS_CHARACTERS_MAX = 256
# An update is cut where it gets this long. A message may have 10 MiB, and one record a third of that at the very most:
# PEERS_MAX connections of the longest addresses would be more, but no peer with that many can send them to us either.
UPDATE_BYTES_MAX = 4 << 20

_VERSION_MASK = 0xFFFF_FFFF_FFFF_FFFF


@dataclass(frozen=True, slots=True)
class PeerConnection:
    """What a peer publishes about one of its connections. The address is text: it is theirs, and is passed on as is."""

    address: str
    outbound: bool
    established: bool


@dataclass(frozen=True, slots=True)
class Peer:
    """The record of a peer: what it says about itself, or the blanks of a placeholder."""

    name: PeerName
    uid: PeerUID = UNKNOWN_UID
    version: int = 0
    nickname: str = ""
    short_id: ShortID | None = None
    connections: Mapping[PeerName, PeerConnection] = field(default_factory=lambda: MappingProxyType({}))

    def __str__(self) -> str:
        return f"{format_peer_name(self.name)}({self.nickname})"


@dataclass(frozen=True, slots=True)
class Change:
    """What an operation did. Names are in order and each there once."""

    mentioned: tuple[PeerName, ...] = ()  # all that had a summary in the update
    improved: tuple[PeerName, ...] = ()  # those whose summary was news
    removed: tuple[Peer, ...] = ()
    ours: bool = False  # our own record has a new version, which the others should hear
    short_ids: bool = False  # a short ID was taken, freed, or means somebody else
    invalidated: bool = False  # a short ID means somebody else than it once did


class Topology(Mapping[PeerName, Peer]):
    """The peer table of one peer: a mapping from name to record that always holds ourself."""

    def __init__(self, ourself: Peer, entropy: Entropy) -> None:
        """Begin with a record for ourself. Entropy is for new short IDs."""
        self._us = ourself.name
        self._entropy = entropy
        self._peers: dict[PeerName, Peer] = {}
        self._references: dict[PeerName, int] = {}
        self._connections_count = 0
        self._generation = 0
        self._encoded = _Encoded(-1, frozenset(), [])
        self._records: dict[PeerName, tuple[Peer, bytes]] = {}
        self.short_ids = ShortIDs()
        self._marks = _Marks()
        self._put(ourself)
        self._take_marks()

    def __getitem__(self, name: PeerName) -> Peer:
        return self._peers[name]

    def __iter__(self) -> Iterator[PeerName]:
        return iter(sorted(self._peers))

    def __len__(self) -> int:
        return len(self._peers)

    @property
    def ourself(self) -> Peer:
        """Our own record."""
        return self._peers[self._us]

    def principal(self, short_id: ShortID) -> PeerName | None:
        """Return the peer that a short ID stands for."""
        return self.short_ids.principal(short_id)

    def short_id(self, name: PeerName) -> ShortID | None:
        """Return a peer's short ID, which may stand for another peer at the moment."""
        peer = self._peers.get(name)
        return None if peer is None else peer.short_id

    def is_known(self, name: PeerName) -> bool:
        """Say whether there is a record, or a placeholder, of that name."""
        return name in self._peers

    def nickname(self, name: PeerName) -> str | None:
        """Return a peer's nickname; empty for a placeholder."""
        peer = self._peers.get(name)
        return None if peer is None else peer.nickname

    # --- our own record -----------------------------------------------------------------------------------------------

    def set_connection(self, remote: PeerName, connection: PeerConnection) -> None:
        """Publish a connection of ours, new or changed."""
        self._publish({**self.ourself.connections, remote: connection})

    def delete_connection(self, remote: PeerName) -> None:
        """Publish that a connection of ours is gone."""
        connections = dict(self.ourself.connections)
        del connections[remote]
        self._publish(connections)

    def _publish(self, connections: dict[PeerName, PeerConnection]) -> None:
        us = self.ourself
        self._put(replace(us, version=us.version + 1 & _VERSION_MASK, connections=MappingProxyType(connections)))

    # --- local connections --------------------------------------------------------------------------------------------

    def register(self, peer: Peer) -> Change:
        """Add a peer that introduced itself, unless its name is known: then nothing is learnt from the introduction.

        Raises GossipError if the table is full.
        """
        if peer.name not in self._peers:
            self._check_room(1, 0)
            self._put(peer)
        return self._settle()

    def hold(self, name: PeerName) -> None:
        """Keep a peer from being collected, once more."""
        self._references[name] = self._references.get(name, 0) + 1

    def release(self, name: PeerName) -> None:
        """Undo one `hold`."""
        self._references[name] -= 1
        if not self._references[name]:
            del self._references[name]

    # --- what others tell ---------------------------------------------------------------------------------------------

    def merge(self, data: bytes) -> Change:
        """Take in an update, all of it or nothing. Raises GossipError or CodecError, and then nothing changed."""
        summaries = decode_update(data)
        fresh: dict[PeerName, Peer] = {}
        for summary in summaries:
            if summary.name not in self._peers:
                fresh.setdefault(summary.name, summary)
        for summary in summaries:
            for remote in summary.connections:
                if remote not in self._peers and remote not in fresh:
                    fresh[remote] = Peer(remote)
        self._check_room(len(fresh), sum(self._growth(summary) for summary in summaries))
        for peer in fresh.values():
            self._put(peer)
        improved = {summary.name for summary in summaries if self._accept(summary, fresh)}
        change = self._settle()
        mentioned = {summary.name for summary in summaries}
        return replace(change, mentioned=tuple(sorted(mentioned)), improved=tuple(sorted(improved)))

    def _is_news(self, summary: Peer) -> bool:
        """Say whether a record is better than the one we have; never, about ourself."""
        known = self._peers.get(summary.name)
        if known is None:
            return True
        if summary.name == self._us:
            return False
        if (summary.version, summary.uid) != (known.version, known.uid):
            return (summary.version, summary.uid) > (known.version, known.uid)
        return known.short_id is None and summary.short_id is not None

    def _accept(self, summary: Peer, fresh: Mapping[PeerName, Peer]) -> bool:
        if summary.name == self._us:
            self._outlive(summary)
            return False
        if fresh.get(summary.name) is summary:
            return True
        if not self._is_news(summary):
            return False
        self._put(summary)
        return True

    def _outlive(self, summary: Peer) -> None:
        """Jump past the version of a record that our previous process, or a peer with our name, spread."""
        us = self.ourself
        if summary.uid != us.uid and summary.version >= us.version:
            self._put(replace(us, version=summary.version + 1 & _VERSION_MASK))
            self._marks.ours = True

    def collect_garbage(self) -> Change:
        """Remove every peer that nobody's connections lead to and that no local connection refers to."""
        reached = walk(self._peers, self._us, strict=False).next_hops
        removed = [
            self._peers[name] for name in sorted(self._peers) if name not in reached and name not in self._references
        ]
        for peer in removed:
            self._drop(peer)
        if removed and not self._owns_short_id():
            self._marks.displaced = True
        return replace(self._settle(), removed=tuple(removed))

    def encode(self, names: frozenset[PeerName]) -> list[bytes]:
        """Write the records of these peers as they are now, leaving out who is not there any more.

        Periodic gossip sends the same to a dozen neighbours in turn, so the last result is kept.
        """
        if (self._encoded.generation, self._encoded.names) != (self._generation, names):
            records = [self._record(self._peers[name]) for name in sorted(names) if name in self._peers]
            self._encoded = _Encoded(self._generation, names, join_records(records))
        return self._encoded.updates

    def _record(self, peer: Peer) -> bytes:
        # Records are replaced whole, so the same object has the same bytes.
        known = self._records.get(peer.name)
        if known is None or known[0] is not peer:
            known = self._records[peer.name] = (peer, encode_record(peer))
        return known[1]

    # --- the table ----------------------------------------------------------------------------------------------------

    def _check_room(self, peers: int, connections: int) -> None:
        if len(self._peers) + peers > PEERS_MAX:
            raise GossipError(f"topology would exceed {PEERS_MAX} peers")
        if self._connections_count + connections > CONNECTIONS_MAX:
            raise GossipError(f"topology would exceed {CONNECTIONS_MAX} connections")

    def _growth(self, summary: Peer) -> int:
        known = self._peers.get(summary.name)
        return max(0, len(summary.connections) - (0 if known is None else len(known.connections)))

    def _put(self, peer: Peer) -> None:
        known = self._peers.get(peer.name)
        before = None if known is None else known.short_id
        if peer.short_id != before:
            self._unindex(before, peer.name)
            self._index(peer.short_id, peer.name)
        self._peers[peer.name] = peer
        self._generation += 1
        self._connections_count += len(peer.connections) - (0 if known is None else len(known.connections))

    def _drop(self, peer: Peer) -> None:
        self._unindex(peer.short_id, peer.name)
        del self._peers[peer.name]
        self._records.pop(peer.name, None)
        self._generation += 1
        self._connections_count -= len(peer.connections)

    # --- short IDs ----------------------------------------------------------------------------------------------------

    def _owns_short_id(self) -> bool:
        short_id = self.ourself.short_id
        return short_id is not None and self.short_ids.principal(short_id) == self._us

    def _index(self, short_id: ShortID | None, name: PeerName) -> None:
        if short_id is None:
            return
        owned = self._us in self._peers and self._owns_short_id()
        self._marks.invalidated |= self.short_ids.add(short_id, name)
        self._marks.short_ids = True
        if owned and not self._owns_short_id():
            self._marks.displaced = True

    def _unindex(self, short_id: ShortID | None, name: PeerName) -> None:
        if short_id is not None:
            self._marks.invalidated |= self.short_ids.remove(short_id, name)
            self._marks.short_ids = True

    def _settle(self) -> Change:
        """Draw a new short ID if a lower name took ours, and report what the operation did on the way."""
        if self._marks.displaced:
            drawn = self.short_ids.draw(self._entropy)
            # With every number in use we go on colliding; the next collection that frees some tries again.
            if drawn is not None:
                us = self.ourself
                self._put(replace(us, version=us.version + 1 & _VERSION_MASK, short_id=drawn))
                self._marks.ours = True
        return self._take_marks()

    def _take_marks(self) -> Change:
        marks, self._marks = self._marks, _Marks()
        return Change(ours=marks.ours, short_ids=marks.short_ids, invalidated=marks.invalidated)


@dataclass(slots=True)
class _Marks:
    """What has happened within one operation so far."""

    ours: bool = False
    short_ids: bool = False
    invalidated: bool = False
    displaced: bool = False


@dataclass(frozen=True, slots=True)
class _Encoded:
    """The last result of `encode`, and what it was the result of."""

    generation: int
    names: frozenset[PeerName]
    updates: list[bytes]


# --- on the wire ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _PeerSummary:
    name: bytes
    nickname: str
    uid: int
    version: int
    short_id: int
    has_short_id: bool


@dataclass(frozen=True, slots=True)
class _ConnectionSummary:
    name: bytes
    address: str
    outbound: bool
    established: bool


_PEER_SUMMARY = Struct(
    "peerSummary",
    _PeerSummary,
    (
        Field("NameByte", "name", BYTES),
        Field("NickName", "nickname", STRING),
        Field("UID", "uid", UINT64),
        Field("Version", "version", UINT64),
        Field("ShortID", "short_id", UINT16),
        Field("HasShortID", "has_short_id", BOOL),
    ),
)
_CONNECTION_SUMMARY = Struct(
    "connectionSummary",
    _ConnectionSummary,
    (
        Field("NameByte", "name", BYTES),
        Field("RemoteTCPAddr", "address", STRING),
        Field("Outbound", "outbound", BOOL),
        Field("Established", "established", BOOL),
    ),
)
_CONNECTION_SUMMARIES = slice_of(_CONNECTION_SUMMARY)


def encode_update(peers: Iterable[Peer]) -> list[bytes]:
    """Write records as updates, more than one where they would get too long; none of no records."""
    return join_records(encode_record(peer) for peer in peers)


def join_records(records: Iterable[bytes]) -> list[bytes]:
    """Make updates of encoded records, more than one where they would get too long; none of no records.

    A record's values are the same in every stream once the types are defined, so they can be kept and joined.
    """
    updates: list[bytes] = []
    parts: list[bytes] = []
    size_bytes = 0
    for part in records:
        if size_bytes >= UPDATE_BYTES_MAX:
            updates.append(b"".join([_DEFINITIONS, *parts]))
            parts, size_bytes = [], 0
        parts.append(part)
        size_bytes += len(part)
    if parts:
        updates.append(b"".join([_DEFINITIONS, *parts]))
    return updates


def encode_record(peer: Peer) -> bytes:
    """Write the two values of a record, without the definitions of their types."""
    summary = _PeerSummary(
        peer_name_to_bytes(peer.name),
        peer.nickname,
        peer.uid,
        peer.version,
        peer.short_id or 0,
        peer.short_id is not None,
    )
    connections = [
        _ConnectionSummary(peer_name_to_bytes(remote), each.address, each.outbound, each.established)
        for remote, each in sorted(peer.connections.items(), key=lambda item: item[0])
    ]
    return _KNOWING.encode(_PEER_SUMMARY, summary) + _KNOWING.encode(_CONNECTION_SUMMARIES, connections)


def _define() -> tuple[Encoder, bytes]:
    """Return an encoder that has defined both types, and what it wrote to do so."""
    encoder = Encoder()
    blank = _PeerSummary(b"", "", 0, 0, 0, has_short_id=False)
    first, second = encoder.encode(_PEER_SUMMARY, blank), encoder.encode(_CONNECTION_SUMMARIES, [])
    values = len(encoder.encode(_PEER_SUMMARY, blank)), len(encoder.encode(_CONNECTION_SUMMARIES, []))
    return encoder, first[: -values[0]] + second[: -values[1]]


_KNOWING, _DEFINITIONS = _define()


def decode_update(data: bytes) -> list[Peer]:
    """Read the records of an update, in order. Raises CodecError."""
    decoder = Decoder(data)
    peers: list[Peer] = []
    while not decoder.at_end:
        peer = _read_peer(decoder.decode(_PEER_SUMMARY))
        listed = decoder.decode(_CONNECTION_SUMMARIES)
        if _is_name(peer.name):
            peers.append(replace(peer, connections=_read_connections(listed)))
    return peers


def _read_connections(summaries: Sequence[_ConnectionSummary]) -> Mapping[PeerName, PeerConnection]:
    links: dict[PeerName, PeerConnection] = {}
    for each in summaries:
        remote = peer_name_from_bytes(each.name)
        if _is_name(remote):
            links[remote] = PeerConnection(each.address[:ADDRESS_CHARACTERS_MAX], each.outbound, each.established)
    return MappingProxyType(links)


def _read_peer(summary: _PeerSummary) -> Peer:
    has_short_id = summary.has_short_id and summary.short_id < SHORT_ID_COUNT
    return Peer(
        name=peer_name_from_bytes(summary.name),
        uid=PeerUID(summary.uid),
        version=summary.version,
        nickname=summary.nickname[:NICKNAME_CHARACTERS_MAX],
        short_id=ShortID(summary.short_id) if has_short_id else None,
    )


def _is_name(name: PeerName) -> bool:
    # 0 is how routes say "ourself", and a number beyond 48 bits would be passed on as another peer's.
    return name != UNKNOWN_PEER and not name >> 8 * NAME_BYTES
