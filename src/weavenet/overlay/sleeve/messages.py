"""What the agent and the forwarder tell each other: length-prefixed MessagePack on a socket pair.

The forwarder reads what peers send before anybody has looked at it, so nothing it says is trusted further than this:
it can claim that a special frame came, or that the kernel refused something, and no more.
"""

import msgspec

from weavenet.address import Endpoint
from weavenet.effects import ConnectionNumber
from weavenet.overlay.sleeve.table import SleeveTable

LENGTH_BYTES = 4
MESSAGE_BYTES_MAX = 16 << 20


class TableMessage(msgspec.Struct, tag="table", frozen=True):
    """Go by this table."""

    table: SleeveTable


class SendMessage(msgspec.Struct, tag="send", frozen=True):
    """Send a frame of the overlay's own."""

    connection: ConnectionNumber
    frame: bytes
    dont_fragment: bool


class SpecialMessage(msgspec.Struct, tag="special", frozen=True):
    """A frame of the overlay's own came; as pipe.Special."""

    connection: ConnectionNumber
    remote: Endpoint
    length: int
    head: bytes
    intact: bool


class TooBigMessage(msgspec.Struct, tag="too_big", frozen=True):
    """The kernel refused a datagram: the path takes packets of that many bytes."""

    connection: ConnectionNumber
    pmtu_bytes: int


class FailedMessage(msgspec.Struct, tag="failed", frozen=True):
    """The kernel will not send to a connection's peer."""

    connection: ConnectionNumber
    error: str


class CountersMessage(msgspec.Struct, tag="counters", frozen=True):
    """What has happened since the forwarder's start."""

    counters: dict[str, int]


ToForwarder = TableMessage | SendMessage
FromForwarder = SpecialMessage | TooBigMessage | FailedMessage | CountersMessage

_to_forwarder = msgspec.msgpack.Decoder(ToForwarder)
_from_forwarder = msgspec.msgpack.Decoder(FromForwarder)


def encode(message: ToForwarder | FromForwarder) -> bytes:
    """Write a message with its length before it."""
    body = msgspec.msgpack.encode(message)
    assert len(body) <= MESSAGE_BYTES_MAX
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def decode_to_forwarder(body: bytes) -> ToForwarder:
    """Read what the agent says."""
    message: ToForwarder = _to_forwarder.decode(body)
    return message


def decode_from_forwarder(body: bytes) -> FromForwarder:
    """Read what the forwarder says. Raises msgspec.MsgspecError."""
    try:
        message: FromForwarder = _from_forwarder.decode(body)
    except UnicodeDecodeError as error:  # a text that is none, which the decoder does not make an error of its own
        raise msgspec.ValidationError(f"the forwarder says what is no text: {error}") from error
    return message
