"""Several allocators, a network that loses, repeats and reorders, and processes that die between any two effects.

Whatever happens, an address has one owner, and what was granted is on disk and stays with whom it was granted to. When
the trouble is over, everybody who waits is served as long as there is a free address anywhere.
"""

import random
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from weavenet.address import Address, Cidr, parse_subnet
from weavenet.effects import (
    Done,
    DropAllocation,
    GossipKind,
    Granted,
    Note,
    Now,
    Output,
    Persist,
    PutAllocation,
    PutValue,
    Refused,
    Reply,
    RequestNumber,
    SendBroadcast,
    SendUnicast,
)
from weavenet.identity import PeerName, PeerUID
from weavenet.ipam.allocator import Allocator, IpamConfig, StoredState
from weavenet.ipam.modes import Consensus, InitMode, Observer, Seed

UNIVERSE = parse_subnet("10.0.0.0/28")
NAMES = tuple(PeerName(number) for number in range(1, 5))
ON_THE_WAY_MAX = 60


class SeededEntropy:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def bits(self, count: int) -> int:
        return self._random.getrandbits(count)

    def octets(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def fraction(self) -> float:
        return self._random.random()


@dataclass
class Disk:
    values: dict[str, bytes] = field(default_factory=dict)
    rows: dict[tuple[str, Address], PutAllocation] = field(default_factory=dict)

    def apply(self, persist: Persist) -> None:
        for change in persist.changes:
            match change:
                case PutValue(key, value):
                    self.values[key] = value
                case PutAllocation(ident, cidr, _):
                    self.rows[ident, cidr.address] = change
                case DropAllocation(ident, cidr):
                    del self.rows[ident, cidr.address]
                case _:
                    raise AssertionError(change)

    def load(self) -> StoredState:
        return StoredState(dict(self.values), tuple(self.rows[key] for key in sorted(self.rows)))


class Reachable:
    """The mesh of one host: who answers is drawn by the test."""

    def __init__(self) -> None:
        self.cut_off: set[PeerName] = set()

    def can_reach(self, peer: PeerName) -> bool:
        return peer not in self.cut_off

    def is_known(self, peer: PeerName) -> bool:
        return peer in NAMES

    def nickname(self, peer: PeerName) -> str | None:
        return f"nick-{peer}"

    def active_targets(self) -> int:
        return len(NAMES) - 1


@dataclass
class Host:
    name: PeerName
    disk: Disk
    mesh: Reachable
    allocator: Allocator
    # What containers here were told that they have, by address; and who asked for what and waits.
    told: dict[Address, str] = field(default_factory=dict)
    waiting: dict[RequestNumber, tuple[str, Cidr | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class Message:
    kind: GossipKind
    source: PeerName
    destination: PeerName
    data: bytes


class AddressesHaveOneOwner(RuleBasedStateMachine):
    """The world."""

    def __init__(self) -> None:
        super().__init__()
        self.hosts: dict[PeerName, Host] = {}
        self.on_the_way: list[Message] = []
        self.now_s = 0.0
        self.next_number = 1
        self.lives = 0

    # --- hosts --------------------------------------------------------------------------------------------------------

    @initialize(count=st.integers(1, 4), kind=st.sampled_from(["seed", "consensus", "observer"]))
    def begin(self, count: int, kind: str) -> None:
        for name in NAMES[:count]:
            mode: InitMode = Seed(NAMES[:count]) if kind == "seed" else Consensus(count)
            if kind == "observer" and name == NAMES[3]:
                mode = Observer()
            self.boot(name, mode, Disk())

    def boot(self, name: PeerName, mode: InitMode, disk: Disk) -> None:
        self.lives += 1
        mesh = Reachable()
        config = IpamConfig(name, PeerUID(self.lives), f"nick-{name}", UNIVERSE, UNIVERSE, mode)
        host = Host(name, disk, mesh, Allocator(config, mesh, SeededEntropy(self.lives)))
        self.hosts[name] = host
        self.perform(host, host.allocator.start(disk.load(), self.now()))

    def pick(self, index: int) -> Host:
        return self.hosts[NAMES[index % len(self.hosts)]]

    def now(self) -> Now:
        return Now(self.now_s, 1_700_000_000.0 + self.now_s)

    def perform(self, host: Host, outputs: list[Output], *, effects: int | None = None) -> None:
        """Do what an action asks for; all of it, or only so many effects because the process dies then."""
        for output in outputs[:effects]:
            match output:
                case Persist():
                    host.disk.apply(output)
                case SendUnicast(_, destination, data):
                    self.send(Message(GossipKind.UNICAST, host.name, destination, data))
                case SendBroadcast():
                    data = host.allocator.encode_state(0.0)
                    for name in self.hosts:
                        if name != host.name:
                            self.send(Message(GossipKind.BROADCAST, host.name, name, data))
                case Reply(request, outcome):
                    self.answer(host, request, outcome)
                case Note():
                    pass
                case _:
                    raise AssertionError(output)
        if effects is not None:
            self.restart(host)

    def send(self, message: Message) -> None:
        self.on_the_way.append(message)
        if len(self.on_the_way) > ON_THE_WAY_MAX:
            self.on_the_way.pop(0)

    def restart(self, host: Host) -> None:
        told = host.told
        self.boot(host.name, host.allocator.config.mode, host.disk)
        restarted = self.hosts[host.name]
        restarted.told = told
        for address, ident in told.items():
            assert [cidr.address for cidr in restarted.allocator.owned()[ident]].count(address) == 1

    def answer(self, host: Host, request: RequestNumber, outcome: object) -> None:
        ident, claimed = host.waiting.pop(request)
        match outcome:
            case Granted((cidr,)):
                self.tell(host, ident, cidr)
            case Done():
                assert claimed is not None
                self.tell(host, ident, claimed)
            case Refused(reason):
                assert claimed is not None, "an allocation is never refused"
                assert "owned by" in reason or "in use" in reason
            case _:
                pass

    def tell(self, host: Host, ident: str, cidr: Cidr) -> None:
        for other in self.hosts.values():
            holder = other.told.get(cidr.address)
            assert holder is None or (other is host and holder == ident), f"{cidr} is {holder}'s already"
        assert (ident, cidr.address) in host.disk.rows, "granted, but not on disk"
        host.told[cidr.address] = ident

    # --- what happens -------------------------------------------------------------------------------------------------

    def number(self, host: Host, ident: str, claimed: Cidr | None) -> RequestNumber:
        number = RequestNumber(self.next_number)
        self.next_number += 1
        host.waiting[number] = (ident, claimed)
        return number

    @rule(index=st.integers(0, 3), container=st.integers(0, 20))
    def allocate(self, index: int, container: int) -> None:
        host = self.pick(index)
        ident = f"c{container}"
        number = self.number(host, ident, None)
        self.perform(host, host.allocator.allocate(number, ident, None, is_container=True, now=self.now()))

    @rule(index=st.integers(0, 3), container=st.integers(0, 20), offset=st.integers(0, 15))
    def claim(self, index: int, container: int, offset: int) -> None:
        host, ident = self.pick(index), f"k{container}"
        cidr = Cidr(Address(UNIVERSE.address + offset), UNIVERSE.prefix_length)
        outputs = host.allocator.claim(
            self.number(host, ident, cidr),
            ident,
            cidr,
            is_container=True,
            no_error_on_unknown=False,
            now=self.now(),
        )
        self.perform(host, outputs)

    @rule(index=st.integers(0, 3), which=st.integers(0, 30))
    def release(self, index: int, which: int) -> None:
        host = self.pick(index)
        idents = sorted(host.allocator.owned())
        if not idents:
            return
        ident = idents[which % len(idents)]
        host.told = {address: holder for address, holder in host.told.items() if holder != ident}
        self.perform(host, host.allocator.release(ident, self.now()))

    @precondition(lambda self: self.on_the_way)
    @rule(which=st.integers(0, 1000), copies=st.integers(0, 2))
    def deliver(self, which: int, copies: int) -> None:
        message = self.on_the_way.pop(which % len(self.on_the_way))
        for _ in range(copies):
            self.hand_over(message)

    @precondition(lambda self: self.on_the_way)
    @rule(which=st.integers(0, 1000), effects=st.integers(0, 6))
    def deliver_and_die(self, which: int, effects: int) -> None:
        message = self.on_the_way.pop(which % len(self.on_the_way))
        host = self.hosts[message.destination]
        outputs = host.allocator.gossip_arrived(message.kind, message.source, message.data, self.now())
        self.perform(host, outputs, effects=effects)

    @rule(index=st.integers(0, 3), container=st.integers(0, 20), effects=st.integers(0, 4))
    def allocate_and_die(self, index: int, container: int, effects: int) -> None:
        host, ident = self.pick(index), f"c{container}"
        number = self.number(host, ident, None)
        outputs = host.allocator.allocate(number, ident, None, is_container=True, now=self.now())
        self.perform(host, outputs, effects=effects)

    def hand_over(self, message: Message) -> None:
        host = self.hosts[message.destination]
        # Nobody here lies or forgets, so nothing is ever refused.
        self.perform(host, host.allocator.gossip_arrived(message.kind, message.source, message.data, self.now()))

    @rule(index=st.integers(0, 3), other=st.integers(0, 3))
    def gossip(self, index: int, other: int) -> None:
        here, there = self.pick(index), self.pick(other)
        if here is not there:
            self.send(Message(GossipKind.NEIGHBOUR, here.name, there.name, here.allocator.encode_state(0.0)))

    @rule(index=st.integers(0, 3), other=st.integers(0, 3))
    def cut_off(self, index: int, other: int) -> None:
        self.pick(index).mesh.cut_off ^= {self.pick(other).name}

    @rule()
    def wait(self) -> None:
        self.now_s += 5.0
        for host in list(self.hosts.values()):
            self.perform(host, host.allocator.handle_timer(self.now()))

    @rule(index=st.integers(0, 3))
    def give_up_waiting(self, index: int) -> None:
        host = self.pick(index)
        for number in sorted(host.waiting)[:1]:
            self.perform(host, host.allocator.cancel(number, self.now()))

    # --- what must hold -----------------------------------------------------------------------------------------------

    @invariant()
    def nobody_believes_to_own_what_another_does(self) -> None:
        seen: dict[int, PeerName] = {}
        for host in self.hosts.values():
            for part in host.allocator.ring.owned_ranges():
                for address in range(part.start, part.end):
                    assert address not in seen, f"{address} is of {seen[address]} and of {host.name}"
                    seen[address] = host.name

    @invariant()
    def what_was_told_is_held(self) -> None:
        for host in self.hosts.values():
            owned = host.allocator.owned()
            for address, ident in host.told.items():
                assert address in [cidr.address for cidr in owned[ident]]

    def settle(self) -> None:
        """Let time pass without trouble, until nobody waits or all has been tried."""
        for _ in range(40):
            if not any(host.waiting for host in self.hosts.values()):
                break
            self.wait()
            for here in self.hosts.values():
                for there in self.hosts.values():
                    if here is not there:
                        data = here.allocator.encode_state(0.0)
                        self.hand_over(Message(GossipKind.NEIGHBOUR, here.name, there.name, data))
            for _ in range(1000):
                if not self.on_the_way:
                    break
                self.hand_over(self.on_the_way.pop(0))

    def teardown(self) -> None:
        """Heal everything; whoever waits must be served."""
        for host in self.hosts.values():
            host.mesh.cut_off = set()
        self.settle()
        waiting = [asked for host in self.hosts.values() for asked in host.waiting.values()]
        if any(claimed is not None for _, claimed in waiting):
            raise AssertionError(f"a claim was neither met nor refused: {waiting}")
        used = {address for host in self.hosts.values() for address in host.told}
        free = set(range(UNIVERSE.host_range.start, UNIVERSE.host_range.end)) - used
        held = {a.address for host in self.hosts.values() for cidrs in host.allocator.owned().values() for a in cidrs}
        assert not waiting or not free - held, f"{waiting} wait although {sorted(free - held)} are free"


AddressesHaveOneOwner.TestCase.settings = settings(max_examples=120, stateful_step_count=60, deadline=None)
TestAddressesHaveOneOwner = AddressesHaveOneOwner.TestCase


def test_hosts_fill_a_whole_range_together_and_the_one_too_many_waits_for_a_release() -> None:
    world = AddressesHaveOneOwner()
    world.begin(3, "consensus")
    hosts = list(world.hosts.values())
    for container in range(UNIVERSE.host_range.size):
        world.allocate(container % 2, container)
        world.settle()
    told = sorted(address for host in hosts for address in host.told)
    assert told == list(range(UNIVERSE.host_range.start, UNIVERSE.host_range.end))
    world.allocate(2, 99)
    world.settle()
    assert len(hosts[2].waiting) == 1
    assert not any(host.allocator.can_allocate() for host in hosts)
    world.release(0, 0)
    world.settle()
    assert not hosts[2].waiting


def test_peers_that_wait_for_an_exhausted_range_do_not_keep_the_network_busy() -> None:
    world = AddressesHaveOneOwner()
    world.begin(3, "seed")
    for container in range(UNIVERSE.host_range.size + 3):
        world.allocate(container % 3, container)
        world.settle()
    delivered = 0
    while world.on_the_way:
        world.hand_over(world.on_the_way.pop(0))
        delivered += 1
        assert delivered < 500
