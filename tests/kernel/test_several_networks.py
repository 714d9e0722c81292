"""Pods on the overlay and on another bridge of their host at once, with real agents, bridges and the CNI executable."""

import contextlib
import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import apiserver
import mesh_lab
import pytest
import runtime
from mesh_lab import until

from weavenet.errors import LabError
from weavenet.lab import agents, process, traffic
from weavenet.lab.hosts import CNI_CONFIGURATION, Lab
from weavenet.lab.namespace import Namespace
from weavenet.lab.network import ip
from weavenet.lab.record import HostRecord, PodRecord
from weavenet.lab.runtime import Network, Sandbox

pytestmark = pytest.mark.kernel

DOCKER = {
    **CNI_CONFIGURATION,
    "name": "docker",
    "bridge": "docker0",
    "ipam": {"type": "host-local", "subnet": "172.17.0.0/24", "rangeEnd": "172.17.0.99"},
}
NEIGHBOUR = "172.17.0.200"


def add_docker0(lab: Lab, host: HostRecord) -> str:
    """Make a bridge as Docker does, with a container of somebody else's on it; return that one's name."""
    inside = lab.namespace(host.name)
    ip(inside, ["link add docker0 type bridge", "link set docker0 up", "address add 172.17.0.1/24 dev docker0"])
    other = lab.make_pod(f"other-{host.name}", host)
    space = lab.namespace(other.name)
    ip(inside, [f"link add vother type veth peer name eth0 netns {space.path}", "link set vother master docker0 up"])
    ip(space, [f"address add {NEIGHBOUR}/24 dev eth0", "link set eth0 up"])
    return other.name


def pings(lab: Lab, pod: PodRecord, address: str) -> bool:
    try:
        traffic.ping(lab, traffic.Route(pod.name, pod.name, address))
    except LabError:
        return False
    return True


