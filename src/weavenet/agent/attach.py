"""The CNI verbs as flows that read top to bottom: ask IPAM for an address, have the kernel connect the pod, answer.

Two services do the work: one asks the node for addresses, one has the kernel's thread make interfaces. The order is
what keeps two pods from ever having one address: it is reserved before it is used, and given back after it is gone.

Each flow undoes what it did, in reverse, when it fails or is cancelled half-way. Undoing is itself not interrupted:
what a thread has begun in the kernel goes on anyway, so `to_the_end` waits for it, and raises the cancellation then.

One attachment is worked on by one call at a time. Runtimes promise that, but a killed call may still be undoing when
the DEL that follows it comes. Retried calls are answered as the first time: an ADD whose answer was lost finds its
address and its interface and returns them, as Weave did; a DEL of what is gone succeeds.
"""

import asyncio
import contextlib
import logging
import weakref
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor
from typing import Protocol, TypeVar, assert_never

from weavenet.address import Address, Cidr
from weavenet.agent.checks import (
    DEFAULT_ROUTE,
    interface_problems,
    limit_problems,
    port_problems,
    rate_limit,
    reservation_problems,
)
from weavenet.agent.hostports import NoHostPorts, Owner, PortService, port_mappings
from weavenet.cni.codes import Code
from weavenet.cni.config import NetworkConfig
from weavenet.cni.request import (
    Add,
    Attachment,
    Check,
    CniCall,
    Del,
    Gc,
    Plugin,
    Sandbox,
    Status,
    Version,
)
from weavenet.cni.result import AssignedAddress, Interface, Result, Route, encode_result, encode_versions
from weavenet.dataplane.kernel import Kernel
from weavenet.dataplane.model import PodInterface, PodLink, PodPort, PodRoute, format_mac
from weavenet.effects import Refused
from weavenet.errors import CniError, IpamError, IpamWaitError, KernelError

_T = TypeVar("_T")


class AddressService(Protocol):
    """Who gives addresses. Those that change something raise IpamError."""

    async def allocate(self, ident: str, subnet: Cidr | None) -> Cidr:
        """Return the identifier's address in a subnet, or in the default one, reserving one if it has none.

        May wait for as long as it takes; being cancelled cancels the request everywhere.
        """
        ...

    async def release(self, ident: str) -> None:
        """Free all that an identifier holds."""
        ...

    async def lookup(self, ident: str) -> tuple[Cidr, ...]:
        """Return what an identifier holds, which may be nothing."""
        ...

    async def owned(self) -> Mapping[str, tuple[Cidr, ...]]:
        """Return all that identifiers hold on this node."""
        ...

    async def refusal(self) -> Refused | None:
        """Return why no address could be given now; None if one could be."""
        ...

    async def gateway(self, subnet: Cidr) -> Address | None:
        """Return what pods of a subnet should use as their gateway; None for no default route.

        Weave's rule: an address of the bridge in that subnet, or else its first one; a bridge without any gets one.
        """
        ...


class PodNetwork(Protocol):
    """Who makes interfaces; `Kernel` without blocking. All raise KernelError."""

    async def attach(self, link: PodLink) -> PodInterface:
        """Connect a pod. On failure nothing of it is left."""
        ...

    async def detach(self, container_id: str, ifname: str, netns: int | None) -> bool:
        """Disconnect a pod; False if it was not connected."""
        ...

    async def inspect(self, netns: int, ifname: str) -> PodInterface | None:
        """Return an interface of a pod as it is; None if there is none by this name."""
        ...

    async def list_ports(self) -> tuple[PodPort, ...]:
        """Return the pods that are connected."""
        ...


