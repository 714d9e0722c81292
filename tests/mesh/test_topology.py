import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weavenet.address import Endpoint
from weavenet.codec.gob import BOOL, BYTES, STRING, UINT16, UINT64, Encoder, Field, Struct, encode_one, slice_of
from weavenet.errors import CodecError, GossipError
from weavenet.identity import PeerName, PeerUID, ShortID, format_peer_name, parse_peer_name
from weavenet.mesh import records
from weavenet.mesh import topology as module
from weavenet.mesh.connector import discovered_targets
from weavenet.mesh.records import decode_update, encode_update
from weavenet.mesh.short_ids import ShortIDs
from weavenet.mesh.topology import Change, Peer, PeerConnection, Topology

Vector = dict[str, Any]
VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "mesh_topology.json").read_text())["vectors"]
SCENARIOS = VECTORS["scenarios"]
A, B, C, D = (PeerName(0x7A000000000A + index) for index in range(4))


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


def links(*names: PeerName) -> Mapping[PeerName, PeerConnection]:
    return MappingProxyType({name: PeerConnection("10.0.0.9:6783", outbound=True, established=True) for name in names})


def peer(
    name: PeerName, version: int = 1, short_id: int | None = None, to: Iterable[PeerName] = (), uid: int = 5
) -> Peer:
    return Peer(name, PeerUID(uid), version, "nick", None if short_id is None else ShortID(short_id), links(*to))


def merge(topology: Topology, *peers: Peer) -> Change:
    return topology.merge(b"".join(encode_update(peers)))


# --- vectors ----------------------------------------------------------------------------------------------------------


def peer_from(vector: Vector) -> Peer:
    return Peer(
        name=parse_peer_name(vector["name"]),
        uid=PeerUID(vector["uid"]),
        version=vector["version"],
        nickname=vector["nickname"],
        short_id=ShortID(vector["short_id"]) if vector["has_short_id"] else None,
        connections=MappingProxyType(
            {
                parse_peer_name(each["name"]): PeerConnection(each["address"], each["outbound"], each["established"])
                for each in vector.get("connections", [])
            }
        ),
    )


def peer_to(each: Peer) -> dict[str, object]:
    return {
        "name": format_peer_name(each.name),
        "uid": each.uid,
        "version": each.version,
        "nickname": each.nickname,
        "short_id": each.short_id or 0,
        "has_short_id": each.short_id is not None,
        "connections": [
            {
                "name": format_peer_name(remote),
                "address": link.address,
                "outbound": link.outbound,
                "established": link.established,
            }
            for remote, link in sorted(each.connections.items())
        ],
    }


def play(topology: Topology, step: Vector, errors: list[str]) -> Change:
    if step["action"] == "garbage_collect":
        return topology.collect_garbage()
    try:
        return topology.merge(bytes.fromhex(step["update_hex"]))
    except CodecError as error:
        errors.append(str(error))
        return Change()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=[scenario["name"] for scenario in SCENARIOS])
def test_updates_are_merged_as_by_the_reference(scenario: Vector) -> None:
    ourself = peer_from(scenario["ourself"])
    initial = [peer_from(each) for each in scenario["initial_peers"]]
    topology = Topology(next(each for each in initial if each.name == ourself.name), Seeded())
    for each in initial:
        topology.register(each)
    for name in scenario["local_connections_hold_a_reference_to"]:
        topology.hold(parse_peer_name(name))
    for step in scenario["steps"]:
        errors: list[str] = []
        change = play(topology, step, errors)
        assert bool(errors) == bool(step.get("error"))
        assert [format_peer_name(name) for name in change.mentioned] == step.get("update_names", [])
        assert [format_peer_name(name) for name in change.improved] == step.get("improved_names", [])
        assert [format_peer_name(each.name) for each in change.removed] == step["removed_peers"]
        assert change.invalidated == bool(step["short_id_invalidations"])
        owners = {str(number): format_peer_name(name) for number, name in topology.short_ids.principals().items()}
        assert owners == step["short_id_owners_after"]
        assert [peer_to(each) for each in topology.values()] == step["peers_after"]
        targets = discovered_targets(topology, ourself.name, topology.ourself.connections, port=6783)
        assert [str(target) for target in targets] == sorted(step["discovery_targets_after"])


@pytest.mark.parametrize("vector", VECTORS["encode_decode"], ids=lambda vector: vector["name"])
def test_an_update_is_read_as_the_reference_wrote_it_and_survives_being_written_by_us(vector: Vector) -> None:
    peers = decode_update(bytes.fromhex(vector["hex"]))
    assert [peer_to(each) for each in peers] == vector["peers"]
    assert decode_update(b"".join(encode_update(peers))) == peers


