"""Schemas: what a gob value looks like to us, in both directions.

A schema is declared once, at module level, and is immutable. It knows how to write a value of its Python type, and how
to *compile* a reader for whatever type the remote stream declares in its place. Compiling is where compatibility is
decided, by kind and by field name as Go does it: signed and unsigned never mix, fields may come in other order, be
missing (they get their zero) or be unknown (they are skipped), but a struct with no field in common is a mistake.
Readers are closures over a remote type, so the work is done once per stream and not once per value.

Which fields a writer leaves out is part of the format, see `Schema.omits`: numbers, texts and slices when zero or
empty, nested structs never, maps only when nil. Weave gives the last rule a meaning: in IPAM's state an absent `Paxos`
is an observer and an empty one is an elector. Python has no nil map, hence `optional`.

Source: docs/protocol.md, "The gob subset"; Go's encoding/gob, compatibleType in decode.go and encode.go's ops.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from operator import attrgetter, not_
from typing import Generic, TypeVar, cast

import msgspec

from weavenet.codec.cursor import Cursor
from weavenet.codec.gob_wire import (
    BOOL_ID,
    BYTES_ID,
    INT_ID,
    STRING_ID,
    UINT_ID,
    TypeTable,
    WireMap,
    WireSlice,
    WireStruct,
    read_signed,
    read_text,
    read_unsigned,
    write_signed,
    write_text,
    write_unsigned,
)
from weavenet.errors import GobError

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")
Reader = Callable[[Cursor], T]
# How a definition refers to the types it is made of.
IdOf = Callable[["Schema[object]"], int]

_INT_MIN = -(1 << 63)
_INT_MAX = (1 << 63) - 1


class Schema(ABC, Generic[T]):
    """How one type is written and read. Compared by identity: declare a schema once and reuse it."""

    # The type id that every stream knows, for the types that need no definition.
    builtin_id: int | None = None
    # Whether a value message carries the value as it is; everything but a struct has a 0 before it.
    is_struct = False

    @abstractmethod
    def write(self, out: bytearray, value: T) -> None:
        """Append a value, in full."""

    @abstractmethod
    def zero(self) -> T:
        """Return what a struct field of this type holds when it did not come."""

    @abstractmethod
    def omits(self, value: T) -> bool:
        """Say whether a struct field with this value is left out."""

    @abstractmethod
    def compile(self, type_id: int, types: TypeTable) -> Reader[T]:
        """Return a reader for values of a remote type. Raises GobError if that type cannot become ours."""

    def writer(self) -> Callable[[bytearray, T], None]:
        """Return what writes a value with the fewest calls; asked for once, by the type that this one is a part of."""
        return self.write

    def omitter(self) -> Callable[[T], bool]:
        """Return `omits`, or what says the same with fewer calls."""
        return self.omits

    def components(self) -> "Sequence[Schema[object]]":
        """Return the types that a definition of this one refers to."""
        return ()

    def definition(self, id_of: IdOf) -> bytes:  # noqa: ARG002 - for those that have one
        """Return the body of this type's definition, after the type id."""
        raise AssertionError(f"{self!r} is built in, or stands for another type")

    def defined(self) -> "Schema[object]":
        """Return the schema whose definition goes on the wire: this one, except for `optional`."""
        return cast("Schema[object]", self)


class _Builtin(Schema[T]):
    def __init__(
        self, builtin_id: int, zero: T, read: Callable[[Cursor], T], write: Callable[[bytearray, T], None]
    ) -> None:
        self.builtin_id = builtin_id
        self._zero = zero
        self._read = read
        self._write = write

    def write(self, out: bytearray, value: T) -> None:
        self._write(out, value)

    def writer(self) -> Callable[[bytearray, T], None]:
        return self._write

    def zero(self) -> T:
        return self._zero

    def omits(self, value: T) -> bool:
        return not value

    def omitter(self) -> Callable[[T], bool]:
        return not_

    def compile(self, type_id: int, types: TypeTable) -> Reader[T]:
        assert self.builtin_id is not None
        _expect_builtin(type_id, self.builtin_id, types)
        return self._read


