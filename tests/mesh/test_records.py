"""Records on the wire: that those kept from an earlier update are what reading all of it would give."""

from types import MappingProxyType

import pytest

from weavenet.errors import CodecError, GobError
from weavenet.identity import PeerName, PeerUID, ShortID
from weavenet.mesh.records import (
    _DEFINITIONS,
    Peer,
    PeerConnection,
    _decode_stream,
    decode_update,
    encode_record,
    encode_update,
)

A, B, C = PeerName(1), PeerName(2), PeerName(3)
LINKS = MappingProxyType({B: PeerConnection("10.0.0.2:6783", outbound=True, established=True)})
PEERS = [
    Peer(A, PeerUID(7), 3, "a", ShortID(5), LINKS),
    Peer(B, PeerUID(8), 1, "b", None),
    Peer(
        C, PeerUID(9), 2, "c", ShortID(6), MappingProxyType({A: PeerConnection("", outbound=False, established=False)})
    ),
]


def test_an_update_of_ours_reads_the_same_with_and_without_memory():
    [update] = encode_update(PEERS)
    assert decode_update(update) == PEERS == _decode_stream(update) == decode_update(update)


def test_a_record_heard_twice_is_one_object():
    [first], [second] = encode_update(PEERS), encode_update(PEERS[:1])
    assert decode_update(first)[0] is decode_update(second)[0]


def test_a_changed_record_is_read_anew():
    [before] = encode_update([Peer(A, PeerUID(7), 3)])
    [after] = encode_update([Peer(A, PeerUID(7), 4)])
    assert [peer.version for peer in decode_update(before) + decode_update(after)] == [3, 4]


def test_definitions_between_the_records_are_read_as_part_of_the_stream():
    records = [encode_record(peer) for peer in PEERS]
    # A type that is never used, as of a newer Weave: [-68, {SliceT {{"", 68}, of uint}}].
    definition = bytes([12, 0xFF, 0x87, 2, 1, 2, 0xFF, 0x88, 0, 1, 6, 0, 0])
    data = _DEFINITIONS + records[0] + definition + records[1]
    assert decode_update(data) == _decode_stream(data) == PEERS[:2]
    with pytest.raises(GobError, match="duplicate"):
        decode_update(_DEFINITIONS + records[0] + _DEFINITIONS + records[1])


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_an_update_cut_short_is_an_error_also_if_its_records_are_known(cut):
    [update] = encode_update(PEERS)
    decode_update(update)
    with pytest.raises(CodecError):
        decode_update(update[:-cut])


def test_half_a_record_is_an_error():
    [update] = encode_update(PEERS)
    with pytest.raises(CodecError):
        decode_update(update + encode_one_summary())


def encode_one_summary():
    blank = encode_record(Peer(A))
    # The summary is the first of the two messages; its length is its first byte.
    return blank[: 1 + blank[0]]


def test_a_record_without_a_name_is_left_out_on_both_ways():
    [update] = encode_update([Peer(PeerName(0)), PEERS[0]])
    assert decode_update(update) == _decode_stream(update) == PEERS[:1]
