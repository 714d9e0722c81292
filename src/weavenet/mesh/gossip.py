"""Gossip: how state gets from every peer to every other over connections that go to a few.

A *channel* is a kind of state: the topology, IPAM's ring, names. Its data are made so that they merge, and that is what
all of this rests on. A message that is lost, late or heard twice does no harm, and when a connection is slow, what it
should carry is not queued but merged: per connection and channel there is one pending datum (per origin for broadcasts)
however much happens meanwhile, and it is turned into bytes only when it is really sent.

    neighbour gossip   to a few neighbours at random; they pass on what was news to them
    broadcast          along the tree of its origin; everybody hears it once
    unicast            from next hop to next hop

Neighbours are drawn with the number of peers behind them as weight, about 2 log2(n) of them: enough for news to spread
through any mesh in a few rounds.

A channel that nobody here has registered is served by the *surrogate*, so that a peer without IPAM is still a relay for
others' IPAM. It cannot tell what is news, so it compares with what it heard within one gossip interval. Weave keys that
memory by an FNV-1a hash and then compares the bytes; a dict does the same.

Who sends what along which route is relay.py. Source: docs/protocol.md, "Gossip"; Weave's mesh gossip.go, routes.go
(randomNeighbours) and surrogate_gossiper.go.
"""

from collections import Counter
from collections.abc import Mapping
from math import log2
from typing import Protocol

import msgspec

from weavenet.effects import Entropy, GossipKind, Now
from weavenet.identity import UNKNOWN_PEER, PeerName
from weavenet.mesh.topology import Topology

TOPOLOGY_CHANNEL = "topology"
GOSSIP_INTERVAL_S = 30.0

# Pending data per connection: one per channel, and one per channel and origin. A mesh of a thousand peers that all
# broadcast on two channels has half of it.
SLOTS_MAX = 4096
# What cannot be merged, only collected: per connection, and in the surrogate's memory.
SURROGATE_BYTES_MAX = 32 << 20
SURROGATE_MESSAGES_MAX = 10_000


class GossipData(Protocol):
    """Something to be told, of one channel."""

    def merge(self, newer: "GossipData") -> "GossipData":
        """Return what tells both; `newer` is of the same channel."""
        ...

    def encode(self) -> list[bytes]:
        """Return the messages that tell it as of now; called when they are really sent."""
        ...


class GossipSource(Protocol):
    """The owner of a channel, as far as sending goes."""

    def complete(self) -> GossipData | None:
        """Return all the state there is to tell, or None; sent periodically and down each new connection."""
        ...

    def digest(self) -> bytes | None:
        """Return a hash of that state, equal wherever there is nothing to tell; None: it must be told to be known."""
        ...


# --- the channels served here -----------------------------------------------------------------------------------------


class TopologyData(msgspec.Struct, frozen=True):
    """Peers to be told about. Only their names: what is sent is what is known of them then."""

    topology: Topology
    names: frozenset[PeerName]

    def merge(self, newer: GossipData) -> "TopologyData":
        """Tell about all of them."""
        assert isinstance(newer, TopologyData)
        return TopologyData(self.topology, self.names | newer.names)

    def encode(self) -> list[bytes]:
        """Return an update, or more if it gets too long; none if all the peers are gone."""
        return self.topology.encode(self.names)


class SurrogateData(msgspec.Struct, frozen=True):
    """Messages of a channel that means nothing to us."""

    messages: tuple[bytes, ...]

    def merge(self, newer: GossipData) -> "SurrogateData":
        """Tell one after the other."""
        assert isinstance(newer, SurrogateData)
        return SurrogateData(self.messages + newer.messages)

    def encode(self) -> list[bytes]:
        """Return them as they came."""
        return list(self.messages)

    @property
    def size_bytes(self) -> int:
        """How much memory that takes, more or less: a message costs something even if it is empty."""
        return sum(len(message) + 64 for message in self.messages)


