"""Keeps the kernel as it should be: the tables whenever routes change, the devices whenever somebody touched them.

Both are "look again", never deltas. Tables follow at once, since traffic waits for them. Devices are looked at when
netlink says that something changed, but a moment after the first hint, by when there are more: twenty pods that start
are one look and not twenty. Once a minute they are looked at anyway.

What the kernel refuses is tried again, ever more slowly, logged once, and shown in `weave report` until it works.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import Executor

from msgspec.structs import replace

from weavenet.address import Cidr
from weavenet.dataplane.desired import HostSettings
from weavenet.dataplane.kernel import Datapath, Kernel, Watch, reconcile
from weavenet.dataplane.model import Bridge, HostRoute, overlapping_routes
from weavenet.drivers.clock import read_clock
from weavenet.errors import KernelError
from weavenet.overlay.forwarding import Forwarding
from weavenet.overlay.lingering import Lingering

QUIET_S = 0.5
LOOK_ANYWAY_S = 60.0
RETRY_S = (1.0, 30.0)

TABLES, DEVICES = "tables", "devices"


class Reconciler:
    """One host's kernel, kept."""

    def __init__(
        self,
        kernel: Kernel,
        datapath: Datapath,
        settings: HostSettings,
        thread: Executor,
        log: logging.Logger,
    ) -> None:
        """All kernel calls are made in `thread`, one after the other."""
        self._kernel = kernel
        self._datapath = datapath
        self._settings = settings
        self._thread = thread
        self._log = log
        self._lingering = Lingering()
        self._devices_wanted = asyncio.Event()
        self._problems: dict[str, str] = {}
        self.on_change: Callable[[], None] = lambda: None  # called when the devices were not as they should be

    async def make_host(self) -> None:
        """Bring the host's devices to what they should be. Raises KernelError: an agent without them is of no use."""
        loop = asyncio.get_running_loop()
        changes = await loop.run_in_executor(self._thread, reconcile, self._kernel, self._settings)
        for change in changes:
            self._log.info("kernel: %s", change)
        if changes:
            self.on_change()

    async def expose(self, address: Cidr) -> None:
        """Give the bridge an address, now and from now on; again costs nothing. Raises KernelError: then it has not."""
        before = self._settings
        known = await self.addresses()
        if before.addresses is not None and address in known:
            return
        self._settings = replace(before, addresses=tuple(dict.fromkeys((*known, address))))
        try:
            await self.make_host()
        except KernelError:
            # Not when cancelled: the thread goes on, and what it does not bring about keep_devices will.
            self._settings = before
            raise

    async def hide(self, address: Cidr) -> None:
        """Take an address from the bridge, for good. That it does not have it is fine. Raises KernelError."""
        known = await self.addresses()
        self._settings = replace(self._settings, addresses=tuple(other for other in known if other != address))
        await self.make_host()

    async def addresses(self) -> tuple[Cidr, ...]:
        """Return what the bridge should have: what was asked for, or else what it has, from whomever."""
        if self._settings.addresses is not None:
            return self._settings.addresses
        network = await asyncio.get_running_loop().run_in_executor(self._thread, self._kernel.observe)
        return network.bridge.addresses if isinstance(network.bridge, Bridge) else ()

    async def overlapping_routes(self, subnet: Cidr) -> tuple[HostRoute, ...]:
        """Return this host's routes that take some of a subnet elsewhere. Raises KernelError."""
        routes = await asyncio.get_running_loop().run_in_executor(self._thread, self._kernel.host_routes)
        return overlapping_routes(routes, subnet.range, self._settings.bridge)

    async def keep_tables(self, wanted: asyncio.Event, forwarding: Callable[[], Forwarding]) -> None:
        """Fill the data plane's tables whenever `wanted` says so, until cancelled."""
        loop = asyncio.get_running_loop()
        retry_s = RETRY_S[0]
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._lingering_s()):
                    await wanted.wait()
            wanted.clear()
            try:
                await loop.run_in_executor(self._thread, self._update_tables, forwarding())
            except KernelError as error:
                self._failed(TABLES, f"cannot update the data plane's tables: {error}")
                wanted.set()
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, RETRY_S[1])
            else:
                self._worked(TABLES)
                retry_s = RETRY_S[0]

    def _lingering_s(self) -> float | None:
        due_s = self._lingering.next_deadline()
        return None if due_s is None else max(0.0, due_s - read_clock().monotonic_s)

    def _update_tables(self, wanted: Forwarding) -> None:
        held = self._datapath.observe_forwarding()
        self._datapath.apply_forwarding(self._lingering.keep(held, wanted, read_clock().monotonic_s))

    async def keep_devices(self) -> None:
        """Look after the devices, until cancelled."""
        loop = asyncio.get_running_loop()
        watch = self._kernel.changes()
        loop.add_reader(watch.fileno(), self._hinted, watch)
        retry_s = RETRY_S[0]
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_ANYWAY_S):
                        await self._devices_wanted.wait()
                        await asyncio.sleep(QUIET_S)
                self._devices_wanted.clear()
                try:
                    await self.make_host()
                except KernelError as error:
                    self._failed(DEVICES, f"cannot set up this host's devices: {error}")
                    self._devices_wanted.set()
                    await asyncio.sleep(retry_s)
                    retry_s = min(retry_s * 2, RETRY_S[1])
                else:
                    self._worked(DEVICES)
                    retry_s = RETRY_S[0]
        finally:
            loop.remove_reader(watch.fileno())
            watch.close()

    def _hinted(self, watch: Watch) -> None:
        if watch.drain():
            self._devices_wanted.set()

    @property
    def problems(self) -> tuple[str, ...]:
        """What stands between the kernel and what it should be."""
        return tuple(self._problems[area] for area in sorted(self._problems))

    def _failed(self, area: str, problem: str) -> None:
        if problem != self._problems.get(area):
            self._log.error("%s", problem)
        self._problems[area] = problem

    def _worked(self, area: str) -> None:
        if self._problems.pop(area, None) is not None:
            self._log.info("the kernel's %s are as they should be again", area)
