"""The API server misbehaves, or is not to be believed; pods get their network meanwhile, and afterwards all goes on."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mesh_lab
import pytest
from certificates import make_certificate
from kube_lab import NODES, Cluster, running_cluster

from weavenet.lab import traffic
from weavenet.lab.record import HostRecord

pytestmark = pytest.mark.kernel

Command = dict[str, object]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running_cluster(tmp_path) as cluster:
        yield cluster


@dataclass(frozen=True)
class Fault:
    """What goes wrong with the API: how it begins, and how it is over."""

    name: str
    begin: tuple[Command, ...]
    end: tuple[Command, ...] = ()


def always(kind: str, **words: object) -> Command:
    return {"do": "fail", "verb": "*", "kind": kind, "count": None, **words}


CLEAR: Command = {"do": "clear_faults"}
FAULTS = (
    Fault("410 in a watch", ({"do": "expire_watches"},)),
    Fault("410 to a watch", ({"do": "fail", "verb": "watch", "status": 410, "count": 4}, {"do": "end_watches"})),
    Fault("429", (always("status", status=429, retry_after=1), {"do": "end_watches"}), (CLEAR,)),
    Fault("slow", (always("slow", seconds=1.0), {"do": "end_watches"}), (CLEAR,)),
    Fault("cut", (always("close"), {"do": "cut"}), (CLEAR,)),
)


def do(cluster: Cluster, commands: tuple[Command, ...]) -> None:
    for command in commands:
        cluster.tell(**command)  # type: ignore[arg-type]


def assert_node_is_noticed(cluster: Cluster, name: str, number: int, nodes: list[HostRecord]) -> None:
    address = f"10.99.0.{number}"
    cluster.put_node(name, address)
    for node in nodes:
        mesh_lab.until_logged(cluster.lab, node, "Peers by the Kubernetes API", address)


def test_pods_are_added_whatever_the_api_does_and_peers_and_reclaim_go_on_afterwards(cluster: Cluster) -> None:
    nodes = [cluster.add_node() for _ in range(3)]
    for node in nodes:
        cluster.start(node)
    left, gone = nodes[:-1], nodes[-1]
    for node in nodes:
        mesh_lab.until_logged(cluster.lab, node, f"Peer list: register {node.peer_name}")
        cluster.add_pod(node, f"first-{node.name}")
    for number, fault in enumerate(FAULTS, 101):
        asked = len(cluster.tell("asked"))
        do(cluster, fault.begin)
        mesh_lab.until(lambda asked=asked: len(cluster.tell("asked")) >= asked + len(nodes), f"{fault.name} is met")
        for node in left:
            cluster.add_pod(node, f"pod-{number}-{node.name}")
        do(cluster, fault.end)
        assert_node_is_noticed(cluster, fault.name.replace(" ", "-"), number, left)
        # Nodes and DaemonSet are watched by each. Only a watch that holds makes the next wait a short one again.
        cluster.tell("wait_for_watches", count=2 * len(nodes))
        cluster.tell("bookmark")

    # The last one: while there is no server a node goes, and what comes back has another history.
    cluster.tell("stop")
    cluster.lab.kill_agent(gone)
    cluster.tell("drop", path=NODES, name=gone.name)
    here, _ = cluster.add_pod(left[0], "here")
    there, _ = cluster.add_pod(left[1], "there")
    cluster.tell("new_history")
    cluster.tell("start")
    assert_node_is_noticed(cluster, "after-restart", 100, left)
    mesh_lab.until(
        lambda: any(f"of {gone.peer_name}: node" in mesh_lab.logged(cluster.lab, node) for node in left),
        "its addresses are reclaimed",
        cluster.lab,
        left[0],
    )
    traffic.ping(cluster.lab, traffic.Route(here.name, there.name, there.address))


def test_a_pod_believes_only_its_authority_and_shows_the_token_that_it_has_by_now(cluster: Cluster) -> None:
    node = cluster.add_node()
    impostor = make_certificate(cluster.base, "impostor", cluster.api.address)
    cluster.write_account(node, certificate=impostor.certificate)
    cluster.start(node)
    mesh_lab.until_logged(cluster.lab, node, "Kubernetes API", "certificate verify failed")
    assert cluster.tell("asked") == [], "who is not believed is not told the token either"
    cluster.write_account(node)
    mesh_lab.until_logged(cluster.lab, node, f"Peer list: register {node.peer_name}")

    # kubelet replaces a token long before it ends; here the old one ends first, so that its end is seen as well.
    cluster.tell("use_token", token="token-after-rotation")
    cluster.tell("cut")
    mesh_lab.until_logged(cluster.lab, node, "Kubernetes API", "401")
    cluster.write_account(node, token="token-after-rotation")
    assert_node_is_noticed(cluster, "another", 100, [node])
    last = cluster.tell("asked")[-1]
    assert (last["token"], last["refused"]) == ("token-after-rotation", 0)
    assert "token-after-rotation" not in mesh_lab.logged(cluster.lab, node)