class _Uint(Schema[int]):
    builtin_id = UINT_ID

    def __init__(self, bits: int) -> None:
        self._bits = bits

    def write(self, out: bytearray, value: int) -> None:
        assert 0 <= value < 1 << self._bits, f"{value} does not fit in {self._bits} bits"
        write_unsigned(out, value)

    def zero(self) -> int:
        return 0

    def omits(self, value: int) -> bool:
        return not value

    def omitter(self) -> Callable[[int], bool]:
        return not_

    def compile(self, type_id: int, types: TypeTable) -> Reader[int]:
        _expect_builtin(type_id, UINT_ID, types)
        bits = self._bits
        if bits == 64:
            return read_unsigned

        def read(cursor: Cursor) -> int:
            number = read_unsigned(cursor)
            if number >> bits:
                raise GobError(f"gob: value {number} out of range for {bits} bits")
            return number

        return read


class _Slice(Schema[list[T]]):
    def __init__(self, element: Schema[T], name: str) -> None:
        self._element = element
        self._name = name
        self._write_element = element.writer()

    def write(self, out: bytearray, value: list[T]) -> None:
        write_unsigned(out, len(value))
        write = self._write_element
        for element in value:
            write(out, element)

    def zero(self) -> list[T]:
        return []

    def omits(self, value: list[T]) -> bool:
        return not value

    def compile(self, type_id: int, types: TypeTable) -> Reader[list[T]]:
        wire = types.lookup(type_id)
        if not isinstance(wire, WireSlice):
            raise _wrong_type("slice", type_id, types)
        read_element = self._element.compile(wire.element, types)

        def read(cursor: Cursor) -> list[T]:
            return [read_element(cursor) for _ in range(types.read_count(cursor))]

        return read

    def components(self) -> Sequence[Schema[object]]:
        return (cast("Schema[object]", self._element),)

    def definition(self, id_of: IdOf) -> bytes:
        out = _definition_head(2, self._name, id_of(cast("Schema[object]", self)))
        _write_id(out, id_of(cast("Schema[object]", self._element)))
        return bytes(out) + b"\0\0"


class _Map(Schema[dict[K, V]]):
    def __init__(self, key: Schema[K], value: Schema[V], name: str) -> None:
        self._key = key
        self._value = value
        self._name = name
        self._write_key, self._write_value = key.writer(), value.writer()

    def write(self, out: bytearray, value: dict[K, V]) -> None:
        write_unsigned(out, len(value))
        write_key, write_value = self._write_key, self._write_value
        for key, element in value.items():
            write_key(out, key)
            write_value(out, element)

    def zero(self) -> dict[K, V]:
        return {}

    def omits(self, value: dict[K, V]) -> bool:  # noqa: ARG002 - Go leaves out nil maps, a dict is not nil
        return False

    def compile(self, type_id: int, types: TypeTable) -> Reader[dict[K, V]]:
        wire = types.lookup(type_id)
        if not isinstance(wire, WireMap):
            raise _wrong_type("map", type_id, types)
        read_key = self._key.compile(wire.key, types)
        read_value = self._value.compile(wire.value, types)

        def read(cursor: Cursor) -> dict[K, V]:
            return {read_key(cursor): read_value(cursor) for _ in range(types.read_count(cursor))}

        return read

    def components(self) -> Sequence[Schema[object]]:
        return (cast("Schema[object]", self._key), cast("Schema[object]", self._value))

    def definition(self, id_of: IdOf) -> bytes:
        out = _definition_head(4, self._name, id_of(cast("Schema[object]", self)))
        _write_id(out, id_of(cast("Schema[object]", self._key)))
        _write_id(out, id_of(cast("Schema[object]", self._value)))
        return bytes(out) + b"\0\0"


