"""Hashes of a topology."""

from hypothesis import given
from hypothesis import strategies as st
from mesh_world import Seeded

from weavenet.identity import PeerName, PeerUID, ShortID
from weavenet.mesh.compact import BUCKETS_MAX
from weavenet.mesh.digests import RECORDS_PER_BUCKET, Digester, bucket_count, bucket_of, split_hashes
from weavenet.mesh.records import encode_update
from weavenet.mesh.topology import Peer, Topology

US = PeerName(0x7A00_0000_0001)
NAMES = st.integers(min_value=US + 1, max_value=US + 40).map(PeerName)
RECORDS = st.builds(
    Peer,
    name=NAMES,
    uid=st.integers(1, 2).map(PeerUID),
    version=st.integers(0, 3),
    short_id=st.sampled_from([None, ShortID(5)]),
)


def table(records: list[Peer]) -> Topology:
    topology = Topology(Peer(US, PeerUID(1), short_id=ShortID(4000)), Seeded(1))
    for update in encode_update(records):
        topology.merge(update)
    return topology


def versions(topology: Topology) -> list[tuple[int, int, int, bool]]:
    return [(each.name, each.uid, each.version, each.short_id is not None) for each in topology.values()]


@given(st.lists(RECORDS, max_size=30), st.lists(RECORDS, max_size=30))
def test_hashes_are_equal_where_versions_are_and_nowhere_else(ours: list[Peer], theirs: list[Peer]) -> None:
    a, b = table(ours), table(theirs)
    one, other = Digester(a), Digester(b)
    assert (one.whole() == other.whole()) == (versions(a) == versions(b))
    for count in (2, 16):
        for number in range(count):
            same = one.bucket(number, count) == other.bucket(number, count)
            assert (one.hashes(count)[number] == other.hashes(count)[number]) == same


@given(st.lists(RECORDS, max_size=30), RECORDS)
def test_hashes_follow_the_table(records: list[Peer], later: Peer) -> None:
    topology = table(records)
    digester = Digester(topology)
    before = digester.whole(), versions(topology)
    topology.merge(encode_update([later])[0])
    assert (digester.whole() == before[0]) == (versions(topology) == before[1])
    assert digester.whole() == Digester(topology).whole()


@given(st.lists(RECORDS, max_size=30), st.sampled_from([1, 2, 64, BUCKETS_MAX]))
def test_every_record_is_in_one_bucket(records: list[Peer], count: int) -> None:
    topology = table(records)
    digester = Digester(topology)
    found = [each.name for number in range(count) for each in digester.bucket(number, count)]
    assert sorted(found) == list(topology)
    assert all(0 <= bucket_of(name, count) < count for name in topology)


def test_names_in_sequence_are_spread_over_the_buckets() -> None:
    numbers = [bucket_of(PeerName(US + index), 64) for index in range(64 * RECORDS_PER_BUCKET)]
    counts = [numbers.count(number) for number in range(64)]
    assert max(counts) <= 3 * RECORDS_PER_BUCKET
    assert min(counts) >= 1


def test_the_number_of_buckets_grows_with_the_table_up_to_its_limit() -> None:
    assert [bucket_count(records) for records in (0, 1, 8, 15, 16, 1000, 20_000)] == [1, 1, 1, 1, 2, 64, BUCKETS_MAX]


def test_hashes_are_taken_apart_as_they_were_joined() -> None:
    hashes = [bytes([number]) * 8 for number in range(4)]
    assert split_hashes(b"".join(hashes)) == hashes
