"""What a seed makes of a run: how many hosts, how bad the network, what fails when, what the containers do.

Everything is drawn up front or as it happens from the world's one random stream, so the seed alone replays the run.
"""

import random
import traceback
from functools import partial

import msgspec

from weavenet.address import Address, Cidr, Endpoint, format_address
from weavenet.identity import PeerName
from weavenet.ipam.modes import Consensus, InitMode, Seed
from weavenet.mesh.connector import Target
from weavenet.node.inputs import Connect
from weavenet.sim.checkers import InvariantError, unconverged
from weavenet.sim.host import Host
from weavenet.sim.network import PERFECT, NetworkFaults
from weavenet.sim.world import World, host_address

UNIVERSE = Cidr.parse("10.32.0.0/16")
SMALL_UNIVERSE = Cidr.parse("10.32.0.0/24")  # tight enough that hosts must beg space of each other
FIRST_NAME = 0x7A_00_00_00_00_00

STEP_S = 0.5
SAFETY_S = 20.0
LIVENESS_S = 900.0
LIVENESS_STEP_S = 10.0


class Plan(msgspec.Struct, frozen=True):
    """The shape of one run."""

    hosts: int
    universe: Cidr
    mode: InitMode
    network: NetworkFaults
    crash_rate: float  # per step, for some host
    power_rate: float
    partition_rate: float
    heal_rate: float
    boot_rate: float  # per step and crashed host
    retire_rate: float  # a machine that never comes back
    container_rate: float  # per step and host


def draw_plan(rng: random.Random, hosts: int) -> Plan:
    """Draw a run. Half of the runs are calm in any one respect, so that the others show by themselves."""
    names = tuple(PeerName(FIRST_NAME + index + 1) for index in range(hosts))
    mode: InitMode = Seed(names) if rng.random() < 0.25 else Consensus(hosts)
    return Plan(
        hosts=hosts,
        universe=rng.choice([UNIVERSE, SMALL_UNIVERSE]),
        mode=mode,
        network=NetworkFaults(
            latency_s=(0.0002, rng.choice([0.001, 0.05, 0.5])),
            datagram_loss=rng.choice([0.0, 0.05, 0.3]),
            datagram_duplication=rng.choice([0.0, 0.1]),
            datagram_delay_s=rng.choice([0.0, 0.2]),
        ),
        crash_rate=rng.choice([0.0, 0.05, 0.15]),
        power_rate=rng.choice([0.0, 0.03]),
        partition_rate=rng.choice([0.0, 0.05]),
        heal_rate=0.1,
        boot_rate=0.1,
        retire_rate=rng.choice([0.0, 0.004]),
        container_rate=rng.choice([0.02, 0.1]),
    )


class Result(msgspec.Struct, frozen=True):
    """How a run ended: None, or what was still wrong; and the digest of everything that happened."""

    problem: str | None
    converged_s: float
    events: int
    trace: str


class Run:
    """One seed, played out."""

    def __init__(self, seed: int, hosts: int) -> None:
        """Draw the plan; nothing has happened yet."""
        self.plan = draw_plan(random.Random(f"plan {seed}"), hosts)  # noqa: S311 - replayable is the point
        self.world = World(seed, self.plan.universe, self.plan.mode)
        self._next_ident = 1
        self._retired: list[PeerName] = []

    def play(self) -> Result:
        """Let anything fail, heal, and wait for the world to converge. Raises InvariantError."""
        world = self.world
        self._place_hosts()
        world.network.faults = self.plan.network
        while world.now_s < SAFETY_S:
            world.run_until(world.now_s + STEP_S)
            self._misfortune()
            self._containers()
        self._heal()
        deadline_s = world.now_s + LIVENESS_S
        while True:
            world.run_until(world.now_s + LIVENESS_STEP_S)
            problem = unconverged(world.running())
            if problem is None or world.now_s >= deadline_s:
                break
        return Result(problem, world.now_s - SAFETY_S, world.events, world.trace())

    def _place_hosts(self) -> None:
        world = self.world
        for index in range(1, self.plan.hosts + 1):
            known = (host_address(world.rng.randint(1, index - 1)),) if index > 1 else ()
            host = world.add_host(host_address(index), PeerName(FIRST_NAME + index), known)
            world.after(world.rng.random() * 2.0, partial(self._boot, host))

    def _boot(self, host: Host) -> None:
        if host.node is None:
            self.world.boot(host)

    def _misfortune(self) -> None:
        world, rng, plan = self.world, self.world.rng, self.plan
        running = world.running()
        if running and rng.random() < plan.crash_rate:
            rng.choice(running).effects_until_crash = rng.randint(0, 20)
        if running and rng.random() < plan.power_rate:
            world.lose_power(rng.choice(running))
        if rng.random() < plan.partition_rate:
            self._partition()
        if rng.random() < plan.heal_rate:
            world.network.heal()
        if len(world.hosts) > self.plan.hosts // 2 and rng.random() < plan.retire_rate:
            self._retire(rng.choice(sorted(world.hosts)))
        for _, host in sorted(world.hosts.items()):
            if host.node is None and rng.random() < plan.boot_rate:
                world.boot(host)

    def _partition(self) -> None:
        rng = self.world.rng
        addresses = sorted(self.world.hosts)
        inside = [address for address in addresses if rng.random() < 0.3]
        one_way = rng.random() < 0.3
        for near in inside:
            for far in addresses:
                if far not in inside:
                    self.world.network.block(near, far)
                    if not one_way:
                        self.world.network.block(far, near)

    def _retire(self, address: Address) -> None:
        """A machine is lost with its disk. Somebody will take its ranges over, once."""
        world = self.world
        host = world.hosts[address]
        if host.node is not None:
            world.lose_power(host)
        del world.hosts[address]
        world.ledger.forget_host(host.name)
        self._retired.append(host.name)

    def _containers(self) -> None:
        rng = self.world.rng
        for host in self.world.running():
            if rng.random() >= self.plan.container_rate:
                continue
            mine = self.world.ledger.containers(host.name)
            if mine and rng.random() < 0.4:
                self.world.release(host, rng.choice(mine))
            else:
                self.world.allocate(host, f"c{self._next_ident}/eth0")
                self._next_ident += 1

    def _heal(self) -> None:
        world = self.world
        world.network.faults = PERFECT
        world.network.heal()
        for _, host in sorted(world.hosts.items()):
            host.effects_until_crash = None
            if host.node is None:
                world.boot(host)
        self._adopt_orphans()

    def _adopt_orphans(self) -> None:
        """Do what an administrator does when the one neighbour that a host was told of is no more: `weave connect`."""
        world = self.world
        first, *others = world.running()
        for host in others:
            if not any(target.endpoint.address in world.hosts for target in host.targets):
                known = Target(format_address(first.address), Endpoint(first.address, 0))
                world.feed(host, Connect((known,), replace=False))


def play(seed: int, hosts: int) -> tuple[int, Result]:
    """Play one seed; a violation or a programmer's error is a result, too."""
    run = Run(seed, hosts)
    try:
        return seed, run.play()
    except InvariantError as violation:
        problem = f"at {run.world.now_s:.3f} s: {violation}"
    except AssertionError:
        problem = f"at {run.world.now_s:.3f} s: assertion failed\n{traceback.format_exc()}"
    return seed, Result(problem, 0.0, run.world.events, run.world.trace())
