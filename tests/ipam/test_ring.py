"""The ring against the real one (vectors), and against an obvious one: a list of who owns each single address."""

import json
import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from weavenet.address import Address, Range, format_address, parse_address
from weavenet.errors import DifferentRangeError, DifferentSeedsError, RingError
from weavenet.identity import PeerName, format_peer_name, parse_peer_name
from weavenet.ipam.ring import (
    ENTRIES_MAX,
    RECEIVED_VERSION_MAX,
    Entry,
    Ring,
    RingState,
    check_invariants,
    check_received,
    normalise_peers,
)

VECTORS = Path(__file__).parent.parent / "vectors"
MERGES = json.loads((VECTORS / "ring_merge.json").read_text())["vectors"]
OPS = json.loads((VECTORS / "ring_ops.json").read_text())["vectors"]

# Weave raises the version of an entry of ours as it goes, and keeps that if it then finds an error. We change nothing.
MERGE_QUIRK = "error leaves our ring untouched except for a version already raised"
# The calls that end Weave. What they ask for is impossible, so here, too, they are a programmer's error.
PROGRAMMER_ERROR = "assertion_failure"

P1, P2, P3, P4 = (PeerName(number) for number in (1, 2, 3, 4))


class SeededEntropy:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def bits(self, count: int) -> int:
        return self._random.getrandbits(count)

    def octets(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def fraction(self) -> float:
        return self._random.random()


def read_range(json_range: dict) -> Range:
    return Range(parse_address(json_range["start"]), parse_address(json_range["end"]))


def read_entries(json_entries: Sequence[dict]) -> list[Entry]:
    return [Entry(parse_address(e["token"]), parse_peer_name(e["peer"]), e["version"], e["free"]) for e in json_entries]


def read_state(json_ring: dict, peer: PeerName) -> RingState:
    universe = read_range(json_ring)
    seeds = [parse_peer_name(name) for name in json_ring["seeds"]]
    return RingState(universe.start, universe.end, peer, read_entries(json_ring["entries"]), seeds)


def make_ring(state: RingState) -> Ring:
    ring = Ring(state.universe, state.peer)
    ring.restore(state)
    return ring


def ring_of(*entries: tuple[int, PeerName, int, int], peer: PeerName = P1, size: int = 256) -> Ring:
    made = [Entry(Address(token), owner, version, free) for token, owner, version, free in entries]
    return make_ring(RingState(Address(0), Address(size), peer, made, ()))


def nothing_used(_: Sequence[Range]) -> bool:
    return False


# --- what the real ring did -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", MERGES, ids=[vector["name"] for vector in MERGES])
def test_a_merge_ends_as_in_the_real_ring(vector: dict) -> None:
    us = parse_peer_name(vector["our_peer"])
    ours = make_ring(read_state(vector["ours"], us))
    used = [parse_address("10.0.0.0") + int(octet) for octet in vector["our_allocated_addresses"] or []]
    calls = []

    def has_allocations(ranges: Sequence[Range]) -> bool:
        answer = any(address in part for address in used for part in ranges)
        calls.append({"ranges": list(ranges), "answer": answer})
        return answer

    before = list(ours.entries)
    updated, error = False, None
    try:
        updated = ours.merge(read_state(vector["incoming"], us), has_allocations)
    except RingError as raised:
        error = str(raised)

    assert error == vector["error"]
    assert updated == vector["updated"]
    expected = before if vector["name"] == MERGE_QUIRK else read_entries(vector["entries_after"])
    assert list(ours.entries) == expected
    assert list(ours.seeds) == [parse_peer_name(name) for name in vector["seeds_after"]]
    assert list(ours.owned_ranges()) == [read_range(part) for part in vector["owned_ranges_after"]]
    asked = [
        {"ranges": [read_range(part) for part in call["ranges"]], "answer": call["answer"]}
        for call in vector["has_allocations_calls"] or []
    ]
    # Ours asks once more at the end, about all that it would lose.
    assert calls[: len(asked)] == asked


def run_op(ring: Ring, op: str, args: dict) -> object:
    match op:
        case "ClaimForPeers":
            ring.create([parse_peer_name(name) for name in args["peers"]])
            return None
        case "GrantRangeToHost":
            ring.grant(read_range(args), parse_peer_name(args["to"]))
            return None
        case "Transfer":
            moved = ring.transfer(parse_peer_name(args["from"]), parse_peer_name(args["to"]))
            return [(part.start, part.end) for part in moved]
        case "ReportFree":
            start = ring.universe.start
            return ring.report_free({Address(start + int(offset)): count for offset, count in args["free"].items()})
        case "Owner":
            owner = ring.owner(parse_address(args["addr"]))
            return format_peer_name(owner or PeerName(0))
        case "OwnedRanges":
            return [(part.start, part.end) for part in ring.owned_ranges()]
        case "AllRangeInfo":
            return [
                {
                    "peer": format_peer_name(part.peer),
                    "size": part.range.size,
                    "start": format_address(part.range.start),
                    "version": part.version,
                }
                for part in ring.all_ranges()
            ]
        case "PickPeerForTransfer":
            valid = {parse_peer_name(name) for name in args["valid_peers"]}
            return format_peer_name(ring.heir(lambda peer: peer in valid) or PeerName(0))
        case _:
            assert op.startswith("ChoosePeersToAskForSpace")
            asked = ring.peers_to_ask(read_range(args), SeededEntropy(1))
            assert (ring.count_free_elsewhere(read_range(args), without=()) > 0) == bool(asked)
            return sorted(format_peer_name(peer) for peer in asked)


@pytest.mark.parametrize("vector", OPS["ops"], ids=[f"{i}-{v['op'].split()[0]}" for i, v in enumerate(OPS["ops"])])
def test_an_operation_ends_as_in_the_real_ring(vector: dict) -> None:
    us = parse_peer_name(vector["our_peer"])
    ring = make_ring(read_state(vector["before"], us))
    if PROGRAMMER_ERROR in vector:
        with pytest.raises(AssertionError):
            run_op(ring, vector["op"], vector["args"])
    else:
        expected = vector["result"]
        if vector["op"] in ("Transfer", "OwnedRanges"):
            expected = [(parse_address(part["start"]), part["end_exclusive_int"]) for part in expected]
        assert run_op(ring, vector["op"], vector["args"]) == expected
    assert list(ring.entries) == read_entries(vector["entries_after"])
    assert list(ring.seeds) == [parse_peer_name(name) for name in vector["seeds_after"]]
    # The hook for range trackers shows what was ours before and after.
    for call in (vector["on_update_calls"] or [])[-1:]:
        assert list(ring.owned_ranges()) == [read_range(part) for part in call["curr"]]


@pytest.mark.parametrize("vector", OPS["normalize_consensus"])
def test_the_peers_of_a_new_ring_are_sorted_and_each_counts_once(vector: dict) -> None:
    names = [parse_peer_name(name) for name in vector["in"]]
    assert list(normalise_peers(names)) == [parse_peer_name(name) for name in vector["out"]]


def test_peers_with_much_free_space_are_asked_first_as_often_as_in_the_real_ring() -> None:
    statistics = OPS["choose_order_statistics"][0]
    entries, token = [], 0
    for name, free in statistics["free"].items():
        entries.append((token, parse_peer_name(name), 0, free))
        token += 64
    ring = ring_of(*entries)
    entropy = SeededEntropy(7)
    first = [ring.peers_to_ask(Range(Address(0), Address(256)), entropy)[0] for _ in range(statistics["calls"])]
    for name, count in statistics["asked_first"].items():
        share = first.count(parse_peer_name(name)) / len(first)
        assert share == pytest.approx(count / statistics["calls"], abs=0.02)


# --- rules one by one -------------------------------------------------------------------------------------------------


def test_three_peers_get_a_half_and_two_quarters() -> None:
    ring = Ring(Range(Address(0), Address(16)), P1)
    ring.create([P1, P2, P3])
    assert [(entry.token, entry.peer) for entry in ring.entries] == [(0, P1), (8, P2), (12, P3)]


def test_the_first_owner_in_address_order_that_qualifies_is_the_heir() -> None:
    ring = ring_of((0, P1, 0, 0), (10, P3, 0, 0), (20, P2, 0, 0))
    assert ring.heir(lambda _: True) == P3
    assert ring.heir(lambda peer: peer == P2) == P2
    assert ring.heir(lambda peer: peer == P1) is None, "never we ourselves"


def test_every_change_raises_the_revision_and_nothing_else_does() -> None:
    ring = Ring(Range(Address(0), Address(16)), P1)
    ring.create([P1])
    created = ring.revision
    assert ring.report_free({Address(0): 16}) is False
    assert ring.merge(ring.state(), nothing_used) is False
    assert ring.transfer(P4, P1) == []
    assert ring.revision == created
    assert ring.report_free({Address(0): 15}) is True
    assert ring.revision > created


def test_a_version_somebody_remembers_of_us_is_outdone_and_stays_ours() -> None:
    ring = ring_of((0, P1, 2, 100))
    theirs = replace(ring.state(), entries=[Entry(Address(0), P1, 7, 3)])
    before = ring.revision
    assert ring.merge(theirs, nothing_used) is False
    assert ring.entries[0] == Entry(Address(0), P1, 8, 100)
    assert ring.revision > before, "it must reach the disk all the same"


def test_a_range_in_use_is_not_lost_behind_a_token_that_names_us() -> None:
    # Weave stops checking behind the token 32, takes 64, and ends on an assertion.
    ring = ring_of((0, P1, 1, 0), (128, P2, 0, 0))
    stale = [(0, P1, 1, 0), (32, P1, 0, 0), (64, P3, 0, 0), (128, P2, 0, 0)]
    theirs = replace(ring.state(), entries=[Entry(Address(t), p, v, f) for t, p, v, f in stale])
    before = ring.state()
    with pytest.raises(RingError, match=r"00:00:00:00:00:03 says it owns the IP range from 0\.0\.0\.64, which I"):
        ring.merge(theirs, lambda ranges: any(70 in part for part in ranges))
    assert ring.state() == before
    assert ring.merge(theirs, lambda ranges: any(50 in part for part in ranges)) is True
    assert list(ring.owned_ranges()) == [Range(Address(0), Address(32)), Range(Address(32), Address(64))]


def test_a_stranger_is_refused_after_a_version_of_ours_was_raised() -> None:
    # Weave forgets whose range it is in at the raised token, and would take 64 without a question.
    ring = ring_of((0, P1, 1, 0), (128, P2, 0, 0))
    theirs = [(0, P1, 9, 0), (64, P3, 0, 0), (128, P2, 0, 0)]
    state = replace(ring.state(), entries=[Entry(Address(t), p, v, f) for t, p, v, f in theirs])
    with pytest.raises(RingError, match="which I think I own"):
        ring.merge(state, lambda ranges: any(70 in part for part in ranges))
    assert ring.entries[0].version == 1


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        pytest.param({"seeds": (P2,)}, DifferentSeedsError, "seeded differently", id="other seeds"),
        pytest.param({"end": Address(512)}, DifferentRangeError, "range differs", id="other range"),
        pytest.param({"start": Address(9), "end": Address(3)}, RingError, "out of range", id="range upside down"),
        pytest.param({"entries": [Entry(Address(0), P1, 0, 257)]}, RingError, "257 > 256", id="too much free"),
        pytest.param(
            {"entries": [Entry(Address(0), P1, RECEIVED_VERSION_MAX + 1, 0)]}, RingError, "version", id="version"
        ),
    ],
)
def test_a_ring_that_cannot_be_is_refused_and_changes_nothing(change: dict, error: type[RingError], text: str) -> None:
    ring = Ring(Range(Address(0), Address(256)), P1)
    ring.create([P1])
    before = ring.state()
    with pytest.raises(error, match=text):
        ring.merge(replace(before, **change), nothing_used)
    assert ring.state() == before


