"""The report: what the node knows and what only the kernel does, over the kernel in memory and made-up tables."""

import asyncio
from dataclasses import dataclass, field

import pytest
from fake_agent import NAME, Agent, listed_log, running
from virtual_time import HeldExecutor, run, settle

from weavenet.address import Cidr
from weavenet.agent.reconcile import Reconciler
from weavenet.agent.reporting import VERSION, Reporter
from weavenet.api.schema import decode_report, encode_report
from weavenet.api.text import ps_text, status_text
from weavenet.dataplane.desired import HostSettings
from weavenet.dataplane.model import MacAddress, PodLink, Programs, bridge_mac
from weavenet.effects import Now
from weavenet.errors import KernelError
from weavenet.identity import ShortID, format_peer_name
from weavenet.linux.fastdp import Counter, MacEntry, Traffic
from weavenet.node import inputs as i
from weavenet.node.report import Attachment
from weavenet.sim.devices import FakeDatapath
from weavenet.sim.kernel import FakeKernel

SETTINGS = HostSettings(mac=bridge_mac(NAME), programs=Programs("ingress-1", "egress-1"))
BRIDGE_MAC = "7a:00:00:00:00:01"
POD_MAC = MacAddress(0x0200_0000_0042)


@dataclass
class Maps:
    """What the data plane has learnt and counted."""

    entries: list[MacEntry] = field(default_factory=list)
    problem: str = ""

    def macs(self) -> list[MacEntry]:
        if self.problem:
            raise KernelError(self.problem)
        return self.entries

    def counters(self) -> dict[Counter, int]:
        return {Counter.LEARNT: 3, Counter.FLOODED: 0}

    def traffic(self, short_ids: list[ShortID]) -> dict[ShortID, Traffic]:
        return {short_id: Traffic(1, 60, 2, 120) for short_id in short_ids}


