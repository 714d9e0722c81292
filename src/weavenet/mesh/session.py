"""The encryption of one connection where several passwords may be valid: which one it starts with, and moving on.

Both ends have one shared secret, and with each password another session key. The start is Weave's: each end seals its
first message, and a peer with one password does not wait for ours before it does. So the first message of the remote
tells which password it has, by trying ours on it (at most KEYS_MAX of them, once). Against a deadlock of two ends that
both want to be told first, the dialler always speaks: it guesses (guesses.py), and only an acceptor with several
passwords waits. An acceptor answers with the password it was greeted with; so if a dialler is answered with another,
the acceptor has not waited, its password is now known, and the dialler must dial again.

Later, two ends that said so in their introductions may move to another password without a break. Each direction moves
by itself, when its sender wants to; TCP keeps the order, so there is no doubt which message is under which key:

    ACCEPTED  0x77 01, then marks of 16 bytes     I open what is sealed with any of these
    MOVED     0x77 02, one mark                   what I send after this is sealed with that one

A mark is a hash of the session key, of use to nobody else. An end says ACCEPTED when its passwords change, or at the
start if it has several. It moves to the password it has in use if the other end accepts that, and otherwise stays as
long as the other end accepts it staying. It moves SETTLE_S later than it could, because sleeve's datagrams move with
it: the process that opens them must have the new key by then. A password that is retired is opened for GRACE_S more,
which is the time the other end has to move, and which datagrams under way have to arrive.

Each key counts its messages for as long as the connection lives, whatever comes between, as a nonce must not be used
twice. That needs memory, so a connection may see only so many keys. Weave's peers and version 1 never move.
"""

import msgspec

from weavenet.effects import Now
from weavenet.errors import OtherPasswordError, ProtocolError
from weavenet.mesh.crypto import MARK_BYTES, Opener, Sealer, key_mark, session_key_of
from weavenet.mesh.keyring import Keyring, Password
from weavenet.mesh.wire import REKEY_MESSAGE

SETTLE_S = 1.0
GRACE_S = 10.0
KEYS_PER_CONNECTION_MAX = 64
# How many marks an announcement may have; ours have KEYS_MAX at most.
_MARKS_MAX = 256

_ACCEPTED, _MOVED = b"\x01", b"\x02"


class OverlayKeys(msgspec.Struct, frozen=True):
    """What datagrams of a connection are sealed with, and what may be opened: that, and any other."""

    sealing: bytes
    opening: tuple[bytes, ...]

    def __repr__(self) -> str:
        return f"OverlayKeys({len(self.opening)} to open with)"


class _Key(msgspec.Struct, eq=False):
    """One password on this connection."""

    name: str
    password: Password
    raw: bytes
    mark: bytes
    sealer: Sealer
    opener: Opener
    expires_s: float | None = None  # when it is not opened any more; None: its password is valid
    closed: bool = False  # that time has come


