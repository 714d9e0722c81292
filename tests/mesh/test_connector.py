import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weavenet.address import Endpoint
from weavenet.effects import Now
from weavenet.identity import PeerName
from weavenet.mesh import connector as module
from weavenet.mesh.connector import Attempt, Connected, Connector, Target, TargetState
from weavenet.mesh.topology import Peer, PeerConnection

INTERVALS_S = json.loads((Path(__file__).parents[1] / "vectors" / "mesh_topology.json").read_text())["vectors"][
    "backoff_intervals_seconds"
]
US, B, C = PeerName(1), PeerName(2), PeerName(3)
PEERS: Mapping[PeerName, Peer] = {US: Peer(US)}
ADDRESS = Endpoint.parse("10.0.0.2:6783")
QUICK_S = [0.1 * 1.5**count for count in range(8)]


class Fixed:
    """Entropy whose fraction is set by the test."""

    value = 0.5

    def bits(self, _count: int) -> int:
        return 0

    def octets(self, count: int) -> bytes:
        return bytes(count)

    def fraction(self) -> float:
        return self.value


def at(time_s: float) -> Now:
    return Now(time_s, 1_000_000 + time_s)


def make(*, discovery: bool = True, entropy: Fixed | None = None) -> Connector:
    return Connector(US, port=6783, discovery=discovery, entropy=entropy or Fixed())


def target(text: str) -> Target:
    host, _, port = text.partition(":")
    return Target(text, Endpoint(Endpoint.parse(f"{host}:1").address, int(port or 0)))


def add(connector: Connector, *texts: str, now: float = 0.0, replace_all: bool = False) -> None:
    connector.connect([target(text) for text in texts], replace_all=replace_all, now=at(now))


def dialled(
    connector: Connector, now: float, connections: Sequence[Connected] = (), peers: Mapping[PeerName, Peer] = PEERS
) -> list[str]:
    return [str(attempt.endpoint) for attempt in connector.attempts(connections, peers, at(now))]


def state(connector: Connector) -> dict[str, TargetState]:
    return {str(each.endpoint): each.state for each in connector.status()}


def mesh(*links: tuple[PeerName, PeerName, str, bool]) -> dict[PeerName, Peer]:
    peers: dict[PeerName, dict[PeerName, PeerConnection]] = {US: {}}
    for name, remote, address, outbound in links:
        peers.setdefault(name, {})[remote] = PeerConnection(address, outbound, established=True)
    return {name: Peer(name, connections=MappingProxyType(each)) for name, each in peers.items()}


def fail_quickly(connector: Connector) -> float:
    """Get the quick tries over with; return when the next one is due."""
    due = 0.0
    for _ in QUICK_S:
        dialled(connector, due)
        connector.failed(ADDRESS, "refused", at(due))
        due = connector.next_deadline() or 0.0
    return due


# --- direct targets ---------------------------------------------------------------------------------------------------


def test_a_new_target_is_due_at_once_and_dialled_once() -> None:
    connector = make()
    add(connector, "10.0.0.2")
    assert connector.attempts((), PEERS, at(0)) == [Attempt(ADDRESS, direct=True)]
    assert connector.attempts((), PEERS, at(0)) == []
    assert state(connector) == {"10.0.0.2:6783": TargetState.ATTEMPTING}
    assert connector.next_deadline() is None


def test_a_target_with_a_port_is_dialled_there() -> None:
    connector = make()
    add(connector, "10.0.0.2:7000")
    assert dialled(connector, 0) == ["10.0.0.2:7000"]


def test_a_named_address_is_tried_quickly_at_first_for_hosts_that_start_together() -> None:
    connector = make()
    add(connector, "10.0.0.2")
    now = 0.0
    for interval_s in [*QUICK_S, *INTERVALS_S[:2]]:
        assert dialled(connector, now) == ["10.0.0.2:6783"]
        connector.failed(ADDRESS, "refused", at(now))
        due = connector.next_deadline()
        assert due == pytest.approx(now + interval_s)
        assert due is not None
        now = due


def test_an_address_learnt_from_others_is_tried_no_faster_than_in_the_reference() -> None:
    connector = make()
    peers = mesh((B, C, "10.0.0.2:6783", True))
    assert dialled(connector, 0, peers=peers) == ["10.0.0.2:6783"]
    connector.failed(ADDRESS, "refused", at(0))
    assert connector.next_deadline() == INTERVALS_S[0]


