"""What --expose-ip says, and what exposing does to a bridge and to the rules."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from weavenet.address import Cidr
from weavenet.agent.expose import ExposeOption, Exposure, parse_expose_option
from weavenet.agent.reconcile import Reconciler
from weavenet.agent.traffic import Traffic
from weavenet.dataplane.desired import HostSettings
from weavenet.dataplane.model import Bridge, MacAddress, Programs
from weavenet.dataplane.plan import AddAddress
from weavenet.errors import ConfigError
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
    """A fake kernel with all that exposes."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        log = logging.getLogger("test")
        datapath = FakeDatapath(PROGRAMS)
        self.kernel = FakeKernel("weave", "vxlan-6784", datapath)
        self.traffic = Traffic(self.kernel, "weave", threads, log)
        self.reconciler = Reconciler(self.kernel, datapath, SETTINGS, threads, log)
        self.exposure = Exposure(self.reconciler, self.traffic, log)

    def addresses(self) -> tuple[Cidr, ...]:
        bridge = self.kernel.observe().bridge
        return bridge.addresses if isinstance(bridge, Bridge) else ()

    def subnets(self) -> list[str]:
        table = self.kernel.observe_traffic().table
        assert table is not None
        return [cidr for part in table.sets[1].ranges for cidr in map(str, part.cidrs())]


def run(scenario: Callable[[Host], Awaitable[None]]) -> None:
    with ThreadPoolExecutor(1) as threads:

        async def timed() -> None:
            async with asyncio.timeout(10):
                await scenario(Host(threads))

        asyncio.run(timed())


def test_an_exposed_address_is_on_the_bridge_and_its_subnet_masqueraded_until_it_is_hidden() -> None:
    async def scenario(host: Host) -> None:
        await host.exposure.expose(ONE)
        await host.exposure.expose(ONE)
        await host.exposure.expose(TWO, masquerade=False)
        assert (host.addresses(), host.subnets()) == ((ONE, TWO), ["10.32.0.0/12"])
        await host.exposure.hide(ONE)
        await host.exposure.hide(ONE)
        assert (host.addresses(), host.subnets()) == ((TWO,), [])
        await host.exposure.expose(TWO)
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
