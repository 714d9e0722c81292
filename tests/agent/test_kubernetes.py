"""The agent's part in a cluster, against the API server of the tests and with a production node."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from apiserver import ApiServer, Json
from cluster import NODES, Halves, node

from weavenet.address import Endpoint, parse_subnet
from weavenet.agent import kubernetes as k
from weavenet.agent.config import AgentConfig, Flags, build_config
from weavenet.agent.kubernetes import KubernetesPart, init_mode
from weavenet.agent.loop import NodeLoop
from weavenet.agent.main import main
from weavenet.agent.reclaim import KEY_REGISTERED, Registered, decode_registered
from weavenet.drivers.clock import read_clock
from weavenet.effects import ConnectionNumber, PutValue, StoreChange
from weavenet.errors import ConfigError, ReclaimedError
from weavenet.identity import PeerName, PeerUID
from weavenet.ipam.allocator import IpamConfig, StoredState
from weavenet.ipam.modes import Consensus, Observer, Seed, Uncounted
from weavenet.ipam.restore import KEY_RING
from weavenet.kube import backoff
from weavenet.mesh.router import MeshConfig
from weavenet.node.node import Node, NodeConfig

LOG = logging.getLogger("test.kubernetes")
MAPS = "/api/v1/namespaces/kube-system/configmaps"
DAEMONSETS = "/apis/apps/v1/namespaces/kube-system/daemonsets"
NAME = PeerName(0x7A0000000001)
RULES: list[Json] = [  # the manifest's
    {"verbs": ["get", "list", "watch"], "resource": "nodes"},
    {"verbs": ["patch"], "resource": "nodes/status"},
    {"verbs": ["create"], "resource": "configmaps", "namespace": "kube-system"},
    {"verbs": ["get", "update"], "resource": "configmaps", "namespace": "kube-system", "names": ["weave-net"]},
    {"verbs": ["get", "list", "watch"], "resource": "daemonsets", "namespace": "kube-system", "names": ["weave-net"]},
]


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_S", 0.01)
    monkeypatch.setattr(backoff, "CAP_S", 0.05)
    monkeypatch.setattr(k, "DEPARTURE_PAUSE_S", 0.0)
    monkeypatch.setattr(k, "RECLAIM_AGAIN_S", 0.05)
    monkeypatch.setattr(k, "FIRST_ANSWER_S", 0.3)
    monkeypatch.setattr(k, "BEING_REMOVED_POLL_S", 0.01)
    monkeypatch.setattr(k, "LAST_QUESTION_S", 0.3)


@dataclass
class FakeTcp:
    dialled: set[str] = field(default_factory=set)

    def dial(self, connection: ConnectionNumber, remote: Endpoint) -> None:  # noqa: ARG002
        self.dialled.add(str(remote))

    def send(self, connection: ConnectionNumber, data: bytes) -> None:
        pass

    def close(self, connection: ConnectionNumber) -> None:
        pass


@dataclass
class FakeStore:
    values: dict[str, bytes] = field(default_factory=dict)

    def apply(self, changes: Sequence[StoreChange]) -> None:
        self.values |= {change.key: change.value for change in changes if isinstance(change, PutValue)}


def config_of(server: ApiServer, *more: str) -> AgentConfig:
    arguments = ["--kube-node", "a", "--kube-api", f"http://127.0.0.1:{server.port}"]
    arguments += ["--ipalloc-range", "10.32.0.0/12", *more]
    given = main.make_context("weaver", arguments).params
    return build_config(Flags(**{name: value for name, value in given.items() if name != "reset"}))


def part_of(config: AgentConfig) -> KubernetesPart:
    assert config.kube is not None
    return KubernetesPart(config, config.kube, NAME, LOG)


class Agent:
    """A part of an agent: its dealings with the API, and its node."""

    def __init__(self, config: AgentConfig) -> None:
        self.part = part_of(config)
        assert config.ipam is not None
        uid, universe = PeerUID(1), parse_subnet("10.32.0.0/12")
        mesh = MeshConfig(
            name=NAME,
            uid=uid,
            nickname="a",
            port=6783,
            trusted_subnets=(),
            connection_limit=0,
            discovery=True,
            min_version=1,
        )
        ipam = IpamConfig(NAME, uid, "a", universe, universe, self.part.init_mode(config.ipam.mode))
        self.node = Node(NodeConfig(mesh, ipam, 1376, 6784), Halves(), read_clock())
        self.store = FakeStore()
        self._thread = ThreadPoolExecutor(1)
        self.loop = NodeLoop(self.node, read_clock, self.store, self._thread, LOG)
        self.loop.tcp = FakeTcp()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.loop.take(self.node.start(StoredState({}, ()), [], read_clock()))
        self.part.join(self.loop)
        tasks = [asyncio.create_task(work) for work in (self.loop.run(), *self.part.works())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            self._thread.shutdown()
            failed = [task for task in tasks if not task.cancelled() and task.exception() is not None]
            assert not failed

    @property
    def targets(self) -> list[str]:
        return self.node.mesh.direct_targets()


async def until(true: Callable[[], bool]) -> None:
    """Wait for what another task will bring about; under the limit that `run` sets."""
    while not true():  # noqa: ASYNC110  # many things may make it true, none of which tells
        await asyncio.sleep(0.01)


def run(scenario: Callable[[ApiServer], Awaitable[None]]) -> None:
    async def play() -> None:
        server = ApiServer()
        await server.start()
        server.rules = RULES
        for number, name in enumerate("abc", 1):
            server.put(NODES, node(name, f"10.0.0.{number}", NetworkUnavailable="True"))
        server.put(DAEMONSETS, {"metadata": {"name": "weave-net"}})
        try:
            async with asyncio.timeout(15):
                await scenario(server)
        finally:
            await server.stop()

    asyncio.run(play())


def test_an_agent_joins_the_cluster_with_no_more_rights_than_the_manifest_grants() -> None:
    async def scenario(server: ApiServer) -> None:
        agent = Agent(config_of(server))
        async with agent.running():
            await until(lambda: agent.part.report().registered and agent.part.report().network_condition == "told")
            await until(lambda: KEY_REGISTERED in agent.store.values)
            assert agent.targets == ["10.0.0.2", "10.0.0.3"]
            said = agent.part.report()
            assert (said.reachable, said.nodes, said.peers) == (True, 3, ("10.0.0.2", "10.0.0.3"))
            assert (said.awaiting_count, said.reclaim, said.last_error) == (False, None, "")
            registered = decode_registered(agent.store.values[KEY_REGISTERED])
            assert registered is not None
            assert registered.node_uid == server.get(NODES, "a")["metadata"]["uid"]  # type: ignore[index]

    run(scenario)


def test_a_node_that_joins_is_connected_to_and_one_that_leaves_is_forgotten() -> None:
    async def scenario(server: ApiServer) -> None:
        agent = Agent(config_of(server))
        async with agent.running():
            await until(lambda: len(agent.targets) == 2)
            server.put(NODES, node("d", "10.0.0.4"))
            await until(lambda: "10.0.0.4" in agent.targets)
            server.drop(NODES, "b")
            await until(lambda: agent.targets == ["10.0.0.3", "10.0.0.4"])

    run(scenario)


def test_peers_that_were_named_are_used_and_the_apis_are_not() -> None:
    async def scenario(server: ApiServer) -> None:
        config = config_of(server, "10.9.9.9", "10.9.9.8")
        assert config.ipam is not None
        agent = Agent(config)
        async with agent.running():
            await until(lambda: agent.part.report().registered)
            assert agent.targets == []  # what the agent was started with is not this part's business
            assert agent.part.init_mode(config.ipam.mode) == Consensus(3)

    run(scenario)


def test_the_first_ring_waits_for_the_number_of_peers_and_all_else_does_not() -> None:
    async def scenario(server: ApiServer) -> None:
        await server.stop()
        agent = Agent(config_of(server))
        async with agent.running():
            await until(lambda: agent.part.report().reachable is False)
            assert agent.part.report().awaiting_count
            assert agent.node.ipam is not None
            asked = asyncio.create_task(agent.loop.request(k.i.AwaitConsensus, 10))
            await asyncio.sleep(0)
            status = agent.node.ipam.status()
            assert status.election is not None
            assert status.election.quorum == 0
            await server.start()
            await until(lambda: not agent.part.report().awaiting_count)
            status = agent.node.ipam.status()
            assert status.election is not None
            assert status.election.quorum == 2
            asked.cancel()

    run(scenario)


@pytest.mark.parametrize("mode", [Consensus(5), Seed((NAME,)), Observer()])
def test_a_way_to_the_first_ring_that_was_asked_for_is_taken(mode: Consensus | Seed | Observer) -> None:
    assert init_mode(mode, ()) == mode
    assert init_mode(Consensus(None), ()) == Uncounted()


def test_the_node_is_told_of_its_network_when_the_api_lets_us() -> None:
    async def scenario(server: ApiServer) -> None:
        server.fail("patch", status=503, count=3)
        agent = Agent(config_of(server))
        async with agent.running():
            await until(lambda: agent.part.report().network_condition == "told")
        assert len(server.asked("patch")) == 4

    run(scenario)


# --- a ring from before -----------------------------------------------------------------------------------------------


def stored(node_uid: str) -> StoredState:
    was = Registered("7a:00:00:00:00:01", "a", node_uid)
    return StoredState({KEY_REGISTERED: was.encode(), KEY_RING: b"a ring"}, ())


def lists(*pairs: tuple[str, str]) -> str:
    peers = ",".join(f'{{"PeerName":"{peer}","NodeName":"{name}"}}' for peer, name in pairs)
    return f'{{"Peers":[{peers}]}}'


US, OTHER = ("7a:00:00:00:00:01", "a"), ("7a:00:00:00:00:02", "b")


def put_list(server: ApiServer, *pairs: tuple[str, str], **locks: str) -> None:
    annotations = {"kube-peers.weave.works/peers": lists(*pairs)} | {
        f"kube-peers.weave.works/{key}": holder for key, holder in locks.items()
    }
    server.put(MAPS, {"metadata": {"name": "weave-net", "annotations": annotations}})


def test_a_ring_that_was_reclaimed_is_dropped_and_one_that_was_not_is_kept() -> None:
    async def scenario(server: ApiServer) -> None:
        put_list(server, OTHER)
        assert await part_of(config_of(server)).is_reclaimed(stored("former"))
        assert not await part_of(config_of(server)).is_reclaimed(StoredState({}, ()))
        put_list(server, US, OTHER)
        assert not await part_of(config_of(server)).is_reclaimed(stored("former"))

    run(scenario)


@pytest.mark.parametrize("status", [401, 403, 500, 503])
def test_without_an_answer_a_ring_is_kept(status: int) -> None:
    async def scenario(server: ApiServer) -> None:
        put_list(server, OTHER)
        server.fail("*", status=status, count=None)
        assert not await part_of(config_of(server)).is_reclaimed(stored("former"))
        await server.stop()
        assert not await part_of(config_of(server)).is_reclaimed(stored("former"))

    run(scenario)


def test_what_was_registered_without_a_ring_does_not_stop_the_agent() -> None:
    async def scenario(server: ApiServer) -> None:
        put_list(server, OTHER)
        agent = Agent(config_of(server))
        values = {KEY_REGISTERED: stored("former").values[KEY_REGISTERED]}
        assert not await agent.part.is_reclaimed(StoredState(values, ()))
        async with agent.running():
            await until(lambda: agent.part.report().registered)

    run(scenario)


def test_an_agent_that_learns_late_that_it_was_reclaimed_ends_to_start_afresh() -> None:
    async def scenario(server: ApiServer) -> None:
        put_list(server, OTHER)
        agent = Agent(config_of(server))
        server.fail("get", status=503, count=1000)
        assert not await agent.part.is_reclaimed(stored("former"))
        server.clear_faults()
        agent.part.join(agent.loop)
        follow = asyncio.create_task(agent.part._follow_nodes())
        with pytest.raises(ReclaimedError):
            await agent.part._keep_reclaiming()
        follow.cancel()
        await asyncio.wait([follow])

    run(scenario)


def test_a_node_that_is_being_reclaimed_waits_for_the_end_of_it() -> None:
    async def scenario(server: ApiServer) -> None:
        put_list(server, US, OTHER, **{"7a_00_00_00_00_01": OTHER[0]})
        asked = asyncio.create_task(part_of(config_of(server)).is_reclaimed(stored("former")))
        await until(lambda: len(server.asked("get")) > 4)
        assert not asked.done()
        put_list(server, OTHER)
        assert await asked

    run(scenario)


# --- the end ----------------------------------------------------------------------------------------------------------


def test_a_deleted_daemonset_means_uninstall_also_when_the_role_is_gone() -> None:
    async def scenario(server: ApiServer) -> None:
        agent = Agent(config_of(server))
        async with agent.running():
            await until(lambda: agent.part._intent.was_seen)
            await server.wait_for_watches(2)
            server.deny_all()  # kubectl deletes the roles first; a watch that is open stays so
            server.drop(DAEMONSETS, "weave-net")
            await until(agent.part.uninstall_wanted)
        assert await agent.part.is_uninstalled()

    run(scenario)


def test_a_daemonset_that_is_there_again_means_to_stay() -> None:
    async def scenario(server: ApiServer) -> None:
        agent = Agent(config_of(server))
        async with agent.running():
            await until(lambda: agent.part._intent.was_seen)
            await server.wait_for_watches(2)
            server.drop(DAEMONSETS, "weave-net")
            await until(agent.part.uninstall_wanted)
        server.put(DAEMONSETS, {"metadata": {"name": "weave-net"}})
        assert not await agent.part.is_uninstalled()

    run(scenario)


@pytest.mark.parametrize("fault", ["none", "status", "close", "hang", "garbage"])
def test_an_agent_that_is_only_stopped_stays_whatever_the_api_does(fault: str) -> None:
    async def scenario(server: ApiServer) -> None:
        agent = Agent(config_of(server))
        async with agent.running():
            await until(lambda: agent.part._intent.was_seen)
        if fault != "none":
            server.fail("get", fault, status=404 if fault == "status" else 500, count=None)
        if fault == "status":
            server.clear_faults()
            server.deny_all()
        assert not await agent.part.is_uninstalled()
        await server.stop()
        assert not await agent.part.is_uninstalled()

    run(scenario)


def test_flags_for_a_cluster_without_a_node_are_refused(tmp_path: Path) -> None:
    given = main.make_context("weaver", ["--kube-api", "https://10.0.0.1", "--state-dir", str(tmp_path)]).params
    with pytest.raises(ConfigError, match="only with --kube-node"):
        build_config(Flags(**{name: value for name, value in given.items() if name != "reset"}))
