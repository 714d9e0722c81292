"""Our own schemas through gob: what is left out, what comes back, and streams made to do harm."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weavenet.codec import gob, gob_wire
from weavenet.codec.cursor import Cursor
from weavenet.codec.gob import (
    BOOL,
    BYTES,
    INT,
    STRING,
    UINT64,
    Decoder,
    Encoder,
    Field,
    Struct,
    decode_one,
    encode_one,
    map_of,
    optional,
    slice_of,
)
from weavenet.errors import CodecError, GobError


def value_messages(stream: bytes) -> list[bytes]:
    """Return the bodies of the value messages, without their type ids."""
    cursor, found = Cursor(stream), []
    while cursor.remaining:
        body = cursor.restrict_to(gob_wire.read_unsigned(cursor))
        if gob_wire.read_signed(body) > 0:
            found.append(body.rest())
    return found


# --- the rules of leaving out -----------------------------------------------------------------------------------------


class Inner(msgspec.Struct, frozen=True):
    number: int
    texts: list[str] = msgspec.field(default_factory=list)


class Outer(msgspec.Struct, frozen=True):
    # Not in the order of the wire on purpose.
    pointer: Inner | None
    flag: bool
    elector: dict[int, str] | None
    names: dict[int, str]
    nested: Inner
    raw: bytes


INNER = Struct("Inner", Inner, (Field("Number", "number", INT), Field("Texts", "texts", slice_of(STRING))))
OUTER = Struct(
    "Outer",
    Outer,
    (
        Field("Flag", "flag", BOOL),
        Field("Names", "names", map_of(UINT64, STRING)),
        Field("Elector", "elector", optional(map_of(UINT64, STRING))),
        Field("Nested", "nested", INNER),
        Field("Pointer", "pointer", optional(INNER)),
        Field("Raw", "raw", BYTES),
    ),
)


def test_numbers_and_nil_are_left_out_but_maps_and_nested_structs_are_not() -> None:
    zero = OUTER.zero()
    assert zero == Outer(pointer=None, flag=False, elector=None, names={}, nested=Inner(0, []), raw=b"")
    # Field 1 (empty map, count 0), then two further field 3 (an empty struct), and the end.
    assert value_messages(encode_one(OUTER, zero)) == [bytes.fromhex("02 00 02 00 00")]


def test_an_empty_map_differs_from_a_nil_one() -> None:
    elector = Outer(pointer=Inner(0), flag=False, elector={}, names={}, nested=Inner(0), raw=b"")
    assert decode_one(OUTER, encode_one(OUTER, elector)) == elector
    assert value_messages(encode_one(OUTER, elector)) == [bytes.fromhex("02 00 01 00 01 00 01 00 00")]


def test_zeros_of_two_values_are_not_the_same_object() -> None:
    first, second = OUTER.zero(), OUTER.zero()
    assert first.names is not second.names
    assert first.nested.texts is not second.nested.texts


def test_a_definition_is_sent_once_per_stream_and_shared_between_schemas() -> None:
    encoder = Encoder()
    first = encoder.encode(INNER, Inner(1))
    both = slice_of(INNER)
    second = encoder.encode(both, [Inner(2)])
    third = encoder.encode(OUTER, OUTER.zero())
    assert len(encoder.encode(INNER, Inner(1))) < len(first)
    assert b"Inner" in first
    assert b"Inner" not in second + third
    decoder = Decoder(first + second + third)
    assert (decoder.decode(INNER), decoder.decode(both)) == (Inner(1), [Inner(2)])
    assert decoder.decode(OUTER) == OUTER.zero()


def test_a_schema_must_name_every_attribute_of_its_class() -> None:
    with pytest.raises(AssertionError):
        Struct("Inner", Inner, (Field("Number", "number", INT),))


def test_text_that_is_not_utf8_is_replaced_and_can_be_sent_again() -> None:
    text = decode_one(STRING, bytes.fromhex("050c0002ff41"))
    assert text == "\ufffdA"
    assert decode_one(STRING, encode_one(STRING, text)) == text


def test_text_that_cannot_be_encoded_is_sent_with_question_marks() -> None:
    assert decode_one(STRING, encode_one(STRING, "host\udcff")) == "host?"


# --- streams made to do harm ------------------------------------------------------------------------------------------


def message(*parts: bytes) -> bytes:
    body = bytearray()
    for part in parts:
        body += part
    out = bytearray()
    gob_wire.write_unsigned(out, len(body))
    return bytes(out + body)


def signed(number: int) -> bytes:
    out = bytearray()
    gob_wire.write_signed(out, number)
    return bytes(out)


def unsigned(number: int) -> bytes:
    out = bytearray()
    gob_wire.write_unsigned(out, number)
    return bytes(out)


def slice_definition(type_id: int, element: int) -> bytes:
    return message(signed(-type_id), b"\x02\x01\x02", signed(type_id), b"\0\x01", signed(element), b"\0\0")


def struct_definition(type_id: int, fields: list[tuple[bytes, int]]) -> bytes:
    body = b"".join(b"\x01" + unsigned(len(name)) + name + b"\x01" + signed(kind) + b"\0" for name, kind in fields)
    return message(signed(-type_id), b"\x03\x01\x02", signed(type_id), b"\0\x01", unsigned(len(fields)), body, b"\0\0")


@pytest.mark.parametrize("count", [4, 1000, 2**31, 2**64 - 1])
def test_a_count_beyond_the_bytes_left_is_refused_at_once(count: int) -> None:
    stream = slice_definition(65, 6) + message(signed(65), b"\0", unsigned(count), b"\0\0\0")
    with pytest.raises(GobError, match="length exceeds input size"):
        Decoder(stream).decode(slice_of(STRING))


def test_elements_of_one_stream_are_limited_however_few_bytes_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gob_wire, "ELEMENTS_MAX", 100)
    schema = slice_of(INNER)
    encoder = Encoder()
    decoder = Decoder(encoder.encode(schema, [Inner(0)] * 60) + encoder.encode(schema, [Inner(0)] * 41))
    assert len(decoder.decode(schema)) == 60
    with pytest.raises(GobError, match="more than 100 elements"):
        decoder.decode(schema)


def test_elements_are_counted_in_what_is_skipped_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gob_wire, "ELEMENTS_MAX", 100)
    stream = slice_definition(65, 6) + struct_definition(66, [(b"Texts", 66 - 1), (b"Odd", 65), (b"Number", 2)])
    stream += message(signed(66), b"\x02", unsigned(101), bytes(101), b"\0")
    with pytest.raises(GobError, match="more than 100 elements"):
        Decoder(stream).decode(INNER)


class OnlyNumber(msgspec.Struct, frozen=True):
    number: int


ONLY_NUMBER = Struct("OnlyNumber", OnlyNumber, (Field("Number", "number", INT),))


@pytest.mark.parametrize("depth", [60, 70, 100_000])
def test_a_type_that_contains_itself_is_skipped_to_a_limited_depth(depth: int) -> None:
    stream = struct_definition(65, [(b"Number", 2), (b"Odd", 66)]) + slice_definition(66, 66)
    stream += message(signed(65), b"\x01\x06\x01", b"\x01" * depth, b"\0\0")
    if depth < gob_wire.DEPTH_MAX:
        assert Decoder(stream).decode(ONLY_NUMBER) == OnlyNumber(3)
    else:
        with pytest.raises(GobError, match="nesting depth"):
            Decoder(stream).decode(ONLY_NUMBER)


@pytest.mark.parametrize(
    ("kind", "value", "taken"),
    [
        pytest.param(1, "01", True, id="bool"),
        pytest.param(4, "fe3140", True, id="float"),
        pytest.param(5, "020102", True, id="bytes"),
        pytest.param(7, "fe3140fe3140", True, id="complex"),
        pytest.param(8, "00", False, id="interface"),
        pytest.param(9, "00", False, id="undefined"),
        pytest.param(5, "090102", False, id="bytes too short"),
    ],
)
def test_an_unknown_field_is_skipped_by_its_type(kind: int, value: str, *, taken: bool) -> None:
    stream = struct_definition(65, [(b"Odd", kind), (b"Number", 2)])
    stream += message(signed(65), b"\x01", bytes.fromhex(value), b"\x01\x06\0")
    if taken:
        assert Decoder(stream).decode(ONLY_NUMBER) == OnlyNumber(3)
    else:
        with pytest.raises(CodecError):
            Decoder(stream).decode(ONLY_NUMBER)


def test_a_message_over_the_limit_is_refused_by_its_length_alone() -> None:
    decoder = Decoder(unsigned(gob.MESSAGE_BYTES_MAX + 1))
    with pytest.raises(GobError, match="exceeds"):
        decoder.try_decode(BYTES)
    assert Decoder(unsigned(gob.MESSAGE_BYTES_MAX)).try_decode(BYTES) is None


def test_types_without_end_are_refused() -> None:
    decoder = Decoder(b"".join(slice_definition(65 + index, 6) for index in range(gob_wire.TYPES_MAX + 1)))
    with pytest.raises(GobError, match="types in one stream"):
        decoder.try_decode(BYTES)


def test_a_definition_of_unusual_size_is_refused() -> None:
    decoder = Decoder(struct_definition(65, [(b"x" * gob_wire.DEFINITION_BYTES_MAX, 2)]))
    with pytest.raises(GobError, match="definition of"):
        decoder.try_decode(BYTES)


@pytest.mark.parametrize(
    "definition",
    [
        pytest.param("00", id="nothing at all"),
        pytest.param("0800", id="a kind of type that does not exist"),
        pytest.param("0201ff8200010c00 01 01ff820000", id="two kinds at once"),
        pytest.param("02030c0000", id="a slice with a third field"),
        pytest.param("030300", id="a struct with a third field"),
        pytest.param("0302ffc8", id="more fields than bytes"),
        pytest.param("0301030000", id="a common part with a third field"),
        pytest.param("0202 0c 00 00 00", id="bytes behind it"),
    ],
)
def test_a_broken_definition_is_refused(definition: str) -> None:
    with pytest.raises(CodecError):
        Decoder(message(signed(-65), bytes.fromhex(definition))).try_decode(BYTES)


@pytest.mark.parametrize(
    ("definition", "kind"),
    [
        pytest.param("01 0102ff8200 010c 0104 00 00", "array", id="array"),
        pytest.param("02 0102ff8200 010c 00 00", "slice", id="slice"),
        pytest.param("03 0101 0150 01ff8200 0101 0101 58 01 04 00 00 00", "struct P", id="struct"),
        pytest.param("04 0102ff8200 010c 010c 00 00", "map", id="map"),
        pytest.param("05 0102ff8200 00 00", "opaque", id="self-encoding"),
    ],
)
def test_a_type_that_is_not_ours_is_named_in_the_error(definition: str, kind: str) -> None:
    stream = message(signed(-65), bytes.fromhex(definition)) + message(signed(65), b"\0\0")
    with pytest.raises(GobError, match=f"received remote type {kind}$"):
        Decoder(stream).decode(UINT64)


def test_one_value_must_be_the_only_one() -> None:
    with pytest.raises(GobError, match="more than one value"):
        decode_one(UINT64, encode_one(UINT64, 1) + encode_one(UINT64, 2))


# --- round trips of our own -------------------------------------------------------------------------------------------

INNERS = st.builds(Inner, st.integers(-(2**63), 2**63 - 1), st.lists(st.text(max_size=5), max_size=5))
NAMES = st.dictionaries(st.integers(0, 2**64 - 1), st.text(max_size=5), max_size=4)
OUTERS = st.builds(
    Outer,
    pointer=st.none() | INNERS,
    flag=st.booleans(),
    elector=st.none() | NAMES,
    names=NAMES,
    nested=INNERS,
    raw=st.binary(max_size=300),
)


@given(values=st.lists(OUTERS, max_size=3))
def test_any_values_survive_a_stream(values: list[Outer]) -> None:
    encoder = Encoder()
    decoder = Decoder(b"".join(encoder.encode(OUTER, value) for value in values))
    assert [decoder.decode(OUTER) for _ in values] == values
    assert decoder.at_end


@given(number=st.integers(0, 2**64 - 1))
def test_unsigned_numbers_take_the_shortest_form(number: int) -> None:
    raw = unsigned(number)
    assert gob_wire.read_unsigned(Cursor(raw)) == number
    assert len(raw) == (1 if number < 128 else 1 + (number.bit_length() + 7) // 8)


@given(number=st.integers(-(2**63), 2**63 - 1))
def test_signed_numbers_survive(number: int) -> None:
    assert gob_wire.read_signed(Cursor(signed(number))) == number
