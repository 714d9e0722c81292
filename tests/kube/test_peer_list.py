"""The shared record: read and written as Weave does, one step at a time, safe whoever else does the same."""

import asyncio
import json

import pytest
from apiserver import ApiServer
from cluster import client_of
from msgspec.structs import replace

from weavenet.errors import KubeAnswerError, KubeStatusError
from weavenet.kube.peer_list import (
    PEERS_KEY,
    Confirm,
    Facts,
    ListedPeer,
    PeerRecord,
    Record,
    Settled,
    TakeOver,
    Write,
    lock_key,
    next_step,
    read_record,
)

MAPS = "/api/v1/namespaces/kube-system/configmaps"
US = ListedPeer("7a:00:00:00:00:01", "node-1")
GONE = ListedPeer("7a:00:00:00:00:02", "node-2")
OTHER = ListedPeer("7a:00:00:00:00:03", "node-3")
FACTS = Facts(US, {"node-1", "node-3"}, frozenset(), frozenset(), frozenset(), has_ring=True, is_alive=lambda _: False)


def record(*peers: ListedPeer, **locks: str) -> Record:
    listed = json.dumps({"Peers": [{"PeerName": each.peer_name, "NodeName": each.node_name} for each in peers]})
    held = {lock_key({"us": US, "gone": GONE, "other": OTHER}[who].peer_name): by for who, by in locks.items()}
    return read_record({PEERS_KEY: listed, "somebody/else": "x", **held})


def written(step: object) -> Record:
    assert isinstance(step, Write)
    assert step.annotations["somebody/else"] == "x"
    return read_record(step.annotations)


def test_the_annotations_are_weaves() -> None:
    step = next_step(read_record({}), FACTS)
    assert isinstance(step, Write)
    assert step.annotations == {
        "kube-peers.weave.works/peers": '{"Peers":[{"PeerName":"7a:00:00:00:00:01","NodeName":"node-1"}]}'
    }
    assert lock_key("7a:00:00:00:00:01") == "kube-peers.weave.works/7a_00_00_00_00_01"
    assert read_record({PEERS_KEY: '{"Peers":null}'}).peers == ()


def test_a_peer_that_moved_to_another_node_is_listed_there_only() -> None:
    moved = written(next_step(record(replace_node(US, "node-9"), OTHER), FACTS))
    assert sorted(moved.peers) == sorted([US, OTHER])


def replace_node(peer: ListedPeer, node_name: str) -> ListedPeer:
    return ListedPeer(peer.peer_name, node_name)


def test_a_gone_peer_is_confirmed_locked_confirmed_again_taken_over_and_removed_in_this_order() -> None:
    assert next_step(record(US, GONE, OTHER), FACTS) == Confirm(GONE, has_lock=False)
    facts = replace(FACTS, confirmed_gone={"node-2"})
    locked = written(next_step(record(US, GONE, OTHER), facts))
    assert locked.remover_of(GONE.peer_name) == US.peer_name
    assert next_step(locked, facts) == Confirm(GONE, has_lock=True)
    facts = replace(facts, locked_and_gone={GONE.peer_name})
    assert next_step(locked, facts) == TakeOver(GONE)
    facts = replace(facts, taken_over={GONE.peer_name})
    removed = written(next_step(locked, facts))
    assert sorted(removed.peers) == sorted([US, OTHER])
    assert set(removed.annotations) == {PEERS_KEY, "somebody/else"}
    assert next_step(removed, facts) == Settled(())


def test_a_lock_of_ours_from_before_a_restart_is_gone_on_with() -> None:
    assert next_step(record(US, GONE, gone=US.peer_name), FACTS) == Confirm(GONE, has_lock=True)


def test_what_another_listed_peer_is_removing_is_left_to_it() -> None:
    step = next_step(record(US, GONE, OTHER, gone=OTHER.peer_name), replace(FACTS, confirmed_gone={"node-2"}))
    assert step == Settled(((GONE.peer_name, f"being reclaimed by {OTHER.peer_name}"),))


