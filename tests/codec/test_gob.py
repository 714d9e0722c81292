"""The gob codec against what Go's own encoder and decoder do (vectors), and against hostile bytes."""

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weavenet.codec import gob_wire
from weavenet.codec.cursor import Cursor
from weavenet.codec.gob import (
    BOOL,
    BYTES,
    INT,
    STRING,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    Decoder,
    Encoder,
    Field,
    Schema,
    Struct,
    decode_one,
    encode_one,
    map_of,
    optional,
    slice_of,
)
from weavenet.errors import CodecError, GobError, RemoteError, TruncatedError

VECTORS = Path(__file__).parent.parent / "vectors"


def load(name: str) -> list[dict]:
    return json.loads((VECTORS / name).read_text())["vectors"]


# --- schemas and values from the vectors' notation --------------------------------------------------------------------

PRIMITIVES = {"bool": BOOL, "int": INT, "uint": UINT64, "string": STRING, "bytes": BYTES}
# What no type of Weave contains: nothing here reads it, and it must be skipped without harm.
FOREIGN_KINDS = ("array", "binarymarshaler")
# Structs in structs that are pointers in Go, which the notation does not show.
POINTERS = ("Ring", "Pt")


def is_foreign(described: object) -> bool:
    return described == "float" or (isinstance(described, dict) and any(kind in described for kind in FOREIGN_KINDS))


def may_be_nil(name: str, described: object) -> bool:
    return isinstance(described, dict) and ("map" in described or name in POINTERS)


def schema_of(described: object) -> Schema:
    if isinstance(described, str):
        return PRIMITIVES[described]
    if "slice" in described:
        return slice_of(schema_of(described["slice"]), described["name"])
    if "map" in described:
        key, value = described["map"]
        return map_of(schema_of(key), schema_of(value), described["name"])
    fields = [(name, kind) for name, kind in described["fields"] if not is_foreign(kind)]
    cls = msgspec.defstruct(described["struct"], [(name, object) for name, _ in fields], frozen=True)
    return Struct(
        described["struct"],
        cls,
        [
            Field(name, name, optional(schema_of(kind)) if may_be_nil(name, kind) else schema_of(kind))
            for name, kind in fields
        ],
    )


def plain(value: object) -> object:
    """Turn a decoded value into what `expected` makes of the notation."""
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return sorted(((plain(key), plain(each)) for key, each in value.items()), key=repr)
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    return value


def expected(described: object, notation: object) -> object:
    if isinstance(described, str):
        return bytes.fromhex(notation["$bytes"]) if described == "bytes" else notation
    if "slice" in described:
        return [expected(described["slice"], each) for each in notation or []]
    if "map" in described:
        if notation is None:
            return None
        key, value = described["map"]
        return sorted(((expected(key, k), expected(value, v)) for k, v in notation["$map"]), key=repr)
    given_fields = dict(notation["$struct"])
    out = {}
    for name, kind in described["fields"]:
        if is_foreign(kind):
            continue
        out[name] = expected(kind, given_fields[name]) if name in given_fields else plain_zero(name, kind)
    return out


def plain_zero(name: str, described: object) -> object:
    return None if may_be_nil(name, described) else plain(schema_of(described).zero())


GO_STREAMS = [
    pytest.param(vector, id=vector["name"]) for vector in load("gob_basic.json") + load("gob_weave_types.json")
]
KNOWN_STREAMS = [param for param in GO_STREAMS if not any(is_foreign(each) for each in param.values[0]["schemas"])]
FOREIGN_STREAMS = [param for param in GO_STREAMS if param not in KNOWN_STREAMS]


def test_every_vector_is_used() -> None:
    assert (len(KNOWN_STREAMS), len(FOREIGN_STREAMS)) == (69, 6)


@pytest.mark.parametrize("vector", KNOWN_STREAMS)
def test_what_go_encodes_is_decoded(vector: dict) -> None:
    decoder = Decoder(bytes.fromhex(vector["hex"]))
    schemas: dict[str, Schema] = {}
    for described, wire, full in zip(vector["schemas"], vector["wire_values"], vector["full_values"], strict=True):
        schema = schemas.setdefault(repr(described), schema_of(described))
        value = plain(decoder.decode(schema))
        assert value == expected(described, wire)
        if vector["name"] != "empty_nonnil_map":
            assert value == expected(described, wire_form_of_full(described, full))
    assert decoder.at_end