def test_where_somebody_answers_there_is_no_hurry() -> None:
    connector = make()
    add(connector, "10.0.0.2")
    dialled(connector, 0)
    connector.ended(ADDRESS, "a wrong password", at(0), hopeless=False)
    assert connector.next_deadline() == INTERVALS_S[0]


def test_after_a_good_connection_its_address_is_tried_quickly_again() -> None:
    connector = make()
    add(connector, "10.0.0.2")
    dialled(connector, 0)
    connector.connected(ADDRESS)
    connector.ended(ADDRESS, "EOF", at(61), hopeless=False)
    assert dialled(connector, 61) == ["10.0.0.2:6783"]
    connector.failed(ADDRESS, "refused", at(61))
    assert connector.next_deadline() == pytest.approx(61 + QUICK_S[0])


def test_intervals_grow_by_half_to_six_minutes_as_in_the_reference() -> None:
    connector = make()
    add(connector, "10.0.0.2")
    now = fail_quickly(connector)
    intervals: list[float] = []
    for _ in INTERVALS_S:
        assert dialled(connector, now) == ["10.0.0.2:6783"]
        connector.failed(ADDRESS, "no route", at(now))
        due = connector.next_deadline()
        assert due is not None
        intervals.append(due - now)
        now = due
    assert intervals == pytest.approx(INTERVALS_S, abs=1e-7)


@pytest.mark.parametrize(("fraction", "delay_s"), [(0.0, 1.0), (0.25, 1.5), (0.999999, 2.999998)])
def test_the_time_to_the_next_try_is_uniform_around_the_interval(fraction: float, delay_s: float) -> None:
    entropy = Fixed()
    connector = make(entropy=entropy)
    add(connector, "10.0.0.2")
    dialled(connector, fail_quickly(connector))
    entropy.value = fraction
    connector.failed(ADDRESS, "refused", at(10))
    assert connector.next_deadline() == pytest.approx(10 + delay_s)
    (status,) = connector.status()
    assert (status.state, status.error) == (TargetState.WAITING, "refused")
    assert status.retry_wall_s == pytest.approx(1_000_010 + delay_s)


def test_a_waiting_target_is_dialled_when_its_time_comes_and_not_before() -> None:
    connector = make()
    add(connector, "10.0.0.2")
    dialled(connector, 0)
    connector.failed(ADDRESS, "refused", at(0))
    assert dialled(connector, 0.09) == []
    assert dialled(connector, 0.1) == ["10.0.0.2:6783"]


def test_asking_again_makes_a_waiting_target_due_and_resets_its_interval() -> None:
    connector = make()
    add(connector, "10.0.0.2")
    for now in (0, 100, 200):
        dialled(connector, now)
        connector.failed(ADDRESS, "refused", at(now))
    add(connector, "10.0.0.2", now=201)
    assert dialled(connector, 201) == ["10.0.0.2:6783"]
    connector.failed(ADDRESS, "refused", at(201))
    assert connector.next_deadline() == pytest.approx(201 + QUICK_S[0])


def test_a_connection_that_lasted_a_minute_is_retried_at_once() -> None:
    connector = make()
    add(connector, "10.0.0.2")
    dialled(connector, 0)
    connector.connected(ADDRESS)
    connector.ended(ADDRESS, "EOF", at(60.5), hopeless=False)
    assert dialled(connector, 60.5) == ["10.0.0.2:6783"]


def test_a_connection_that_did_not_last_is_retried_later() -> None:
    connector = make()
    add(connector, "10.0.0.2")
    dialled(connector, 0)
    connector.connected(ADDRESS)
    connector.ended(ADDRESS, "EOF", at(59), hopeless=False)
    assert connector.next_deadline() == 61


