"""One attachment: a pod's interface on one bridge, with one address. Made as a whole, or not at all.

The order is what keeps two pods from ever having one address: it is reserved before it is used, and given back after it
is gone. Undoing is in reverse, and is itself not interrupted: what a thread has begun in the kernel goes on anyway, so
`to_the_end` waits for it, and raises the cancellation then.

Where the bridge is not the agent's, it is somebody else's, such as Docker's: it must be there, and is never changed.
Only a pod's first interface gets a default route by itself, and never by such a bridge; `ipam.routes` are obeyed.
"""

import asyncio
import contextlib
import logging

import msgspec

from weavenet.address import Address, Cidr
from weavenet.agent.checks import DEFAULT_ROUTE, interface_problems, limit_problems, port_problems, rate_limit
from weavenet.agent.hostports import Owner, PortService, port_mappings
from weavenet.agent.pod_addresses import PodAddresses
from weavenet.agent.pod_services import PodNetwork, to_the_end
from weavenet.cni.codes import Code
from weavenet.cni.config import NetworkConfig
from weavenet.cni.request import Add, Attachment, Check, Sandbox
from weavenet.cni.result import AssignedAddress, Interface, Result, Route
from weavenet.dataplane.model import PodInterface, PodLink, PodRoute, format_mac
from weavenet.errors import CniError, IpamError, KernelError

FIRST_INTERFACE = "eth0"


class Place(msgspec.Struct, frozen=True):
    """Where a network is on this host."""

    bridge: str
    is_ours: bool
    mtu_bytes: int
    taken: frozenset[Address] = frozenset()  # addresses of the bridge itself

    @property
    def other(self) -> str:
        """The bridge if it is somebody else's, blank if it is ours."""
        return "" if self.is_ours else self.bridge


class Attached(msgspec.Struct, frozen=True):
    """What an ADD made of one attachment, or found made."""

    call: Add
    address: Cidr
    interface: PodInterface
    route_gateway: Address | None  # of the default route; None for none
    is_new: bool  # the interface was made by this call
    is_reserved: bool  # the address was


