"""Meshes whose passwords change: ours, and ours with some of Weave's, in the router's own small world."""

import pytest
from mesh_world import A, B, C, Host, World

from weavenet.effects import CloseTcp, Dial, OverlayKeysChanged
from weavenet.mesh.keyring import Keyring


def change(world: World, host: Host, *passwords: bytes) -> None:
    world.perform(host, host.mesh.change_keyring(Keyring.of(*passwords), world.now))


def uses(host: Host) -> dict[str, int]:
    ring = host.mesh.keyring
    assert ring is not None
    password = {key.name: key.password.reveal().decode() for key in ring}
    return {password[key.name]: key.connections for key in host.mesh.key_status() if key.connections}


@pytest.mark.parametrize("theirs", [(b"2",), (b"3",), (b"3", b"2")])
def test_a_dialler_finds_the_password_of_its_target_without_waiting(theirs: tuple[bytes, ...]) -> None:
    world = World()
    a, b = world.host(A, keyring=Keyring.of(b"1", b"2", b"3")), world.host(B, keyring=Keyring.of(*theirs))
    world.connect(a, b)
    world.run()  # no time passes
    assert [status.name for status in a.mesh.connections()] == [B]
    assert len(a.of(Dial)) <= 3
    # What worked is tried first from then on.
    (connection,) = a.mesh.connections()
    world.perform(a, a.mesh.close(connection.connection, "for a test", world.now))
    a.outputs.clear()
    world.run(60)
    assert len(a.of(Dial)) == 1
    assert a.mesh.connections()


def test_where_no_password_is_right_all_are_tried_and_then_the_intervals_grow() -> None:
    world = World()
    a, b = world.host(A, keyring=Keyring.of(b"1", b"2", b"3")), world.host(B, keyring=Keyring.of(b"x", b"y"))
    world.connect(a, b)
    world.run()
    assert len(a.of(Dial)) == 3
    world.run(3600)
    assert not a.mesh.connections()
    assert len(a.of(Dial)) <= 3 * 40


def test_a_mesh_moves_from_one_password_to_another_and_keeps_its_connections() -> None:
    world = World()
    hosts = [world.host(name, password=b"1") for name in (A, B, C)]
    for host in hosts[1:]:
        world.connect(host, hosts[0])
    world.run(60)
    before = [host.mesh.connections() for host in hosts]
    assert [len(found) for found in before] == [2, 2, 2]
    for host in hosts:
        host.outputs.clear()
    for passwords in ((b"1", b"2"), (b"2", b"1"), (b"2",)):
        for host in hosts:
            change(world, host, *passwords)
            world.run(3)
    world.run(60)
    assert [host.mesh.connections() for host in hosts] == before
    assert [uses(host) for host in hosts] == [{"2": 2}] * 3
    assert not any(isinstance(output, CloseTcp) for host in hosts for output in host.outputs)
    sealing = [[output.sealing for output in host.of(OverlayKeysChanged)][-1] for host in hosts]
    assert all(sealing)
    for host in hosts:
        assert [len(output.opening) for output in host.of(OverlayKeysChanged)][-1] == 1


def test_a_peer_that_was_forgotten_loses_its_connections_when_its_password_is_retired() -> None:
    world = World()
    a, b = world.host(A, password=b"1"), world.host(B, password=b"1")
    world.connect(b, a)
    world.run(10)
    for passwords in ((b"1", b"2"), (b"2", b"1"), (b"2",)):
        change(world, a, *passwords)
    assert a.mesh.connections()
    world.run(15)
    assert not a.mesh.connections()
    assert any("has been retired" in note for note in a.notes())
    change(world, b, b"1", b"2")
    world.run(60)
    assert a.mesh.connections()


def test_connections_that_are_being_introduced_take_part() -> None:
    world = World()
    a, b = world.host(A, password=b"1"), world.host(B, password=b"1")
    world.perform(b, b.mesh.connect([world.target(a)], replace=False, now=world.now))
    change(world, a, b"2", b"1")
    change(world, b, b"1", b"2")
    world.run(10)
    assert a.mesh.connections()
    assert uses(a) == {"1": 1, "2": 1}
