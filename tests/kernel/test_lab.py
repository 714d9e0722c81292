"""Labs on the real kernel: hosts that reach each other, and nothing left behind, whatever ended them."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from weavenet.errors import LabError
from weavenet.lab import bench_paths, hosts, process, runtime, traffic
from weavenet.lab.hosts import Lab
from weavenet.lab.namespace import Namespace
from weavenet.lab.record import Paths

pytestmark = pytest.mark.kernel


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[Paths]:
    paths = Paths(f"test-{os.getpid()}", run_root=tmp_path / "run", state_root=tmp_path / "state")
    yield paths
    hosts.down(paths)


@pytest.fixture
def lab(paths: Paths) -> Lab:
    return Lab.create(paths, owner=process.this_process())


def mounts_below(path: Path) -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(path) in line]


def devices(namespace: Namespace | None = None) -> list[str]:
    links = json.loads(process.run(["ip", "-json", "link"], namespace=namespace))
    return [link["ifname"] for link in links]


def test_two_hosts_reach_each_other_and_the_machine_keeps_its_own_devices(lab: Lab) -> None:
    before = devices()
    first, second = lab.add_host(), lab.add_host()
    traffic.ping(lab, traffic.Route(first.name, second.name, second.address))
    assert devices() == before
    assert devices(lab.namespace(first.name))[:2] == ["lo", "eth0"]


def test_nothing_is_left_of_a_lab_that_was_taken_down(lab: Lab, paths: Paths) -> None:
    host = lab.add_host()
    lab.make_pod("pod1-1", host)
    sleeper = lab.start("sleeper", ["sleep", "60"], where=host.name)
    assert mounts_below(paths.run_root)
    lab.down()
    assert not sleeper.is_alive()
    assert not paths.run_root.exists()
    assert not paths.state_root.exists()
    assert not mounts_below(paths.run_root)


def test_what_a_killed_lab_left_is_removed_by_the_next_one(paths: Paths) -> None:
    program = f"""
        import os, signal
        from pathlib import Path
        from weavenet.lab import process
        from weavenet.lab.hosts import Lab
        from weavenet.lab.record import Paths
        paths = Paths({paths.name!r}, Path({str(paths.run_root)!r}), Path({str(paths.state_root)!r}))
        lab = Lab.create(paths, owner=process.this_process())
        host = lab.add_host()
        print(lab.start("sleeper", ["sleep", "60"], where=host.name).pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    (sleeper,) = paths.load().others
    assert sleeper.pid == int(killed.stdout)
    assert sleeper.is_alive()
    lab = Lab.create(paths, owner=process.this_process())
    assert not sleeper.is_alive()
    assert lab.record.hosts == []


def test_a_lab_that_is_up_is_not_replaced(lab: Lab, paths: Paths) -> None:
    with pytest.raises(LabError, match="is up already"):
        Lab.create(paths, owner=process.this_process())
    assert lab.paths.run.exists()


def test_somebody_elses_process_in_a_lab_is_named_and_not_ended(lab: Lab) -> None:
    host = lab.add_host()
    with lab.namespace(host.name).entered():
        guest = subprocess.Popen(["sleep", "60"])
    with guest:
        try:
            with pytest.raises(LabError, match=rf"process {guest.pid} \(sleep 60\) still runs in host1"):
                lab.down()
            assert guest.poll() is None
        finally:
            guest.kill()


def test_a_thread_is_back_where_it_was_after_an_error(lab: Lab) -> None:
    before = devices()
    host = lab.add_host()
    with pytest.raises(ZeroDivisionError), lab.namespace(host.name).entered():
        _ = 1 / 0
    assert devices() == before


def test_a_command_is_run_on_a_host_with_its_agents_sockets_named(lab: Lab, paths: Paths) -> None:
    lab.add_host()
    program = f"""
        from pathlib import Path
        from weavenet.lab import record
        record.Paths.__init__.__defaults__ = (Path({str(paths.run_root)!r}), Path({str(paths.state_root)!r}))
        from weavenet.lab.cli import main
        main(["--lab", {paths.name!r}, "exec", "host1", "--", "sh", "-c", "ip -br a; echo $WEAVENET_SOCKET; exit 7"])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 7
    assert "10.99.0.1/24" in done.stdout
    assert done.stdout.endswith(f"{paths.run}/host1/weave.sock\n")


def test_a_plugin_is_called_as_the_specification_says(lab: Lab, tmp_path: Path) -> None:
    host = lab.add_host()
    pod = lab.make_pod("pod1-1", host)
    plugin = tmp_path / "spy"
    plugin.write_text("#!/bin/sh\nenv | grep ^CNI_ | sort >&2; cat >&2; readlink /proc/self/ns/net >&2; exit 1\n")
    plugin.chmod(0o755)
    configuration = {"cniVersion": "1.1.0", "name": "net", "type": "spy"}
    network = runtime.Network(tmp_path, lab.namespace(host.name), configuration, dict(os.environ))
    with pytest.raises(LabError) as raised:
        network.delete(lab.sandbox(pod), '{"ips":[]}')
    said = str(raised.value)
    expected = textwrap.dedent(f"""\
        CNI DEL for pod1-1 by spy failed: CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=lab;K8S_POD_NAME=pod1-1
        CNI_COMMAND=DEL
        CNI_CONTAINERID={pod.container}
        CNI_IFNAME=eth0
        CNI_NETNS={lab.namespace(pod.name).path}
        CNI_PATH={tmp_path}
        {{"cniVersion":"1.1.0","name":"net","type":"spy","prevResult":{{"ips":[]}}}}net:[{lab.namespace("host1").inode()}]""")
    assert said == expected


@pytest.mark.parametrize("setup", [bench_paths.vxlan_bridge, bench_paths.vxlan_routed], ids=["bridge", "routed"])
def test_what_weavenet_is_compared_with_works(lab: Lab, setup: Callable[[Lab], bench_paths.Contender]) -> None:
    lab.add_host()
    lab.add_host()
    contender = setup(lab)
    traffic.ping(lab, contender.route)
    assert traffic.throughput(lab, contender.route, 1).mbit_s > 0
    assert traffic.round_trips(lab, contender.route, 1).count > 0
