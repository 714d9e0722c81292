"""What becomes of gossip that arrives: the receiving half. The sending half is relay.py.

    topology            merged; what was news is passed on
    a channel of ours   GossipArrived, for whoever handles it
    any other channel   the surrogate
    compact gossip      exchange.py; the records in it are topology that has come

Source: docs/protocol.md, "Gossip: Receiving"; Weave's mesh gossip_channel.go and router.go.
"""

from collections.abc import Collection

from weavenet.effects import GossipArrived, GossipKind, Now, Output
from weavenet.errors import GossipError
from weavenet.identity import PeerName
from weavenet.mesh.exchange import Exchange
from weavenet.mesh.gossip import TOPOLOGY_CHANNEL, SurrogateData, SurrogateMemory, TopologyData
from weavenet.mesh.local import LocalConnection
from weavenet.mesh.relay import Relay
from weavenet.mesh.topology import Change, Topology
from weavenet.mesh.upkeep import Upkeep
from weavenet.mesh.wire import GossipMessage, Tag, parse_gossip

_GOSSIP_KINDS = {
    Tag.GOSSIP: GossipKind.NEIGHBOUR,
    Tag.GOSSIP_UNICAST: GossipKind.UNICAST,
    Tag.GOSSIP_BROADCAST: GossipKind.BROADCAST,
}


class Arrival:
    """The receiving half of gossip. Its methods raise RemoteError for what must end the connection."""

    def __init__(
        self,
        *,
        ourself: PeerName,
        topology: Topology,
        channels: Collection[str],
        relay: Relay,
        exchange: Exchange,
        upkeep: Upkeep,
        out: list[Output],
    ) -> None:
        """Handle the topology, and have these channels handled. Outputs are appended to `out`."""
        self._ourself = ourself
        self._topology = topology
        self._channels = frozenset(channels)
        self._relay = relay
        self._exchange = exchange
        self._upkeep = upkeep
        self._out = out
        self._surrogate = SurrogateMemory()

    def gossip(self, link: LocalConnection, tag: Tag, payload: bytes, now: Now) -> None:
        """Take gossip in one of Weave's three forms."""
        gossip = parse_gossip(tag, payload)
        kind = _GOSSIP_KINDS[tag]
        if gossip.destination not in {None, self._ourself}:
            assert gossip.destination is not None
            self._relay.pass_on(gossip.destination, payload, self._out)
        elif gossip.channel == TOPOLOGY_CHANNEL:
            self._topology_gossip(kind, gossip, now)
        elif gossip.channel in self._channels:
            self._out.append(GossipArrived(link.number, gossip.channel, kind, gossip.source, gossip.data))
        else:
            self._foreign_gossip(kind, gossip, now)

    def compact(self, link: LocalConnection, payload: bytes, now: Now) -> None:
        """Take compact gossip."""
        peers = self._exchange.arrived(link, payload, now)
        if peers:
            assert link.name is not None
            self._pass_on(self._follow(self._topology.merge_records(peers), now), link.name)

    def _topology_gossip(self, kind: GossipKind, gossip: GossipMessage, now: Now) -> None:
        if kind is GossipKind.UNICAST:
            raise GossipError(f"unexpected topology gossip unicast: {len(gossip.data)} bytes")
        change = self._follow(self._topology.merge(gossip.data), now)
        if kind is GossipKind.NEIGHBOUR:
            self._pass_on(change, gossip.source)
        elif change.mentioned:
            data = TopologyData(self._topology, frozenset(change.mentioned))
            self._relay.broadcast(TOPOLOGY_CHANNEL, data, gossip.source)

    def _follow(self, change: Change, now: Now) -> Change:
        self._upkeep.apply(change, now)
        self._upkeep.collect_soon(now)
        return change

    def _pass_on(self, change: Change, source: PeerName) -> None:
        if change.improved:
            data = TopologyData(self._topology, frozenset(change.improved))
            self._relay.tell_neighbours(TOPOLOGY_CHANNEL, data, source)

    def _foreign_gossip(self, kind: GossipKind, gossip: GossipMessage, now: Now) -> None:
        data = SurrogateData((gossip.data,))
        if kind is GossipKind.BROADCAST:
            self._relay.broadcast(gossip.channel, data, gossip.source)
        if kind is GossipKind.NEIGHBOUR and self._surrogate.is_news(gossip.channel, gossip.data, now):
            self._relay.tell_neighbours(gossip.channel, data, gossip.source)