def shown(lab: Lab, where: str, *what: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(process.run(["ip", "-json", *what], namespace=lab.namespace(where)))
    return found


def masters(lab: Lab, host: HostRecord) -> list[str]:
    """Return the bridges of the ports that we made, sorted."""
    links = shown(lab, host.name, "-details", "link")
    return sorted(str(link.get("master")) for link in links if str(link["ifname"]).startswith("vethwepl"))


def second(
    lab: Lab, host: HostRecord, pod: PodRecord, interface: str, **configuration: object
) -> tuple[Network, Sandbox]:
    """Return a network and a pod's sandbox for it, as Multus calls a delegate."""
    sandbox = lab.sandbox(pod)
    return lab.network(host, configuration), Sandbox(sandbox.name, sandbox.container, sandbox.namespace, interface)


def test_a_pod_is_on_the_overlay_and_on_another_bridge_until_it_is_taken_off(tmp_path: Path) -> None:
    with mesh_lab.running_lab(tmp_path, "several", 2) as lab:
        one, two = lab.record.hosts
        add_docker0(lab, one)
        links = {link["ifname"] for link in shown(lab, one.name, "link")}
        pod, peer = lab.add_pod(one), lab.add_pod(two)
        network, sandbox = second(lab, one, pod, "net1", **DOCKER)
        result = network.add(sandbox)
        assert json.loads(result)["ips"] == [{"address": "172.17.0.2/24", "interface": 1}]
        assert pings(lab, pod, peer.address)
        assert pings(lab, pod, NEIGHBOUR)
        assert [route["dev"] for route in shown(lab, pod.name, "route", "show", "default")] == ["eth0"]
        network.check(sandbox, result)
        assert masters(lab, one) == ["docker0", "weave"]

        # A second network of ours, with a subnet of its own, on both hosts.
        backend = {**CNI_CONFIGURATION, "name": "backend", "ipam": {"type": "weave-ipam", "subnet": "10.33.0.0/24"}}
        ours, inside = second(lab, one, pod, "net2", **backend)
        theirs, beyond = second(lab, two, peer, "net2", **backend)
        made, there = ours.add(inside), theirs.add(beyond)
        far = json.loads(there)["ips"][0]["address"].partition("/")[0]
        assert far.startswith("10.33.0.")
        assert pings(lab, pod, far)
        assert [route["dev"] for route in shown(lab, pod.name, "route", "show", "default")] == ["eth0"]

        # The agent restarts, and the port is taken from its bridge, and the bridge away: it comes back.
        lab.stop_agent(one)
        ip(lab.namespace(one.name), [f"link set {json.loads(result)['interfaces'][0]['name']} nomaster"])
        mesh_lab.start(lab, one)
        until(lambda: masters(lab, one) == ["docker0", "weave", "weave"], "the port is back", lab, one)
        assert pings(lab, pod, NEIGHBOUR)
        ip(lab.namespace(one.name), ["link delete docker0"])
        until(lambda: "weave" in masters(lab, one), "the others stay", lab, one)
        ip(
            lab.namespace(one.name),
            ["link add docker0 type bridge", "link set docker0 up", "link set vother master docker0"],
        )
        until(lambda: masters(lab, one) == ["docker0", "weave", "weave"], "the bridge is back", lab, one)
        assert pings(lab, pod, NEIGHBOUR)
        again = network.add(sandbox)
        assert json.loads(again)["ips"] == json.loads(result)["ips"]

        ours.delete(inside, made)
        network.delete(sandbox, result)
        lab.remove_pod(pod)
        assert {link["ifname"] for link in shown(lab, one.name, "link")} == links
        owned = json.loads(agents.query(lab.paths, one, "/ip"))["owned"] or []
        assert {held["containerid"] for held in owned} <= {"weave:expose"}


def test_a_bridge_that_is_missing_is_a_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    with mesh_lab.running_lab(tmp_path, "missing", 1) as lab:
        (host,) = lab.record.hosts
        pod = lab.add_pod(host)
        network, sandbox = second(lab, host, pod, "net1", **DOCKER)
        with pytest.raises(LabError, match="this node has no bridge of that name"):
            network.add(sandbox)
        assert masters(lab, host) == ["weave"]
        network.delete(sandbox, "{}")


def test_a_pod_gets_the_address_that_it_asks_for_on_either_kind_of_network_and_nobody_else_does(tmp_path: Path) -> None:
    with mesh_lab.running_lab(tmp_path, "asked", 1) as lab:
        (host,) = lab.record.hosts
        add_docker0(lab, host)
        pod, other = lab.add_pod(host), lab.add_pod(host)
        backend = {**CNI_CONFIGURATION, "name": "backend", "ipam": {"type": "weave-ipam", "subnet": "10.33.0.0/24"}}
        for interface, network, wanted in (("net1", DOCKER, "172.17.0.77"), ("net2", backend, "10.33.0.77")):
            asking = {**network, "runtimeConfig": {"ips": [wanted]}}
            chosen, sandbox = second(lab, host, pod, interface, **asking)
            for _ in range(2):  # a runtime whose answer was lost asks again
                result = chosen.add(sandbox)
                assert json.loads(result)["ips"][0]["address"] == f"{wanted}/24"
            assert pings(lab, pod, wanted)
            chosen.check(sandbox, result)
            refused, elsewhere = second(lab, host, other, interface, **asking)
            with pytest.raises(LabError, match=wanted.replace(".", r"\.")):
                refused.add(elsewhere)
            chosen.delete(sandbox, result)
            freed = refused.add(elsewhere)
            assert json.loads(freed)["ips"][0]["address"] == f"{wanted}/24"
            refused.delete(elsewhere, freed)
        assert masters(lab, host) == ["weave", "weave"]


def test_an_address_that_is_asked_for_comes_from_whichever_host_owns_it_but_only_if_it_is_free(tmp_path: Path) -> None:
    with mesh_lab.running_lab(tmp_path, "begged", 2) as lab:
        one, two = lab.record.hosts
        pod, other = lab.add_pod(one), lab.add_pod(two)
        for wanted in ("10.33.0.7", "10.46.0.7"):  # one in each host's share
            subnet = wanted.rpartition(".")[0] + ".0/24"
            asking = {
                **CNI_CONFIGURATION,
                "name": "backend",
                "ipam": {"type": "weave-ipam", "subnet": subnet},
                "runtimeConfig": {"ips": [wanted]},
            }
            here, inside = second(lab, one, pod, "net1", **asking)
            there, beyond = second(lab, two, other, "net1", **asking)
            for holder, sandbox, loser, outside in ((here, inside, there, beyond), (there, beyond, here, inside)):
                result = holder.add(sandbox)
                assert json.loads(result)["ips"][0]["address"] == f"{wanted}/24"
                with pytest.raises(LabError, match=rf"{wanted}/24 is (owned by other peer|already owned)"):
                    loser.add(outside)
                holder.delete(sandbox, result)


@contextlib.contextmanager
def api_server(lab: Lab, base: Path, where: HostRecord) -> Iterator[str]:
    listen, control = f"{where.address}:6443", base / "api.sock"
    argv = [sys.executable, apiserver.__file__, "--listen", listen, "--control", str(control)]
    server = lab.start("api", argv, where=where.name)
    try:
        until(control.exists, "the API server listens")
        yield f"http://{listen}"
    finally:
        lab.finish(server)


def tell(control: Path, path: str, **made: object) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as opened:
        opened.settimeout(mesh_lab.LIMIT_S)
        opened.connect(str(control))
        opened.sendall(json.dumps({"do": "put", "path": path, "object": made}).encode() + b"\n")
        answer = json.loads(opened.makefile().readline())
    assert "error" not in answer, answer


def test_a_pod_gets_the_networks_of_its_annotation(tmp_path: Path) -> None:
    with mesh_lab.empty_lab(tmp_path / "l", "annotated") as lab, contextlib.ExitStack() as stack:
        api, host = lab.add_host(), lab.add_host()
        url = stack.enter_context(api_server(lab, tmp_path, api))
        pod = lab.make_pod("web", host)
        tell(tmp_path / "api.sock", "/api/v1/nodes", metadata={"name": host.name})
        annotations = {"weave.works/networks": "docker@net7"}
        metadata = {"name": "web", "namespace": "lab", "annotations": annotations}
        tell(tmp_path / "api.sock", "/api/v1/namespaces/lab/pods", metadata=metadata)
        networks = tmp_path / "networks"
        networks.mkdir()
        (networks / "docker.json").write_text(json.dumps(DOCKER))
        add_docker0(lab, host)
        options = [f"--kube-node={host.name}", f"--kube-api={url}", f"--networks-dir={networks}"]
        lab.start_agent(host, peers=[], consensus=1, options=options)
        until(lambda: mesh_lab.answers(lab, host), "the agent answers", lab, host)
        network, sandbox = lab.network(host), lab.sandbox(pod)
        result = network.add(sandbox)
        assert [one["name"] for one in json.loads(result)["interfaces"][1::2]] == ["eth0", "net7"]
        assert pings(lab, pod, NEIGHBOUR)
        network.check(sandbox, result)
        assert masters(lab, host) == ["docker0", "weave"]
        network.delete(sandbox, result)
        assert masters(lab, host) == []


def test_a_real_container_is_on_both_bridges(tmp_path: Path) -> None:
    if missing := runtime.missing_programs():
        pytest.skip(f"needs {', '.join(missing)}")
    with mesh_lab.running_lab(tmp_path / "l", "real", 1) as lab, contextlib.ExitStack() as stack:
        (host,) = lab.record.hosts
        other = add_docker0(lab, host)
        configurations, base = tmp_path / "net.d", tmp_path / "runtime"
        configurations.mkdir()
        base.mkdir()
        conflist = {"cniVersion": "1.0.0", "name": "weave", "plugins": [{**CNI_CONFIGURATION, "cniVersion": "1.0.0"}]}
        (configurations / "10-weave.conflist").write_text(json.dumps(conflist))
        where, sockets = lab.namespace(host.name).path, agents.sockets(lab.paths, host)
        containers = stack.enter_context(
            runtime.running_runtime(where, base, configurations, lab.paths.executables, sockets)
        )
        container = containers.start("c")
        namespace = Namespace(Path(f"/proc/{container.pid}/ns/net"))
        network = lab.network(host, DOCKER)
        sandbox = Sandbox("c", container.container_id, namespace, "net1")
        result = network.add(sandbox)
        addresses = json.loads(container.run("ip", "-json", "-4", "addr").stdout)
        assert [one["ifname"] for one in addresses] == ["lo", "eth0", "net1"]
        assert " 0% packet loss" in container.run("ping", "-c", "2", "-i", "0.01", NEIGHBOUR).stdout
        pod = lab.add_pod(host)
        assert " 0% packet loss" in container.run("ping", "-c", "2", "-i", "0.01", pod.address).stdout
        there = json.loads(result)["ips"][0]["address"].partition("/")[0]
        ping = ["ping", "-c", "2", "-i", "0.01", there]
        assert " 0% packet loss" in process.run(ping, namespace=lab.namespace(other))
        network.delete(sandbox, result)
        assert containers.stop("c") == ""
        lab.remove_pod(pod)
        assert masters(lab, host) == []
