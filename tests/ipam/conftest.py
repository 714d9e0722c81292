"""One allocator with its disk, its mesh and its clock, for the tests of its rules."""

from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace

from weavenet.address import Address, Cidr, parse_subnet
from weavenet.effects import (
    DropAllocation,
    GossipKind,
    Note,
    Now,
    Outcome,
    Output,
    Persist,
    PutAllocation,
    PutValue,
    Reply,
    RequestNumber,
    SendUnicast,
)
from weavenet.identity import PeerName, PeerUID
from weavenet.ipam import wire
from weavenet.ipam.allocator import RETRY_S, Allocator, IpamConfig, StoredState
from weavenet.ipam.modes import InitMode, Seed
from weavenet.ipam.ring import Entry

P1, P2, P3 = PeerName(1), PeerName(2), PeerName(3)
UNIVERSE = parse_subnet("10.0.0.0/28")
BASE = UNIVERSE.address

NOTHING = StoredState({}, ())
START = Now(0.0, 1_700_000_000.0)
FIRST_TWO = Seed((P1, P2))


class LowestFirst:
    def bits(self, count: int) -> int:  # noqa: ARG002
        return 0

    def octets(self, count: int) -> bytes:
        return bytes(count)

    def fraction(self) -> float:
        return 0.5


@dataclass
class Mesh:
    reachable: set[PeerName] = field(default_factory=lambda: {P1, P2, P3})
    known: set[PeerName] = field(default_factory=lambda: {P1, P2, P3})
    targets: int = 2

    def can_reach(self, peer: PeerName) -> bool:
        return peer in self.reachable

    def is_known(self, peer: PeerName) -> bool:
        return peer in self.known

    def nickname(self, peer: PeerName) -> str | None:
        return {P2: "mesh-host2"}.get(peer)

    def active_targets(self) -> int:
        return self.targets


class Host:
    """An allocator with its disk, and shorthands for what tests do with it."""

    def __init__(
        self, mode: InitMode = FIRST_TWO, stored: StoredState = NOTHING, name: PeerName = P1, uid: int = 101
    ) -> None:
        self.mesh = Mesh()
        config = IpamConfig(name, PeerUID(uid), f"host{name}", UNIVERSE, UNIVERSE, mode)
        self.allocator = Allocator(config, self.mesh, LowestFirst())
        self.values = dict(stored.values)
        self.rows = {(put.ident, put.address.address): put for put in stored.allocations}
        self.requests = 0
        self.now = START
        self.outputs = self.store(self.allocator.start(stored, self.now))

    def store(self, outputs: list[Output]) -> list[Output]:
        assert not any(isinstance(output, Persist) for output in outputs[1:]), "one transaction, before all else"
        for change in outputs[0].changes if outputs and isinstance(outputs[0], Persist) else ():
            match change:
                case PutValue(key, value):
                    self.values[key] = value
                case PutAllocation(ident, cidr, _):
                    self.rows[ident, cidr.address] = change
                case DropAllocation(ident, cidr):
                    del self.rows[ident, cidr.address]
        self.outputs = outputs
        return outputs

    @property
    def stored(self) -> StoredState:
        return StoredState(dict(self.values), tuple(self.rows[key] for key in sorted(self.rows)))

    def number(self) -> RequestNumber:
        self.requests += 1
        return RequestNumber(self.requests)

    def allocate(self, ident: str, subnet: str | None = None) -> Outcome | None:
        number = self.number()
        wanted = parse_subnet(subnet) if subnet is not None else None
        return self.reply(number, self.allocator.allocate(number, ident, wanted, is_container=True, now=self.now))

    def claim(self, ident: str, cidr: str, *, no_error_on_unknown: bool = False) -> Outcome | None:
        number = self.number()
        outputs = self.allocator.claim(
            number,
            ident,
            Cidr.parse(cidr),
            is_container=False,
            no_error_on_unknown=no_error_on_unknown,
            now=self.now,
        )
        return self.reply(number, outputs)

    def reply(self, number: int, outputs: list[Output]) -> Outcome | None:
        found = [o.outcome for o in self.store(outputs) if isinstance(o, Reply) and o.request == number]
        assert len(found) <= 1
        return found[0] if found else None

    def hear(self, state: wire.GossipState, kind: GossipKind = GossipKind.BROADCAST, source: PeerName = P2) -> None:
        data = wire.encode_unicast(wire.RingUpdate(state)) if kind is GossipKind.UNICAST else wire.encode_state(state)
        self.store(self.allocator.gossip_arrived(kind, source, data, self.now))

    def hear_unicast(self, message: wire.Unicast, source: PeerName = P2) -> None:
        data = wire.encode_unicast(message)
        self.store(self.allocator.gossip_arrived(GossipKind.UNICAST, source, data, self.now))

    def tick(self, seconds: float = RETRY_S) -> None:
        self.now = Now(self.now.monotonic_s + seconds, self.now.wall_s + seconds)
        self.store(self.allocator.handle_timer(self.now))

    @property
    def unicasts(self) -> list[tuple[PeerName, wire.Unicast | None]]:
        return [(o.destination, wire.decode_unicast(o.data)) for o in self.outputs if isinstance(o, SendUnicast)]

    @property
    def notes(self) -> list[str]:
        return [output.text for output in self.outputs if isinstance(output, Note)]

    def ring_with(self, *entries: tuple[int, PeerName, int, int], **changes: object) -> wire.GossipState:
        made = [Entry(Address(BASE + offset), peer, version, free) for offset, peer, version, free in entries]
        ring = replace(self.allocator.ring.state(), entries=made, **changes)
        return wire.GossipState(0, {}, None, ring)

    def snapshot(self) -> object:
        state = self.allocator.ring.state()
        space = self.allocator._books.space
        return (state, space.free_ranges(), space.used_ranges(), self.allocator.owned(), self.stored)


@pytest.fixture(scope="session")
def make_host() -> type[Host]:
    """Return the class: a test says what host it wants, and fixtures are how pytest shares it."""
    return Host
