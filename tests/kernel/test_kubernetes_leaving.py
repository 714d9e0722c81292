"""What is left on a node when the DaemonSet is deleted: nothing but what others own, or what was asked to be kept."""

import json
from collections.abc import Iterator
from pathlib import Path

import host_state
import mesh_lab
import pytest
from kube_lab import Cluster, granted_rules, running_cluster

from weavenet.lab import network, process, runtime, traffic
from weavenet.lab.record import HostRecord

pytestmark = pytest.mark.kernel

# A directory that is mounted in a pod cannot be removed from within it: docs/kubernetes.md, "Removing it".
MOUNTED = "var/lib/weave"
# Others may have come to rely on it, so it is switched on and never off: dataplane/traffic.py. The same goes for
# forwarding, which is on wherever there is a kubelet.
SWITCH = "bridge/bridge-nf-call-iptables"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with running_cluster(tmp_path) as cluster:
        yield cluster


def state_of(cluster: Cluster, node: HostRecord) -> host_state.State:
    sockets = cluster.lab.paths.host(node)
    return host_state.state_of(
        cluster.lab.namespace(node.name), [cluster.root(node), sockets], [cluster.lab.paths.log(node)]
    )


def use(cluster: Cluster, one: HostRecord, two: HostRecord) -> None:
    """Have everything in use that makes something on a node: pods, host ports, limits, an overlay that was tried."""
    limits = {"IngressRate": 8_000_000, "IngressBurst": 800_000, "EgressRate": 8_000_000, "EgressBurst": 800_000}
    here, _ = cluster.add_pod(one, "here", bandwidth=limits)
    there, _ = cluster.add_pod(two, "there", portMappings=[{"HostPort": 8080, "ContainerPort": 80}])
    traffic.ping(cluster.lab, traffic.Route(here.name, there.name, there.address))


def database_of(cluster: Cluster, node: HostRecord) -> Path:
    return cluster.root(node) / MOUNTED / "weavenet.db"


def test_a_node_is_left_as_it_was_found_to_the_byte(cluster: Cluster) -> None:
    one, two = cluster.add_node(), cluster.add_node()
    for node in (one, two):  # as where iptables is in use, and somebody else has a rule
        inside = cluster.lab.namespace(node.name)
        process.run(["iptables", "-A", "FORWARD", "-s", "192.0.2.0/24", "-j", "DROP"], namespace=inside)
        mesh_lab.until(lambda inside=inside: host_state.is_settled(inside), "addresses are settled")
    network.set_sysctl(cluster.lab.namespace(one.name), SWITCH, "0")
    before = {node.name: state_of(cluster, node) for node in (one, two)}
    for node in (one, two):
        cluster.start(node)
    use(cluster, one, two)
    for node in (one, two):
        there = {line.partition(":")[0] for line in host_state.differences(before[node.name], state_of(cluster, node))}
        assert there >= {"ip -details -oneline link", "ip -oneline address", "ip route show table all", "tc qdisc"}
        assert there >= {
            "nft --stateless list ruleset",
            "iptables-save",
            "settings",
            "unix sockets",
            "processes",
            "files",
        }

    cluster.uninstall(one, two)
    switched = [f"settings: - {SWITCH} = 0", f"settings: + {SWITCH} = 1"]
    for node, settings in ((one, switched), (two, [])):
        directory = f"files: + drwxr-xr-x 0:0 {cluster.root(node) / MOUNTED}"
        assert host_state.differences(before[node.name], state_of(cluster, node)) == [*settings, directory]


def test_state_that_is_kept_gives_a_pod_its_address_again_after_the_next_installation(cluster: Cluster) -> None:
    node = cluster.add_node()
    cluster.start(node, **{"keep-state": "true"})
    one, _ = cluster.add_pod(node, "one")
    two, _ = cluster.add_pod(node, "two")
    ring = mesh_lab.weave(cluster.lab, node, "status", "ipam")
    cluster.uninstall(node)
    assert database_of(cluster, node).exists()
    assert not cluster.conflist(node).exists()
    assert "weave" not in process.run(["ip", "link"], namespace=cluster.lab.namespace(node.name))

    cluster.tell("allow_only", rules=granted_rules())
    cluster.put_daemonset()
    cluster.start(node)
    assert mesh_lab.weave(cluster.lab, node, "status", "ipam") == ring
    for pod in (two, one):  # a runtime that lost its pods with the network asks again, in any order
        again = cluster.network(node).add(cluster.lab.sandbox(pod))
        assert runtime.address_of(again).partition("/")[0] == pod.address
    traffic.ping(cluster.lab, traffic.Route("one", "two", two.address))

    cluster.uninstall(node)
    assert not database_of(cluster, node).exists()


def test_a_conflist_changed_by_hand_stays_and_one_that_is_gone_comes_back(cluster: Cluster) -> None:
    one, two = cluster.add_node(), cluster.add_node()
    for node in (one, two):
        cluster.start(node)
    written = json.loads(cluster.conflist(one).read_text())
    written["plugins"][0]["mtu"] = 1300
    cluster.conflist(one).write_text(json.dumps(written))
    cluster.conflist(two).unlink()
    (cluster.plugins(two) / "weave-net").write_text("another package's file")

    mesh_lab.until_logged(cluster.lab, two, "was gone or replaced: installed", "10-weave.conflist")
    cluster.end(one)
    cluster.start(one)
    mesh_lab.until_logged(cluster.lab, one, "was changed by hand, and stays as it is")
    assert json.loads(cluster.conflist(one).read_text()) == written
    here, _ = cluster.add_pod(one, "here")
    there, _ = cluster.add_pod(two, "there")
    traffic.ping(cluster.lab, traffic.Route("here", "there", there.address))
    assert "mtu 1300" in process.run(["ip", "link", "show", "eth0"], namespace=cluster.lab.namespace(here.name))

    cluster.uninstall(one, two)
    assert json.loads(cluster.conflist(one).with_name("10-weave.conflist.kept").read_text()) == written
    assert list(cluster.conflist(two).parent.iterdir()) == []