def test_a_lower_name_takes_our_short_id_and_we_draw_another() -> None:
    vector = VECTORS["short_id_self_collision"][0]
    topology = Topology(peer(B, vector["our_version_before"], vector["our_old_short_id"]), Seeded())
    change = merge(topology, peer(A, short_id=10, to=[B]))
    assert topology.ourself.version == vector["our_version_after"]
    assert topology.ourself.short_id not in {None, vector["our_old_short_id"]}
    assert format_peer_name(topology.principal(ShortID(10)) or PeerName(0)) == vector["id_10_owner"]
    assert (change.ours, change.short_ids, change.invalidated) == (True, True, True)


def test_a_higher_name_with_our_short_id_must_move_itself() -> None:
    vector = VECTORS["short_id_self_collision"][1]
    topology = Topology(peer(A, 1, 10), Seeded())
    change = merge(topology, peer(B, short_id=10, to=[A]))
    assert topology.ourself.version == vector["our_version_after"]
    assert topology.ourself.short_id == vector["our_short_id_after"]
    assert format_peer_name(topology.principal(ShortID(10)) or PeerName(0)) == vector["id_10_owner"]
    assert (change.ours, change.invalidated) == (False, False)


# --- the record of ourself --------------------------------------------------------------------------------------------


def test_each_change_of_our_connections_is_a_new_version_and_leaves_older_records_as_they_were() -> None:
    topology = Topology(peer(A, 0, 10), Seeded())
    before = topology.ourself
    topology.set_connection(B, PeerConnection("10.0.0.2:6783", outbound=True, established=False))
    topology.set_connection(B, PeerConnection("10.0.0.2:6783", outbound=True, established=True))
    assert topology.ourself.version == 2
    assert topology.ourself.connections[B].established
    topology.delete_connection(B)
    assert topology.ourself.version == 3
    assert not topology.ourself.connections
    assert (before.version, dict(before.connections)) == (0, {})


def test_our_version_wraps_rather_than_leave_64_bits() -> None:
    topology = Topology(peer(A, 3, 10, uid=1), Seeded())
    change = merge(topology, peer(A, (1 << 64) - 1, uid=2))
    assert topology.ourself.version == 0
    assert change.ours
    decode_update(b"".join(topology.encode(frozenset([A]))))


# --- what others tell -------------------------------------------------------------------------------------------------


def test_an_introduction_teaches_nothing_about_a_known_peer() -> None:
    topology = Topology(peer(A, 0, 10), Seeded())
    merge(topology, peer(B, 4, 20, to=[A]))
    topology.register(peer(B, 0, 21, uid=99))
    assert (topology[B].uid, topology[B].version, topology[B].short_id) == (5, 4, 20)


def test_a_peer_that_introduces_itself_with_our_short_id_and_a_lower_name_displaces_us() -> None:
    topology = Topology(peer(B, 1, 10), Seeded())
    change = topology.register(peer(A, 0, 10))
    assert change.ours
    assert topology.ourself.short_id != 10


def test_a_bad_update_changes_nothing_at_all() -> None:
    topology = Topology(peer(A, 1, 10), Seeded())
    good = b"".join(encode_update([peer(B, to=[A, C]), peer(C)]))
    for length in range(1, len(good)):
        try:
            topology.merge(good[:length])
        except CodecError:
            assert list(topology) == [A]
        else:
            # The cut was between two peers.
            assert list(topology) == [A, B, C]
            topology = Topology(peer(A, 1, 10), Seeded())


@given(st.binary(max_size=60), st.integers(0, 200))
@settings(max_examples=300, deadline=None)
def test_bytes_that_are_no_update_are_refused_and_nothing_worse(noise: bytes, place: int) -> None:
    good = b"".join(encode_update([peer(B, to=[A, C]), peer(C)]))
    for data in (noise, good[:place] + noise + good[place + len(noise) :]):
        topology = Topology(peer(A, 1, 10), Seeded())
        try:
            topology.merge(data)
        except CodecError:
            assert list(topology) == [A]
        topology.encode(frozenset(topology))


class Summary(msgspec.Struct, frozen=True):
    name: bytes
    short_id: int
    has_short_id: bool
    nickname: str


class OldSummary(msgspec.Struct, frozen=True):
    name: bytes
    version: int


class Link(msgspec.Struct, frozen=True):
    name: bytes
    address: str


