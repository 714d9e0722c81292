"""Taking up what an earlier process of this peer stored.

Stored data are of use only to the same peer in the same range. Data that are there but cannot be read are another
matter: going on without them would give out addresses that are in use, so that is an error, and ends the process.
Source: docs/protocol.md, "Start".
"""

from collections.abc import Mapping

import msgspec

from weavenet.address import Range
from weavenet.effects import PutAllocation
from weavenet.errors import CodecError, RingError, StoreError
from weavenet.identity import PeerName, format_peer_name
from weavenet.ipam.ring import RingState, check_invariants
from weavenet.ipam.wire import StoredElection, decode_stored_election, decode_stored_name, decode_stored_ring

KEY_PEER_NAME = "peername"
KEY_RING = "ring"
KEY_ELECTION = "paxos"


class StoredState(msgspec.Struct, frozen=True):
    """What is on disk, as loaded."""

    values: Mapping[str, bytes]
    allocations: tuple[PutAllocation, ...]


class Restored(msgspec.Struct, frozen=True):
    """What of it is of use. Without a ring we start afresh, and `reason` says why."""

    ring: RingState | None
    election: StoredElection | None
    allocations: tuple[PutAllocation, ...]
    reason: str


def restore(stored: StoredState, name: PeerName, universe: Range) -> Restored:
    """Sort out what is on disk. Raises StoreError if it cannot be read."""
    try:
        return _restore(stored, name, universe)
    except (CodecError, RingError) as error:
        raise StoreError(
            f"the stored IP allocation data cannot be read: {error}; restore the database from a copy, or remove it "
            "after handing this peer's addresses to another with `weave rmpeer` there",
        ) from error


def _restore(stored: StoredState, name: PeerName, universe: Range) -> Restored:
    values = stored.values
    if KEY_PEER_NAME not in values or KEY_RING not in values:
        return Restored(None, None, (), "No valid persisted data")
    stored_name = decode_stored_name(values[KEY_PEER_NAME])
    if stored_name != name:
        return Restored(None, None, (), f"Deleting persisted data for peername {format_peer_name(stored_name)}")
    state = decode_stored_ring(values[KEY_RING])
    if state.entries and state.universe != universe:
        theirs, ours = state.universe.as_cidr_text(), universe.as_cidr_text()
        reason = f"Deleting persisted data for IPAM range {theirs}; our range is {ours}"
        return Restored(None, None, (), reason)
    if not state.entries:
        election = values.get(KEY_ELECTION)
        return Restored(
            None,
            decode_stored_election(election) if election else None,
            # These can only be addresses that are not ours to manage; they need no ring.
            stored.allocations,
            "No valid persisted data",
        )
    check_invariants(universe, state.entries)
    return Restored(state, None, stored.allocations, "")
