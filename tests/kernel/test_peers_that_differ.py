"""Agents that were told different things: what differs, and who differs, is said on both sides and by `weave status`.

All share one lab, whose hosts 1 and 2 belong together and stay so; a third one is started otherwise again and again.
"""

import re
from collections.abc import Iterator

import mesh_lab
import pytest

from weavenet.lab import process, traffic
from weavenet.lab.hosts import Lab
from weavenet.lab.record import HostRecord

pytestmark = pytest.mark.kernel

TRUSTED = "--trusted-subnets=10.99.0.0/24"
SECRET = ("--password=correct horse", TRUSTED)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with mesh_lab.running_lab(tmp_path_factory.mktemp("l"), "differ", 2, SECRET) as lab:
        for host in list(lab.record.hosts):
            lab.add_pod(host)
        lab.add_host()
        yield lab


@pytest.fixture
def odd(lab: Lab) -> Iterator[HostRecord]:
    """Return the third host, to be started by the test; afterwards the other two are as connected as before."""
    one, two, three = lab.record.hosts
    before = connection(lab, one, two)
    with mesh_lab.streams(lab, *lab.record.pods):
        yield three
    lab.stop_agent(three)
    (lab.paths.state / three.name / "weavenet.db").unlink(missing_ok=True)
    assert connection(lab, one, two) == before


def connection(lab: Lab, host: HostRecord, other: HostRecord) -> str:
    """Return what `weave status` shows of it, but for the round trip, which is measured again and again."""
    (line,) = [
        re.sub(r" rtt=\S+", "", line)
        for line in mesh_lab.weave(lab, host, "status", "connections").splitlines()
        if other.peer_name in line and "established" in line
    ]
    return line


def failed(lab: Lab, host: HostRecord, other: HostRecord, why: str) -> None:
    """Wait until `weave status connections` tells of a failed or retrying connection to a host, and why."""

    def is_shown() -> bool:
        lines = mesh_lab.weave(lab, host, "status", "connections").splitlines()
        return any(f"{other.address}:" in line and why in line for line in lines)

    mesh_lab.until(is_shown, f"{host.name} shows why {other.name} is not connected: {why}", lab, host)


def test_the_same_password_works_where_subnets_are_trusted(lab: Lab) -> None:
    one, two = lab.record.pods
    traffic.ping(lab, traffic.Route(one.name, two.name, two.address))
    assert "Encryption: enabled" in mesh_lab.weave(lab, lab.record.hosts[0], "status")
    assert "encrypted" in connection(lab, *lab.record.hosts[:2])


@pytest.mark.parametrize(
    ("options", "why_there", "why_here"),
    [
        (
            ("--password=battery staple", TRUSTED),
            "is the password the same on both peers?",
            "is the password the same on both peers?",
        ),
        (
            (TRUSTED,),
            "no password specificed, but peer requested an encrypted connection",
            "password specified, but peer requested an unencrypted connection",
        ),
        (
            ("--password=correct horse", "--trusted-subnets=", "--no-sleeve"),
            "encrypted overlay traffic is not supported by it",
            "encrypted overlay traffic is not supported by it",
        ),
    ],
    ids=["another password", "no password", "not trusted"],
)
def test_a_peer_that_differs_is_refused_with_the_reason_on_both_sides_and_nobody_else_is_disturbed(
    lab: Lab, odd: HostRecord, options: tuple[str, ...], why_there: str, why_here: str
) -> None:
    here = lab.record.hosts[0]
    mesh_lab.start(lab, odd, options)
    mesh_lab.until_logged(lab, odd, f"->[{here.address}:", "shutting down", why_there)
    mesh_lab.until_logged(lab, here, f"->[{odd.address}:", "shutting down", why_here)
    failed(lab, odd, here, why_there)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--ipalloc-range=10.48.0.0/12", "Incompatible IP allocation ranges"),
        ("--ipalloc-init=seed=7a:00:00:00:00:03", "IP allocation was seeded by different peers"),
    ],
    ids=["range", "seed"],
)
def test_a_peer_with_another_range_or_seed_is_refused_with_both_and_nobody_else_is_disturbed(
    lab: Lab, odd: HostRecord, option: str, words: str
) -> None:
    mesh_lab.start(lab, odd, (*SECRET, option))

    def is_said() -> bool:
        # Whoever hears of the other's ring first hangs up, and the other sees only that.
        return any(
            f"|{other.peer_name}(" in line and f"{words} (received: " in line and ", ours: " in line
            for host, other in ((odd, lab.record.hosts[0]), (lab.record.hosts[0], odd))
            for line in mesh_lab.logged(lab, host).splitlines()
        )

    mesh_lab.until(is_said, words, lab, odd)


# --- ranges that are in use ------------------------------------------------------------------------------------------


def test_an_agent_whose_range_the_host_reaches_otherwise_does_not_start_and_leaves_nothing(lab: Lab) -> None:
    host = lab.add_host()
    inside = lab.namespace(host.name)
    process.run(["ip", "route", "add", "10.40.0.0/16", "via", "10.99.0.1"], namespace=inside)
    before = process.run(["ip", "-o", "link"], namespace=inside)
    lab.start_agent(host, peers=[], consensus=1)
    assert host.agent is not None
    assert process.wait(host.agent, mesh_lab.LIMIT_S)
    said = mesh_lab.logged(lab, host).splitlines()[-1]
    assert said == (
        "weaver: Network 10.32.0.0/12 overlaps with existing route 10.40.0.0/16 dev eth0 on host; "
        "choose another --ipalloc-range, the same on all peers"
    )
    assert process.run(["ip", "-o", "link"], namespace=inside) == before
    process.run(["ip", "route", "delete", "10.40.0.0/16"], namespace=inside)
    lab.record.hosts.remove(host)