SUMMARY = Struct(
    "peerSummary",
    Summary,
    (
        Field("NameByte", "name", BYTES),
        Field("ShortID", "short_id", UINT16),
        Field("HasShortID", "has_short_id", BOOL),
        Field("NickName", "nickname", STRING),
    ),
)
OLD_SUMMARY = Struct("peerSummary", OldSummary, (Field("NameByte", "name", BYTES), Field("Version", "version", UINT64)))
LINKS = slice_of(Struct("c", Link, (Field("NameByte", "name", BYTES), Field("RemoteTCPAddr", "address", STRING))))


def odd_update(name: bytes, short_id: int = 1, nickname: str = "") -> bytes:
    encoder = Encoder()
    summary = Summary(name, short_id, True, nickname)
    return encoder.encode(SUMMARY, summary) + encoder.encode(LINKS, [Link(name, "x" * 1000)])


@pytest.mark.parametrize("name", [b"", bytes(6), b"\1" + bytes(6), b"\xff" * 8, b"\xff" * 9])
def test_what_is_not_a_peer_name_is_left_out(name: bytes) -> None:
    assert decode_update(odd_update(name)) == []


def test_values_without_meaning_are_mended() -> None:
    (read,) = decode_update(odd_update(b"\1", short_id=4096, nickname="n" * 2000))
    assert read.short_id is None
    assert len(read.nickname) == records.NICKNAME_CHARACTERS_MAX
    assert len(read.connections[PeerName(1)].address) == records.ADDRESS_CHARACTERS_MAX


def test_a_peer_older_than_short_ids_is_understood() -> None:
    encoder = Encoder()
    data = encoder.encode(OLD_SUMMARY, OldSummary(b"\2", 7)) + encoder.encode(LINKS, [])
    assert decode_update(data) == [Peer(PeerName(2), version=7)]


def test_an_update_of_something_else_is_refused() -> None:
    with pytest.raises(CodecError):
        decode_update(encode_one(STRING, "topology"))


def test_a_table_that_would_get_too_large_refuses_the_update_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PEERS_MAX", 3)
    topology = Topology(peer(A, 1, 10), Seeded())
    with pytest.raises(GossipError, match="exceed 3 peers"):
        merge(topology, peer(B, to=[A, C, D]))
    assert list(topology) == [A]
    merge(topology, peer(B, to=[A, C]))
    with pytest.raises(GossipError):
        topology.register(peer(D))


def test_connections_are_counted_against_a_limit_and_replaced_ones_do_not_count_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CONNECTIONS_MAX", 3)
    topology = Topology(peer(A, 1, 10), Seeded())
    merge(topology, peer(B, 1, to=[A, C, D]))
    merge(topology, peer(B, 2, to=[A, C, D]))
    with pytest.raises(GossipError, match="exceed 3 connections"):
        merge(topology, peer(C, 1, to=[A]))
    merge(topology, peer(B, 3, to=[A]))
    merge(topology, peer(C, 1, to=[A, B]))


def record() -> st.SearchStrategy[Peer]:
    names = st.sampled_from([A, B, C, D])
    return st.builds(
        peer,
        name=names,
        version=st.integers(0, 3),
        short_id=st.none() | st.integers(0, 3),
        to=st.sets(names).map(sorted),
        uid=st.integers(1, 2),
    )


def known_of(topology: Topology) -> dict[PeerName, tuple[int, int]]:
    return {name: (each.version, each.uid) for name, each in topology.items() if name != A}


