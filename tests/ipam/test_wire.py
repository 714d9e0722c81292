"""IPAM's messages and stored values against real ones, cut short, and with bytes changed."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weavenet.address import Address, Range, parse_address
from weavenet.errors import CodecError, GossipError
from weavenet.identity import PeerName, PeerUID
from weavenet.ipam import wire
from weavenet.ipam.paxos import (
    NO_PROPOSAL,
    NO_VALUE,
    AcceptedValue,
    NodeClaims,
    NodeID,
    ProposalID,
)
from weavenet.ipam.ring import Entry, RingState

VECTORS = Path(__file__).parent.parent / "vectors"
REAL = {
    vector["name"]: bytes.fromhex(vector["hex"])
    for vector in json.loads((VECTORS / "gob_weave_types.json").read_text())["vectors"]
}

NODE = NodeID(PeerName(1), PeerUID(77))
FIRST, SECOND = ProposalID(1, NODE), ProposalID(2, NODE)
RING = RingState(
    parse_address("10.32.0.0"),
    parse_address("10.48.0.0"),
    PeerName(1),
    [
        Entry(Address(169869312), PeerName(1), 3, 349520),
        Entry(Address(170218837), PeerName(2), 0, 349526),
        Entry(Address(170568363), PeerName(3), 1, 0),
    ],
    [PeerName(1), PeerName(2), PeerName(3)],
)


def state(paxos: dict | None = None, ring: RingState | None = None) -> wire.GossipState:
    return wire.GossipState(1700000000, {PeerName(1): "host1"}, paxos, ring)


STATES = {
    "ipam_state_elector_no_ring": state(paxos={}),
    "ipam_state_observer_no_ring": state(),
    "ipam_state_paxos_promise": state(paxos={NODE: NodeClaims(FIRST, NO_PROPOSAL, AcceptedValue([], NO_PROPOSAL))}),
    "ipam_state_paxos_accepted": state(
        paxos={NODE: NodeClaims(SECOND, SECOND, AcceptedValue([PeerName(1), PeerName(2)], SECOND))}
    ),
    "ipam_state_ring": state(ring=RING),
}
UNICASTS = {
    "space request": wire.SpaceRequest(Range(Address(5), Address(9))),
    "ring update": wire.RingUpdate(STATES["ipam_state_ring"]),
    "space request denied": wire.SpaceRequestDenied(Range(Address(0), Address(0xFFFF_FFFF))),
}


@pytest.mark.parametrize("name", STATES)
def test_a_real_state_is_read_and_ours_reads_the_same(name: str) -> None:
    assert wire.decode_state(REAL[name]) == STATES[name]
    assert wire.decode_state(wire.encode_state(STATES[name])) == STATES[name]


def test_every_type_is_defined_under_gos_name_whether_it_is_used_or_not() -> None:
    # Go leaves the names of NodeID, NodeClaims and entry out, for reasons of its own.
    names = [b"gossipState", b"map[mesh.PeerName]string", b"GossipState", b"ProposalID", b"AcceptedValue", b"Value"]
    names += [b"Ring", b"entries", b"[]mesh.PeerName"]
    for name in names:
        defined = b"\x01" + bytes([len(name)]) + name + b"\x01\xff"  # name, and a type number of two bytes
        assert defined in REAL["ipam_state_observer_no_ring"]
        assert defined in wire.encode_state(STATES["ipam_state_observer_no_ring"])


def test_an_observer_and_an_elector_without_claims_are_told_apart() -> None:
    elector, observer = wire.encode_state(state(paxos={})), wire.encode_state(state())
    assert elector != observer
    assert wire.decode_state(elector).paxos == {}
    assert wire.decode_state(observer).paxos is None


@pytest.mark.parametrize("kind", UNICASTS)
def test_a_unicast_goes_there_and_back(kind: str) -> None:
    assert wire.decode_unicast(wire.encode_unicast(UNICASTS[kind])) == UNICASTS[kind]


def test_a_unicast_is_a_type_byte_and_a_gob() -> None:
    real = Range(parse_address("10.32.0.0"), parse_address("10.48.0.0"))
    assert wire.decode_unicast(b"\x00" + REAL["ipam_range"]) == wire.SpaceRequest(real)
    assert wire.decode_unicast(b"\x02" + REAL["ipam_range"]) == wire.SpaceRequestDenied(real)
    assert wire.decode_unicast(b"\x01" + REAL["ipam_state_ring"]) == wire.RingUpdate(STATES["ipam_state_ring"])


@pytest.mark.parametrize("data", [b"", b"\x03", b"\xff" + REAL["ipam_range"]], ids=["empty", "unknown", "high"])
def test_a_unicast_of_no_known_type_is_nothing(data: bytes) -> None:
    assert wire.decode_unicast(data) is None


def test_what_is_stored_is_what_weave_stores() -> None:
    assert wire.decode_stored_name(REAL["db_peername"]) == PeerName(0x7A0000000001)
    assert wire.encode_stored_name(PeerName(0x7A0000000001)) == REAL["db_peername"]
    assert wire.decode_stored_ring(REAL["db_ring"]) == RING
    assert wire.decode_stored_ring(wire.encode_stored_ring(RING)) == RING


def test_a_stored_election_is_read_again() -> None:
    claims = NodeClaims(SECOND, FIRST, AcceptedValue([PeerName(1)], FIRST))
    stored = wire.StoredElection(NODE, {NODE: claims, NodeID(PeerName(2), PeerUID(1)): claims})
    assert wire.decode_stored_election(wire.encode_stored_election(stored)) == stored
    nothing = wire.StoredElection(NODE, {NODE: NodeClaims(FIRST, NO_PROPOSAL, NO_VALUE)})
    read = wire.decode_stored_election(wire.encode_stored_election(nothing))
    assert read.claims[NODE].accepted_value.origin == NO_PROPOSAL


@pytest.mark.parametrize("name", STATES)
def test_a_state_that_is_cut_short_is_refused(name: str) -> None:
    data = wire.encode_state(STATES[name])
    for length in range(len(data)):
        with pytest.raises(GossipError, match=r"^IP allocation: "):
            wire.decode_state(data[:length])
    with pytest.raises(GossipError):
        wire.decode_state(data + b"\x00")


@pytest.mark.parametrize("kind", UNICASTS)
def test_a_unicast_that_is_cut_short_is_refused(kind: str) -> None:
    data = wire.encode_unicast(UNICASTS[kind])
    for length in range(1, len(data)):
        with pytest.raises(GossipError):
            wire.decode_unicast(data[:length])


@given(position=st.integers(0, 10_000), byte=st.integers(0, 255), name=st.sampled_from(sorted(STATES)))
@settings(max_examples=500)
def test_a_state_with_a_byte_changed_is_a_state_or_refused(position: int, byte: int, name: str) -> None:
    data = bytearray(wire.encode_state(STATES[name]))
    data[position % len(data)] = byte
    try:
        read = wire.decode_state(bytes(data))
    except GossipError:
        return
    assert isinstance(read, wire.GossipState)


@given(data=st.binary(max_size=200))
def test_random_bytes_are_refused_as_gossip_or_as_stored_values(data: bytes) -> None:
    for decode in (wire.decode_state, wire.decode_unicast):
        try:
            decode(data)
        except GossipError:
            continue
    for decode in (wire.decode_stored_name, wire.decode_stored_ring, wire.decode_stored_election):
        try:
            decode(data)
        except CodecError:
            continue