class KernelPods:
    """The pods of a `Kernel`, whose calls block, in the threads of an executor."""

    def __init__(self, kernel: Kernel, threads: Executor) -> None:
        """Call `kernel` in `threads`."""
        self._kernel = kernel
        self._threads = threads

    async def attach(self, link: PodLink) -> PodInterface:
        """As `Kernel.attach_pod`."""
        return await self._run(lambda: self._kernel.attach_pod(link))

    async def detach(self, container_id: str, ifname: str, netns: int | None) -> bool:
        """As `Kernel.detach_pod`."""
        return await self._run(lambda: self._kernel.detach_pod(container_id, ifname, netns))

    async def inspect(self, netns: int, ifname: str) -> PodInterface | None:
        """As `Kernel.inspect_pod`."""
        return await self._run(lambda: self._kernel.inspect_pod(netns, ifname))

    async def list_ports(self) -> tuple[PodPort, ...]:
        """As `Kernel.list_pods`."""
        return await self._run(self._kernel.list_pods)

    async def _run(self, call: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


async def to_the_end(work: Coroutine[None, None, _T]) -> _T:
    """Await work that must not stop half-way: a cancellation that comes meanwhile is raised when it is done."""
    task = asyncio.ensure_future(work)
    cancellation: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancellation = error
    if cancellation is not None:
        raise cancellation from task.exception()
    return task.result()


class CniVerbs:
    """Answers CNI calls: the handler of drivers/cni.py."""

    def __init__(
        self,
        addresses: AddressService,
        pods: PodNetwork,
        log: logging.Logger,
        *,
        bridge: str,
        mtu_bytes: int,
        ports: PortService | None = None,
    ) -> None:
        """Serve one bridge; `mtu_bytes` is what pods get unless their configuration says otherwise."""
        self._addresses = addresses
        self._pods = pods
        self._ports = ports or NoHostPorts()
        self._log = log
        self._bridge = bridge
        self._mtu_bytes = mtu_bytes
        # One lock per attachment that is being worked on; it is forgotten with the last call that holds on to it.
        self._locks: weakref.WeakValueDictionary[tuple[str, str], asyncio.Lock] = weakref.WeakValueDictionary()

    async def handle(self, call: CniCall) -> bytes:
        """Do what is asked and return what goes to stdout. Raises CniError."""
        try:
            if isinstance(call, Status | Gc | Version):
                return await self._handle_for_network(call)
            async with self._lock_of(call.attachment):
                return await self._handle_for_attachment(call)
        except IpamError as error:
            raise CniError(Code.NO_ADDRESS, str(error)) from error
        except KernelError as error:
            raise CniError(Code.KERNEL_REFUSED, str(error)) from error

    async def _handle_for_attachment(self, call: Add | Del | Check) -> bytes:
        match call:
            case Add(plugin=Plugin.NET):
                return await self._add(call)
            case Add():
                return await self._add_address(call)
            case Del():
                await self._del(call)
            case Check():
                await self._check(call)
            case _:
                assert_never(call)
        return b""

    async def _handle_for_network(self, call: Status | Gc | Version) -> bytes:
        match call:
            case Status():
                await self._status(call)
            case Gc():
                await self._collect(call)
            case Version():
                return encode_versions()
            case _:
                assert_never(call)
        return b""

    def _lock_of(self, attachment: Attachment) -> asyncio.Lock:
        # A container has one interface of a name, whatever network it is in.
        return self._locks.setdefault((attachment.container_id, attachment.interface), asyncio.Lock())

    # --- ADD ----------------------------------------------------------------------------------------------------------

    async def _add(self, call: Add) -> bytes:
        self._require_our_bridge(call.config)
        netns = _require_sandbox(call.sandbox)
        ident = call.attachment.ident
        held = await self._addresses.lookup(ident)
        if held:
            existing = await self._inspect(netns, call.attachment.interface)
            if existing is not None:
                return await self._answer_again(call, held, existing)
        connecting = connected = False
        try:
            address = await self._allocate(ident, call.config.ipam.subnet)
            gateway = await self._gateway(call.config, address)
            connecting = True
            interface = await self._connect(self._link(call, netns, address, gateway))
            connected = True
            await self._publish(call, address)
        except BaseException as error:
            # With a cause, the kernel had refused by itself, and what is in the pod now is not of this call.
            interrupted = connecting and isinstance(error, asyncio.CancelledError) and error.__cause__ is None
            await self._undo_add(call.attachment, detach=connected or interrupted, release=not held)
            raise
        self._log.info("ADD %s for %s: %s, %s", ident, call.pod, address, interface.host_end)
        return encode_result(_result_of(call, address, gateway, interface), call.version, call.previous)

    async def _connect(self, link: PodLink) -> PodInterface:
        try:
            return await to_the_end(self._pods.attach(link))
        except KernelError as error:
            if await self._inspect(link.netns, link.ifname) is not None:
                message = f"interface {link.ifname} exists in the container already, and is not ours"
                raise CniError(Code.INTERFACE_EXISTS, message, str(error)) from error
            raise CniError(Code.KERNEL_REFUSED, f"cannot connect the container: {error}") from error

    async def _publish(self, call: Add, address: Cidr) -> None:
        if call.config.ports:  # most pods have none, and then nothing is looked at
            mappings = port_mappings(call.config.ports, address)
            await to_the_end(self._ports.publish(_owner(call.attachment), mappings))

    async def _answer_again(self, call: Add, held: tuple[Cidr, ...], existing: PodInterface) -> bytes:
        """Answer an ADD that was done before, when its answer was lost."""
        addresses = [address for address in held if address in existing.addresses]
        ports = await self._pods.list_ports()
        mine = (call.attachment.container_id, call.attachment.interface, existing.host_end)
        if not addresses or mine not in {(port.container_id, port.ifname, port.name) for port in ports}:
            message = f"interface {call.attachment.interface} exists in the container already, and is not ours"
            raise CniError(Code.INTERFACE_EXISTS, message, "Call DEL first, or choose another CNI_IFNAME.")
        gateway = await self._gateway(call.config, addresses[0])
        await self._publish(call, addresses[0])
        self._log.info("ADD %s again: %s, %s", call.attachment.ident, addresses[0], existing.host_end)
        return encode_result(_result_of(call, addresses[0], gateway, existing), call.version, call.previous)

    async def _add_address(self, call: Add) -> bytes:
        ident = call.attachment.ident
        held = await self._addresses.lookup(ident)
        try:
            address = await self._allocate(ident, call.config.ipam.subnet)
        except BaseException:
            await self._undo_add(call.attachment, detach=False, release=not held)
            raise
        self._log.info("ADD %s for %s: %s, for another plugin to use", ident, call.pod, address)
        ipam = call.config.ipam
        return encode_result(Result((AssignedAddress(address, ipam.gateway),), routes=ipam.routes), call.version)

    async def _allocate(self, ident: str, subnet: Cidr | None) -> Cidr:
        try:
            return await self._addresses.allocate(ident, subnet)
        except IpamError as error:
            code = Code.TRY_AGAIN_LATER if isinstance(error, IpamWaitError) else Code.NO_ADDRESS
            raise CniError(code, f"unable to allocate IP address: {error}") from error

    async def _gateway(self, config: NetworkConfig, address: Cidr) -> Address | None:
        ipam = config.ipam
        if ipam.gateway is not None or ipam.routes:
            return ipam.gateway
        try:
            return await self._addresses.gateway(address.network)
        except IpamError as error:
            raise CniError(Code.NO_ADDRESS, f"unable to choose a gateway: {error}") from error

    def _link(self, call: Add, netns: int, address: Cidr, gateway: Address | None) -> PodLink:
        return PodLink(
            container_id=call.attachment.container_id,
            ifname=call.attachment.interface,
            netns=netns,
            address=address,
            gateway=gateway,
            routes=tuple(PodRoute(route.destination, route.gateway) for route in call.config.ipam.routes),
            mtu=self._mtu(call.config),
            hairpin=call.config.hairpin,
            ingress=rate_limit(call.config.bandwidth.ingress, self._mtu(call.config)),
            egress=rate_limit(call.config.bandwidth.egress, self._mtu(call.config)),
        )

    def _mtu(self, config: NetworkConfig) -> int:
        return config.mtu_bytes or self._mtu_bytes

    def _require_our_bridge(self, config: NetworkConfig) -> None:
        if config.bridge != self._bridge:
            message = f'Failed to get netdev for "{config.bridge}" bridge: this node\'s agent serves "{self._bridge}"'
            raise CniError(Code.INVALID_CONFIG, message, "Correct the configuration, or the agent's --weave-bridge.")

    async def _undo_add(self, attachment: Attachment, *, detach: bool, release: bool) -> None:
        async def undo() -> None:
            if detach:
                with contextlib.suppress(KernelError):  # it is tried again, and shown until it works
                    await self._ports.withdraw(_owner(attachment))
                # Without the namespace: only what carries our alias goes, not what was in the pod before.
                await self._pods.detach(attachment.container_id, attachment.interface, None)
            if release:
                await self._release(attachment.ident)

        try:
            await to_the_end(undo())
        except (IpamError, KernelError) as error:
            self._log.warning("cannot undo ADD %s, the runtime's DEL will: %s", attachment.ident, error)

    # --- DEL ----------------------------------------------------------------------------------------------------------

    async def _del(self, call: Del) -> None:
        attachment = call.attachment
        if call.complaint:
            self._log.warning("DEL %s with a bad configuration: %s", attachment.ident, call.complaint)
        if call.plugin is Plugin.NET:
            # Never into the host's own namespace, where CNI_IFNAME may well be the host's uplink.
            netns = None if call.sandbox.is_hosts_own else call.sandbox.descriptor
            await to_the_end(self._ports.withdraw(_owner(attachment)))
            # An address may be in use for as long as the interface is there, so failing here keeps it reserved.
            if not await to_the_end(self._pods.detach(attachment.container_id, attachment.interface, netns)):
                self._log.info("DEL %s: there was no interface", attachment.ident)
        # An earlier Weave Net on this node has reserved under the bare container ID, and freed at any DEL.
        freed = await to_the_end(self._release(attachment.ident)) or await to_the_end(
            self._release(attachment.container_id)
        )
        self._log.info("DEL %s%s", attachment.ident, "" if freed else ": no addresses")

    async def _release(self, ident: str) -> bool:
        held = await self._addresses.lookup(ident)
        if held:
            await self._addresses.release(ident)
        return bool(held)

    # --- CHECK, STATUS ------------------------------------------------------------------------------------------------

    async def _check(self, call: Check) -> None:
        held = await self._addresses.lookup(call.attachment.ident)
        problems = reservation_problems(call, held)
        if call.plugin is Plugin.NET:
            self._require_our_bridge(call.config)
            netns = _require_sandbox(call.sandbox)
            interface = await self._inspect(netns, call.attachment.interface)
            if interface is None:
                problems.append(f"interface {call.attachment.interface} is not in the container")
            else:
                problems += interface_problems(call, held, interface)
                problems += limit_problems(call.config.bandwidth, interface, self._mtu(call.config))
                problems += port_problems(interface, await self._pods.list_ports(), self._bridge)
            if call.config.ports and held:
                mappings = port_mappings(call.config.ports, held[0])
                missing = await to_the_end(self._ports.missing(_owner(call.attachment), mappings))
                problems += [f"host port {mapping} is not set up" for mapping in missing]
        if problems:
            raise CniError(Code.NOT_AS_ADDED, problems[0], "; ".join(problems[1:]))

    async def _status(self, call: Status) -> None:
        if call.plugin is Plugin.NET:
            self._require_our_bridge(call.config)
        refusal = await self._addresses.refusal()
        if refusal is not None:
            raise CniError(Code.NOT_AVAILABLE, f"unable to allocate IP address: {refusal.reason}")

    async def _inspect(self, netns: int, ifname: str) -> PodInterface | None:
        return await to_the_end(self._pods.inspect(netns, ifname))  # the thread uses the descriptor that we must close

    # --- GC -----------------------------------------------------------------------------------------------------------

    async def _collect(self, call: Gc) -> None:
        """Free what the network's attachments hold that are neither valid nor being worked on; go on at failures."""
        held = [Attachment.from_ident(ident) for ident in await self._addresses.owned()]
        reserved = {attachment for attachment in held if attachment is not None}
        found = {attachment for attachment in reserved if attachment.network == call.network}
        if call.plugin is Plugin.NET:
            # A port does not say which network it is in, so what is reserved in another one is that one's.
            elsewhere = {(other.container_id, other.interface) for other in reserved - found}
            ports = {(port.container_id, port.ifname) for port in await self._pods.list_ports()}
            found |= {Attachment(*port, call.network) for port in ports - elsewhere}
        failures: list[str] = []
        for attachment in sorted(found - call.valid):
            if (attachment.container_id, attachment.interface) in self._locks:
                continue
            try:
                async with self._lock_of(attachment):
                    await to_the_end(self._free(attachment, call.plugin))
            except (IpamError, KernelError) as error:
                failures.append(f"cannot free {attachment.ident}: {error}")
        if failures:
            raise CniError(Code.CLEAN_UP_INCOMPLETE, failures[0], "; ".join(failures[1:]))

    async def _free(self, attachment: Attachment, plugin: Plugin) -> None:
        if plugin is Plugin.NET:
            await self._ports.withdraw(_owner(attachment))
            await self._pods.detach(attachment.container_id, attachment.interface, None)
        await self._release(attachment.ident)
        self._log.info("GC freed %s", attachment.ident)


# --- pure helpers -----------------------------------------------------------------------------------------------------


def _owner(attachment: Attachment) -> Owner:
    return attachment.container_id, attachment.interface


def _require_sandbox(sandbox: Sandbox) -> int:
    if sandbox.descriptor is None:
        raise CniError(Code.INVALID_SANDBOX, f'error accessing namespace "{sandbox.path}": {sandbox.problem}')
    if sandbox.is_hosts_own:
        message = "can not specify host network namespace as network namespace to which container should be added"
        raise CniError(Code.INVALID_SANDBOX, message)
    return sandbox.descriptor


def _result_of(call: Add, address: Cidr, gateway: Address | None, interface: PodInterface) -> Result:
    host_mac = "" if interface.host_mac is None else format_mac(interface.host_mac)
    default = (Route(DEFAULT_ROUTE, gateway),) if gateway is not None else ()
    # The host route to a gateway outside the subnet is not listed: before 1.1.0 none could say that it is on-link.
    return Result(
        addresses=(AssignedAddress(address, gateway, interface=1),),
        interfaces=(
            Interface(interface.host_end, host_mac, interface.mtu),
            Interface(interface.ifname, format_mac(interface.mac), interface.mtu, call.sandbox.path),
        ),
        routes=call.config.ipam.routes or default,
        dns=call.config.dns,
    )