class Connector:
    """Makes attachments and undoes them."""

    def __init__(
        self,
        addresses: PodAddresses,
        pods: PodNetwork,
        ports: PortService,
        log: logging.Logger,
        ours: Place,
    ) -> None:
        """Serve our own bridge, and others."""
        self._addresses = addresses
        self._pods = pods
        self._ports = ports
        self._log = log
        self._ours = ours

    async def find_place(self, config: NetworkConfig) -> Place:
        """Return where a network is. Raises CniError if it is nowhere."""
        if config.bridge == self._ours.bridge:
            if config.ipam.local is not None:
                details = "Other nodes share that bridge, and could give out the same addresses. Leave ipam.type out."
                raise CniError(Code.INVALID_CONFIG, f"host-local addresses on the bridge {config.bridge}", details)
            return self._ours
        bridge = await to_the_end(self._pods.find_bridge(config.bridge))
        if bridge is None:
            message = f'Failed to get netdev for "{config.bridge}" bridge: this node has no bridge of that name'
            details = f'Make it, or correct "bridge"; this node\'s agent makes "{self._ours.bridge}" alone.'
            raise CniError(Code.INVALID_CONFIG, message, details)
        taken = frozenset(cidr.address for cidr in bridge.addresses)
        return Place(bridge.name, is_ours=False, mtu_bytes=bridge.mtu, taken=taken)

    async def connect(self, call: Add) -> Attached:
        """Connect a container, or find that it was done before, when the answer was lost. Raises CniError."""
        place = await self.find_place(call.config)
        netns = require_sandbox(call.sandbox)
        attachment = call.attachment
        held = await self._addresses.lookup(attachment.ident)
        if held:
            existing = await self.inspect(netns, attachment.interface)
            if existing is not None:
                return await self._find_again(call, place, held, existing)
        connecting = connected = False
        try:
            address = await self._addresses.allocate(attachment.ident, call.config.ipam, place.taken)
            gateway = await self._route_gateway(call, place, netns, address)
            connecting = True
            interface = await self._make(self._link(call, place, netns, address, gateway))
            connected = True
            await self._publish(call, address)
        except BaseException as error:
            # With a cause, the kernel had refused by itself, and what is in the pod now is not of this call.
            interrupted = connecting and isinstance(error, asyncio.CancelledError) and error.__cause__ is None
            await self.undo(attachment, detach=connected or interrupted, release=not held)
            raise
        self._log.info("ADD %s for %s: %s, %s", attachment.ident, call.pod, address, interface.host_end)
        return Attached(call, address, interface, gateway, is_new=True, is_reserved=not held)

    async def reserve(self, call: Add) -> Cidr:
        """Reserve an address for another main plugin to use. Raises CniError."""
        ident = call.attachment.ident
        held = await self._addresses.lookup(ident)
        try:
            return await self._addresses.allocate(ident, call.config.ipam, frozenset())
        except BaseException:
            await self.undo(call.attachment, detach=False, release=not held)
            raise

    async def undo(self, attachment: Attachment, *, detach: bool, release: bool) -> None:
        """Take back what was done, as far as possible; the runtime's DEL does the rest."""

        async def undo() -> None:
            if detach:
                with contextlib.suppress(KernelError):  # it is tried again, and shown until it works
                    await self._ports.withdraw(owner_of(attachment))
                # Without the namespace: only what carries our alias goes, not what was in the pod before.
                await self._pods.detach(attachment.container_id, attachment.interface, None)
            if release:
                await self._addresses.release(attachment.ident)

        try:
            await to_the_end(undo())
        except (IpamError, KernelError) as error:
            self._log.warning("cannot undo ADD %s, the runtime's DEL will: %s", attachment.ident, error)

    async def disconnect(self, attachment: Attachment, netns: int | None) -> bool:
        """Take an attachment off its network, then free its address; False if it had none. Raises on failure."""
        await to_the_end(self._ports.withdraw(owner_of(attachment)))
        # An address may be in use for as long as the interface is there, so failing here keeps it reserved.
        if not await to_the_end(self._pods.detach(attachment.container_id, attachment.interface, netns)):
            self._log.info("DEL %s: there was no interface", attachment.ident)
        return await to_the_end(self._addresses.release(attachment.ident))

    async def problems(self, call: Check, held: tuple[Cidr, ...]) -> list[str]:
        """Say what of an attachment is not as `connect` made it. Raises CniError where that cannot be told."""
        place = await self.find_place(call.config)
        netns = require_sandbox(call.sandbox)
        name = call.attachment.interface
        interface = await self.inspect(netns, name)
        if interface is None:
            return [f"interface {name} is not in the container"]
        found = interface_problems(call, held, interface)
        found += limit_problems(call.config.bandwidth, interface, self._mtu(call.config, place))
        found += port_problems(interface, await self._pods.list_ports(), place.bridge)
        if call.config.ports and held:
            mappings = port_mappings(call.config.ports, held[0])
            missing = await to_the_end(self._ports.missing(owner_of(call.attachment), mappings))
            found += [f"host port {mapping} is not set up" for mapping in missing]
        return found

    async def inspect(self, netns: int, ifname: str) -> PodInterface | None:
        """Return an interface of a pod as it is; None for none."""
        return await to_the_end(self._pods.inspect(netns, ifname))  # the thread uses the descriptor that we must close

    # --- the steps ----------------------------------------------------------------------------------------------------

    async def _make(self, link: PodLink) -> PodInterface:
        try:
            return await to_the_end(self._pods.attach(link))
        except KernelError as error:
            if await self.inspect(link.netns, link.ifname) is not None:
                message = f"interface {link.ifname} exists in the container already, and is not ours"
                raise CniError(Code.INTERFACE_EXISTS, message, str(error)) from error
            raise CniError(Code.KERNEL_REFUSED, f"cannot connect the container: {error}") from error

    async def _publish(self, call: Add, address: Cidr) -> None:
        if call.config.ports:  # most pods have none, and then nothing is looked at
            mappings = port_mappings(call.config.ports, address)
            await to_the_end(self._ports.publish(owner_of(call.attachment), mappings))

    async def _find_again(self, call: Add, place: Place, held: tuple[Cidr, ...], existing: PodInterface) -> Attached:
        addresses = [address for address in held if address in existing.addresses]
        ports = await self._pods.list_ports()
        mine = (*owner_of(call.attachment), existing.host_end)
        if not addresses or mine not in {(port.container_id, port.ifname, port.name) for port in ports}:
            message = f"interface {call.attachment.interface} exists in the container already, and is not ours"
            raise CniError(Code.INTERFACE_EXISTS, message, "Call DEL first, or choose another CNI_IFNAME.")
        gateway = await self._route_gateway(call, place, require_sandbox(call.sandbox), addresses[0])
        await self._publish(call, addresses[0])
        self._log.info("ADD %s again: %s, %s", call.attachment.ident, addresses[0], existing.host_end)
        return Attached(call, addresses[0], existing, gateway, is_new=False, is_reserved=False)

    async def _route_gateway(self, call: Add, place: Place, netns: int, address: Cidr) -> Address | None:
        """Return what the default route, or routes without a gateway of their own, lead to; None for nothing."""
        ipam = call.config.ipam
        if ipam.routes:
            return ipam.gateway
        if not place.is_ours:
            return None
        name = call.attachment.interface
        # Runtimes call a pod's first interface so, and looking costs a visit to its namespace.
        if name != FIRST_INTERFACE and await to_the_end(self._pods.has_default_route(netns, name)):
            return None
        return ipam.gateway if ipam.gateway is not None else await self._addresses.gateway(address.network)

    def _link(self, call: Add, place: Place, netns: int, address: Cidr, gateway: Address | None) -> PodLink:
        config, mtu_bytes = call.config, self._mtu(call.config, place)
        return PodLink(
            container_id=call.attachment.container_id,
            ifname=call.attachment.interface,
            netns=netns,
            address=address,
            gateway=gateway,
            routes=tuple(PodRoute(route.destination, route.gateway) for route in config.ipam.routes),
            mtu=mtu_bytes,
            # Weave's default is to let a pod reach itself by way of a Service; other bridges have it off.
            hairpin=place.is_ours if config.hairpin is None else config.hairpin,
            ingress=rate_limit(config.bandwidth.ingress, mtu_bytes),
            egress=rate_limit(config.bandwidth.egress, mtu_bytes),
            bridge=place.other,
        )

    @staticmethod
    def _mtu(config: NetworkConfig, place: Place) -> int:
        return config.mtu_bytes or place.mtu_bytes


