"""Puts the report together: what the node knows, and what only the kernel does."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from datetime import UTC, datetime
from typing import Protocol

import msgspec
from msgspec.structs import astuple

from weavenet.address import Cidr
from weavenet.agent.loop import NodeLoop
from weavenet.dataplane.kernel import Kernel
from weavenet.dataplane.model import HostNetwork, format_mac
from weavenet.drivers.clock import read_clock
from weavenet.effects import ConnectionNumber
from weavenet.errors import KernelError
from weavenet.identity import ShortID, format_peer_name
from weavenet.linux.datapath import FastDatapath
from weavenet.linux.fastdp import MacEntry
from weavenet.node import report as r
from weavenet.node.status import attachment_reports, ipam_report, link_reports, router_report
from weavenet.version import VERSION


class _Observed(msgspec.Struct, frozen=True):
    network: HostNetwork
    macs: list[MacEntry]
    counters: dict[str, int]
    traffic: dict[ShortID, r.Traffic]


class Keeper(Protocol):
    """Who brings some part of the kernel to what it should be."""

    @property
    def problems(self) -> tuple[str, ...]:
        """What stands between the kernel and what it should be."""
        ...


class Reporter:
    """Makes reports."""

    def __init__(
        self,
        loop: NodeLoop,
        kernel: Kernel,
        datapath: FastDatapath,
        keepers: Sequence[Keeper],
        thread: Executor,
    ) -> None:
        """Ask the kernel in its thread; `keepers` know what it refuses."""
        self._loop = loop
        self._kernel = kernel
        self._datapath = datapath
        self._keepers = keepers
        self._thread = thread
        self.kubernetes: Callable[[], r.Kubernetes | None] = lambda: None
        self.round_trips: Callable[[], Mapping[ConnectionNumber, int]] = dict
        self.sleeve_counters: Callable[[], Mapping[str, int]] = dict
        self.local_addresses: Callable[[], Mapping[str, tuple[Cidr, ...]]] = dict

    async def report(self) -> r.Report:
        """Say how everything is now. What the kernel refuses to tell is missing, and named among the problems."""
        problems = [problem for keeper in self._keepers for problem in keeper.problems]
        try:
            short_ids = self._neighbours()
            observed = await asyncio.get_running_loop().run_in_executor(self._thread, self._observe, short_ids)
        except KernelError as error:
            observed = _Observed(HostNetwork(), [], {}, {})
            problems.append(str(error))
        node = self._loop.node
        return r.Report(
            ready=True,
            version=VERSION,
            version_check=r.VersionCheck(),
            router=router_report(node, self._macs(observed.macs)),
            ipam=ipam_report(node.ipam.status()) if node.ipam is not None else None,
            weavenet=r.Weavenet(
                links=r.listed(link_reports(node, self.round_trips(), observed.traffic)),
                attachments=r.listed(attachment_reports(node, observed.network, self.local_addresses())),
                counters=observed.counters,
                sleeve_counters=self.sleeve_counters(),
                problems=r.listed(problems),
                kubernetes=self.kubernetes(),
            ),
        )

    def _neighbours(self) -> list[ShortID]:
        mesh = self._loop.node.mesh
        peers = (mesh.topology.get(status.name) for status in mesh.connections())
        return [peer.short_id for peer in peers if peer is not None and peer.short_id is not None]

    def _observe(self, short_ids: list[ShortID]) -> _Observed:
        maps = self._datapath.maps
        counters = {counter.name.lower(): count for counter, count in maps.counters().items()}
        traffic = {short_id: r.Traffic(*astuple(found)) for short_id, found in maps.traffic(short_ids).items()}
        return _Observed(self._kernel.observe(with_macs=True), maps.macs(), counters, traffic)

    def _macs(self, entries: list[MacEntry]) -> tuple[r.Mac, ...]:
        topology = self._loop.node.mesh.topology
        now_s = read_clock().wall_s
        macs: list[r.Mac] = []
        for entry in entries:
            name = self._loop.node.mesh.local_name if entry.place is None else topology.principal(entry.place)
            peer = topology.get(name) if name is not None else None
            if peer is not None:
                seen = datetime.fromtimestamp(now_s - entry.age_s, UTC).isoformat().replace("+00:00", "Z")
                macs.append(r.Mac(format_mac(entry.mac), format_peer_name(peer.name), peer.nickname, seen))
        return tuple(macs)
