"""Rows of peers that went away stay for a while."""

from collections.abc import Mapping

from weavenet.address import Address
from weavenet.identity import ShortID
from weavenet.overlay.forwarding import Forwarding
from weavenet.overlay.lingering import DETOUR_S, LINGER_S, LINGERING_HOPS_MAX, Lingering

OURS, ONE, TWO, NEW = ShortID(1), ShortID(11), ShortID(12), ShortID(99)
AT_ONE, AT_TWO = Address(0x0A630001), Address(0x0A630002)


def tables(peers: Mapping[ShortID, Address], floods: Mapping[ShortID, tuple] | None = None, ours=OURS) -> Forwarding:
    """Return tables; without `floods` those of a full mesh."""
    full = {ours: tuple(peers.items()), **dict.fromkeys(peers, ())}
    return Forwarding(ours=ours, peers=peers, floods=full if floods is None else floods)


BOTH = tables({ONE: AT_ONE, TWO: AT_TWO})
ALONE = tables({})


def test_what_the_mesh_wants_and_the_tables_hold_is_unchanged() -> None:
    lingering = Lingering()
    assert lingering.keep(BOTH, BOTH, 0.0) == BOTH
    assert lingering.next_deadline() is None


def test_a_peer_that_is_gone_is_still_sent_to_and_flooded_to() -> None:
    lingering = Lingering()
    kept = lingering.keep(BOTH, tables({ONE: AT_ONE}), 5.0)
    assert kept == BOTH
    assert lingering.keep(kept, tables({ONE: AT_ONE}), 6.0) == BOTH
    assert lingering.next_deadline() == 5.0 + LINGER_S


def test_an_agent_that_knows_nobody_yet_keeps_all_that_it_finds() -> None:
    assert Lingering().keep(BOTH, ALONE, 0.0) == BOTH


def test_nothing_lingers_for_ever() -> None:
    lingering = Lingering()
    kept = lingering.keep(BOTH, ALONE, 0.0)
    assert lingering.keep(kept, ALONE, LINGER_S - 0.1) == BOTH
    assert lingering.keep(kept, ALONE, LINGER_S) == ALONE
    assert lingering.next_deadline() is None


def test_a_peer_that_came_back_and_goes_again_lingers_for_the_whole_time_again() -> None:
    lingering = Lingering()
    lingering.keep(BOTH, ALONE, 0.0)
    lingering.keep(BOTH, BOTH, 100.0)
    assert lingering.next_deadline() is None
    lingering.keep(BOTH, ALONE, 200.0)
    assert lingering.next_deadline() == 200.0 + LINGER_S


BY_TWO = tables({ONE: AT_TWO, TWO: AT_TWO}, {OURS: ((TWO, AT_TWO),), ONE: (), TWO: ()})


def test_a_neighbour_is_sent_to_directly_until_the_mesh_has_insisted_on_another_way() -> None:
    lingering = Lingering()
    kept = lingering.keep(BOTH, BY_TWO, 0.0)
    assert kept.peers == BOTH.peers
    assert set(kept.floods[OURS]) == set(BOTH.floods[OURS])
    assert lingering.next_deadline() == DETOUR_S
    assert lingering.keep(kept, BY_TWO, DETOUR_S) == BY_TWO
    assert lingering.next_deadline() is None


def test_a_way_that_the_mesh_wanted_for_a_moment_only_counts_for_nothing() -> None:
    lingering = Lingering()
    kept = lingering.keep(BOTH, BY_TWO, 0.0)
    kept = lingering.keep(kept, tables({TWO: AT_TWO}), 2.0)
    assert kept.peers == BOTH.peers
    assert lingering.keep(kept, BY_TWO, 2.0 + DETOUR_S).peers == BOTH.peers


def test_a_peer_that_was_no_neighbour_goes_the_way_that_the_mesh_wants() -> None:
    by_one = tables({ONE: AT_ONE, TWO: AT_ONE}, {OURS: ((ONE, AT_ONE),), ONE: (), TWO: ()})
    assert Lingering().keep(by_one, BOTH, 0.0) == BOTH


def test_a_neighbour_that_is_back_under_another_short_id_has_lost_the_former_one() -> None:
    renamed = tables({NEW: AT_ONE, TWO: AT_TWO})
    assert Lingering().keep(BOTH, renamed, 0.0) == renamed


def test_whoever_is_behind_a_neighbour_lingers_while_the_neighbour_is_there() -> None:
    line = tables({ONE: AT_ONE, TWO: AT_ONE}, {OURS: ((ONE, AT_ONE),), ONE: (), TWO: ()})
    assert Lingering().keep(line, tables({ONE: AT_ONE}), 0.0) == line


def test_a_relay_goes_on_flooding_for_others_to_a_peer_that_is_gone() -> None:
    middle = tables({ONE: AT_ONE, TWO: AT_TWO}, {OURS: BOTH.floods[OURS], ONE: ((TWO, AT_TWO),), TWO: ((ONE, AT_ONE),)})
    only_one = tables({ONE: AT_ONE})
    assert Lingering().keep(middle, only_one, 0.0) == middle


def test_the_row_of_a_gone_origin_loses_hops_that_nobody_knows() -> None:
    held = tables({ONE: AT_ONE}, {OURS: ((ONE, AT_ONE),), ONE: ((TWO, AT_TWO),)})
    assert Lingering().keep(held, ALONE, 0.0).floods[ONE] == ()


def test_our_own_row_lingers_when_our_short_id_changes() -> None:
    assert Lingering().keep(BOTH, tables({}, ours=NEW), 0.0) == Forwarding(
        NEW, BOTH.peers, {NEW: BOTH.floods[OURS], ONE: (), TWO: ()}
    )


def test_our_own_new_short_id_is_never_a_peer_that_lingers() -> None:
    assert ONE not in Lingering().keep(BOTH, tables({}, ours=ONE), 0.0).peers


def test_a_row_never_outgrows_the_data_plane() -> None:
    many = {ShortID(number): Address(number) for number in range(100, 100 + LINGERING_HOPS_MAX + 50)}
    kept = Lingering().keep(tables(many), tables({ONE: AT_ONE}), 0.0)
    assert len(kept.floods[OURS]) == 1 + LINGERING_HOPS_MAX
