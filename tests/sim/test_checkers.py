"""The ledger against histories that must not be, and those that may."""

import pytest

from weavenet.address import Address, Cidr, Range, parse_address
from weavenet.effects import PutAllocation
from weavenet.identity import PeerName
from weavenet.sim.checkers import InvariantError, Ledger
from weavenet.sim.host import Host

CIDR = Cidr.parse("10.32.0.5/24")
OTHER = Cidr.parse("10.32.0.6/24")


def a_host(number, *held):
    host = Host(Address(number), PeerName(number), ())
    host.disk.apply([PutAllocation(ident, cidr, is_container=True) for ident, cidr in held])
    return host


def test_an_address_of_two_containers_is_noticed():
    ledger = Ledger()
    ledger.grant(a_host(1, ("a", CIDR)), "a", CIDR)
    with pytest.raises(InvariantError, match=r"10\.32\.0\.5 was given to b on .* and belongs to a on"):
        ledger.grant(a_host(2, ("b", CIDR)), "b", CIDR)


def test_an_address_that_is_not_on_disk_is_noticed():
    with pytest.raises(InvariantError, match="before it was on disk"):
        Ledger().grant(a_host(1), "a", CIDR)


def test_a_container_that_asks_again_and_gets_another_address_is_noticed():
    ledger = Ledger()
    host = a_host(1, ("a", CIDR), ("a", OTHER))
    ledger.grant(host, "a", CIDR)
    ledger.grant(host, "a", CIDR)
    with pytest.raises(InvariantError, match=r"holds 10\.32\.0\.5 already"):
        ledger.grant(host, "a", OTHER)


def test_an_address_may_be_given_anew_when_its_container_or_its_machine_is_gone():
    ledger = Ledger()
    ledger.grant(a_host(1, ("a", CIDR)), "a", CIDR)
    ledger.forget(PeerName(1), "a")
    ledger.grant(a_host(2, ("b", CIDR)), "b", CIDR)
    ledger.forget_host(PeerName(2))
    ledger.grant(a_host(3, ("c", CIDR)), "c", CIDR)


ENDED = "->[10.77.0.1:6783|7a:00:00:00:00:01(host1)]: connection shutting down due to error"


@pytest.mark.parametrize(
    "end",
    [
        "connection added (new peer)",
        f"{ENDED}: connection reset by peer",
        f"{ENDED}: Multiple connections to 7a:00:00:00:00:01(host1) added to 7a:00:00:00:00:02(host2)",
        f"{ENDED} during handshake: the peer uses key initial, and was greeted with key new",
    ],
)
def test_what_failures_and_operators_bring_about_may_end_a_connection(end):
    Ledger().check_ending(PeerName(2), end)


@pytest.mark.parametrize(
    "end",
    [
        f"{ENDED}: Unable to decrypt TCP msg",
        f"{ENDED}: gob: what no peer says",
        f"{ENDED}: Received update for IP range I own at 10.32.0.0 v1: incoming message says owner 2 v2",
        f"{ENDED} during handshake: Unable to decrypt TCP msg",
    ],
)
def test_a_connection_that_ends_as_if_a_peer_lied_is_noticed(end):
    with pytest.raises(InvariantError, match="00:00:00:00:00:02 ended a connection"):
        Ledger().check_ending(PeerName(2), end)


def test_rings_contradict_each_other_only_after_an_operator_has_made_them():
    ledger = Ledger()
    ledger.dispute([Range(Address(parse_address("10.32.0.4")), Address(parse_address("10.32.0.6")))])
    ledger.check_ending(PeerName(2), f"{ENDED}: Inconsistent entries for 10.32.0.4: owned by a, message says b")


def test_an_address_that_an_operator_has_given_to_two_peers_is_nobodys_promise_and_its_neighbours_are():
    ledger = Ledger()
    ledger.grant(a_host(1, ("a", CIDR)), "a", CIDR)
    ledger.grant(a_host(1, ("b", OTHER)), "b", OTHER)
    ledger.dispute([Range(Address(parse_address("10.32.0.4")), Address(parse_address("10.32.0.6")))])
    ledger.grant(a_host(2, ("c", CIDR)), "c", CIDR)
    with pytest.raises(InvariantError):
        ledger.grant(a_host(2, ("c", OTHER)), "c", OTHER)
