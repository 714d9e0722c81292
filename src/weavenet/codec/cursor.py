"""Reading bytes somebody else wrote, without ever running off their end.

Every decoder of the project reads through one of these. A read beyond the end raises TruncatedError and moves nothing,
so a decoder needs no length checks of its own, and a part of a message that carries its own length is read through
`restrict_to`, which keeps a lying inner length from reaching into what follows. Numbers are big-endian, as on all of
Weave's wires.
"""

from weavenet.errors import CodecError, TruncatedError


class Cursor:
    """A position in bytes, with a fence behind the last one that may be read."""

    __slots__ = ("data", "end", "position")

    def __init__(self, data: bytes, position: int = 0, end: int | None = None) -> None:
        """Stand at `position`; the fence is at `end`, or behind the last byte."""
        self.data = data
        self.position = position
        self.end = len(data) if end is None else end
        assert 0 <= self.position <= self.end <= len(data)

    @property
    def remaining(self) -> int:
        """How many bytes can still be read."""
        return self.end - self.position

    def octet(self) -> int:
        """Read one byte as a number."""
        position = self.position
        if position >= self.end:
            raise TruncatedError("the bytes end where one more is needed")
        self.position = position + 1
        return self.data[position]

    def unsigned(self, size_bytes: int) -> int:
        """Read an unsigned big-endian number of that many bytes."""
        return int.from_bytes(self.take(size_bytes), "big")

    def take(self, count: int) -> bytes:
        """Read that many bytes."""
        position = self.position
        self.skip(count)
        return self.data[position : self.position]

    def skip(self, count: int) -> None:
        """Pass over that many bytes."""
        after = self.position + count
        if count < 0 or after > self.end:
            raise TruncatedError(f"{count} bytes are needed, {self.end - self.position} are left")
        self.position = after

    def rest(self) -> bytes:
        """Read all that is left, which may be nothing."""
        return self.take(self.remaining)

    def restrict_to(self, count: int) -> "Cursor":
        """Pass over that many bytes and return a cursor that can read just these."""
        start = self.position
        self.skip(count)
        return Cursor(self.data, start, self.position)

    def finish(self) -> None:
        """Raise CodecError unless everything has been read."""
        if self.position != self.end:
            raise CodecError(f"{self.end - self.position} bytes are left over")