# --- pure helpers -----------------------------------------------------------------------------------------------------


def owner_of(attachment: Attachment) -> Owner:
    """Return by what ports and limits are kept."""
    return attachment.container_id, attachment.interface


def require_sandbox(sandbox: Sandbox) -> int:
    """Return the descriptor of the pod's namespace. Raises CniError if there is none, or it is the host's."""
    if sandbox.descriptor is None:
        raise CniError(Code.INVALID_SANDBOX, f'error accessing namespace "{sandbox.path}": {sandbox.problem}')
    if sandbox.is_hosts_own:
        message = "can not specify host network namespace as network namespace to which container should be added"
        raise CniError(Code.INVALID_SANDBOX, message)
    return sandbox.descriptor


def result_of(attached: list[Attached]) -> Result:
    """Return the answer to an ADD, the main attachment first."""
    main = attached[0]
    addresses: list[AssignedAddress] = []
    interfaces: list[Interface] = []
    routes: list[Route] = []
    for one in attached:
        interface, ipam = one.interface, one.call.config.ipam
        host_mac = "" if interface.host_mac is None else format_mac(interface.host_mac)
        interfaces += [
            Interface(interface.host_end, host_mac, interface.mtu),
            Interface(interface.ifname, format_mac(interface.mac), interface.mtu, one.call.sandbox.path),
        ]
        gateway = one.route_gateway if one.route_gateway is not None else ipam.gateway
        addresses.append(AssignedAddress(one.address, gateway, interface=len(interfaces) - 1))
        # The host route to a gateway outside the subnet is not listed: before 1.1.0 none could say that it is on-link.
        routes += ipam.routes or ((Route(DEFAULT_ROUTE, one.route_gateway),) if one.route_gateway is not None else ())
    return Result(tuple(addresses), tuple(interfaces), tuple(routes), main.call.config.dns)
