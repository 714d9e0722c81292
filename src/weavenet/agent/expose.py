"""Exposing: the bridge gets an address, and with it the host a place in pods' network, and pods a gateway out of it.

`weave:expose` holds these addresses in IPAM. What is exposed stays so, over restarts and over the bridge being deleted
by hand, until it is hidden. Weave's `weave expose` and WEAVE_EXPOSE_IP; docs/protocol/http-cli.md, sections 7 and 9.

What IPAM cannot tell is stored beside it: which of these addresses are not masqueraded, and, without IPAM, all of them.
(Weave forgets the first at a restart, and the second with the bridge.)

The order is chosen for an end between any two steps. To expose is to hold the address, then to have it; to hide is to
have it no more, and then to let go of it. So the bridge never has an address that IPAM might give to a pod, and what is
left of a step that was not the last is put right by doing it again, or by the next start, which exposes what is held.

Hiding pods' gateway is allowed, as in Weave: they reach each other and nothing beyond. The next pod that starts has the
bridge exposed again, with whatever address is free then, so who hides it is told how to give them back their own.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping

import msgspec

from weavenet.address import Address, Cidr, format_address
from weavenet.agent.addresses import NodeAddresses
from weavenet.agent.reconcile import Reconciler
from weavenet.agent.traffic import Traffic
from weavenet.effects import PutValue
from weavenet.errors import AddressError, ConfigError, IpamError, KernelError
from weavenet.node.report import EXPOSED

KEY_EXPOSED = "exposed"
AUTO = "auto"
RETRY_S = (1.0, 60.0)


class ExposeOption(msgspec.Struct, frozen=True):
    """What is to be exposed at start: these addresses, or one of IPAM's choice if there are none."""

    addresses: tuple[Cidr, ...] = ()


