"""Sealing and opening sleeve datagrams under a connection's session key.

A datagram may be lost, repeated or overtaken, so its sequence number travels with it, and is part of the nonce:

    nonce:  byte 0        0x80 if the sender dialled the connection, else 0 (TCP has 0x40 there)
            1 to 15       0
            16 to 23      big-endian: bit 63 the don't-fragment flag, below it the sequence number

Datagrams that may be fragmented and those that may not are counted apart, because they leave by different sockets; the
flag in the nonce keeps the two streams' nonces apart, too. Counting includes what the kernel then refused to send, as a
nonce must never seal twice.

The replay window is two bit sets of 2**20 numbers, the current and the previous; what is older is dropped. A set is
128 KiB of which the kernel provides only the pages that are touched. Source: docs/protocol/sleeve.md, B2 and B3.
"""

from nacl.bindings import crypto_secretbox_easy, crypto_secretbox_open
from nacl.exceptions import CryptoError

SEQUENCE_BYTES = 8

_DIALLED = 0x80
_DONT_FRAGMENT = 1 << 63
_WINDOW_BITS = 20
_WINDOW_BYTES = (1 << _WINDOW_BITS) // 8


class DatagramSealer:
    """Seals what one end of a connection sends."""

    __slots__ = ("_key", "_next", "_prefix")

    def __init__(self, key: bytes, *, dialled: bool) -> None:
        """Count both streams from 0; `dialled` is whether we dialled the connection."""
        self._key = key
        self._prefix = bytes([_DIALLED if dialled else 0]) + bytes(15)
        self._next = [0, 0]

    def seal(self, frames: bytes, *, dont_fragment: bool) -> bytes:
        """Return what follows the sender's name."""
        number = self._next[dont_fragment]
        self._next[dont_fragment] += 1
        sequence = (number | (_DONT_FRAGMENT if dont_fragment else 0)).to_bytes(SEQUENCE_BYTES, "big")
        return sequence + crypto_secretbox_easy(frames, self._prefix + sequence, self._key)


class DatagramOpener:
    """Opens what the other end sends, each datagram once."""

    __slots__ = ("_key", "_prefix", "_windows")

    def __init__(self, key: bytes, *, dialled: bool) -> None:
        """Nothing has been seen; `dialled` is whether we dialled the connection, so that they did not."""
        self._key = key
        self._prefix = bytes([0 if dialled else _DIALLED]) + bytes(15)
        self._windows = (ReplayWindow(), ReplayWindow())

    def open(self, sealed: bytes) -> tuple[bytes | None, str]:
        """Return the frames, or None; and what is wrong, which is blank also for a datagram that was seen before."""
        if len(sealed) < SEQUENCE_BYTES:
            problem = f"encrypted UDP packet too short; expected length >= {SEQUENCE_BYTES}, got {len(sealed)}"
            return None, f"Failed to decode packet: {problem}"
        sequence = sealed[:SEQUENCE_BYTES]
        try:
            frames = crypto_secretbox_open(sealed[SEQUENCE_BYTES:], self._prefix + sequence, self._key)
        except (CryptoError, ValueError):
            return None, "Failed to decode packet: UDP packet decryption failed"
        number = int.from_bytes(sequence, "big")
        window = self._windows[number >> 63]
        return (frames if window.admit(number & _DONT_FRAGMENT - 1) else None), ""


class ReplayWindow:
    """Which sequence numbers of a stream were seen. Ask only after a datagram has proved to be genuine."""

    __slots__ = ("_current", "_previous", "_window")

    def __init__(self) -> None:
        """Nothing was; the first number may be any."""
        self._window = 0
        self._current = bytearray(_WINDOW_BYTES)
        self._previous: bytearray | None = None

    def admit(self, number: int) -> bool:
        """Whether a number is new; asked again, it is not."""
        ahead = (number >> _WINDOW_BITS) - self._window
        if ahead == 0:
            seen = self._current
        elif ahead == -1:
            if self._previous is None:
                return False
            seen = self._previous
        elif ahead < -1:
            return False
        else:
            # A leap makes both sets new: one window back from there nothing was seen, but all is acceptable.
            self._previous = self._current if ahead == 1 else bytearray(_WINDOW_BYTES)
            self._current = seen = bytearray(_WINDOW_BYTES)
            self._window += ahead
        index, bit = number >> 3 & _WINDOW_BYTES - 1, 1 << (number & 7)
        if seen[index] & bit:
            return False
        seen[index] |= bit
        return True
