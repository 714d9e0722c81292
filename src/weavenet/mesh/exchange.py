"""Compact gossip: what two weavenet peers say to each other instead of all they know, and when.

Weave tells its complete state to some neighbours every 30 s, and every piece of news as a whole record to as many. In
a mesh at rest all of the first is known already, and of the second all but one copy. So between two peers that both
can (the feature is in the introduction), the state is compared and news is announced:

    rest     A ── Digests ──► B      equal: no answer, and that was all
    repair   A ── Digests ──► B ── Buckets ──► A ── Versions of the buckets that differ ──► B
             A ◄── Records that A lacks ── B ── Wanted, what B lacks ──► A ── Records ──► B
    news     A ── News ──► B ── Wanted ──► A ── Changes, or Records ──► B, who passes the news on

A channel of which only the owner knows the parts (IPAM's ring) is compared by its digest, and told completely, both
ways, if that differs or there is none. Whoever has no such channel wants it told each time, and relays it like Weave.

Nobody keeps a conversation: each message is answered from what is known when it comes, or not at all, and the next
Digests heals that. All that is kept is who was asked for which record (asking.py).

What a remote can make us send is limited per connection by an allowance in bytes; what that does not cover it must ask
for again later. Source: docs/protocol/compact-gossip.md.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec

from weavenet.effects import GossipKind, Now, Output
from weavenet.identity import UNKNOWN_PEER, PeerName
from weavenet.mesh.asking import Asking
from weavenet.mesh.changes import apply_change, change_since
from weavenet.mesh.compact import (
    CHANGES_MAX,
    VERSIONS_MAX,
    Base,
    Buckets,
    Changes,
    Compact,
    Digests,
    News,
    RecordChange,
    Records,
    StateWanted,
    Version,
    Versions,
    Wanted,
    decode_compact,
    encode_compact,
)
from weavenet.mesh.digests import Digester, bucket_count, split_hashes
from weavenet.mesh.gossip import TOPOLOGY_CHANNEL, GossipData, GossipSource, Slot
from weavenet.mesh.local import Allowance, LocalConnection, LocalConnections
from weavenet.mesh.records import Peer, decode_update, encode_record, join_records
from weavenet.mesh.topology import Topology
from weavenet.mesh.wire import Tag, build_message

_T = TypeVar("_T")


class DigestsData(msgspec.Struct, frozen=True):
    """What we have on some channels is to be compared."""

    exchange: "Exchange"
    channels: frozenset[str]

    def merge(self, newer: GossipData) -> "DigestsData":
        """Compare all of these channels."""
        assert isinstance(newer, DigestsData)
        return DigestsData(self.exchange, self.channels | newer.channels)

    def encode(self) -> list[bytes]:
        """Return the hashes as they are now."""
        return [encode_compact(Digests({name: self.exchange.digest(name) for name in sorted(self.channels)}))]


class NewsData(msgspec.Struct, frozen=True):
    """Records are to be announced."""

    exchange: "Exchange"
    names: frozenset[PeerName]

    def merge(self, newer: GossipData) -> "NewsData":
        """Announce all of them."""
        assert isinstance(newer, NewsData)
        return NewsData(self.exchange, self.names | newer.names)

    def encode(self) -> list[bytes]:
        """Return which records we have now; none of peers that are gone."""
        versions = self.exchange.versions(self.names)
        return [encode_compact(News(part)) for part in _cut(versions, VERSIONS_MAX)]


class WantedData(msgspec.Struct, frozen=True):
    """Records are to be asked for."""

    exchange: "Exchange"
    names: frozenset[PeerName]

    def merge(self, newer: GossipData) -> "WantedData":
        """Ask for all of them."""
        assert isinstance(newer, WantedData)
        return WantedData(self.exchange, self.names | newer.names)

    def encode(self) -> list[bytes]:
        """Return the questions, with what we have now."""
        bases = [self.exchange.base(name) for name in sorted(self.names)]
        return [encode_compact(Wanted(part)) for part in _cut(bases, VERSIONS_MAX)]


class RecordsData(msgspec.Struct, frozen=True):
    """Records are to be told, each to somebody who has a certain version of it, or none."""

    exchange: "Exchange"
    bases: Mapping[PeerName, Base | None]

    def merge(self, newer: GossipData) -> "RecordsData":
        """Tell all of them; what the receiver has it said last."""
        assert isinstance(newer, RecordsData)
        return RecordsData(self.exchange, {**self.bases, **newer.bases})

    def encode(self) -> list[bytes]:
        """Return changes, and whole records where there is no telling what has changed."""
        return self.exchange.tell(self.bases)


class StateData(msgspec.Struct, frozen=True):
    """All of a channel is to be told to somebody who has asked for it."""

    data: GossipData
    allowance: Allowance

    def merge(self, newer: GossipData) -> "StateData":
        """Tell it once, as it is then."""
        assert isinstance(newer, StateData)
        return newer

    def encode(self) -> list[bytes]:
        """Return it, on account."""
        messages = self.data.encode()
        self.allowance.left -= sum(len(message) for message in messages)
        return messages


def compact_slot(channel: str) -> Slot:
    """Return where compact gossip of one sort waits."""
    return Slot(GossipKind.NEIGHBOUR, channel, UNKNOWN_PEER, compact=True)


_DIGESTS, _NEWS, _WANTED, _RECORDS = (compact_slot(name) for name in ("digests", "news", "wanted", "records"))


class Exchange:
    """Our half of compact gossip with all neighbours."""

    def __init__(
        self, topology: Topology, links: LocalConnections, channels: Mapping[str, GossipSource], out: list[Output]
    ) -> None:
        """Compare this table and these channels. Outputs are appended to `out`."""
        self._topology = topology
        self._links = links
        self._channels = dict(channels)
        self._out = out
        self._digester = Digester(topology)
        self._asking = Asking()

    # --- what we say of ourselves -------------------------------------------------------------------------------------

    def compare(self, link: LocalConnection, channels: Iterable[str] | None = None) -> None:
        """Find out whether a neighbour has what we have: on all channels, or on some."""
        named = frozenset((TOPOLOGY_CHANNEL, *self._channels) if channels is None else channels)
        link.queue(_DIGESTS, DigestsData(self, named))

    def announce(self, link: LocalConnection, names: frozenset[PeerName]) -> None:
        """Tell a neighbour that we have something new of these peers."""
        link.queue(_NEWS, NewsData(self, names))

    def digest(self, channel: str) -> bytes | None:
        """Return the hash of what we have on a channel, if that can be hashed."""
        if channel == TOPOLOGY_CHANNEL:
            return self._digester.whole()
        source = self._channels.get(channel)
        return None if source is None else source.digest()

    def versions(self, names: Iterable[PeerName]) -> list[Version]:
        """Return which records we have of those of these peers that we know."""
        return [self._digester.version(name) for name in sorted(names) if name in self._topology]

    def base(self, name: PeerName) -> Base:
        """Return what we have of a peer, for who is to tell us more."""
        peer = self._topology.get(name)
        return Base(name, 0, 0) if peer is None else Base(name, peer.uid, peer.version)

    def tell(self, bases: Mapping[PeerName, Base | None]) -> list[bytes]:
        """Return messages that tell records."""
        changes: list[RecordChange] = []
        whole: list[bytes] = []
        for name in sorted(bases):
            if name not in self._topology:
                continue
            base = bases[name]
            change = None if base is None else change_since(self._topology, base)
            if change is None:
                whole.append(encode_record(self._topology[name]))
            else:
                changes.append(change)
        told: list[Compact] = [Changes(part) for part in _cut(changes, CHANGES_MAX)]
        told += [Records(update) for update in join_records(whole)]
        return [encode_compact(message) for message in told]

    # --- what arrives -------------------------------------------------------------------------------------------------

    def arrived(self, link: LocalConnection, payload: bytes, now: Now) -> list[Peer]:
        """Take a message. Returns the records in it, which may be news. Raises CodecError."""
        match decode_compact(payload):
            case Digests(channels):
                self._compare_digests(link, channels, now)
            case Buckets(hashes):
                self._compare_buckets(link, split_hashes(hashes), now)
            case Versions(count, buckets, versions):
                self._compare_versions(link, count, buckets, versions, now)
            case News(versions):
                self._want(link, [each for each in versions if self._is_better(each)], now)
            case Wanted(bases):
                self._give(link, {PeerName(base.name): base for base in bases}, now)
            case StateWanted(channels):
                for channel in sorted(set(channels)):
                    self._tell_state(link, channel, now)
            case Records(update):
                return self._received(decode_update(update))
            case Changes(changes):
                return self._received(self._changed(link, changes))
        return []

    def _compare_digests(self, link: LocalConnection, theirs: Mapping[str, bytes | None], now: Now) -> None:
        # Topology first, as the others speak of its peers.
        if theirs.get(TOPOLOGY_CHANNEL, self._digester.whole()) != self._digester.whole():
            count = bucket_count(len(self._topology))
            self._answer(link, Buckets(b"".join(self._digester.hashes(count))), now)
        others = [name for name in sorted(theirs) if name != TOPOLOGY_CHANNEL]
        wanted = [name for name in others if theirs[name] is None or theirs[name] != self.digest(name)]
        if wanted:
            self._answer(link, StateWanted(wanted), now)
        for channel in wanted:
            self._tell_state(link, channel, now)

    def _compare_buckets(self, link: LocalConnection, theirs: Sequence[bytes], now: Now) -> None:
        count = len(theirs)
        ours = self._digester.hashes(count)
        buckets: list[int] = []
        versions: list[Version] = []
        for number in range(count):
            if ours[number] == theirs[number]:
                continue
            # Made-up names can fill a bucket with more than a message holds. Then some of it counts as not known here.
            found = self._digester.bucket(number, count)[:VERSIONS_MAX]
            if len(versions) + len(found) > VERSIONS_MAX:
                self._answer(link, Versions(count, buckets, versions), now)
                buckets, versions = [], []
            buckets.append(number)
            versions += found
        if buckets:
            self._answer(link, Versions(count, buckets, versions), now)

    def _compare_versions(
        self, link: LocalConnection, count: int, buckets: Sequence[int], theirs: Sequence[Version], now: Now
    ) -> None:
        known = {each.name: each for each in theirs}
        give: dict[PeerName, Base | None] = {}
        for number in sorted({number for number in buckets if number < count}):
            for ours in self._digester.bucket(number, count):
                other = known.get(ours.name)
                if other is None:
                    give[PeerName(ours.name)] = None
                elif _is_newer(ours, other):
                    give[PeerName(ours.name)] = Base(ours.name, other.uid, other.number)
        self._give(link, give, now)
        self._want(link, [each for each in theirs if self._is_better(each)], now)

    def _is_better(self, version: Version) -> bool:
        name = PeerName(version.name)
        return self._topology.is_news(name, version.uid, version.number, has_short_id=version.has_short_id)

    # --- giving -------------------------------------------------------------------------------------------------------

    def _answer(self, link: LocalConnection, message: Compact, now: Now) -> None:
        # Not queued: an answer of now is worth nothing later. Who cannot be written to gets none.
        payload = encode_compact(message)
        if link.writable and link.allowance.take(len(payload), now):
            link.send(build_message(Tag.COMPACT, payload), self._out)

    def _give(self, link: LocalConnection, bases: Mapping[PeerName, Base | None], now: Now) -> None:
        allowed: dict[PeerName, Base | None] = {}
        for name in sorted(bases):
            peer = self._topology.get(name)
            if peer is not None and link.allowance.take(len(encode_record(peer)), now):
                allowed[name] = bases[name]
        if allowed:
            link.queue(_RECORDS, RecordsData(self, allowed))

    def _tell_state(self, link: LocalConnection, channel: str, now: Now) -> None:
        source = self._channels.get(channel)
        data = None if source is None else source.complete()
        if data is not None and link.allowance.has_some(now):
            link.queue(
                Slot(GossipKind.NEIGHBOUR, channel, UNKNOWN_PEER, is_state=True), StateData(data, link.allowance)
            )

    # --- asking -------------------------------------------------------------------------------------------------------

    def _want(self, link: LocalConnection, versions: Sequence[Version], now: Now) -> None:
        names = [PeerName(each.name) for each in versions if self._asking.announced(each, link.number, now)]
        if names:
            link.queue(_WANTED, WantedData(self, frozenset(names)))

    def _changed(self, link: LocalConnection, changes: Sequence[RecordChange]) -> list[Peer]:
        """Return changed records. Where our record is not the base any more, ask again, for what is new to that."""
        peers: list[Peer] = []
        again: set[PeerName] = set()
        for change in changes:
            peer = apply_change(self._topology, change)
            if peer is not None:
                peers.append(peer)
            elif self._topology.is_news(PeerName(change.name), change.uid, change.number, has_short_id=False):
                again.add(PeerName(change.name))
        if again:
            link.queue(_WANTED, WantedData(self, frozenset(again)))
        return peers

    def _received(self, peers: list[Peer]) -> list[Peer]:
        for peer in peers:
            self._asking.received(peer)
        return peers

    def next_deadline(self) -> float | None:
        """When `handle_timer` has something to do, in monotonic seconds."""
        return self._asking.next_deadline()

    def handle_timer(self, now: Now) -> None:
        """Ask others for what has not come."""
        for late in self._asking.take_late(now):
            others = late.others
            while others and self._is_better(late.version):
                link = self._links.get(others.pop(0))
                if link is not None and link.added:
                    self._asking.ask(late.version, link.number, others, now)
                    link.queue(_WANTED, WantedData(self, frozenset((PeerName(late.version.name),))))
                    break


def _is_newer(ours: Version, theirs: Version) -> bool:
    if (ours.number, ours.uid) != (theirs.number, theirs.uid):
        return (ours.number, ours.uid) > (theirs.number, theirs.uid)
    return ours.has_short_id and not theirs.has_short_id


def _cut(items: Sequence[_T], count: int) -> list[list[_T]]:
    return [list(items[start : start + count]) for start in range(0, len(items), count)]
