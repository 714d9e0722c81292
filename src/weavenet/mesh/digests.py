"""Hashes of a topology: of all of it, and of its parts.

Two tables with equal hashes hold the same version of every record, and versions are all that decides which record is
better, so nothing else is hashed. A table is cut into *buckets* by name; with about eight records in each, one that
differs costs a few hundred bytes to find out. Hashes are made when they are asked for and kept until the table
changes: at rest that is never, and while it changes the asking is what is rare.

The hash is BLAKE2b cut to 64 bits, over versions in order. Sums and exclusive ors of a hash per record would be cheaper
to keep up, but a peer could then make up records that cancel each other.
"""

from collections.abc import Sequence
from hashlib import blake2b
from struct import Struct

import msgspec

from weavenet.identity import PeerName
from weavenet.mesh.compact import BUCKETS_MAX, HASH_BYTES, Version
from weavenet.mesh.topology import Topology

RECORDS_PER_BUCKET = 8
_PACKED = Struct(">QQQ?")
# Fibonacci hashing: names are often numbered in sequence, or share all but a few bytes.
_SPREAD, _SPREAD_BITS = 0x9E37_79B9_7F4A_7C15, 64


def bucket_count(records: int) -> int:
    """Return into how many buckets a table of that size is cut: a power of two."""
    return min(BUCKETS_MAX, 1 << max(0, (records // RECORDS_PER_BUCKET).bit_length() - 1))


def bucket_of(name: PeerName, count: int) -> int:
    """Return the number of the bucket that a name belongs to."""
    spread = name * _SPREAD & (1 << _SPREAD_BITS) - 1
    return spread >> _SPREAD_BITS - (count.bit_length() - 1)


class _Parts(msgspec.Struct, frozen=True):
    """What was made of one state of the table, for one number of buckets."""

    generation: int
    buckets: Sequence[Sequence[Version]]
    hashes: Sequence[bytes]


class Digester:
    """The hashes of one table."""

    def __init__(self, topology: Topology) -> None:
        """Hash this table as it will be."""
        self._topology = topology
        self._kept: dict[int, _Parts] = {}

    def version(self, name: PeerName) -> Version:
        """Return which record we have of a peer that we know."""
        peer = self._topology[name]
        return Version(name, peer.uid, peer.version, peer.short_id is not None)

    def whole(self) -> bytes:
        """Return the hash of all of it."""
        return self._parts(1).hashes[0]

    def hashes(self, count: int) -> Sequence[bytes]:
        """Return the hash of each of so many buckets."""
        return self._parts(count).hashes

    def bucket(self, number: int, count: int) -> Sequence[Version]:
        """Return what is in one of so many buckets, by name."""
        return self._parts(count).buckets[number]

    def _parts(self, count: int) -> _Parts:
        kept = self._kept.get(count)
        if kept is None or kept.generation != self._topology.generation:
            # A remote chooses the number. Beside the whole, what was made for the last one is kept.
            self._kept = {size: parts for size, parts in self._kept.items() if size == 1}
            buckets: list[list[Version]] = [[] for _ in range(count)]
            for name in self._topology:
                buckets[bucket_of(name, count)].append(self.version(name))
            hashes = [_hash(versions) for versions in buckets]
            kept = self._kept[count] = _Parts(self._topology.generation, buckets, hashes)
        return kept


def _hash(versions: Sequence[Version]) -> bytes:
    packed = b"".join(_PACKED.pack(each.name, each.uid, each.number, each.has_short_id) for each in versions)
    return blake2b(packed, digest_size=HASH_BYTES).digest()


def split_hashes(hashes: bytes) -> list[bytes]:
    """Return the hashes that were joined for a message."""
    return [hashes[start : start + HASH_BYTES] for start in range(0, len(hashes), HASH_BYTES)]
