"""What travels on a mesh connection: the header, the features both ends introduce themselves with, and messages.

    header     "weave", lowest version, highest version
    features   a gob map of texts: who I am, and what I can do
    frame      4 bytes of length, then that many bytes (version 2)
    message    a tag byte, then what the tag says

Everything here is bytes to values and back; when what is expected is connection.py's business. Source:
docs/protocol.md, "Mesh: Connection introduction" and "Protocol messages"; Weave's mesh/protocol.go, connection.go and
gossip_channel.go.
"""

import json
from collections.abc import Mapping
from enum import IntEnum

import msgspec

from weavenet.codec.gob import BYTES, STRING, UINT64, Decoder, Encoder, map_of
from weavenet.errors import HandshakeError, PeerNameError, ProtocolError
from weavenet.identity import SHORT_ID_BITS, PeerName, PeerUID, ShortID, format_peer_name, parse_peer_name

MAGIC = b"weave"
HEADER_BYTES = len(MAGIC) + 2
VERSION_MIN = 1
VERSION_MAX = 2
# Of a frame's content in version 2, sealed or not. Weave has no limit in version 1; we use the same.
MESSAGE_BYTES_MAX = 10 * 1024 * 1024
LENGTH_BYTES = 4

FEATURES = map_of(STRING, STRING)
# The features that version 1 knows. Everything else is dropped by its receiver.
FEATURES_V1 = ("ConnID", "Name", "NickName", "PeerNameFlavour", "UID")
PUBLIC_KEY_V1 = "PublicKey"
# Ours: the sender can move an encrypted connection to another password. Weave ignores what it does not know.
REKEY, REKEY_VERSION = "Rekey", "1"
# Ours, too: formats of sleeve's datagrams that the sender understands, beside Weave's.
SLEEVE_FORMATS = "SleeveFormats"
# Ours: the sender can compare state instead of telling it (exchange.py).
COMPACT, COMPACT_VERSION = "WeavenetGossip", "1"
_FLAVOUR = "mac"
_REQUIRED = ("PeerNameFlavour", "Name", "NickName", "UID", "ConnID")
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
# How much of a stranger's text goes into an error.
_QUOTED_CHARACTERS_MAX = 80


# --- header -----------------------------------------------------------------------------------------------------------


def build_header(version_min: int, version_max: int) -> bytes:
    """Return the seven bytes that open a connection."""
    return MAGIC + bytes([version_min, version_max])


def negotiate_version(header: bytes, version_min: int, version_max: int) -> int:
    """Return the version to speak, given their seven bytes. Raises HandshakeError if there is none in common."""
    magic, (their_min, their_max) = header[: len(MAGIC)], header[len(MAGIC) :]
    if magic != MAGIC:
        raise HandshakeError(f"remote protocol header not recognised: {decimal_bytes(magic)}")
    version = min(version_max, their_max)
    if max(version_min, their_min) > version:
        raise HandshakeError(
            f"remote version range [{their_min},{their_max}] is incompatible with ours [{version_min},{version_max}]"
        )
    return version


def decimal_bytes(raw: bytes) -> str:
    """Write bytes as Go prints them, `[119 101]`."""
    return f"[{' '.join(map(str, raw))}]"


# --- features ---------------------------------------------------------------------------------------------------------


class LocalFeatures(msgspec.Struct, frozen=True):
    """What we say of ourselves."""

    name: PeerName
    nickname: str
    uid: PeerUID
    connection_id: int
    short_id: ShortID
    trusted: bool
    overlays: str
    sleeve_formats: str = ""


class RemoteFeatures(msgspec.Struct, frozen=True):
    """What a remote says of itself. In version 1 it has no short ID, trusts nobody and names no overlays."""

    name: PeerName
    nickname: str
    uid: PeerUID
    connection_id: int
    short_id: ShortID | None
    trusted: bool  # whether the remote trusts our address
    overlays: tuple[str, ...] | None  # in its order of preference
    sleeve_formats: tuple[str, ...] = ()  # ours: those beside Weave's that it understands
    moves: bool = False  # whether it can move to another password (session.py)
    compact: bool = False  # whether it can compare state (exchange.py)