def test_a_ring_of_too_many_entries_is_refused() -> None:
    entries = [Entry(Address(token), P1, 0, 0) for token in range(ENTRIES_MAX + 1)]
    with pytest.raises(RingError, match=f"{ENTRIES_MAX + 1} entries"):
        check_received(RingState(Address(0), Address(1 << 20), P1, entries, ()))


def test_a_ring_of_five_thousand_peers_is_merged_entry_by_entry() -> None:
    peers = [PeerName(number) for number in range(1, 5001)]
    ours = Ring(Range(parse_address("10.32.0.0"), parse_address("10.48.0.0")), P1)
    ours.create(peers)
    changed = [replace(entry, version=entry.version + entry.peer % 2, free=1) for entry in ours.entries]
    assert ours.merge(replace(ours.state(), entries=changed), nothing_used) is True
    assert sum(entry.version for entry in ours.entries) == 2500 - 1 + 2, "ours is outdone, not taken"


# --- against an obvious model -----------------------------------------------------------------------------------------

SIZE = 32
PEERS = (P1, P2, P3)


def owners(ring: Ring) -> list[PeerName | None]:
    return [ring.owner(Address(address)) for address in range(ring.universe.start, ring.universe.end)]


@given(
    peers=st.lists(st.integers(1, 9).map(PeerName), min_size=1, max_size=20, unique=True),
    size=st.sampled_from([4, 8, 64, 256]),
)
def test_a_new_ring_gives_every_address_to_one_of_its_peers(peers: list[PeerName], size: int) -> None:
    ring = Ring(Range(Address(0), Address(size)), P1)
    ring.create(normalise_peers(peers))
    assert set(owners(ring)) <= set(peers)
    assert len(set(owners(ring))) == min(len(peers), len(ring.entries))
    assert sum(entry.free for entry in ring.entries) == size
    check_invariants(ring.universe, ring.entries)


