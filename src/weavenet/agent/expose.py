"""Exposing: the bridge gets an address, and with it the host a place in pods' network, and pods a gateway out of it.

`weave:expose` holds these addresses in IPAM. What is exposed stays so, over restarts and over the bridge being deleted
by hand, until it is hidden. Weave's `weave expose` and WEAVE_EXPOSE_IP; docs/protocol/http-cli.md, sections 7 and 9.
"""

import asyncio
import logging

import msgspec

from weavenet.address import Cidr, format_address
from weavenet.agent.addresses import NodeAddresses
from weavenet.agent.reconcile import Reconciler
from weavenet.agent.traffic import Traffic
from weavenet.errors import AddressError, ConfigError, IpamError, KernelError
from weavenet.node.report import EXPOSED

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
        # A /31 or /32 has neither (RFC 3021).
        if address.prefix_length <= 30 and address.address in (address.network.address, address.broadcast):
            whose = f"{format_address(address.address)} is the network's own, or its broadcast address"
            raise ConfigError(f"--expose-ip {address}: {whose}; give the bridge an address of a host")
    return ExposeOption(tuple(dict.fromkeys(addresses)))


class Exposure:
    """Exposes and hides."""

    def __init__(
        self, reconciler: Reconciler, traffic: Traffic, log: logging.Logger, *, addresses: NodeAddresses | None = None
    ) -> None:
        """`addresses` is wired later where it needs this object itself."""
        self._reconciler = reconciler
        self._traffic = traffic
        self._log = log
        self.addresses = addresses

    async def expose(self, address: Cidr, *, masquerade: bool = True) -> None:
        """Give the bridge an address that `weave:expose` holds, now and from now on. Raises KernelError."""
        if masquerade:
            self._traffic.unmasqueraded.discard(address)
        else:
            self._traffic.unmasqueraded.add(address)
        await self._reconciler.expose(address)
        await self._traffic.try_to_look()

    async def hide(self, address: Cidr) -> None:
        """Take an address from the bridge; whoever holds it in IPAM is the caller's business. Raises KernelError."""
        await self._reconciler.hide(address)
        self._traffic.unmasqueraded.discard(address)
        await self._traffic.try_to_look()

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
        assert self.addresses is not None, "wired before anything is exposed"
        if not option.addresses:
            return (await self.addresses.allocate(EXPOSED, None),)
        for address in option.addresses:
            await self.addresses.claim(EXPOSED, address)
        return option.addresses
