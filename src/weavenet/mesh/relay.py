"""Sending gossip: along which routes, down which connections, and when.

Neighbour gossip and broadcasts follow routes, and while those are about to be recalculated there is no point in
following the old ones: a peer that has just come would hear nothing. So they wait, at most the recalculation's 100 ms,
and what waits merges, which saves most of the work when a mesh comes up and everybody has news all the time. Then each
message waits once more, in its connection, until that can be written to. Unicasts do neither.

Source: docs/protocol.md, "Gossip" and "Tables"; Weave's mesh gossip.go, gossip_channel.go and protocol.go.
"""

from weavenet.effects import Entropy, GossipKind, Level, Note, Output
from weavenet.identity import UNKNOWN_PEER, PeerName, format_peer_name
from weavenet.mesh.exchange import Exchange
from weavenet.mesh.gossip import GossipData, Pending, Slot, TopologyData, choose_neighbours
from weavenet.mesh.local import LocalConnection, LocalConnections
from weavenet.mesh.routes import Routes
from weavenet.mesh.wire import GossipMessage, Tag, build_gossip, build_message

_TAGS = {GossipKind.NEIGHBOUR: Tag.GOSSIP, GossipKind.BROADCAST: Tag.GOSSIP_BROADCAST}


class Relay:
    """The sending half of gossip."""

    def __init__(
        self, ourself: PeerName, routes: Routes, links: LocalConnections, exchange: Exchange, entropy: Entropy
    ) -> None:
        """Send over these connections, along these routes. The exchange is for remotes that know of it."""
        self._ourself = ourself
        self._routes = routes
        self._links = links
        self._exchange = exchange
        self._entropy = entropy
        self._paused = False
        self._waiting = Pending()

    # --- to neighbours, and to everybody ------------------------------------------------------------------------------

    def tell_neighbours(self, channel: str, data: GossipData, excluding: PeerName | None = None) -> None:
        """Send data to a random few, none of them the neighbour `excluding`."""
        self._submit(Slot(GossipKind.NEIGHBOUR, channel, excluding or UNKNOWN_PEER), data)

    def tell_state(self, channel: str, data: GossipData) -> None:
        """Send all that there is of a channel to a random few, or find out whether they have it."""
        self._submit(Slot(GossipKind.NEIGHBOUR, channel, UNKNOWN_PEER, is_state=True), data)

    def broadcast(self, channel: str, data: GossipData, origin: PeerName) -> None:
        """Send data of that origin, or pass them on, to those who hear its broadcasts from us."""
        self._submit(Slot(GossipKind.BROADCAST, channel, origin), data)

    def tell(self, link: LocalConnection, channel: str, data: GossipData) -> None:
        """Send data as neighbour gossip to the one at the other end of a connection."""
        link.queue(Slot(GossipKind.NEIGHBOUR, channel, UNKNOWN_PEER), data)

    def pause(self) -> None:
        """Have gossip wait: the routes are stale."""
        self._paused = True

    def resume(self) -> None:
        """Route what waits: they have been recalculated."""
        self._paused = False
        for slot, data in self._waiting.take():
            self._route(slot, data)

    def _submit(self, slot: Slot, data: GossipData) -> None:
        # Without room to wait, stale routes are better than silence.
        if not (self._paused and self._waiting.add(slot, data)):
            self._route(slot, data)

    def _route(self, slot: Slot, data: GossipData) -> None:
        if slot.kind is GossipKind.BROADCAST:
            hops = list(self._routes.broadcast_all_row(slot.peer))
        else:
            hops = choose_neighbours(self._routes.unicast_all, slot.peer, self._entropy)
        for hop in hops:
            link = self._links.to(hop)
            # A route may outlive its connection, by the same 100 ms.
            if link is None:
                continue
            if slot.kind is GossipKind.BROADCAST:
                link.queue(slot, data)
            elif link.compact and slot.is_state:
                self._exchange.compare(link, (slot.channel,))
            elif link.compact and isinstance(data, TopologyData):
                self._exchange.announce(link, data.names)
            else:
                self.tell(link, slot.channel, data)

    def flush(self, out: list[Output]) -> None:
        """Encode and send whatever waits in connections that can take it."""
        for link in self._links.added():
            if not link.pending.is_empty and link.writable:
                for slot, data in link.pending.take():
                    self._send(link, slot, data, out)

    def _send(self, link: LocalConnection, slot: Slot, data: GossipData, out: list[Output]) -> None:
        source = slot.peer if slot.kind is GossipKind.BROADCAST else self._ourself
        for message in data.encode():
            if slot.compact:
                link.send(build_message(Tag.COMPACT, message), out)
                continue
            link.send(build_gossip(_TAGS[slot.kind], GossipMessage(slot.channel, source, None, message)), out)

    # --- to one peer --------------------------------------------------------------------------------------------------

    def can_reach(self, destination: PeerName) -> bool:
        """Whether a unicast would leave here."""
        hop = self._routes.unicast_all.get(destination)
        return hop is not None and self._links.to(hop) is not None

    def unicast(self, channel: str, destination: PeerName, data: bytes, out: list[Output]) -> None:
        """Send data to one peer."""
        gossip = GossipMessage(channel, self._ourself, destination, data)
        self._forward(destination, build_gossip(Tag.GOSSIP_UNICAST, gossip), out)

    def pass_on(self, destination: PeerName, payload: bytes, out: list[Output]) -> None:
        """Send somebody else's unicast a hop further, as it is."""
        self._forward(destination, build_message(Tag.GOSSIP_UNICAST, payload), out)

    def _forward(self, destination: PeerName, message: bytes, out: list[Output]) -> None:
        hop = self._routes.unicast_all.get(destination)
        if hop is None:
            out.append(Note(Level.WARNING, f"unknown relay destination: {format_peer_name(destination)}"))
            return
        link = self._links.to(hop)
        if link is None:
            out.append(Note(Level.WARNING, f"unable to find connection to relay peer {format_peer_name(hop)}"))
            return
        link.send(message, out)
