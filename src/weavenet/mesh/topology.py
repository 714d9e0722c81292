"""The peers of the mesh and their connections, as every peer tells it to every other.

Each peer is the only author of its own record: its nickname, its short ID, and the list of its connections. It numbers
the versions of that record, so of two that meet the higher version wins, and copies may travel by any way, late, twice
or out of order. A restarted peer begins again at version 0 with another UID. What it hears about its former life makes
it jump past that version; until then a higher UID decides between equal versions, which is arbitrary and enough.

A connection list may name peers whose own record has not come yet. They enter as *placeholders* with UID 0 and
version 0, which any real record beats, because a route may lead through them and their names must be passed on. What
can no longer be reached over anybody's connections is collected as garbage, unless a local connection still refers
to it.

A mapping from name to record is all that others see of it (routes.py takes it for a graph). Source: docs/protocol.md,
"Topology", and Weave's mesh peers.go and peer.go.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import msgspec
from msgspec.structs import replace

from weavenet.effects import Entropy
from weavenet.errors import GossipError
from weavenet.identity import PeerName, ShortID
from weavenet.mesh.records import Peer, PeerConnection, decode_update, encode_record, join_records
from weavenet.mesh.routes import walk
from weavenet.mesh.short_ids import ShortIDs

# What is in a topology comes with it.
__all__ = ["CONNECTIONS_MAX", "PEERS_MAX", "Change", "Peer", "PeerConnection", "Topology"]

# What lying peers can make us remember. Weave has no limits here; short IDs stop being useful at 4096 peers, and its
# connection limit is 200, so these leave room for meshes larger than any that can work.
PEERS_MAX = 20_000
CONNECTIONS_MAX = 1 << 21
# Kept of each peer beside the present one: whoever has one of these can be told what has changed since. Records that
# follow each other within the second for which news wait share almost all, and a mesh hears of most of them.
FORMER_RECORDS = 4

_VERSION_MASK = 0xFFFF_FFFF_FFFF_FFFF


class Change(msgspec.Struct, frozen=True):
    """What an operation did. Names are in order and each there once."""

    mentioned: tuple[PeerName, ...] = ()  # all that had a summary in the update
    improved: tuple[PeerName, ...] = ()  # those whose summary was news
    removed: tuple[Peer, ...] = ()
    ours: bool = False  # our own record has a new version, which the others should hear
    short_ids: bool = False  # a short ID was taken, freed, or means somebody else
    invalidated: bool = False  # a short ID means somebody else than it once did


class Topology(Mapping[PeerName, Peer]):
    """The peer table of one peer: a mapping from name to record that always holds ourself."""

    def __init__(self, ourself: Peer, entropy: Entropy) -> None:
        """Begin with a record for ourself. Entropy is for new short IDs."""
        self._us = ourself.name
        self._entropy = entropy
        self._peers: dict[PeerName, Peer] = {}
        self._references: dict[PeerName, int] = {}
        self._connections_count = 0
        self._generation = 0
        self._former: dict[PeerName, tuple[Peer, ...]] = {}
        self._encoded = _Encoded(-1, frozenset(), [])
        self.short_ids = ShortIDs()
        self._marks = _Marks()
        self._put(ourself)
        self._take_marks()

    def __getitem__(self, name: PeerName) -> Peer:
        return self._peers[name]

    def __iter__(self) -> Iterator[PeerName]:
        return iter(sorted(self._peers))

    def __len__(self) -> int:
        return len(self._peers)

    @property
    def generation(self) -> int:
        """A number that grows with every change of any record."""
        return self._generation

    def former(self, name: PeerName) -> Sequence[Peer]:
        """Return a few earlier records of a peer, of the same life as the present one."""
        return self._former.get(name, ())

    @property
    def ourself(self) -> Peer:
        """Our own record."""
        return self._peers[self._us]

    def principal(self, short_id: ShortID) -> PeerName | None:
        """Return the peer that a short ID stands for."""
        return self.short_ids.principal(short_id)

    def short_id(self, name: PeerName) -> ShortID | None:
        """Return a peer's short ID, which may stand for another peer at the moment."""
        peer = self._peers.get(name)
        return None if peer is None else peer.short_id

    def is_known(self, name: PeerName) -> bool:
        """Say whether there is a record, or a placeholder, of that name."""
        return name in self._peers

    def nickname(self, name: PeerName) -> str | None:
        """Return a peer's nickname; empty for a placeholder."""
        peer = self._peers.get(name)
        return None if peer is None else peer.nickname

    # --- our own record -----------------------------------------------------------------------------------------------

    def set_connection(self, remote: PeerName, connection: PeerConnection) -> None:
        """Publish a connection of ours, new or changed."""
        self._publish({**self.ourself.connections, remote: connection})

    def delete_connection(self, remote: PeerName) -> None:
        """Publish that a connection of ours is gone."""
        connections = dict(self.ourself.connections)
        del connections[remote]
        self._publish(connections)

    def _publish(self, connections: dict[PeerName, PeerConnection]) -> None:
        us = self.ourself
        self._put(
            dataclasses.replace(us, version=us.version + 1 & _VERSION_MASK, connections=MappingProxyType(connections))
        )

    # --- local connections --------------------------------------------------------------------------------------------

    def register(self, peer: Peer) -> Change:
        """Add a peer that introduced itself, unless its name is known: then nothing is learnt from the introduction.

        Raises GossipError if the table is full.
        """
        if peer.name not in self._peers:
            self._check_room(1, 0)
            self._put(peer)
        return self._settle()

    def hold(self, name: PeerName) -> None:
        """Keep a peer from being collected, once more."""
        self._references[name] = self._references.get(name, 0) + 1

    def release(self, name: PeerName) -> None:
        """Undo one `hold`."""
        self._references[name] -= 1
        if not self._references[name]:
            del self._references[name]

    # --- what others tell ---------------------------------------------------------------------------------------------

    def merge(self, data: bytes) -> Change:
        """Take in an update, all of it or nothing. Raises GossipError or CodecError, and then nothing changed."""
        return self.merge_records(decode_update(data))

    def merge_records(self, summaries: Sequence[Peer]) -> Change:
        """Take in records, all or none. Raises GossipError, and then nothing changed."""
        # What is already here, as the same object, is no news: most of what a mesh at rest tells.
        others = [summary for summary in summaries if self._peers.get(summary.name) is not summary]
        fresh: dict[PeerName, Peer] = {}
        for summary in others:
            if summary.name not in self._peers:
                fresh.setdefault(summary.name, summary)
        for summary in summaries:
            if not summary.connections.keys() <= self._peers.keys():
                for remote in summary.connections:
                    if remote not in self._peers and remote not in fresh:
                        fresh[remote] = Peer(remote)
        self._check_room(len(fresh), sum(self._growth(summary) for summary in others))
        for peer in fresh.values():
            self._put(peer)
        improved = {summary.name for summary in others if self._accept(summary, fresh)}
        change = self._settle()
        mentioned = {summary.name for summary in summaries}
        return replace(change, mentioned=tuple(sorted(mentioned)), improved=tuple(sorted(improved)))

    def is_news(self, name: PeerName, uid: int, version: int, *, has_short_id: bool) -> bool:
        """Say whether a record is better than the one we have; about ourself, whether we must outlive it."""
        known = self._peers.get(name)
        if known is None:
            return True
        if name == self._us:
            return uid != known.uid and version >= known.version
        if (version, uid) != (known.version, known.uid):
            return (version, uid) > (known.version, known.uid)
        return known.short_id is None and has_short_id

    def _accept(self, summary: Peer, fresh: Mapping[PeerName, Peer]) -> bool:
        if summary.name == self._us:
            self._outlive(summary)
            return False
        if fresh.get(summary.name) is summary:
            return True
        has_short_id = summary.short_id is not None
        if not self.is_news(summary.name, summary.uid, summary.version, has_short_id=has_short_id):
            return False
        self._put(summary)
        return True

    def _outlive(self, summary: Peer) -> None:
        """Jump past the version of a record that our previous process, or a peer with our name, spread."""
        us = self.ourself
        if summary.uid != us.uid and summary.version >= us.version:
            self._put(dataclasses.replace(us, version=summary.version + 1 & _VERSION_MASK))
            self._marks.ours = True

    def collect_garbage(self) -> Change:
        """Remove every peer that nobody's connections lead to and that no local connection refers to."""
        reached = walk(self._peers, self._us, strict=False).next_hops
        removed = [
            self._peers[name] for name in sorted(self._peers) if name not in reached and name not in self._references
        ]
        for peer in removed:
            self._drop(peer)
        if removed and not self._owns_short_id():
            self._marks.displaced = True
        return replace(self._settle(), removed=tuple(removed))

    def encode(self, names: frozenset[PeerName]) -> list[bytes]:
        """Write the records of these peers as they are now, leaving out who is not there any more.

        Periodic gossip sends the same to a dozen neighbours in turn, so the last result is kept.
        """
        if (self._encoded.generation, self._encoded.names) != (self._generation, names):
            records = [encode_record(self._peers[name]) for name in sorted(names) if name in self._peers]
            self._encoded = _Encoded(self._generation, names, join_records(records))
        return self._encoded.updates

    # --- the table ----------------------------------------------------------------------------------------------------

    def _check_room(self, peers: int, connections: int) -> None:
        if len(self._peers) + peers > PEERS_MAX:
            raise GossipError(f"topology would exceed {PEERS_MAX} peers")
        if self._connections_count + connections > CONNECTIONS_MAX:
            raise GossipError(f"topology would exceed {CONNECTIONS_MAX} connections")

    def _growth(self, summary: Peer) -> int:
        known = self._peers.get(summary.name)
        return max(0, len(summary.connections) - (0 if known is None else len(known.connections)))

    def _put(self, peer: Peer) -> None:
        known = self._peers.get(peer.name)
        before = None if known is None else known.short_id
        if peer.short_id != before:
            self._unindex(before, peer.name)
            self._index(peer.short_id, peer.name)
        if known is not None and known.uid == peer.uid and known.nickname == peer.nickname:
            self._former[peer.name] = (*self._former.get(peer.name, ())[1 - FORMER_RECORDS :], known)
        else:
            self._former.pop(peer.name, None)
        self._peers[peer.name] = peer
        self._generation += 1
        self._connections_count += len(peer.connections) - (0 if known is None else len(known.connections))

    def _drop(self, peer: Peer) -> None:
        self._unindex(peer.short_id, peer.name)
        del self._peers[peer.name]
        self._former.pop(peer.name, None)
        self._generation += 1
        self._connections_count -= len(peer.connections)

    # --- short IDs ----------------------------------------------------------------------------------------------------

    def _owns_short_id(self) -> bool:
        short_id = self.ourself.short_id
        return short_id is not None and self.short_ids.principal(short_id) == self._us

    def _index(self, short_id: ShortID | None, name: PeerName) -> None:
        if short_id is None:
            return
        owned = self._us in self._peers and self._owns_short_id()
        self._marks.invalidated |= self.short_ids.add(short_id, name)
        self._marks.short_ids = True
        if owned and not self._owns_short_id():
            self._marks.displaced = True

    def _unindex(self, short_id: ShortID | None, name: PeerName) -> None:
        if short_id is not None:
            self._marks.invalidated |= self.short_ids.remove(short_id, name)
            self._marks.short_ids = True

    def _settle(self) -> Change:
        """Draw a new short ID if a lower name took ours, and report what the operation did on the way."""
        if self._marks.displaced:
            drawn = self.short_ids.draw(self._entropy)
            # With every number in use we go on colliding; the next collection that frees some tries again.
            if drawn is not None:
                us = self.ourself
                self._put(dataclasses.replace(us, version=us.version + 1 & _VERSION_MASK, short_id=drawn))
                self._marks.ours = True
        return self._take_marks()

    def _take_marks(self) -> Change:
        marks, self._marks = self._marks, _Marks()
        return Change(ours=marks.ours, short_ids=marks.short_ids, invalidated=marks.invalidated)


class _Marks(msgspec.Struct):
    """What has happened within one operation so far."""

    ours: bool = False
    short_ids: bool = False
    invalidated: bool = False
    displaced: bool = False


class _Encoded(msgspec.Struct, frozen=True):
    """The last result of `encode`, and what it was the result of."""

    generation: int
    names: frozenset[PeerName]
    updates: list[bytes]
