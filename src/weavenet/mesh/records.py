"""What a peer tells of itself, as a record and on the wire.

An update is one gob stream, and two values in it make a peer:

    peerSummary, []connectionSummary,  peerSummary, []connectionSummary, ...

Records are immutable and replaced whole, so whoever holds one (routes, status) has a consistent picture. Source:
docs/protocol.md, "Topology: Encoding", and Weave's mesh peer.go and peers.go.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from types import MappingProxyType

import msgspec

from weavenet.codec.gob import (
    BOOL,
    BYTES,
    STRING,
    UINT16,
    UINT64,
    Decoder,
    Encoder,
    Field,
    Struct,
    message_end,
    slice_of,
)
from weavenet.errors import CodecError, GobError
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

# Weave has no limits here. These are beyond any host name and any endpoint.
NICKNAME_CHARACTERS_MAX = 1024
ADDRESS_CHARACTERS_MAX = 256
# An update is cut where it gets this long. A message may have 10 MiB, and the longest record that can have come to us
# in one is no longer than that was.
UPDATE_BYTES_MAX = 4 << 20
# Records that are decoded once and not each time they are heard, 64 MiB of them at the very most. A record with 200
# connections, which is Weave's limit, has 8 KiB.
_KEPT_RECORDS_MAX = 4096
_KEPT_RECORD_BYTES_MAX = 16 << 10


class PeerConnection(msgspec.Struct, frozen=True):
    """What a peer publishes about one of its connections. The address is text: it is theirs, and is passed on as is."""

    address: str
    outbound: bool
    established: bool


@dataclass(frozen=True, slots=True)
class Peer:
    """The record of a peer: what it says about itself, or the blanks of a placeholder.

    A dataclass, since a struct has no field that is not compared.
    """

    name: PeerName
    uid: PeerUID = UNKNOWN_UID
    version: int = 0
    nickname: str = ""
    short_id: ShortID | None = None
    connections: Mapping[PeerName, PeerConnection] = field(default_factory=lambda: MappingProxyType({}))
    # What `encode_record` made of it: a record is written once and told many times. A replaced record has none.
    encoded: bytes | None = field(default=None, init=False, repr=False, compare=False)

    def __str__(self) -> str:
        return f"{format_peer_name(self.name)}({self.nickname})"


# --- on the wire ------------------------------------------------------------------------------------------------------


class _PeerSummary(msgspec.Struct, frozen=True):
    name: bytes
    nickname: str
    uid: int
    version: int
    short_id: int
    has_short_id: bool


class _ConnectionSummary(msgspec.Struct, frozen=True):
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
    """Return the two values of a record, without the definitions of their types."""
    if peer.encoded is None:
        object.__setattr__(peer, "encoded", _encode_record(peer))
    assert peer.encoded is not None
    return peer.encoded


def _encode_record(peer: Peer) -> bytes:
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
    records = _known_records(data)
    return _decode_stream(data) if records is None else records


def _known_records(data: bytes) -> list[Peer] | None:
    """Read an update record by record, those that came before from memory; None if it is not made as ours are.

    Every peer hears every record from most of its neighbours, again with each periodic gossip, and always the same
    bytes: this is most of what a mesh at rest would otherwise decode. The definitions are all that joins the records of
    a stream, so behind equal ones equal bytes are equal records.
    """
    if not data.startswith(_DEFINITIONS) or len(data) == len(_DEFINITIONS):
        return None
    peers: list[Peer] = []
    position = len(_DEFINITIONS)
    try:
        while position < len(data):
            end = message_end(data, message_end(data, position))
            peer = decode_record(data[position:end])
            if _is_name(peer.name):
                peers.append(peer)
            position = end
    except CodecError:
        return None  # a mistake, or definitions between the records: whoever reads all of it will tell
    return peers


def decode_record(record: bytes) -> Peer:
    """Read what `encode_record` wrote; equal bytes are likely to be the same object. Raises CodecError."""
    read = _decode_record if len(record) <= _KEPT_RECORD_BYTES_MAX else _decode_record.__wrapped__
    return read(record)


@lru_cache(maxsize=_KEPT_RECORDS_MAX)
def _decode_record(record: bytes) -> Peer:
    """Read the two values of a record, encoded as `encode_record` does it."""
    decoder = Decoder(_DEFINITIONS + record)
    peer = _read_peer(decoder.decode(_PEER_SUMMARY))
    connections = _read_connections(decoder.decode(_CONNECTION_SUMMARIES))
    if not decoder.at_end:
        raise GobError("gob: more than one record")
    return replace(peer, connections=connections)


def _decode_stream(data: bytes) -> list[Peer]:
    decoder = Decoder(data)
    peers: list[Peer] = []
    while not decoder.at_end:
        peer = _read_peer(decoder.decode(_PEER_SUMMARY))
        listed = decoder.decode(_CONNECTION_SUMMARIES)
        if _is_name(peer.name):
            peers.append(replace(peer, connections=_read_connections(listed)))
    return peers


def _read_connections(summaries: list[_ConnectionSummary]) -> Mapping[PeerName, PeerConnection]:
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
