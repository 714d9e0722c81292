"""The hash by which peers find out, without telling it, whether they have the same to tell."""

from typing import Any

from weavenet.identity import PeerName
from weavenet.ipam import wire
from weavenet.ipam.modes import Observer

P1, P2, P3 = PeerName(1), PeerName(2), PeerName(3)
MakeHost = Any


def told(host: Any) -> wire.GossipState:
    return wire.decode_state(host.allocator.encode_state(0.0))


def test_without_a_ring_there_is_no_hash(make_host: MakeHost) -> None:
    assert make_host(Observer()).allocator.digest() is None


def test_peers_with_one_ring_have_one_hash_whatever_else_they_differ_in(make_host: MakeHost) -> None:
    one, other = make_host(), make_host(name=P2, uid=102)
    assert one.allocator.digest() == other.allocator.digest()
    assert told(one).nicknames != told(other).nicknames


def test_what_merging_would_change_changes_the_hash_and_hearing_it_makes_it_equal(make_host: MakeHost) -> None:
    one, other = make_host(), make_host(name=P2, uid=102)
    before = one.allocator.digest()
    one.allocate("a")
    assert one.allocator.digest() != before
    other.hear(told(one), source=P1)
    assert one.allocator.digest() == other.allocator.digest()


def test_free_counts_that_no_merge_would_repair_are_not_in_the_hash(make_host: MakeHost) -> None:
    one, other = make_host(name=P3, uid=103), make_host(name=P3, uid=103)
    one.hear(one.ring_with((0, P1, 5, 8), (8, P2, 5, 8)))
    other.hear(other.ring_with((0, P1, 5, 7), (8, P2, 5, 8)))
    assert one.allocator.ring.entries != other.allocator.ring.entries
    assert one.allocator.digest() == other.allocator.digest()
    other.hear(told(one))
    assert one.allocator.ring.entries != other.allocator.ring.entries


def test_an_owner_that_is_gone_keeps_the_name_that_the_mesh_had_for_it(make_host: MakeHost) -> None:
    host = make_host()
    host.mesh.known.remove(P2)
    host.store(host.allocator.peers_removed((P2, P3), ("host2", "host3"), host.now))
    assert told(host).nicknames == {P1: "host1", P2: "host2"}


def test_who_knows_what_a_lost_owner_was_called_and_who_does_not_find_out_that_they_differ(make_host: MakeHost) -> None:
    one, other = make_host(), make_host(name=P3, uid=103)
    for host in (one, other):
        host.mesh.known.remove(P2)
    one.store(one.allocator.peers_removed((P2,), ("host2",), one.now))
    assert one.allocator.digest() != other.allocator.digest()
    other.hear(told(one), source=P1)
    assert one.allocator.digest() == other.allocator.digest()


def test_what_the_mesh_calls_an_owner_is_told_with_the_ring(make_host: MakeHost) -> None:
    assert told(make_host()).nicknames == {P1: "host1", P2: "mesh-host2"}
