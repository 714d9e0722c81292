"""containerd and runc on two lab hosts, with weave-net for their network and a live agent on each."""

import json
from contextlib import ExitStack
from pathlib import Path

import mesh_lab
import pytest
import runtime

from weavenet.lab import agents
from weavenet.lab.hosts import CNI_CONFIGURATION, Lab
from weavenet.lab.record import HostRecord

pytestmark = pytest.mark.kernel

RANGE = "10.44.0.0/24"


def addresses(lab: Lab, host: HostRecord) -> set[str]:
    """Return which containers hold addresses on a host."""
    owned = json.loads(agents.query(lab.paths, host, "/ip"))["owned"] or []
    return {one["containerid"] for one in owned} - {"weave:expose"}


def test_containers_on_two_hosts_reach_each_other_and_give_their_addresses_back(tmp_path: Path) -> None:
    if missing := runtime.missing_programs():
        pytest.skip(f"needs {', '.join(missing)}")
    with (
        mesh_lab.running_lab(tmp_path / "l", "runtime", 2, (f"--ipalloc-range={RANGE}",)) as lab,
        ExitStack() as stack,
    ):
        started = []
        for host in lab.record.hosts:
            base, configurations = tmp_path / host.name, tmp_path / f"{host.name}.net.d"
            base.mkdir()
            configurations.mkdir()
            # ctr 1.6 knows the specification up to 1.0.0.
            conflist = {
                "cniVersion": "1.0.0",
                "name": "weave",
                "plugins": [{**CNI_CONFIGURATION, "cniVersion": "1.0.0"}],
            }
            (configurations / "10-weave.conflist").write_text(json.dumps(conflist))
            containers = stack.enter_context(
                runtime.running_runtime(
                    lab.namespace(host.name).path,
                    base,
                    configurations,
                    lab.paths.executables,
                    agents.sockets(lab.paths, host),
                )
            )
            started.append((host, containers, containers.start("c")))
        shown = [container.run("ip", "-json", "-4", "addr", "show", "eth0").stdout for _, _, container in started]
        here, there = [json.loads(text)[0]["addr_info"][0]["local"] for text in shown]
        assert here != there
        (_, _, one), (_, _, two) = started
        assert one.reaches(there)
        assert two.reaches(here)
        assert " 0% packet loss" in one.run("ping", "-c", "3", "-i", "0.01", there).stdout
        for host, containers, container in started:
            assert addresses(lab, host) == {f"{container.container_id}/eth0"}
            assert containers.stop("c") == ""
            assert addresses(lab, host) == set()
            assert "ADD" in mesh_lab.logged(lab, host)
