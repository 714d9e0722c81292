"""Builds everything, in order, runs it as one tree of tasks, and ends it.

    lock the run directory ─▶ the kernel's view ─▶ name ─▶ the disk ─▶ devices and programs ─▶ node ─▶ listen ─▶ serve

Nothing is undone at the end but the sockets: bridge, devices, programs and tables stay, so that running pods notice
neither a restart nor a crash. Only `--reset` removes them.
"""

import asyncio
import logging
import signal
import socket
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from weavenet.address import Range
from weavenet.agent import run_dir
from weavenet.agent.addresses import NodeAddresses
from weavenet.agent.api import make_control_application, make_metrics_application, make_status_application
from weavenet.agent.attach import CniVerbs
from weavenet.agent.cni_files import keep_cni_files
from weavenet.agent.config import AgentConfig, KubeOptions
from weavenet.agent.control import AgentControl
from weavenet.agent.expose import KEY_EXPOSED, Exposed, Exposure, decode_exposed
from weavenet.agent.expose_api import expose_routes
from weavenet.agent.hostports import KEY_HOST_PORTS, HostPorts, Owner
from weavenet.agent.install import Place
from weavenet.agent.keys_api import AgentKeys, KeyHandlers, key_routes
from weavenet.agent.leave_api import leave_routes
from weavenet.agent.local_addresses import KEY_LOCAL_ADDRESSES, LocalAddresses
from weavenet.agent.loop import NodeLoop
from weavenet.agent.networks import AnnotatedNetworks
from weavenet.agent.peername import bridge_peer_name, machine_peer_name
from weavenet.agent.pod_addresses import PodAddresses
from weavenet.agent.pod_services import KernelPods
from weavenet.agent.reconcile import Reconciler
from weavenet.agent.reporting import Reporter
from weavenet.agent.reset import leave_host
from weavenet.agent.resolve import resolve_targets
from weavenet.agent.sleeve import ForwarderProcess, Sleeve
from weavenet.agent.traffic import Traffic
from weavenet.dataplane.desired import HostSettings, vxlan_name
from weavenet.dataplane.model import Bridge, bridge_mac, format_mac, overlapping_routes
from weavenet.drivers.clock import SystemEntropy, read_clock
from weavenet.drivers.cni import CniServer
from weavenet.drivers.http import HttpListener
from weavenet.drivers.store import Store
from weavenet.drivers.tcp import TcpDriver
from weavenet.effects import ClearStore, Persist, SendSpecialFrame, StoreChange
from weavenet.errors import ConfigError, KernelError
from weavenet.identity import PeerName, PeerUID, ShortID, format_peer_name
from weavenet.ipam.allocator import IpamConfig, StoredState
from weavenet.linux.datapath import FastDatapath
from weavenet.linux.heard import PassedReceiver
from weavenet.linux.kernel import LinuxKernel
from weavenet.linux.special import SpecialFrame, SpecialReceiver, SpecialSender
from weavenet.mesh.connector import Target
from weavenet.mesh.keyring import KEY_KEYRING, Keyring, decode_keyring, keyring_at_launch
from weavenet.mesh.router import MeshConfig
from weavenet.node.inputs import FloodMissed, SpecialFrameArrived
from weavenet.node.node import Node, NodeConfig
from weavenet.node.report import EXPOSED
from weavenet.node.targets import FirstTargets, first_targets, remember_launch

UNDO_S = 10.0  # for calls under way when the agent ends; kubelet waits 30

if TYPE_CHECKING:
    from weavenet.agent.kubernetes import KubernetesPart


async def run_agent(
    config: AgentConfig, log: logging.Logger, forwarder: ForwarderProcess | None, place: Place | None = None
) -> None:
    """Run until SIGTERM or SIGINT. Raises WeavenetError where it cannot start, or when the disk fails.

    Without a forwarder there is no sleeve. With a place, the container runtime is told of the network there, once CNI
    is served.
    """
    with ExitStack() as stack:
        stack.enter_context(run_dir.locked(config.run_dir))
        agent = _Agent(config, log, stack, forwarder)
        await agent.prepare()
        await agent.serve(place)
        uninstalled = await agent.is_uninstalled()
    if uninstalled:
        log.info("Our DaemonSet has been deleted: this node is to be left as it was found")
        leave_host(config, place, log)


