"""One mesh connection, from the first byte to the last, without touching a socket.

Three things drive it: bytes arriving (`receive`), the owner (`proceed`, `send`) and time (`handle_timer`). What it
wants written it returns.

    HEADER ──► FLAG ──► KEY ──► FEATURES ──► HELD ──► OPEN
        │       version 2 only    ▲
        └─────────────────────────┘ version 1

Neither side waits for the other within a step, but later steps depend on earlier ones: which version's bytes to write
is known when their header is here, and our features are sealed with a key that needs theirs. So the two ends run
through the stages side by side, whoever dialled; that matters to the nonces only.

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
from weavenet.mesh.crypto import KEY_BYTES, SEAL_BYTES, KeyPair, Opener, Sealer, session_key
from weavenet.mesh.wire import (
    FEATURES,
    HEADER_BYTES,
    HEARTBEAT_MESSAGE,
    LENGTH_BYTES,
    MESSAGE_BYTES_MAX,
    PUBLIC_KEY_V1,
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

    password: bytes | None
    min_version: int = VERSION_MIN
    max_version: int = VERSION_MAX
    overlays: str = "fastdp"


class Introduced(msgspec.Struct, frozen=True):
    """Both ends know each other. Nothing more is read before `proceed`."""

    features: RemoteFeatures
    uid: ConnectionUID
    session_key: bytes | None  # None: no password on either side
    version: int


class Message(msgspec.Struct, frozen=True):
    """A message arrived; heartbeats are messages, too."""

    tag: int
    payload: bytes


class _Stage(Enum):
    HEADER = "header"
    FLAG = "flag"
    KEY = "key"
    FEATURES = "features"
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
    ) -> None:
        """Draw the connection's number and, with a password, its keys. `trusted`: whether we trust their address."""
        self._options = options
        self._outbound = outbound
        self._connection_id = entropy.bits(64)
        self._keys = None if options.password is None else KeyPair.from_entropy(entropy.octets(KEY_BYTES))
        self._features = build_features(
            LocalFeatures(
                name=local.name,
                nickname=local.nickname,
                uid=local.uid,
                connection_id=self._connection_id,
                short_id=short_id,
                trusted=trusted,
                overlays=options.overlays,
            )
        )
        self._stage = _Stage.HEADER
        self._version = 0
        self._inbox = Inbox()
        self._held_bytes = 0
        # Version 1's two gob streams. The decoder takes over from the inbox behind the header.
        self._encoder = Encoder()
        self._decoder = Decoder(message_bytes_max=FEATURES_BYTES_MAX)
        self._session_key: bytes | None = None
        self._sealer: Sealer | None = None
        self._opener: Opener | None = None
        self._read_deadline_s = now.monotonic_s + HEADER_TIMEOUT_S
        self._heartbeat_due_s: float | None = None

    # --- driven by the owner ---

    def start(self) -> bytes:
        """Return what to write at once."""
        return build_header(self._options.min_version, self._options.max_version)

    def proceed(self, now: Now) -> list[Message]:
        """Start reading messages, and our heartbeat: the connection has been added.

        Returns the messages that had arrived already. Raises ProtocolError.
        """
        assert self._stage is _Stage.HELD
        self._stage = _Stage.OPEN
        self._heartbeat_due_s = now.monotonic_s + HEARTBEAT_INTERVAL_S
        self._read_deadline_s = now.monotonic_s + READ_TIMEOUT_S
        _, events = self.receive(b"", now)
        return [event for event in events if isinstance(event, Message)]

    def send(self, message: bytes) -> bytes:
        """Return a message framed and sealed. Raises ProtocolError if it is too long. Only after Introduced."""
        assert self._stage in {_Stage.HELD, _Stage.OPEN}
        # Before sealing: a message that was never sent must not use up a nonce.
        check_outgoing(len(message) + (SEAL_BYTES if self._sealer else 0))
        content = self._sealer.seal(message) if self._sealer else message
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
        if self._heartbeat_due_s is None:
            return self._read_deadline_s
        return min(self._read_deadline_s, self._heartbeat_due_s)

    def handle_timer(self, now: Now) -> bytes:
        """Return a heartbeat if it is time. Raises HandshakeError or ProtocolError if the remote is silent too long."""
        if now.monotonic_s >= self._read_deadline_s:
            raise self._header_error("i/o timeout") if self._stage is _Stage.HEADER else self._error("i/o timeout")
        if self._heartbeat_due_s is None or now.monotonic_s < self._heartbeat_due_s:
            return b""
        self._heartbeat_due_s = now.monotonic_s + HEARTBEAT_INTERVAL_S
        return self.send(HEARTBEAT_MESSAGE)

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
                introduced = self._read_features_v1() if self._version == 1 else self._read_features()
                if introduced is not None:
                    events.append(introduced)
                    self._restart_read_timeout(now)
                return False
            case _Stage.HELD:
                return False
            case _Stage.OPEN:
                return self._read_message(events, now)

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
        self._write_features(written)
        return True

    def _write_features(self, written: bytearray) -> None:
        content = encode_one(FEATURES, self._features)
        written += frame(self._sealer.seal(content) if self._sealer else content)
        self._stage = _Stage.FEATURES

    def _read_features(self) -> Introduced | None:
        content = self._inbox.take_frame(FEATURES_BYTES_MAX)
        if content is None:
            return None
        try:
            plain = self._opener.open(content) if self._opener else content
        except ProtocolError as error:
            raise HandshakeError(f"{error}; {_PASSWORDS_DIFFER}") from error
        return self._introduce(Decoder(plain).decode(FEATURES))

    def _read_features_v1(self) -> Introduced | None:
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
        return self._introduce(restrict_to_v1(features))

    def _introduce(self, features: dict[str, str]) -> Introduced:
        remote = parse_features(features)
        self._stage = _Stage.HELD
        uid = ConnectionUID(self._connection_id ^ remote.connection_id)
        return Introduced(remote, uid, self._session_key, self._version)

    def _read_message(self, events: list[Introduced | Message], now: Now) -> bool:
        v1 = self._version == 1
        content = self._decoder.try_decode(BYTES) if v1 else self._inbox.take_frame(MESSAGE_BYTES_MAX)
        if content is None:
            return False
        if self._opener is not None:
            content = self._opener.open(content)
        self._restart_read_timeout(now)
        if content:  # Weave logs an empty message and goes on
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
        assert self._options.password is not None
        self._session_key = session_key(self._keys, their_public, self._options.password)
        self._sealer = Sealer(self._session_key, outbound=self._outbound)
        self._opener = Opener(self._session_key, outbound=self._outbound)

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
