"""What a change of the topology sets off, and when.

Almost nothing is done at once. Changes come in storms (a peer restarts, and all its neighbours say so), so each kind of
consequence waits a moment for more of the same: the first request sets the time, later ones join it. Also here is the
one thing that is done without any reason: every 30 s each channel's complete state goes to a few neighbours, which
heals whatever was lost. Source: docs/protocol.md, "Sending", "Garbage collection" and "Timing"; Weave's mesh routes.go,
peers.go, local_peer.go and router.go.
"""

from collections.abc import Iterable, Mapping

from weavenet.effects import Level, Note, Now, Output, PeersRemoved, RoutesChanged
from weavenet.identity import PeerName
from weavenet.mesh.gossip import GOSSIP_INTERVAL_S, TOPOLOGY_CHANNEL, GossipData, GossipSource, TopologyData
from weavenet.mesh.relay import Relay
from weavenet.mesh.routes import Routes
from weavenet.mesh.topology import Change, Topology

UPDATE_DEFERRAL_S = 1.0
RECALCULATION_DEFERRAL_S = 0.1
COLLECTION_DEFERRAL_S = 1.0


class Upkeep:
    """Deferred work, and periodic work."""

    def __init__(
        self,
        *,
        topology: Topology,
        routes: Routes,
        relay: Relay,
        channels: Mapping[str, GossipSource],
        out: list[Output],
        now: Now,
    ) -> None:
        """Have nothing to do until the first gossip interval is over. Outputs are appended to `out`."""
        self._topology = topology
        self._routes = routes
        self._relay = relay
        self._channels = dict(sorted(channels.items()))
        self._out = out
        self._update_names: set[PeerName] = set()
        self._update_due_s: float | None = None
        self._recalculation_due_s: float | None = None
        self._collection_due_s: float | None = None
        self._gossip_due_s = now.monotonic_s + GOSSIP_INTERVAL_S
        # Whether the connector should look at its targets again; the router does that last, once per input.
        self.targets_are_stale = False

    # --- what is wanted soon ------------------------------------------------------------------------------------------

    def apply(self, change: Change, now: Now) -> None:
        """See to what follows from an operation on the topology."""
        if change.improved:
            self.targets_are_stale = True
            self.recalculate_soon(now)
        if change.ours:
            self.update_soon((), now)
        if change.removed:
            self.targets_are_stale = True
            self.recalculate_soon(now)
            self._out += [Note(Level.INFO, f"Removed unreachable peer {peer}") for peer in change.removed]
            names = tuple(peer.name for peer in change.removed)
            self._out.append(PeersRemoved(names, tuple(peer.nickname for peer in change.removed)))
        if change.short_ids:
            self._out.append(RoutesChanged())

    def recalculate_soon(self, now: Now) -> None:
        """Have the routes recalculated, and gossip wait for it."""
        if self._recalculation_due_s is None:
            self._recalculation_due_s = now.monotonic_s + RECALCULATION_DEFERRAL_S
            self._relay.pause()

    def update_soon(self, names: Iterable[PeerName], now: Now) -> None:
        """Have neighbours told about these peers and ourself."""
        self._update_names.update(names)
        if self._update_due_s is None:
            self._update_due_s = now.monotonic_s + UPDATE_DEFERRAL_S

    def collect_soon(self, now: Now) -> None:
        """Have garbage collected."""
        if self._collection_due_s is None:
            self._collection_due_s = now.monotonic_s + COLLECTION_DEFERRAL_S

    def collect(self, now: Now) -> None:
        """Collect garbage at once."""
        self.apply(self._topology.collect_garbage(), now)

    # --- what there is to tell ----------------------------------------------------------------------------------------

    def complete_state(self) -> list[tuple[str, GossipData]]:
        """Return the complete state of every channel that has one, topology first: the others speak of its peers."""
        state: list[tuple[str, GossipData]] = [(TOPOLOGY_CHANNEL, self._about(frozenset(self._topology)))]
        for channel, source in self._channels.items():
            data = source.complete()
            if data is not None:
                state.append((channel, data))
        return state

    def ourself(self) -> GossipData:
        """Return our own record, as it will be when it is sent."""
        return self._about(frozenset((self._topology.ourself.name,)))

    def _about(self, names: frozenset[PeerName]) -> TopologyData:
        return TopologyData(self._topology, names)

    # --- time ---------------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        """When `handle_timer` has something to do, in monotonic seconds."""
        due = (self._update_due_s, self._recalculation_due_s, self._collection_due_s, self._gossip_due_s)
        return min(due_s for due_s in due if due_s is not None)

    def handle_timer(self, now: Now) -> None:
        """Do what is due. Collecting first: nobody should hear of peers that are gone."""
        if self._collection_due_s is not None and self._collection_due_s <= now.monotonic_s:
            self._collection_due_s = None
            self.collect(now)
        if self._recalculation_due_s is not None and self._recalculation_due_s <= now.monotonic_s:
            self._recalculation_due_s = None
            self._routes.recalculate(self._topology)
            self._relay.resume()
            self._out.append(RoutesChanged())
        if self._update_due_s is not None and self._update_due_s <= now.monotonic_s:
            self._update_due_s = None
            names = frozenset({*self._update_names, self._topology.ourself.name})
            self._update_names.clear()
            self._relay.tell_neighbours(TOPOLOGY_CHANNEL, self._about(names))
        if self._gossip_due_s <= now.monotonic_s:
            # From now, not from when it was due: after a long stop there is no point in catching up.
            self._gossip_due_s = now.monotonic_s + GOSSIP_INTERVAL_S
            for channel, data in self.complete_state():
                self._relay.tell_state(channel, data)
