"""What a seed makes of a run: how many hosts, how bad the network, what fails when, what the containers do.

Everything is drawn up front or as it happens from the world's one random stream, so the seed alone replays the run.
"""

import random
import traceback
from collections.abc import Callable
from functools import partial

import msgspec

from weavenet.address import Address, Cidr, Endpoint, format_address
from weavenet.identity import PeerName, format_peer_name
from weavenet.ipam.modes import Consensus, InitMode, Seed
from weavenet.mesh.connector import Target
from weavenet.mesh.keyring import Keyring
from weavenet.node.inputs import Connect
from weavenet.sim.checkers import InvariantError, is_only_disputed, unconverged
from weavenet.sim.host import Host
from weavenet.sim.network import PERFECT, NetworkFaults
from weavenet.sim.operators import Conduct, draw_conduct, still_owns, take_over_rightly, take_over_wrongly
from weavenet.sim.world import World, host_address

UNIVERSE = Cidr.parse("10.32.0.0/16")
SMALL_UNIVERSE = Cidr.parse("10.32.0.0/24")  # tight enough that hosts must beg space of each other
FIRST_NAME = 0x7A_00_00_00_00_00

STEP_S = 0.5
SAFETY_S = 20.0
LIVENESS_S = 900.0
LIVENESS_STEP_S = 10.0
PASSWORD_SHARE = 0.3  # of runs
PASSWORD, NEXT_PASSWORD, FIRST_KEY = b"old", b"new", "initial"
EVERYWHERE = Cidr.parse("0.0.0.0/0")
CONFLICT_S = 60.0  # how long a mesh is watched that an operator has set at odds with itself


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
    # Drawn after all the rest and apart from it, so that what came later leaves older seeds as they were.
    clock_error_s: float  # up to this much, either way, per host
    conduct: Conduct
    misdeed_s: float  # when a hasty or rash operator acts
    # And this again after those, and apart.
    compact_share: float  # of hosts that have compact gossip; the others gossip as Weave's peers do
    # And this.
    has_password: bool
    rotation_s: tuple[float, float] | None  # when another password is added and used by those that run, meanwhile