def parse_expose_option(text: str, *, allocates: bool) -> ExposeOption | None:
    """Read --expose-ip: `auto`, or addresses separated by commas; blank is None. Raises ConfigError."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        return None
    if words == [AUTO]:
        if not allocates:
            raise ConfigError("--expose-ip auto needs --ipalloc-range; without it, name an address: --expose-ip CIDR")
        return ExposeOption()
    try:
        addresses = tuple(Cidr.parse(word) for word in words)
    except AddressError as error:
        raise ConfigError(f"--expose-ip: {error}; give {AUTO}, or addresses such as 10.32.0.1/12") from error
    for address in addresses:
        if not _is_hosts(address):
            raise ConfigError(f"--expose-ip {address}: {_whose(address)}")
    return ExposeOption(tuple(dict.fromkeys(addresses)))


def _is_hosts(address: Cidr) -> bool:
    # A /31 or /32 has neither (RFC 3021).
    return address.prefix_length > 30 or address.address not in (address.network.address, address.broadcast)


def _whose(address: Cidr) -> str:
    owner = "is the network's own, or its broadcast address"
    return f"{format_address(address.address)} {owner}; give the bridge an address of a host"


class Exposed(msgspec.Struct, frozen=True):
    """An address of the bridge, and whether what passes between its subnet and the outside is masqueraded."""

    address: Cidr
    masquerade: bool


class Exposure:
    """Exposes and hides."""

    def __init__(
        self,
        reconciler: Reconciler,
        traffic: Traffic,
        store: Callable[[PutValue], Awaitable[None]],
        log: logging.Logger,
        *,
        stored: Iterable[Exposed] = (),
    ) -> None:
        """Go on with what an earlier agent `stored`; `addresses` is wired before anything is exposed."""
        self._reconciler = reconciler
        self._traffic = traffic
        self._store = store
        self._log = log
        self._stored = {each.address: each for each in stored}
        self.addresses: NodeAddresses | None = None
        traffic.unmasqueraded |= {each.address for each in self._stored.values() if not each.masquerade}

    # --- for those who hold the address -------------------------------------------------------------------------------

    async def expose(self, address: Cidr, *, masquerade: bool | None = None) -> None:
        """Give the bridge an address that `weave:expose` holds, now and from now on; again costs nothing.

        Without a word about masquerading it stays as it is, and is on at first. Raises KernelError and StoreError.
        """
        before = address in self._traffic.unmasqueraded
        self._set_masquerade(address, on=not before if masquerade is None else masquerade)
        try:
            await self._reconciler.expose(address)
        except KernelError:
            self._set_masquerade(address, on=not before)
            raise
        await self._traffic.try_to_look()
        on = address not in self._traffic.unmasqueraded
        if on and self._addresses.allocates:
            await self._forget(address)
        elif self._stored.get(address) != Exposed(address, on):
            self._stored[address] = Exposed(address, on)
            await self._save()

    async def hide(self, address: Cidr) -> None:
        """Take an address from the bridge; whoever holds it in IPAM is the caller's business. Raises KernelError."""
        await self._reconciler.hide(address)
        self._set_masquerade(address, on=True)
        await self._traffic.try_to_look()

    async def _forget(self, address: Cidr) -> None:
        if self._stored.pop(address, None) is not None:
            await self._save()

    async def _save(self) -> None:
        await self._store(PutValue(KEY_EXPOSED, encode_exposed(self._stored)))

    def _set_masquerade(self, address: Cidr, *, on: bool) -> None:
        if on:
            self._traffic.unmasqueraded.discard(address)
        else:
            self._traffic.unmasqueraded.add(address)

    # --- for those who ask --------------------------------------------------------------------------------------------

    async def exposed(self) -> tuple[Exposed, ...]:
        """Return what the bridge has, or should have, from whomever. Raises KernelError."""
        addresses = sorted(await self._reconciler.addresses())
        return tuple(Exposed(each, each not in self._traffic.unmasqueraded) for each in addresses)

    async def claim_and_expose(self, address: Cidr, *, masquerade: bool) -> str:
        """Have `weave:expose` hold an address, and the bridge have it; return what the user should know, or nothing.

        Raises AddressError, IpamError, KernelError and StoreError. The first two, and a kernel that refuses, leave
        nothing behind.
        """
        if not _is_hosts(address):
            raise AddressError(str(address), _whose(address))
        for other in await self._reconciler.addresses():
            if other.address == address.address and other != address:
                raise IpamError(f"it is exposed as {other}; hide that first: weave hide ip:{other}")
        routes = await self._reconciler.overlapping_routes(address.network)
        had = await self._addresses.lookup(EXPOSED)
        await self._addresses.claim(EXPOSED, address)
        async with self._addresses.exposing:
            # A claim may have waited for a peer; what was hidden meanwhile stays hidden.
            if self._addresses.allocates and address not in await self._addresses.lookup(EXPOSED):
                raise IpamError(f"{address} was hidden while it was being exposed")
            try:
                await self.expose(address, masquerade=masquerade)
            except KernelError:
                if self._addresses.allocates and address not in had:
                    await self._addresses.release_address(EXPOSED, address.address)
                raise
        self._log.info("The bridge has address %s%s", address, "" if masquerade else ", without masquerading")
        return "".join(f"Address {address} overlaps with existing route {route} on host\n" for route in routes)

    async def hide_and_release(self, address: Cidr) -> str:
        """Take an address from the bridge, and free it; return what the user should know, or nothing.

        That it is not exposed is fine. Raises IpamError, KernelError and StoreError.
        """
        async with self._addresses.exposing:
            was_there = address in await self._reconciler.addresses()
            if was_there:
                await self.hide(address)
            if address in await self._addresses.lookup(EXPOSED):
                await self._addresses.release_address(EXPOSED, address.address)
            await self._forget(address)
        if not was_there:
            return ""
        self._log.info("The bridge no longer has address %s", address)
        return _about_gateway(address, await self._addresses.owned())

    @property
    def _addresses(self) -> NodeAddresses:
        assert self.addresses is not None, "wired before anything is exposed"
        return self.addresses

    # --- for --expose-ip ----------------------------------------------------------------------------------------------

    async def expose_at_start(self, option: ExposeOption | None) -> None:
        """Expose what was asked for, trying again until it works; then return."""
        if option is None:
            return
        retry_s = RETRY_S[0]
        while True:
            try:
                for address in await self._reserve(option):
                    await self.expose(address)
                    self._log.info("The bridge has address %s", address)
            except (IpamError, KernelError) as error:
                self._log.warning("cannot expose this host's bridge yet, trying again in %.0f s: %s", retry_s, error)
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, RETRY_S[1])
            else:
                return

    async def _reserve(self, option: ExposeOption) -> tuple[Cidr, ...]:
        if not option.addresses:
            return (await self._addresses.allocate(EXPOSED, None),)
        for address in option.addresses:
            await self._addresses.claim(EXPOSED, address)
        return option.addresses


def _about_gateway(hidden: Cidr, owned: Mapping[str, tuple[Cidr, ...]]) -> str:
    """Say what becomes of pods for which this address may be the way out."""
    held = [each for ident, addresses in owned.items() if ident != EXPOSED for each in addresses]
    count = sum(each.address in hidden.range for each in held)
    if not count:
        return ""
    pods = f"{count} pod{'s' if count > 1 else ''} of this host"
    return (
        f"{pods} may have {format_address(hidden.address)} as gateway, and then no way out of the pods' network; "
        f"before more pods start, this gives it back to them: weave expose ip:{hidden}\n"
    )


# --- on disk ----------------------------------------------------------------------------------------------------------


class _Stored(msgspec.Struct):
    address: int
    prefix_length: int
    masquerade: bool


def encode_exposed(exposed: Mapping[Cidr, Exposed]) -> bytes:
    """Write them as JSON."""
    rows = [_Stored(each.address, each.prefix_length, exposed[each].masquerade) for each in sorted(exposed)]
    return msgspec.json.encode(rows)


def decode_exposed(raw: bytes) -> tuple[Exposed, ...]:
    """Read them back; nothing if there is nothing. Raises msgspec.DecodeError."""
    rows = msgspec.json.decode(raw, type=list[_Stored]) if raw else []
    return tuple(Exposed(Cidr(Address(row.address), row.prefix_length), row.masquerade) for row in rows)
