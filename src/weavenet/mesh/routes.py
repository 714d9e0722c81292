"""Next hops and broadcast sets, computed by every peer for itself from the topology it knows.

Nobody distributes routes. Each peer walks the same graph, breadth first and in the order of peer names, and because the
order is fixed all peers that see the same topology come to answers that fit together: no loops, and for each origin a
spanning tree in which every peer has exactly one parent.

There are two of everything. *Strict* routes use a connection only if both of its ends list it as established, which is
what overlay packets need. *All* routes use whatever is listed, even from one side or while still pending: any TCP
connection carries gossip.

The broadcast rule is the clever one. To know whom a peer must forward a broadcast of some origin to, walk from the
origin until the peer itself is expanded, and take its neighbours that nobody reached before. Peers of the same level
with smaller names have been expanded by then, those with larger names have not, so each pair of candidates agrees who
of them is the parent.

This module knows a graph and no topology; topology.py uses `walk` to see who is still reachable. Source:
docs/protocol.md, "Routes and short ids", and Weave's mesh routes.go and peer.go.
"""

from collections.abc import Mapping
from typing import Protocol

import msgspec

from weavenet.identity import UNKNOWN_PEER, PeerName


class Link(Protocol):
    """One direction of an edge: what a vertex says about its connection to another."""

    @property
    def established(self) -> bool:
        """Whether the overlay works over it."""
        ...


class Vertex(Protocol):
    """A peer, as far as routing sees it."""

    @property
    def connections(self) -> Mapping[PeerName, Link]:
        """Its links, by the name at the other end."""
        ...


Graph = Mapping[PeerName, Vertex]


class Walk(msgspec.Struct, frozen=True):
    """The outcome of a walk: whether it came to where it should stop, and all it reached until then.

    `next_hops` has, for each vertex reached, the neighbour of the start that leads there; for the start itself the
    unknown name.
    """

    stopped: bool
    next_hops: Mapping[PeerName, PeerName]


def walk(graph: Graph, start: PeerName, *, stop_at: PeerName | None = None, strict: bool) -> Walk:
    """Walk the graph from `start`, level by level and by name within a level, up to the expansion of `stop_at`."""
    reached = {start: UNKNOWN_PEER}
    level = [start]
    while level:
        level.sort()
        following: list[PeerName] = []
        for name in level:
            if name == stop_at:
                return Walk(stopped=True, next_hops=reached)
            if len(reached) == len(graph):
                # Nothing is left to find, so the rest of the walk could only confirm it. This is what makes a full
                # mesh cheap: one level instead of the square of the number of peers.
                return Walk(stopped=stop_at in reached, next_hops=reached)
            found = _strict_neighbours(graph, name, reached) if strict else _neighbours(graph, name, reached)
            via = reached[name]
            for other in found:
                reached[other] = via or other
            following += found
        level = following
    return Walk(stopped=False, next_hops=reached)


def _neighbours(graph: Graph, name: PeerName, exclude: Mapping[PeerName, PeerName]) -> list[PeerName]:
    return [other for other in graph[name].connections if other not in exclude and other in graph]


def _strict_neighbours(graph: Graph, name: PeerName, exclude: Mapping[PeerName, PeerName]) -> list[PeerName]:
    found: list[PeerName] = []
    for other, link in graph[name].connections.items():
        if other in exclude or not link.established or other not in graph:
            continue
        back = graph[other].connections.get(name)
        if back is not None and back.established:
            found.append(other)
    return found


class Routes:
    """The tables of one peer, as of the last recalculation.

    Each part is computed when it is first asked for: most peers never broadcast anything within the life of a table,
    and while a mesh comes up, many a table is replaced before anybody looks at it. All parts are computed from the
    graph of the recalculation, so a table never mixes two states.
    """

    def __init__(self, ourself: PeerName) -> None:
        """Know nobody yet."""
        self._ourself = ourself
        self._graph: Graph = {}
        self._unicast: Mapping[PeerName, PeerName] | None = {ourself: UNKNOWN_PEER}
        self._unicast_all: Mapping[PeerName, PeerName] | None = {ourself: UNKNOWN_PEER}
        self._rows: dict[PeerName, tuple[PeerName, ...]] = {ourself: ()}
        self._rows_all: dict[PeerName, tuple[PeerName, ...]] = {ourself: ()}

    @property
    def unicast(self) -> Mapping[PeerName, PeerName]:
        """Destination to next hop, for overlay packets; ourself to the unknown name."""
        if self._unicast is None:
            self._unicast = walk(self._graph, self._ourself, strict=True).next_hops
        return self._unicast

    @property
    def unicast_all(self) -> Mapping[PeerName, PeerName]:
        """Destination to next hop, for gossip; ourself to the unknown name."""
        if self._unicast_all is None:
            self._unicast_all = walk(self._graph, self._ourself, strict=False).next_hops
        return self._unicast_all

    @property
    def broadcast_rows(self) -> Mapping[PeerName, tuple[PeerName, ...]]:
        """The strict rows computed so far: ours, and those somebody asked for."""
        self.broadcast_row(self._ourself)
        return self._rows

    def recalculate(self, graph: Graph) -> None:
        """Replace all tables. The graph is kept: its vertices must not change, and the mapping is copied."""
        self._graph = dict(graph)
        self._unicast = None
        self._unicast_all = None
        self._rows = {}
        self._rows_all = {}

    def broadcast_row(self, origin: PeerName) -> tuple[PeerName, ...]:
        """To whom we forward overlay broadcasts of `origin`, by name; to nobody if we do not know it."""
        return self._row(self._rows, origin, strict=True)

    def broadcast_all_row(self, origin: PeerName) -> tuple[PeerName, ...]:
        """To whom we forward gossip broadcasts of `origin`, by name; to nobody if we do not know it."""
        return self._row(self._rows_all, origin, strict=False)

    def _row(
        self, rows: dict[PeerName, tuple[PeerName, ...]], origin: PeerName, *, strict: bool
    ) -> tuple[PeerName, ...]:
        row = rows.get(origin)
        if row is None:
            if origin not in self._graph:
                # Not remembered: names that a remote makes up must not fill the table.
                return ()
            row = rows[origin] = self._calculate_row(origin, strict=strict)
        return row

    def _calculate_row(self, origin: PeerName, *, strict: bool) -> tuple[PeerName, ...]:
        us = self._ourself
        found = walk(self._graph, origin, stop_at=us, strict=strict)
        if not found.stopped:
            return ()
        neighbours = _strict_neighbours if strict else _neighbours
        return tuple(sorted(neighbours(self._graph, us, found.next_hops)))
