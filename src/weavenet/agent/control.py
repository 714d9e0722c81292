"""What the control API can ask of this agent, answered by its node loop and its kernel thread."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import msgspec

from weavenet.address import Address, Cidr
from weavenet.agent.loop import NodeLoop
from weavenet.agent.resolve import resolve_targets
from weavenet.effects import Granted, Outcome, RequestNumber
from weavenet.node import inputs as i
from weavenet.node.report import EXPOSED, Report

# Claims and allocations wait for other peers, for as long as the caller does (Weave waits forever).
WAIT_S = 24 * 3600.0
ANSWER_S = 30.0


class _Calls(msgspec.Struct):
    """Calls for an address that are under way for one identifier, all of which get the same one."""

    before: frozenset[Cidr]  # what it held when the first of them came
    open: int = 0
    granted: bool = False  # whether one of them was told of its address


class AgentControl:
    """The `Control` of agent/api.py."""

    def __init__(self, loop: NodeLoop, make_report: Callable[[], Awaitable[Report]]) -> None:
        """Ask this loop; reports also need the kernel, and so are made elsewhere."""
        self._loop = loop
        self._make_report = make_report
        self._allocating: dict[str, _Calls] = {}

    async def report(self) -> Report:
        """Say how everything is."""
        return await self._make_report()

    async def connect(self, peers: Sequence[str], *, replace: bool) -> Sequence[str]:
        """Look for these peers from now on; return what is wrong with those that cannot be looked for."""
        targets, failures = await resolve_targets(peers)
        self._loop.feed(i.Connect(tuple(targets), replace=replace))
        return [str(failure) for failure in failures]

    async def forget(self, peers: Sequence[str]) -> None:
        """Stop looking for these peers, spelled as when they were asked for."""
        self._loop.feed(i.Forget(tuple(peers)))

    def default_subnet(self) -> Cidr | None:
        """Return where addresses come from if nobody says otherwise; None while address allocation is off."""
        ipam = self._loop.node.config.ipam
        return None if ipam is None else ipam.default_subnet

    async def allocate(self, ident: str, subnet: Cidr | None, *, check_alive: bool) -> Outcome:
        """Give an identifier an address; `check_alive` is about Docker containers, which we do not watch."""
        del check_alive
        calls = self._allocating.setdefault(ident, _Calls(before=self._held(ident)))
        calls.open += 1
        try:
            outcome = await self._loop.request(
                lambda number: i.Allocate(number, ident, subnet, is_container=ident != EXPOSED), WAIT_S
            )
            calls.granted |= isinstance(outcome, Granted)
        finally:
            calls.open -= 1
            if not calls.open:
                del self._allocating[ident]
                if not calls.granted:
                    self._give_back(ident, calls.before)
        return outcome

    async def claim(self, ident: str, address: Cidr, *, check_alive: bool, no_error_on_unknown: bool) -> Outcome:
        """Give an identifier this very address."""
        del check_alive
        return await self._loop.request(
            lambda number: i.Claim(
                number,
                ident,
                address,
                is_container=ident != EXPOSED,
                no_error_on_unknown=no_error_on_unknown,
            ),
            WAIT_S,
        )

    async def lookup(self, ident: str, subnet: Cidr | None) -> Sequence[Cidr]:
        """Return the addresses of an identifier in a subnet."""
        ipam = self._loop.node.ipam
        return () if ipam is None else ipam.lookup(ident, subnet)

    async def owned(self) -> Mapping[str, Sequence[Cidr]]:
        """Return all addresses that identifiers hold here."""
        ipam = self._loop.node.ipam
        return {} if ipam is None else ipam.owned()

    async def release(self, ident: str) -> Outcome:
        """Free all addresses of an identifier."""
        return await self._loop.request(lambda number: i.Release(number, ident), ANSWER_S)

    async def release_address(self, ident: str, address: Address) -> Outcome:
        """Free one address of an identifier."""
        return await self._loop.request(lambda number: i.ReleaseAddress(number, ident, address), ANSWER_S)

    async def await_consensus(self) -> Outcome:
        """Wait until the peers have agreed on the first ring."""
        return await self._loop.request(i.AwaitConsensus, WAIT_S)

    async def take_over(self, ident: str) -> Outcome:
        """Make a dead peer's addresses ours; it is named by peer name or nickname."""
        return await self._loop.request(lambda number: i.TakeOver(number, ident), ANSWER_S)

    async def shut_down(self) -> Outcome:
        """Hand our addresses to another peer: this node will not come back. When this returns, peers are being told."""
        self._loop.feed(i.ShutDown())
        return await self._loop.catch_up(ANSWER_S)

    def _held(self, ident: str) -> frozenset[Cidr]:
        ipam = self._loop.node.ipam
        return frozenset() if ipam is None else frozenset(ipam.owned().get(ident, ()))

    def _give_back(self, ident: str, before: frozenset[Cidr]) -> None:
        """Free what was granted while its callers were hanging up: nobody was told of it, so nobody else will."""
        for cidr in sorted(self._held(ident) - before):
            self._loop.tell(partial(_release_address, ident, cidr.address))


def _release_address(ident: str, address: Address, number: RequestNumber) -> i.IpamInput:
    return i.ReleaseAddress(number, ident, address)
