"""What --expose-ip says, and what exposing does to a bridge, to the rules, to IPAM and to the disk."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor

import msgspec
import pytest
import virtual_time
from fake_agent import Agent, running
from virtual_time import HeldExecutor

from weavenet.address import Address, Cidr
from weavenet.agent.addresses import NodeAddresses
from weavenet.agent.expose import (
    KEY_EXPOSED,
    Exposed,
    ExposeOption,
    Exposure,
    decode_exposed,
    encode_exposed,
    parse_expose_option,
)
from weavenet.agent.reconcile import Reconciler
from weavenet.agent.traffic import Traffic
from weavenet.dataplane.desired import HostSettings
from weavenet.dataplane.model import Bridge, HostRoute, MacAddress, Programs
from weavenet.dataplane.plan import AddAddress
from weavenet.effects import PutValue
from weavenet.errors import AddressError, ConfigError, IpamError, KernelError
from weavenet.node import inputs as i
from weavenet.node.report import EXPOSED
from weavenet.sim.devices import FakeDatapath
from weavenet.sim.kernel import FakeKernel

ONE, TWO = Cidr.parse("10.32.0.1/12"), Cidr.parse("192.0.2.1/24")
PROGRAMS = Programs("ingress-1", "egress-1")
SETTINGS = HostSettings(mac=MacAddress(0x7A_00_00_00_00_01), programs=PROGRAMS)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", None),
        (" , ", None),
        ("auto", ExposeOption()),
        ("10.32.0.1/12", ExposeOption((ONE,))),
        ("10.32.0.1/12, 192.0.2.1/24,10.32.0.1/12", ExposeOption((ONE, TWO))),
        ("10.0.0.0/31", ExposeOption((Cidr.parse("10.0.0.0/31"),))),
    ],
)
def test_the_option_is_auto_or_addresses_or_nothing(text: str, wanted: ExposeOption | None) -> None:
    assert parse_expose_option(text, allocates=True) == wanted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("auto", "needs --ipalloc-range"),
        ("10.32.0.1", "as in 10.32.0.0/12"),
        ("auto,10.32.0.1/12", "give auto, or addresses"),
        ("10.32.0.0/12", "the network's own"),
        ("10.47.255.255/12", "broadcast"),
        ("fd00::1/64", "invalid address"),
    ],
)
def test_what_cannot_be_exposed_is_refused_with_what_to_do(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_expose_option(text, allocates=False)


class Host:
    """A fake kernel with all that exposes, and what an agent has beside it."""

    def __init__(self, agent: Agent, *, stored: tuple[Exposed, ...] = ()) -> None:
        log = logging.getLogger("test")
        threads: Executor = HeldExecutor(is_open=True)
        datapath = FakeDatapath(PROGRAMS)
        self.agent = agent
        self.saved: list[tuple[Exposed, ...]] = []
        self.kernel = FakeKernel("weave", "vxlan-6784", datapath)
        self.traffic = Traffic(self.kernel, "weave", threads, log)
        self.reconciler = Reconciler(self.kernel, datapath, SETTINGS, threads, log)
        self.exposure = Exposure(self.reconciler, self.traffic, self._store, log, stored=stored)
        self.exposure.addresses = NodeAddresses(agent.loop, self.exposure.expose)

    async def _store(self, change: PutValue) -> None:
        assert change.key == KEY_EXPOSED
        self.saved.append(decode_exposed(change.value))

    def held(self) -> tuple[Cidr, ...]:
        return self.agent.held(EXPOSED)

    def addresses(self) -> tuple[Cidr, ...]:
        bridge = self.kernel.observe().bridge
        return bridge.addresses if isinstance(bridge, Bridge) else ()

    def subnets(self) -> list[str]:
        table = self.kernel.observe_traffic().table
        assert table is not None
        return [cidr for part in table.sets[1].ranges for cidr in map(str, part.cidrs())]


def run(
    scenario: Callable[[Host], Awaitable[None]], *, has_ipam: bool = True, stored: tuple[Exposed, ...] = ()
) -> None:
    async def on_a_host() -> None:
        async with running(disk_is_prompt=True, has_ipam=has_ipam) as agent:
            await scenario(Host(agent, stored=stored))

    virtual_time.run(on_a_host())


def test_an_exposed_address_is_on_the_bridge_and_its_subnet_masqueraded_until_it_is_hidden() -> None:
    async def scenario(host: Host) -> None:
        await host.exposure.expose(ONE)
        await host.exposure.expose(ONE)
        await host.exposure.expose(TWO, masquerade=False)
        assert (host.addresses(), host.subnets()) == ((ONE, TWO), ["10.32.0.0/12"])
        await host.exposure.hide(ONE)
        await host.exposure.hide(ONE)
        assert (host.addresses(), host.subnets()) == ((TWO,), [])
        await host.exposure.expose(TWO, masquerade=True)
        assert host.subnets() == ["192.0.2.0/24"]

    run(scenario)


def test_exposing_keeps_addresses_that_the_bridge_has_from_somebody_else() -> None:
    async def scenario(host: Host) -> None:
        await host.reconciler.make_host()
        host.kernel.apply(AddAddress("weave", TWO))
        await host.exposure.expose(ONE)
        assert host.addresses() == (ONE, TWO)

    run(scenario)


def test_what_nftables_refuses_is_reported_until_it_works_and_the_address_is_there_anyway() -> None:
    async def scenario(host: Host) -> None:
        host.kernel.nftables_problem = "cannot load libnftables.so.1"
        await host.exposure.expose(ONE)
        assert host.addresses() == (ONE,)
        assert host.traffic.problems == (
            "cannot set up how this host handles pods' traffic: cannot load libnftables.so.1",
        )
        host.kernel.nftables_problem = ""
        assert await host.traffic.try_to_look()
        assert host.traffic.problems == ()

    run(scenario)


def test_what_iptables_legacy_drops_is_reported_with_what_to_do_and_only_if_it_matters() -> None:
    async def scenario(host: Host) -> None:
        host.kernel.legacy_drops = True
        await host.reconciler.make_host()
        await host.traffic.look()
        assert host.traffic.problems == ()
        await host.exposure.expose(ONE)
        [problem] = host.traffic.problems
        assert "iptables-legacy -I FORWARD -i weave -j ACCEPT" in problem
        host.kernel.legacy_drops = False
        await host.traffic.look()
        assert host.traffic.problems == ()

    run(scenario)


def test_somebody_elses_change_of_the_rules_is_put_right_without_being_asked() -> None:
    async def scenario(host: Host) -> None:
        await host.exposure.expose(ONE)
        host.traffic.hint()
        keeping = asyncio.ensure_future(host.traffic.keep_looking())
        host.kernel.flush_rules()
        host.traffic.hint()
        while host.kernel.observe_traffic().table is None:  # noqa: ASYNC110 - the fake does not know who waits
            await asyncio.sleep(0.01)
        keeping.cancel()
        assert host.subnets() == ["10.32.0.0/12"]

    run(scenario)


# --- asked for by a user ----------------------------------------------------------------------------------------------

IN_RANGE, OTHER = Cidr.parse("10.32.0.1/24"), Cidr.parse("10.32.0.9/24")


def test_what_a_user_exposes_is_held_and_hiding_it_frees_it_however_often() -> None:
    async def scenario(host: Host) -> None:
        for _ in range(2):
            assert await host.exposure.claim_and_expose(IN_RANGE, masquerade=True) == ""
            assert (host.addresses(), host.held()) == ((IN_RANGE,), (IN_RANGE,))
        assert await host.exposure.exposed() == (Exposed(IN_RANGE, masquerade=True),)
        for _ in range(2):
            assert await host.exposure.hide_and_release(IN_RANGE) == ""
            assert (host.addresses(), host.held()) == ((), ())
        assert host.saved == [], "IPAM knows all there is to know"

    run(scenario)


def test_that_an_address_is_not_masqueraded_is_on_disk_until_it_is_or_is_hidden() -> None:
    async def scenario(host: Host) -> None:
        await host.exposure.claim_and_expose(IN_RANGE, masquerade=False)
        assert (host.saved, host.subnets()) == ([(Exposed(IN_RANGE, masquerade=False),)], [])
        await host.exposure.expose(IN_RANGE)  # as for each pod that starts
        assert (len(host.saved), host.subnets()) == (1, []), "who says nothing of it changes nothing"
        await host.exposure.claim_and_expose(IN_RANGE, masquerade=True)
        assert (host.saved[1:], host.subnets()) == ([()], ["10.32.0.0/24"])
        await host.exposure.claim_and_expose(IN_RANGE, masquerade=False)
        await host.exposure.hide_and_release(IN_RANGE)
        assert host.saved[-1] == ()

    run(scenario)


def test_an_agent_goes_on_with_what_an_earlier_one_stored() -> None:
    stored = (Exposed(TWO, masquerade=False),)

    async def scenario(host: Host) -> None:
        await host.exposure.expose(TWO)
        assert (host.addresses(), host.subnets(), host.saved) == ((TWO,), [], [])

    run(scenario, stored=stored)
    run(scenario, stored=stored, has_ipam=False)


def test_without_address_allocation_all_that_is_exposed_is_on_disk() -> None:
    async def scenario(host: Host) -> None:
        await host.exposure.claim_and_expose(ONE, masquerade=True)
        await host.exposure.claim_and_expose(TWO, masquerade=False)
        both = (Exposed(ONE, masquerade=True), Exposed(TWO, masquerade=False))
        assert (host.addresses(), host.saved[-1]) == ((ONE, TWO), both)
        assert await host.exposure.exposed() == both
        await host.exposure.hide_and_release(TWO)
        assert (host.addresses(), host.saved[-1]) == ((ONE,), both[:1])

    run(scenario, has_ipam=False)


def test_a_kernel_that_refuses_leaves_no_address_held_but_one_that_was_held_before() -> None:
    async def scenario(host: Host) -> None:
        await host.reconciler.make_host()

        def refuse(operation: str) -> None:
            if operation.startswith("ip address add"):
                raise KernelError("no")

        host.kernel._refuse = refuse
        with pytest.raises(KernelError):
            await host.exposure.claim_and_expose(IN_RANGE, masquerade=False)
        assert (host.held(), host.traffic.unmasqueraded, host.saved) == ((), set(), [])
        await host.exposure._addresses.claim(EXPOSED, IN_RANGE)
        with pytest.raises(KernelError):
            await host.exposure.claim_and_expose(IN_RANGE, masquerade=True)
        assert host.held() == (IN_RANGE,)

    run(scenario)


@pytest.mark.parametrize(
    ("address", "error", "said"),
    [
        ("10.32.0.0/24", AddressError, "give the bridge an address of a host"),
        ("10.32.0.255/24", AddressError, "broadcast address"),
        ("10.32.0.1/16", IpamError, "it is exposed as 10.32.0.1/24; hide that first: weave hide ip:10.32.0.1/24"),
        ("10.32.0.7/24", IpamError, "address 10.32.0.7/24 is already owned by c1"),
    ],
)
def test_what_cannot_be_exposed_on_request_is_refused_and_changes_nothing(
    address: str, error: type[Exception], said: str
) -> None:
    async def scenario(host: Host) -> None:
        await host.exposure.claim_and_expose(IN_RANGE, masquerade=True)
        await host.exposure._addresses.claim("c1", Cidr.parse("10.32.0.7/24"))
        with pytest.raises(error, match=said):
            await host.exposure.claim_and_expose(Cidr.parse(address), masquerade=True)
        assert (host.addresses(), host.held()) == ((IN_RANGE,), (IN_RANGE,))

    run(scenario)


def test_what_is_hidden_while_it_is_being_exposed_stays_hidden() -> None:
    async def scenario(host: Host) -> None:
        addresses = host.exposure._addresses
        async with addresses.exposing:
            exposing = asyncio.create_task(host.exposure.claim_and_expose(IN_RANGE, masquerade=True))
            await virtual_time.settle()
            assert host.held() == (IN_RANGE,)
            await addresses.release_address(EXPOSED, IN_RANGE.address)
        with pytest.raises(IpamError, match="was hidden while it was being exposed"):
            await exposing
        assert host.addresses() == ()

    run(scenario)


def test_hiding_frees_nothing_that_somebody_else_holds() -> None:
    async def scenario(host: Host) -> None:
        await host.reconciler.make_host()
        host.kernel.apply(AddAddress("weave", OTHER))
        await host.exposure._addresses.claim("c1", OTHER)
        await host.exposure.hide_and_release(OTHER)
        assert (host.addresses(), host.agent.held("c1")) == ((), (OTHER,))

    run(scenario)


def test_who_hides_a_gateway_of_pods_is_told_of_them() -> None:
    async def scenario(host: Host) -> None:
        await host.exposure.claim_and_expose(IN_RANGE, masquerade=True)
        await host.exposure.claim_and_expose(TWO, masquerade=True)
        await host.exposure._addresses.allocate("c1/eth0", None)
        assert await host.exposure.hide_and_release(TWO) == ""
        assert await host.exposure.hide_and_release(IN_RANGE) == (
            "1 pod of this host may have 10.32.0.1 as gateway, and then no way out of the pods' network; "
            "before more pods start, this gives it back to them: weave expose ip:10.32.0.1/24\n"
        )

    run(scenario)


def test_a_host_that_reaches_a_subnet_by_another_way_is_told() -> None:
    async def scenario(host: Host) -> None:
        host.kernel.routes = [HostRoute(TWO.network, "eth0")]
        assert await host.exposure.claim_and_expose(IN_RANGE, masquerade=True) == ""
        assert await host.exposure.claim_and_expose(TWO, masquerade=True) == (
            "Address 192.0.2.1/24 overlaps with existing route 192.0.2.0/24 dev eth0 on host\n"
        )
        assert host.addresses() == (IN_RANGE, TWO)

    run(scenario)


def test_who_has_left_the_mesh_exposes_nothing() -> None:
    async def scenario(host: Host) -> None:
        host.agent.loop.feed(i.ShutDown())
        with pytest.raises(IpamError, match=r"cancelled|could not be claimed"):
            await host.exposure.claim_and_expose(IN_RANGE, masquerade=True)
        assert host.addresses() == ()

    run(scenario)


def test_what_is_stored_is_read_back_and_nothing_is_nothing() -> None:
    exposed = (Exposed(Cidr(Address(1), 8), masquerade=True), Exposed(ONE, masquerade=False))
    assert decode_exposed(encode_exposed({each.address: each for each in reversed(exposed)})) == exposed
    assert decode_exposed(b"") == ()
    for rubbish in (b"{", b"[1]", b'[{"address": "x"}]'):
        with pytest.raises(msgspec.DecodeError):
            decode_exposed(rubbish)
