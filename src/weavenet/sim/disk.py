"""A disk that forgets nothing, unless it is lost as a whole.

`Persist` is performed at once and in full: what a real disk may tear, SQLite's transactions put right, so the fault
that is left is a crash *between* two effects, and the world has that one.
"""

from collections.abc import Sequence
from typing import assert_never

from weavenet.address import Address, Cidr
from weavenet.effects import ClearStore, DropAllocation, PutAllocation, PutSecret, PutValue, StoreChange
from weavenet.ipam.allocator import StoredState


class Disk:
    """What one node has stored."""

    def __init__(self) -> None:
        """Start empty."""
        self._values: dict[str, bytes] = {}
        self._allocations: dict[tuple[str, Address], PutAllocation] = {}

    def apply(self, changes: Sequence[StoreChange]) -> None:
        """Make changes durable."""
        for change in changes:
            match change:
                case PutValue(key, value) | PutSecret(key, value):
                    self._values[key] = value
                case PutAllocation(ident, cidr, _):
                    self._allocations[ident, cidr.address] = change
                case DropAllocation(ident, cidr):
                    self._allocations.pop((ident, cidr.address), None)
                case ClearStore():
                    self._values.clear()
                    self._allocations.clear()
                case _:
                    assert_never(change)

    def load(self) -> StoredState:
        """Return what a restarted node finds."""
        allocations = tuple(self._allocations[key] for key in sorted(self._allocations))
        return StoredState(values=dict(sorted(self._values.items())), allocations=allocations)

    def holds(self, ident: str, cidr: Cidr) -> bool:
        """Say whether this address is on disk for this identifier."""
        return (ident, cidr.address) in self._allocations
