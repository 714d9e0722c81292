"""The passwords that are valid here: one is in use for new connections, the others are accepted.

A value: every change makes a new ring, or is refused with a reason. What a password is good for on a connection is
session.py's business; here is only which there are, what their names are, and how they outlive the process.

    add      a password is accepted from now on
    use      it is in use from now on, and the one that was is accepted
    retire   it is neither; not for the one in use, so that there always is one

The ring as stored also knows which password the agent was given at its last start, salted and hashed. A start with the
same one leaves the ring as it is, even if that password has been retired since: who changes passwords by `weave key`
need not change the agent's flags at the same moment. A start with a password that is not in the ring and was not given
the last time makes a new ring: what somebody writes there counts, and a password that is no longer written is dead.
"""

import hashlib
import hmac
import string
from collections.abc import Iterator
from dataclasses import dataclass, replace

import msgspec

from weavenet.effects import Entropy, Now
from weavenet.errors import KeyringError

KEY_KEYRING = "keyring"  # in the store
KEYS_MAX = 8  # a stranger's first sealed message is tried with each
NAME_CHARACTERS_MAX = 32
PASSWORD_BYTES_MAX = 1024
FIRST_NAME = "initial"

_NAME_CHARACTERS = frozenset(string.ascii_letters + string.digits + "._-")
_SALT_BYTES = 16


class Password:
    """A secret that prints as `<redacted>`."""

    __slots__ = ("_raw",)

    def __init__(self, raw: bytes) -> None:
        """Keep the bytes."""
        self._raw = raw

    def reveal(self) -> bytes:
        """Return the bytes, for key derivation and the store only."""
        return self._raw

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Password) and hmac.compare_digest(self._raw, other._raw)

    def __hash__(self) -> int:
        return hash(self._raw)

    def __repr__(self) -> str:
        return "<redacted>"


@dataclass(frozen=True, slots=True)
class Key:
    """A password and what an operator may see of it."""

    name: str
    password: Password
    added_wall_s: float


@dataclass(frozen=True, slots=True)
class KeyStatus:
    """What a user sees of a key."""

    name: str
    in_use: bool
    added_wall_s: float
    connections: int  # that use it at the moment, in either direction


@dataclass(frozen=True, slots=True)
class Keyring:
    """At least one key; the first is in use, the others follow in the order in which they were added or last used."""

    keys: tuple[Key, ...]
    launched_with: bytes = b""  # salt and hash of the password that the agent was last started with

    @classmethod
    def of(cls, password: bytes, *more: bytes) -> "Keyring":
        """Make a ring of passwords without a history; the first is in use."""
        raws = (password, *more)
        names = (FIRST_NAME, *(f"key{number}" for number in range(2, len(raws) + 1)))
        return cls(tuple(Key(name, Password(raw), 0.0) for name, raw in zip(names, raws, strict=True)))

    def __iter__(self) -> Iterator[Key]:
        return iter(self.keys)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def in_use(self) -> Key:
        """The one for new connections."""
        return self.keys[0]

    def find(self, password: Password) -> Key | None:
        """Return the key with that password."""
        return next((key for key in self.keys if key.password == password), None)

    def add(self, name: str, password: Password, now: Now) -> "Keyring":
        """Accept another password. Raises KeyringError."""
        if not 0 < len(name) <= NAME_CHARACTERS_MAX or not set(name) <= _NAME_CHARACTERS:
            raise KeyringError(
                f"{name[: 2 * NAME_CHARACTERS_MAX]!r} is no name for a key: "
                f"1 to {NAME_CHARACTERS_MAX} letters, digits, or any of . _ -"
            )
        if not 0 < len(password.reveal()) <= PASSWORD_BYTES_MAX:
            raise KeyringError(f"a password has 1 to {PASSWORD_BYTES_MAX} bytes, this one {len(password.reveal())}")
        if any(key.name == name for key in self.keys):
            raise KeyringError(f"there is a key {name} already; choose another name, or retire that one first")
        same = self.find(password)
        if same is not None:
            raise KeyringError(f"this password is here already: it is key {same.name}")
        if len(self.keys) >= KEYS_MAX:
            raise KeyringError(f"there are {KEYS_MAX} keys already; retire one that is no longer needed first")
        return replace(self, keys=(*self.keys, Key(name, password, now.wall_s)))

    def use(self, name: str) -> "Keyring":
        """Put a key in use for new connections. Raises KeyringError."""
        key = self._named(name)
        return replace(self, keys=(key, *(other for other in self.keys if other is not key)))

    def retire(self, name: str) -> "Keyring":
        """Forget a key. Raises KeyringError."""
        key = self._named(name)
        if len(self.keys) == 1:
            raise KeyringError(f"{name} is the only key: add and use another one before retiring it")
        if key is self.in_use:
            others = ", ".join(other.name for other in self.keys[1:])
            raise KeyringError(f"{name} is in use: first `weave key use` another one ({others})")
        return replace(self, keys=tuple(other for other in self.keys if other is not key))

    def _named(self, name: str) -> Key:
        for key in self.keys:
            if key.name == name:
                return key
        names = ", ".join(key.name for key in self.keys)
        raise KeyringError(f"there is no key {name[: 2 * NAME_CHARACTERS_MAX]!r} here, only {names}")


