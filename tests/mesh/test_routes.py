import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from weavenet.identity import PeerName, format_peer_name, parse_peer_name
from weavenet.mesh.routes import Routes, walk

Vector = dict[str, Any]
VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "mesh_routes.json").read_text())["vectors"]
TOPOLOGIES = VECTORS["topologies"]


@dataclass(frozen=True)
class Edge:
    established: bool = True


@dataclass(frozen=True)
class Corner:
    connections: Mapping[PeerName, Edge]


def corner(edges: Mapping[int, bool]) -> Corner:
    return Corner({PeerName(name): Edge(established) for name, established in edges.items()})


def graph_of(vector: Vector) -> dict[PeerName, Corner]:
    edges: dict[int, dict[int, bool]] = {parse_peer_name(name): {} for name in vector["peers"]}
    for link in vector["connections"]:
        edges[parse_peer_name(link["from"])][parse_peer_name(link["to"])] = link["established"]
    return {PeerName(name): corner(links) for name, links in edges.items()}


def full_mesh(count: int) -> dict[PeerName, Corner]:
    return {
        PeerName(name): corner({other: True for other in range(1, count + 1) if other != name})
        for name in range(1, count + 1)
    }


def texts(table: Mapping[PeerName, PeerName]) -> dict[str, str]:
    return {format_peer_name(name): format_peer_name(hop) for name, hop in table.items()}


@pytest.mark.parametrize("vector", TOPOLOGIES, ids=[vector["name"] for vector in TOPOLOGIES])
def test_every_peer_computes_the_tables_of_the_reference(vector: Vector) -> None:
    graph = graph_of(vector)
    for text, view in vector["views"].items():
        routes = Routes(parse_peer_name(text))
        routes.recalculate(graph)
        assert texts(routes.unicast) == view["unicast"]
        assert texts(routes.unicast_all) == view["unicast_all"]
        for origin, hops in view["broadcast"].items():
            assert [format_peer_name(hop) for hop in routes.broadcast_row(parse_peer_name(origin))] == hops
        for origin, hops in view["broadcast_all"].items():
            assert [format_peer_name(hop) for hop in routes.broadcast_all_row(parse_peer_name(origin))] == hops


@pytest.mark.parametrize("vector", TOPOLOGIES, ids=[vector["name"] for vector in TOPOLOGIES])
def test_a_broadcast_gets_to_each_peer_that_can_be_reached_exactly_once(vector: Vector) -> None:
    graph = graph_of(vector)
    routes = {name: Routes(name) for name in graph}
    for each in routes.values():
        each.recalculate(graph)
    for origin in graph:
        heard = [origin]
        for name in heard:
            heard += routes[name].broadcast_row(origin)
        assert len(heard) == len(set(heard))
        assert sorted(heard) == sorted(walk(graph, origin, strict=True).next_hops)


def test_before_the_first_recalculation_only_we_are_there() -> None:
    routes = Routes(PeerName(7))
    assert routes.unicast == {7: 0}
    assert routes.unicast_all == {7: 0}
    assert routes.broadcast_row(PeerName(7)) == ()


def test_rows_of_other_origins_are_computed_when_asked_for_and_forgotten_with_the_table() -> None:
    routes = Routes(PeerName(1))
    routes.recalculate(full_mesh(3))
    assert sorted(routes.broadcast_rows) == [1]
    routes.broadcast_row(PeerName(2))
    assert sorted(routes.broadcast_rows) == [1, 2]
    routes.recalculate(full_mesh(3))
    assert sorted(routes.broadcast_rows) == [1]


def test_an_unknown_origin_has_no_hops_and_leaves_no_row() -> None:
    routes = Routes(PeerName(1))
    routes.recalculate(full_mesh(3))
    assert routes.broadcast_row(PeerName(99)) == ()
    assert routes.broadcast_all_row(PeerName(99)) == ()
    assert sorted(routes.broadcast_rows) == [1]


def test_a_table_is_not_changed_by_later_changes_of_the_graph_it_came_from() -> None:
    graph = full_mesh(3)
    routes = Routes(PeerName(1))
    routes.recalculate(MappingProxyType(graph))
    del graph[PeerName(3)]
    assert routes.broadcast_row(PeerName(3)) == ()
    assert sorted(routes.unicast) == [1, 2, 3]


def test_a_connection_to_somebody_who_is_not_in_the_graph_leads_nowhere() -> None:
    graph = {PeerName(1): corner({2: True, 3: True}), PeerName(2): corner({1: True})}
    assert walk(graph, PeerName(1), strict=False).next_hops == {1: 0, 2: 2}
    assert walk(graph, PeerName(1), strict=True).next_hops == {1: 0, 2: 2}


def test_a_full_mesh_is_looked_at_once_and_not_once_per_pair_of_peers() -> None:
    looks = 0

    class Watched(Corner):
        def __getattribute__(self, name: str) -> object:
            nonlocal looks
            looks += name == "connections"
            return super().__getattribute__(name)

    graph = {name: Watched(each.connections) for name, each in full_mesh(200).items()}
    Routes(PeerName(100)).recalculate(graph)
    assert looks < 5 * 200
