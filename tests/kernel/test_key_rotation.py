"""Real agents change the mesh's password while a pod pings another fifty times a second: every ping is answered."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_sleeve import bring_up, established, ping, talks, until, weave

from weavenet.lab import agents, hosts, process
from weavenet.lab.hosts import Lab
from weavenet.lab.record import HostRecord, Paths, PodRecord

pytestmark = pytest.mark.kernel
OLD, NEW = "wfvAwt7sj", "Nxq83hLwd"
PINGS = 800
INTERVAL_S = 0.02


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    paths = Paths(f"keys-{os.getpid()}", run_root=tmp_path / "run", state_root=tmp_path / "state")
    yield Lab.create(paths, owner=process.this_process())
    hosts.down(paths)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(f"{OLD}\n")
    return path


def add_key(lab: Lab, host: HostRecord) -> None:
    argv = [str(agents.programs() / "weave"), "key", "add", "new"]
    process.run(argv, namespace=lab.namespace(host.name), env=lab.environment(host), text=f"{NEW}\n")


def keys(lab: Lab, host: HostRecord) -> list[tuple[str, str, int]]:
    rows = json.loads(weave(lab, host, "key", "list", "--json"))
    return [(row["name"], row["state"], row["connections"]) for row in rows]


def rotate(lab: Lab, rotated: list[HostRecord]) -> None:
    """What docs/operating.md tells an operator to do."""
    for host in rotated:
        add_key(lab, host)
    for host in rotated:
        weave(lab, host, "key", "use", "new")
        time.sleep(0.3)
    until(lambda: all(keys(lab, host) == [("initial", "accepted", 0), ("new", "in use", 1)] for host in rotated))
    for host in rotated:
        weave(lab, host, "key", "retire", "initial")
    assert all(keys(lab, host) == [("new", "in use", 1)] for host in rotated)


def ping_through(lab: Lab, source: PodRecord, target: PodRecord) -> str:
    """Ping while the passwords change, and for longer than a retired one is opened; return ping's summary."""
    log = lab.paths.run / "ping.log"
    argv = ["ping", "-n", "-q", "-c", str(PINGS), "-i", str(INTERVAL_S), target.address]
    pinging = lab.start("ping", argv, where=source.name)
    rotate(lab, lab.record.hosts)
    assert process.wait(pinging, PINGS * INTERVAL_S + 20)
    return next(line for line in log.read_text().splitlines() if "packets transmitted" in line)


def no_secret_is_shown(lab: Lab) -> bool:
    texts = [lab.paths.log(host).read_text() for host in lab.record.hosts]
    texts += [weave(lab, host, "report") for host in lab.record.hosts]
    texts += [
        path.read_bytes().decode(errors="replace")
        for host in lab.record.hosts
        if host.agent is not None
        for path in (Path(f"/proc/{host.agent.pid}/cmdline"), Path(f"/proc/{host.agent.pid}/environ"))
    ]
    return not any(secret in text for text in texts for secret in (OLD, NEW))


@pytest.mark.parametrize("options", [[], ["--trusted-subnets=0.0.0.0/0"]], ids=["sealed sleeve", "trusted fastdp"])
def test_a_ping_across_a_rotation_loses_nothing(lab: Lab, secret: Path, options: list[str]) -> None:
    one, two = bring_up(lab, [f"--password-file={secret}", *options])
    until(talks(lab, one, two))
    overlay = "fastdp" if options else "sleeve"
    until(lambda: f"{overlay} 7a:00:00:00:00:02" in weave(lab, lab.record.hosts[0], "status", "connections"))
    assert f"{PINGS} packets transmitted, {PINGS} received, 0% packet loss" in ping_through(lab, one, two)
    assert no_secret_is_shown(lab)
    log = lab.paths.log(lab.record.hosts[0]).read_text()
    assert log.count("connection added") == 1, "the connection of the start is still the same"
    assert log.count("overlay_switch") == 1


def test_a_restarted_agent_has_its_keys_whatever_its_flags_still_say(lab: Lab, secret: Path) -> None:
    one, two = bring_up(lab, [f"--password-file={secret}"])
    rotate(lab, lab.record.hosts)
    first, second = lab.record.hosts
    lab.stop_agent(second)
    lab.start_agent(second, peers=[first.address], consensus=2, options=[f"--password-file={secret}"])
    until(lambda: established(lab, second) and established(lab, first))
    assert keys(lab, second) == [("new", "in use", 1)]
    assert "the password that was given has been retired" in lab.paths.log(second).read_text()
    until(talks(lab, one, two))
    assert "0% packet loss" in ping(lab, two, one)
