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
_NO_HEADER = bytes(ETHERNET_HEADER_BYTES)


class SpecialKind(Enum):
    """What a frame of the overlay's own says, by its length."""

    HEARTBEAT = auto()
    FRAGMENTATION_TEST = auto()
    MTU_TEST = auto()


def overhead_bytes(*, sealed: bool) -> int:
    """Return by how much the path's MTU exceeds that of the overlay: 62 plain, 86 sealed."""
    packet = SEALED_OVERHEAD_BYTES if sealed else PLAIN_OVERHEAD_BYTES
    return UDP_OVERHEAD_BYTES + packet + FRAME_HEADER_BYTES + ETHERNET_HEADER_BYTES


def encode_frame_header(origin: PeerName, destination: PeerName, length: int) -> bytes:
    """Write what goes before a frame."""
    return names_of(origin, destination) + length.to_bytes(2, "big")


def split_frames(payload: bytes, at: int = 0) -> tuple[list[tuple[bytes, bytes]], str]:
    """Read the frames of a datagram from `at`, each as the names of both peers and what it carries; and what is wrong.

    Frames before the fault are good ones; a blank text is none. Every packet comes by here: no objects but buffers.
    """
    frames: list[tuple[bytes, bytes]] = []
    end = len(payload)
    while at < end:
        start = at + FRAME_HEADER_BYTES
        if start > end:
            return frames, f"Failed to decode packet: {end - at} octets of trailing garbage"
        stop = start + (payload[start - 2] << 8 | payload[start - 1])
        if stop > end:
            problem = f"too short; expected frame of length {stop - start}, got {end - start}"
            return frames, f"Failed to decode packet: {problem}"
        frames.append((payload[at : start - 2], payload[start:stop]))
        at = stop
    return frames, ""


def peers_of(names: bytes) -> tuple[PeerName, PeerName]:
    """Return the origin and the destination that stand before a frame."""
    return PeerName(int.from_bytes(names[:NAME_BYTES], "big")), PeerName(int.from_bytes(names[NAME_BYTES:], "big"))


def names_of(origin: PeerName, destination: PeerName) -> bytes:
    """Write them."""
    return (origin << 48 | destination).to_bytes(2 * NAME_BYTES, "big")


# --- special frames ---------------------------------------------------------------------------------------------------


def is_special(frame: bytes) -> bool:
    """Whether a frame is the overlay's own: both MACs and the EtherType are zero."""
    return frame.startswith(_NO_HEADER)


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
