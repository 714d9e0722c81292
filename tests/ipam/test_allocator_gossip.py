"""The allocator towards other peers: elections, rings, requests for space, and bytes that are none of these."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from weavenet.address import Address, Range, parse_subnet
from weavenet.effects import (
    Done,
    GossipKind,
    Granted,
    Note,
    Outcome,
    Reply,
    SendBroadcast,
)
from weavenet.errors import GossipError
from weavenet.identity import PeerName, PeerUID
from weavenet.ipam import wire
from weavenet.ipam.allocator import RETRY_S
from weavenet.ipam.books import NICKNAME_CHARACTERS_MAX, NICKNAMES_MAX
from weavenet.ipam.modes import Consensus, Observer
from weavenet.ipam.paxos import NO_CLAIMS, AcceptedValue, NodeClaims, NodeID, ProposalID
from weavenet.ipam.ring import RECEIVED_VERSION_MAX
from weavenet.ipam.status import Phase

Host = Any  # the class in conftest.py, which tests cannot import
MakeHost = Callable[..., Host]

P1, P2, P3 = PeerName(1), PeerName(2), PeerName(3)
UNIVERSE = parse_subnet("10.0.0.0/28")
BASE = UNIVERSE.address


def span(start: int, end: int) -> Range:
    return Range(Address(BASE + start), Address(BASE + end))


def addresses(outcome: Outcome | None) -> list[str]:
    assert isinstance(outcome, Granted)
    return [str(cidr) for cidr in outcome.addresses]


# --- elections --------------------------------------------------------------------------------------------------------


def voted(host: Host) -> NodeClaims:
    state = wire.decode_state(host.allocator.encode_state(0.0))
    assert state.paxos is not None
    return next(claims for node, claims in state.paxos.items() if node.name == host.allocator.config.name)


def test_an_election_is_stored_before_it_is_told_and_a_restarted_peer_is_the_same_voter(make_host: MakeHost) -> None:
    before = make_host(Consensus(3))
    assert before.allocate("c1") is None
    assert [type(output).__name__ for output in before.outputs] == ["Persist", "SendBroadcast"]
    after = make_host(Consensus(3), before.stored, uid=555)
    assert voted(after) == voted(before)
    after.allocate("c1")
    state = wire.decode_state(after.allocator.encode_state(0.0))
    assert state.paxos is not None
    assert list(state.paxos) == [NodeID(P1, PeerUID(101))]
    assert voted(after).promise.round == 2


@pytest.mark.parametrize(("targets", "quorum"), [(0, 1), (1, 2), (2, 2), (3, 3), (4, 3)])
def test_without_a_number_the_quorum_is_guessed_from_the_peers_to_connect_to(
    make_host: MakeHost, targets: int, quorum: int
) -> None:
    host = make_host(Consensus())
    host.mesh.targets = targets
    host.allocate("c1")
    assert f"Assuming quorum size of {quorum}" in host.notes
    election = host.allocator.status().election
    assert (election.quorum if election else 1) == quorum


def test_an_election_is_repeated_with_a_higher_round_every_five_seconds(make_host: MakeHost) -> None:
    host = make_host(Consensus(3))
    host.allocate("c1")
    assert host.allocator.next_deadline() == RETRY_S
    assert host.allocator.status().summary == "awaiting consensus (quorum: 2, known: 1)"
    host.tick(RETRY_S - 1)
    assert host.outputs == []
    for round_number in (2, 3):
        host.tick(RETRY_S)
        assert voted(host).promise.round == round_number
        assert SendBroadcast("IPallocation") in host.outputs


def test_an_observer_waits_without_a_vote_and_an_elector_starts_the_election_for_it(make_host: MakeHost) -> None:
    observer, elector = make_host(Observer(), name=P3), make_host(Consensus(1))
    observer.allocate("c1")
    assert observer.allocator.status().phase is Phase.PRIMING
    asks = wire.decode_state(observer.allocator.encode_state(0.0))
    assert asks.paxos is None
    elector.hear(asks, GossipKind.NEIGHBOUR, P3)
    assert elector.allocator.ring.is_empty, "nobody in particular asked"
    elector.hear(asks, GossipKind.BROADCAST, P3)
    assert not elector.allocator.ring.is_empty
    elector.hear(asks, GossipKind.BROADCAST, P3)
    [(destination, update)] = elector.unicasts
    assert destination == P3
    assert isinstance(update, wire.RingUpdate)
    observer.hear_unicast(update, P1)
    assert observer.unicasts == [(P1, wire.SpaceRequest(UNIVERSE.range))]


def test_waiting_for_a_ring_ends_with_it(make_host: MakeHost) -> None:
    host = make_host(Consensus(3))
    number = host.number()
    assert host.reply(number, host.allocator.await_consensus(number, host.now)) is None
    host.hear(host.ring_with((0, P2, 0, 16)))
    assert host.outputs[-1] == Reply(number, Done())
    number = host.number()
    assert host.reply(number, host.allocator.await_consensus(number, host.now)) == Done()


def test_a_decision_that_others_made_makes_the_same_ring(make_host: MakeHost) -> None:
    host = make_host(Consensus(3))
    origin = ProposalID(1, NodeID(P2, PeerUID(1)))
    claims = NodeClaims(origin, origin, AcceptedValue((P3, P2, P2), origin))
    table = {NodeID(P2, PeerUID(1)): claims, NodeID(P3, PeerUID(1)): claims}
    host.allocate("c1")
    host.hear(wire.GossipState(0, {}, table, None))
    assert [(entry.token - BASE, entry.peer) for entry in host.allocator.ring.entries] == [(0, P2), (8, P3)]
    assert host.allocator.ring.seeds == (P2, P3)


# --- others -----------------------------------------------------------------------------------------------------------


def test_half_of_what_is_free_is_given_to_a_peer_that_asks_and_it_is_stored_first(make_host: MakeHost) -> None:
    host = make_host()
    host.hear_unicast(wire.SpaceRequest(UNIVERSE.range))
    assert [type(o).__name__ for o in host.outputs] == ["Persist", "Note", "SendBroadcast", "SendUnicast"]
    assert [(e.token - BASE, e.peer) for e in host.allocator.ring.entries] == [(0, P1), (4, P2), (8, P2)]
    assert wire.decode_stored_ring(host.values["ring"]).entries == list(host.allocator.ring.entries)


def test_a_peer_that_asks_for_what_we_have_not_is_denied_and_told_the_ring(make_host: MakeHost) -> None:
    host = make_host()
    host.hear_unicast(wire.SpaceRequest(span(8, 12)))
    [(first, denied), (second, update)] = host.unicasts
    assert (first, second) == (P2, P2)
    assert denied == wire.SpaceRequestDenied(span(8, 12))
    assert isinstance(update, wire.RingUpdate)


@pytest.mark.parametrize(
    "wanted",
    [
        Range(Address(9), Address(3)),
        Range(Address(0), Address(0)),
        Range(Address(BASE + 5), Address(BASE + 5)),
        Range(Address(0xFFFF_FFFF), Address(0)),
        Range(Address(BASE + 9), Address(0)),
    ],
    ids=["upside down", "nothing at 0", "nothing in ours", "wrapped", "from ours to 0"],
)
def test_a_range_that_is_none_gets_nothing(make_host: MakeHost, wanted: Range) -> None:
    host = make_host()
    ring = host.allocator.ring.state()
    host.hear_unicast(wire.SpaceRequest(wanted))
    assert host.unicasts[0] == (P2, wire.SpaceRequestDenied(wanted))
    host.hear_unicast(wire.SpaceRequestDenied(wanted))
    assert host.allocator.ring.state() == ring


def test_a_peer_without_a_ring_ignores_requests_for_space(make_host: MakeHost) -> None:
    host = make_host(Consensus(3))
    host.hear_unicast(wire.SpaceRequest(UNIVERSE.range))
    assert host.outputs == []


def test_a_range_that_a_merge_takes_from_us_is_taken_out_of_our_space(make_host: MakeHost) -> None:
    # Weave keeps it, and ends on its own invariant.
    host = make_host()
    host.allocate("c1")
    host.hear(host.ring_with((0, P1, 1, 3), (4, P3, 0, 4), (8, P2, 0, 8)), source=P3)
    assert host.allocator._books.space.owned_ranges() == [span(0, 4)]
    assert [addresses(host.allocate(f"d{i}")) for i in range(2)] == [["10.0.0.2/28"], ["10.0.0.3/28"]]
    assert host.allocate("d2") is None


def refuse(host: Host, state: wire.GossipState, source: PeerName = P2) -> str:
    before = host.snapshot()
    with pytest.raises(GossipError) as raised:
        host.hear(state, source=source)
    assert host.snapshot() == before
    # What a refused message left half done would come out with the next action.
    assert host.allocator.peers_removed((), (), host.now) == []
    return str(raised.value)


def test_rings_that_contradict_ours_are_refused_with_weaves_words_and_change_nothing(make_host: MakeHost) -> None:
    host = make_host()
    host.allocate("c1")
    other_seeds = host.ring_with((0, P2, 0, 16), seeds=(P2, P3))
    assert refuse(host, replace(other_seeds, nicknames={P3: "drei"})) == (
        "IP allocation was seeded by different peers (received: [00:00:00:00:00:02(mesh-host2) "
        "00:00:00:00:00:03(drei)], ours: [00:00:00:00:00:01(host1) 00:00:00:00:00:02(mesh-host2)])"
    )
    assert refuse(host, host.ring_with((0, P2, 0, 16), end=Address(BASE + 24))) == (
        "Incompatible IP allocation ranges (received: 10.0.0.0-10.0.0.23, ours: 10.0.0.0/28)"
    )
    assert refuse(host, host.ring_with((0, P3, 9, 8), (8, P2, 0, 8))) == (
        "Received update for IP range I own at 10.0.0.0 v1: incoming message says owner 00:00:00:00:00:03 v9"
    )
    assert refuse(host, host.ring_with((0, P1, RECEIVED_VERSION_MAX + 1, 8), (8, P2, 0, 8))).startswith("Entry")


@given(data=st.binary(max_size=300), kind=st.sampled_from(GossipKind))
@settings(max_examples=200)
def test_bytes_that_are_no_message_change_nothing(make_host: MakeHost, data: bytes, kind: GossipKind) -> None:
    host = make_host()
    host.allocate("c1")
    before = host.snapshot()
    with suppress(GossipError):
        host.store(host.allocator.gossip_arrived(kind, P2, data, host.now))
    assert host.snapshot() == before


@given(
    entries=st.lists(
        st.tuples(st.integers(-2, 17), st.integers(0, 4), st.integers(0, RECEIVED_VERSION_MAX + 1), st.integers(0, 17)),
        max_size=5,
    ),
    sort=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_no_ring_whatsoever_takes_an_address_in_use_or_breaks_the_allocator(
    make_host: MakeHost, entries: Sequence[tuple[int, int, int, int]], *, sort: bool
) -> None:
    host = make_host()
    host.allocate("c1")
    host.claim("c2", "10.0.0.6/28")
    made = [(offset, PeerName(peer), version, free) for offset, peer, version, free in entries]
    before = host.snapshot()
    try:
        host.hear(host.ring_with(*(sorted({e[0]: e for e in made}.values()) if sort else made)))
    except GossipError:
        assert host.snapshot() == before
    for offset in (1, 6):
        assert host.allocator.ring.owner(Address(BASE + offset)) == P1
    host.allocate("c3")
    host.hear_unicast(wire.SpaceRequest(UNIVERSE.range))
    assert make_host(stored=host.stored).snapshot() == host.snapshot()


def test_hostile_election_tables_are_refused_and_change_nothing(make_host: MakeHost) -> None:
    host = make_host(Consensus(3))
    host.allocate("c1")
    nobody = AcceptedValue((), ProposalID(7, NodeID(P2, PeerUID(1))))
    table = {NodeID(P2, PeerUID(1)): replace(NO_CLAIMS, accepted_value=nobody)}
    before = voted(host)
    assert "no peers" in refuse(host, wire.GossipState(0, {}, table, None))
    assert voted(host) == before


def test_unknown_and_empty_unicasts_are_ignored(make_host: MakeHost) -> None:
    host = make_host()
    for data in (b"", b"\x09"):
        outputs = host.allocator.gossip_arrived(GossipKind.UNICAST, P2, data, host.now)
        assert [type(output) for output in outputs] == [Note]


# --- nicknames --------------------------------------------------------------------------------------------------------


def test_nicknames_are_learnt_and_forgotten_but_never_ours(make_host: MakeHost) -> None:
    host = make_host()
    host.hear(wire.GossipState(0, {P1: "liar", P2: "zwei", P3: "drei"}, None, host.allocator.ring.state()))
    host.store(host.allocator.peers_removed((P1, P2, P3), ("", "", ""), host.now))
    told = wire.decode_state(host.allocator.encode_state(0.0)).nicknames
    assert told == {P1: "host1", P2: "zwei"}, "the ring mentions host 2"


def test_a_long_nickname_is_cut(make_host: MakeHost) -> None:
    host = make_host()
    host.hear(wire.GossipState(0, {P2: "x" * 100_000}, None, host.allocator.ring.state()))
    told = wire.decode_state(host.allocator.encode_state(0.0)).nicknames
    assert len(told[P2]) == NICKNAME_CHARACTERS_MAX


def test_a_flood_of_nicknames_is_kept_within_bounds(make_host: MakeHost) -> None:
    host = make_host()
    many = {PeerName(number): "x" for number in range(1, NICKNAMES_MAX + 10)}
    host.hear(wire.GossipState(0, many, None, host.allocator.ring.state()))
    assert len(wire.decode_state(host.allocator.encode_state(0.0)).nicknames) == NICKNAMES_MAX