class SurrogateMemory:
    """What was heard on foreign channels within the last gossip interval, to tell news from echo."""

    def __init__(self) -> None:
        """Remember nothing."""
        self._heard: dict[tuple[str, bytes], float] = {}
        self._size_bytes = 0

    def is_news(self, channel: str, message: bytes, now: Now) -> bool:
        """Say whether this was not heard lately, and remember it. Hearing it again does not make it any newer."""
        self._forget(before_s=now.monotonic_s - GOSSIP_INTERVAL_S)
        key = (channel, message)
        if key in self._heard:
            return False
        self._heard[key] = now.monotonic_s
        self._size_bytes += _size_bytes(key)
        while len(self._heard) > SURROGATE_MESSAGES_MAX or self._size_bytes > SURROGATE_BYTES_MAX:
            self._drop_oldest()
        return True

    def _forget(self, before_s: float) -> None:
        while self._heard and next(iter(self._heard.values())) < before_s:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        oldest = next(iter(self._heard))
        del self._heard[oldest]
        self._size_bytes -= _size_bytes(oldest)


def _size_bytes(key: tuple[str, bytes]) -> int:
    channel, message = key
    return len(channel) + len(message)


# --- waiting ----------------------------------------------------------------------------------------------------------


class Slot(msgspec.Struct, frozen=True):
    """What pending data are kept apart by."""

    kind: GossipKind
    channel: str
    peer: PeerName  # of a broadcast: its origin. Of neighbour gossip: whom it is not for, or the unknown name
    is_state: bool = False  # all that there is of the channel, to be compared rather than told where both ends can
    compact: bool = False  # the channel is not one, but a sort of message of exchange.py


class Pending:
    """Data that wait, merged: for a connection to be writable, or for routes to be recalculated."""

    def __init__(self) -> None:
        """Have nothing waiting."""
        self.is_empty = True  # asked of every connection at every event, so it is no method
        self._slots: dict[Slot, GossipData] = {}
        self._surrogate_bytes = 0

    def add(self, slot: Slot, data: GossipData) -> bool:
        """Merge data into their slot. False: there is too much already, and they are not in it."""
        size_bytes = data.size_bytes if isinstance(data, SurrogateData) else 0
        waiting = self._slots.get(slot)
        if waiting is None and len(self._slots) >= SLOTS_MAX:
            return False
        if self._surrogate_bytes + size_bytes > SURROGATE_BYTES_MAX:
            return False
        self._surrogate_bytes += size_bytes
        self._slots[slot] = data if waiting is None else waiting.merge(data)
        self.is_empty = False
        return True

    def take(self) -> list[tuple[Slot, GossipData]]:
        """Return all that waits, neighbour gossip first, and have nothing waiting."""
        # Sorting keeps the order of arrival within a kind.
        taken = sorted(self._slots.items(), key=lambda item: item[0].kind is GossipKind.BROADCAST)
        self._slots = {}
        self._surrogate_bytes = 0
        self.is_empty = True
        return taken


# --- whom to tell -----------------------------------------------------------------------------------------------------


def choose_neighbours(
    unicast_all: Mapping[PeerName, PeerName], excluding: PeerName | None, entropy: Entropy
) -> list[PeerName]:
    """Draw the neighbours to gossip to, each with the number of destinations behind it as weight."""
    weights = Counter(unicast_all.values())
    del weights[UNKNOWN_PEER]
    if excluding is not None:
        del weights[excluding]
    count = int(min(2 * log2(len(unicast_all)), len(weights)))
    candidates = sorted(weights)
    if count == len(candidates):
        return candidates
    total = sum(weights.values())
    chosen: list[PeerName] = []
    for _ in range(count):
        left = int(entropy.fraction() * total)
        drawn = 0
        while left >= weights[candidates[drawn]]:
            left -= weights[candidates[drawn]]
            drawn += 1
        total -= weights[candidates[drawn]]
        chosen.append(candidates.pop(drawn))
    return chosen
