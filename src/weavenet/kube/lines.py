"""A stream of bytes as lines: a watch is one JSON object to a line, however the network cuts it up."""

from collections.abc import Iterator

from weavenet.errors import KubeAnswerError


class Lines:
    """Cuts what comes in at newlines; blank lines are nothing."""

    def __init__(self, limit_bytes: int) -> None:
        """Take lines up to this long."""
        self._limit_bytes = limit_bytes
        self._parts: list[bytes] = []  # of the line that is not complete yet
        self._size = 0

    @property
    def has_rest(self) -> bool:
        """Whether a line has begun and not ended."""
        return bool(self._size)

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Yield the lines that this piece completes. Raises KubeAnswerError for one that is too long."""
        *ends, rest = piece.split(b"\n")
        for end in ends:
            line = b"".join([*self._parts, end])
            self._parts, self._size = [], 0
            self._check(len(line))
            if line.strip():
                yield line
        self._size += len(rest)
        self._check(self._size)
        if rest:
            self._parts.append(rest)

    def _check(self, size: int) -> None:
        if size > self._limit_bytes:
            raise KubeAnswerError(f"the API sends a line longer than the {self._limit_bytes >> 20} MiB we take")
