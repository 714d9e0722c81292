"""Pods do not notice that their host's agent ends and another one starts; a host that was rebooted is what it was."""

from collections.abc import Iterator
from functools import partial

import mesh_lab
import pytest

from weavenet.lab import agents, process, runtime
from weavenet.lab.hosts import CNI_CONFIGURATION, Lab
from weavenet.lab.record import HostRecord, PodRecord

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with mesh_lab.running_lab(tmp_path_factory.mktemp("l"), "restart", 3) as lab:
        for host in lab.record.hosts:
            lab.add_pod(host)
        yield lab


def devices_and_programs(lab: Lab, host: HostRecord) -> str:
    """Return all devices of a host with their indexes, and the programs on the VXLAN device with their numbers.

    But for the one by which sleeve moves frames: that is a part of the agent, and goes and comes with it.
    """
    inside = lab.namespace(host.name)
    listed = process.run(["ip", "-o", "link"], namespace=inside).splitlines(keepends=True)
    links = "".join(line for line in listed if ": weave-sleeve:" not in line)
    filters = [
        process.run(["tc", "filter", "show", "dev", "vxlan-6784", way], namespace=inside)
        for way in ("ingress", "egress")
    ]
    assert all("id " in text for text in filters), filters
    return links + "".join(filters)


@pytest.mark.parametrize("end", [Lab.kill_agent, Lab.stop_agent], ids=["kill -9", "SIGTERM"])
def test_an_agent_that_ends_and_starts_again_costs_running_pods_no_packet_and_adopts_what_it_finds(
    lab: Lab, end
) -> None:
    host, other, _ = lab.record.hosts
    here, there, _ = lab.record.pods
    before = devices_and_programs(lab, host)
    with mesh_lab.streams(lab, here, there) as (out, back):
        end(lab, host)
        mesh_lab.until_logged(lab, other, f"{host.peer_name}({host.name})]: connection deleted")
        out.go_on(100)
        back.go_on(100)
        mesh_lab.start(lab, host)
        lab.wait_until_connected(timeout_s=mesh_lab.LIMIT_S)
        out.go_on(100)
        back.go_on(100)
    assert devices_and_programs(lab, host) == before
    assert lab.network(host).add(lab.sandbox(here)) == here.result, "an ADD that comes again is answered as before"
    assert_newcomers_get_addresses_of_their_own(lab, host)


def assert_newcomers_get_addresses_of_their_own(lab: Lab, host: HostRecord) -> None:
    taken = {pod.address for pod in lab.record.pods}
    newcomer = lab.add_pod(host)
    assert newcomer.address not in taken
    lab.remove_pod(newcomer)


def reaches(lab: Lab, source: PodRecord, target: PodRecord) -> bool:
    command = ["ping", "-c", "1", "-W", "1", target.address]
    return process.execute(command, namespace=lab.namespace(source.name)).status == 0


def test_after_a_reboot_the_same_containers_have_the_same_addresses_and_no_other_has(lab: Lab) -> None:
    host, other, _ = lab.record.hosts
    lab.add_pod(host)
    mine = [pod for pod in lab.record.pods if pod.host == host.number]
    before = {pod.name: pod.result for pod in mine}
    lab.reboot(host)
    assert "vxlan-6784" not in process.run(["ip", "-o", "link"], namespace=lab.namespace(host.name))
    mesh_lab.start(lab, host)
    lab.wait_until_connected(timeout_s=mesh_lab.LIMIT_S)
    assert_newcomers_get_addresses_of_their_own(lab, host)
    for pod in mine:
        pod.result = lab.network(host).add(lab.sandbox(pod))
        assert runtime.address_of(pod.result) == runtime.address_of(before[pod.name])
        there = lab.record.pods[1]
        assert there.host == other.number
        # That a connection is established is shown a moment before the tables have it, and what others know of the
        # former sandbox's MAC address holds until the new one is heard of.
        mesh_lab.until(partial(reaches, lab, there, pod), f"{there.name} reaches {pod.name}", lab, host)
    lab.remove_pod(mine[1])


def test_what_did_not_come_back_after_a_reboot_is_freed_by_del_and_by_gc(lab: Lab) -> None:
    host = lab.record.hosts[2]
    gone, lost = lab.add_pod(host), lab.add_pod(host)
    (kept,) = [pod for pod in lab.record.pods if pod.host == host.number and pod not in (gone, lost)]
    lab.reboot(host)
    mesh_lab.start(lab, host)
    network = lab.network(host)
    network.delete(lab.sandbox(gone), gone.result)
    valid = [{"containerID": kept.container, "ifname": "eth0"}]
    lab.network(host, {**CNI_CONFIGURATION, "cni.dev/valid-attachments": valid}).call("GC", None)
    lab.wait_until_connected(timeout_s=mesh_lab.LIMIT_S)
    free = agents.query(lab.paths, host, "/ip")
    assert kept.address in free
    assert gone.address not in free
    assert lost.address not in free
    assert runtime.address_of(network.add(lab.sandbox(kept))).partition("/")[0] == kept.address
