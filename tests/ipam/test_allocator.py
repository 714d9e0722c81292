"""The allocator towards its callers: requests, releases, leaving, and what it tells of itself."""

from collections.abc import Callable
from typing import Any

import pytest

from weavenet.address import Address, Cidr, Range, parse_address, parse_subnet
from weavenet.effects import (
    Cancelled,
    Done,
    Granted,
    Outcome,
    PutAllocation,
    Refused,
    Reply,
    RequestNumber,
    SendBroadcast,
    TookOver,
)
from weavenet.errors import ConfigError, IpamError
from weavenet.identity import PeerName, PeerUID
from weavenet.ipam import wire
from weavenet.ipam.allocator import IpamConfig
from weavenet.ipam.desk import ASKS_MAX
from weavenet.ipam.modes import Consensus, Observer, Seed
from weavenet.ipam.requests import WAITING_MAX
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


# --- allocation -------------------------------------------------------------------------------------------------------


def test_the_lowest_free_host_address_is_given_and_on_disk_before_the_reply(make_host: MakeHost) -> None:
    host = make_host()
    assert addresses(host.allocate("c1")) == ["10.0.0.1/28"]
    assert [type(output).__name__ for output in host.outputs] == ["Persist", "Reply"]
    assert host.rows[("c1", parse_address("10.0.0.1"))] == PutAllocation("c1", Cidr.parse("10.0.0.1/28"), True)
    assert wire.decode_stored_ring(host.values["ring"]).entries[0].free == 7


def test_an_identifier_gets_the_address_it_has_in_the_asked_subnets_length(make_host: MakeHost) -> None:
    host = make_host()
    host.allocate("c1")
    assert addresses(host.allocate("c1")) == ["10.0.0.1/28"]
    assert addresses(host.allocate("c1", "10.0.0.0/29")) == ["10.0.0.1/29"]
    assert addresses(host.allocate("c1", "10.0.0.4/30")) == ["10.0.0.5/30"], "another subnet, another address"


def test_anonymous_addresses_are_filed_under_their_own_text(make_host: MakeHost) -> None:
    host = make_host()
    assert addresses(host.allocate("_")) == ["10.0.0.1/28"]
    assert addresses(host.allocate("_")) == ["10.0.0.2/28"]
    assert sorted(host.allocator.owned()) == ["10.0.0.1", "10.0.0.2"]


def test_a_subnet_outside_the_universe_is_refused(make_host: MakeHost) -> None:
    host = make_host()
    assert host.allocate("c1", "10.9.0.0/24") == Refused("range 10.9.0.0/24 out of bounds: 10.0.0.0/28")
    assert not host.allocator.can_allocate(parse_subnet("10.9.0.0/24"))


def test_a_host_without_space_asks_one_peer_and_serves_the_request_when_the_ring_changes(make_host: MakeHost) -> None:
    host = make_host()
    for container in range(7):
        host.allocate(f"c{container}")
    assert host.allocate("late") is None
    assert host.unicasts == [(P2, wire.SpaceRequest(UNIVERSE.range))]
    assert host.allocator.status().pending_allocates == (("late", UNIVERSE),)
    assert host.allocator.status().phase is Phase.WAITING_FOR_SPACE
    host.hear(host.ring_with((0, P1, 1, 1), (8, P2, 1, 4), (12, P1, 0, 4)))
    assert addresses(host.reply(8, host.outputs)) == ["10.0.0.12/28"]
    assert host.allocator.next_deadline() is None


def test_peers_that_cannot_be_reached_are_not_asked(make_host: MakeHost) -> None:
    host = make_host(Seed((P1, P2, P3)))
    for container in range(7):
        host.allocate(f"c{container}")
    host.mesh.reachable = {P3}
    assert host.allocate("late") is None
    assert host.unicasts == [(P3, wire.SpaceRequest(UNIVERSE.range))]
    host.mesh.reachable = set()
    host.tick()
    assert host.unicasts == []
    host.mesh.reachable = {P2}
    host.tick()
    assert host.unicasts == [(P2, wire.SpaceRequest(UNIVERSE.range))]


def test_ten_requests_that_wait_ask_once_per_retry_and_not_more_often_than_the_limit(make_host: MakeHost) -> None:
    host = make_host()
    for container in range(20):
        host.allocate(f"c{container}")
    host.tick()
    assert len(host.unicasts) == 1
    asked = 0
    for version in range(1, 40):
        host.hear(host.ring_with((0, P1, 1, 1), (8, P2, version, 8)))
        asked += len(host.unicasts)
    assert asked == ASKS_MAX - 1
    host.tick()
    assert len(host.unicasts) == 1


