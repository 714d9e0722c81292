"""The scenarios that real allocators played (vectors): every message, everything stored, every state.

Three things are told apart on purpose. Weave stores all owned addresses at once and several times per action; here an
action is one transaction with a row per address, so what counts is which keys were stored, and that what is on disk is
what is in memory. Weave stores `ownedAddresses` after a delete that found nothing. And it does not store elections.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from weavenet.address import Address, Cidr, Range, format_address, parse_address, parse_subnet
from weavenet.effects import (
    Cancelled,
    Done,
    DropAllocation,
    GossipKind,
    Granted,
    Note,
    Now,
    Outcome,
    Output,
    Persist,
    PutAllocation,
    PutValue,
    Refused,
    Reply,
    RequestNumber,
    SendBroadcast,
    SendUnicast,
    TookOver,
)
from weavenet.errors import GossipError, IpamError
from weavenet.identity import PeerName, PeerUID, format_peer_name, parse_peer_name
from weavenet.ipam import wire
from weavenet.ipam.allocator import CHANNEL, Allocator, IpamConfig, StoredState
from weavenet.ipam.modes import Consensus, InitMode, Observer, Seed
from weavenet.ipam.paxos import NO_PROPOSAL, ProposalID
from weavenet.ipam.ring import RingState

SCENARIOS = json.loads((Path(__file__).parent.parent / "vectors" / "ipam_allocator.json").read_text())["vectors"]
EVERYBODY = frozenset(PeerName(number) for number in range(1, 20))


class LowestFirst:
    """No randomness: of equal peers the lowest name is asked."""

    def bits(self, count: int) -> int:  # noqa: ARG002
        return 0

    def octets(self, count: int) -> bytes:
        return bytes(count)

    def fraction(self) -> float:
        return 0.5


@dataclass
class Mesh:
    """Who can be reached, and whom the router knows: nobody, as in the program that made the vectors."""

    reachable: frozenset[PeerName] = EVERYBODY
    known: frozenset[PeerName] = frozenset()

    def can_reach(self, peer: PeerName) -> bool:
        return peer in self.reachable

    def is_known(self, peer: PeerName) -> bool:
        return peer in self.known

    def nickname(self, peer: PeerName) -> str | None:  # noqa: ARG002
        return None

    def active_targets(self) -> int:
        return 0


@dataclass
class Disk:
    values: dict[str, bytes] = field(default_factory=dict)
    rows: dict[tuple[str, Address], PutAllocation] = field(default_factory=dict)

    def apply(self, persist: Persist) -> set[str]:
        """Return the keys that Weave would have stored."""
        keys = set()
        for change in persist.changes:
            match change:
                case PutValue(key, value):
                    self.values[key] = value
                    keys.add(key)
                case PutAllocation(ident, cidr, _):
                    self.rows[ident, cidr.address] = change
                    keys.add("ownedAddresses")
                case DropAllocation(ident, cidr):
                    del self.rows[ident, cidr.address]
                    keys.add("ownedAddresses")
                case _:
                    pytest.fail(f"unexpected {change}")
        return keys - {"paxos"}

    def load(self) -> StoredState:
        return StoredState(dict(self.values), tuple(self.rows[key] for key in sorted(self.rows)))


@dataclass
class Host:
    allocator: Allocator
    mesh: Mesh
    disk: Disk


def mode_of(node: dict) -> InitMode:
    if node["observer"]:
        return Observer()
    if node["seed"] is not None:
        return Seed(tuple(parse_peer_name(name) for name in node["seed"]))
    return Consensus(node["quorum"] * 2 - 1)


def make_host(node: dict, disk: Disk) -> Host:
    mesh = Mesh()
    universe = parse_subnet(node["universe"])
    name = parse_peer_name(node["peer"])
    config = IpamConfig(name, PeerUID(node["uid"]), node["nickname"], universe, universe, mode_of(node))
    return Host(Allocator(config, mesh, LowestFirst()), mesh, disk)


def write_proposal(proposal: ProposalID) -> dict | None:
    if proposal == NO_PROPOSAL:
        return None
    proposer = {"name": format_peer_name(proposal.proposer.name), "uid": proposal.proposer.uid}
    return {"proposer": proposer, "round": proposal.round}


def write_ring(ring: RingState | None) -> dict | None:
    if ring is None:
        return None
    return {
        "start": format_address(ring.start),
        "end": format_address(ring.end),
        "peer": format_peer_name(ring.peer),
        "seeds": [format_peer_name(name) for name in ring.seeds],
        "entries": [
            {
                "token": format_address(entry.token),
                "peer": format_peer_name(entry.peer),
                "version": entry.version,
                "free": entry.free,
            }
            for entry in ring.entries
        ],
    }


def write_state(state: wire.GossipState) -> dict:
    paxos = None
    if state.paxos is not None:
        paxos = [
            {
                "node": {"name": format_peer_name(node.name), "uid": node.uid},
                "promise": write_proposal(state.paxos[node].promise),
                "accepted": write_proposal(state.paxos[node].accepted),
                "accepted_origin": write_proposal(state.paxos[node].accepted_value.origin),
                "accepted_value_sorted": sorted(
                    format_peer_name(name) for name in state.paxos[node].accepted_value.value
                ),
            }
            for node in sorted(state.paxos)
        ]
    return {
        "nicknames": {format_peer_name(peer): nickname for peer, nickname in state.nicknames.items()},
        "paxos": paxos,
        "ring": write_ring(state.ring),
    }


def write_range(span: Range) -> dict:
    return {"start": format_address(span.start), "end": format_address(span.end)}


def write_unicast(data: bytes) -> dict:
    match wire.decode_unicast(data):
        case wire.SpaceRequest(wanted):
            return {"type": 0, "type_name": "SpaceRequest", "range": write_range(wanted)}
        case wire.RingUpdate(state):
            return {"type": 1, "type_name": "RingUpdate", "state": write_state(state)}
        case wire.SpaceRequestDenied(wanted):
            return {"type": 2, "type_name": "SpaceRequestDenied", "range": write_range(wanted)}
        case None:
            pytest.fail("a unicast of unknown type")


def write_outcome(outcome: Outcome, ident: str) -> dict:
    match outcome:
        case Granted((cidr,)):
            return {"address": format_address(cidr.address)}
        case Done():
            return {"error": None}
        case Refused(reason):
            return {"error": reason}
        case Cancelled():
            return {"error": f"Allocate request for {ident} cancelled"}
        case TookOver(count):
            return {"transferred": count}
        case _:
            pytest.fail(f"unexpected {outcome}")


def flat(ranges: Sequence[Range]) -> list[str]:
    return [format_address(border) for part in ranges for border in (part.start, part.end)]


class Play:
    """One scenario: its hosts, the messages that were sent, the calls that wait."""

    def __init__(self, scenario: dict) -> None:
        self.nodes = {node["id"]: node for node in scenario["nodes"]}
        self.hosts: dict[str, Host] = {}
        self.messages: dict[str, bytes] = {}
        self.calls: dict[str, dict[RequestNumber, tuple[str, str]]] = {name: {} for name in self.nodes}
        self.now = Now(0.0, 1_700_000_000.0)
        self.next_request = 1

    def request(self, step: dict) -> RequestNumber:
        number = RequestNumber(self.next_request)
        self.next_request += 1
        ident = step["op"].partition("ident=")[2].partition(" ")[0]
        self.calls[step["node"]][number] = (step["call"], ident)
        return number

    def run(self, step: dict) -> list[Output]:
        """Do what the step does, and return what came of it."""
        op, name = step["op"], step["node"]
        if op == "start":
            # The database outlives the process: the later hosts of the persistence scenario are the first one again.
            disk = self.hosts["a"].disk if name.startswith("a_") else Disk()
            self.hosts[name] = make_host(self.nodes[name], disk)
            return self.hosts[name].allocator.start(disk.load(), self.now)
        allocator = self.hosts[name].allocator
        words = dict(word.split("=", 1) for word in op.split() if "=" in word)
        match op.split()[0]:
            case "allocate":
                subnet = parse_subnet(words["subnet"])
                return allocator.allocate(self.request(step), words["ident"], subnet, is_container=True, now=self.now)
            case "claim":
                return allocator.claim(
                    self.request(step),
                    words["ident"],
                    Cidr.parse(words["cidr"]),
                    is_container=True,
                    no_error_on_unknown=words["noErrorOnUnknown"] == "true",
                    now=self.now,
                )
            case "receive":
                kind = GossipKind[{"neighbour": "NEIGHBOUR"}.get(op.split()[1], op.split()[1].upper())]
                source = parse_peer_name(self.nodes[step["message"][0]]["peer"])
                return allocator.gossip_arrived(kind, source, self.messages[step["message"]], self.now)
            case "tick":
                self.now = Now(self.now.monotonic_s + 5.0, self.now.wall_s)
                return allocator.handle_timer(self.now)
            case "AdminTakeoverRanges":
                whom = {"self": "nick-a", "again": "nick-b"}.get(op.split()[1], op.split()[1])
                return allocator.take_over(self.request(step), whom, self.now)
            case "Shutdown":
                self.hosts[name].mesh.reachable = frozenset({PeerName(2)})
                return allocator.shut_down(self.now)
            case "free" | "delete":
                return self.release(allocator, op)
            case unknown:
                pytest.fail(f"unknown operation {unknown}")

    def release(self, allocator: Allocator, op: str) -> list[Output]:
        match op:
            case "free ident=c2 its address":
                return allocator.release_address("c2", parse_address("10.0.0.2"), self.now)
            case "free unknown":
                return allocator.release_address("c2", parse_address("10.0.0.2"), self.now)
            case "delete ident=c1":
                return allocator.release("c1", self.now)
            case "delete unknown":
                return allocator.release("c1", self.now)
            case unknown:
                pytest.fail(f"unknown operation {unknown}")

    def check(self, step: dict, outputs: Sequence[Output], error: str | None) -> None:
        host = self.hosts[step["node"]]
        is_shutdown = step["op"] == "Shutdown"
        is_release = step["op"].split()[0] in ("free", "delete")
        replies = [output for output in outputs if isinstance(output, Reply)]
        completed = {}
        for reply in replies:
            call, ident = self.calls[step["node"]].pop(reply.request)
            completed[call] = write_outcome(reply.outcome, ident)
        if is_release:
            completed[step["call"]] = {"error": error}
        elif is_shutdown:
            completed[step["call"]] = {}
        else:
            assert error == step.get("error")
        assert completed == step.get("completed_calls", {})
        persists = [index for index, output in enumerate(outputs) if isinstance(output, Persist)]
        assert persists in ([], [0]), "one transaction, before all else"
        keys = set().union(*(host.disk.apply(output) for output in outputs if isinstance(output, Persist)))
        is_fresh_start = step["op"] == "start" and "ownedAddresses" in step["db_saves"]
        if not is_fresh_start and step["op"] != "delete unknown":
            assert keys == set(step["db_saves"])
        self.check_messages(host, step, outputs)
        self.check_state(host, step["state_after"])

    def check_messages(self, host: Host, step: dict, outputs: Sequence[Output]) -> None:
        sent = [output for output in outputs if isinstance(output, SendUnicast | SendBroadcast)]
        assert len(sent) + sum(isinstance(o, Reply | Persist | Note) for o in outputs) == len(outputs)
        expected = step.get("sent") or []
        assert [type(output).__name__ for output in sent] == [f"Send{m['kind'].title()}" for m in expected]
        for output, message in zip(sent, expected, strict=True):
            assert output.channel == CHANNEL
            if isinstance(output, SendUnicast):
                assert format_peer_name(output.destination) == message["to"]
                assert write_unicast(output.data) == message["decoded"]
                assert write_unicast(bytes.fromhex(message["hex"])) == message["decoded"]
            else:
                data = host.allocator.encode_state(self.now.wall_s)
                assert write_state(wire.decode_state(data)) == message["decoded"]["state"]
            # From here on the real bytes are used.
            self.messages[message["id"]] = bytes.fromhex(message["hex"])

    def check_state(self, host: Host, after: dict) -> None:
        allocator, disk = host.allocator, host.disk
        state = wire.decode_state(allocator.encode_state(self.now.wall_s))
        assert write_state(state) == after["gossip_state"]
        owned = {ident: [str(cidr) for cidr in cidrs] for ident, cidrs in allocator.owned().items()}
        assert owned == after["owned"]
        assert flat(allocator._books.space.free_ranges()) == after["space_free"]
        assert flat(allocator._books.space.used_ranges()) == after["space_owned"]
        desk = allocator._desk
        waiting = [len(desk.primes), len(desk.claims), len(desk.allocates)]
        assert waiting == after["pending_primes_claims_allocates"]
        assert allocator._election.is_awaited == after["awaiting_consensus"]
        assert wire.decode_stored_name(disk.values["peername"]) == allocator.config.name
        stored = wire.decode_stored_ring(disk.values["ring"])
        assert list(stored.entries) == list(allocator.ring.entries)
        rows = [(put.ident, put.address) for put in disk.load().allocations]
        held = [(ident, cidr) for ident, cidrs in allocator.owned().items() for cidr in cidrs]
        assert sorted(rows) == sorted(held)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=[scenario["name"] for scenario in SCENARIOS])
def test_a_scenario_goes_as_with_real_allocators(scenario: dict) -> None:
    play = Play(scenario)
    for step in scenario["steps"]:
        if step.get("call") == "r3" and scenario["name"] == "claiming addresses owned by another peer":
            play.hosts["b"].mesh.reachable = frozenset()
        outputs: list[Output] = []
        error = None
        try:
            outputs = play.run(step)
        except (GossipError, IpamError) as raised:
            error = str(raised)
        play.check(step, outputs, error)


def test_what_weave_stored_is_read_and_what_is_stored_weave_can_read() -> None:
    scenario = next(scenario for scenario in SCENARIOS if scenario["name"] == "persistence")
    database = {key: bytes.fromhex(value) for key, value in scenario["database_after_r2"].items()}
    name = wire.decode_stored_name(database["peername"])
    ring = wire.decode_stored_ring(database["ring"])
    assert name == PeerName(1)
    assert write_ring(ring) == scenario["steps"][2]["state_after"]["gossip_state"]["ring"]
    assert wire.decode_stored_name(wire.encode_stored_name(name)) == name
    assert wire.decode_stored_ring(wire.encode_stored_ring(ring)) == ring
