"""One mesh connection, from the first byte to the last, without touching a socket.

Three things drive it: bytes arriving (`receive`), the owner (`proceed`, `send`) and time (`handle_timer`). What it
wants written it returns.

    HEADER ──► FLAG ──► KEY ──► FEATURES ──► HELD ──► OPEN
        │       version 2 only    ▲  │        ▲
        └─────────────────────────┘  └► PROOF ┘
                 version 1           version 1, several passwords, dialled to us

Neither side waits for the other within a step, but later steps depend on earlier ones: which version's bytes to write
is known when their header is here, and our features are sealed with a key that needs theirs. So the two ends run
through the stages side by side, whoever dialled; that matters to the nonces, and where several passwords are valid:
then who was dialled waits for a sealed message that tells which (session.py).

Version 2 says flag, key, and then frames, of which the first holds the features. Version 1 is one gob stream per
direction: the features, never sealed, and then messages as byte slices.

HELD exists because of a rule between connections: messages may only be looked at when the connection is in the
topology, or what they bring may be collected as unreachable before it is. The owner says so by `proceed`.

Every error is final. The owner closes the socket and drops the object; a message that arrived in the same piece as the
error is lost, as it would have been had the piece come a moment later. Source: docs/protocol.md, "Mesh: Connection
introduction"; Weave's mesh/protocol.go and connection.go.
"""

from enum import Enum

import msgspec

from weavenet.codec.gob import BYTES, Decoder, Encoder, encode_one
from weavenet.effects import Entropy, Now
from weavenet.errors import CodecError, HandshakeError, ProtocolError
from weavenet.identity import ConnectionUID, PeerName, PeerUID, ShortID
from weavenet.mesh.crypto import KEY_BYTES, SEAL_BYTES, KeyPair, shared_key
from weavenet.mesh.keyring import Keyring, Password
from weavenet.mesh.session import OverlayKeys, Session
from weavenet.mesh.wire import (
    COMPACT,
    COMPACT_VERSION,
    FEATURES,
    HEADER_BYTES,
    HEARTBEAT_MESSAGE,
    LENGTH_BYTES,
    MESSAGE_BYTES_MAX,
    PUBLIC_KEY_V1,
    REKEY,
    REKEY_MESSAGE,
    REKEY_VERSION,
    VERSION_MAX,
    VERSION_MIN,
    Inbox,
    LocalFeatures,
    RemoteFeatures,
    build_features,
    build_header,
    check_outgoing,
    decimal_bytes,
    frame,
    negotiate_version,
    parse_features,
    restrict_to_v1,
)

HEADER_TIMEOUT_S = 10.0
# Twice the heartbeat. It runs from message to message: a message that takes longer to arrive ends the connection, too.
READ_TIMEOUT_S = 60.0
HEARTBEAT_INTERVAL_S = 30.0
# Weave would take 10 MiB here as well, but until it has introduced itself a remote is anybody. Ours take 200 bytes.
FEATURES_BYTES_MAX = 1 << 16
# How a gob of bytes is longer than the bytes: lengths, a type id, a zero.
_GOB_OVERHEAD_BYTES = 24

_PASSWORD_MISSING_THERE = "password specified, but peer requested an unencrypted connection"  # noqa: S105
_PASSWORD_MISSING_HERE = "no password specificed, but peer requested an encrypted connection"  # noqa: S105
# Whoever finds out first hangs up, so that the other sees nothing but that.
_PASSWORDS_DIFFER = "is the password the same on both peers?"


class LocalPeer(msgspec.Struct, frozen=True):
    """Who we are."""

    name: PeerName
    uid: PeerUID
    nickname: str


class ConnectionOptions(msgspec.Struct, frozen=True):
    """What is the same for all our connections."""

    keyring: Keyring | None
    min_version: int = VERSION_MIN
    max_version: int = VERSION_MAX
    overlays: str = "fastdp"
    sleeve_formats: str = ""
    can_move: bool = True  # to another password; Weave cannot
    compact: bool = True  # whether to compare state instead of telling it, where the remote can, too


