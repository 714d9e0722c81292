"""Sleeve between real agents on the real kernel: plain, sealed, in a line, and with its forwarder killed."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from weavenet.errors import LabError
from weavenet.lab import agents, hosts, process, traffic
from weavenet.lab.hosts import Lab
from weavenet.lab.namespace import Namespace
from weavenet.lab.record import HostRecord, Paths, PodRecord

pytestmark = pytest.mark.kernel
LIMIT_S = 30.0


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    paths = Paths(f"sleeve-{os.getpid()}", run_root=tmp_path / "run", state_root=tmp_path / "state")
    yield Lab.create(paths, owner=process.this_process())
    hosts.down(paths)


def bring_up(lab: Lab, options: Sequence[str], count: int = 2) -> list[PodRecord]:
    """Start agents in a line, each told of the one before it, and attach a pod on each host."""
    before: HostRecord | None = None
    made = [lab.add_host() for _ in range(count)]
    for host in made:
        lab.start_agent(host, peers=[before.address] if before else [], consensus=count, options=options)
        before = host
    until(lambda: all(established(lab, host) for host in made))
    return [lab.add_pod(host) for host in made]


def weave(lab: Lab, host: HostRecord, *words: str) -> str:
    program = str(agents.programs() / "weave")
    return process.run([program, *words], namespace=lab.namespace(host.name), env=lab.environment(host))


def established(lab: Lab, host: HostRecord, text: str = "established") -> bool:
    try:
        return text in weave(lab, host, "status", "connections")
    except LabError:  # the agent is still starting
        return False


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(0.05)


def at(lab: Lab, pod: PodRecord) -> Namespace:
    return lab.namespace(pod.name)


def ping(lab: Lab, source: PodRecord, target: PodRecord) -> str:
    return traffic.ping(lab, traffic.Route(source.name, target.name, target.address))


def talks(lab: Lab, source: PodRecord, target: PodRecord) -> Callable[[], bool]:
    def once() -> bool:
        try:
            return "0% packet loss" in ping(lab, source, target)
        except LabError:  # not yet
            return False

    return once


def test_pods_talk_by_sleeve_alone(lab: Lab) -> None:
    one, two = bring_up(lab, ["--no-fastdp"])
    until(talks(lab, one, two))
    assert "sleeve 7a:00:00:00:00:02(host2) mtu=" in weave(lab, lab.record.hosts[0], "status", "connections")
    until(lambda: "mtu=1438" in weave(lab, lab.record.hosts[0], "status", "connections"))
    moved = traffic.throughput(lab, traffic.Route(one.name, two.name, two.address), 1)
    assert moved.mbit_s > 1


def test_with_a_password_traffic_goes_sealed(lab: Lab, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("wfvAwt7sj\n")
    one, two = bring_up(lab, [f"--password-file={secret}"])
    until(talks(lab, one, two))
    shown = weave(lab, lab.record.hosts[0], "status", "connections")
    assert "encrypted   sleeve 7a:00:00:00:00:02(host2)" in shown
    until(lambda: "mtu=1414" in weave(lab, lab.record.hosts[0], "status", "connections"))


def test_both_overlays_run_and_fastdp_carries_the_traffic(lab: Lab) -> None:
    one, two = bring_up(lab, [])
    until(lambda: "established fastdp" in weave(lab, lab.record.hosts[0], "status", "connections"))
    until(talks(lab, one, two))


# One connection is accepted, and how many bytes came by it is written down again and again.
SINK = """
import os, socket, sys
listener = socket.create_server((sys.argv[1], 5001))
total = 0
def note():
    with open(sys.argv[2] + ".new", "w") as file:
        file.write(str(total))
    os.rename(sys.argv[2] + ".new", sys.argv[2])
note()
accepted, _ = listener.accept()
while data := accepted.recv(1 << 16):
    total += len(data)
    note()
"""
SOURCE = """
import socket, sys
with socket.create_connection((sys.argv[1], 5001)) as connection:
    while True:
        connection.sendall(bytes(1 << 14))
"""


def received(count: Path) -> int:
    return int(count.read_text())


def block_fastdp(lab: Lab, *, on: bool) -> None:
    """Lose everything that comes by UDP 6784, on both hosts, below the VXLAN device and the heartbeats' socket."""
    for host in lab.record.hosts:
        hook = "type filter hook ingress device eth0 priority 0"
        rule = f"table netdev block {{\n chain in {{\n {hook};\n udp dport 6784 drop\n }}\n}}"
        command = ["nft", rule] if on else ["nft", "delete table netdev block"]
        process.run(command, namespace=lab.namespace(host.name))


def test_a_tcp_flow_lives_through_the_move_from_sleeve_to_fastdp(lab: Lab, tmp_path: Path) -> None:
    for _ in range(2):
        lab.add_host()
    block_fastdp(lab, on=True)
    before: HostRecord | None = None
    for host in lab.record.hosts:
        lab.start_agent(host, peers=[before.address] if before else [], consensus=2)
        before = host
    until(lambda: all(established(lab, host) for host in lab.record.hosts))
    one, two = (lab.add_pod(host) for host in lab.record.hosts)
    until(talks(lab, one, two))
    assert "established sleeve" in weave(lab, lab.record.hosts[0], "status", "connections")
    count = tmp_path / "count"
    sink = lab.start("sink", [sys.executable, "-c", SINK, two.address, str(count)], where=two.name)
    until(count.exists)
    source = lab.start("source", [sys.executable, "-c", SOURCE, two.address], where=one.name)
    until(lambda: received(count) > 100_000)
    block_fastdp(lab, on=False)
    until(lambda: "established fastdp" in weave(lab, lab.record.hosts[0], "status", "connections"))
    before_move = received(count)
    until(lambda: received(count) > before_move + 1_000_000)
    assert source.is_alive(), "there was one connection, and it is still open"
    lab.finish(source)
    lab.finish(sink)


