"""No ring is proposed before it is known how many make a majority."""

from weavenet.effects import Granted
from weavenet.ipam.modes import Uncounted


def test_a_peer_that_does_not_know_the_number_of_peers_waits_for_it(make_host) -> None:
    host = make_host(Uncounted())
    assert host.allocate("a") is None
    host.tick()
    assert host.allocator.ring.is_empty
    assert host.allocator.encode_state(0.0) == make_host(Uncounted()).allocator.encode_state(0.0), "nothing is proposed"

    host.store(host.allocator.count_peers(1, host.now))

    assert isinstance(host.allocate("a"), Granted)


def test_a_count_is_kept_until_a_ring_is_needed(make_host) -> None:
    host = make_host(Uncounted())
    host.store(host.allocator.count_peers(3, host.now))
    assert host.allocate("a") is None
    status = host.allocator.status()
    assert status.election is not None
    assert status.election.quorum == 2


def test_a_count_that_comes_after_the_ring_changes_nothing(make_host) -> None:
    host = make_host()
    before = host.snapshot()
    host.store(host.allocator.count_peers(5, host.now))
    assert host.snapshot() == before