def test_a_cancelled_request_gets_no_address_later(make_host: MakeHost) -> None:
    host = make_host()
    for container in range(8):
        host.allocate(f"c{container}")
    host.store(host.allocator.cancel(RequestNumber(8), host.now))
    assert host.outputs == [Reply(RequestNumber(8), Cancelled())]
    host.hear(host.ring_with((0, P1, 1, 1), (8, P1, 1, 8)))
    assert "c7" not in host.allocator.owned()
    assert host.allocator.cancel(RequestNumber(8), host.now) == []
    assert host.allocator.cancel(RequestNumber(1), host.now) == [], "answered stays answered"


def test_more_requests_than_can_wait_are_refused(make_host: MakeHost) -> None:
    host = make_host(Observer())
    for number in range(WAITING_MAX):
        host.allocator.await_consensus(RequestNumber(number + 1), host.now)
    [reply] = host.allocator.await_consensus(RequestNumber(WAITING_MAX + 1), host.now)
    assert isinstance(reply, Reply)
    assert isinstance(reply.outcome, Refused)
    assert "10000 requests are waiting" in reply.outcome.reason


# --- claims -----------------------------------------------------------------------------------------------------------


def test_a_free_address_of_ours_can_be_claimed_once_more_by_the_same_and_by_nobody_else(make_host: MakeHost) -> None:
    host = make_host()
    assert host.claim("c1", "10.0.0.3/28") == Done()
    assert host.claim("c1", "10.0.0.3/28") == Done()
    assert host.claim("_", "10.0.0.3/28") == Done()
    assert host.claim("c2", "10.0.0.3/28") == Refused("address 10.0.0.3/28 is already owned by c1")
    assert addresses(host.allocate("_")) == ["10.0.0.1/28"]
    assert host.claim("c2", "10.0.0.1/28") == Refused("address 10.0.0.1/28 already in use")
    assert host.claim("10.0.0.1", "10.0.0.1/28") == Done()


def test_an_address_outside_the_universe_is_only_written_down(make_host: MakeHost) -> None:
    host = make_host(Observer())
    assert host.claim("c1", "192.168.1.1/24") == Done()
    assert host.claim("c1", "192.168.1.1/24") == Done()
    assert host.claim("_", "192.168.1.1/24") == Done()
    assert host.claim("c2", "192.168.1.1/24") == Refused("address 192.168.1.1/24 already in use by c1")
    assert host.claim("_", "192.168.1.2/24") == Done()
    assert sorted(host.allocator.owned()) == ["192.168.1.2", "c1"]
    host.store(host.allocator.release("c1", host.now))
    assert host.claim("c2", "192.168.1.1/24") == Done()


def test_a_claim_of_another_peers_address_asks_its_owner_and_fails_when_denied(make_host: MakeHost) -> None:
    host = make_host()
    assert host.claim("c1", "10.0.0.9/28") is None
    assert host.unicasts == [(P2, wire.SpaceRequest(span(9, 10)))]
    assert host.allocator.status().pending_claims == (("c1", Cidr.parse("10.0.0.9/28")),)
    host.hear_unicast(wire.SpaceRequestDenied(span(10, 11)))
    assert host.outputs == []
    host.hear_unicast(wire.SpaceRequestDenied(span(9, 10)))
    refused = Refused("address 10.0.0.9/28 is owned by other peer 00:00:00:00:00:02 (mesh-host2)")
    assert host.outputs == [Reply(RequestNumber(1), refused)]


def test_a_claim_whose_owner_cannot_be_reached_is_given_up_after_the_sixth_try(make_host: MakeHost) -> None:
    host = make_host()
    host.mesh.reachable = set()
    assert host.claim("c1", "10.0.0.9/28") is None
    for _ in range(4):
        host.tick()
        assert host.outputs == []
    host.tick()
    [reply] = host.outputs
    reason = (
        "address 10.0.0.9/28 is owned by other peer 00:00:00:00:00:02 (mesh-host2)"
        " - unknown relay destination: 00:00:00:00:00:02"
    )
    assert reply == Reply(RequestNumber(1), Refused(reason))
    assert host.allocator.next_deadline() is None


def test_a_claim_without_error_is_answered_at_once_and_made_good_later(make_host: MakeHost) -> None:
    host = make_host(Consensus(3))
    assert host.claim("c1", "10.0.0.3/28", no_error_on_unknown=True) == Done()
    assert host.claim("c1", "10.0.0.3/28", no_error_on_unknown=True) == Done()
    assert len(host.allocator.status().pending_claims) == 1, "the same claim waits once"
    host.hear(host.ring_with((0, P1, 0, 16)))
    assert host.allocator.owned() == {"c1": (Cidr.parse("10.0.0.3/28"),)}
    assert not [output for output in host.outputs if isinstance(output, Reply)]