def build_features(local: LocalFeatures) -> dict[str, str]:
    """Return the map to send in version 2."""
    features = {
        "PeerNameFlavour": _FLAVOUR,
        "Name": format_peer_name(local.name),
        "NickName": local.nickname,
        "ShortID": str(local.short_id),
        "UID": str(local.uid),
        "ConnID": str(local.connection_id),
        "Trusted": "true" if local.trusted else "false",
        "Overlays": local.overlays,
    }
    if local.sleeve_formats:
        features[SLEEVE_FORMATS] = local.sleeve_formats
    return features


def restrict_to_v1(features: Mapping[str, str]) -> dict[str, str]:
    """Return only what version 1 knows, for the map we send and for the one we got."""
    return {key: text for key, text in features.items() if key in FEATURES_V1}


def parse_features(features: Mapping[str, str]) -> RemoteFeatures:
    """Read a remote's map. Raises HandshakeError for what is missing or malformed; unknown keys are ignored."""
    for key in _REQUIRED:
        if key not in features:
            raise HandshakeError(f"field {key} is missing")
    flavour = features["PeerNameFlavour"]
    if flavour != _FLAVOUR:
        raise HandshakeError(
            f"Peer name flavour mismatch (ours: '{_FLAVOUR}', theirs: '{flavour[:_QUOTED_CHARACTERS_MAX]}')"
        )
    short_id = features.get("ShortID")
    trusted = features.get("Trusted")
    overlays = features.get("Overlays")
    return RemoteFeatures(
        name=_parse_name(features["Name"]),
        nickname=features["NickName"],
        uid=PeerUID(_parse_uint(features["UID"], 64)),
        connection_id=_parse_uint(features["ConnID"], 64),
        short_id=None if short_id is None else ShortID(_parse_uint(short_id, SHORT_ID_BITS)),
        trusted=trusted is not None and _parse_bool(trusted),
        overlays=None if overlays is None else tuple(overlays.split(" ")),
        sleeve_formats=tuple(features.get(SLEEVE_FORMATS, "").split()),
        moves=features.get(REKEY) == REKEY_VERSION,
        compact=features.get(COMPACT) == COMPACT_VERSION,
    )


def _parse_name(text: str) -> PeerName:
    try:
        return parse_peer_name(text)
    except PeerNameError as error:
        raise HandshakeError(str(PeerNameError(text[:_QUOTED_CHARACTERS_MAX]))) from error


def _parse_uint(text: str, bits: int) -> int:
    """Read a decimal number as Go's strconv.ParseUint does: digits only, leading zeros allowed."""
    if not (text.isascii() and text.isdigit()):
        raise HandshakeError(f"strconv.ParseUint: parsing {_quote(text)}: invalid syntax")
    digits = text.lstrip("0")
    # The length first: int() takes its time with thousands of digits.
    if len(digits) > 20 or int(digits or "0") >> bits:
        raise HandshakeError(f"strconv.ParseUint: parsing {_quote(text)}: value out of range")
    return int(digits or "0")


def _parse_bool(text: str) -> bool:
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise HandshakeError(f"strconv.ParseBool: parsing {_quote(text)}: invalid syntax")


def _quote(text: str) -> str:
    return json.dumps(text[:_QUOTED_CHARACTERS_MAX])


# --- frames -----------------------------------------------------------------------------------------------------------


def frame(content: bytes) -> bytes:
    """Put a length before a message. Raises ProtocolError if it is too long to send."""
    check_outgoing(len(content))
    return len(content).to_bytes(LENGTH_BYTES, "big") + content


def check_outgoing(length_bytes: int) -> None:
    """Raise ProtocolError if a message is too long to send."""
    if length_bytes > MESSAGE_BYTES_MAX:
        raise ProtocolError(f"outgoing message exceeds maximum size: {length_bytes} > {MESSAGE_BYTES_MAX}")


