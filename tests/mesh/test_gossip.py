import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest

from weavenet.effects import GossipKind, Now
from weavenet.identity import PeerName, format_peer_name, parse_peer_name
from weavenet.mesh import gossip as module
from weavenet.mesh.gossip import GossipData, Pending, Slot, SurrogateData, SurrogateMemory, choose_neighbours
from weavenet.mesh.routes import Routes, walk

Vector = dict[str, Any]
VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "mesh_routes.json").read_text())["vectors"]
A, B = PeerName(1), PeerName(2)


class Seeded:
    """Entropy from a seed."""

    def __init__(self, seed: int = 1) -> None:
        self._random = Random(seed)

    def bits(self, count: int) -> int:
        return self._random.getrandbits(count)

    def octets(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def fraction(self) -> float:
        return self._random.random()


@dataclass(frozen=True)
class Edge:
    established: bool


@dataclass(frozen=True)
class Corner:
    connections: dict[PeerName, Edge]


@dataclass(frozen=True)
class Numbers:
    """Gossip data that show how they were merged."""

    numbers: tuple[int, ...]

    def merge(self, newer: GossipData) -> "Numbers":
        assert isinstance(newer, Numbers)
        return Numbers(self.numbers + newer.numbers)

    def encode(self) -> list[bytes]:
        return [bytes(self.numbers)]


def at(time_s: float) -> Now:
    return Now(time_s, time_s)


def slot(kind: GossipKind = GossipKind.NEIGHBOUR, channel: str = "c", peer: PeerName = A) -> Slot:
    return Slot(kind, channel, peer)


# --- whom to tell -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", VECTORS["random_neighbours"], ids=lambda vector: vector["name"])
def test_neighbours_are_drawn_as_often_as_by_the_reference(vector: Vector) -> None:
    corners: dict[PeerName, Corner] = {PeerName(name): Corner({}) for name in range(1, vector["n_peers"] + 1)}
    for start, end in vector["edges"]:
        corners[PeerName(start)].connections[PeerName(end)] = Edge(established=True)
    unicast_all = walk(corners, PeerName(vector["self"]), strict=False).next_hops
    excluding = PeerName(vector["except"]) if vector["except"] else None
    entropy = Seeded()
    calls = 4000
    counts: dict[str, int] = {}
    for _ in range(calls):
        chosen = choose_neighbours(unicast_all, excluding, entropy)
        assert len(chosen) == len(set(chosen)) == vector["chosen_per_call"]
        for name in chosen:
            text = format_peer_name(name)
            counts[text] = counts.get(text, 0) + 1
    assert counts.keys() == vector["frequency_in_20000_calls"].keys()
    for text, frequency in vector["frequency_in_20000_calls"].items():
        assert counts[text] / calls == pytest.approx(frequency / 20000, abs=0.03)


@pytest.mark.parametrize("vector", VECTORS["topologies"], ids=lambda vector: vector["name"])
def test_as_many_neighbours_are_drawn_as_by_the_reference(vector: Vector) -> None:
    corners: dict[PeerName, Corner] = {parse_peer_name(name): Corner({}) for name in vector["peers"]}
    for link in vector["connections"]:
        edge = Edge(link["established"])
        corners[parse_peer_name(link["from"])].connections[parse_peer_name(link["to"])] = edge
    for text, view in vector["views"].items():
        routes = Routes(parse_peer_name(text))
        routes.recalculate(corners)
        chosen = choose_neighbours(routes.unicast_all, None, Seeded())
        assert len(chosen) == view["gossip_neighbours_chosen"]
        assert {format_peer_name(name) for name in chosen} <= view["gossip_weights"].keys()


def test_a_neighbour_with_many_peers_behind_it_is_drawn_more_often() -> None:
    # 2 leads to 80 of 100 peers, the others lead to themselves only. 13 are drawn of 21.
    unicast_all = {PeerName(0): PeerName(0), **{PeerName(name): PeerName(name) for name in range(2, 23)}}
    unicast_all |= {PeerName(name): PeerName(2) for name in range(23, 102)}
    entropy = Seeded()
    calls = [choose_neighbours(unicast_all, None, entropy) for _ in range(300)]
    assert {len(chosen) for chosen in calls} == {13}
    assert sum(2 in chosen for chosen in calls) == 300
    assert sum(3 in chosen for chosen in calls) < 250


def test_alone_there_is_nobody_to_tell() -> None:
    assert choose_neighbours({A: PeerName(0)}, None, Seeded()) == []


def test_the_only_neighbour_is_not_told_what_it_told_us() -> None:
    assert choose_neighbours({A: PeerName(0), B: B, PeerName(3): B}, B, Seeded()) == []


# --- waiting ----------------------------------------------------------------------------------------------------------


def test_data_for_the_same_slot_merge_in_order_and_others_stay_apart() -> None:
    pending = Pending()
    pending.add(slot(GossipKind.BROADCAST), Numbers((1,)))
    pending.add(slot(GossipKind.BROADCAST, peer=B), Numbers((2,)))
    pending.add(slot(), Numbers((3,)))
    pending.add(slot(GossipKind.BROADCAST), Numbers((4,)))
    pending.add(slot(channel="d"), Numbers((5,)))
    assert not pending.is_empty
    assert pending.take() == [
        (slot(), Numbers((3,))),
        (slot(channel="d"), Numbers((5,))),
        (slot(GossipKind.BROADCAST), Numbers((1, 4))),
        (slot(GossipKind.BROADCAST, peer=B), Numbers((2,))),
    ]
    assert pending.is_empty
    assert pending.take() == []


def test_there_is_room_for_so_many_slots_and_for_merging_into_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLOTS_MAX", 2)
    pending = Pending()
    assert pending.add(slot(channel="a"), Numbers((1,)))
    assert pending.add(slot(channel="b"), Numbers((1,)))
    assert not pending.add(slot(channel="c"), Numbers((1,)))
    assert pending.add(slot(channel="a"), Numbers((2,)))
    pending.take()
    assert pending.add(slot(channel="c"), Numbers((1,)))


def test_messages_that_cannot_be_merged_wait_up_to_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SURROGATE_BYTES_MAX", 2000)
    pending = Pending()
    assert pending.add(slot(channel="a"), SurrogateData((bytes(900),)))
    assert pending.add(slot(channel="b"), SurrogateData((bytes(900),)))
    assert not pending.add(slot(channel="a"), SurrogateData((bytes(900),)))
    assert pending.add(slot(channel="c"), Numbers((1,)))
    pending.take()
    assert pending.add(slot(channel="a"), SurrogateData((bytes(900),)))


# --- the surrogate ----------------------------------------------------------------------------------------------------


def test_a_surrogate_tells_messages_one_after_the_other() -> None:
    merged = SurrogateData((b"a",)).merge(SurrogateData((b"b",))).merge(SurrogateData((b"a",)))
    assert merged.encode() == [b"a", b"b", b"a"]


def test_an_identical_message_is_no_news_within_the_gossip_interval() -> None:
    memory = SurrogateMemory()
    assert memory.is_news("c", b"x", at(0))
    assert not memory.is_news("c", b"x", at(20))
    assert memory.is_news("c", b"y", at(20))
    assert memory.is_news("d", b"x", at(20))
    assert not memory.is_news("c", b"x", at(30))
    # Having been heard at 20 and at 30 again did not make it any newer.
    assert memory.is_news("c", b"x", at(30.1))
    assert not memory.is_news("c", b"y", at(30.1))


@pytest.mark.parametrize(("limit", "value"), [("SURROGATE_MESSAGES_MAX", 3), ("SURROGATE_BYTES_MAX", 6)])
def test_the_memory_of_a_surrogate_is_limited_and_loses_the_oldest(
    monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(module, limit, value)
    memory = SurrogateMemory()
    for message in (b"1", b"2", b"3", b"4"):
        assert memory.is_news("c", message, at(0))
    assert not memory.is_news("c", b"4", at(1))
    assert not memory.is_news("c", b"2", at(1))
    assert memory.is_news("c", b"1", at(1))
    assert memory.is_news("c", b"2", at(1))
