"""The addresses of a node that has left the cluster become another's: once, whoever tries, and however often."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mesh_lab
import pytest
from kube_lab import CONFIG_MAPS, NODES, Cluster, running_cluster

from weavenet.lab.record import HostRecord

pytestmark = pytest.mark.kernel

PREFIX = "kube-peers.weave.works/"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running_cluster(tmp_path) as cluster:
        yield cluster


def record(cluster: Cluster) -> dict[str, str]:
    """Return the shared list of peers, and the locks; empty as long as there is none."""
    many = cluster.tell("get", path=CONFIG_MAPS, name="weave-net")
    annotations: dict[str, str] = many["metadata"]["annotations"]
    return annotations


def readings(cluster: Cluster) -> list[Any]:
    """Return the requests for the shared list."""
    return [each for each in cluster.tell("asked", verb="get") if each["path"] == CONFIG_MAPS]


def conflicts(cluster: Cluster) -> int:
    """Return how many wrote to a version of the list that was not the newest any more."""
    return sum(each["refused"] == 409 for each in cluster.tell("asked", verb="update"))


def reclaimed(cluster: Cluster, nodes: list[HostRecord]) -> list[str]:
    return [line for node in nodes for line in mesh_lab.logged(cluster.lab, node).splitlines() if " Reclaimed " in line]


def until_all_have_read_it(cluster: Cluster, nodes: list[HostRecord], before: int) -> None:
    mesh_lab.until(lambda: len(readings(cluster)) >= before + len(nodes), "all look at the list", cluster.lab, nodes[0])


def have_a_node_come_and_go(cluster: Cluster, name: str, left: list[HostRecord]) -> None:
    """Give everybody a reason to look whom to reclaim, and wait until they have."""
    before = len(readings(cluster))
    cluster.put_node(name, "10.99.0.100")
    cluster.tell("drop", path=NODES, name=name)
    until_all_have_read_it(cluster, left, before)


def test_a_node_that_is_gone_is_reclaimed_once_by_two_that_try_at_the_same_time(cluster: Cluster) -> None:
    nodes = [cluster.add_node() for _ in range(3)]
    left, gone = nodes[:-1], nodes[-1]
    for node in nodes:
        cluster.start(node)
    for node in nodes:  # two of the three agree on a first ring
        cluster.add_pod(node, f"pod-{node.name}")
        mesh_lab.until_logged(cluster.lab, node, f"Peer list: register {node.peer_name}")

    # Both read the list, and neither goes on before the other has come as far.
    before, conflicts_before = len(readings(cluster)), conflicts(cluster)
    cluster.tell("fail", verb="get", kind="hold", count=None)
    cluster.lab.kill_agent(gone)
    cluster.tell("drop", path=NODES, name=gone.name)
    until_all_have_read_it(cluster, left, before)
    cluster.tell("clear_faults")
    cluster.tell("release")
    mesh_lab.until(lambda: gone.peer_name not in record(cluster)[f"{PREFIX}peers"], "it is off the list")
    assert conflicts(cluster) > conflicts_before, "one of them came too late"

    # That was all, also for whoever looks again, or has just started.
    have_a_node_come_and_go(cluster, "passing-by", left)
    cluster.end(left[0])
    cluster.start(left[0])
    have_a_node_come_and_go(cluster, "passing-by-again", left)
    assert len(reclaimed(cluster, left)) == 1
    assert list(record(cluster)) == [f"{PREFIX}peers"], "no lock is left"
    for node in left:
        mesh_lab.until(
            lambda node=node: gone.peer_name not in mesh_lab.weave(cluster.lab, node, "status", "ipam"),
            "it owns nothing",
            cluster.lab,
            node,
        )
    for node in left:
        cluster.add_pod(node, f"late-{node.name}")
    addresses = [pod.address for pod in cluster.lab.record.pods if pod.host != gone.number]
    assert len(set(addresses)) == len(addresses) == 4