class Host:
    """A reporter over an agent and its kernel."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.datapath = FakeDatapath(SETTINGS.programs)
        self.datapath.maps = Maps()
        self.problem = ""
        self.kernel = FakeKernel("weave", "vxlan-6784", self.datapath, self.refuse)
        self.thread = HeldExecutor(is_open=True)
        self.reconciler = Reconciler(self.kernel, self.datapath, SETTINGS, self.thread, listed_log([]))
        self.reporter = Reporter(agent.loop, self.kernel, self.datapath, (self.reconciler,), self.thread)

    def refuse(self, operation: str) -> None:
        if self.problem:
            raise KernelError(f"cannot {operation}: {self.problem}")

    def attach(self, container_id: str, ifname: str, address: Cidr) -> None:
        namespace = self.kernel.make_namespace()
        link = PodLink(container_id, ifname, namespace, address, None, (), 1376, hairpin=True, mac=POD_MAC)
        self.kernel.attach_pod(link)


async def reserve(agent: Agent, ident: str) -> Cidr:
    outcome = await agent.loop.request(lambda number: i.Allocate(number, ident, None, is_container=True), 60.0)
    return outcome.addresses[0]


def test_a_report_has_all_parts_and_reads_as_it_was_written() -> None:
    async def scenario() -> None:
        async with running(disk_is_prompt=True) as agent:
            host = Host(agent)
            await host.reconciler.make_host()
            report = await host.reporter.report()

            assert (report.ready, report.version) == (True, VERSION)
            assert (report.router.name, report.router.nick_name) == (format_peer_name(NAME), "host1")
            assert report.ipam.range == "10.32.0.0/24"
            assert report.weavenet.counters == {"learnt": 3, "flooded": 0}
            assert report.weavenet.problems is None
            assert decode_report(encode_report(report)) == report

    run(scenario())


def test_pods_are_reported_with_their_own_mac_and_the_addresses_that_ipam_gave_them() -> None:
    async def scenario() -> None:
        async with running(disk_is_prompt=True) as agent:
            host = Host(agent)
            await host.reconciler.make_host()
            await host.reconciler.expose(Cidr.parse("10.32.0.1/24"))
            first = await reserve(agent, "c0ffee0123456789/eth0")
            second = await reserve(agent, "c0ffee0123456789/net1/other-network")
            await reserve(agent, "c0ffee0123456789-and-more/eth0")
            host.attach("c0ffee0123456789", "eth0", first)
            host.attach("c0ffee0123456789", "net1", second)
            host.attach("0ddba11000000000", "eth0", Cidr.parse("10.32.0.99/24"))
            report = await host.reporter.report()

            assert set(report.weavenet.attachments) == {
                Attachment("weave:expose", "weave", BRIDGE_MAC, ("10.32.0.1/24",)),
                Attachment("c0ffee0123456789", "vethweplc0ffee0", "02:00:00:00:00:42", (str(first),)),
                Attachment(
                    "c0ffee0123456789",
                    next(pod.name for pod in host.kernel.list_pods() if pod.ifname == "net1"),
                    "02:00:00:00:00:42",
                    (str(second),),
                ),
                Attachment("0ddba11000000000", "vethwepl0ddba11", "02:00:00:00:00:42", None),
            }
            assert ps_text(report, ["weave:expose", "c0ffee"]).splitlines() == [
                f"weave:expose {BRIDGE_MAC} 10.32.0.1/24",
                f"c0ffee012345 02:00:00:00:00:42 {first}",
                f"c0ffee012345 02:00:00:00:00:42 {second}",
            ]

    run(scenario())


def test_learnt_macs_are_reported_with_the_peer_behind_which_they_are_and_when_they_were_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        async with running(disk_is_prompt=True) as agent:
            host = Host(agent)
            host.datapath.maps.entries = [
                MacEntry(POD_MAC, None, 60.0),
                MacEntry(MacAddress(0x0200_0000_0043), ShortID(0xABC), 1.0),
            ]
            (mac,) = (await host.reporter.report()).router.macs
            assert (mac.mac, mac.name, mac.nick_name) == ("02:00:00:00:00:42", format_peer_name(NAME), "host1")
            assert mac.last_seen == "2026-11-23T20:58:20Z", "and nobody is known who has the other's short ID"

    seen_s = 1_795_467_560.0  # 2026-11-23 20:59:20 UTC
    monkeypatch.setattr("weavenet.agent.reporting.read_clock", lambda: Now(0.0, seen_s))
    run(scenario())


def test_what_the_kernel_will_not_tell_is_missing_and_named_among_the_problems() -> None:
    async def scenario() -> None:
        async with running(disk_is_prompt=True) as agent:
            host = Host(agent)
            host.problem = "operation not permitted"
            report = await host.reporter.report()
            assert report.weavenet.attachments is None
            assert report.weavenet.problems == ("cannot look at the host's devices: operation not permitted",)
            assert report.weavenet.counters == {}
            assert "Problem: cannot look at the host's devices: operation not permitted\n" in status_text(report)

            host.problem, host.datapath.maps.problem = "", "the tables are not pinned"
            assert (await host.reporter.report()).weavenet.problems == ("the tables are not pinned",)

    run(scenario())


def test_without_address_allocation_its_part_is_missing_and_pods_are_still_listed() -> None:
    async def scenario() -> None:
        async with running(disk_is_prompt=True, has_ipam=False) as agent:
            host = Host(agent)
            await host.reconciler.make_host()
            host.attach("c0ffee0123456789", "eth0", Cidr.parse("10.32.0.2/24"))
            report = await host.reporter.report()
            assert report.ipam is None
            assert b'"IPAM"' not in encode_report(report)
            assert [one.addresses for one in report.weavenet.attachments] == [None, None]

    run(scenario())


def test_a_slow_kernel_delays_a_report_and_nothing_else() -> None:
    async def scenario() -> None:
        async with running(disk_is_prompt=True) as agent:
            host = Host(agent)
            host.thread.is_open = False
            report = asyncio.create_task(host.reporter.report())
            await settle()
            await reserve(agent, "c1/eth0")
            assert not report.done()
            host.thread.run_next()
            assert (await report).ipam.active_ips == 1, "the node's part is as of when the kernel's is there"

    run(scenario())