def wire_form_of_full(described: object, full: object) -> object:
    """A nil slice is written `null` in the full values, and so is a nil map."""
    if isinstance(described, dict) and "fields" in described:
        given_fields = dict(full["$struct"]) if full else {}
        kept = [
            [name, wire_form_of_full(kind, given_fields[name])]
            for name, kind in described["fields"]
            if given_fields.get(name) is not None
        ]
        return {"$struct": kept}
    if isinstance(described, dict) and "slice" in described:
        return [wire_form_of_full(described["slice"], each) for each in full or []]
    return full


@pytest.mark.parametrize("vector", KNOWN_STREAMS)
def test_what_go_encodes_survives_a_round_trip_through_our_encoder(vector: dict) -> None:
    decoder, encoder = Decoder(bytes.fromhex(vector["hex"])), Encoder()
    schemas: dict[str, Schema] = {}
    values = []
    stream = b""
    for described in vector["schemas"]:
        schema = schemas.setdefault(repr(described), schema_of(described))
        value = decoder.decode(schema)
        values.append((schema, value))
        stream += encoder.encode(schema, value)
    again = Decoder(stream)
    assert [again.decode(schema) for schema, _ in values] == [value for _, value in values]
    assert again.at_end


def maps_in(notation: object) -> list[list]:
    if isinstance(notation, list):
        return [found for each in notation for found in maps_in(each)]
    if isinstance(notation, dict):
        own = [notation["$map"]] if "$map" in notation else []
        return own + [found for each in notation.values() for found in maps_in(each)]
    return []


def is_comparable(vector: dict) -> bool:
    """Go orders maps at random, and a schema of ours leaves foreign fields out."""
    described = repr(vector["schemas"])
    ordered = all(len(pairs) < 2 for pairs in maps_in(vector["wire_values"]))
    return ordered and not any(kind in described for kind in FOREIGN_KINDS)


@pytest.mark.parametrize("vector", [param for param in KNOWN_STREAMS if is_comparable(param.values[0])])
def test_our_encoder_writes_what_go_writes_but_for_type_ids(vector: dict) -> None:
    decoder, encoder = Decoder(bytes.fromhex(vector["hex"])), Encoder()
    schemas: dict[str, Schema] = {}
    ours = b""
    for described in vector["schemas"]:
        schema = schemas.setdefault(repr(described), schema_of(described))
        ours += encoder.encode(schema, decoder.decode(schema))
    if not any(isinstance(each, dict) for each in vector["schemas"]):
        assert ours.hex() == vector["hex"]
    assert value_messages(ours) == value_messages(bytes.fromhex(vector["hex"]))


def value_messages(stream: bytes) -> list[bytes]:
    """Return the bodies of the value messages, without their type ids."""
    cursor, found = Cursor(stream), []
    while cursor.remaining:
        body = cursor.restrict_to(gob_wire.read_unsigned(cursor))
        if gob_wire.read_signed(body) > 0:
            found.append(body.rest())
    return found


@pytest.mark.parametrize("vector", FOREIGN_STREAMS)
def test_a_value_of_a_kind_weave_never_uses_is_refused_as_any_of_ours(vector: dict) -> None:
    for schema in (*PRIMITIVES.values(), slice_of(BOOL), map_of(STRING, STRING)):
        with pytest.raises(GobError, match=r"received remote type (float|array)"):
            Decoder(bytes.fromhex(vector["hex"])).decode(schema)


@pytest.mark.parametrize("vector", GO_STREAMS)
def test_every_value_that_go_encodes_can_be_skipped_to_its_last_byte(vector: dict) -> None:
    types, cursor = gob_wire.TypeTable(), Cursor(bytes.fromhex(vector["hex"]))
    while cursor.remaining:
        body = cursor.restrict_to(gob_wire.read_unsigned(cursor))
        type_id = gob_wire.read_signed(body)
        if type_id < 0:
            types.define(-type_id, body)
            continue
        if not isinstance(types.lookup(type_id), gob_wire.WireStruct):
            assert body.octet() == 0
        types.skip(body, type_id)
        body.finish()


# --- what Go's decoder does with odd streams --------------------------------------------------------------------------


class NarrowRange(msgspec.Struct, frozen=True):
    start: int
    end: int


NARROW_RANGE = Struct("Range", NarrowRange, (Field("Start", "start", UINT32), Field("End", "end", UINT32)))


