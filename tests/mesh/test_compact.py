"""The messages of compact gossip."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weavenet.errors import CodecError
from weavenet.mesh import compact
from weavenet.mesh.compact import (
    BUCKETS_MAX,
    CHANGED_CONNECTIONS_MAX,
    CHANGES_MAX,
    CHANNELS_MAX,
    HASH_BYTES,
    VERSIONS_MAX,
    Base,
    Buckets,
    ChangedConnection,
    Changes,
    Compact,
    Digests,
    News,
    RecordChange,
    Records,
    StateWanted,
    Version,
    Versions,
    Wanted,
    decode_compact,
    encode_compact,
)
from weavenet.mesh.records import UPDATE_BYTES_MAX

HASH = bytes(range(HASH_BYTES))
NAME = 0x7A00_0000_0001
CHANGE = RecordChange(
    NAME, (1 << 64) - 1, 3, 5, 77, [ChangedConnection(NAME + 1, "10.0.0.2:6783", outbound=True, established=False)], [9]
)
EVERY_MESSAGE: list[Compact] = [
    Digests({"topology": HASH, "IPallocation": None}),
    Buckets(HASH * 4),
    Versions(4, [0, 3], [Version(NAME, 1, 2, has_short_id=True)]),
    News([Version(NAME, 1, (1 << 64) - 1, has_short_id=False)]),
    Wanted([Base(NAME, 0, 0)]),
    StateWanted(["IPallocation"]),
    Records(b"an update"),
    Changes([CHANGE]),
]
MESSAGE = pytest.mark.parametrize("message", EVERY_MESSAGE, ids=lambda message: type(message).__name__)


@MESSAGE
def test_a_message_is_read_as_it_was_written(message: Compact) -> None:
    assert decode_compact(encode_compact(message)) == message


@MESSAGE
def test_every_part_of_a_message_is_refused(message: Compact) -> None:
    payload = encode_compact(message)
    for length in range(len(payload)):
        with pytest.raises(CodecError):
            decode_compact(payload[:length])
    with pytest.raises(CodecError):
        decode_compact(payload + b"\x00")


def test_the_bytes_are_those_of_the_documentation() -> None:
    assert encode_compact(Digests({"topology": HASH})).hex(" ") == (
        "92 01 81 a8 74 6f 70 6f 6c 6f 67 79 c4 08 00 01 02 03 04 05 06 07"
    )
    assert encode_compact(News([Version(NAME, 1, 2, has_short_id=True)])).hex(" ") == (
        "92 04 91 94 cf 00 00 7a 00 00 00 00 01 01 02 c3"
    )
    assert encode_compact(Wanted([Base(NAME, 1, 2)])).hex(" ") == "92 05 91 93 cf 00 00 7a 00 00 00 00 01 01 02"


@given(st.binary(max_size=64))
def test_any_bytes_are_a_message_or_are_refused(payload: bytes) -> None:
    try:
        message = decode_compact(payload)
    except CodecError:
        return
    assert decode_compact(encode_compact(message)) == message


VERSION = Version(NAME, 1, 2, has_short_id=True)
TOO_MUCH = {
    "channels": Digests({f"c{number}": HASH for number in range(CHANNELS_MAX + 1)}),
    "a long channel": StateWanted(["x" * 65]),
    "channels wanted": StateWanted(["x"] * (CHANNELS_MAX + 1)),
    "a short hash": Digests({"topology": HASH[1:]}),
    "buckets": Buckets(HASH * 2 * BUCKETS_MAX),
    "no buckets": Buckets(b""),
    "buckets not of a power of two": Buckets(HASH * 3),
    "half a hash": Buckets(HASH + HASH[:4]),
    "a bucket number": Versions(4, [BUCKETS_MAX], []),
    "a bucket count": Versions(BUCKETS_MAX * 2, [], []),
    "a bucket count not a power of two": Versions(3, [], []),
    "versions": News([VERSION] * (VERSIONS_MAX + 1)),
    "versions of buckets": Versions(1, [0], [VERSION] * (VERSIONS_MAX + 1)),
    "bases": Wanted([Base(NAME, 0, 0)] * (VERSIONS_MAX + 1)),
    "a name beyond 48 bits": News([Version(1 << 48, 1, 2, has_short_id=True)]),
    "the unknown name": News([Version(0, 1, 2, has_short_id=True)]),
    "a negative number": News([Version(NAME, 1, -2, has_short_id=True)]),
    "an update": Records(bytes(2 * UPDATE_BYTES_MAX + 1)),
    "changes": Changes([CHANGE] * (CHANGES_MAX + 1)),
    "a short ID": Changes([msgspec.structs.replace(CHANGE, short_id=4096)]),
    "connections that are gone": Changes([msgspec.structs.replace(CHANGE, gone=[9] * (CHANGED_CONNECTIONS_MAX + 1))]),
    "an address": Changes(
        [msgspec.structs.replace(CHANGE, put=[ChangedConnection(NAME, "x" * 257, outbound=True, established=True)])]
    ),
}


@pytest.mark.parametrize("message", TOO_MUCH.values(), ids=TOO_MUCH.keys())
def test_what_is_beyond_a_limit_is_refused(message: Compact) -> None:
    with pytest.raises(CodecError, match="compact gossip: "):
        decode_compact(encode_compact(message))


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(CodecError):
        decode_compact(b"\x91" * 100_000)


def test_the_largest_message_fits_weaves_limit() -> None:
    # Versions are the longest but for records, which are cut as Weave's are.
    longest = Version((1 << 48) - 1, (1 << 64) - 1, (1 << 64) - 1, has_short_id=True)
    assert len(encode_compact(News([longest] * VERSIONS_MAX))) < compact.RECORDS_BYTES_MAX < 10 << 20
