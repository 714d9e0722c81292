"""The lowest layer of gob: numbers, type ids, and the types a remote encoder defines.

A gob stream describes itself. Before the first value of a type comes a *definition*: the type's number, chosen by the
encoder and meaningful in this stream only, and its shape. `TypeTable` collects the definitions of one stream. Schemas
(gob_schema.py) look their counterpart up in it when a decoder compiles a reader, and what no schema knows is skipped
with its help.

    unsigned  0..127 in one byte; else 256 - n, then the number in n big-endian bytes
    signed    unsigned of x << 1, or of (~x << 1) | 1 if negative
    type id   signed: -N opens a definition of N, N a value of it

All limits are on the stream, because one stream is what one remote can make us hold. Definitions may nest and even
recur, which costs nothing until a value is skipped; that is where depth is counted. Source: docs/protocol.md, "The gob
subset", and Go's encoding/gob/doc.go.
"""

from collections.abc import Iterator
from functools import lru_cache

import msgspec

from weavenet.codec.cursor import Cursor
from weavenet.errors import GobError

BOOL_ID = 1
INT_ID = 2
UINT_ID = 3
FLOAT_ID = 4
BYTES_ID = 5
STRING_ID = 6
COMPLEX_ID = 7
INTERFACE_ID = 8

# Go before 1.21 counts from 65, later releases from 64; below that are Go's own types.
USER_ID_MIN = 64
# Weave's richest message, IPAM's state, has a dozen types, of which the largest definition takes 100 bytes.
TYPES_MAX = 1000
DEFINITION_BYTES_MAX = 1 << 16
# Elements of slices and maps per stream. One byte can be a whole struct, so the bytes alone do not bound the memory
# well: 10 MiB of zeros would be ten million objects. 5,000 peers with 200 connections each are one million.
ELEMENTS_MAX = 1 << 21
DEPTH_MAX = 64

_BUILTIN_NAMES = {
    BOOL_ID: "bool",
    INT_ID: "int",
    UINT_ID: "uint",
    FLOAT_ID: "float",
    BYTES_ID: "bytes",
    STRING_ID: "string",
    COMPLEX_ID: "complex",
    INTERFACE_ID: "interface",
}
_NUMBER_BYTES_MAX = 8


def read_unsigned(cursor: Cursor) -> int:
    """Read an unsigned number, at most 64 bits; padded forms are fine."""
    first = cursor.octet()
    if first < 0x80:
        return first
    size_bytes = 256 - first
    if size_bytes > _NUMBER_BYTES_MAX:
        raise GobError("gob: encoded unsigned integer out of range")
    return int.from_bytes(cursor.take(size_bytes), "big")


def read_signed(cursor: Cursor) -> int:
    """Read a signed number of at most 64 bits."""
    number = read_unsigned(cursor)
    return ~(number >> 1) if number & 1 else number >> 1


def write_unsigned(out: bytearray, number: int) -> None:
    """Append an unsigned number in its shortest form."""
    if number < 0x80:
        out.append(number)
        return
    size_bytes = (number.bit_length() + 7) >> 3
    out.append(256 - size_bytes)
    out += number.to_bytes(size_bytes, "big")


def write_signed(out: bytearray, number: int) -> None:
    """Append a signed number."""
    write_unsigned(out, ~number << 1 | 1 if number < 0 else number << 1)


def read_text(cursor: Cursor) -> str:
    """Read a string. What is not UTF-8 is replaced: Go would keep it, but no text of Weave's carries meaning there."""
    return cursor.take(read_unsigned(cursor)).decode("utf-8", "replace")


def write_text(out: bytearray, text: str) -> None:
    """Append a string; surrogates, which only our own command line can bring in, become question marks."""
    raw = text.encode("utf-8", "replace")
    write_unsigned(out, len(raw))
    out += raw


def read_field_numbers(cursor: Cursor) -> Iterator[int]:
    """Yield the field numbers of a struct; the caller reads each field's value before asking for the next.

    The closing 0 may be absent where the message ends, as in Go.
    """
    number = -1
    while cursor.remaining:
        delta = read_unsigned(cursor)
        if not delta:
            return
        number += delta
        yield number


class WireArray(msgspec.Struct, frozen=True):
    """A remote type: a fixed number of elements. Weave has none; known only so that it can be skipped."""

    element: int


class WireSlice(msgspec.Struct, frozen=True):
    """A remote type: any number of elements."""

    element: int


class WireMap(msgspec.Struct, frozen=True):
    """A remote type: keys and values."""

    key: int
    value: int


class WireStruct(msgspec.Struct, frozen=True):
    """A remote type: fields by number, each with its name and type id."""

    name: str
    fields: tuple[tuple[str, int], ...]


class WireOpaque(msgspec.Struct, frozen=True):
    """A remote type that encodes itself: a length and bytes. Weave has none."""


WireType = WireArray | WireSlice | WireMap | WireStruct | WireOpaque