@pytest.mark.parametrize("vector", [pytest.param(v, id=v["name"]) for v in load("gob_decoder_behaviour.json")])
def test_odd_streams_are_taken_or_refused_as_go_does(vector: dict) -> None:
    schema = NARROW_RANGE if "Range" in vector["target"] else schema_of(vector["schema"])
    decoder = Decoder(bytes.fromhex(vector["hex"]))
    if vector["error"] is not None:
        with pytest.raises(CodecError) as raised:
            decoder.decode(schema)
        if vector["error"] in {"EOF", "unexpected EOF"} or "duplicate" in vector["error"] or "delta" in vector["error"]:
            assert str(raised.value) == vector["error"]
        return
    value = plain(decoder.decode(schema))
    if schema is NARROW_RANGE:
        assert list(value.values()) == [number for _, number in vector["value"]["$struct"]]
    else:
        assert value == expected(vector["schema"], vector["value"])
    assert decoder.at_end


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        pytest.param(UINT8, 256, id="uint8"),
        pytest.param(UINT16, 1 << 16, id="uint16"),
        pytest.param(UINT32, 1 << 32, id="uint32"),
    ],
)
def test_a_number_too_large_for_its_width_is_refused(schema: Schema, value: int) -> None:
    with pytest.raises(GobError, match="out of range"):
        decode_one(schema, encode_one(UINT64, value))
    assert decode_one(schema, encode_one(UINT64, value - 1)) == value - 1


def test_an_unsigned_of_more_than_eight_bytes_is_refused() -> None:
    with pytest.raises(GobError):
        decode_one(UINT64, bytes.fromhex("0c0600f7010000000000000000"))


# --- pieces, truncation, hostility ------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", KNOWN_STREAMS)
def test_a_stream_that_arrives_byte_by_byte_gives_the_same_values(vector: dict) -> None:
    stream = bytes.fromhex(vector["hex"])
    schemas = {repr(each): schema_of(each) for each in vector["schemas"]}
    wanted = [schemas[repr(each)] for each in vector["schemas"]]
    whole, pieces = Decoder(stream), Decoder()
    found, ends = [], []
    for index in range(len(stream)):
        pieces.feed(stream[index : index + 1])
        value = pieces.try_decode(wanted[len(found)])
        if value is not None:
            found.append(value)
            ends.append(index + 1)
    assert found == [whole.decode(schema) for schema in wanted]
    assert ends == vector["value_ends"]
    assert pieces.at_end


@pytest.mark.parametrize("vector", KNOWN_STREAMS)
def test_every_truncation_is_reported(vector: dict) -> None:
    stream = bytes.fromhex(vector["hex"])
    schemas = {repr(each): schema_of(each) for each in vector["schemas"]}
    for end in range(len(stream)):
        decoder = Decoder(stream[:end])
        complete = sum(end >= value_end for value_end in vector["value_ends"])
        for described in vector["schemas"][:complete]:
            decoder.decode(schemas[repr(described)])
        with pytest.raises(TruncatedError):
            decoder.decode(schemas[repr(vector["schemas"][complete])])
        if end in vector["value_ends"]:
            assert decoder.at_end


@pytest.mark.parametrize("vector", KNOWN_STREAMS)
def test_a_message_that_is_cut_short_within_is_refused(vector: dict) -> None:
    """The lengths are right, but the last body ends early. A struct may end between two fields, as in Go."""
    schemas = {repr(each): schema_of(each) for each in vector["schemas"]}
    stream = bytes.fromhex(vector["hex"])
    last = value_messages(stream)[-1]
    for cut in range(1, len(last) + 1):
        decoder = Decoder(reframe_last(stream, cut))
        try:
            for described in vector["schemas"]:
                decoder.decode(schemas[repr(described)])
        except RemoteError:
            continue
        assert "struct" in repr(vector["schemas"][-1])


def reframe_last(stream: bytes, cut: int) -> bytes:
    cursor, start = Cursor(stream), 0
    while cursor.remaining:
        start = cursor.position
        body = cursor.restrict_to(gob_wire.read_unsigned(cursor)).rest()
    out = bytearray(stream[:start])
    gob_wire.write_unsigned(out, len(body) - cut)
    return bytes(out) + body[: len(body) - cut]


WEAVE_STREAMS = [
    (bytes.fromhex(vector["hex"]), [schema_of(each) for each in vector["schemas"]])
    for vector in load("gob_weave_types.json")
]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_stream_with_bytes_changed_raises_nothing_but_remote_errors(data: st.DataObject) -> None:
    stream, schemas = data.draw(st.sampled_from(WEAVE_STREAMS))
    changed = bytearray(stream)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    decoder = Decoder(bytes(changed))
    try:
        for schema in schemas:
            decoder.decode(schema)
    except RemoteError:
        pass


@settings(max_examples=300, deadline=None)
@given(garbage=st.binary(max_size=200))
def test_garbage_raises_nothing_but_remote_errors(garbage: bytes) -> None:
    for _, schemas in WEAVE_STREAMS[::4]:
        decoder = Decoder(garbage)
        try:
            while not decoder.at_end:
                decoder.decode(schemas[0])
        except RemoteError:
            pass
