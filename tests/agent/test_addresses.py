"""The node's addresses as the CNI verbs see them, over the production node in virtual time."""

import asyncio

import pytest
from fake_agent import RANGE, Agent, running
from virtual_time import run, settle

from weavenet.address import Cidr, parse_address
from weavenet.agent.addresses import ALLOCATE_S, EXPOSED, NodeAddresses
from weavenet.effects import Refused
from weavenet.errors import IpamError, IpamWaitError, KernelError
from weavenet.ipam.modes import Consensus
from weavenet.node import inputs as i


class Bridge:
    """What the bridge was given; `problem` is what giving fails with, and `gate` what it waits for."""

    def __init__(self) -> None:
        self.addresses: list[Cidr] = []
        self.problem = ""
        self.gate: asyncio.Event | None = None

    async def expose(self, address: Cidr) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.problem:
            raise KernelError(self.problem)
        if address not in self.addresses:
            self.addresses.append(address)


def addresses_of(agent: Agent) -> tuple[NodeAddresses, Bridge]:
    bridge = Bridge()
    return NodeAddresses(agent.loop, bridge.expose), bridge


def test_an_identifier_gets_one_address_however_often_it_asks_and_loses_it_when_released() -> None:
    async def scenario() -> None:
        async with running(disk_is_prompt=True) as agent:
            addresses, _ = addresses_of(agent)
            given = await addresses.allocate("c1/eth0", None)
            assert given == await addresses.allocate("c1/eth0", None)
            assert await addresses.lookup("c1/eth0") == (given,)
            assert await addresses.owned() == {"c1/eth0": (given,)}

            await addresses.release("c1/eth0")
            assert await addresses.lookup("c1/eth0") == ()
            assert await addresses.owned() == {}

    run(scenario())


def test_an_address_is_of_the_subnet_that_was_asked_for() -> None:
    async def scenario() -> None:
        async with running(disk_is_prompt=True) as agent:
            addresses, _ = addresses_of(agent)
            subnet = Cidr.parse("10.32.0.128/25")
            assert (await addresses.allocate("c1/eth0", subnet)).network == subnet
            with pytest.raises(IpamError, match="out of bounds"):
                await addresses.allocate("c1/eth1", Cidr.parse("192.0.2.0/24"))

    run(scenario())


def test_a_certain_address_is_given_to_one_only() -> None:
    async def scenario() -> None:
        async with running(disk_is_prompt=True) as agent:
            addresses, _ = addresses_of(agent)
            subnet, wanted = Cidr.parse("10.32.0.128/25"), parse_address("10.32.0.200")
            for _ in range(2):
                assert str(await addresses.assign("c1/eth0", wanted, subnet)) == "10.32.0.200/25"
            assert await addresses.owned() == {"c1/eth0": (Cidr(wanted, 25),)}
            with pytest.raises(IpamError, match=r"10\.32\.0\.200"):
                await addresses.assign("c2/eth0", wanted, subnet)
            for nobodys in ("10.32.0.128", "10.32.0.255", "10.32.0.5"):
                with pytest.raises(IpamError, match="is no host's address in"):
                    await addresses.assign("c2/eth0", parse_address(nobodys), subnet)
            assert await addresses.lookup("c2/eth0") == ()

    run(scenario())


def test_a_certain_address_that_cannot_be_given_yet_is_worth_another_try() -> None:
    async def scenario() -> None:
        async with running(mode=Consensus(3), disk_is_prompt=True) as agent:
            addresses, _ = addresses_of(agent)
            with pytest.raises(IpamWaitError, match=r"10\.32\.0\.200/24 could not be claimed"):
                await addresses.assign("c1/eth0", parse_address("10.32.0.200"), None)

    run(scenario())


def test_who_waits_in_vain_is_told_why_and_the_core_forgets_him() -> None:
    async def scenario() -> None:
        async with running(Consensus(3), disk_is_prompt=True) as agent:
            addresses, _ = addresses_of(agent)
            with pytest.raises(IpamError) as raised:
                await addresses.allocate("c1/eth0", None)
            assert str(raised.value) == (
                f"no address became available within {ALLOCATE_S:.0f} s; "
                "IP allocation is awaiting consensus (quorum: 2, known: 1)"
            )
            assert agent.node.ipam.status().pending_allocates == ()

    run(scenario())