class _Optional(Schema[T | None]):
    def __init__(self, schema: Schema[T]) -> None:
        self._schema = schema
        self.is_struct = schema.is_struct

    def write(self, out: bytearray, value: T | None) -> None:
        assert value is not None, "gob: nil has no encoding outside a struct field"
        self._schema.write(out, value)

    def zero(self) -> T | None:
        return None

    def omits(self, value: T | None) -> bool:
        return value is None

    def compile(self, type_id: int, types: TypeTable) -> Reader[T | None]:
        return self._schema.compile(type_id, types)

    def defined(self) -> Schema[object]:
        return self._schema.defined()


class Field:
    """One field of a struct: its name on the wire, the attribute that holds it, its schema."""

    __slots__ = ("attribute", "schema", "wire_name")

    def __init__(self, wire_name: str, attribute: str, schema: Schema[T]) -> None:
        """Forget the schema's type, which the Python class repeats; mypy cannot compare the two."""
        self.wire_name = wire_name
        self.attribute = attribute
        self.schema = cast("Schema[object]", schema)


class Struct(Schema[T]):
    """A Go struct as a msgspec one. The order of fields is the order on the wire; the class may have its own."""

    is_struct = True

    def __init__(self, name: str, cls: type[T], fields: Sequence[Field]) -> None:
        """Pair the fields with the class: every attribute of its constructor is named exactly once."""
        assert issubclass(cls, msgspec.Struct)
        attributes = list(cls.__struct_fields__)
        assert sorted(attributes) == sorted(field.attribute for field in fields), f"{cls}: the fields do not match"
        self.name = name
        self._make = cast("Callable[[*tuple[object, ...]], T]", cls)
        self._fields = tuple(fields)
        self._slots = {field.wire_name: (attributes.index(field.attribute), field.schema) for field in fields}
        self._writers = tuple(
            (
                number,
                cast("Callable[[object], object]", attrgetter(field.attribute)),
                field.schema.omitter(),
                field.schema.writer(),
            )
            for number, field in enumerate(fields)
        )
        assert len(fields) < 0x80, f"{cls}: field numbers must differ by less than what one byte can say"
        # What reading begins with. A zero that can be changed is made anew for each.
        self._zeros: list[object] = [None] * len(attributes)
        for slot, schema in self._slots.values():
            self._zeros[slot] = schema.zero()
        self._fresh = tuple(
            (slot, schema.zero)
            for slot, schema in self._slots.values()
            if not isinstance(schema, _Builtin | _Uint | _Optional)
        )

    def write(self, out: bytearray, value: T) -> None:
        """Append the fields that are not zero, and the end mark."""
        last = -1
        for number, get, omits, write in self._writers:
            field = get(value)
            if not omits(field):
                out.append(number - last)
                write(out, field)
                last = number
        out.append(0)

    def zero(self) -> T:
        """Return a struct of zeros."""
        return self._make(*self._blank())

    def omits(self, value: T) -> bool:  # noqa: ARG002 - Go sends a nested struct even if it is zero
        """Say no."""
        return False

    def compile(self, type_id: int, types: TypeTable) -> Reader[T]:
        """Match the fields by name."""
        wire = types.lookup(type_id)
        if not isinstance(wire, WireStruct):
            raise _wrong_type(f"struct {self.name}", type_id, types)
        readers: list[tuple[int | None, Reader[object]]] = []
        for name, field_id in wire.fields:
            slot, schema = self._slots.get(name, (None, None))
            if schema is None:
                readers.append((None, _skipper(field_id, types)))
                continue
            try:
                readers.append((slot, schema.compile(field_id, types)))
            except GobError as error:
                raise GobError(f"gob: wrong type for received field {self.name}.{name}: {error}") from error
        if readers and self._fields and all(slot is None for slot, _ in readers):
            raise GobError(f"gob: type mismatch: no fields matched compiling decoder for {self.name}")
        return self._reader(readers)

    def _reader(self, readers: list[tuple[int | None, Reader[object]]]) -> Reader[T]:
        make, blank, count = self._make, self._blank, len(readers)

        def read(cursor: Cursor) -> T:
            values = blank()
            number = -1
            # The loop of read_field_numbers, by hand: this one runs once per field of every struct that arrives.
            data, end = cursor.data, cursor.end
            while cursor.position < end:
                delta = data[cursor.position]
                if delta < 0x80:  # nearly always, and then read_unsigned would do no more than this
                    cursor.position += 1
                else:
                    delta = read_unsigned(cursor)
                if not delta:
                    break
                number += delta
                if number >= count:
                    raise GobError("gob: bad data: field numbers out of bounds")
                slot, read_field = readers[number]
                if slot is None:
                    read_field(cursor)
                else:
                    values[slot] = read_field(cursor)
            return make(*values)

        return read

    def _blank(self) -> list[object]:
        values = self._zeros.copy()
        for slot, zero in self._fresh:
            values[slot] = zero()
        return values

    def components(self) -> Sequence[Schema[object]]:
        """Return the types of the fields."""
        return [field.schema for field in self._fields]

    def definition(self, id_of: IdOf) -> bytes:
        """Return a definition with the fields in order."""
        out = _definition_head(3, self.name, id_of(cast("Schema[object]", self)))
        out.append(1)
        write_unsigned(out, len(self._fields))
        for field in self._fields:
            out.append(1)
            write_text(out, field.wire_name)
            _write_id(out, id_of(field.schema))
            out.append(0)
        return bytes(out) + b"\0\0"


