"""A whole installation without a cluster: an API server for tests, and on each host what the DaemonSet's pod runs.

The API server is on the first lab host; on the others is `weave-kube`, and pods are added by what it installed there.
"""

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import apiserver
import mesh_lab
import pytest
from mesh_lab import until

from weavenet.lab import agents, process, runtime, traffic
from weavenet.lab.hosts import Lab
from weavenet.lab.record import HostRecord, PodRecord

pytestmark = pytest.mark.kernel

NODES, DAEMONSETS = "/api/v1/nodes", "/apis/apps/v1/namespaces/kube-system/daemonsets"
CONDITION = {"type": "NetworkUnavailable", "status": "True"}


@dataclass
class Cluster:
    """Hosts, of which the first has the API server and no agent."""

    lab: Lab
    base: Path
    api: HostRecord
    nodes: list[HostRecord] = field(default_factory=list)

    def tell(self, do: str, **words: object) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
            control.settimeout(mesh_lab.LIMIT_S)
            control.connect(str(self.base / "api.sock"))
            control.sendall(json.dumps({"do": do, **words}).encode() + b"\n")
            answer = json.loads(control.makefile().readline())
        assert "error" not in answer, answer

    def root(self, node: HostRecord) -> Path:
        return self.base / node.name

    def conflist(self, node: HostRecord) -> Path:
        return self.root(node) / "etc/cni/net.d/10-weave.conflist"

    def add_node(self) -> HostRecord:
        node = self.lab.add_host()
        self.nodes.append(node)
        for directory in ("opt", "etc/cni/net.d", "weavedb"):
            (self.root(node) / directory).mkdir(parents=True)
        addresses = [{"type": "InternalIP", "address": node.address}]
        status = {"addresses": addresses, "conditions": [CONDITION]}
        self.tell("put", path=NODES, object={"metadata": {"name": node.name}, "status": status})
        return node

    def environment(self, node: HostRecord) -> dict[str, str]:
        extra = (
            f"--name={node.peer_name} --run-dir={self.lab.paths.host(node)} --kube-api=http://{self.api.address}:6443"
        )
        return {
            **self.lab.environment(node),
            "HOSTNAME": node.name,
            "HOST_ROOT": str(self.root(node)),
            "DB_PREFIX": str(self.root(node) / "weavedb/weave-net"),
            "IPALLOC_RANGE": "10.32.0.0/12",
            "EXTRA_ARGS": extra,
            "INIT_CONTAINER": "true",
        }

    def start(self, node: HostRecord) -> None:
        """Do what the DaemonSet's pod does: the init container, then the agent."""
        program = str(agents.programs() / "weave-kube")
        inside, environment = self.lab.namespace(node.name), self.environment(node)
        process.run([program, "init"], namespace=inside, env=environment)
        log = self.lab.paths.log(node)
        node.agent = process.start(
            [program, "launch"], what=f"the agent of {node.name}", namespace=inside, log=log, env=environment
        )
        self.lab.paths.save(self.lab.record)
        until(self.conflist(node).exists, f"{node.name} has a network", self.lab, node)

    def add_pod(self, node: HostRecord, name: str, **runtime_config: object) -> tuple[PodRecord, str]:
        """Add a pod as a runtime does: by the conflist and the executables on the node."""
        pod = self.lab.make_pod(name, node)
        result = self.network(node, **runtime_config).add(self.lab.sandbox(pod))
        pod.address, _, _ = runtime.address_of(result).partition("/")
        return pod, result

    def network(self, node: HostRecord, **runtime_config: object) -> runtime.Network:
        written = json.loads(self.conflist(node).read_text())
        (plugin,) = written["plugins"]
        configuration = {**plugin, "name": written["name"], "cniVersion": written["cniVersion"]}
        configuration["runtimeConfig"] = runtime_config
        plugins = self.root(node) / "opt/cni/bin"
        return runtime.Network(plugins, self.lab.namespace(node.name), configuration, self.lab.environment(node))

    def looks(self, node: HostRecord) -> list[str]:
        """What is on a node, in its kernel and on its disk."""
        inside = self.lab.namespace(node.name)
        links = [line["ifname"] for line in json.loads(process.run(["ip", "-json", "link"], namespace=inside))]
        tables = process.run(["nft", "list", "tables"], namespace=inside).splitlines()
        files = [str(path.relative_to(self.root(node))) for path in self.root(node).rglob("*") if path.is_file()]
        return sorted(links + tables + files)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with mesh_lab.empty_lab(tmp_path, "kube") as lab, contextlib.ExitStack() as stack:
        cluster = Cluster(lab, tmp_path, lab.add_host())
        listen, control = f"{cluster.api.address}:6443", str(tmp_path / "api.sock")
        program = [sys.executable, apiserver.__file__, "--listen", listen, "--control", control]
        server = lab.start("api", program, where=cluster.api.name)
        stack.callback(lab.finish, server)
        until((tmp_path / "api.sock").exists, "the API server listens")
        cluster.tell("put", path=DAEMONSETS, object={"metadata": {"name": "weave-net"}})
        yield cluster