class Session:
    """Seals and opens the messages of one connection."""

    def __init__(self, shared: bytes, ring: Keyring, *, outbound: bool) -> None:
        """Know the passwords; nothing is sealed or opened yet. `outbound` if we dialled."""
        self._shared = shared
        self._outbound = outbound
        self._keys: dict[bytes, _Key] = {}  # all that there were
        self._ring = ring
        for key in ring:
            self._learn(key.name, key.password)
        self.hint: Password | None = None  # the remote's, where we had guessed another
        self._sending: _Key | None = None
        self._receiving: _Key | None = None
        self._moves = False  # whether both ends know how to
        self._theirs: frozenset[bytes] | None = None
        self._move_due_s: float | None = None

    def _learn(self, name: str, password: Password) -> _Key:
        raw = session_key_of(self._shared, password.reveal())
        mark = key_mark(raw)
        known = self._keys.get(mark)
        if known is None:
            if len(self._keys) >= KEYS_PER_CONNECTION_MAX:
                raise ProtocolError(f"{KEYS_PER_CONNECTION_MAX} passwords have been valid on this connection; renew it")
            outbound = self._outbound
            known = _Key(name, password, raw, mark, Sealer(raw, outbound=outbound), Opener(raw, outbound=outbound))
            self._keys[mark] = known
        known.name, known.expires_s, known.closed = name, None, False
        return known

    # --- the start ----------------------------------------------------------------------------------------------------

    @property
    def speaks_first(self) -> bool:
        """Whether to seal a message before one was opened. Not for an acceptor that cannot know with what."""
        return self._outbound or len(self._ring) == 1

    def begin(self, guess: Password | None) -> None:
        """Seal with this password, if it is valid; else with the one in use."""
        valid = guess is not None and self._ring.find(guess) is not None
        self._sending = self._of(guess if valid and guess is not None else self._ring.in_use.password)

    @property
    def can_seal(self) -> bool:
        """Whether it is known with what to seal: `begin` has been called, or a message was opened."""
        return self._sending is not None

    @property
    def settled_on(self) -> Password | None:
        """The password that the remote has proved to know, if it has yet."""
        return None if self._receiving is None else self._receiving.password

    def _settle(self, sealed: bytes) -> bytes:
        """Open the remote's first message. Raises OtherPasswordError or ProtocolError."""
        tried = [self._sending] if self._sending is not None else []
        tried += [key for key in self._keys.values() if key is not self._sending and key.expires_s is None]
        for key in tried:
            try:
                message = key.opener.open(sealed)
            except ProtocolError:
                continue
            if self._sending is not None and key is not self._sending:
                self.hint = key.password
                raise OtherPasswordError(f"the peer uses key {key.name}, and was greeted with key {self._sending.name}")
            self._sending = self._receiving = key
            return message
        raise ProtocolError("Unable to decrypt TCP msg")

    def _of(self, password: Password) -> _Key:
        return next(key for key in self._keys.values() if key.password == password)

    # --- messages -----------------------------------------------------------------------------------------------------

    def seal(self, message: bytes) -> bytes:
        """Return a message sealed."""
        assert self._sending is not None
        return self._sending.sealer.seal(message)

    def open(self, sealed: bytes) -> bytes:
        """Return a message opened. Raises ProtocolError, or OtherPasswordError for the first one."""
        return self._settle(sealed) if self._receiving is None else self._receiving.opener.open(sealed)

    # --- moving -------------------------------------------------------------------------------------------------------

    def allow_moves(self, now: Now) -> list[bytes]:
        """Note that both ends know how to move. Returns sealed messages to send, as do all of these."""
        self._moves = True
        return self._announce(now) if len(self._ring) > 1 else []

    def ring_changed(self, ring: Keyring, now: Now) -> list[bytes]:
        """Go by other passwords from now on. Raises ProtocolError if this connection cannot."""
        self._ring = ring
        valid = {self._learn(key.name, key.password).mark for key in ring}
        for key in self._keys.values():
            if key.mark not in valid and key.expires_s is None:
                key.expires_s = now.monotonic_s + GRACE_S
        if not self._moves:
            for used in (self._sending, self._receiving):
                if used is not None and used.expires_s is not None:
                    raise ProtocolError(f"key {used.name}, which this connection uses, has been retired")
            return []
        return self._announce(now)

    def control(self, payload: bytes, now: Now) -> list[bytes]:
        """Take the remote's word about keys. Raises ProtocolError for what it must not say."""
        marks = payload[1:]
        if not self._moves or len(marks) % MARK_BYTES or len(marks) > _MARKS_MAX * MARK_BYTES:
            raise ProtocolError(f"a message about keys of {len(payload)} bytes that means nothing here")
        match payload[:1]:
            case value if value == _ACCEPTED:
                self._theirs = frozenset(marks[at : at + MARK_BYTES] for at in range(0, len(marks), MARK_BYTES))
                self._consider(now)
            case value if value == _MOVED:
                key = self._keys.get(marks)
                if key is None or key.closed:
                    raise ProtocolError("the peer moved to a key that is not valid here")
                self._receiving = key
            case _:
                pass  # of a later version
        return []

    def next_deadline(self) -> float | None:
        """When `handle_timer` has something to do, in monotonic seconds."""
        due = [key.expires_s for key in self._keys.values() if key.expires_s is not None and not key.closed]
        if self._move_due_s is not None:
            due.append(self._move_due_s)
        return min(due, default=None)

    def handle_timer(self, now: Now) -> list[bytes]:
        """Move, if it is time. Raises ProtocolError if the remote still uses a key that was retired."""
        for key in self._keys.values():
            key.closed = key.expires_s is not None and key.expires_s <= now.monotonic_s
        for used in (self._sending, self._receiving):
            if used is not None and used.closed:
                raise ProtocolError(f"key {used.name}, which the peer still uses, has been retired")
        if self._move_due_s is None or self._move_due_s > now.monotonic_s:
            return []
        self._move_due_s = None
        wanted = self._wanted()
        if wanted is self._sending:
            return []
        sealed = self.seal(REKEY_MESSAGE + _MOVED + wanted.mark)
        self._sending = wanted
        return [sealed]

    def _announce(self, now: Now) -> list[bytes]:
        self._consider(now)
        return [self.seal(REKEY_MESSAGE + _ACCEPTED + b"".join(key.mark for key in self._valid()))]

    def _consider(self, now: Now) -> None:
        if self._move_due_s is None and self._wanted() is not self._sending:
            self._move_due_s = now.monotonic_s + SETTLE_S

    def _wanted(self) -> _Key:
        """Return the key to send with: what is in use, where they can open it; else what both can."""
        assert self._sending is not None
        if self._theirs is None:
            return self._sending
        common = [key for key in self._valid() if key.mark in self._theirs]
        if not common:
            return self._sending
        if common[0].password == self._ring.in_use.password or self._sending not in common:
            return common[0]
        return self._sending

    def _valid(self) -> list[_Key]:
        return [self._of(key.password) for key in self._ring]

    # --- views --------------------------------------------------------------------------------------------------------

    def passwords(self) -> frozenset[Password]:
        """Return those that this connection uses at the moment, in either direction."""
        return frozenset(key.password for key in (self._sending, self._receiving) if key is not None)

    def overlay_keys(self) -> OverlayKeys:
        """Return what datagrams are sealed and opened with."""
        assert self._sending is not None
        if not self._moves:
            return OverlayKeys(self._sending.raw, (self._sending.raw,))
        return OverlayKeys(self._sending.raw, tuple(key.raw for key in self._keys.values() if not key.closed))
