"""Weave's part of Go's gob: streams of self-describing values. This module is the door; import from here.

    message = length, body      body = -N, definition of type N  |  N, value

Weave opens a stream for almost everything it says: one per gossip message, one per stored value, one per direction of a
version 1 connection. `Encoder` and `Decoder` are one end of one stream and hold what it remembers, the types defined so
far. The shapes of values are schemas (gob_schema.py), numbers and remote types are in gob_wire.py.

A definition depends only on the schema and on the ids given out before, which are the same in nearly every stream, so
definitions are built once and kept. Maps are written in the order of the dict: for a gob, any order is right, and ours
is reproducible. Source: docs/protocol.md, "The gob subset".
"""

from functools import lru_cache
from typing import TypeVar, cast

from weavenet.codec.cursor import Cursor
from weavenet.codec.gob_schema import (
    BOOL,
    BYTES,
    INT,
    STRING,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    Field,
    Reader,
    Schema,
    Struct,
    map_of,
    optional,
    slice_of,
    uint,
)
from weavenet.codec.gob_wire import TypeTable, read_signed, read_unsigned, write_signed, write_unsigned
from weavenet.errors import GobError, TruncatedError

__all__ = [
    "BOOL",
    "BYTES",
    "INT",
    "MESSAGE_BYTES_MAX",
    "STRING",
    "UINT8",
    "UINT16",
    "UINT32",
    "UINT64",
    "Decoder",
    "Encoder",
    "Field",
    "Schema",
    "Struct",
    "decode_one",
    "encode_one",
    "map_of",
    "message_end",
    "optional",
    "slice_of",
    "uint",
]

T = TypeVar("T")

# Go allows 1 GiB. Weave's mesh carries no message over 10 MiB, and what is stored is smaller.
MESSAGE_BYTES_MAX = 10 * 1024 * 1024
# Old Go counts from 65, new Go from 64; every decoder takes 65.
_FIRST_ID = 65
# A length is at most 9 bytes; with fewer there may be no message yet, with more there is one or it is nonsense.
_LENGTH_BYTES_MAX = 9

_Schemas = tuple[Schema[object], ...]


class Encoder:
    """The writing end of one stream."""

    def __init__(self) -> None:
        """Start a stream: the other end knows no types yet."""
        self._known: _Schemas = ()
        self._ids: dict[Schema[object], int] = {}

    def encode(self, schema: Schema[T], value: T) -> bytes:
        """Return the message of a value, preceded by the definitions the other end lacks."""
        erased = schema.defined()
        definitions = b""
        if erased.builtin_id is None and erased not in self._ids:
            definitions, self._known = _define(erased, self._known)
            self._ids = {known: _FIRST_ID + index for index, known in enumerate(self._known)}
        body = bytearray()
        write_signed(body, self._ids[erased] if erased.builtin_id is None else erased.builtin_id)
        if not schema.is_struct:
            body.append(0)
        schema.write(body, value)
        return definitions + _message(body)


class Decoder:
    """The reading end of one stream, whole in memory or arriving in pieces."""

    def __init__(self, data: bytes = b"", *, message_bytes_max: int = MESSAGE_BYTES_MAX) -> None:
        """Start a stream with what has arrived of it. A message longer than the limit is refused by its length."""
        self.message_bytes_max = message_bytes_max
        self._buffer = bytearray(data)
        self._types = TypeTable()
        self._readers: dict[tuple[Schema[object], int], Reader[object]] = {}

    @property
    def at_end(self) -> bool:
        """Whether everything that arrived has been decoded."""
        return not self._buffer

    def feed(self, data: bytes) -> None:
        """Add bytes that arrived."""
        self._buffer += data

    def decode(self, schema: Schema[T]) -> T:
        """Return the next value. Raises TruncatedError if it is not all there, GobError if it is not of this type."""
        found = self._next(schema)
        if found is None:
            raise TruncatedError("unexpected EOF" if self._buffer else "EOF")
        return found[0]

    def try_decode(self, schema: Schema[T]) -> T | None:
        """Return the next value, or None if it has not arrived in full. Not for schemas with None among their values.

        Definitions that have arrived are remembered, so that no byte is looked at twice.
        """
        found = self._next(schema)
        return None if found is None else found[0]

    def _next(self, schema: Schema[T]) -> tuple[T] | None:
        while (body := self._next_message()) is not None:
            type_id = read_signed(body)
            if type_id < 0:
                self._types.define(-type_id, body)
                continue
            reader = self._reader(schema, type_id)
            if not schema.is_struct and read_unsigned(body):
                raise GobError("gob: decode: corrupted data: non-zero delta for singleton")
            value = reader(body)
            body.finish()
            return (value,)
        return None

    def _reader(self, schema: Schema[T], type_id: int) -> Reader[T]:
        key = (cast("Schema[object]", schema), type_id)
        reader = self._readers.get(key)
        if reader is None:
            reader = self._readers[key] = key[0].compile(type_id, self._types)
        return cast("Reader[T]", reader)

    def _next_message(self) -> Cursor | None:
        head = Cursor(bytes(self._buffer[:_LENGTH_BYTES_MAX]))
        try:
            length = read_unsigned(head)
        except TruncatedError:
            return None
        if length > self.message_bytes_max:
            raise GobError(f"gob: message of {length} bytes exceeds {self.message_bytes_max}")
        end = head.position + length
        if len(self._buffer) < end:
            return None
        body = Cursor(bytes(memoryview(self._buffer)[head.position : end]))
        # Cutting the front off a bytearray moves its start and copies nothing.
        del self._buffer[:end]
        return body


def encode_one(schema: Schema[T], value: T) -> bytes:
    """Return a stream of one value."""
    return Encoder().encode(schema, value)


def decode_one(schema: Schema[T], data: bytes) -> T:
    """Return the value of a stream of one. Raises GobError if there is more."""
    decoder = Decoder(data)
    value = decoder.decode(schema)
    if not decoder.at_end:
        raise GobError("gob: more than one value in the stream")
    return value


def message_end(data: bytes, start: int) -> int:
    """Return where the message that starts there ends. Raises TruncatedError unless all of it is there."""
    head = Cursor(data, start)
    length = read_unsigned(head)
    head.skip(length)
    return head.position


@lru_cache(maxsize=256)
def _define(schema: Schema[object], known: _Schemas) -> tuple[bytes, _Schemas]:
    """Return the definitions of a type and all it is made of, and the types known after them, in the order of ids."""
    reached = list(known)
    _reach(schema, reached)
    ids = {each: _FIRST_ID + index for index, each in enumerate(reached)}

    def id_of(component: Schema[object]) -> int:
        defined = component.defined()
        return ids[defined] if defined.builtin_id is None else defined.builtin_id

    out = bytearray()
    for each in reached[len(known) :]:
        body = bytearray()
        write_signed(body, -ids[each])
        body += each.definition(id_of)
        out += _message(body)
    return bytes(out), tuple(reached)


def _reach(schema: Schema[object], reached: list[Schema[object]]) -> None:
    schema = schema.defined()
    if schema.builtin_id is None and schema not in reached:
        reached.append(schema)
        for component in schema.components():
            _reach(component, reached)


def _message(body: bytearray) -> bytes:
    out = bytearray()
    write_unsigned(out, len(body))
    return bytes(out + body)
