"""Puts the report together: what the node knows, and what only the kernel does."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

from weavenet.agent.addresses import EXPOSED
from weavenet.agent.loop import NodeLoop
from weavenet.agent.reconcile import Reconciler
from weavenet.dataplane.kernel import Kernel
from weavenet.dataplane.model import Bridge, HostNetwork, format_mac
from weavenet.drivers.clock import read_clock
from weavenet.errors import KernelError
from weavenet.identity import format_peer_name
from weavenet.linux.datapath import FastDatapath
from weavenet.linux.fastdp import MacEntry
from weavenet.node import report as r
from weavenet.node.status import ipam_report, link_reports, router_report

VERSION = version("weavenet")


@dataclass(frozen=True, slots=True)
class _Observed:
    network: HostNetwork
    macs: list[MacEntry]
    counters: dict[str, int]


class Reporter:
    """Makes reports."""

    def __init__(
        self,
        loop: NodeLoop,
        kernel: Kernel,
        datapath: FastDatapath,
        reconciler: Reconciler,
        thread: ThreadPoolExecutor,
    ) -> None:
        """Ask the kernel in its thread."""
        self._loop = loop
        self._kernel = kernel
        self._datapath = datapath
        self._reconciler = reconciler
        self._thread = thread
        self.kubernetes: Callable[[], r.Kubernetes | None] = lambda: None

    async def report(self) -> r.Report:
        """Say how everything is now. What the kernel refuses to tell is missing, and named among the problems."""
        problems = list(self._reconciler.problems)
        try:
            observed = await asyncio.get_running_loop().run_in_executor(self._thread, self._observe)
        except KernelError as error:
            observed = _Observed(HostNetwork(), [], {})
            problems.append(str(error))
        node = self._loop.node
        return r.Report(
            ready=True,
            version=VERSION,
            version_check=r.VersionCheck(),
            router=router_report(node, self._macs(observed.macs)),
            ipam=ipam_report(node.ipam.status()) if node.ipam is not None else None,
            weavenet=r.Weavenet(
                links=r.listed(link_reports(node)),
                attachments=r.listed(self._attachments(observed.network)),
                counters=observed.counters,
                problems=r.listed(problems),
                kubernetes=self.kubernetes(),
            ),
        )

    def _observe(self) -> _Observed:
        maps = self._datapath.maps
        counters = {counter.name.lower(): count for counter, count in maps.counters().items()}
        return _Observed(self._kernel.observe(), maps.macs(), counters)

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

    def _attachments(self, network: HostNetwork) -> list[r.Attachment]:
        found: list[r.Attachment] = []
        if isinstance(network.bridge, Bridge):
            addresses = tuple(str(cidr) for cidr in network.bridge.addresses)
            found.append(r.Attachment(EXPOSED, network.bridge.name, format_mac(network.bridge.mac), addresses or None))
        ipam = self._loop.node.ipam
        owned = {} if ipam is None else ipam.owned()
        for port in network.pods:
            ident = f"{port.container_id}/{port.ifname}"
            mine = [cidrs for key, cidrs in owned.items() if key == ident or key.startswith(f"{ident}/")]
            held = [str(cidr) for cidrs in mine for cidr in cidrs]
            found.append(r.Attachment(port.container_id, port.name, "", r.listed(held)))
        return found
