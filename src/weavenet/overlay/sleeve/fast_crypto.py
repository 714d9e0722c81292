"""Sealing and opening datagrams of the fast format: AES-256-GCM under keys that are derived from the session key.

    counter:  0  40 bits  epoch
              5  24 bits  number in the epoch
    key:      HKDF-SHA256 of the session key, info: "weavenet sleeve segments-1", who sends (1: the dialler), epoch
    nonce:    four zeros and the counter, of which there is but one under each session key and direction

GCM is safe for some 2**24 full-size datagrams under one key (RFC 8446, section 5.5), which a fast host sends in
minutes; so each epoch has a key of its own. The session key itself is secretbox's (crypto.py), and not used here.

Who opens knows the epoch before and the one after the last it was in, and makes no key for others: those are not worth
a derivation, which anybody could ask for by sending rubbish. Two minutes of the fastest stream would have to be lost on
the way to lose count.
"""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from weavenet.overlay.sleeve.crypto import ReplayWindow
from weavenet.overlay.sleeve.fast_wire import COUNTER_BYTES

KEY_BYTES = 32
EPOCH_BITS = 24
_EPOCH_BYTES = COUNTER_BYTES - EPOCH_BITS // 8

_INFO = b"weavenet sleeve segments-1"
_NONCE_PREFIX = bytes(4)
_COUNTER_MAX = (1 << 64) - 1


def derive_key(session_key: bytes, *, from_dialler: bool, epoch: int) -> bytes:
    """Return the key of one direction and epoch."""
    info = _INFO + bytes((from_dialler,)) + epoch.to_bytes(8, "big")
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=info).derive(session_key)


class FastSealer:
    """Seals what one end of a connection sends."""

    __slots__ = ("_aead", "_dialled", "_epoch", "_key", "_next")

    def __init__(self, key: bytes, *, dialled: bool, first: int = 0) -> None:
        """Count from `first`; `dialled` is whether we dialled the connection."""
        self._key = key
        self._dialled = dialled
        self._next = first
        self._epoch = -1
        self._enter(first >> EPOCH_BITS)

    def seal(self, records: bytes) -> bytes:
        """Return what follows the connection's label."""
        number = self._next
        assert number <= _COUNTER_MAX
        self._next += 1
        if number >> EPOCH_BITS != self._epoch:
            self._enter(number >> EPOCH_BITS)
        counter = number.to_bytes(COUNTER_BYTES, "big")
        return counter + self._aead.encrypt(_NONCE_PREFIX + counter, records, None)

    def _enter(self, epoch: int) -> None:
        self._epoch = epoch
        self._aead = AESGCM(derive_key(self._key, from_dialler=self._dialled, epoch=epoch))


class FastOpener:
    """Opens what the other end sends, each datagram once."""

    __slots__ = ("_admit", "_aeads", "_dialled", "_epoch", "_key")

    def __init__(self, key: bytes, *, dialled: bool) -> None:
        """Nothing has been seen; `dialled` is whether we dialled the connection, so that they did not."""
        self._key = key
        self._dialled = dialled
        self._epoch = 0
        self._aeads: dict[bytes, AESGCM] = {}
        self._admit = ReplayWindow().admit

    def open(self, sealed: memoryview) -> bytes | None:
        """Return the records; none of what was seen before; None if it is not genuine."""
        counter = bytes(sealed[:COUNTER_BYTES])
        aead = self._aeads.get(counter[:_EPOCH_BYTES])
        if aead is None:
            aead = self._aead_of(counter[:_EPOCH_BYTES])
            if aead is None:
                return None
        try:
            records = aead.decrypt(_NONCE_PREFIX + counter, sealed[COUNTER_BYTES:], None)
        except (InvalidTag, ValueError):  # too short for counter or tag
            return None
        number = int.from_bytes(counter, "big")
        if number >> EPOCH_BITS > self._epoch:
            self._epoch = number >> EPOCH_BITS
            self._aeads = {known: one for known, one in self._aeads.items() if self._is_near(known)}
        return records if self._admit(number) else b""

    def _is_near(self, epoch: bytes) -> bool:
        return abs(int.from_bytes(epoch, "big") - self._epoch) <= 1

    def _aead_of(self, epoch: bytes) -> AESGCM | None:
        """Return what opens an epoch's datagrams, made only for one beside the present."""
        if len(epoch) < _EPOCH_BYTES or not self._is_near(epoch):
            return None
        key = derive_key(self._key, from_dialler=not self._dialled, epoch=int.from_bytes(epoch, "big"))
        self._aeads[epoch] = aead = AESGCM(key)
        return aead