class Introduced(msgspec.Struct, frozen=True):
    """Both ends know each other. Nothing more is read before `proceed`."""

    features: RemoteFeatures
    uid: ConnectionUID
    session_key: bytes | None  # None: no password on either side
    version: int
    compact: bool = False  # whether state is compared instead of told


class Message(msgspec.Struct, frozen=True):
    """A message arrived; heartbeats are messages, too."""

    tag: int
    payload: bytes


class _Stage(Enum):
    HEADER = "header"
    FLAG = "flag"
    KEY = "key"
    FEATURES = "features"
    PROOF = "proof"
    HELD = "held"
    OPEN = "open"


class Connection:
    """The state of one connection."""

    def __init__(
        self,
        local: LocalPeer,
        options: ConnectionOptions,
        *,
        outbound: bool,
        short_id: ShortID,
        trusted: bool,
        entropy: Entropy,
        now: Now,
        guess: Password | None = None,
    ) -> None:
        """Draw the connection's number and, with a password, its keys. `trusted`: whether we trust their address.

        `guess`: which password a remote that we dialled has, if it is not the one in use.
        """
        self._options = options
        self._outbound = outbound
        self._connection_id = entropy.bits(64)
        self._ring = options.keyring
        self._guess = guess
        self._keys = None if self._ring is None else KeyPair.from_entropy(entropy.octets(KEY_BYTES))
        self._features = build_features(
            LocalFeatures(
                name=local.name,
                nickname=local.nickname,
                uid=local.uid,
                connection_id=self._connection_id,
                short_id=short_id,
                trusted=trusted,
                overlays=options.overlays,
                sleeve_formats=options.sleeve_formats,
            )
        )
        if self._ring is not None and options.can_move:
            self._features[REKEY] = REKEY_VERSION
        if options.compact:
            self._features[COMPACT] = COMPACT_VERSION
        self._stage = _Stage.HEADER
        self._version = 0
        self._inbox = Inbox()
        self._held_bytes = 0
        # Version 1's two gob streams. The decoder takes over from the inbox behind the header.
        self._encoder = Encoder()
        self._decoder = Decoder(message_bytes_max=FEATURES_BYTES_MAX)
        self._session: Session | None = None
        self._moves = False  # whether both ends can move to another password
        # Version 1's: what waits for the remote's proof, and the message that was it.
        self._unproved: RemoteFeatures | None = None
        self._proof: bytes | None = None
        self._read_deadline_s = now.monotonic_s + HEADER_TIMEOUT_S
        self._heartbeat_due_s: float | None = None

    # --- driven by the owner ---

    def start(self) -> bytes:
        """Return what to write at once."""
        return build_header(self._options.min_version, self._options.max_version)

    def proceed(self, now: Now) -> tuple[bytes, list[Message]]:
        """Start reading messages, and our heartbeat: the connection has been added.

        Returns what to write, and the messages that had arrived already. Raises ProtocolError.
        """
        assert self._stage is _Stage.HELD
        self._stage = _Stage.OPEN
        self._heartbeat_due_s = now.monotonic_s + HEARTBEAT_INTERVAL_S
        self._read_deadline_s = now.monotonic_s + READ_TIMEOUT_S
        announced = b""
        if self._session is not None and self._moves:
            announced = self._framed(self._session.allow_moves(now))
        messages = [Message(self._proof[0], self._proof[1:])] if self._proof else []
        written, events = self.receive(b"", now)
        messages += [event for event in events if isinstance(event, Message)]
        return announced + written, messages

    def ring_changed(self, ring: Keyring | None, now: Now) -> bytes:
        """Go by other passwords from now on; return what to write. Raises RemoteError if this connection cannot."""
        self._ring = ring
        if self._session is None or ring is None:
            return b""
        return self._framed(self._session.ring_changed(ring, now))

    def send(self, message: bytes) -> bytes:
        """Return a message framed and sealed. Raises ProtocolError if it is too long. Only after Introduced."""
        assert self._stage in {_Stage.HELD, _Stage.OPEN}
        # Before sealing: a message that was never sent must not use up a nonce.
        check_outgoing(len(message) + (SEAL_BYTES if self._session else 0))
        content = self._session.seal(message) if self._session else message
        return self._encoder.encode(BYTES, content) if self._version == 1 else frame(content)

    # --- driven by the remote ---

    def receive(self, data: bytes, now: Now) -> tuple[bytes, list[Introduced | Message]]:
        """Take what arrived. Returns what to write, and what happened.

        Raises HandshakeError before the introduction is complete, and ProtocolError after.
        """
        self._feed(data)
        written = bytearray()
        events: list[Introduced | Message] = []
        try:
            while self._step(written, events, now):
                pass
        except HandshakeError:
            raise
        except (CodecError, ProtocolError) as error:
            raise self._error(str(error)) from error
        return bytes(written), events

    def end_of_stream(self) -> HandshakeError | ProtocolError:
        """Return what it means that the remote's stream ended here, in Go's words; "EOF" if between messages."""
        match self._stage:
            case _Stage.HEADER:
                return self._header_error("EOF" if not len(self._inbox) else "unexpected EOF")
            case _ if self._version == 1:
                return self._error("EOF" if self._decoder.at_end else "unexpected EOF")
            case _Stage.FLAG | _Stage.KEY:
                return self._error("EOF" if not len(self._inbox) else "unexpected EOF")
            case _:
                # Go reads length and content one after the other, and calls the end before either plain "EOF".
                return self._error("EOF" if len(self._inbox) in {0, LENGTH_BYTES} else "unexpected EOF")

    def broken(self, error: str) -> HandshakeError | ProtocolError:
        """Return what it means that the connection broke here, for which the system has the word `error`."""
        encrypting = self._stage is _Stage.KEY or (self._stage is _Stage.FEATURES and self._keys is not None)
        return self._error(f"{error}; {_PASSWORDS_DIFFER}" if encrypting else error)

    # --- driven by time ---

    def next_deadline(self) -> float:
        """Return when `handle_timer` has something to do, in monotonic seconds."""
        keys_due_s = None if self._session is None else self._session.next_deadline()
        due = (self._read_deadline_s, self._heartbeat_due_s, keys_due_s)
        return min(due_s for due_s in due if due_s is not None)

    def handle_timer(self, now: Now) -> bytes:
        """Return what is to be written: a heartbeat, or word that we move to another password, if it is time.

        Raises HandshakeError or ProtocolError if the remote is silent too long, or keeps to a retired password.
        """
        if now.monotonic_s >= self._read_deadline_s:
            raise self._header_error("i/o timeout") if self._stage is _Stage.HEADER else self._error("i/o timeout")
        written = b"" if self._session is None else self._framed(self._session.handle_timer(now))
        if self._heartbeat_due_s is None or now.monotonic_s < self._heartbeat_due_s:
            return written
        self._heartbeat_due_s = now.monotonic_s + HEARTBEAT_INTERVAL_S
        return written + self.send(HEARTBEAT_MESSAGE)

    # --- views ---

    @property
    def settled_on(self) -> Password | None:
        """The password that the remote has proved to know, if it has yet."""
        return None if self._session is None else self._session.settled_on

    @property
    def is_guessing(self) -> bool:
        """Whether we have sealed something with a password that the remote has not proved to know."""
        return self._session is not None and self._session.settled_on is None and self._session.can_seal

    @property
    def hint(self) -> Password | None:
        """The password of ours that the remote has, where we had guessed another."""
        return None if self._session is None else self._session.hint

    def passwords(self) -> frozenset[Password]:
        """Return those that are used at the moment, in either direction."""
        return frozenset() if self._session is None else self._session.passwords()

    def overlay_keys(self) -> OverlayKeys | None:
        """Return what an overlay seals and opens with, if it is to."""
        return None if self._session is None else self._session.overlay_keys()

    # --- the stages ---

    def _feed(self, data: bytes) -> None:
        if self._version == 1:
            self._decoder.feed(data)
        else:
            self._inbox.feed(data)
        if self._stage is _Stage.HELD:
            self._held_bytes += len(data)
            if self._held_bytes > MESSAGE_BYTES_MAX:
                raise ProtocolError(f"more than {MESSAGE_BYTES_MAX} bytes before the connection was added")

    def _step(self, written: bytearray, events: list[Introduced | Message], now: Now) -> bool:
        """Take one thing off what has arrived, and say whether there may be another."""
        match self._stage:
            case _Stage.HEADER:
                return self._read_header(written, now)
            case _Stage.FLAG:
                return self._read_flag(written)
            case _Stage.KEY:
                return self._read_key(written)
            case _Stage.FEATURES:
                introduced = self._read_features_v1(written) if self._version == 1 else self._read_features(written)
                if introduced is not None:
                    events.append(introduced)
                    self._restart_read_timeout(now)
                return self._unproved is not None
            case _Stage.PROOF:
                introduced = self._read_proof()
                if introduced is not None:
                    events.append(introduced)
                return False
            case _Stage.HELD:
                return False
            case _Stage.OPEN:
                return self._read_message(written, events, now)

    def _read_header(self, written: bytearray, now: Now) -> bool:
        header = self._inbox.take(HEADER_BYTES)
        if header is None:
            return False
        self._version = negotiate_version(header, self._options.min_version, self._options.max_version)
        self._restart_read_timeout(now)
        if self._version == 1:
            features = restrict_to_v1(self._features)
            if self._keys is not None:
                features[PUBLIC_KEY_V1] = self._keys.public.hex()
            written += self._encoder.encode(FEATURES, features)
            self._decoder.feed(self._inbox.take(len(self._inbox)) or b"")
            self._stage = _Stage.FEATURES
        else:
            written += b"\0" if self._keys is None else b"\1" + self._keys.public
            self._stage = _Stage.FLAG
        return True

    def _read_flag(self, written: bytearray) -> bool:
        flag = self._inbox.take(1)
        if flag is None:
            return False
        if flag[0] > 1:
            raise HandshakeError(f"Bad encryption flag {flag[0]}")
        self._check_passwords(they_encrypt=flag == b"\1")
        if flag == b"\1":
            self._stage = _Stage.KEY
        else:
            self._write_features(written)
        return True

    def _read_key(self, written: bytearray) -> bool:
        public = self._inbox.take(KEY_BYTES)
        if public is None:
            return False
        self._start_encryption(public)
        assert self._session is not None
        if self._session.speaks_first:
            self._write_features(written)
        self._stage = _Stage.FEATURES
        return True

    def _write_features(self, written: bytearray) -> None:
        content = encode_one(FEATURES, self._features)
        written += frame(self._session.seal(content) if self._session else content)
        self._stage = _Stage.FEATURES

    def _read_features(self, written: bytearray) -> Introduced | None:
        content = self._inbox.take_frame(FEATURES_BYTES_MAX)
        if content is None:
            return None
        if self._session is not None:
            waited = not self._session.can_seal
            try:
                content = self._session.open(content)
            except ProtocolError as error:
                raise HandshakeError(f"{error}; {_PASSWORDS_DIFFER}") from error
            if waited:
                self._write_features(written)
        features = Decoder(content).decode(FEATURES)
        return self._introduce(parse_features(features))

    def _read_features_v1(self, written: bytearray) -> Introduced | None:
        features = self._decoder.try_decode(FEATURES)
        if features is None:
            return None
        public = features.get(PUBLIC_KEY_V1)
        self._check_passwords(they_encrypt=public is not None)
        if public is not None:
            try:
                key = bytes.fromhex(public)
            except ValueError as error:
                raise HandshakeError("the public key is not in hexadecimal") from error
            if len(key) != KEY_BYTES:
                raise HandshakeError(f"a public key of {len(key)} bytes, expected {KEY_BYTES}")
            self._start_encryption(key)
        self._decoder.message_bytes_max = MESSAGE_BYTES_MAX + _GOB_OVERHEAD_BYTES
        remote = parse_features(restrict_to_v1(features))
        if self._session is not None and not self._session.can_seal:
            self._unproved = remote
            self._stage = _Stage.PROOF
            return None
        if self._session is not None and self._ring is not None and len(self._ring) > 1:
            # Somebody with several passwords waits for this; Weave takes a heartbeat at any time.
            written += self._encoder.encode(BYTES, self._session.seal(HEARTBEAT_MESSAGE))
        return self._introduce(remote)

    def _read_proof(self) -> Introduced | None:
        """Version 1's features are not sealed: the first message tells which password the remote has."""
        content = self._decoder.try_decode(BYTES)
        if content is None:
            return None
        assert self._session is not None
        assert self._unproved is not None
        self._proof = self._session.open(content)
        return self._introduce(self._unproved)

    def _introduce(self, remote: RemoteFeatures) -> Introduced:
        self._stage = _Stage.HELD
        self._moves = self._session is not None and self._options.can_move and remote.moves
        uid = ConnectionUID(self._connection_id ^ remote.connection_id)
        keys = self.overlay_keys()
        compact = self._options.compact and remote.compact
        return Introduced(remote, uid, None if keys is None else keys.sealing, self._version, compact)

    def _read_message(self, written: bytearray, events: list[Introduced | Message], now: Now) -> bool:
        v1 = self._version == 1
        content = self._decoder.try_decode(BYTES) if v1 else self._inbox.take_frame(MESSAGE_BYTES_MAX)
        if content is None:
            return False
        if self._session is not None:
            content = self._session.open(content)
        self._restart_read_timeout(now)
        if self._session is not None and self._moves and content[:1] == REKEY_MESSAGE:
            written += self._framed(self._session.control(content[1:], now))
        elif content:  # Weave logs an empty message and goes on
            events.append(Message(content[0], content[1:]))
        return True

    # --- details ---

    def _check_passwords(self, *, they_encrypt: bool) -> None:
        if self._keys is not None and not they_encrypt:
            raise HandshakeError(_PASSWORD_MISSING_THERE)
        if self._keys is None and they_encrypt:
            raise HandshakeError(_PASSWORD_MISSING_HERE)

    def _start_encryption(self, their_public: bytes) -> None:
        assert self._keys is not None
        assert self._ring is not None
        self._session = Session(shared_key(self._keys, their_public), self._ring, outbound=self._outbound)
        if self._session.speaks_first:
            self._session.begin(self._guess)

    def _framed(self, sealed: list[bytes]) -> bytes:
        assert self._version != 1 or not sealed, "version 1 knows of one password"
        return b"".join(frame(content) for content in sealed)

    def _restart_read_timeout(self, now: Now) -> None:
        self._read_deadline_s = now.monotonic_s + READ_TIMEOUT_S

    def _error(self, text: str) -> HandshakeError | ProtocolError:
        introduced = self._stage in {_Stage.HELD, _Stage.OPEN}
        return ProtocolError(text) if introduced else HandshakeError(text)

    def _header_error(self, reason: str) -> HandshakeError:
        got = self._inbox.peek()
        if not got:
            return HandshakeError(f"failed to receive remote protocol header: {reason}")
        return HandshakeError(
            f"received incomplete remote protocol header ({len(got)} octets instead of {HEADER_BYTES}): "
            f"{decimal_bytes(got)}; error: {reason}"
        )