def draw_plan(seed: int, hosts: int) -> Plan:
    """Draw a run. Half of the runs are calm in any one respect, so that the others show by themselves."""
    rng = random.Random(f"plan {seed}")  # noqa: S311 - replayable is the point
    later = random.Random(f"later {seed}")  # noqa: S311 - the same
    last = random.Random(f"last {seed}")  # noqa: S311 - the same
    sealing = random.Random(f"sealing {seed}")  # noqa: S311 - the same
    has_password = sealing.random() < PASSWORD_SHARE
    added_s = sealing.uniform(SAFETY_S / 4, SAFETY_S / 2)
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
        clock_error_s=later.choice([0.0, 0.5, 86_400.0]),
        conduct=draw_conduct(later),
        misdeed_s=later.uniform(SAFETY_S / 4, SAFETY_S * 3 / 4),
        compact_share=last.choice([1.0, 1.0, 0.5, 0.0]),
        has_password=has_password,
        rotation_s=(added_s, added_s + SAFETY_S / 4) if has_password and sealing.random() < 0.5 else None,
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
        self.plan = draw_plan(seed, hosts)
        # With trusted subnets fastdp carries the traffic all the same; control connections are sealed.
        password = Keyring.of(PASSWORD) if self.plan.has_password else None
        self.world = World(
            seed,
            self.plan.universe,
            self.plan.mode,
            keyring=password,
            trusted_subnets=(EVERYWHERE,) if password else (),
            is_honest=True,
        )
        self._changes: list[tuple[float, Callable[[Host], None]]] = []  # of passwords, in order of time
        if self.plan.rotation_s is not None:
            added_s, used_s = self.plan.rotation_s
            self._changes = [(added_s, self._add_key), (used_s, self._use_key)]
        self._later = random.Random(f"run {seed}")  # noqa: S311 - replayable is the point
        self._last = random.Random(f"last run {seed}")  # noqa: S311 - the same
        self._next_ident = 1
        self._retired: list[PeerName] = []
        self._misdeed_is_due = not self.plan.conduct.is_right

    def play(self) -> Result:
        """Let anything fail, heal, and wait for the world to converge. Raises InvariantError."""
        world = self.world
        self._place_hosts()
        world.network.faults = self.plan.network
        while world.now_s < SAFETY_S:
            world.run_until(world.now_s + STEP_S)
            self._misfortune()
            self._operate()
            self._rotate()
            self._containers()
        self._heal()
        problem = self._converge() or self._end_rotation()
        converged_s = world.now_s - SAFETY_S
        if problem is None and self.plan.conduct is Conduct.CAREFUL and self._retired:
            take_over_rightly(world, self._later, self._retired)
            problem = self._converge()
            self._containers()  # what was taken over is given out again
            problem = problem or still_owns(world, self._retired) or self._converge()
        return Result(problem, converged_s, world.events, world.trace())

    def _converge(self) -> str | None:
        """Wait until all is as it must become; say what is not."""
        world = self.world
        deadline_s = world.now_s + LIVENESS_S
        patience_s = world.now_s + CONFLICT_S
        while True:
            world.run_until(world.now_s + LIVENESS_STEP_S)
            problem = unconverged(world.running())
            if problem is None or world.now_s >= deadline_s:
                return problem
            if world.now_s >= patience_s and not self.plan.conduct.is_right and self._is_operators_doing():
                return None

    def _is_operators_doing(self) -> bool:
        return self.world.ring_conflicts > 0 or is_only_disputed(self.world.running(), self.world.ledger)

    def _place_hosts(self) -> None:
        world = self.world
        for index in range(1, self.plan.hosts + 1):
            known = (host_address(world.rng.randint(1, index - 1)),) if index > 1 else ()
            host = world.add_host(host_address(index), PeerName(FIRST_NAME + index), known)
            host.compact = self._last.random() < self.plan.compact_share
            host.clock_error_s = self._later.uniform(-1.0, 1.0) * self.plan.clock_error_s
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

    def _operate(self) -> None:
        """Do what a hasty or a rash operator does, once."""
        world = self.world
        if not self._misdeed_is_due or world.now_s < self.plan.misdeed_s or len(world.running()) < 3:
            return
        self._misdeed_is_due = False
        lost, *heirs = self._later.sample(world.running(), 3)
        if self.plan.conduct is Conduct.HASTY:
            self._retire(lost.address)
            take_over_wrongly(world, lost.name, heirs)
        else:
            world.lose_power(lost)
            take_over_wrongly(world, lost.name, heirs[:1])

    # --- passwords

    def _add_key(self, host: Host) -> None:
        self.world.add_key(host, "new", NEXT_PASSWORD)

    def _use_key(self, host: Host) -> None:
        self.world.use_key(host, "new")

    def _rotate(self) -> None:
        """Go on changing the password, on those hosts that run just now."""
        while self._changes and self._changes[0][0] <= self.world.now_s:
            _, change = self._changes.pop(0)
            for host in self.world.running():
                change(host)

    def _end_rotation(self) -> str | None:
        """Do on all hosts what was missed on some, and retire the first password; say what is not as it must become."""
        if self.plan.rotation_s is None:
            return None
        for change in (self._add_key, self._use_key, lambda host: self.world.retire_key(host, FIRST_KEY)):
            for host in self.world.running():
                change(host)
            problem = self._converge()
            if problem is not None:
                return f"while the password was changed: {problem}"
        for host in self.world.running():
            assert host.node is not None
            known = [key.name for key in host.node.mesh.key_status()]
            if known != ["new"]:
                return f"{format_peer_name(host.name)} has the passwords {known}"
        return None

    # --- bad luck

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
        """A machine is lost with its disk."""
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
            asked = self.world.ledger.asked(host.name)
            if mine and rng.random() < 0.4:
                self.world.release(host, rng.choice(mine))
            elif asked and self._later.random() < 0.2:
                # A runtime that lost patience, or its own memory, asks again, and must get what was given, if anything.
                again = self._later.choice(asked)
                if self._later.random() < 0.5:
                    self.world.give_up(host, again)
                self.world.allocate(host, again)
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
    """Play one seed; a violation or a programmer's error, of whatever kind, is a result, too."""
    run = Run(seed, hosts)
    try:
        return seed, run.play()
    except InvariantError as violation:
        problem = f"at {run.world.now_s:.3f} s: {violation}"
    except Exception:  # noqa: BLE001 - the seed must be told, and the others played
        problem = f"at {run.world.now_s:.3f} s: a programmer's error\n{traceback.format_exc()}"
    return seed, Result(problem, 0.0, run.world.events, run.world.trace())
