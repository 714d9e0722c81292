"""What two weavenet peers say to each other instead of all they know: the messages of compact gossip.

A message is the tag COMPACT and then one msgpack array, whose first element says which of these it is:

    1  Digests       channel to hash, or to nil      "this is what I have; do you have the same?"
    2  Buckets       hashes of parts of a topology   "no; these parts of mine have these"
    3  Versions      bucket numbers and versions     "these differ; here is what I have in them"
    4  News          versions                        "this is new here; ask if you want it"
    5  Wanted        names, and what I have of them  "I want it"
    6  StateWanted   channels                        "I want all of these channels' state"
    7  Records       a topology update, as in Weave
    8  Changes       what has changed in records, against a version that the receiver has

A *version* is all that decides which of two records is better: name, UID, number, and whether there is a short ID.
What is said when is exchange.py. Everything has a limit, which decoding enforces, and what does not decode costs the
sender its connection. Source: docs/protocol/compact-gossip.md.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from weavenet.errors import CodecError
from weavenet.identity import SHORT_ID_COUNT
from weavenet.mesh.records import ADDRESS_CHARACTERS_MAX, UPDATE_BYTES_MAX

HASH_BYTES = 8
CHANNELS_MAX = 16
CHANNEL_CHARACTERS_MAX = 64
BUCKETS_MAX = 1024
# Of a list of versions or names; whoever has more sends several messages.
VERSIONS_MAX = 4096
CHANGES_MAX = 4096
# Weave's limit is 200 connections, and it can be raised.
CHANGED_CONNECTIONS_MAX = 4096
# An update is cut behind the record that makes it this long; that record may be as long as another update.
RECORDS_BYTES_MAX = 2 * UPDATE_BYTES_MAX

_Name = Annotated[int, Meta(gt=0, lt=1 << 48)]
_Number = Annotated[int, Meta(ge=0)]  # msgpack has none beyond 64 bits
_Channel = Annotated[str, Meta(max_length=CHANNEL_CHARACTERS_MAX)]
_Hash = Annotated[bytes, Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
_Hashes = Annotated[bytes, Meta(min_length=HASH_BYTES, max_length=HASH_BYTES * BUCKETS_MAX)]


class Version(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Which record of a peer somebody has."""

    name: _Name
    uid: _Number
    number: _Number
    has_short_id: bool


class Base(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Whose record is wanted, and which the receiver has: changes against that will do. UID and number 0: none."""

    name: _Name
    uid: _Number
    number: _Number


class ChangedConnection(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A connection that a record lists, and its base does not, or not so."""

    name: _Name
    address: Annotated[str, Meta(max_length=ADDRESS_CHARACTERS_MAX)]
    outbound: bool
    established: bool


class RecordChange(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """How a record differs from an earlier one of the same life. A nickname does not change within one."""

    name: _Name
    uid: _Number
    base: _Number
    number: _Number
    short_id: Annotated[int, Meta(ge=0, lt=SHORT_ID_COUNT)] | None
    put: Annotated[list[ChangedConnection], Meta(max_length=CHANGED_CONNECTIONS_MAX)]
    gone: Annotated[list[_Name], Meta(max_length=CHANGED_CONNECTIONS_MAX)]


class Digests(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=1):
    """A hash per channel of all the state that the sender has; None: it cannot be compared, only told."""

    channels: Annotated[dict[_Channel, _Hash | None], Meta(max_length=CHANNELS_MAX)]


class Buckets(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=2):
    """A hash per bucket, in order; their number is a power of two."""

    hashes: _Hashes


class Versions(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=3):
    """All that the sender has in some of so many buckets."""

    bucket_count: Annotated[int, Meta(gt=0, le=BUCKETS_MAX)]
    buckets: Annotated[list[Annotated[int, Meta(ge=0, lt=BUCKETS_MAX)]], Meta(max_length=BUCKETS_MAX)]
    versions: Annotated[list[Version], Meta(max_length=VERSIONS_MAX)]


class News(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=4):
    """Records that are new to the sender."""

    versions: Annotated[list[Version], Meta(max_length=VERSIONS_MAX)]


class Wanted(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=5):
    """Records that the sender asks for."""

    bases: Annotated[list[Base], Meta(max_length=VERSIONS_MAX)]


class StateWanted(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=6):
    """Channels whose complete state the sender asks for."""

    channels: Annotated[list[_Channel], Meta(max_length=CHANNELS_MAX)]


class Records(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=7):
    """Whole records."""

    update: Annotated[bytes, Meta(max_length=RECORDS_BYTES_MAX)]


class Changes(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag=8):
    """Records that are told by how they differ from what the receiver has."""

    changes: Annotated[list[RecordChange], Meta(max_length=CHANGES_MAX)]


Compact = Digests | Buckets | Versions | News | Wanted | StateWanted | Records | Changes

_ENCODER = msgspec.msgpack.Encoder()
_DECODER: msgspec.msgpack.Decoder[Compact] = msgspec.msgpack.Decoder(Compact)


def encode_compact(message: Compact) -> bytes:
    """Return the payload of a message."""
    return _ENCODER.encode(message)


def decode_compact(payload: bytes) -> Compact:
    """Read the payload of a message. Raises CodecError."""
    try:
        message = _DECODER.decode(payload)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise CodecError(f"compact gossip: {error}") from error
    if isinstance(message, Buckets) and not is_bucket_count(len(message.hashes) / HASH_BYTES):
        raise CodecError(f"compact gossip: {len(message.hashes)} bytes are no power of two of hashes")
    if isinstance(message, Versions) and not is_bucket_count(message.bucket_count):
        raise CodecError(f"compact gossip: {message.bucket_count} is no number of buckets")
    return message


def is_bucket_count(count: float) -> bool:
    """Say whether a topology can be cut into so many parts."""
    return count in {1 << exponent for exponent in range(BUCKETS_MAX.bit_length())}
