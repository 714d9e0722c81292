"""Our agents and real Weave Net 2.8.1 in one mesh: connections, pods, the ring, and replacing one by the other.

They run where WEAVENET_REAL_WEAVER names a `weaver` of Weave Net's, and are skipped elsewhere.
"""

import random
import re
from collections.abc import Iterator
from pathlib import Path

import mesh_lab
import mixed
import pytest
from mixed import OURS, THEIRS, Mixed

from weavenet.lab import agents, process, real_weave
from weavenet.lab.record import PodRecord

WEAVER = real_weave.program()
pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(WEAVER is None, reason=f"no real Weave Net: {real_weave.VARIABLE} names no program"),
]
SMALL_RANGE = ("--ipalloc-range=10.32.0.0/24",)
SECRET = "wfvAwt7sj"


@pytest.fixture
def mesh(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mixed]:
    assert WEAVER is not None
    with mixed.mesh(tmp_path, WEAVER, "mixed", list(request.param)) as made:
        yield made


def meshes(*kinds: tuple[str, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("mesh", kinds, ids=" ".join, indirect=True)


def pods_of_all(mesh: Mixed) -> list[PodRecord]:
    pods = [mesh.add_pod(number) for number in range(1, len(mesh.kinds) + 1)]
    for one in pods:
        for two in pods:
            if one is not two:
                mesh.until_pods_talk(one, two)
    return pods


def shares(mesh: Mixed, number: int) -> dict[str, int]:
    """Return how many addresses each peer owns, as a host says."""
    found = re.findall(r"^(7a:\S{15})\S*\s+(\d+) IPs", mesh.status(number, "ipam"), re.MULTILINE)
    return {name: int(count) for name, count in found}


def until_same(mesh: Mixed, *numbers: int) -> None:
    first, *others = numbers
    for other in others:
        mesh_lab.until(lambda o=other: mesh.topology(o) == mesh.topology(first) != [], f"{numbers} see the same peers")
        mesh_lab.until(lambda o=other: shares(mesh, o) == shares(mesh, first) != {}, f"{numbers} see the same ring")


def allocate(mesh: Mixed, number: int, ident: str) -> str:
    """Ask a host for an address, as its CNI plugin does."""
    host = mesh.hosts[number - 1]
    if mesh.kinds[number - 1] == THEIRS:
        return mesh.real.api(host, "POST", f"/ip/{ident}")
    return agents.query(mesh.lab.paths, host, f"/ip/{ident}", "POST")


def free(mesh: Mixed, number: int, ident: str) -> None:
    host = mesh.hosts[number - 1]
    if mesh.kinds[number - 1] == THEIRS:
        mesh.real.api(host, "DELETE", f"/ip/{ident}")
    else:
        agents.query(mesh.lab.paths, host, f"/ip/{ident}", "DELETE")


@pytest.mark.parametrize("password", ["", SECRET], ids=["plain", "sealed"])
@meshes((OURS, THEIRS), (THEIRS, OURS), (THEIRS, OURS, THEIRS), (OURS, THEIRS, OURS))
def test_both_kinds_connect_in_any_order_and_their_pods_talk(mesh: Mixed, password: str) -> None:
    mesh.start_all(password=password)
    pods_of_all(mesh)
    until_same(mesh, *range(1, len(mesh.kinds) + 1))
    of_first = mesh.established(1)
    between_kinds = [host.peer_name for host, kind in zip(mesh.hosts, mesh.kinds, strict=True) if kind != mesh.kinds[0]]
    assert all("sleeve" in of_first[name] for name in between_kinds), "the one overlay that both have"
    assert all(("encrypted" in line) == bool(password) for line in of_first.values())


@pytest.mark.parametrize("how", ["stop", "kill"])
@meshes((OURS, THEIRS))
def test_after_either_side_was_restarted_the_same_pods_talk_again(mesh: Mixed, how: str) -> None:
    mesh.start_all()
    one, two = pods_of_all(mesh)
    for number in (1, 2):
        mesh.stop(number, how=how)
        mesh.start(number, peers=[3 - number])
        mesh.until_connected()
        mesh.until_pods_talk(one, two)
        mesh.until_pods_talk(two, one)


@meshes((OURS, THEIRS), (THEIRS, OURS))
def test_a_wrong_password_is_refused_with_the_reason(mesh: Mixed) -> None:
    mesh.start(1, password=SECRET)
    mesh.start(2, peers=[1], password="another")
    mesh_lab.until(lambda: "Unable to decrypt TCP msg" in mesh.status(2, "connections"), "the dialler says why")
    assert mesh.established(1) == {}


@meshes((OURS, THEIRS), (THEIRS, OURS))
def test_another_seed_is_refused_with_the_reason(mesh: Mixed) -> None:
    for number in (1, 2):
        seed = f"--ipalloc-init=seed={mesh.hosts[number - 1].peer_name}"
        mesh.start(number, peers=range(1, number), options=[seed])
    mesh_lab.until(lambda: "seeded by different peers" in mesh.status(2, "connections"), "the dialler says why")


@meshes((OURS, THEIRS), (THEIRS, OURS, THEIRS), (OURS, THEIRS, OURS), (OURS, OURS, THEIRS), (THEIRS, THEIRS, OURS))
def test_large_packets_arrive_at_the_other_end_of_a_line_or_their_sender_is_told(mesh: Mixed) -> None:
    mesh.start_line()
    pods = [mesh.add_pod(number) for number in (1, len(mesh.kinds))]
    for one, two in (pods, reversed(pods)):
        mesh.until_pods_talk(one, two)
        for size in ("1400", "2000", "60000"):
            mesh_lab.until(
                lambda a=one, b=two, s=size: (
                    mesh.run(a, "ping", "-c", "3", "-i", "0.2", "-W", "1", "-M", "dont", "-s", s, b.address).status == 0
                ),
                f"{size} bytes arrive at {two.name}",
            )
        refused = mesh.run(one, "ping", "-c", "2", "-W", "1", "-M", "do", "-s", "2000", two.address)
        assert re.search("mtu ?= ?1", refused.output + refused.errors)


@meshes((OURS, THEIRS), (THEIRS, OURS))
def test_one_kind_begs_addresses_of_the_other_and_none_is_given_twice(mesh: Mixed) -> None:
    mesh.start_all(SMALL_RANGE)
    given = [allocate(mesh, 1, f"one-{number}") for number in range(170)]
    given += [allocate(mesh, 2, f"two-{number}") for number in range(70)]
    assert len(set(given)) == len(given)
    until_same(mesh, 1, 2)


@meshes((OURS, THEIRS, OURS, THEIRS))
def test_two_thousand_allocations_and_frees_over_both_kinds_give_no_address_twice(mesh: Mixed) -> None:
    mesh.start_all(("--ipalloc-range=10.32.0.0/23",))
    rng = random.Random(1)
    held: dict[tuple[int, str], str] = {}
    for count in range(2000):
        if held and rng.random() < 0.4:
            number, ident = rng.choice(list(held))
            free(mesh, number, ident)
            del held[number, ident]
        else:
            number, ident = rng.randint(1, 4), f"pod-{count}"
            address = allocate(mesh, number, ident)
            assert address not in held.values(), f"{address}, the second time"
            held[number, ident] = address
    until_same(mesh, 1, 2, 3, 4)
    assert sum(shares(mesh, 1).values()) == 512


@meshes((OURS, THEIRS, OURS), (THEIRS, OURS, THEIRS), (OURS, OURS, THEIRS), (THEIRS, THEIRS, OURS))
def test_a_dead_peer_of_one_kind_is_taken_over_by_the_other(mesh: Mixed) -> None:
    mesh.start_all(SMALL_RANGE)
    for number in (1, 2, 3):
        allocate(mesh, number, f"pod-{number}")
    mesh.stop(2, how="kill")
    mesh_lab.until(lambda: len(mesh.established(1)) == 1 == len(mesh.established(3)), "its connections are gone")
    assert "IPs taken over from 7a:00:00:00:00:02" in mesh.weave(1, "rmpeer", "7a:00:00:00:00:02")
    until_same(mesh, 1, 3)
    assert sum(shares(mesh, 3).values()) == 256
    assert "7a:00:00:00:00:02" not in shares(mesh, 3)


@meshes((THEIRS, THEIRS, THEIRS))
def test_a_cluster_is_replaced_node_by_node_while_the_other_pods_talk(mesh: Mixed) -> None:
    mesh.start_all()
    pods = pods_of_all(mesh)
    for number in (1, 2, 3):
        host = mesh.hosts[number - 1]
        mesh.real.remove_pod(host, pods[number - 1])
        assert mesh.real.api(host, "DELETE", "/peer") == ""
        mesh.stop(number)
        process.run(["ip", "link", "delete", "vethwe-bridge"], namespace=mesh.lab.namespace(host.name))
        mesh.kinds[number - 1] = OURS
        mesh.start(number, peers=[other for other in (1, 2, 3) if other != number])
        mesh.until_connected()
        pods[number - 1] = mesh.add_pod(number)
        for one in pods:
            for two in pods:
                if one is not two:
                    mesh.until_pods_talk(one, two)
        until_same(mesh, 1, 2, 3)
