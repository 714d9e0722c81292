"""What a restarted allocator makes of its disk."""

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from weavenet.address import Address, Cidr, Range, parse_address, parse_subnet
from weavenet.effects import (
    Granted,
    Outcome,
    Persist,
)
from weavenet.errors import StoreError
from weavenet.identity import PeerName
from weavenet.ipam import wire
from weavenet.ipam.allocator import StoredState
from weavenet.ipam.modes import Consensus, InitMode, Observer, Seed
from weavenet.ipam.ring import Entry, RingState

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


def test_a_restart_restores_ring_space_and_addresses_and_gives_the_same_again(make_host: MakeHost) -> None:
    before = make_host()
    before.allocate("c1")
    before.claim("weave:expose", "10.0.0.3/28")
    before.claim("c2", "192.168.1.1/24")
    before.hear_unicast(wire.SpaceRequest(span(4, 8)))
    after = make_host(stored=before.stored, uid=999)
    assert after.notes == ["Found persisted IPAM data, ignoring supplied IPAM seed"]
    assert not any(isinstance(output, Persist) for output in after.outputs)
    assert after.snapshot() == before.snapshot()
    assert addresses(after.allocate("c1")) == ["10.0.0.1/28"]
    assert addresses(after.allocate("c3")) == ["10.0.0.2/28"]
    for container in range(4):
        after.allocate(f"d{container}")
    held = [cidr.address - BASE for cidrs in after.allocator.owned().values() for cidr in cidrs]
    assert sorted(offset for offset in held if 0 <= offset < 16) == [1, 2, 3, 4, 5], "what was given away stays away"


def test_data_of_another_peer_are_deleted_row_by_row(make_host: MakeHost) -> None:
    before = make_host()
    before.allocate("c1")
    other = make_host(Consensus(3), stored=before.stored, name=P3)
    assert other.notes[0] == "Deleting persisted data for peername 00:00:00:00:00:01"
    assert other.rows == {}
    assert wire.decode_stored_name(other.values["peername"]) == P3
    assert not wire.decode_stored_ring(other.values["ring"]).entries


def test_data_of_another_range_are_deleted(make_host: MakeHost) -> None:
    before = make_host()
    before.allocate("c1")
    values = dict(before.values)
    elsewhere = RingState(Address(0), Address(256), P1, [Entry(Address(0), P1, 0, 256)], [P1])
    values["ring"] = wire.encode_stored_ring(elsewhere)
    after = make_host(Consensus(3), StoredState(values, before.stored.allocations))
    assert after.notes == [
        "Deleting persisted data for IPAM range 0.0.0.0/24; our range is 10.0.0.0/28",
        "Initialising via deferred consensus",
    ]
    assert after.rows == {}


@pytest.mark.parametrize(
    ("mode", "texts"),
    [
        pytest.param(Seed((P2, P1)), ["Initialising with supplied IPAM seed"], id="seed"),
        pytest.param(Consensus(3), ["Initialising via deferred consensus"], id="consensus"),
        pytest.param(Observer(), ["Initialising as observer - awaiting IPAM data from another peer"], id="observer"),
    ],
)
def test_a_fresh_start_is_stored_and_told(make_host: MakeHost, mode: InitMode, texts: list[str]) -> None:
    host = make_host(mode)
    assert host.notes == ["No valid persisted data", *texts]
    assert sorted(host.values) == ["peername", "ring"]
    assert host.allocator.can_allocate()


@pytest.mark.parametrize("key", ["peername", "ring"])
def test_data_that_cannot_be_read_end_the_start(make_host: MakeHost, key: str) -> None:
    before = make_host()
    broken = StoredState({**before.values, key: b"\x07broken"}, ())
    with pytest.raises(StoreError, match=r"cannot be read: .*; restore the database"):
        make_host(stored=broken)


def test_a_stored_ring_that_is_none_ends_the_start(make_host: MakeHost) -> None:
    before = make_host()
    upside_down = replace(before.allocator.ring.state(), entries=before.allocator.ring.entries[::-1])
    values = {**before.values, "ring": wire.encode_stored_ring(upside_down)}
    with pytest.raises(StoreError, match="Ring not sorted"):
        make_host(stored=StoredState(values, ()))


def test_addresses_we_may_no_longer_give_are_dropped_at_start(make_host: MakeHost) -> None:
    before = make_host()
    before.allocate("c1")
    before.claim("c2", "192.168.1.1/24")
    before.store(before.allocator.shut_down(before.now))
    after = make_host(stored=before.stored)
    assert "Dropping 10.0.0.1/28 of c1: it is no longer ours to give" in after.notes
    assert sorted(after.allocator.owned()) == ["c2"]
    assert list(after.rows) == [("c2", parse_address("192.168.1.1"))]


def test_an_unmanaged_address_outlives_a_restart_before_there_is_a_ring(make_host: MakeHost) -> None:
    before = make_host(Observer())
    before.claim("c1", "192.168.1.1/24")
    after = make_host(Observer(), stored=before.stored)
    assert after.allocator.owned() == {"c1": (Cidr.parse("192.168.1.1/24"),)}