def test_the_lock_of_a_peer_that_is_itself_no_longer_listed_is_taken() -> None:
    step = next_step(record(US, GONE, gone=OTHER.peer_name), replace(FACTS, confirmed_gone={"node-2"}))
    assert written(step).remover_of(GONE.peer_name) == US.peer_name


def test_removing_a_peer_frees_what_it_was_removing() -> None:
    facts = replace(FACTS, nodes={"node-1"}, confirmed_gone={"node-2", "node-3"}, taken_over={OTHER.peer_name})
    before = record(US, GONE, OTHER, gone=OTHER.peer_name, other=US.peer_name)
    # The gone peer sorts first; it is locked by one that is still listed, so that one comes first.
    after = written(next_step(before, facts))
    assert after.remover_of(GONE.peer_name) is None
    assert sorted(after.peers) == sorted([US, GONE])


def test_a_node_that_came_back_is_unlocked() -> None:
    step = next_step(record(US, GONE, gone=US.peer_name), replace(FACTS, nodes={"node-1", "node-2"}))
    assert written(step).remover_of(GONE.peer_name) is None


def test_a_peer_that_the_mesh_still_reaches_keeps_its_addresses() -> None:
    alive = replace(FACTS, confirmed_gone={"node-2"}, is_alive=lambda name: name == GONE.peer_name)
    step = next_step(record(US, GONE), alive)
    assert step == Settled(((GONE.peer_name, "node node-2 is gone, but the peer is alive"),))
    assert written(next_step(record(US, GONE, gone=US.peer_name), alive)).remover_of(GONE.peer_name) is None


def test_nothing_is_taken_over_before_there_is_a_ring() -> None:
    step = next_step(record(US, GONE), replace(FACTS, has_ring=False))
    assert isinstance(step, Settled)
    assert "no ring" in step.waiting[0][1]


def test_a_name_that_this_node_had_before_is_taken_over_without_asking_for_the_node() -> None:
    former = replace_node(GONE, "node-1")
    locked = written(next_step(record(US, former), FACTS))
    assert next_step(locked, FACTS) == TakeOver(former)


def test_a_peer_with_one_node_gone_and_one_present_is_present() -> None:
    assert next_step(record(US, GONE, replace_node(GONE, "node-3")), FACTS) == Settled(())


def test_what_is_no_peer_name_is_never_taken_over() -> None:
    step = next_step(record(US, ListedPeer("host2", "node-2")), FACTS)
    assert step == Settled((("host2", "is no peer name"),))


def test_a_list_that_does_not_decode_is_left_as_it_is() -> None:
    with pytest.raises(KubeAnswerError, match="stays as it is"):
        read_record({PEERS_KEY: "{"})


def test_an_update_keeps_what_we_know_nothing_of_and_loses_against_another_one() -> None:
    async def scenario() -> None:
        server = ApiServer()
        await server.start()
        peers = PeerRecord(client_of(server), "kube-system")
        server.put(
            MAPS, {"metadata": {"name": "weave-net", "labels": {"a": "b"}}, "data": {"k": "v"}, "immutable": False}
        )
        try:
            reading = await peers.read_or_create()
            await peers.write(reading, {"x": "1"})
            stored = server.get(MAPS, "weave-net")
            assert stored["data"] == {"k": "v"}
            assert stored["metadata"]["labels"] == {"a": "b"}  # type: ignore[index]
            assert stored["metadata"]["annotations"] == {"x": "1"}  # type: ignore[index]
            with pytest.raises(KubeStatusError) as refused:
                await peers.write(reading, {"x": "2"})
            assert refused.value.code == 409
            assert (await peers.read()).annotations == {"x": "1"}
        finally:
            await server.stop()

    asyncio.run(scenario())


def test_two_that_create_the_record_at_once_both_have_it() -> None:
    async def scenario() -> None:
        server = ApiServer()
        await server.start()
        try:
            both = [PeerRecord(client_of(server), "kube-system") for _ in range(2)]
            readings = await asyncio.gather(*(each.read_or_create() for each in both))
            assert readings[0].uid == readings[1].uid
            assert len(server.asked("create")) == 2
        finally:
            await server.stop()

    asyncio.run(scenario())
