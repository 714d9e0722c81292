"""What is in a sleeve datagram.

    plain                                     sealed (crypto.py)
    0   6  the peer that sends this           0   6  the peer that sends this
    6      frames                             6   8  don't-fragment flag (bit 63) and sequence number
                                             14      secretbox of the frames

    a frame:  0   6  origin
              6   6  destination
             12   2  length n, big-endian
             14   n  Ethernet

The sending peer is that of this hop; it says which connection the datagram belongs to. Frames of several origins and
destinations may share a datagram. What is malformed costs the rest of that datagram and nothing else: stray ones of an
earlier connection are normal. Source: docs/protocol/sleeve.md, B2 and B4.
"""

from enum import Enum, auto

import msgspec

from weavenet.codec.ip import ETHERNET_HEADER_BYTES
from weavenet.identity import ConnectionUID, PeerName

NAME_BYTES = 6
FRAME_HEADER_BYTES = 14
PLAIN_OVERHEAD_BYTES = NAME_BYTES
SEALED_OVERHEAD_BYTES = NAME_BYTES + 8 + 16  # name, sequence number, Poly1305 tag
UDP_OVERHEAD_BYTES = 28  # IPv4 and UDP headers
DATAGRAM_BYTES_MAX = 65_507  # of UDP payload
FRAMES_PER_DATAGRAM_MAX = 100  # the reference stops there to look at other things

FRAGMENTATION_TEST_BYTES = 60_001
PMTU_PROBE_BYTES = 60_000
_HEARTBEAT_BYTES = ETHERNET_HEADER_BYTES + 8


class Carried(msgspec.Struct, frozen=True):
    """A frame on its way from one peer to another."""

    origin: PeerName
    destination: PeerName
    frame: bytes


class SpecialKind(Enum):
    """What a frame of the overlay's own says, by its length."""

    HEARTBEAT = auto()
    FRAGMENTATION_TEST = auto()
    MTU_TEST = auto()


def overhead_bytes(*, sealed: bool) -> int:
    """Return by how much the path's MTU exceeds that of the overlay: 62 plain, 86 sealed."""
    packet = SEALED_OVERHEAD_BYTES if sealed else PLAIN_OVERHEAD_BYTES
    return UDP_OVERHEAD_BYTES + packet + FRAME_HEADER_BYTES + ETHERNET_HEADER_BYTES


def encode_frame(carried: Carried) -> bytes:
    """Write a frame as it stands in a datagram."""
    return encode_frame_header(carried.origin, carried.destination, len(carried.frame)) + carried.frame


def encode_frame_header(origin: PeerName, destination: PeerName, length: int) -> bytes:
    """Write what goes before a frame."""
    return (origin << 64 | destination << 16 | length).to_bytes(FRAME_HEADER_BYTES, "big")


def decode_frames(payload: bytes) -> tuple[list[Carried], str]:
    """Read the frames of a datagram, what follows the sender's name; and what is wrong with it, blank for nothing.

    Frames before the fault are good ones.
    """
    frames: list[Carried] = []
    at, end = 0, len(payload)
    while at < end:
        if end - at < FRAME_HEADER_BYTES:
            return frames, f"Failed to decode packet: {end - at} octets of trailing garbage"
        start = at + FRAME_HEADER_BYTES
        length = payload[at + 12] << 8 | payload[at + 13]
        if length > end - start:
            problem = f"too short; expected frame of length {length}, got {end - start}"
            return frames, f"Failed to decode packet: {problem}"
        origin = PeerName(int.from_bytes(payload[at : at + 6], "big"))
        destination = PeerName(int.from_bytes(payload[at + 6 : at + 12], "big"))
        frames.append(Carried(origin, destination, payload[start : start + length]))
        at = start + length
    return frames, ""


# --- special frames ---------------------------------------------------------------------------------------------------


def is_special(frame: bytes) -> bool:
    """Whether a frame is the overlay's own: both MACs and the EtherType are zero."""
    return len(frame) >= ETHERNET_HEADER_BYTES and not any(frame[:ETHERNET_HEADER_BYTES])


def special_kind_of(length: int) -> SpecialKind:
    """Say what a special frame of that length is for."""
    kinds = {
        _HEARTBEAT_BYTES: SpecialKind.HEARTBEAT,
        FRAGMENTATION_TEST_BYTES: SpecialKind.FRAGMENTATION_TEST,
    }
    return kinds.get(length, SpecialKind.MTU_TEST)


def encode_heartbeat(uid: ConnectionUID) -> bytes:
    """Write the heartbeat of a connection."""
    return bytes(ETHERNET_HEADER_BYTES) + uid.to_bytes(8, "big")


def heartbeat_uid(frame: bytes) -> ConnectionUID:
    """Return the connection that a heartbeat is of."""
    assert len(frame) >= _HEARTBEAT_BYTES
    return ConnectionUID(int.from_bytes(frame[ETHERNET_HEADER_BYTES:_HEARTBEAT_BYTES], "big"))


def is_too_big(frame_bytes: int, mtu_bytes: int) -> bool:
    """Whether a frame of that length exceeds an MTU, which does not count the Ethernet header."""
    return frame_bytes > mtu_bytes + ETHERNET_HEADER_BYTES