class Inbox:
    """Bytes that have arrived and wait for the rest of what they belong to.

    It never holds more than one incomplete frame and what came with it, because a frame too long is refused by its
    length. Bytes are appended at the back and cut off at the front, both of which a bytearray does without copying.
    """

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        """Start empty."""
        self._buffer = bytearray()

    def __len__(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Add what arrived."""
        self._buffer += data

    def peek(self) -> bytes:
        """Return all that waits, and keep it."""
        return bytes(self._buffer)

    def take(self, count: int) -> bytes | None:
        """Return that many bytes, or None if they have not all arrived."""
        return None if len(self._buffer) < count else self._cut(0, count)

    def take_frame(self, bytes_max: int) -> bytes | None:
        """Return the content of the next frame, or None if it is not complete. Raises ProtocolError if too long."""
        if len(self._buffer) < LENGTH_BYTES:
            return None
        length = int.from_bytes(self._buffer[:LENGTH_BYTES], "big")
        if length > bytes_max:
            raise ProtocolError(f"incoming message exceeds maximum size: {length} > {bytes_max}")
        return None if len(self._buffer) < LENGTH_BYTES + length else self._cut(LENGTH_BYTES, length)

    def _cut(self, start: int, count: int) -> bytes:
        content = bytes(memoryview(self._buffer)[start : start + count])
        del self._buffer[: start + count]
        return content


# --- messages ---------------------------------------------------------------------------------------------------------


class Tag(IntEnum):
    """The first byte of a message. A tag not listed is ignored, as is a message without one."""

    HEARTBEAT = 0
    # Between peers of which one named no overlays: what sleeve would otherwise say in an OVERLAY_CONTROL.
    CONNECTION_ESTABLISHED = 1
    FRAGMENTATION_RECEIVED = 2
    PMTU_VERIFIED = 3
    GOSSIP = 4
    GOSSIP_UNICAST = 5
    GOSSIP_BROADCAST = 6
    OVERLAY_CONTROL = 7
    # Ours, and only between peers that both sent the feature Rekey: see session.py.
    REKEY = 0x77
    # Ours, and only between peers that both sent the feature WeavenetGossip: see compact.py.
    COMPACT = 0x78


HEARTBEAT_MESSAGE = bytes([Tag.HEARTBEAT])
REKEY_MESSAGE = bytes([Tag.REKEY])


def build_message(tag: Tag, payload: bytes) -> bytes:
    """Return a message ready to be framed and sealed."""
    return bytes([tag]) + payload


class GossipMessage(msgspec.Struct, frozen=True):
    """The envelope of gossip. `source` is the immediate sender of a GOSSIP, and the origin of the other two."""

    channel: str
    source: PeerName
    destination: PeerName | None  # of a GOSSIP_UNICAST
    data: bytes


def build_gossip(tag: Tag, gossip: GossipMessage) -> bytes:
    """Return a whole gossip message: the tag, and a gob stream of its own."""
    assert (gossip.destination is not None) == (tag is Tag.GOSSIP_UNICAST)
    encoder = Encoder()
    parts = [bytes([tag]), encoder.encode(STRING, gossip.channel), encoder.encode(UINT64, gossip.source)]
    if gossip.destination is not None:
        parts.append(encoder.encode(UINT64, gossip.destination))
    parts.append(encoder.encode(BYTES, gossip.data))
    return b"".join(parts)


def parse_gossip(tag: Tag, payload: bytes) -> GossipMessage:
    """Read the payload of a gossip message. Raises CodecError. Like Go, it does not look behind the last value."""
    decoder = Decoder(payload)
    channel = decoder.decode(STRING)
    source = PeerName(decoder.decode(UINT64))
    destination = PeerName(decoder.decode(UINT64)) if tag is Tag.GOSSIP_UNICAST else None
    return GossipMessage(channel, source, destination, decoder.decode(BYTES))
