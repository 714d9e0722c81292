"""The encryption of one TCP connection: how both ends come to a session key, and how they use it.

Each end draws a fresh Curve25519 key pair per connection. NaCl's `box` turns our private and their public key into a
shared key, and the password enters here, and only here:

    session key = SHA-256(HSalsa20(X25519(private, public), 0) || password)

So a wrong password is not noticed before the first sealed message fails to open, and one connection has as many
possible session keys as there are passwords (session.py). Every message is a `secretbox` under
a nonce that both ends count for themselves:

    byte 0           0x80 if the sender dialled, | 0x40 for TCP (overlay packets have 0 there)
    bytes 1 to 15    0
    bytes 16 to 23   sequence number, big-endian, from 0, of its own in each direction

That makes replay, reordering, loss and reflection all look alike: the message does not open. Source: docs/protocol.md,
"Mesh: Encryption"; Weave's mesh/protocol_crypto.go.
"""

import hashlib

import msgspec
from nacl.bindings import (
    crypto_box_beforenm,
    crypto_scalarmult_base,
    crypto_secretbox,
    crypto_secretbox_open,
)
from nacl.exceptions import CryptoError
from nacl.exceptions import RuntimeError as NaclRuntimeError

from weavenet.errors import HandshakeError, ProtocolError

KEY_BYTES = 32
# How much longer a sealed message is: its Poly1305 tag.
SEAL_BYTES = 16
MARK_BYTES = 16

_NONCE_DIALLER = 0x80
_NONCE_TCP = 0x40


class KeyPair(msgspec.Struct, frozen=True):
    """A Curve25519 key pair for one connection."""

    private: bytes
    public: bytes

    @classmethod
    def from_entropy(cls, octets: bytes) -> "KeyPair":
        """Make a pair from 32 random bytes, which are the private key as they are."""
        assert len(octets) == KEY_BYTES
        return cls(octets, crypto_scalarmult_base(octets))


def shared_key(ours: KeyPair, their_public: bytes) -> bytes:
    """Return what only the two ends of this connection know. Raises HandshakeError for a public key that is a trap."""
    try:
        return crypto_box_beforenm(their_public, ours.private)
    except NaclRuntimeError as error:
        # A point of small order makes the shared key the same whatever our private key is.
        raise HandshakeError(f"public key {their_public.hex()} is of small order") from error


def session_key_of(shared: bytes, password: bytes) -> bytes:
    """Return the session key of a connection under a password."""
    return hashlib.sha256(shared + password).digest()


def session_key(ours: KeyPair, their_public: bytes, password: bytes) -> bytes:
    """Return the 32 bytes that both ends arrive at. Raises HandshakeError for a public key that is a trap."""
    return session_key_of(shared_key(ours, their_public), password)


def key_mark(key: bytes) -> bytes:
    """Return by what the two ends of a connection call a session key; only who has the key can tell."""
    return hashlib.sha256(b"weavenet session key" + key).digest()[:MARK_BYTES]


class _Nonces:
    """The nonces of one direction."""

    __slots__ = ("_next", "_prefix")

    def __init__(self, *, sender_dialled: bool) -> None:
        self._prefix = bytes([_NONCE_TCP | (_NONCE_DIALLER if sender_dialled else 0)]) + bytes(15)
        self._next = 0

    def peek(self) -> bytes:
        return self._prefix + self._next.to_bytes(8, "big")

    def draw(self) -> bytes:
        nonce = self.peek()
        self._next += 1
        return nonce


class Sealer:
    """Encrypts what we send."""

    __slots__ = ("_key", "_nonces")

    def __init__(self, key: bytes, *, outbound: bool) -> None:
        """Start at sequence number 0; `outbound` if we dialled."""
        self._key = key
        self._nonces = _Nonces(sender_dialled=outbound)

    def seal(self, message: bytes) -> bytes:
        """Return the message sealed, longer by SEAL_BYTES."""
        return crypto_secretbox(message, self._nonces.draw(), self._key)


class Opener:
    """Decrypts what they send."""

    __slots__ = ("_key", "_nonces")

    def __init__(self, key: bytes, *, outbound: bool) -> None:
        """Start at sequence number 0; `outbound` if we dialled, so that they did not."""
        self._key = key
        self._nonces = _Nonces(sender_dialled=not outbound)

    def open(self, sealed: bytes) -> bytes:
        """Return the message. Raises ProtocolError, and has then not counted, so that another key may be tried."""
        try:
            message = crypto_secretbox_open(sealed, self._nonces.peek(), self._key)
        except CryptoError as error:
            raise ProtocolError("Unable to decrypt TCP msg") from error
        self._nonces.draw()
        return message