def test_who_is_ourself_is_never_dialled_again_until_a_user_says_so() -> None:
    connector = make()
    add(connector, "10.0.0.2")
    dialled(connector, 0)
    connector.ended(ADDRESS, "cannot connect to ourself", at(1), hopeless=True)
    assert connector.next_deadline() is None
    assert dialled(connector, 1e6) == []
    assert connector.status()[0].retry_wall_s is None
    assert (connector.direct_texts(), connector.active_texts()) == (["10.0.0.2"], [])
    add(connector, "10.0.0.2", now=1e6)
    assert connector.active_texts() == ["10.0.0.2"]
    assert dialled(connector, 1e6) == ["10.0.0.2:6783"]


def test_a_target_that_was_forgotten_is_dropped_and_one_spelled_otherwise_is_not() -> None:
    connector = make()
    add(connector, "10.0.0.2", "10.0.0.3")
    connector.forget(["10.0.0.2:6783", "10.0.0.3"])
    assert connector.direct_texts() == ["10.0.0.2"]
    assert dialled(connector, 0) == ["10.0.0.2:6783"]


def test_replacing_empties_the_list_first() -> None:
    connector = make()
    add(connector, "10.0.0.2", "10.0.0.3")
    add(connector, "10.0.0.4", replace_all=True)
    assert connector.direct_texts() == ["10.0.0.4"]
    assert dialled(connector, 0) == ["10.0.0.4:6783"]


def test_a_target_being_attempted_is_left_alone_until_that_is_over() -> None:
    connector = make()
    add(connector, "10.0.0.2")
    dialled(connector, 0)
    connector.forget(["10.0.0.2"])
    dialled(connector, 0)
    assert state(connector) == {"10.0.0.2:6783": TargetState.ATTEMPTING}
    connector.failed(ADDRESS, "refused", at(1))
    dialled(connector, 1)
    assert state(connector) == {}


def test_what_becomes_of_a_forgotten_target_is_of_no_interest() -> None:
    connector = make()
    connector.connected(ADDRESS)
    connector.failed(ADDRESS, "refused", at(1))
    connector.ended(ADDRESS, "EOF", at(1), hopeless=False)
    assert state(connector) == {}


def test_without_a_port_an_inbound_connection_from_the_same_address_will_do() -> None:
    connector = make()
    add(connector, "10.0.0.2", "10.0.0.3:6783")
    connections = [Connected(B, Endpoint.parse("10.0.0.2:40000"), outbound=False)]
    connections.append(Connected(C, Endpoint.parse("10.0.0.3:40000"), outbound=False))
    assert dialled(connector, 0, connections) == ["10.0.0.3:6783"]


def test_a_direct_target_that_is_not_needed_is_suspended_and_comes_back() -> None:
    connector = make()
    add(connector, "10.0.0.2")
    dialled(connector, 0)
    connector.failed(ADDRESS, "Multiple connections", at(0))
    connections = [Connected(B, Endpoint.parse("10.0.0.2:40000"), outbound=False)]
    assert dialled(connector, 10, connections) == []
    assert state(connector) == {"10.0.0.2:6783": TargetState.SUSPENDED}
    assert connector.next_deadline() is None
    assert dialled(connector, 20) == ["10.0.0.2:6783"]


def test_an_address_we_are_connected_to_is_not_dialled() -> None:
    connector = make()
    add(connector, "10.0.0.2:6783")
    assert dialled(connector, 0, [Connected(B, ADDRESS, outbound=True)]) == []
    assert state(connector) == {}


# --- discovery --------------------------------------------------------------------------------------------------------


def test_peers_of_peers_are_dialled_and_not_trusted_to_be_new() -> None:
    connector = make()
    peers = mesh((B, C, "10.0.0.3:6783", True))
    connections = [Connected(B, ADDRESS, outbound=True)]
    assert connector.attempts(connections, peers, at(0)) == [Attempt(Endpoint.parse("10.0.0.3:6783"), direct=False)]


def test_a_discovered_target_is_forgotten_when_nobody_mentions_it_any_more() -> None:
    connector = make()
    dialled(connector, 0, (), mesh((B, C, "10.0.0.3:6783", True)))
    connector.failed(Endpoint.parse("10.0.0.3:6783"), "refused", at(0))
    assert state(connector) == {"10.0.0.3:6783": TargetState.WAITING}
    dialled(connector, 1, (), mesh((B, C, "10.0.0.4:6783", True)))
    assert state(connector) == {"10.0.0.4:6783": TargetState.ATTEMPTING}