def end(cluster: Cluster, node: HostRecord) -> None:
    """End a pod as kubelet does, and wait."""
    assert node.agent is not None
    os.kill(node.agent.pid, signal.SIGTERM)
    agent = node.agent
    until(lambda: not agent.is_alive(), f"the agent of {node.name} ends", cluster.lab, node)
    node.agent = None


def test_a_cluster_is_installed_talks_and_is_left_as_it_was_found(cluster: Cluster) -> None:
    one, two = cluster.add_node(), cluster.add_node()
    before = [cluster.looks(node) for node in (one, two)]
    for node in (one, two):
        cluster.start(node)
    here, _ = cluster.add_pod(one, "here")
    there, result = cluster.add_pod(two, "there", portMappings=[{"HostPort": 8080, "ContainerPort": 80}])
    traffic.ping(cluster.lab, traffic.Route(here.name, there.name, there.address))
    assert "8080" in process.run(["nft", "list", "ruleset"], namespace=cluster.lab.namespace(two.name))
    status = mesh_lab.weave(cluster.lab, one, "status")
    assert "Nodes: 2" in status

    # A runtime's DEL finds everything; a restart, and so an update, leaves everything.
    with mesh_lab.streams(cluster.lab, here, there) as (out, back):
        end(cluster, one)
        assert cluster.conflist(one).exists()
        cluster.start(one)
        out.go_on(100)
        back.go_on(100)
    cluster.network(two).delete(cluster.lab.sandbox(there), result)

    cluster.tell("drop", path=DAEMONSETS, name="weave-net")
    for node in (one, two):
        until(lambda node=node: "has been deleted" in mesh_lab.logged(cluster.lab, node), "is seen", cluster.lab, node)
    for node, found in zip((one, two), before, strict=True):
        end(cluster, node)
        assert cluster.looks(node) == found


def test_a_node_that_is_gone_is_reclaimed_by_one_of_the_others(cluster: Cluster) -> None:
    nodes = [cluster.add_node() for _ in range(3)]
    for node in nodes:
        cluster.start(node)
    for node in nodes:
        cluster.add_pod(node, f"pod-{node.name}")
    gone, left = nodes[-1], nodes[:-1]
    cluster.lab.kill_agent(gone)
    cluster.tell("drop", path=NODES, name=gone.name)
    logs = lambda: [mesh_lab.logged(cluster.lab, node) for node in left]  # noqa: E731
    until(lambda: sum(log.count("Reclaimed ") for log in logs()), "somebody reclaims", cluster.lab, left[0])
    until(
        lambda: gone.peer_name not in mesh_lab.weave(cluster.lab, left[0], "status", "ipam"),
        "it owns nothing",
        cluster.lab,
        left[0],
    )
    assert sum(log.count("Reclaimed ") for log in logs()) == 1
