"""Who holds which address on this host: the record behind every grant.

An identifier (a container, `weave:expose` for the host itself) may hold many addresses, an address has one holder. Kept
both ways, so that no question needs a search. What changes is reported as the store's own words, one row per address.
"""

import msgspec

from weavenet.address import Address, Cidr, Range, format_address
from weavenet.effects import DropAllocation, PutAllocation

# Whoever asks for an address under this identifier gets it recorded under the address' own text: Docker's IPAM plugin
# knows no containers. Source: docs/protocol.md, "Allocate".
ANONYMOUS = "_"


class _Held(msgspec.Struct):
    is_container: bool
    addresses: list[Cidr] = msgspec.field(default_factory=list)


class Holdings:
    """The addresses in use on this host, those outside the universe included."""

    def __init__(self) -> None:
        """Begin with none."""
        self._by_ident: dict[str, _Held] = {}
        self._holder: dict[Address, str] = {}

    def holder(self, address: Address) -> str | None:
        """Return who holds an address."""
        return self._holder.get(address)

    def of(self, ident: str) -> tuple[Cidr, ...]:
        """Return what an identifier holds, oldest first."""
        held = self._by_ident.get(ident)
        return tuple(held.addresses) if held is not None else ()

    def of_within(self, ident: str, within: Range) -> tuple[Cidr, ...]:
        """Return what an identifier holds in a range, oldest first."""
        return tuple(cidr for cidr in self.of(ident) if cidr.address in within)

    def all(self) -> dict[str, tuple[Cidr, ...]]:
        """Return everything, by identifier in order."""
        return {ident: tuple(self._by_ident[ident].addresses) for ident in sorted(self._by_ident)}

    def record(self, ident: str, address: Cidr, *, is_container: bool) -> PutAllocation:
        """Note that an identifier holds an address that nobody held."""
        if ident == ANONYMOUS:
            ident = format_address(address.address)
        assert address.address not in self._holder, f"{address} is held by {self._holder[address.address]}"
        held = self._by_ident.setdefault(ident, _Held(is_container))
        held.addresses.append(address)
        self._holder[address.address] = ident
        return PutAllocation(ident, address, held.is_container)

    def forget(self, ident: str, address: Cidr) -> DropAllocation:
        """Note that an identifier no longer holds an address."""
        held = self._by_ident[ident]
        held.addresses.remove(address)
        del self._holder[address.address]
        if not held.addresses:
            del self._by_ident[ident]
        return DropAllocation(ident, address)
