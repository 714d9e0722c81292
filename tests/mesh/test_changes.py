"""Records told by how they differ from earlier ones."""

from collections.abc import Mapping
from types import MappingProxyType

from hypothesis import given
from hypothesis import strategies as st
from mesh_world import Seeded

from weavenet.identity import PeerName, PeerUID, ShortID
from weavenet.mesh.changes import apply_change, change_since
from weavenet.mesh.compact import Base, Changes, decode_compact, encode_compact
from weavenet.mesh.records import PeerConnection, encode_record, encode_update
from weavenet.mesh.topology import FORMER_RECORDS, Peer, Topology

US, THEM = PeerName(0x7A00_0000_0001), PeerName(0x7A00_0000_0002)
UID = PeerUID(7)
LINKS = st.dictionaries(
    st.integers(THEM + 1, THEM + 30).map(PeerName),
    st.builds(PeerConnection, st.sampled_from(["10.0.0.1:6783", "10.0.0.2:41000"]), st.booleans(), st.booleans()),
    max_size=25,
)


def record(
    version: int, links: Mapping[PeerName, PeerConnection], uid: PeerUID = UID, short_id: ShortID | None = None
) -> Peer:
    return Peer(THEM, uid, version, "host2", short_id, MappingProxyType(dict(links)))


def table(*records: Peer) -> Topology:
    topology = Topology(Peer(US, PeerUID(1), short_id=ShortID(4000)), Seeded(1))
    for each in records:
        topology.merge(encode_update([each])[0])
    return topology


def many(count: int) -> dict[PeerName, PeerConnection]:
    link = PeerConnection("10.0.0.1:6783", outbound=True, established=True)
    return {PeerName(THEM + 1 + index): link for index in range(count)}


@given(LINKS, LINKS, st.sampled_from([None, ShortID(9)]))
def test_a_change_makes_of_the_former_record_the_present_one_to_the_byte(
    before: dict[PeerName, PeerConnection], after: dict[PeerName, PeerConnection], short_id: ShortID | None
) -> None:
    former, present = record(4, before), record(9, after, short_id=short_id)
    change = change_since(table(former, present), Base(THEM, UID, 4))
    if change is None:
        return
    sent = decode_compact(encode_compact(Changes([change])))
    assert isinstance(sent, Changes)
    made = apply_change(table(former), sent.changes[0])
    assert made is not None
    assert made == present
    assert encode_record(made) == encode_record(present)


def test_one_changed_connection_of_many_takes_some_fifty_bytes() -> None:
    before = many(200)
    after = {**before, PeerName(THEM + 500): PeerConnection("10.20.30.40:41000", outbound=False, established=False)}
    change = change_since(table(record(1, before), record(2, after)), Base(THEM, UID, 1))
    assert change is not None
    assert len(encode_compact(Changes([change]))) < 80
    assert len(encode_record(record(2, after))) > 5000


def test_what_has_changed_in_most_connections_is_told_whole() -> None:
    assert change_since(table(record(1, {}), record(2, many(20))), Base(THEM, UID, 1)) is None


def test_of_each_peer_a_few_former_records_are_remembered() -> None:
    topology = table(*(record(version, many(20)) for version in range(1, FORMER_RECORDS + 4)))
    known = [version for version in range(20) if change_since(topology, Base(THEM, UID, version)) is not None]
    assert known == [3, 4, 5, 6]


def test_a_change_is_of_one_life_only() -> None:
    reborn = PeerUID(8)
    topology = table(record(1, many(20)), record(2, many(20), reborn))
    assert change_since(topology, Base(THEM, UID, 1)) is None
    assert change_since(topology, Base(THEM, reborn, 1)) is None


def test_a_change_of_another_record_than_ours_is_not_applied() -> None:
    change = change_since(table(record(1, many(20)), record(2, many(19))), Base(THEM, UID, 1))
    assert change is not None
    for known in (record(0, many(20)), record(2, many(20)), record(1, many(20), PeerUID(8))):
        assert apply_change(table(known), change) is None
    assert apply_change(table(), change) is None
