"""A whole installation without a cluster: what the manifest says, run on lab hosts against an API server for tests.

Pods and containers are added by what it has installed on the nodes; nothing here knows of agents but kube_lab.py.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import mesh_lab
import pytest
import runtime as containers
from kube_lab import NODES, Cluster, running_cluster

from weavenet.errors import LabError
from weavenet.lab import agents, process, traffic
from weavenet.lab.namespace import Namespace
from weavenet.lab.record import HostRecord, PodRecord

pytestmark = pytest.mark.kernel

RETRY_S = 0.02  # between two tries of a runtime that is told to try again later
# A process of its own writes it: from one that also starts programs, these inherit what is open for writing for a
# moment, and as long the file cannot be executed (ETXTBSY).
MAKE_OLDER = 'cp -p "$1" "$1.older" && printf "\\0" >>"$1.older" && mv "$1.older" "$1"'


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running_cluster(tmp_path) as cluster:
        yield cluster


def two_nodes(cluster: Cluster) -> tuple[HostRecord, HostRecord]:
    one, two = cluster.add_node(), cluster.add_node()
    for node in (one, two):
        cluster.start(node)
    return one, two


def network_condition(cluster: Cluster, node: HostRecord) -> dict[str, str]:
    """Return what the API server has of a node, as anybody reads it."""
    conditions = cluster.tell("get", path=NODES, name=node.name)["status"]["conditions"]
    assert sorted(each["type"] for each in conditions) == ["NetworkUnavailable", "Ready"]
    return next(each for each in conditions if each["type"] == "NetworkUnavailable")


def exchange(server: Namespace, port: int, client: Namespace, address: tuple[str, int]) -> str:
    """Have a TCP connection, with a question and an answer; return who the server took the client for."""
    with server.entered():
        listener = mesh_lab.listen_tcp(port)
    with listener:
        with client.entered():
            asking = mesh_lab.connect_tcp(address)
        with asking:
            answering, (peer, _) = listener.accept()
            with answering:
                answering.settimeout(mesh_lab.LIMIT_S)
                asking.sendall(b"question")
                assert answering.recv(64) == b"question"
                answering.sendall(b"answer")
                assert asking.recv(64) == b"answer"
    return peer


def test_pods_and_their_host_ports_are_reached_from_all_sides(cluster: Cluster) -> None:
    one, two = two_nodes(cluster)
    limits = {"IngressRate": 8_000_000, "IngressBurst": 800_000, "EgressRate": 8_000_000, "EgressBurst": 800_000}
    here, _ = cluster.add_pod(one, "here", bandwidth=limits)
    # containerd's spelling, of this and of the rates: cni/runtime.py.
    there, result = cluster.add_pod(two, "there", portMappings=[{"HostPort": 8080, "ContainerPort": 80}])
    traffic.ping(cluster.lab, traffic.Route(here.name, there.name, there.address))
    assert "Nodes: 2" in mesh_lab.weave(cluster.lab, one, "status")
    assert "rate 8Mbit" in process.run(["tc", "qdisc"], namespace=cluster.lab.namespace(one.name))

    pod = cluster.lab.namespace(there.name)
    assert exchange(pod, 80, cluster.lab.namespace(here.name), (there.address, 80)) == here.address
    for other in (cluster.api.name, one.name, here.name):  # a host without an agent, one with it, and a pod on it
        exchange(pod, 80, cluster.lab.namespace(other), (two.address, 8080))
    cluster.network(two).delete(cluster.lab.sandbox(there), result)
    assert "8080" not in process.run(["nft", "list", "ruleset"], namespace=cluster.lab.namespace(two.name))


def test_a_node_says_that_its_network_is_available(cluster: Cluster) -> None:
    node = cluster.add_node()
    assert network_condition(cluster, node)["status"] == "True"
    cluster.start(node)
    mesh_lab.until(lambda: network_condition(cluster, node)["status"] == "False", "it says so", cluster.lab, node)
    said = network_condition(cluster, node)
    assert (said["reason"], said["message"]) == ("WeaveIsUp", "Weave pod has set this")
    assert said["lastTransitionTime"]


class Caller(threading.Thread):
    """A runtime that adds a pod and deletes it, over and over, and tries again what fails; all failures are kept."""

    def __init__(self, cluster: Cluster, node: HostRecord, pod: PodRecord) -> None:
        super().__init__(name=f"runtime of {pod.name}")
        self._network = cluster.network(node)
        self._conflist = cluster.conflist(node)
        self._sandbox = cluster.lab.sandbox(pod)
        self._ended = threading.Event()
        self.failures: Counter[str] = Counter()
        self.done = 0

    def run(self) -> None:
        while not self._ended.is_set():
            result = self._until_done("ADD")
            if result is not None and self._until_done("DEL", result) is not None:
                self.done += 1

    def _until_done(self, verb: str, result: str = "") -> str | None:
        """Try until it is done, and return what was said; None if it was not, and is not to be tried any more."""
        deadline_s = time.monotonic() + mesh_lab.LIMIT_S
        while not self._ended.is_set() or time.monotonic() < deadline_s:
            if not self._conflist.exists():
                self.failures["there is no conflist"] += 1
            try:
                return self._network.call(verb, self._sandbox, result)
            except LabError as error:
                self.failures[str(error)] += 1
                time.sleep(RETRY_S)
        return None

    def finish(self) -> None:
        self._ended.set()
        self.join(mesh_lab.LIMIT_S)


def test_an_update_of_the_agent_delays_pods_that_are_added_and_fails_none(cluster: Cluster) -> None:
    one, two = two_nodes(cluster)
    here, _ = cluster.add_pod(one, "here")
    there, _ = cluster.add_pod(two, "there")
    late = cluster.lab.make_pod("late", one)
    callers = [Caller(cluster, one, cluster.lab.make_pod(f"short-{number}", one)) for number in range(2)]
    try:
        with mesh_lab.streams(cluster.lab, here, there):
            for caller in callers:
                caller.start()
            for _ in range(2):
                # The version before had other executables, so these are replaced while they are being run.
                for path in sorted(cluster.plugins(one).glob("weave-*")):
                    process.run(["sh", "-c", MAKE_OLDER, "sh", str(path)])
                cluster.end(one)
                with pytest.raises(LabError, match=r"the weavenet agent does not answer .*, code 11"):
                    cluster.network(one).add(cluster.lab.sandbox(late))
                cluster.start(one)
                enough = {caller: caller.done + 2 for caller in callers}
                mesh_lab.until(
                    lambda enough=enough: all(caller.done > count for caller, count in enough.items()),
                    "pods are added and deleted again",
                    cluster.lab,
                    one,
                )
    finally:
        for caller in callers:
            caller.finish()
    result = cluster.network(one).add(cluster.lab.sandbox(late))  # the same ADD again
    late.address = json.loads(result)["ips"][0]["address"].partition("/")[0]
    traffic.ping(cluster.lab, traffic.Route(late.name, there.name, there.address))
    failures = sum((caller.failures for caller in callers), Counter())
    assert all(text.endswith(", code 11") for text in failures), failures
    plugins = [(cluster.plugins(node) / "weave-net").read_bytes() for node in (one, two)]
    assert plugins[0] == plugins[1], "the one that was replaced is the newer one again"
    owned = {each["containerid"] for each in json.loads(agents.query(cluster.lab.paths, one, "/ip"))["owned"]}
    assert owned - {"weave:expose"} == {f"{pod.container}/eth0" for pod in (here, late)}, "and nothing is left over"


def test_containers_of_containerd_reach_each_other_by_what_is_installed(cluster: Cluster, tmp_path: Path) -> None:
    if missing := containers.missing_programs():
        pytest.skip(f"needs {', '.join(missing)}")
    nodes = two_nodes(cluster)
    with ExitStack() as stack:
        running = []
        for node in nodes:
            base = tmp_path / f"{node.name}.runtime"
            base.mkdir()
            inside, sockets = cluster.lab.namespace(node.name), agents.sockets(cluster.lab.paths, node)
            configurations = cluster.conflist(node).parent
            manager = containers.running_runtime(inside.path, base, configurations, cluster.plugins(node), sockets)
            running.append(stack.enter_context(manager))
        here, there = (each.start("c") for each in running)
        shown = [json.loads(each.run("ip", "-json", "-4", "addr", "show", "eth0").stdout) for each in (here, there)]
        addresses = [text[0]["addr_info"][0]["local"] for text in shown]
        assert here.reaches(addresses[1])
        assert there.reaches(addresses[0])
        pod, _ = cluster.add_pod(nodes[0], "pod")
        for address in addresses:
            traffic.ping(cluster.lab, traffic.Route(pod.name, "a container", address))
        assert [each.stop("c") for each in running] == ["", ""]