@given(
    tokens=st.lists(st.tuples(st.integers(0, SIZE - 1), st.sampled_from(PEERS)), min_size=1, max_size=8),
    wanted=st.tuples(st.integers(0, SIZE - 1), st.integers(1, SIZE)),
)
def test_granting_a_range_changes_the_owner_of_its_addresses_and_of_no_other(
    tokens: list[tuple[int, PeerName]], wanted: tuple[int, int]
) -> None:
    entries = [(token, peer, 1, 0) for token, peer in sorted(dict(tokens).items())]
    ring = ring_of(*entries, size=SIZE)
    granted = Range(Address(wanted[0]), Address(min(SIZE, wanted[0] + wanted[1])))
    before = owners(ring)
    versions = {entry.token: entry.version for entry in ring.entries}
    if any(before[address] != P1 for address in range(granted.start, granted.end)):
        with pytest.raises(AssertionError):
            ring.grant(granted, P4)
        assert owners(ring) == before
        return
    ring.grant(granted, P4)
    assert owners(ring) == [P4 if address in granted else owner for address, owner in enumerate(before)]
    check_invariants(ring.universe, ring.entries)
    after = {entry.token: entry for entry in ring.entries}
    assert set(versions) <= set(after), "tokens never vanish"
    assert all(a.token < b.token for a, b in pairwise(ring.entries))
    for token, version in versions.items():
        touched = after[token].peer == P4
        assert after[token].version >= version + touched