BOOL: Schema[bool] = _Builtin(BOOL_ID, zero=False, read=lambda cursor: read_unsigned(cursor) != 0, write=write_unsigned)
STRING: Schema[str] = _Builtin(STRING_ID, zero="", read=read_text, write=write_text)


def uint(bits: int) -> Schema[int]:
    """Make a schema for unsigned numbers below 2**bits. Ours that do not fit are a mistake, theirs a GobError."""
    return _Uint(bits)


def slice_of(element: Schema[T], name: str = "") -> Schema[list[T]]:
    """Make a schema for a Go slice. Not for bytes: those are BYTES."""
    return _Slice(element, name)


def map_of(key: Schema[K], value: Schema[V], name: str = "") -> Schema[dict[K, V]]:
    """Make a schema for a Go map that is never nil. The order of a dict is the order on the wire."""
    return _Map(key, value, name)


def optional(schema: Schema[T]) -> Schema[T | None]:
    """Make a schema for a struct field that is a pointer, or a map that may be nil: None is left out."""
    return _Optional(schema)


def _read_int(cursor: Cursor) -> int:
    return read_signed(cursor)


def _write_int(out: bytearray, number: int) -> None:
    assert _INT_MIN <= number <= _INT_MAX, f"{number} does not fit in 64 bits"
    write_signed(out, number)


def _read_bytes(cursor: Cursor) -> bytes:
    return cursor.take(read_unsigned(cursor))


def _write_bytes(out: bytearray, raw: bytes) -> None:
    write_unsigned(out, len(raw))
    out += raw


INT: Schema[int] = _Builtin(INT_ID, zero=0, read=_read_int, write=_write_int)
BYTES: Schema[bytes] = _Builtin(BYTES_ID, zero=b"", read=_read_bytes, write=_write_bytes)
UINT8 = uint(8)
UINT16 = uint(16)
UINT32 = uint(32)
UINT64 = uint(64)


def _expect_builtin(type_id: int, builtin_id: int, types: TypeTable) -> None:
    if type_id != builtin_id:
        raise _wrong_type(types.describe(builtin_id), type_id, types)


def _wrong_type(local: str, type_id: int, types: TypeTable) -> GobError:
    return GobError(f"gob: decoding into local type {local}, received remote type {types.describe(type_id)}")


def _skipper(type_id: int, types: TypeTable) -> Reader[object]:
    return lambda cursor: types.skip(cursor, type_id)


def _definition_head(kind_delta: int, name: str, type_id: int) -> bytearray:
    """Open a definition: which kind of type (as the first field delta), then CommonType {name, id}."""
    out = bytearray((kind_delta, 1))
    if name:
        out.append(1)
        write_text(out, name)
    out.append(1 if name else 2)
    write_signed(out, type_id)
    out.append(0)
    return out


def _write_id(out: bytearray, type_id: int) -> None:
    out.append(1)
    write_signed(out, type_id)
