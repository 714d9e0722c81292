"""VXLAN as fastdp uses it: a header of eight bytes whose network identifier holds two short IDs.

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +-+-+-+-+-+-+-+-+-----------------------------------------------+
    |R|R|R|R|I|R|R|R|                  reserved                     |
    +---------------+-----------------------+-----------------------+
    |     destination short ID (12) | origin short ID (12)          |   reserved (8) follows the 24 bits of the VNI
    +---------------------------------------------------------------+

RFC 7348 section 5 draws the header; that the VNI is not a network but a pair of peers is Weave's idea
(docs/protocol.md, "fastdp: encapsulation"). The origin stays the same while a frame is relayed.
"""

from weavenet.errors import CodecError, TruncatedError
from weavenet.identity import SHORT_ID_BITS, SHORT_ID_COUNT, ShortID

HEADER_BYTES = 8
VNI_COUNT = 1 << 24

_VALID_VNI = 0x08  # the I flag: there is a VNI
_SHORT_ID_MASK = SHORT_ID_COUNT - 1


def pack_vni(origin: ShortID, destination: ShortID) -> int:
    """Return the network identifier of frames from one peer to another."""
    assert 0 <= origin < SHORT_ID_COUNT, f"not a short ID: {origin}"
    assert 0 <= destination < SHORT_ID_COUNT, f"not a short ID: {destination}"
    return origin | destination << SHORT_ID_BITS


def split_vni(vni: int) -> tuple[ShortID, ShortID]:
    """Return origin and destination of a network identifier."""
    return ShortID(vni & _SHORT_ID_MASK), ShortID(vni >> SHORT_ID_BITS & _SHORT_ID_MASK)


def encode_header(vni: int) -> bytes:
    """Write the VXLAN header."""
    assert 0 <= vni < VNI_COUNT, f"a VNI has 24 bits: {vni}"
    return bytes((_VALID_VNI, 0, 0, 0)) + vni.to_bytes(3, "big") + b"\0"


def decode_header(datagram: bytes) -> int:
    """Read the VNI of a datagram. Raises TruncatedError, or CodecError where the header says that there is none."""
    if len(datagram) < HEADER_BYTES:
        raise TruncatedError(f"a VXLAN header has {HEADER_BYTES} bytes, here are {len(datagram)}")
    if not datagram[0] & _VALID_VNI:
        raise CodecError(f"a VXLAN header without a VNI: flags {datagram[0]:#04x}")
    return int.from_bytes(datagram[4:7], "big")