def test_a_claim_answered_and_then_denied_is_noted(make_host: MakeHost) -> None:
    host = make_host()
    host.mesh.reachable = set()
    assert host.claim("c1", "10.0.0.9/28", no_error_on_unknown=True) == Done()
    host.hear_unicast(wire.SpaceRequestDenied(span(8, 16)))
    assert "Unable to claim for c1: address 10.0.0.9/28 is owned by other peer" in host.notes[0]
    assert host.allocator.status().pending_claims == ()


# --- release ----------------------------------------------------------------------------------------------------------


def test_releasing_an_identifier_frees_its_addresses_and_drops_its_requests(make_host: MakeHost) -> None:
    host = make_host()
    host.allocate("c1")
    host.claim("c1", "10.0.0.9/28")
    host.store(host.allocator.release("c1", host.now))
    assert Reply(RequestNumber(2), Cancelled()) in host.outputs
    assert host.rows == {}
    assert host.allocator.status().active_count == 0
    with pytest.raises(IpamError, match=r"^Delete: no addresses for c1$"):
        host.allocator.release("c1", host.now)
    host.claim("c2", "10.0.0.9/28")
    assert host.allocator.release("c2", host.now) == [Reply(RequestNumber(3), Cancelled())]


def test_releasing_one_address_leaves_the_others(make_host: MakeHost) -> None:
    host = make_host()
    host.claim("c1", "10.0.0.3/28")
    host.claim("c1", "10.0.0.4/28")
    host.store(host.allocator.release_address("c1", parse_address("10.0.0.3"), host.now))
    assert host.allocator.lookup("c1", None) == (Cidr.parse("10.0.0.4/28"),)
    for ident, address in (("c1", "10.0.0.3"), ("c2", "10.0.0.4")):
        with pytest.raises(IpamError, match=f"^Free: address {address} not found for {ident}$"):
            host.allocator.release_address(ident, parse_address(address), host.now)


def test_a_lookup_finds_host_addresses_of_the_subnet_only(make_host: MakeHost) -> None:
    host = make_host()
    host.claim("c1", "10.0.0.0/28")
    host.claim("c1", "10.0.0.5/28")
    assert host.allocator.lookup("c1", None) == (Cidr.parse("10.0.0.5/28"),)
    assert host.allocator.lookup("c1", parse_subnet("10.0.0.4/30")) == (Cidr.parse("10.0.0.5/28"),)
    assert host.allocator.lookup("c1", parse_subnet("10.0.0.8/29")) == ()
    assert host.allocator.lookup("nobody", None) == ()


# --- leaving and taking over ------------------------------------------------------------------------------------------


def test_a_host_that_shuts_down_gives_its_ranges_away_and_turns_everybody_away(make_host: MakeHost) -> None:
    host = make_host()
    host.allocate("c1")
    host.claim("c9", "10.0.0.9/28")
    host.store(host.allocator.shut_down(host.now))
    assert [type(output).__name__ for output in host.outputs] == ["Persist", "Reply", "SendBroadcast"]
    assert {entry.peer for entry in host.allocator.ring.entries} == {P2}
    assert host.allocate("c2") == Cancelled()
    assert host.claim("c2", "10.0.0.1/28") == Cancelled()
    number = host.number()
    assert host.reply(number, host.allocator.await_consensus(number, host.now)) == Cancelled()
    number = host.number()
    assert host.reply(number, host.allocator.take_over(number, "00:00:00:00:00:02", host.now)) == TookOver(0)
    assert not host.allocator.can_allocate()
    host.store(host.allocator.release("c1", host.now))
    assert host.rows == {}
    assert host.allocator.next_deadline() is None


def test_a_host_that_shuts_down_during_an_election_stops_proposing(make_host: MakeHost) -> None:
    host = make_host(Consensus(3))
    host.allocate("c1")
    host.store(host.allocator.shut_down(host.now))
    assert host.outputs == [Reply(RequestNumber(1), Cancelled())]
    assert host.allocator.next_deadline() is None


@pytest.mark.parametrize(
    ("reachable", "nicknames", "heir"),
    [
        pytest.param({P3}, {}, P3, id="an owner that can be reached"),
        pytest.param({PeerName(9)}, {PeerName(9): "neun"}, PeerName(9), id="somebody known that can be reached"),
        pytest.param(set(), {PeerName(9): "neun"}, P2, id="any owner"),
    ],
)
def test_the_heir_is_alive_if_possible(
    make_host: MakeHost, reachable: set[PeerName], nicknames: dict[PeerName, str], heir: PeerName
) -> None:
    host = make_host(Seed((P1, P2, P3)))
    host.mesh.reachable = reachable
    host.hear(wire.GossipState(0, nicknames, None, host.allocator.ring.state()))
    host.store(host.allocator.shut_down(host.now))
    assert host.allocator.ring.owner(BASE) == heir


