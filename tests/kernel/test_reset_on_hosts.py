"""`weave stop` and `weave reset` of real agents on lab hosts: what other hosts and pods notice, and what is left."""

import re
from collections.abc import Iterator
from pathlib import Path

import mesh_lab
import pytest
from mesh_lab import told, weave

from weavenet.lab import agents, process
from weavenet.lab.hosts import Lab
from weavenet.lab.record import HostRecord

pytestmark = pytest.mark.kernel


def picture(lab: Lab, host: HostRecord) -> dict[str, str]:
    """Return all of a host that an agent could have changed, as text."""
    inside = lab.namespace(host.name)

    def shown(*argv: str) -> str:
        return process.run(list(argv), namespace=inside)

    mesh_lab.until(lambda: "tentative" not in shown("ip", "address"), "IPv6 addresses are settled")
    settings = shown("sysctl", "-a", "--pattern", r"^net\.")
    volatile = re.compile(r"^net\.netfilter\.nf_conntrack_(count|buckets|max)|^net\.\S+random|nf_log|route\.flush|uuid")
    log = lab.paths.log(host)  # the lab's own
    directories = (lab.paths.state / host.name, lab.paths.host(host))
    return {
        "devices": shown("ip", "-details", "-oneline", "link"),
        "addresses": "\n".join(
            " ".join(re.sub(r"(valid|preferred)_lft \w+", "", line).split())
            for line in shown("ip", "-o", "address").splitlines()
        ),
        "routes": shown("ip", "route", "show", "table", "all"),
        "rules": shown("ip", "rule"),
        "nftables": shown("nft", "list", "ruleset"),
        "settings": "\n".join(line for line in settings.splitlines() if not volatile.search(line)),
        "sockets": shown("ss", "-lntuxH"),
        "files": "\n".join(sorted(str(path) for each in directories for path in each.rglob("*") if path != log)),
    }


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with mesh_lab.empty_lab(tmp_path, "reset") as made:
        made.add_host()
        made.add_host()
        yield made


def connect(lab: Lab) -> None:
    for host in lab.record.hosts:
        mesh_lab.start(lab, host)
    lab.wait_until_connected(timeout_s=mesh_lab.LIMIT_S)
    for host in lab.record.hosts:
        lab.add_pod(host)


def has_ended(host: HostRecord) -> bool:
    assert host.agent is not None
    return not host.agent.is_alive()


def by_hand(lab: Lab, host: HostRecord) -> list[str]:
    return ["reset", "--force", f"--state-dir={lab.paths.state / host.name}"]


def test_a_reset_hands_over_the_ring_and_leaves_the_host_as_it_was_found(lab: Lab) -> None:
    one, two = lab.record.hosts
    before = picture(lab, one)
    connect(lab)
    told(lab, one, "expose", "net:default", "192.168.99.1/24")
    assert "(50.0% of total)" in weave(lab, two, "status", "ipam")
    done = told(lab, one, "reset")
    assert (done.status, done.output) == (0, "weave is removed from this host\n"), done.errors
    assert "share of the addresses goes to another peer\nthe agent has ended\n" in done.errors
    assert "kernel: ip link delete weave\n" in done.errors
    assert has_ended(one)
    after = picture(lab, one)
    assert after == before
    mesh_lab.until(
        lambda: (
            f"{two.peer_name}(host2) {2**20} IPs (100.0% of total)"
            in re.sub(" +", " ", weave(lab, two, "status", "ipam"))
        ),
        "host2 has everything",
        lab,
        two,
    )
    pod = lab.record.pods[0]
    assert "eth0" not in process.run(["ip", "link"], namespace=lab.namespace(pod.name))
    again = told(lab, one, "reset", f"--state-dir={lab.paths.state / one.name}")
    assert again.status == 0, again.errors
    assert picture(lab, one) == before


def test_a_host_that_was_reset_joins_again_as_a_new_one(lab: Lab) -> None:
    connect(lab)
    one, two = lab.record.hosts
    assert told(lab, one, "reset").status == 0
    (lab.paths.state / one.name).mkdir(exist_ok=True)
    lab.paths.host(one).mkdir(exist_ok=True)
    mesh_lab.start(lab, one)
    lab.wait_until_connected(timeout_s=mesh_lab.LIMIT_S)
    pod = lab.add_pod(one)
    assert pod.address not in agents.query(lab.paths, two, "/ip")


def test_without_its_agent_a_host_is_reset_only_by_force_as_others_will_not_know(lab: Lab) -> None:
    one, _ = lab.record.hosts
    before = picture(lab, one)
    connect(lab)
    lab.kill_agent(one)
    state = f"--state-dir={lab.paths.state / one.name}"
    refused = told(lab, one, "reset", state)
    assert refused == process.Outcome(
        1,
        "",
        "ERROR: weave is not running; unable to remove from cluster.\n"
        "Re-launch weave before reset or use --force to override.\n",
    )
    assert "weave:" in process.run(["ip", "-o", "link"], namespace=lab.namespace(one.name))
    forced = told(lab, one, "reset", state, "--force")
    assert forced.status == 0, forced.errors
    assert picture(lab, one) == before


def test_while_an_agent_runs_that_cannot_be_reached_nothing_is_removed(lab: Lab) -> None:
    one, _ = lab.record.hosts
    connect(lab)
    run_dir = lab.paths.host(one)
    (run_dir / "weave.sock").unlink()
    locked = told(lab, one, *by_hand(lab, one))
    assert locked.status == 1
    assert f"weave is already running with --run-dir {run_dir}; stop it first" in locked.errors
    (run_dir / "lock").unlink()
    listening = told(lab, one, *by_hand(lab, one))
    assert listening.status == 1
    assert "an agent still runs: something listens on TCP port 6783; stop it first" in listening.errors
    assert "weave:" in process.run(["ip", "-o", "link"], namespace=lab.namespace(one.name))
    assert not has_ended(one)


def test_a_reset_that_no_peer_hears_says_how_the_others_get_the_addresses(lab: Lab) -> None:
    connect(lab)
    one, two = lab.record.hosts
    lab.stop_agent(two)
    mesh_lab.until(lambda: agents.established(lab.paths, one) == 0, "the connection ends", lab, one)
    done = told(lab, one, "reset")
    assert done.status == 0, done.errors
    assert "no peer hears us" in done.errors
    assert f"weave rmpeer {one.peer_name}\n" in done.errors
    mesh_lab.start(lab, two)
    assert weave(lab, two, "rmpeer", one.peer_name) == f"{2**19} IPs taken over from {one.peer_name}\n"


def test_a_stop_ends_the_agent_and_pods_keep_their_network(lab: Lab) -> None:
    connect(lab)
    one, two = lab.record.hosts
    here, there = lab.record.pods
    with mesh_lab.streams(lab, here, there) as (out, back):
        assert told(lab, one, "stop") == process.Outcome(0, "", "the agent has ended\n")
        assert has_ended(one)
        mesh_lab.until_logged(lab, two, f"{one.peer_name}({one.name})]: connection deleted")
        out.go_on(50)
        back.go_on(50)
    assert told(lab, one, "stop") == process.Outcome(0, "", "Weave is not running (ignore on Kubernetes).\n")
    mesh_lab.start(lab, one)
    lab.wait_until_connected(timeout_s=mesh_lab.LIMIT_S)