# --- what outlives the process ----------------------------------------------------------------------------------------


class _StoredKey(msgspec.Struct, frozen=True):
    name: str
    password: bytes
    added_wall_s: float


class _StoredKeyring(msgspec.Struct, frozen=True):
    launched_with: bytes
    keys: list[_StoredKey]


def encode_keyring(ring: Keyring) -> bytes:
    """Write a ring for the store: in clear, as the mesh needs the passwords themselves."""
    keys = [_StoredKey(key.name, key.password.reveal(), key.added_wall_s) for key in ring]
    return msgspec.json.encode(_StoredKeyring(ring.launched_with, keys))


def decode_keyring(raw: bytes) -> Keyring | None:
    """Read a stored ring; empty is none. Raises KeyringError."""
    if not raw:
        return None
    try:
        stored = msgspec.json.decode(raw, type=_StoredKeyring)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise KeyringError(f"the stored passwords cannot be read ({error}); start once with --no-password") from None
    keys = tuple(Key(key.name, Password(key.password), key.added_wall_s) for key in stored.keys)
    if not keys:
        return None
    return Keyring(keys, stored.launched_with)


def keyring_at_launch(
    stored: Keyring | None, given: Password | None, entropy: Entropy, now: Now
) -> tuple[Keyring | None, str]:
    """Return the ring to start with, and what an operator should know about it, if anything."""
    if given is None:
        if stored is None:
            return None, ""
        return stored, "no password was given; using those that are stored (--no-password would forget them)"
    if stored is not None and stored.find(given) is None:
        if _is_hash_of(stored.launched_with, given):
            text = "the password that was given has been retired; using those that are stored"
            return stored, f"{text}: give {stored.in_use.name} instead"
        stored, text = None, "another password was given than the last time: those that were stored are forgotten"
    else:
        text = ""
    ring = stored or Keyring((Key(FIRST_NAME, given, now.wall_s),))
    if not _is_hash_of(ring.launched_with, given):
        ring = replace(ring, launched_with=_hash(entropy.octets(_SALT_BYTES), given))
    return ring, text


def _hash(salt: bytes, password: Password) -> bytes:
    return salt + hashlib.scrypt(password.reveal(), salt=salt, n=1 << 12, r=8, p=1, dklen=32)


def _is_hash_of(stored: bytes, password: Password) -> bool:
    return len(stored) > _SALT_BYTES and hmac.compare_digest(_hash(stored[:_SALT_BYTES], password), stored)
