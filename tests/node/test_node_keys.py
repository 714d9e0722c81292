"""Whole nodes in the simulator change the mesh's password while pods talk: nobody is parted and no packet is lost."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import permutations

import pytest

from weavenet.address import Cidr
from weavenet.identity import PeerName
from weavenet.ipam.modes import Seed
from weavenet.mesh.keyring import Keyring, Password, decode_keyring
from weavenet.sim.checkers import unconverged
from weavenet.sim.host import Host
from weavenet.sim.network import NetworkFaults
from weavenet.sim.world import World, host_address

EVERYWHERE = Cidr.parse("0.0.0.0/0")
RANGE = Cidr.parse("10.32.0.0/24")
HOSTS = 5
STEP_S = 0.1


def name(index: int) -> PeerName:
    return PeerName(0x7A00_0000_0000 + index)


@dataclass
class Rotation:
    """A mesh whose pods all talk to each other all the time."""

    world: World
    sealed: bool
    sent: int = 0
    since_s: dict[tuple[PeerName, PeerName], int] = field(default_factory=dict)

    @property
    def hosts(self) -> list[Host]:
        return self.world.running()

    def wait(self, seconds: float, *, talk: bool = True) -> None:
        end_s = self.world.now_s + seconds
        while self.world.now_s < end_s:
            self.world.run_until(self.world.now_s + STEP_S)
            if talk and self.sealed:
                self.talk()

    def talk(self) -> None:
        """Each host sends a frame to each other by the way its own tables say."""
        for source, target in permutations(self.hosts, 2):
            assert source.node is not None
            assert target.node is not None
            origin, destination = source.node.mesh.short_id, target.node.mesh.short_id
            tags = b"\x88\xa8" + destination.to_bytes(2, "big") + b"\x81\x00" + origin.to_bytes(2, "big")
            self.sent += 1
            frame = bytes(range(12)) + tags + b"\x88\xb5" + self.sent.to_bytes(8, "big") + bytes(40)
            self.world.sleeves.send(source, frame)

    def arrived(self) -> int:
        return len({frame for host in self.hosts for frame in self.world.sleeves.received(host)})

    def connections(self) -> list[tuple[int, PeerName]]:
        """Every connection of every host, by its number: one that was renewed has another."""
        nodes = [host.node for host in self.hosts if host.node is not None]
        return [(status.connection, status.name) for node in nodes for status in node.mesh.connections()]

    def everywhere(self, do: Callable[[Host], None]) -> None:
        for host in self.hosts:
            do(host)
            self.wait(3)


def start(*, sealed: bool, seed: int = 1, faults: NetworkFaults | None = None) -> Rotation:
    world = World(
        seed,
        RANGE,
        Seed(tuple(name(index) for index in range(1, HOSTS + 1))),
        keyring=Keyring.of(b"old"),
        trusted_subnets=() if sealed else (EVERYWHERE,),
        overlays="sleeve" if sealed else "fastdp",
    )
    if faults is not None:
        world.network.faults = faults
    for index in range(1, HOSTS + 1):
        world.boot(world.add_host(host_address(index), name(index), (host_address(1),) if index > 1 else ()))
    rotation = Rotation(world, sealed)
    rotation.wait(60, talk=False)
    assert unconverged_links(rotation) is None
    return rotation


def unconverged_links(rotation: Rotation) -> str | None:
    if not rotation.sealed:
        return unconverged(rotation.hosts)
    for host in rotation.hosts:
        assert host.node is not None
        links = host.node.overlays.links()
        if len(links) < HOSTS - 1 or not all(link.established for link in links.values()):
            return f"{host.name:012x} has {len(links)} links"
    return None


def undecipherable(rotation: Rotation) -> int:
    return sum(rotation.world.sleeves.undecipherable(host) for host in rotation.hosts)


def keys_of(rotation: Rotation) -> Iterator[list[str]]:
    for host in rotation.hosts:
        assert host.node is not None
        yield [f"{key.name} {key.connections}" for key in host.node.mesh.key_status()]


@pytest.mark.parametrize("sealed", [True, False], ids=["sleeve", "trusted fastdp"])
@pytest.mark.parametrize("seed", range(3))
def test_a_rotation_parts_nobody_and_loses_nothing(seed: int, *, sealed: bool) -> None:
    slow = NetworkFaults((0.001, 0.1), 0.0, 0.0, 0.0)
    rotation = start(sealed=sealed, seed=seed, faults=slow)
    world, before = rotation.world, rotation.connections()
    strays = undecipherable(rotation)  # of connections that were made twice at the start
    rotation.everywhere(lambda host: world.add_key(host, "new", b"new"))
    rotation.everywhere(lambda host: world.use_key(host, "new"))
    assert list(keys_of(rotation)) == [["initial 0", "new 4"]] * HOSTS
    rotation.everywhere(lambda host: world.retire_key(host, "initial"))
    rotation.wait(30)
    assert list(keys_of(rotation)) == [["new 4"]] * HOSTS
    assert rotation.connections() == before, "not one connection was renewed"
    assert unconverged_links(rotation) is None
    world.run_until(world.now_s + 1)
    assert rotation.arrived() == rotation.sent
    assert undecipherable(rotation) == strays
    for host in rotation.hosts:
        stored = decode_keyring(host.disk.load().values["keyring"])
        assert stored is not None
        assert [key.password for key in stored] == [Password(b"new")]


@pytest.mark.parametrize("sealed", [True, False], ids=["sleeve", "trusted fastdp"])
def test_all_at_the_same_moment_is_as_good(*, sealed: bool) -> None:
    rotation = start(sealed=sealed)
    world, before = rotation.world, rotation.connections()
    for change in (
        lambda host: world.add_key(host, "new", b"new"),
        lambda host: world.use_key(host, "new"),
        lambda host: world.retire_key(host, "initial"),
    ):
        for host in rotation.hosts:
            change(host)
        rotation.wait(5)
    rotation.wait(30)
    assert rotation.connections() == before
    world.run_until(world.now_s + 1)
    assert rotation.arrived() == rotation.sent


def test_a_password_that_is_used_the_moment_it_is_added_loses_nothing_either() -> None:
    rotation = start(sealed=True)
    world, before = rotation.world, rotation.connections()

    def add_and_use(host: Host) -> None:
        world.add_key(host, "new", b"new")
        world.use_key(host, "new")

    rotation.everywhere(add_and_use)
    rotation.everywhere(lambda host: world.retire_key(host, "initial"))
    rotation.wait(30)
    assert rotation.connections() == before
    world.run_until(world.now_s + 1)
    assert rotation.arrived() == rotation.sent


@pytest.mark.parametrize("seed", range(3))
def test_agents_that_crash_on_the_way_find_their_passwords_and_the_mesh_again(seed: int) -> None:
    rotation = start(sealed=False, seed=seed)
    world = rotation.world
    steps: list[Callable[[Host], None]] = [
        lambda host: world.add_key(host, "new", b"new"),
        lambda host: world.use_key(host, "new"),
        lambda host: world.retire_key(host, "initial"),
    ]
    for step in steps:
        for host in rotation.hosts:
            step(host)
            world.after(world.rng.random(), partial(world.crash, host))
            rotation.wait(1.5)
            world.boot(host)
            rotation.wait(2)
        rotation.wait(120)
        assert unconverged(rotation.hosts) is None
    assert list(keys_of(rotation)) == [["new 4"]] * HOSTS


def test_a_host_that_was_forgotten_is_parted_alone_and_comes_back_when_it_is_not() -> None:
    rotation = start(sealed=False)
    world = rotation.world
    *most, forgotten = rotation.hosts
    for change in (
        lambda host: world.add_key(host, "new", b"new"),
        lambda host: world.use_key(host, "new"),
        lambda host: world.retire_key(host, "initial"),
    ):
        for host in most:
            change(host)
        rotation.wait(5)
    rotation.wait(20)
    assert unconverged(most) is None
    assert forgotten.node is not None
    assert not forgotten.node.mesh.connections()
    world.add_key(forgotten, "new", b"new")
    rotation.wait(400)
    assert unconverged(rotation.hosts) is None


def test_what_is_refused_changes_nothing() -> None:
    rotation = start(sealed=False)
    (host, *_) = rotation.hosts
    rotation.world.retire_key(host, "initial")
    rotation.world.use_key(host, "unheard-of")
    rotation.world.add_key(host, "same", b"old")
    assert next(iter(keys_of(rotation))) == ["initial 4"]