class _Agent:
    """One run of the agent: what is built in prepare, and served."""

    def __init__(
        self, config: AgentConfig, log: logging.Logger, stack: ExitStack, forwarder: ForwarderProcess | None
    ) -> None:
        self._config = config
        self._log = log
        self._stack = stack
        self._forwarder = forwarder
        self._sleeve: Sleeve | None = None
        # One thread for the kernel, so that its changes come one after the other; one for the disk.
        self._kernel_thread = stack.enter_context(ThreadPoolExecutor(1, "kernel"))
        self._store_thread = stack.enter_context(ThreadPoolExecutor(1, "store"))
        self._entropy = SystemEntropy()
        self._store = Store(config.database)
        self._datapath = FastDatapath(vxlan_name(config.vxlan_port), config.bpf_object)
        self._kernel = LinuxKernel(config.bridge, vxlan_name(config.vxlan_port), self._datapath)
        self._kube: KubernetesPart | None = None
        stack.callback(self._kernel.close)
        stack.callback(self._datapath.close)

    async def prepare(self) -> None:
        """Build everything that can fail. Raises WeavenetError."""
        config, log = self._config, self._log
        loop = asyncio.get_running_loop()
        stored = await loop.run_in_executor(self._store_thread, self._store.load)
        self._stack.callback(self._store_thread.submit, self._store.close)
        await self._check_routes(stored)
        name = await self._choose_name()
        log.info("Our name is %s(%s)", format_peer_name(name), config.nickname)
        keyring = self._choose_keyring(stored)
        if config.kube is not None:
            stored = await self._open_kubernetes(config.kube, name, stored)
        log.info("Communication between peers is %s.", "encrypted" if keyring else "unencrypted")
        programs = await loop.run_in_executor(self._kernel_thread, lambda: self._datapath.programs)
        exposed = self._stored_exposed(stored)
        held = tuple(put.address for put in stored.allocations if put.ident == EXPOSED)
        settings = HostSettings(
            mac=bridge_mac(name),
            programs=programs,
            bridge=config.bridge,
            mtu=config.mtu_bytes,
            vxlan_port=config.vxlan_port,
            addresses=tuple(dict.fromkeys((*held, *(each.address for each in exposed)))) or None,
        )
        self._traffic = Traffic(self._kernel, config.bridge, self._kernel_thread, log)
        self._reconciler = Reconciler(self._kernel, self._datapath, settings, self._kernel_thread, log)
        self._reconciler.on_change = self._traffic.hint
        self._exposure = Exposure(self._reconciler, self._traffic, self._save, log, stored=exposed)
        await self._reconciler.make_host()
        short_id = await loop.run_in_executor(self._kernel_thread, self._former_short_id)
        node = Node(self._node_config(name, short_id, keyring), self._entropy, read_clock())
        self._loop = NodeLoop(node, read_clock, self._store, self._store_thread, log)
        self._tcp = TcpDriver(self._loop.feed, config.host)
        self._stack.callback(self._tcp.close_all)
        self._loop.tcp = self._tcp
        self._open_special()
        await self._open_sleeve()
        self._listen_mesh()
        self._reporter = Reporter(
            self._loop, self._kernel, self._datapath, (self._reconciler, self._traffic), self._kernel_thread
        )
        self._reporter.round_trips = self._tcp.round_trips
        if self._sleeve is not None:
            sleeve = self._sleeve
            self._reporter.sleeve_counters = lambda: sleeve.counters
        if self._kube is not None:
            self._reporter.kubernetes = self._kube.report
        # In a cluster nobody names peers; until the API does, those of before are what we know.
        unnamed = self._kube is not None and not config.peers
        first = first_targets(stored.values, config.peers, resume=config.resume or unnamed)
        targets = await self._resolve_first(first)
        self._loop.take(node.start(stored, targets, read_clock()))
        self._loop.take([Persist(remember_launch(config.peers, first))])  # behind what start may clear
        await self._wire_traffic(stored)
        await self._traffic.try_to_look()
        if self._kube is not None:
            self._kube.join(self._loop)

    async def serve(self, place: Place | None) -> None:
        """Serve until a signal comes."""
        config, log = self._config, self._log
        exposure = self._exposure
        exposure.addresses = addresses = NodeAddresses(self._loop, exposure.expose)
        verbs = CniVerbs(
            PodAddresses(addresses, self._local_addresses),
            self._pods,
            log,
            bridge=config.bridge,
            mtu_bytes=config.mtu_bytes,
            ports=self._host_ports,
            networks=self._networks(),
        )
        cni = CniServer(config.cni_socket, verbs.handle, log)
        try:
            cni.listen()
        except OSError as error:
            raise ConfigError(f"cannot listen at {config.cni_socket}: {error.strerror}") from error
        ended = asyncio.Event()
        listeners = await self._listen(ended)
        log.info("Listening for control requests at %s, for CNI at %s", config.control_socket, config.cni_socket)
        try:
            await _until_signal(
                [
                    self._loop.run(),
                    self._tcp.accept_forever(),
                    self._reconciler.keep_tables(self._loop.reconcile_wanted, self._loop.node.forwarding),
                    self._reconciler.keep_devices(),
                    self._traffic.keep(),
                    *([self._sleeve.run()] if self._sleeve is not None else []),
                    *([keep_cni_files(place, log)] if place is not None else []),
                    *([] if self._kube is None else self._kube.works()),
                ],
                [cni.serve_forever(), exposure.expose_at_start(config.expose)],
                ended,
            )
        finally:
            for listener in listeners:
                await listener.close()
        log.info("Exiting; pods keep their network")

    async def _listen(self, ended: asyncio.Event) -> list[HttpListener]:
        """Serve the control API, and what of it is asked for elsewhere. Raises ConfigError."""
        config, log = self._config, self._log
        control = AgentControl(self._loop, self._reporter.report)
        exposing = expose_routes(self._exposure)
        # Passwords, and the end of the agent, go over the Unix socket only.
        own = [*key_routes(KeyHandlers(AgentKeys(self._loop))), *leave_routes(config, ended)]
        listeners = [HttpListener(make_control_application(control, log, [*exposing, *own]))]
        await listeners[0].listen_unix(config.control_socket)
        for address, application in (
            (config.http_address, make_control_application(control, log, exposing)),
            (config.status_address, make_status_application(control, log)),
            (config.metrics_address, make_metrics_application(control, log)),
        ):
            if address:
                listeners.append(HttpListener(application))
                await listeners[-1].listen(address)
        return listeners

    def _networks(self) -> AnnotatedNetworks | None:
        directory = self._config.networks_dir
        return AnnotatedNetworks(directory, self._kube.read_annotations) if directory and self._kube else None

    async def is_uninstalled(self) -> bool:
        """Say, at the end, whether nothing of ours is to stay on this host."""
        return self._kube is not None and await self._kube.is_uninstalled()

    # --- parts --------------------------------------------------------------------------------------------------------

    async def _open_kubernetes(self, options: KubeOptions, name: PeerName, stored: StoredState) -> StoredState:
        """Join the cluster; return what of the disk is still of use."""
        from weavenet.agent.kubernetes import KubernetesPart  # noqa: PLC0415  # TLS and HTTP: only who needs them pays

        self._kube = KubernetesPart(self._config, options, name, self._log)
        if not await self._kube.is_reclaimed(stored):
            return stored
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._store_thread, self._store.apply, (ClearStore(),))
        return StoredState({}, ())

    async def _choose_name(self) -> PeerName:
        if self._config.name is not None:
            return self._config.name
        network = await asyncio.get_running_loop().run_in_executor(self._kernel_thread, self._kernel.observe)
        mac = format_mac(network.bridge.mac) if isinstance(network.bridge, Bridge) else None
        return bridge_peer_name(mac) or machine_peer_name(self._config.host_root, self._entropy)

    def _choose_keyring(self, stored: StoredState) -> Keyring | None:
        if self._config.forgets_passwords:
            return None
        known = decode_keyring(stored.values.get(KEY_KEYRING, b""))
        keyring, remark = keyring_at_launch(known, self._config.password, self._entropy, read_clock())
        if remark:
            self._log.warning("%s", remark)
        return keyring

    async def _check_routes(self, stored: StoredState) -> None:
        """Refuse a range that this host reaches by another way; but not at a restart, when pods have addresses."""
        if self._config.ipam is None:
            return
        universe = self._config.ipam.universe
        routes = await asyncio.get_running_loop().run_in_executor(self._kernel_thread, self._kernel.host_routes)
        overlapping = overlapping_routes(routes, universe.range, self._config.bridge)
        if not overlapping:
            return
        which = ", ".join(str(route) for route in overlapping)
        complaint = f"Network {universe} overlaps with existing route {which} on host"
        if not stored.allocations:
            raise ConfigError(f"{complaint}; choose another --ipalloc-range, the same on all peers")
        self._log.warning("%s: traffic to these addresses may not reach pods", complaint)

    def _stored_exposed(self, stored: StoredState) -> tuple[Exposed, ...]:
        """Return what an earlier agent exposed and IPAM cannot tell, as far as IPAM does not know better."""
        try:
            exposed = decode_exposed(stored.values.get(KEY_EXPOSED, b""))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self._log.warning("what was exposed cannot be read, and is forgotten: %s", error)
            return ()
        if self._config.ipam is None:
            return exposed
        held = {put.address for put in stored.allocations if put.ident == EXPOSED}
        return tuple(each for each in exposed if each.address in held)

    async def _save(self, change: StoreChange) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._store_thread, self._store.apply, (change,))

    def _former_short_id(self) -> ShortID | None:
        """Return the short ID by which the data plane, ours and others', goes on while no agent runs."""
        tables = self._datapath.observe_forwarding()
        return tables.ours if tables.floods else None

    async def _wire_traffic(self, stored: StoredState) -> None:
        """Say where what is wanted of the host's rules comes from."""
        self._pods = KernelPods(self._kernel, self._kernel_thread)

        async def connected() -> set[Owner]:
            return {(port.container_id, port.ifname) for port in await self._pods.list_ports()}

        self._host_ports = HostPorts(self._traffic.look, self._save, connected, self._log)
        await self._host_ports.restore(stored.values.get(KEY_HOST_PORTS, b"[]"))
        self._traffic.mappings = self._host_ports.mappings
        self._local_addresses = LocalAddresses(self._save, self._log)
        self._reporter.local_addresses = self._local_addresses.owned
        self._local_addresses.restore(stored.values.get(KEY_LOCAL_ADDRESSES, b"{}"))
        ipam = self._loop.node.ipam

        def ours() -> Sequence[Range] | None:
            if not self._config.no_masq_local:
                return None
            return () if ipam is None else ipam.ring.owned_ranges()

        self._traffic.ours = ours
        self._loop.ring_changed = self._traffic.hint

    def _node_config(self, name: PeerName, short_id: ShortID | None, keyring: Keyring | None) -> NodeConfig:
        config = self._config
        uid = PeerUID(self._entropy.bits(64) or 1)
        return NodeConfig(
            mesh=MeshConfig(
                name=name,
                uid=uid,
                nickname=config.nickname,
                port=config.port,
                keyring=keyring,
                trusted_subnets=config.trusted_subnets,
                connection_limit=config.connection_limit,
                overlays=" ".join(config.overlays),
                sleeve_formats=" ".join(config.sleeve_formats),
                discovery=config.discovery,
                min_version=config.min_protocol_version,
                short_id=short_id,
            ),
            ipam=None
            if config.ipam is None
            else IpamConfig(
                name=name,
                uid=uid,
                nickname=config.nickname,
                universe=config.ipam.universe,
                default_subnet=config.ipam.default_subnet,
                mode=config.ipam.mode if self._kube is None else self._kube.init_mode(config.ipam.mode),
            ),
            mtu_bytes=config.mtu_bytes,
            vxlan_port=config.vxlan_port,
        )

    def _open_special(self) -> None:
        """Wire heartbeats and the data plane's questions to the node."""
        config, loop = self._config, asyncio.get_running_loop()
        maps = self._datapath.maps
        sender = SpecialSender(maps, vxlan_name(config.vxlan_port))
        self._stack.callback(sender.close)
        receiver = SpecialReceiver(config.vxlan_port)
        self._stack.callback(receiver.close)
        passed: PassedReceiver | None = None
        try:
            passed = PassedReceiver(config.vxlan_port)
        except KernelError as error:
            self._log.warning("A firewall of this host that drops fastdp's packets will go unnoticed: %s", error)
        else:
            self._traffic.heartbeats = config.vxlan_port
            self._stack.callback(passed.close)

        def send(effect: SendSpecialFrame) -> None:
            try:
                sender.send(effect.remote.address, effect.vni, effect.frame)
            except KernelError as error:
                self._log.debug("heartbeat to %s lost: %s", effect.remote, error)

        def take(frames: Sequence[SpecialFrame]) -> None:
            for frame in frames:
                self._loop.feed(SpecialFrameArrived(frame.vni, frame.remote, frame.length, frame.head))

        def receive() -> None:
            frames = receiver.receive()
            # What comes here has not met the firewall yet, so it counts only where nothing better can be had.
            if passed is None or self._traffic.has_failed:
                take(frames)

        def missed() -> None:
            for origin in maps.misses():
                self._loop.feed(FloodMissed(origin))

        self._loop.send_special_frame = send
        loop.add_reader(receiver.fileno(), receive)
        self._stack.callback(loop.remove_reader, receiver.fileno())
        if passed is not None:
            loop.add_reader(passed.fileno(), lambda: take(passed.receive()))
            self._stack.callback(loop.remove_reader, passed.fileno())
        loop.add_reader(maps.events_fileno(), missed)
        self._stack.callback(loop.remove_reader, maps.events_fileno())

    async def _open_sleeve(self) -> None:
        """Equip the forwarder, if there is to be one."""
        if self._forwarder is None:
            return
        device = vxlan_name(self._config.vxlan_port)

        def attach(port: int, fast_port: int) -> None:
            self._datapath.maps.attach_sleeve(port, fast_port, socket.if_nametoindex(device))

        self._sleeve = Sleeve(self._loop, self._forwarder, attach, self._kernel_thread, self._log)
        self._stack.callback(self._sleeve.close)
        await self._sleeve.prepare(self._config.host, self._config.port)

    def _listen_mesh(self) -> None:
        try:
            self._tcp.listen(self._config.port)
        except OSError as error:
            where = f"{self._config.host or '*'}:{self._config.port}"
            raise ConfigError(f"cannot listen for peers at {where}: {error.strerror}") from error

    async def _resolve_first(self, first: FirstTargets) -> list[Target]:
        """Return the peers to join. Raises ConfigError for a named one that cannot be found."""
        if first.resumed:
            self._log.info("Restart/resume detected - using persisted peer list: %s", list(first.texts))
        else:
            self._log.info("Launch detected - using supplied peer list: %s", list(first.texts))
        targets, failures = await resolve_targets(first.texts)
        if failures and not first.resumed:
            raise ConfigError("; ".join(str(failure) for failure in failures))
        for failure in failures:
            self._log.warning("%s; not looked for until the next start", failure)
        return targets


async def _until_signal(
    works: list[Coroutine[None, None, None]], callers: list[Coroutine[None, None, None]], ended: asyncio.Event
) -> None:
    """Run tasks until SIGTERM, SIGINT or `ended`; the failure of one ends all, and is raised.

    `callers` end first: what they undo on the way, such as a pod's ADD that was under way, takes the others' work.
    """
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    tasks: list[asyncio.Task[None]] = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks += [group.create_task(work) for work in works]
            calling = [group.create_task(work) for work in callers]
            await ended.wait()
            for task in calling:
                task.cancel()
            if calling:
                await asyncio.wait(calling, timeout=UNDO_S)
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from failures
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