@given(
    mine=st.lists(st.tuples(st.integers(0, SIZE - 1), st.sampled_from(PEERS), st.integers(0, 3)), max_size=6),
    theirs=st.lists(st.tuples(st.integers(0, SIZE - 1), st.sampled_from(PEERS), st.integers(0, 3)), max_size=6),
    used=st.sets(st.integers(0, SIZE - 1), max_size=4),
)
@settings(max_examples=400)
def test_whatever_is_merged_an_address_in_use_stays_ours_or_nothing_changes(
    mine: list[tuple[int, PeerName, int]], theirs: list[tuple[int, PeerName, int]], used: set[int]
) -> None:
    def entries_of(drawn: list[tuple[int, PeerName, int]]) -> list[Entry]:
        by_token = {token: Entry(Address(token), peer, version, 0) for token, peer, version in drawn}
        return [by_token[token] for token in sorted(by_token)]

    ring = make_ring(RingState(Address(0), Address(SIZE), P1, entries_of(mine), ()))
    in_use = {address for address in used if ring.entries and ring.owner(Address(address)) == P1}
    before = ring.state()
    try:
        ring.merge(
            RingState(Address(0), Address(SIZE), P2, entries_of(theirs), ()),
            lambda ranges: any(address in part for address in in_use for part in ranges),
        )
    except RingError:
        assert ring.state() == before
    for address in in_use:
        assert ring.owner(Address(address)) == P1
    check_invariants(ring.universe, ring.entries)


