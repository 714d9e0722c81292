"""Who a peer is: its name, its incarnation, and the short number the data plane knows it by.

A *peer name* is 48 bits, written like a MAC address, and stays the same across restarts. A *UID* is 64 random bits
drawn by each process, so a restarted peer can be told from its former self. A *short ID* is 12 random bits, small
enough for two of them to share a VXLAN network identifier. Source: docs/protocol.md, "Identity".
"""

from typing import NewType

from weavenet.errors import PeerNameError

PeerName = NewType("PeerName", int)
PeerUID = NewType("PeerUID", int)
ShortID = NewType("ShortID", int)
ConnectionUID = NewType("ConnectionUID", int)

UNKNOWN_PEER = PeerName(0)
UNKNOWN_UID = PeerUID(0)
NAME_BYTES = 6
SHORT_ID_BITS = 12
SHORT_ID_COUNT = 1 << SHORT_ID_BITS

_GROUPS = 6
_GROUP_DIGITS_MAX = 2
_ABBREVIATED_GROUPS_MAX = 4


def format_peer_name(name: PeerName) -> str:
    """Write a peer name as six lower-case two-digit groups, `7a:00:00:00:00:01`."""
    return ":".join(f"{byte:02x}" for byte in peer_name_to_bytes(name))


def peer_name_to_bytes(name: PeerName) -> bytes:
    """Return the six bytes of a name, big-endian; a longer number keeps its low 48 bits."""
    return (name & 0xFFFF_FFFF_FFFF).to_bytes(NAME_BYTES, "big")


def peer_name_from_bytes(raw: bytes) -> PeerName:
    """Fold bytes of any length, big-endian, as Weave does; bits beyond 64 fall off."""
    return PeerName(int.from_bytes(raw, "big") & 0xFFFF_FFFF_FFFF_FFFF)


def parse_peer_name(text: str) -> PeerName:
    """Read six hex groups, or fewer with one `::` standing for the zero groups that are missing.

    Raises PeerNameError for anything else.
    """
    if "::" not in text:
        groups = _parse_groups(text, text)
        if len(groups) != _GROUPS:
            raise PeerNameError(text)
        return peer_name_from_bytes(bytes(groups))
    head_text, _, tail_text = text.partition("::")
    head = _parse_groups(head_text, text) if head_text else []
    tail = _parse_groups(tail_text, text) if tail_text else []
    if not 1 <= len(head) + len(tail) <= _ABBREVIATED_GROUPS_MAX:
        raise PeerNameError(text)
    zeros = [0] * (_GROUPS - len(head) - len(tail))
    return peer_name_from_bytes(bytes(head + zeros + tail))


def _parse_groups(part: str, whole: str) -> list[int]:
    groups: list[int] = []
    for group in part.split(":"):
        if not 1 <= len(group) <= _GROUP_DIGITS_MAX or not set(group) <= set("0123456789abcdefABCDEF"):
            raise PeerNameError(whole)
        groups.append(int(group, 16))
    return groups
