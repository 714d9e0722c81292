from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from weavenet.address import Address, Endpoint
from weavenet.identity import PeerName, ShortID
from weavenet.overlay.forwarding import BY_FAST_SLEEVE, BY_SLEEVE, Forwarding, Link, compute_forwarding

US, B, C, D = (PeerName(n) for n in (1, 2, 3, 4))


class Table:
    """Short IDs as a dict; the principal is the holder with the lowest name, as everywhere."""

    def __init__(self, ids: dict[PeerName, int]) -> None:
        self._ids = {name: ShortID(number) for name, number in ids.items()}

    def ours(self) -> ShortID:
        return self._ids[US]

    def of(self, name: PeerName) -> ShortID | None:
        return self._ids.get(name)

    def principal(self, short_id: ShortID) -> PeerName | None:
        return min((name for name, number in self._ids.items() if number == short_id), default=None)


def link(last_octet: int) -> Link:
    remote = Endpoint(Address(0xC000_0200 + last_octet), 6784)
    return Link(remote=remote, overlay="fastdp", established=True, mtu=1376)


IDS = Table({US: 0x001, B: 0x002, C: 0x003, D: 0x004})
ADDRESS_OF_B, ADDRESS_OF_C = link(2).remote.address, link(3).remote.address


def test_in_a_full_mesh_everyone_is_one_hop_away_and_only_we_flood() -> None:
    forwarding = compute_forwarding(
        short_ids=IDS,
        unicast={US: PeerName(0), B: B, C: C},
        floods={US: (B, C), B: (), C: ()},
        links={B: link(2), C: link(3)},
    )

    assert forwarding == Forwarding(
        ours=ShortID(1),
        peers={ShortID(2): ADDRESS_OF_B, ShortID(3): ADDRESS_OF_C},
        floods={
            ShortID(1): ((ShortID(2), ADDRESS_OF_B), (ShortID(3), ADDRESS_OF_C)),
            ShortID(2): (),
            ShortID(3): (),
        },
    )


def test_a_peer_beyond_another_is_reached_at_the_address_of_the_next_hop() -> None:
    forwarding = compute_forwarding(
        short_ids=IDS,
        unicast={US: PeerName(0), B: B, D: B},
        floods={US: (B,), D: ()},
        links={B: link(2)},
    )

    assert forwarding.peers == {ShortID(2): ADDRESS_OF_B, ShortID(4): ADDRESS_OF_B}


def test_a_peer_in_the_middle_of_a_line_passes_broadcasts_on() -> None:
    forwarding = compute_forwarding(
        short_ids=IDS,
        unicast={US: PeerName(0), B: B, C: C},
        floods={US: (B, C), B: (C,), C: (B,)},
        links={B: link(2), C: link(3)},
    )

    assert forwarding.floods[ShortID(2)] == ((ShortID(3), ADDRESS_OF_C),)
    assert forwarding.floods[ShortID(3)] == ((ShortID(2), ADDRESS_OF_B),)


def test_a_link_that_is_not_established_carries_nothing() -> None:
    forwarding = compute_forwarding(
        short_ids=IDS,
        unicast={US: PeerName(0), B: B, D: B},
        floods={US: (B,)},
        links={B: replace(link(2), established=False)},
    )

    assert forwarding.peers == {}
    assert forwarding.floods == {IDS.of(US): ()}


def test_what_a_link_by_sleeve_leads_to_has_no_outer_address() -> None:
    forwarding = compute_forwarding(
        short_ids=IDS,
        unicast={US: PeerName(0), B: B, C: C, D: C},
        floods={US: (B, C)},
        links={B: link(2), C: replace(link(3), overlay="sleeve")},
    )

    assert forwarding.peers == {
        IDS.of(B): link(2).remote.address,
        IDS.of(C): BY_SLEEVE,
        IDS.of(D): BY_SLEEVE,
    }
    assert forwarding.floods == {IDS.of(US): ((IDS.of(B), link(2).remote.address), (IDS.of(C), BY_SLEEVE))}


def test_by_sleeve_in_the_fast_format_is_another_way() -> None:
    forwarding = compute_forwarding(
        short_ids=IDS,
        unicast={US: PeerName(0), B: B, C: C},
        floods={US: (B, C)},
        links={B: replace(link(2), overlay="sleeve", is_fast=True), C: replace(link(3), overlay="sleeve")},
    )

    assert forwarding.peers == {IDS.of(B): BY_FAST_SLEEVE, IDS.of(C): BY_SLEEVE}
    assert forwarding.floods == {IDS.of(US): ((IDS.of(B), BY_FAST_SLEEVE), (IDS.of(C), BY_SLEEVE))}


def test_a_peer_without_a_short_id_cannot_be_sent_to_but_can_relay() -> None:
    forwarding = compute_forwarding(
        short_ids=Table({US: 1, D: 4}),
        unicast={US: PeerName(0), B: B, D: B},
        floods={US: (B,), B: ()},
        links={B: link(2)},
    )

    assert forwarding.peers == {ShortID(4): ADDRESS_OF_B}
    assert forwarding.floods == {ShortID(1): ()}


def test_of_two_peers_with_one_short_id_only_the_lower_name_is_known() -> None:
    forwarding = compute_forwarding(
        short_ids=Table({US: 1, B: 7, C: 7}),
        unicast={US: PeerName(0), B: B, C: C},
        floods={US: (B, C), B: (), C: ()},
        links={B: link(2), C: link(3)},
    )

    assert forwarding.peers == {ShortID(7): ADDRESS_OF_B}
    assert forwarding.floods == {ShortID(1): ((ShortID(7), ADDRESS_OF_B),), ShortID(7): ()}


def test_a_peer_with_our_short_id_never_becomes_a_destination() -> None:
    forwarding = compute_forwarding(
        short_ids=Table({US: 1, B: 1}),
        unicast={US: PeerName(0), B: B},
        floods={US: (B,), B: ()},
        links={B: link(2)},
    )

    assert forwarding == Forwarding(ours=ShortID(1), peers={}, floods={ShortID(1): ()})


names = st.integers(1, 8).map(PeerName)


@given(
    st.dictionaries(names, st.integers(0, 5)),
    st.dictionaries(names, names),
    st.dictionaries(names, st.frozensets(names)),
    st.sets(names),
)
def test_every_address_is_that_of_an_established_link_and_every_row_names_a_principal(
    ids: dict[PeerName, int],
    unicast: dict[PeerName, PeerName],
    floods: dict[PeerName, frozenset[PeerName]],
    linked: set[PeerName],
) -> None:
    table = Table({**ids, US: 9})
    links = {name: link(name) for name in linked}

    forwarding = compute_forwarding(short_ids=table, unicast=unicast, floods=floods, links=links)

    addresses = {one.remote.address: name for name, one in links.items()}
    for short_id, address in forwarding.peers.items():
        destination = table.principal(short_id)
        assert destination is not None
        assert addresses[address] == unicast[destination]
    for origin_id, hops in forwarding.floods.items():
        origin = table.principal(origin_id)
        assert origin is not None
        for hop_id, address in hops:
            assert addresses[address] == table.principal(hop_id)
            assert addresses[address] in floods[origin]