@given(st.lists(st.lists(record(), max_size=4), max_size=5), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_updates_in_any_order_and_any_number_of_times_lead_to_the_same_versions(
    updates: list[list[Peer]], random: Random
) -> None:
    one = Topology(peer(A, 1, 10), Seeded())
    other = Topology(peer(A, 1, 10), Seeded())
    for update in updates:
        merge(one, *update)
    for update in random.sample(updates + updates, k=2 * len(updates)):
        merge(other, *update)
    assert known_of(one) == known_of(other)


@given(st.lists(st.lists(record(), max_size=4), max_size=6))
@settings(max_examples=200, deadline=None)
def test_the_index_of_short_ids_always_agrees_with_the_records(updates: list[list[Peer]]) -> None:
    topology = Topology(peer(B, 1, 2), Seeded())
    for index, update in enumerate(updates):
        if index % 3 == 2:
            topology.collect_garbage()
        merge(topology, *update)
        users: dict[int, PeerName] = {}
        for name, each in topology.items():
            if each.short_id is not None:
                users.setdefault(each.short_id, name)
        assert topology.short_ids.principals() == users
        assert topology.principal(topology.ourself.short_id or ShortID(0)) == B


# --- sending ----------------------------------------------------------------------------------------------------------


def test_peers_that_were_collected_meanwhile_are_left_out_of_an_update() -> None:
    topology = Topology(peer(A, 1, 10), Seeded())
    merge(topology, peer(B, to=[A]))
    assert [each.name for each in decode_update(b"".join(topology.encode(frozenset([A, B]))))] == [A, B]
    assert [each.name for each in topology.collect_garbage().removed] == [B]
    assert [each.name for each in decode_update(b"".join(topology.encode(frozenset([A, B]))))] == [A]
    assert topology.encode(frozenset([B])) == []


def test_an_update_carries_the_state_at_the_time_it_is_sent() -> None:
    topology = Topology(peer(A, 1, 10), Seeded())
    assert decode_update(topology.encode(frozenset([A]))[0])[0].version == 1
    topology.set_connection(B, PeerConnection("10.0.0.2:6783", outbound=True, established=False))
    assert decode_update(topology.encode(frozenset([A]))[0])[0].version == 2


def test_an_update_that_gets_too_long_becomes_several_that_are_complete_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "UPDATE_BYTES_MAX", 300)
    peers = [peer(PeerName(index), to=[A, B]) for index in range(1, 20)]
    updates = encode_update(peers)
    assert len(updates) > 3
    assert [each for update in updates for each in decode_update(update)] == peers


def test_a_topology_of_5000_peers_with_20_connections_each_fits_in_one_update() -> None:
    names = [PeerName(index) for index in range(1, 5001)]
    peers = [peer(name, short_id=name & 4095, to=[names[(name + step) % 5000] for step in range(20)]) for name in names]
    (update,) = encode_update(peers)
    topology = Topology(peers[0], Seeded())
    assert len(topology.merge(update).improved) == 4999
    assert topology.merge(update).improved == ()
    assert topology.collect_garbage().removed == ()


# --- discovery --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "outbound", "expected"),
    [
        ("10.0.0.7:7000", True, "10.0.0.7:7000"),
        ("10.0.0.7:51515", False, "10.0.0.7:6783"),
        ("[fe80::1]:6783", True, None),
        ("", False, None),
        ("host:6783", True, None),
        ("10.0.0.7:0", True, None),
    ],
)
def test_the_address_of_a_connection_tells_where_its_far_end_listens(
    address: str, outbound: bool, expected: str | None
) -> None:
    link = {C: PeerConnection(address, outbound=outbound, established=True)}
    peers = {A: Peer(A), B: Peer(B, connections=MappingProxyType(link))}
    found = discovered_targets(peers, A, (), port=6783)
    assert found == ([] if expected is None else [Endpoint.parse(expected)])


# --- short IDs --------------------------------------------------------------------------------------------------------


class Stuck:
    """Entropy that always draws the same."""

    def __init__(self, number: int, fraction: float) -> None:
        self._number, self._fraction = number, fraction

    def bits(self, _count: int) -> int:
        return self._number

    def octets(self, count: int) -> bytes:
        return bytes(count)

    def fraction(self) -> float:
        return self._fraction


def test_when_random_draws_fail_one_of_the_free_numbers_is_taken() -> None:
    index = ShortIDs()
    for number in range(4096):
        if number not in {17, 99}:
            index.add(ShortID(number), A)
    assert index.draw(Stuck(0, 0.0)) == 17
    assert index.draw(Stuck(0, 0.999)) == 99


def test_with_every_number_in_use_we_keep_colliding_until_a_collection_frees_one() -> None:
    topology = Topology(peer(D, 1, 10), Seeded())
    topology.hold(PeerName(11))
    merge(topology, *(peer(PeerName(number + 1), short_id=number) for number in range(4096)))
    assert topology.ourself.short_id == 10
    assert topology.principal(ShortID(10)) == 11
    change = topology.collect_garbage()
    assert len(change.removed) == 4095
    assert change.ours
    assert topology.principal(ShortID(10)) == 11
    assert topology.principal(topology.ourself.short_id or ShortID(0)) == D


def test_when_the_principal_goes_the_next_lowest_name_takes_over() -> None:
    index = ShortIDs()
    assert not index.add(ShortID(1), C)
    assert index.add(ShortID(1), A)
    assert not index.add(ShortID(1), B)
    assert index.remove(ShortID(1), A)
    assert index.principal(ShortID(1)) == B
    assert not index.remove(ShortID(1), C)
    assert not index.remove(ShortID(1), B)
    assert index.principal(ShortID(1)) is None
    assert index.add(ShortID(1), D)