def test_ourselves_and_those_we_are_connected_to_are_not_targets() -> None:
    peers = mesh((B, US, "10.0.0.1:6783", True), (B, C, "10.0.0.3:6783", True), (C, B, "10.0.0.2:6783", True))
    assert dialled(make(), 0, [Connected(C, Endpoint.parse("10.0.0.3:4"), outbound=False)], peers) == ["10.0.0.2:6783"]


def test_without_discovery_only_direct_targets_are_dialled() -> None:
    connector = make(discovery=False)
    assert dialled(connector, 0, (), mesh((B, C, "10.0.0.3:6783", True))) == []


def test_only_so_many_addresses_are_learnt_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DISCOVERED_MAX", 3)
    peers = mesh(*((B, PeerName(number), f"10.0.1.{number}:6783", True) for number in range(10, 20)))
    assert len(dialled(make(), 0, (), peers)) == 3


def test_only_so_many_are_dialled_at_a_time_and_the_rest_when_one_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ATTEMPTS_MAX", 2)
    connector = make()
    add(connector, "10.0.0.2", "10.0.0.3", "10.0.0.4")
    assert dialled(connector, 0) == ["10.0.0.2:6783", "10.0.0.3:6783"]
    assert connector.next_deadline() is None
    connector.failed(ADDRESS, "refused", at(1))
    assert dialled(connector, 1) == ["10.0.0.4:6783"]


ENDPOINTS = [Endpoint.parse(f"10.0.0.{number}:6783") for number in (2, 3)]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["connect", "forget", "failed", "connected", "ended", "hopeless", "wait", "inbound"]),
            st.integers(0, 1),
        ),
        max_size=40,
    )
)
@settings(max_examples=300, deadline=None)
def test_whatever_happens_a_target_that_is_due_and_needed_is_being_dialled(events: list[tuple[str, int]]) -> None:
    connector = make()
    now = 0.0
    inbound: list[Connected] = []
    for event, which in events:
        endpoint, text = ENDPOINTS[which], f"10.0.0.{which + 2}"
        known = {each.endpoint: each.state for each in connector.status()}
        if event == "connect":
            add(connector, text, now=now)
        elif event == "forget":
            connector.forget([text])
        elif event == "wait":
            now += 7
        elif event == "inbound":
            inbound = [Connected(PeerName(9), Endpoint(endpoint.address, 40000), outbound=False)] if which else []
        elif known.get(endpoint) is TargetState.ATTEMPTING and event in {"failed", "connected"}:
            (connector.failed(endpoint, "x", at(now)) if event == "failed" else connector.connected(endpoint))
        elif known.get(endpoint) in {TargetState.ATTEMPTING, TargetState.CONNECTED}:
            connector.ended(endpoint, "x", at(now), hopeless=event == "hopeless")
        up = [
            Connected(PeerName(each.endpoint.address), each.endpoint, outbound=True)
            for each in connector.status()
            if each.state is TargetState.CONNECTED
        ]
        connector.attempts(up + inbound, PEERS, at(now))
        assert connector.attempts(up + inbound, PEERS, at(now)) == []
        deadline = connector.next_deadline()
        assert deadline is None or deadline > now
        for each in connector.status():
            if each.state is TargetState.WAITING and each.retry_wall_s is not None:
                assert each.retry_wall_s > at(now).wall_s


def test_two_that_refuse_each_other_do_not_take_turns_without_a_pause() -> None:
    connector = make()
    peers = {US: Peer(US), B: Peer(B, connections={C: PeerConnection("10.0.0.3:6783", True, True)}), C: Peer(C)}
    assert dialled(connector, 0, peers=peers) == ["10.0.0.3:6783"]
    connector.ended(Endpoint.parse("10.0.0.3:6783"), "we disagree", at(0.01), hopeless=False)
    inbound = [Connected(C, Endpoint.parse("10.0.0.3:40000"), outbound=False)]
    assert dialled(connector, 0.02, inbound, peers=peers) == []
    assert dialled(connector, 0.03, peers=peers) == [], "their connection has ended, too, and ours still has to wait"
    due_s = connector.next_deadline()
    assert due_s is not None
    assert due_s > 1
    assert dialled(connector, due_s, peers=peers) == ["10.0.0.3:6783"]