def test_releasing_what_nobody_holds_is_refused() -> None:
    async def scenario() -> None:
        async with running(disk_is_prompt=True) as agent:
            addresses, _ = addresses_of(agent)
            with pytest.raises(IpamError, match="no addresses for nobody"):
                await addresses.release("nobody")

    run(scenario())


def test_a_range_that_is_used_up_is_known_before_anybody_asks() -> None:
    async def scenario() -> None:
        async with running(disk_is_prompt=True) as agent:
            addresses, _ = addresses_of(agent)
            assert await addresses.refusal() is None
            for number in range(254):
                await addresses.allocate(f"c{number}/eth0", None)
            assert await addresses.refusal() == Refused(
                f"no free address is left in {RANGE}, here or at any peer we know of"
            )

    run(scenario())


def test_with_address_allocation_off_everything_says_so_or_is_empty() -> None:
    async def scenario() -> None:
        async with running(disk_is_prompt=True, has_ipam=False) as agent:
            addresses, _ = addresses_of(agent)
            assert await addresses.refusal() == Refused(
                "IP address allocation is off: the agent was started without --ipalloc-range"
            )
            assert await addresses.lookup("c1/eth0") == ()
            assert await addresses.owned() == {}
            with pytest.raises(IpamError, match="IP address allocation is off"):
                await addresses.allocate("c1/eth0", None)
            with pytest.raises(IpamError, match="IP address allocation is off"):
                await addresses.gateway(RANGE)

    run(scenario())


# --- the gateway ------------------------------------------------------------------------------------------------------


def test_the_first_pod_makes_the_bridge_a_gateway_and_twenty_share_it() -> None:
    async def scenario() -> None:
        async with running(disk_is_prompt=True) as agent:
            addresses, bridge = addresses_of(agent)
            gateways = await asyncio.gather(*(addresses.gateway(RANGE) for _ in range(20)))
            (exposed,) = bridge.addresses
            assert set(gateways) == {exposed.address}
            assert agent.held(EXPOSED) == (exposed,)

    run(scenario())


def test_the_gateway_is_not_a_container_to_ipam() -> None:
    async def scenario() -> None:
        async with running(disk_is_prompt=True) as agent:
            addresses, _ = addresses_of(agent)
            await addresses.gateway(RANGE)
            (put,) = agent.store.disk.load().allocations
            assert (put.ident, put.is_container) == (EXPOSED, False)

    run(scenario())


def test_a_gateway_is_in_the_pods_own_subnet_if_the_bridge_has_one_there() -> None:
    async def scenario() -> None:
        async with running(disk_is_prompt=True) as agent:
            addresses, _ = addresses_of(agent)
            low, high = Cidr.parse("10.32.0.0/25"), Cidr.parse("10.32.0.128/25")
            first = await addresses.allocate(EXPOSED, low)
            second = await addresses.allocate(EXPOSED, high)
            assert await addresses.gateway(high) == second.address
            assert await addresses.gateway(low) == first.address
            assert await addresses.gateway(Cidr.parse("192.0.2.0/24")) == first.address

    run(scenario())


def test_a_gateway_that_the_kernel_refused_is_given_to_the_bridge_by_the_next_pod() -> None:
    async def scenario() -> None:
        async with running(disk_is_prompt=True) as agent:
            addresses, bridge = addresses_of(agent)
            bridge.problem = "operation not permitted"
            with pytest.raises(KernelError):
                await addresses.gateway(RANGE)
            bridge.problem = ""

            gateway = await addresses.gateway(RANGE)
            assert [cidr.address for cidr in bridge.addresses] == [gateway]

    run(scenario())


def test_a_pod_that_gives_up_half_way_leaves_no_gateway_that_the_bridge_lacks() -> None:
    async def scenario() -> None:
        async with running(disk_is_prompt=True) as agent:
            addresses, bridge = addresses_of(agent)
            bridge.gate = asyncio.Event()
            first = asyncio.create_task(addresses.gateway(RANGE))
            await settle()
            first.cancel()
            await settle()
            bridge.gate.set()

            gateway = await addresses.gateway(RANGE)
            assert [cidr.address for cidr in bridge.addresses] == [gateway]

    run(scenario())


def test_a_request_that_the_core_cancels_is_an_error_with_words() -> None:
    async def scenario() -> None:
        async with running(disk_is_prompt=True) as agent:
            addresses, _ = addresses_of(agent)
            agent.loop.feed(i.ShutDown())
            with pytest.raises(IpamError, match="no free address is left"):
                await addresses.allocate("c1/eth0", None)
            assert await addresses.refusal() is not None

    run(scenario())
