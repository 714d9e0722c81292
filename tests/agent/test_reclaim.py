"""Departed peers' addresses are taken over exactly once, whoever tries and whoever dies meanwhile."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest
from apiserver import ApiServer
from cluster import NODES, Halves, client_of, node

from weavenet.agent.reclaim import Reclaimer, Registered, Verdict, current_verdict, decode_registered, judge
from weavenet.errors import KubeError, KubeStatusError, ReclaimedError
from weavenet.kube.peer_list import PEERS_KEY, ListedPeer, PeerRecord, Record, Settled, lock_key, read_record

MAPS = "/api/v1/namespaces/kube-system/configmaps"
LOG = logging.getLogger("test.reclaim")
PEERS = [ListedPeer(f"7a:00:00:00:00:0{number}", f"node-{number}") for number in range(1, 5)]
ONE, TWO, THREE, FOUR = PEERS


@dataclass
class FakeMesh:
    taken: list[str] = field(default_factory=list)
    alive: set[str] = field(default_factory=set)
    ring: bool = True

    def has_ring(self) -> bool:
        return self.ring

    def is_alive(self, peer_name: str) -> bool:
        return peer_name in self.alive

    async def take_over(self, peer_name: str) -> int:
        self.taken.append(peer_name)
        await asyncio.sleep(0)
        return 7


async def no_pause(_: float) -> None:
    await asyncio.sleep(0)


def reclaimer(server: ApiServer, us: ListedPeer, mesh: FakeMesh) -> Reclaimer:
    client = client_of(server)
    return Reclaimer(client, PeerRecord(client, "kube-system"), us, mesh, Halves(), LOG, no_pause)


def annotate(server: ApiServer, peers: list[ListedPeer], **locks: ListedPeer) -> None:
    listed = [{"PeerName": each.peer_name, "NodeName": each.node_name} for each in peers]
    by = {lock_key(PEERS[int(which[1])].peer_name): holder.peer_name for which, holder in locks.items()}
    annotations = {PEERS_KEY: json.dumps({"Peers": listed}), **by}
    server.put(MAPS, {"metadata": {"name": "weave-net", "annotations": annotations}})


def listed(server: ApiServer) -> Record:
    return read_record(server.get(MAPS, "weave-net")["metadata"]["annotations"])  # type: ignore[index]


def run(scenario: Callable[[ApiServer], Awaitable[None]]) -> None:
    async def play() -> None:
        server = ApiServer()
        await server.start()
        for each in PEERS:
            server.put(NODES, node(each.node_name, "10.0.0.1"))
        try:
            async with asyncio.timeout(20):
                await scenario(server)
        finally:
            await server.stop()

    asyncio.run(play())


def names(server: ApiServer) -> set[str]:
    return set(server.objects[NODES])


def test_many_that_register_at_once_are_all_listed() -> None:
    async def scenario(server: ApiServer) -> None:
        rounds = [reclaimer(server, each, FakeMesh()).round(names(server), None, None) for each in PEERS]
        assert await asyncio.gather(*rounds) == [Settled(())] * 4
        assert sorted(listed(server).peers) == PEERS

    run(scenario)


@pytest.mark.parametrize("attempt", range(5))
def test_of_two_that_reclaim_at_once_exactly_one_takes_over(attempt: int) -> None:
    async def scenario(server: ApiServer) -> None:
        annotate(server, PEERS)
        server.drop(NODES, THREE.node_name)
        if attempt:  # let one of them be slower somewhere else each time
            server.fail(["get", "update", "get", "update"][attempt - 1], "slow", seconds=0.01)
        meshes = [FakeMesh(), FakeMesh(), FakeMesh()]
        parts = [reclaimer(server, us, mesh) for us, mesh in zip([ONE, TWO, FOUR], meshes, strict=True)]
        rounds = [part.round(names(server), None, None) for part in parts]
        await asyncio.gather(*rounds)
        # Whoever saw the lock of another was told to look again; by now there is nothing left to do.
        assert await parts[0].round(names(server), None, None) == Settled(())
        assert [taken for mesh in meshes for taken in mesh.taken] == [THREE.peer_name]
        assert sorted(listed(server).peers) == [ONE, TWO, FOUR]
        assert set(listed(server).annotations) == {PEERS_KEY}

    run(scenario)


class CrashError(Exception):
    pass


@pytest.mark.parametrize("writes", range(3))
@pytest.mark.parametrize("resumes", ["itself", "another"])
def test_a_reclaimer_that_dies_anywhere_is_resumed(writes: int, resumes: str) -> None:
    async def scenario(server: ApiServer) -> None:
        annotate(server, PEERS)
        server.drop(NODES, THREE.node_name)
        mesh = FakeMesh()
        dying = reclaimer(server, ONE, mesh)
        calls = 0
        write = dying._record.write

        async def dies(*arguments: object) -> None:
            nonlocal calls
            if calls == writes:
                raise CrashError
            calls += 1
            await write(*arguments)  # type: ignore[arg-type]

        dying._record.write = dies  # type: ignore[method-assign,assignment]
        if writes < 2:
            with pytest.raises(CrashError):
                await dying.round(names(server), None, None)
        else:
            await dying.round(names(server), None, None)
        if resumes == "itself":
            await reclaimer(server, ONE, mesh).round(names(server), None, None)
        else:
            # It never comes back: its node goes, too, and somebody else takes both over.
            server.drop(NODES, ONE.node_name)
            await reclaimer(server, TWO, mesh).round(names(server), None, None)
        assert THREE.peer_name in mesh.taken
        assert THREE not in listed(server).peers
        assert set(listed(server).annotations) == {PEERS_KEY}

    run(scenario)


def test_a_node_that_comes_back_behind_the_lock_keeps_its_addresses() -> None:
    async def scenario(server: ApiServer) -> None:
        annotate(server, PEERS)
        server.drop(NODES, THREE.node_name)
        mesh = FakeMesh()
        part = reclaimer(server, ONE, mesh)
        write = part._record.write

        async def comes_back(*arguments: object) -> None:
            await write(*arguments)  # type: ignore[arg-type]
            if THREE.node_name not in server.objects[NODES]:
                server.put(NODES, node(THREE.node_name, "10.0.0.3"))

        part._record.write = comes_back  # type: ignore[method-assign,assignment]
        gone = names(server)
        assert await part.round(gone, None, None) == Settled(())
        assert mesh.taken == []
        assert sorted(listed(server).peers) == PEERS
        assert set(listed(server).annotations) == {PEERS_KEY}

    run(scenario)


def test_a_view_of_the_nodes_that_is_out_of_date_takes_nobody_over() -> None:
    async def scenario(server: ApiServer) -> None:
        annotate(server, PEERS)
        mesh = FakeMesh()
        assert await reclaimer(server, ONE, mesh).round({ONE.node_name}, None, None) == Settled(())
        assert mesh.taken == []
        assert server.asked("update") == []

    run(scenario)


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
def test_an_api_that_refuses_the_question_is_no_evidence_of_departure(status: int) -> None:
    async def scenario(server: ApiServer) -> None:
        annotate(server, PEERS)
        server.drop(NODES, THREE.node_name)
        mesh = FakeMesh()
        server.rules = [{"verbs": ["get", "update"], "resource": "configmaps"}] if status == 403 else None
        if status != 403:
            server.fail("get", "slow", count=1)  # the record is read, the node cannot be
            server.fail("get", status=status)
        with pytest.raises(KubeStatusError):
            await reclaimer(server, ONE, mesh).round(names(server), None, None)
        assert mesh.taken == []

    run(scenario)


def test_a_peer_that_is_alive_waits_and_is_reclaimed_when_the_mesh_has_lost_it() -> None:
    async def scenario(server: ApiServer) -> None:
        annotate(server, PEERS)
        server.drop(NODES, THREE.node_name)
        mesh = FakeMesh(alive={THREE.peer_name})
        part = reclaimer(server, ONE, mesh)
        settled = await part.round(names(server), None, None)
        assert [peer for peer, _ in settled.waiting] == [THREE.peer_name]
        mesh.alive.clear()
        assert await part.round(names(server), None, None) == Settled(())
        assert mesh.taken == [THREE.peer_name]

    run(scenario)


# --- from the side of the node that left ------------------------------------------------------------------------------

WAS = Registered(ONE.peer_name, ONE.node_name, "uid-1")
LISTED, NOT_LISTED = Record((ONE, TWO), {}), Record((TWO,), {})


@pytest.mark.parametrize(
    ("registered", "record", "node_uid", "verdict"),
    [
        pytest.param(None, NOT_LISTED, "uid-2", Verdict.KEEP, id="never registered"),
        pytest.param(WAS, LISTED, "uid-1", Verdict.KEEP, id="a plain restart"),
        pytest.param(WAS, LISTED, "uid-2", Verdict.KEEP, id="removed, but nobody has reclaimed it"),
        pytest.param(WAS, NOT_LISTED, "uid-2", Verdict.DROP, id="removed and reclaimed"),
        pytest.param(WAS, Record((), {}), "uid-2", Verdict.DROP, id="a cluster made anew"),
        pytest.param(WAS, NOT_LISTED, "uid-1", Verdict.KEEP, id="the list was lost by hand"),
        pytest.param(WAS, NOT_LISTED, None, Verdict.KEEP, id="our node is not there"),
        pytest.param(
            Registered("7a:00:00:00:00:09", "node-1", "uid-1"), NOT_LISTED, "uid-2", Verdict.KEEP, id="another name"
        ),
        pytest.param(
            WAS,
            Record((ONE, TWO), {lock_key(ONE.peer_name): TWO.peer_name}),
            "uid-2",
            Verdict.WAIT,
            id="being taken over right now",
        ),
        pytest.param(
            WAS,
            Record((ONE, TWO), {lock_key(ONE.peer_name): THREE.peer_name}),
            "uid-2",
            Verdict.KEEP,
            id="locked by one that is itself gone",
        ),
    ],
)
def test_a_ring_from_before_is_dropped_only_with_evidence(
    registered: Registered | None, record: Record, node_uid: str | None, verdict: Verdict
) -> None:
    assert judge(registered, record, node_uid, ONE.peer_name) is verdict


def test_what_is_stored_is_read_back_and_nonsense_is_no_evidence() -> None:
    assert decode_registered(WAS.encode()) == WAS
    assert decode_registered(b"nonsense") is None
    assert decode_registered(None) is None


def test_a_running_peer_that_was_reclaimed_says_so_and_registers_no_more() -> None:
    async def scenario(server: ApiServer) -> None:
        annotate(server, [TWO])
        with pytest.raises(ReclaimedError, match="starting afresh"):
            await reclaimer(server, ONE, FakeMesh()).round(names(server), WAS, "uid-2")
        assert listed(server).peers == (TWO,)

    run(scenario)


def test_the_verdict_is_asked_of_the_api() -> None:
    async def scenario(server: ApiServer) -> None:
        client = client_of(server)
        peers = PeerRecord(client, "kube-system")
        uid = server.get(NODES, ONE.node_name)["metadata"]["uid"]  # type: ignore[index]
        now = Registered(ONE.peer_name, ONE.node_name, str(uid))
        assert await current_verdict(client, peers, now, ONE) is Verdict.KEEP  # no record at all
        assert await current_verdict(client, peers, WAS, ONE) is Verdict.DROP
        annotate(server, PEERS)
        assert await current_verdict(client, peers, WAS, ONE) is Verdict.KEEP
        server.deny_all()
        with pytest.raises(KubeError):
            await current_verdict(client, peers, WAS, ONE)

    run(scenario)