class RingsConverge(RuleBasedStateMachine):
    """Peers that grant and report as the allocator does, and hear each other's rings late, twice, or never.

    The model is the list of who owns each address: it changes by grants and by nothing else.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rings = {peer: Ring(Range(Address(0), Address(SIZE)), peer) for peer in PEERS}
        self.rings[P1].create(PEERS)
        self.model = [self.rings[P1].owner(Address(address)) for address in range(SIZE)]
        self.on_the_way: list[RingState] = []

    @rule(
        peer=st.sampled_from(PEERS), to=st.sampled_from(PEERS), start=st.integers(0, SIZE - 1), size=st.integers(1, 9)
    )
    def grant(self, peer: PeerName, to: PeerName, start: int, size: int) -> None:
        ring = self.rings[peer]
        granted = Range(Address(start), Address(min(SIZE, start + size)))
        if peer == to or ring.is_empty or any(ring.owner(Address(a)) != peer for a in range(start, granted.end)):
            return
        ring.grant(granted, to)
        self.model[start : granted.end] = [to] * granted.size

    @rule(peer=st.sampled_from(PEERS), draw=st.data())
    def report(self, peer: PeerName, draw: st.DataObject) -> None:
        ring = self.rings[peer]
        free = {part.start: draw.draw(st.integers(0, part.size)) for part in ring.owned_ranges()}
        ring.report_free(free)

    @rule(peer=st.sampled_from(PEERS))
    def send(self, peer: PeerName) -> None:
        self.on_the_way.append(self.rings[peer].state())

    @precondition(lambda self: self.on_the_way)
    @rule(peer=st.sampled_from(PEERS), draw=st.data())
    def receive(self, peer: PeerName, draw: st.DataObject) -> None:
        self.merge(peer, draw.draw(st.sampled_from(self.on_the_way)))

    def merge(self, peer: PeerName, state: RingState) -> None:
        # Every address is in use: no peer may ever have to give up one that it owns.
        self.rings[peer].merge(state, lambda _: True)

    @invariant()
    def no_address_is_believed_by_two_peers_to_be_theirs(self) -> None:
        for peer in PEERS:
            for part in self.rings[peer].owned_ranges():
                assert all(self.model[address] == peer for address in range(part.start, part.end))

    def teardown(self) -> None:
        for peer in (*PEERS, *PEERS):
            for other in PEERS:
                self.merge(other, self.rings[peer].state())
        first = self.rings[P1].state()
        for peer in PEERS:
            assert replace(self.rings[peer].state(), peer=P1) == first
            assert owners(self.rings[peer]) == self.model


RingsConverge.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestRingsConvergeToWhatWasGranted = RingsConverge.TestCase
