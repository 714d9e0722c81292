"""Addresses that this node gives out by itself, on bridges that no other node is on (`ipam.type: host-local`).

One value on disk holds them all, written anew at each change, before an address is used: a node has a few dozen. What
an attachment holds outlives agent and host, as in the mesh's IPAM; it is freed by DEL, or by GC.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from weavenet.address import Address, Cidr, format_address
from weavenet.cni.host_local import LocalRange
from weavenet.effects import PutValue
from weavenet.errors import AddressError, IpamError

KEY_LOCAL_ADDRESSES = "local-addresses"


class LocalAddresses:
    """What is given out, by ident (cni/request.py), and which address was the last of each subnet."""

    def __init__(self, store: Callable[[PutValue], Awaitable[None]], log: logging.Logger) -> None:
        """Hold nothing."""
        self._store = store
        self._log = log
        self._held: dict[str, Cidr] = {}
        self._last: dict[Cidr, Address] = {}
        self._lock = asyncio.Lock()

    def restore(self, stored: bytes) -> None:
        """Take up what an earlier agent stored."""
        try:
            self._held = decode_local_addresses(stored)
        except (msgspec.DecodeError, UnicodeDecodeError, AddressError) as error:
            self._log.warning("the stored local addresses cannot be read, and are forgotten: %s", error)

    async def allocate(
        self, ident: str, wanted: LocalRange, taken: frozenset[Address], address: Address | None = None
    ) -> Cidr:
        """Return the identifier's address, reserving a free one if it has none. Raises IpamError and StoreError.

        `taken` are addresses that nobody may get, such as the bridge's; `address` is the one that it must be.
        """
        async with self._lock:
            held = self._held.get(ident)
            if held is not None and held.network == wanted.subnet and address in {None, held.address}:
                return held
            others = frozenset(cidr.address for owner, cidr in self._held.items() if owner != ident)
            chosen = wanted.choose(others | taken, self._last.get(wanted.subnet), address)
            if chosen is None:
                what = "no free address is left" if address is None else f"{format_address(address)} is not free"
                raise IpamError(f"{what} in {wanted.usable} of {wanted.subnet} on this node")
            self._held[ident] = chosen
            try:
                await self._save()
            except BaseException:
                del self._held[ident]
                if held is not None:
                    self._held[ident] = held
                raise
            self._last[wanted.subnet] = chosen.address
            return chosen

    async def release(self, ident: str) -> bool:
        """Free what an identifier holds; False for nothing. Raises StoreError."""
        async with self._lock:
            if self._held.pop(ident, None) is None:
                return False
            await self._save()
            return True

    def owned(self) -> Mapping[str, tuple[Cidr, ...]]:
        """Return all that identifiers hold."""
        return {ident: (address,) for ident, address in self._held.items()}

    async def _save(self) -> None:
        await self._store(PutValue(KEY_LOCAL_ADDRESSES, encode_local_addresses(self._held)))


def encode_local_addresses(held: Mapping[str, Cidr]) -> bytes:
    """Write them as JSON."""
    return msgspec.json.encode({ident: str(address) for ident, address in sorted(held.items())})


def decode_local_addresses(raw: bytes) -> dict[str, Cidr]:
    """Read them back. Raises msgspec.DecodeError, UnicodeDecodeError and AddressError."""
    return {ident: Cidr.parse(text) for ident, text in msgspec.json.decode(raw, type=dict[str, str]).items()}
