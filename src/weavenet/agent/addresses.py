"""The node's IPAM as the CNI verbs see it, and the one address that is the host's own."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import assert_never

from weavenet.address import Address, Cidr, format_address
from weavenet.agent.loop import NodeLoop
from weavenet.effects import Cancelled, Done, Granted, Outcome, Refused, TookOver
from weavenet.errors import IpamError, IpamWaitError
from weavenet.node import inputs as i
from weavenet.node.report import EXPOSED

ALLOCATE_S = 60.0  # then the runtime is told to try again
EXHAUSTED_S = 5.0  # where nothing is free as far as we know: for a peer whose news are on their way, or a pod's end
RELEASE_S = 30.0

_OFF = "IP address allocation is off: the agent was started without --ipalloc-range"


class NodeAddresses:
    """An `AddressService` (agent/attach.py) over the node loop."""

    def __init__(self, loop: NodeLoop, expose: Callable[[Cidr], Awaitable[None]]) -> None:
        """`expose` gives the bridge an address, and costs nothing where the bridge has it."""
        self._loop = loop
        self._expose = expose
        # Held by whoever changes which addresses the bridge has, so that it never has one that IPAM does not know of.
        self.exposing = asyncio.Lock()

    @property
    def allocates(self) -> bool:
        """Whether there is IPAM."""
        return self._loop.node.ipam is not None

    async def allocate(self, ident: str, subnet: Cidr | None) -> Cidr:
        """Return the identifier's address in a subnet, or in the default one. Raises IpamError."""
        is_container = ident != EXPOSED
        wait_s = ALLOCATE_S if self._is_hopeful(subnet) else EXHAUSTED_S
        outcome = await self._loop.request(
            lambda number: i.Allocate(number, ident, subnet, is_container=is_container),
            wait_s,
        )
        match outcome:
            case Granted(addresses):
                return addresses[0]
            case Cancelled() if not self._is_hopeful(subnet):
                raise IpamError(self._exhausted(subnet))
            case Cancelled():
                raise IpamWaitError(f"no address became available within {wait_s:.0f} s; {self._why_waiting()}")
            case _:
                raise IpamError(_reason(outcome))

    async def assign(self, ident: str, wanted: Address, subnet: Cidr | None) -> Cidr:
        """Reserve this very address of a subnet, or of the default one, and return it. Raises IpamError."""
        ipam = self._loop.node.ipam
        if ipam is None:
            raise IpamError(_OFF)
        within = subnet or ipam.config.default_subnet
        if wanted not in within.host_range:
            raise IpamError(f"{format_address(wanted)} is no host's address in {within.network}")
        await self.claim(ident, cidr := Cidr(wanted, within.prefix_length))
        return cidr

    async def claim(self, ident: str, address: Cidr) -> None:
        """Give an identifier this very address; without IPAM there is nobody to ask. Raises IpamError."""
        if self._loop.node.ipam is None:
            return
        outcome = await self._loop.request(
            lambda number: i.Claim(number, ident, address, is_container=ident != EXPOSED, no_error_on_unknown=False),
            ALLOCATE_S,
        )
        match outcome:
            case Done():
                return
            case Cancelled():
                raise IpamWaitError(f"{address} could not be claimed within {ALLOCATE_S:.0f} s; {self._why_waiting()}")
            case _:
                raise IpamError(_reason(outcome))

    async def release(self, ident: str) -> None:
        """Free all that an identifier holds. Raises IpamError."""
        outcome = await self._loop.request(lambda number: i.Release(number, ident), RELEASE_S)
        if not isinstance(outcome, Done):
            raise IpamError(_reason(outcome))

    async def release_address(self, ident: str, address: Address) -> None:
        """Free one address of an identifier. Raises IpamError."""
        outcome = await self._loop.request(lambda number: i.ReleaseAddress(number, ident, address), RELEASE_S)
        if not isinstance(outcome, Done):
            raise IpamError(_reason(outcome))

    async def lookup(self, ident: str) -> tuple[Cidr, ...]:
        """Return what an identifier holds, in whatever subnet."""
        ipam = self._loop.node.ipam
        return () if ipam is None else ipam.owned().get(ident, ())

    async def owned(self) -> Mapping[str, tuple[Cidr, ...]]:
        """Return all that identifiers hold on this node."""
        ipam = self._loop.node.ipam
        return {} if ipam is None else ipam.owned()

    async def refusal(self) -> Refused | None:
        """Return why no address could be given now; None if one could be."""
        ipam = self._loop.node.ipam
        if ipam is None:
            return Refused(_OFF)
        if ipam.can_allocate():
            return None
        return Refused(self._exhausted(None))

    async def gateway(self, subnet: Cidr) -> Address | None:
        """Return an address of the bridge in that subnet, or else its first one; a bridge without any gets one."""
        async with self.exposing:  # twenty pods that start at once want one gateway
            held = await self.lookup(EXPOSED) or (await self.allocate(EXPOSED, None),)
            for address in held:
                # Every time, for whoever reserved it may have failed, or given up, before the bridge had it.
                await self._expose(address)
        inside = [cidr.address for cidr in held if cidr.address in subnet.range]
        return inside[0] if inside else held[0].address

    def _is_hopeful(self, subnet: Cidr | None) -> bool:
        ipam = self._loop.node.ipam
        return ipam is None or ipam.can_allocate(subnet)

    def _exhausted(self, subnet: Cidr | None) -> str:
        ipam = self._loop.node.ipam
        assert ipam is not None
        wanted = subnet or ipam.config.default_subnet
        return f"no free address is left in {wanted}, here or at any peer we know of"

    def _why_waiting(self) -> str:
        ipam = self._loop.node.ipam
        assert ipam is not None
        return f"IP allocation is {ipam.status().summary}"


def _reason(outcome: Outcome) -> str:
    match outcome:
        case Refused(reason):
            return reason
        case Cancelled():
            return "cancelled"
        case Granted() | Done() | TookOver():
            raise AssertionError(f"{outcome} answers another kind of request")
        case _:
            assert_never(outcome)