def test_a_lone_host_without_anybody_to_leave_its_ranges_to_keeps_them(make_host: MakeHost) -> None:
    host = make_host(Seed((P1,)))
    host.store(host.allocator.shut_down(host.now))
    assert host.allocator.ring.owner(BASE) == P1
    assert not [output for output in host.outputs if isinstance(output, SendBroadcast)]


@pytest.mark.parametrize("whom", ["zwei", "00:00:00:00:00:02", "::2"])
def test_a_dead_peers_ranges_are_taken_over_by_nickname_or_name(make_host: MakeHost, whom: str) -> None:
    host = make_host()
    host.hear(wire.GossipState(0, {P2: "zwei"}, None, host.allocator.ring.state()))
    number = host.number()
    assert host.reply(number, host.allocator.take_over(number, whom, host.now)) == TookOver(8)
    assert SendBroadcast("IPallocation") in host.outputs
    assert host.allocator.ring.entries[1].version == 100
    assert host.allocator.status().phase is Phase.READY
    number = host.number()
    assert host.reply(number, host.allocator.take_over(number, whom, host.now)) == TookOver(0)


@pytest.mark.parametrize("whom", ["host1", "00:00:00:00:00:01", "nonsense", ""])
def test_nothing_is_taken_over_from_ourselves_or_from_nobody(make_host: MakeHost, whom: str) -> None:
    host = make_host()
    number = host.number()
    assert host.reply(number, host.allocator.take_over(number, whom, host.now)) == TookOver(0)
    assert host.notes == [f"Cannot take over the ranges of {whom}: that is no other peer of ours"]


def test_a_nickname_of_several_peers_takes_over_from_none_of_them(make_host: MakeHost) -> None:
    host = make_host()
    host.hear(wire.GossipState(0, {P2: "zwei", P3: "zwei"}, None, host.allocator.ring.state()))
    number = host.number()
    assert host.reply(number, host.allocator.take_over(number, "zwei", host.now)) == Refused(
        "zwei may be any of 00:00:00:00:00:02, 00:00:00:00:00:03; give the name, not the nickname"
    )
    number = host.number()
    assert host.reply(number, host.allocator.take_over(number, "::2", host.now)) == TookOver(8)


def test_who_calls_itself_by_the_name_of_another_is_not_taken_for_it(make_host: MakeHost) -> None:
    host = make_host()
    host.hear(wire.GossipState(0, {P3: "00:00:00:00:00:02"}, None, host.allocator.ring.state()))
    number = host.number()
    assert host.reply(number, host.allocator.take_over(number, "00:00:00:00:00:02", host.now)) == TookOver(8)
    assert host.allocator.ring.owner(host.allocator.ring.entries[1].token) == P1


# --- status -----------------------------------------------------------------------------------------------------------


def test_the_status_lists_our_ranges_first_and_says_who_is_unreachable(make_host: MakeHost) -> None:
    host = make_host(Seed((P1, P2)), name=P2)
    host.allocate("c1")
    host.mesh.known = set()
    status = host.allocator.status()
    assert [(part.token - BASE, part.size, part.peer, part.is_known_peer) for part in status.ranges] == [
        (8, 8, P2, True),
        (0, 8, P1, False),
    ]
    assert (status.active_count, status.universe_size, status.election) == (1, 16, None)
    assert status.summary == "ready"


def test_a_host_without_ranges_whose_owners_are_all_gone_says_so(make_host: MakeHost) -> None:
    host = make_host(name=P3)
    assert host.allocator.status().phase is Phase.READY
    host.mesh.known = {P3}
    assert host.allocator.status().summary == (
        "all IP ranges owned by unreachable peers - use 'rmpeer' if they are dead"
    )


def test_before_anything_is_asked_the_status_is_idle(make_host: MakeHost) -> None:
    assert make_host(Consensus(3)).allocator.status().summary == "idle"


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("universe", "subnet", "text"),
    [
        ("255.255.255.0/24", "255.255.255.0/24", "must end before 255.255.255.255"),
        ("10.0.0.0/24", "10.0.1.0/24", "10.0.1.0/24 does not overlap with allocation range 10.0.0.0/24"),
        ("10.0.0.1/24", "10.0.0.0/24", "has bits after the network prefix"),
    ],
)
def test_a_range_that_cannot_be_shared_out_is_refused(universe: str, subnet: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        IpamConfig(P1, PeerUID(1), "host1", Cidr.parse(universe), Cidr.parse(subnet), Consensus())