class TypeTable:
    """What one stream has defined so far, and how much more it may make us hold."""

    def __init__(self) -> None:
        """Start as every stream does: with the built-in types only."""
        self._types: dict[int, WireType] = {}
        self._elements_left = ELEMENTS_MAX

    def define(self, type_id: int, body: Cursor) -> None:
        """Read a definition. Raises GobError, like Go, for an id that is reserved or taken."""
        if type_id < USER_ID_MIN or type_id in self._types:
            raise GobError("gob: duplicate type received")
        if len(self._types) >= TYPES_MAX:
            raise GobError(f"gob: more than {TYPES_MAX} types in one stream")
        if body.remaining > DEFINITION_BYTES_MAX:
            raise GobError(f"gob: a type definition of {body.remaining} bytes")
        self._types[type_id] = _read_definition(body.rest())

    def lookup(self, type_id: int) -> WireType | None:
        """Return what the stream defined under an id; None for built-in types. Raises GobError for unknown ids."""
        if type_id in _BUILTIN_NAMES:
            return None
        wire = self._types.get(type_id)
        if wire is None:
            raise GobError(f"gob: unknown type id or corrupted data: {type_id}")
        return wire

    def describe(self, type_id: int) -> str:
        """Name a type for an error text."""
        match self._types.get(type_id):
            case WireStruct(name=name):
                return f"struct {name}" if name else "struct"
            case WireArray():
                return "array"
            case WireSlice():
                return "slice"
            case WireMap():
                return "map"
            case WireOpaque():
                return "opaque"
            case None:
                return _BUILTIN_NAMES.get(type_id, f"undefined type {type_id}")

    def read_count(self, cursor: Cursor) -> int:
        """Read how many elements follow, and account for them. Raises GobError if that is too many.

        Each takes at least one byte, so more than there are bytes left is a lie.
        """
        count = read_unsigned(cursor)
        if count > cursor.remaining:
            raise GobError(f"gob: length exceeds input size ({count} elements)")
        self._elements_left -= count
        if self._elements_left < 0:
            raise GobError(f"gob: more than {ELEMENTS_MAX} elements in one stream")
        return count

    def skip(self, cursor: Cursor, type_id: int, depth: int = 0) -> None:
        """Pass over a value nobody here knows. Raises GobError if it nests too deeply."""
        if depth > DEPTH_MAX:
            raise GobError("gob: invalid nesting depth")
        match self.lookup(type_id):
            case None:
                _skip_builtin(cursor, type_id)
            case WireArray(element=element) | WireSlice(element=element):
                for _ in range(self.read_count(cursor)):
                    self.skip(cursor, element, depth + 1)
            case WireMap(key=key, value=value):
                for _ in range(self.read_count(cursor)):
                    self.skip(cursor, key, depth + 1)
                    self.skip(cursor, value, depth + 1)
            case WireStruct(fields=fields):
                for number in read_field_numbers(cursor):
                    if number >= len(fields):
                        raise GobError("gob: bad data: field numbers out of bounds")
                    self.skip(cursor, fields[number][1], depth + 1)
            case WireOpaque():
                cursor.skip(read_unsigned(cursor))


def _skip_builtin(cursor: Cursor, type_id: int) -> None:
    if type_id in {BYTES_ID, STRING_ID}:
        cursor.skip(read_unsigned(cursor))
    elif type_id == INTERFACE_ID:
        # An interface value carries definitions of its own. Weave has none, so nothing is lost by refusing.
        raise GobError("gob: interface values are not supported")
    else:
        read_unsigned(cursor)
        if type_id == COMPLEX_ID:
            read_unsigned(cursor)


# Every stream begins with the same few definitions, 64 KiB each at the very most and 100 bytes if they are Weave's.
@lru_cache(maxsize=256)
def _read_definition(data: bytes) -> WireType:
    body = Cursor(data)
    wire = _read_wire_type(body)
    body.finish()
    return wire


# The shape of a definition: a struct of which exactly one field is present, by which kind of type it defines.
#
#     0 ArrayT   {Common, 1: element id, 2: length}       3 MapT  {Common, 1: key id, 2: element id}
#     1 SliceT   {Common, 1: element id}                  4-6 GobEncoderT, BinaryMarshalerT, TextMarshalerT {Common}
#     2 StructT  {Common, 1: [{0: name, 1: type id}]}     Common: {0: name, 1: id}, neither of which matters
def _read_wire_type(body: Cursor) -> WireType:
    found: WireType | None = None
    for kind in read_field_numbers(body):
        if found is not None:
            raise GobError("gob: a definition of more than one type")
        match kind:
            case 0:
                found = WireArray(_read_ids(body, 2)[0])
            case 1:
                found = WireSlice(_read_ids(body, 1)[0])
            case 2:
                found = _read_struct_type(body)
            case 3:
                found = WireMap(*_read_ids(body, 2))
            case 4 | 5 | 6:
                _read_ids(body, 0)
                found = WireOpaque()
            case _:
                raise GobError("gob: bad data: field numbers out of bounds")
    if found is None:
        raise GobError("gob: a definition of nothing")
    return found


def _read_ids(body: Cursor, count: int) -> list[int]:
    """Read a struct of CommonType and `count` signed numbers; absent ones are 0, which is no type."""
    ids = [0] * count
    for number in read_field_numbers(body):
        if number == 0:
            _read_name_and_id(body)
        elif number <= count:
            ids[number - 1] = read_signed(body)
        else:
            raise GobError("gob: bad data: field numbers out of bounds")
    return ids


def _read_name_and_id(body: Cursor) -> tuple[str, int]:
    name, type_id = "", 0
    for number in read_field_numbers(body):
        match number:
            case 0:
                name = read_text(body)
            case 1:
                type_id = read_signed(body)
            case _:
                raise GobError("gob: bad data: field numbers out of bounds")
    return name, type_id


def _read_struct_type(body: Cursor) -> WireStruct:
    name = ""
    fields: list[tuple[str, int]] = []
    for number in read_field_numbers(body):
        match number:
            case 0:
                name, _ = _read_name_and_id(body)
            case 1:
                count = read_unsigned(body)
                if count > body.remaining:
                    raise GobError(f"gob: length exceeds input size ({count} fields)")
                fields = [_read_name_and_id(body) for _ in range(count)]
            case _:
                raise GobError("gob: bad data: field numbers out of bounds")
    return WireStruct(name, tuple(fields))
