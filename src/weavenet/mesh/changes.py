"""Records told by how they differ from earlier ones.

A record lists all connections of its peer, and what changes is one of them at a time: the whole has kilobytes, the
change some fifty bytes. Whoever asks for a record says which one it has; if that is among the few that are kept of each
peer (topology.py), the answer is the difference, and otherwise the whole. A receiver that does not have the base after
all, because another answer was faster, drops the change: it has something as good, or the next digest will tell.
"""

import dataclasses
from functools import lru_cache
from types import MappingProxyType

from weavenet.identity import PeerName, ShortID
from weavenet.mesh.compact import CHANGED_CONNECTIONS_MAX, Base, ChangedConnection, RecordChange
from weavenet.mesh.records import Peer, PeerConnection, decode_record, encode_record
from weavenet.mesh.topology import Topology

# A change may come twice, and in one process, as in the simulator, the same one comes to a thousand peers. Those of
# records with up to some 50 connections are kept; they have 10 KiB each.
_KEPT_MAX = 512
_KEPT_BASE_BYTES_MAX = 2 << 10
# A change that is longer than this part of the record is not worth its base.
_WORTH = 2


def change_since(topology: Topology, base: Base) -> RecordChange | None:
    """Return how our record of a peer differs from the one that a remote has, if we still know that one."""
    peer = topology[PeerName(base.name)]
    if peer.uid != base.uid:
        return None
    for former in topology.former(peer.name):
        if former.version == base.number:
            return _difference(former, peer)
    return None


def _difference(former: Peer, peer: Peer) -> RecordChange | None:
    put = [
        ChangedConnection(name, each.address, each.outbound, each.established)
        for name, each in sorted(peer.connections.items())
        if former.connections.get(name) != each
    ]
    gone = sorted(former.connections.keys() - peer.connections.keys())
    count = len(put) + len(gone)
    if count > CHANGED_CONNECTIONS_MAX or count * _WORTH > len(peer.connections) + _WORTH:
        return None
    return RecordChange(peer.name, peer.uid, former.version, peer.version, peer.short_id, put, [*gone])


def apply_change(topology: Topology, change: RecordChange) -> Peer | None:
    """Return the record that a change makes of ours; None if that is not the change's base."""
    known = topology.get(PeerName(change.name))
    if known is None or known.uid != change.uid or known.version != change.base or change.number <= change.base:
        return None
    put = tuple((PeerName(each.name), each.address, each.outbound, each.established) for each in change.put)
    short_id = None if change.short_id is None else ShortID(change.short_id)
    base = encode_record(known)
    apply = _apply if len(base) <= _KEPT_BASE_BYTES_MAX else _apply.__wrapped__
    return apply(base, change.number, short_id, put, tuple(change.gone))


@lru_cache(maxsize=_KEPT_MAX)
def _apply(
    base: bytes,
    version: int,
    short_id: ShortID | None,
    put: tuple[tuple[PeerName, str, bool, bool], ...],
    gone: tuple[PeerName, ...],
) -> Peer:
    known = decode_record(base)
    connections = {name: each for name, each in known.connections.items() if name not in gone}
    for name, address, outbound, established in put:
        connections[name] = PeerConnection(address, outbound, established)
    links = MappingProxyType(dict(sorted(connections.items())))
    made = dataclasses.replace(known, version=version, short_id=short_id, connections=links)
    # The same object as if the record had come as a whole, from somebody else or in periodic gossip.
    return decode_record(encode_record(made))
