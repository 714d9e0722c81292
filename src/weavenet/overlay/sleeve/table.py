"""What the forwarder must know to move frames: the connections that have a sleeve, and who is behind which of them.

The agent makes it whole whenever something changes, so that the two processes cannot drift apart. What belongs to a
connection's life (its sequence numbers, what it has seen) is not in here: the forwarder keeps it under the connection's
number, for as long as the connection is in the table. That is also true of keys that are in the table no more: if one
comes back, its numbers go on.
"""

from collections.abc import Mapping

import msgspec

from weavenet.address import Endpoint
from weavenet.effects import ConnectionNumber
from weavenet.identity import PeerName, ShortID

MTU_MAX = 65_535


class SleeveConnection(msgspec.Struct, frozen=True):
    """A connection with a sleeve; `remote` is None until the peer was heard."""

    number: ConnectionNumber
    peer: PeerName
    remote: Endpoint | None
    key: bytes | None  # the key that datagrams are sealed with, if they are
    opening: tuple[bytes, ...]  # those that the peer's may be sealed with: more than one while passwords change
    dialled: bool
    mtu_bytes: int
    payload_bytes_max: int
    fragments_pass: bool
    fast_label: bytes | None = None  # what its datagrams in the fast format begin with, if both ends understand it

    def __repr__(self) -> str:
        return f"SleeveConnection({self.number} to {self.peer:012x} at {self.remote})"  # without the key


class SleeveTable(msgspec.Struct, frozen=True):
    """Everything the forwarder goes by."""

    ours: PeerName
    names: Mapping[ShortID, PeerName]  # those a short ID stands for, us among them
    connections: tuple[SleeveConnection, ...]
    routes: Mapping[ShortID, ConnectionNumber]  # destination -> the connection its frames leave by
    mtu_bytes: int = MTU_MAX  # of our bridge and of fastdp: larger packets pass neither
    held: frozenset[ShortID] = frozenset()  # destinations that this holds for: us, and who is reached by fastdp


EMPTY_TABLE = SleeveTable(PeerName(0), {}, (), {})
