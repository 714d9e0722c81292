"""Keeps how this host handles pods' traffic: masquerading, host ports, and what lets it through iptables' FORWARD.

What is wanted comes from three places, asked at every look: the bridge's addresses (the kernel), the ring's ranges of
this peer (IPAM), and the host ports of pods. A look compares all of it with the kernel. It happens when one of them has
changed, when somebody has touched our table or iptables' filter table (the kernel tells), and once a minute anyway:
`nft flush ruleset` or `iptables -F` cost pods half a second.

Unlike the devices this is nothing without which an agent is of no use, so a host without libnftables, or one that
refuses a rule, gets a line in the log and in `weave report`, and the next try.
"""

import asyncio
import contextlib
import logging
import textwrap
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from weavenet.address import Cidr, Range
from weavenet.dataplane.kernel import Kernel, Watch, reconcile_traffic
from weavenet.dataplane.model import Bridge
from weavenet.dataplane.nft import PortMapping
from weavenet.dataplane.traffic import TrafficChange, TrafficSettings
from weavenet.errors import KernelError

QUIET_S = 0.2
LOOK_ANYWAY_S = 60.0
RETRY_S = (1.0, 30.0)
LOGGED_MAX = 200  # the whole table is two thousand characters, which is for the debug log


class Traffic:
    """One host's handling of pods' traffic, kept."""

    def __init__(self, kernel: Kernel, bridge: str, thread: ThreadPoolExecutor, log: logging.Logger) -> None:
        """All kernel calls are made in `thread`, one after the other."""
        self._kernel = kernel
        self._bridge = bridge
        self._thread = thread
        self._log = log
        self._wanted = asyncio.Event()
        self._problem = ""
        self._obstacle = ""  # what we can see, and not change
        # Wired before the first look. `ours` gives None where outside clients are masqueraded for everybody.
        self.ours: Callable[[], Iterable[Range] | None] = lambda: None
        self.mappings: Callable[[], tuple[PortMapping, ...]] = tuple
        self.heartbeats: int | None = None  # UDP port at which they come, if their log is read
        self.unmasqueraded: set[Cidr] = set()  # addresses of the bridge that were exposed so

    def hint(self) -> None:
        """Say that something may have changed."""
        self._wanted.set()

    async def look(self) -> None:
        """Compare with the kernel, and put right what is not as it should be.

        Raises KernelError; `keep` then tries again by itself.
        """
        ours = self.ours()
        ranges, mappings = None if ours is None else tuple(ours), self.mappings()
        unmasqueraded = frozenset(self.unmasqueraded)

        def work() -> tuple[tuple[TrafficChange, ...], bool]:
            bridge = self._kernel.observe().bridge
            addresses = bridge.addresses if isinstance(bridge, Bridge) else ()
            subnets = tuple(address.network for address in addresses if address not in unmasqueraded)
            routes = bool(addresses or mappings)
            settings = TrafficSettings(
                self._bridge, subnets, ranges, mappings, routes=routes, heartbeats=self.heartbeats
            )
            return reconcile_traffic(self._kernel, settings), routes and self._is_dropped()

        try:
            changes, is_dropped = await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except KernelError:
            self.hint()
            raise
        for change in changes:
            self._log.info("kernel: %s", textwrap.shorten(str(change), LOGGED_MAX, placeholder=" …"))
            self._log.debug("kernel: %s", change)
        self._note_obstacle(is_dropped=is_dropped)

    def _is_dropped(self) -> bool:
        try:
            return self._kernel.legacy_forward_drops()
        except KernelError as error:
            self._log.debug("cannot tell whether pods' traffic is dropped: %s", error)
            return False

    def _note_obstacle(self, *, is_dropped: bool) -> None:
        obstacle = ""
        if is_dropped:
            obstacle = (
                "iptables-legacy's FORWARD drops what pods send through this host, and nftables cannot overrule it: "
                f"iptables-legacy -I FORWARD -i {self._bridge} -j ACCEPT; "
                f"iptables-legacy -I FORWARD -o {self._bridge} -j ACCEPT"
            )
        if obstacle and not self._obstacle:
            self._log.warning("%s", obstacle)
        self._obstacle = obstacle

    async def try_to_look(self) -> bool:
        """Look; what the kernel refuses becomes the problem of the day."""
        try:
            await self.look()
        except KernelError as error:
            problem = f"cannot set up how this host handles pods' traffic: {error}"
            if problem != self._problem:
                self._log.error("%s", problem)
            self._problem = problem
            return False
        if self._problem:
            self._log.info("this host handles pods' traffic as it should again")
        self._problem = ""
        return True

    async def keep(self) -> None:
        """Look after it, until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            watch = await loop.run_in_executor(self._thread, self._kernel.traffic_changes)
        except KernelError as error:  # a kernel without nftables: then there is nothing to hear of
            self._log.warning("cannot hear of changes to nftables, and look once a minute: %s", error)
            await self.keep_looking()
            return
        loop.add_reader(watch.fileno(), self._hinted, watch)
        try:
            await self.keep_looking()
        finally:
            loop.remove_reader(watch.fileno())
            watch.close()

    async def keep_looking(self) -> None:
        """Look whenever something hints that it is worth it, and once a minute, until cancelled."""
        retry_s = RETRY_S[0]
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_ANYWAY_S):
                    await self._wanted.wait()
                    await asyncio.sleep(QUIET_S)  # whoever changes one rule mostly changes some more
            self._wanted.clear()
            if await self.try_to_look():
                retry_s = RETRY_S[0]
            else:
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, RETRY_S[1])

    def _hinted(self, watch: Watch) -> None:
        if watch.drain():
            self.hint()

    @property
    def has_failed(self) -> bool:
        """Whether what is wanted is not there, as far as is known."""
        return bool(self._problem)

    @property
    def problems(self) -> tuple[str, ...]:
        """What stands between the kernel and what it should be."""
        return tuple(filter(None, (self._problem, self._obstacle)))