def test_in_a_line_the_middle_relays_without_knowing_the_pods(lab: Lab) -> None:
    pods = bring_up(lab, ["--no-fastdp", "--no-discovery"], count=3)
    until(talks(lab, pods[0], pods[2]))
    until(talks(lab, pods[2], pods[1]))


def crossed(lab: Lab, host: HostRecord, device: str) -> tuple[int, int]:
    """Packets and bytes that went to user space by a device."""
    counts = lab.namespace(host.name)
    shown = process.run(["ip", "-j", "-s", "link", "show", device], namespace=counts)
    (link,) = msgspec.json.decode(shown)
    sent = link["stats64"]["tx"]
    return sent["packets"], sent["bytes"]


@pytest.mark.parametrize("is_sealed", [False, True])
def test_two_of_our_own_hand_over_packets_of_many_segments(lab: Lab, tmp_path: Path, is_sealed: bool) -> None:
    secret = tmp_path / "password"
    secret.write_text("wfvAwt7sj\n")
    one, two = bring_up(lab, ["--no-fastdp", *([f"--password-file={secret}"] if is_sealed else [])])
    until(talks(lab, one, two))
    for source, target in ((one, two), (two, one)):
        assert traffic.throughput(lab, traffic.Route(source.name, target.name, target.address), 1).mbit_s > 1
    packets, octets = crossed(lab, lab.record.hosts[0], "weave-fast")
    assert octets / packets > 2000, "larger than what the wire takes"
    assert crossed(lab, lab.record.hosts[0], "weave-sleeve")[0] < 20


def test_with_one_that_speaks_it_as_weave_does_sleeve_is_weaves_and_with_the_others_fast(lab: Lab) -> None:
    made = [lab.add_host() for _ in range(3)]
    before: list[str] = []
    for host in made:
        options = ["--no-fastdp", *(["--no-fast-sleeve"] if host is made[2] else [])]
        lab.start_agent(host, peers=before, consensus=3, options=options)
        before = [host.address]
    lab.wait_until_connected()
    one, two, old = [lab.add_pod(host) for host in made]
    for source, target in ((one, two), (one, old), (old, two), (old, one)):
        until(talks(lab, source, target))
        assert traffic.throughput(lab, traffic.Route(source.name, target.name, target.address), 1).mbit_s > 1
    assert crossed(lab, made[0], "weave-fast")[1] > 100_000
    assert crossed(lab, made[0], "weave-sleeve")[1] > 100_000
    assert crossed(lab, made[2], "weave-fast") == (0, 0)


@pytest.mark.parametrize("last", ["--no-fast-sleeve", "--no-sleeve"])
def test_large_packets_are_relayed_to_whom_is_reached_in_another_way(lab: Lab, last: str) -> None:
    made = [lab.add_host() for _ in range(3)]
    before: list[str] = []
    for host, options in zip(made, (["--no-fastdp"], [], [last]), strict=True):
        lab.start_agent(host, peers=before, consensus=3, options=["--no-discovery", *options])
        before = [host.address]
    for host in made:
        until(lambda host=host: established(lab, host))  # type: ignore[misc]
    pods = [lab.add_pod(host) for host in made]
    for source, target in ((pods[0], pods[2]), (pods[2], pods[0])):
        until(talks(lab, source, target))
        assert traffic.throughput(lab, traffic.Route(source.name, target.name, target.address), 1).mbit_s > 10
    packets, octets = crossed(lab, made[0], "weave-fast")
    assert octets / packets > 2000


def test_packets_larger_than_our_pods_take_arrive_in_pieces_also_beyond_a_relay(lab: Lab) -> None:
    hosts_made = [lab.add_host() for _ in range(3)]
    before: list[str] = []
    for host in hosts_made:
        options = ["--no-discovery", *(["--no-fastdp", "--mtu=9000"] if host is hosts_made[2] else [])]
        lab.start_agent(host, peers=before, consensus=3, options=options)
        before = [host.address]
    until(lambda: established(lab, hosts_made[0], "established fastdp"))
    until(lambda: established(lab, hosts_made[2], "mtu=1438"))
    far, middle, large = [lab.add_pod(host) for host in hosts_made]
    for target in (far, middle):
        until(talks(lab, large, target))
        options = ["-c", "3", "-i", "0.2", "-W", "2"]
        cut = process.run(["ping", *options, "-M", "dont", "-s", "3000", target.address], namespace=at(lab, large))
        assert ", 0% packet loss" in cut
        refused = process.execute(
            ["ping", *options, "-M", "do", "-s", "1400", target.address], namespace=at(lab, large)
        )
        assert "mtu = 1376" in refused.output, "who may not be cut is told"


def test_a_forwarder_that_dies_is_replaced_and_its_connections_come_back_with_new_keys(
    lab: Lab, tmp_path: Path
) -> None:
    secret = tmp_path / "password"
    secret.write_text("wfvAwt7sj\n")
    one, two = bring_up(lab, [f"--password-file={secret}"])
    until(talks(lab, one, two))
    agent = lab.record.hosts[0].agent
    assert agent is not None
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    (forwarder,) = [int(child) for child in children if Path(f"/proc/{child}/comm").read_text() == "weave-forward\n"]
    assert "Uid:\t65534" in Path(f"/proc/{forwarder}/status").read_text()
    assert "CapEff:\t0000000000000000" in Path(f"/proc/{forwarder}/status").read_text()
    os.kill(forwarder, signal.SIGKILL)
    until(lambda: "the sleeve forwarder ended" in lab.paths.log(lab.record.hosts[0]).read_text())
    until(talks(lab, one, two))
