"""What IPAM says to other peers and stores for itself, in gob.

    broadcast, and gossip with neighbours    state
    unicast     0   range                    space request: "give me some of this"
                1   state                    ring update
                2   range                    space request denied: "I have nothing of this"
                ^
                type byte

A state is all we know: {Now, Nicknames, Paxos, Ring}. Until there is a ring, electors send their election table, even
when it is empty, and observers send no table at all, which is how an observer asks for an election. With a ring, only
the ring is sent. Source: docs/protocol.md, "IPAM messages" and "The gob subset".
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import TypeVar

import msgspec

from weavenet.address import Range
from weavenet.codec.gob import (
    INT,
    STRING,
    UINT32,
    UINT64,
    Field,
    Schema,
    Struct,
    decode_one,
    encode_one,
    map_of,
    optional,
    slice_of,
)
from weavenet.errors import CodecError, GossipError
from weavenet.identity import PeerName
from weavenet.ipam.paxos import AcceptedValue, NodeClaims, NodeID, ProposalID
from weavenet.ipam.ring import Entry, RingState

T = TypeVar("T")


class MessageKind(IntEnum):
    """The first byte of a unicast."""

    SPACE_REQUEST = 0
    RING_UPDATE = 1
    SPACE_REQUEST_DENIED = 2


class GossipState(msgspec.Struct, frozen=True):
    """All that a peer tells of IPAM. Nobody uses its clock, but old peers decode it."""

    now_s: int
    nicknames: Mapping[PeerName, str]
    paxos: Mapping[NodeID, NodeClaims] | None  # None: an observer, or there is a ring
    ring: RingState | None


class SpaceRequest(msgspec.Struct, frozen=True):
    """A peer wants addresses of a range."""

    wanted: Range


class RingUpdate(msgspec.Struct, frozen=True):
    """A peer tells us, and nobody else, its state."""

    state: GossipState


class SpaceRequestDenied(msgspec.Struct, frozen=True):
    """A peer has nothing free of what we asked for."""

    wanted: Range


Unicast = SpaceRequest | RingUpdate | SpaceRequestDenied


class StoredElection(msgspec.Struct, frozen=True):
    """Our part in an election, as stored: under which identity, and everybody's claims. Not known to Weave."""

    us: NodeID
    claims: Mapping[NodeID, NodeClaims]


_NAMES = slice_of(UINT64, "[]mesh.PeerName")
_NODE_ID = Struct("NodeID", NodeID, (Field("Name", "name", UINT64), Field("UID", "uid", UINT64)))
_PROPOSAL_ID = Struct(
    "ProposalID",
    ProposalID,
    (Field("Round", "round", UINT64), Field("Proposer", "proposer", _NODE_ID)),
)
_ACCEPTED_VALUE = Struct(
    "AcceptedValue",
    AcceptedValue,
    (Field("Value", "value", slice_of(UINT64, "Value")), Field("Origin", "origin", _PROPOSAL_ID)),
)
_NODE_CLAIMS = Struct(
    "NodeClaims",
    NodeClaims,
    (
        Field("Promise", "promise", _PROPOSAL_ID),
        Field("Accepted", "accepted", _PROPOSAL_ID),
        Field("AcceptedVal", "accepted_value", _ACCEPTED_VALUE),
    ),
)
_ENTRY = Struct(
    "entry",
    Entry,
    (
        Field("Token", "token", UINT32),
        Field("Peer", "peer", UINT64),
        Field("Version", "version", UINT32),
        Field("Free", "free", UINT32),
    ),
)
_RING = Struct(
    "Ring",
    RingState,
    (
        Field("Start", "start", UINT32),
        Field("End", "end", UINT32),
        Field("Peer", "peer", UINT64),
        Field("Entries", "entries", slice_of(_ENTRY, "entries")),
        Field("Seeds", "seeds", _NAMES),
    ),
)
_CLAIMS = map_of(_NODE_ID, _NODE_CLAIMS, "GossipState")
_STATE = Struct(
    "gossipState",
    GossipState,
    (
        Field("Now", "now_s", INT),
        Field("Nicknames", "nicknames", map_of(UINT64, STRING, "map[mesh.PeerName]string")),
        Field("Paxos", "paxos", optional(_CLAIMS)),
        Field("Ring", "ring", optional(_RING)),
    ),
)
_RANGE = Struct("Range", Range, (Field("Start", "start", UINT32), Field("End", "end", UINT32)))
_STORED_ELECTION = Struct(
    "storedElection",
    StoredElection,
    (Field("Us", "us", _NODE_ID), Field("Claims", "claims", _CLAIMS)),
)


def encode_state(state: GossipState) -> bytes:
    """Return the data of a broadcast or of neighbour gossip."""
    return encode_one(_STATE, state)


def decode_state(data: bytes) -> GossipState:
    """Read a broadcast or neighbour gossip. Raises GossipError."""
    return _decode(_STATE, data)


def encode_unicast(message: Unicast) -> bytes:
    """Return the data of a unicast."""
    match message:
        case SpaceRequest(wanted):
            return bytes([MessageKind.SPACE_REQUEST]) + encode_one(_RANGE, wanted)
        case RingUpdate(state):
            return bytes([MessageKind.RING_UPDATE]) + encode_one(_STATE, state)
        case SpaceRequestDenied(wanted):
            return bytes([MessageKind.SPACE_REQUEST_DENIED]) + encode_one(_RANGE, wanted)


def decode_unicast(data: bytes) -> Unicast | None:
    """Read a unicast; None if it is of no type we know, or empty. (Weave crashes or hangs.) Raises GossipError."""
    match data[:1]:
        case b"\x00":
            return SpaceRequest(_decode(_RANGE, data[1:]))
        case b"\x01":
            return RingUpdate(_decode(_STATE, data[1:]))
        case b"\x02":
            return SpaceRequestDenied(_decode(_RANGE, data[1:]))
        case _:
            return None


def encode_stored_name(name: PeerName) -> bytes:
    """Return the value of the key `peername`, as Weave stores it."""
    return encode_one(UINT64, name)


def decode_stored_name(data: bytes) -> PeerName:
    """Read the value of the key `peername`. Raises CodecError."""
    return PeerName(decode_one(UINT64, data))


def encode_stored_ring(ring: RingState) -> bytes:
    """Return the value of the key `ring`, as Weave stores it."""
    return encode_one(_RING, ring)


def decode_stored_ring(data: bytes) -> RingState:
    """Read the value of the key `ring`. Raises CodecError."""
    return decode_one(_RING, data)


def encode_stored_election(election: StoredElection) -> bytes:
    """Return the value of the key `paxos`."""
    return encode_one(_STORED_ELECTION, election)


def decode_stored_election(data: bytes) -> StoredElection:
    """Read the value of the key `paxos`. Raises CodecError."""
    return decode_one(_STORED_ELECTION, data)


def _decode(schema: Schema[T], data: bytes) -> T:
    try:
        return decode_one(schema, data)
    except CodecError as error:
        raise GossipError(f"IP allocation: {error}") from error
