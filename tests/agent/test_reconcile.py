"""Keeping the kernel as it should be, in virtual time, over the kernel in memory that the simulator has."""

import asyncio
import os
from contextlib import asynccontextmanager, suppress
from itertools import pairwise

import pytest
from fake_agent import listed_log
from virtual_time import HeldExecutor, read_clock, run, settle

from weavenet.address import Cidr
from weavenet.agent.reconcile import LOOK_ANYWAY_S, QUIET_S, RETRY_S, Reconciler
from weavenet.dataplane.desired import HostSettings
from weavenet.dataplane.model import Bridge, HostNetwork, PodLink, Programs, Vxlan, bridge_mac
from weavenet.dataplane.plan import SetUp
from weavenet.errors import KernelError
from weavenet.identity import PeerName, ShortID
from weavenet.overlay.forwarding import Forwarding
from weavenet.sim.devices import FakeDatapath, FakeWatch
from weavenet.sim.kernel import FakeKernel

PROGRAMS = Programs("ingress-1", "egress-1")
SETTINGS = HostSettings(mac=bridge_mac(PeerName(0x7A00_0000_0001)), programs=PROGRAMS)
ADDRESS = Cidr.parse("10.32.0.1/12")


class ReadableWatch(FakeWatch):
    """Hints that wake an event loop, as a netlink socket does."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK)
        self._count = 0

    @property
    def hints(self) -> int:
        return self._count

    @hints.setter
    def hints(self, count: int) -> None:
        if count > self._count:
            os.eventfd_write(self._descriptor, 1)
        self._count = count

    def fileno(self) -> int:
        return self._descriptor

    def drain(self) -> bool:
        os.eventfd_read(self._descriptor)
        return super().drain()

    def close(self) -> None:
        os.close(self._descriptor)


class Kernel(FakeKernel):
    """The fake kernel, with hints that wake, and with `problem` as what it refuses everything with."""

    def __init__(self, datapath: FakeDatapath) -> None:
        super().__init__("weave", "vxlan-6784", datapath, self._refuse_all)
        self.problem = ""
        self.looks_s: list[float] = []

    def _refuse_all(self, operation: str) -> None:
        if self.problem:
            raise KernelError(f"cannot {operation}: {self.problem}")

    def changes(self) -> ReadableWatch:
        watch = ReadableWatch()
        self._watches.append(watch)
        return watch

    def observe(self) -> HostNetwork:
        self.looks_s.append(read_clock().monotonic_s)
        return super().observe()


class Datapath(FakeDatapath):
    """The fake tables, with `problem` as what they refuse."""

    def __init__(self) -> None:
        super().__init__(PROGRAMS)
        self.problem = ""
        self.tries_s: list[float] = []

    def apply_forwarding(self, forwarding: Forwarding) -> None:
        self.tries_s.append(read_clock().monotonic_s)
        if self.problem:
            raise KernelError(self.problem)
        super().apply_forwarding(forwarding)


class Host:
    """A reconciler over its fakes; kernel calls are prompt unless `thread` is closed."""

    def __init__(self) -> None:
        self.datapath = Datapath()
        self.kernel = Kernel(self.datapath)
        self.thread = HeldExecutor(is_open=True)
        self.logged: list[tuple[int, str]] = []
        self.reconciler = Reconciler(self.kernel, self.datapath, SETTINGS, self.thread, listed_log(self.logged))
        self.began_s = read_clock().monotonic_s

    @property
    def texts(self) -> list[str]:
        return [text for _, text in self.logged]

    def since_start(self, moments_s: list[float]) -> list[float]:
        return [round(moment - self.began_s, 3) for moment in moments_s]

    def is_as_it_should_be(self) -> bool:
        network = self.kernel.observe()
        self.kernel.looks_s.pop()
        devices = isinstance(network.bridge, Bridge) and isinstance(network.vxlan, Vxlan)
        return devices and network.bridge.up and network.vxlan.up and network.vxlan.programs == PROGRAMS


@asynccontextmanager
async def keeping_devices():
    host = Host()
    await host.reconciler.make_host()
    host.kernel.looks_s.clear()
    host.logged.clear()
    task = asyncio.create_task(host.reconciler.keep_devices())
    await settle()
    try:
        yield host
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def keeping_tables(host: Host, wanted: asyncio.Event, forwarding=lambda: Forwarding(ShortID(1), {}, {})):
    task = asyncio.create_task(host.reconciler.keep_tables(wanted, forwarding))
    await settle()
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


# --- devices ----------------------------------------------------------------------------------------------------------


def test_a_host_is_made_from_nothing_and_what_was_done_is_logged() -> None:
    async def scenario() -> None:
        host = Host()
        await host.reconciler.make_host()
        assert host.is_as_it_should_be()
        assert host.texts[0].startswith("kernel: ")

        host.logged.clear()
        await host.reconciler.make_host()
        assert host.texts == [], "twice is once"

    run(scenario())


def test_a_device_that_somebody_deletes_is_back_after_a_moment() -> None:
    async def scenario() -> None:
        async with keeping_devices() as host:
            host.kernel.delete_device("vxlan-6784")
            await asyncio.sleep(QUIET_S / 2)
            assert not host.is_as_it_should_be()
            await asyncio.sleep(QUIET_S)
            assert host.is_as_it_should_be()
            assert host.reconciler.problems == ()

    run(scenario())


def test_a_storm_of_hints_is_one_look() -> None:
    async def scenario() -> None:
        async with keeping_devices() as host:
            for number in range(200):
                host.kernel.add_device(f"dummy{number}", "dummy")
                await asyncio.sleep(QUIET_S / 1000)
            await asyncio.sleep(5 * QUIET_S)
            assert host.since_start(host.kernel.looks_s) == [QUIET_S]

    run(scenario())


def test_a_storm_that_does_not_end_delays_no_look_for_ever() -> None:
    async def scenario() -> None:
        async with keeping_devices() as host:
            for number in range(100):
                host.kernel.add_device(f"dummy{number}", "dummy")
                await asyncio.sleep(QUIET_S / 10)
            assert len(host.kernel.looks_s) == pytest.approx(10, abs=1)

    run(scenario())


def test_what_the_reconciler_changes_itself_makes_it_look_once_more_and_then_rest() -> None:
    async def scenario() -> None:
        async with keeping_devices() as host:
            host.kernel.delete_device("vxlan-6784")
            await asyncio.sleep(LOOK_ANYWAY_S / 2)
            # Observe, apply, observe again to verify; and one look more for the hints of its own changes.
            assert host.since_start(host.kernel.looks_s) == [QUIET_S, QUIET_S, 2 * QUIET_S]

    run(scenario())


def test_without_any_hint_devices_are_looked_at_once_a_minute() -> None:
    async def scenario() -> None:
        async with keeping_devices() as host:
            await asyncio.sleep(3 * LOOK_ANYWAY_S + 1)
            assert host.since_start(host.kernel.looks_s) == [LOOK_ANYWAY_S, 2 * LOOK_ANYWAY_S, 3 * LOOK_ANYWAY_S]

    run(scenario())


def test_what_the_kernel_refuses_is_tried_ever_more_slowly_logged_once_and_reported_until_it_works() -> None:
    async def scenario() -> None:
        async with keeping_devices() as host:
            host.kernel.problem = "operation not permitted"
            host.kernel.delete_device("weave")
            await asyncio.sleep(200.0)
            looks_s = host.since_start(host.kernel.looks_s)
            # A failing look observes up to four times at one moment.
            moments_s = sorted(set(looks_s))
            waits_s = [round(later - earlier - QUIET_S, 3) for earlier, later in pairwise(moments_s)]
            assert waits_s[:6] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
            assert set(waits_s[5:]) == {RETRY_S[1]}
            (problem,) = host.reconciler.problems
            assert problem.startswith("cannot set up this host's devices: ")
            assert host.texts == [problem]

            host.kernel.problem = ""
            await asyncio.sleep(RETRY_S[1] + 1)
            assert host.is_as_it_should_be()
            assert host.reconciler.problems == ()
            assert host.texts[-1] == "the kernel's devices are as they should be again"

    run(scenario())


def test_once_it_has_worked_the_next_failure_is_tried_again_soon() -> None:
    async def scenario() -> None:
        async with keeping_devices() as host:
            for _ in range(2):
                host.kernel.problem = "out of memory"
                host.kernel.delete_device("weave")
                await asyncio.sleep(60.0)
                host.kernel.problem = ""
                await asyncio.sleep(RETRY_S[1] + 1)
                assert host.reconciler.problems == ()
            host.kernel.looks_s.clear()
            host.kernel.problem = "out of memory"
            host.kernel.delete_device("weave")
            await asyncio.sleep(QUIET_S + RETRY_S[0] + QUIET_S + 0.1)
            assert len(set(host.kernel.looks_s)) == 2

    run(scenario())


def test_a_problem_that_changes_its_words_is_logged_again() -> None:
    async def scenario() -> None:
        async with keeping_devices() as host:
            host.kernel.problem = "out of memory"
            host.kernel.delete_device("weave")
            await asyncio.sleep(3.0)
            host.kernel.problem = "operation not permitted"
            await asyncio.sleep(10.0)
            assert len(host.texts) == 2
            assert len(host.reconciler.problems) == 1

    run(scenario())


def test_a_watch_is_closed_when_its_keeper_ends() -> None:
    async def scenario() -> None:
        async with keeping_devices() as host:
            (watch,) = host.kernel._watches
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(watch.fileno())

    run(scenario())


# --- tables -----------------------------------------------------------------------------------------------------------


def test_tables_follow_at_once_and_many_wishes_are_one() -> None:
    async def scenario() -> None:
        host, wanted = Host(), asyncio.Event()
        now = [Forwarding(ShortID(1), {}, {})]
        async with keeping_tables(host, wanted, lambda: now[0]):
            host.thread.is_open = False
            wanted.set()
            await settle()
            for short_id in (2, 3, 4):
                now[0] = Forwarding(ShortID(short_id), {}, {})
                wanted.set()
            while len(host.thread):
                host.thread.run_next()
                await settle()

            assert host.datapath.forwarding.ours == 4
            assert host.since_start(host.datapath.tries_s) == [0.0, 0.0], "one in the work, and one for all that came"

    run(scenario())


def test_tables_that_are_refused_are_tried_ever_more_slowly_with_what_is_wanted_by_then() -> None:
    async def scenario() -> None:
        host, wanted = Host(), asyncio.Event()
        now = [Forwarding(ShortID(1), {}, {})]
        async with keeping_tables(host, wanted, lambda: now[0]):
            host.datapath.problem = "map is full"
            wanted.set()
            await asyncio.sleep(100.0)
            assert host.since_start(host.datapath.tries_s) == [0.0, 1.0, 3.0, 7.0, 15.0, 31.0, 61.0, 91.0]
            assert host.reconciler.problems == ("cannot update the data plane's tables: map is full",)
            assert host.texts == ["cannot update the data plane's tables: map is full"]

            host.datapath.problem, now[0] = "", Forwarding(ShortID(9), {}, {})
            await asyncio.sleep(RETRY_S[1])
            assert host.datapath.forwarding.ours == 9
            assert host.reconciler.problems == ()
            assert host.texts[1:] == ["the kernel's tables are as they should be again"]

    run(scenario())


def test_problems_of_devices_and_tables_are_reported_side_by_side() -> None:
    async def scenario() -> None:
        async with keeping_devices() as host:
            wanted = asyncio.Event()
            async with keeping_tables(host, wanted):
                host.datapath.problem = "map is full"
                host.kernel.problem = "operation not permitted"
                wanted.set()
                host.kernel.delete_device("weave")
                await asyncio.sleep(5.0)
                assert [problem.partition(":")[0] for problem in host.reconciler.problems] == [
                    "cannot set up this host's devices",
                    "cannot update the data plane's tables",
                ]

    run(scenario())


# --- the bridge's address ---------------------------------------------------------------------------------------------


def bridge_addresses(host: Host) -> tuple[Cidr, ...]:
    bridge = host.kernel.observe().bridge
    assert isinstance(bridge, Bridge)
    return bridge.addresses


def test_an_exposed_address_is_on_the_bridge_and_stays_there() -> None:
    async def scenario() -> None:
        async with keeping_devices() as host:
            await host.reconciler.expose(ADDRESS)
            assert bridge_addresses(host) == (ADDRESS,)
            host.kernel.delete_device("weave")
            await asyncio.sleep(2 * QUIET_S)
            assert bridge_addresses(host) == (ADDRESS,)

    run(scenario())


def test_exposing_again_costs_the_kernel_nothing() -> None:
    async def scenario() -> None:
        host = Host()
        await host.reconciler.expose(ADDRESS)
        host.kernel.looks_s.clear()
        await host.reconciler.expose(ADDRESS)
        assert host.kernel.looks_s == []

    run(scenario())


def test_exposing_that_fails_is_tried_again_by_the_next_call() -> None:
    async def scenario() -> None:
        host = Host()
        await host.reconciler.make_host()
        host.kernel.problem = "operation not permitted"
        with pytest.raises(KernelError):
            await host.reconciler.expose(ADDRESS)
        host.kernel.problem = ""
        await host.reconciler.expose(ADDRESS)
        assert bridge_addresses(host) == (ADDRESS,)

    run(scenario())


def test_pods_are_left_connected_while_devices_are_kept() -> None:
    async def scenario() -> None:
        async with keeping_devices() as host:
            namespace = host.kernel.make_namespace()
            link = PodLink("c" * 12, "eth0", namespace, Cidr.parse("10.32.0.2/12"), None, (), 1376, hairpin=True)
            interface = host.kernel.attach_pod(link)
            host.kernel.apply(SetUp(interface.host_end, up=False))
            await asyncio.sleep(2 * QUIET_S)
            (port,) = host.kernel.list_pods()
            assert port.up
            assert port.master == "weave"

    run(scenario())
