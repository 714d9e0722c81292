"""A kernel in memory that refuses what the real one refuses: the twin of linux/kernel.py, and under the same tests.

It knows devices, of the kinds we make and of kinds that only stand in the way, and namespaces with interfaces in them.
Namespaces are numbers that `make_namespace` hands out, where the real kernel has descriptors. Everything happens at
once and in one thread.

`refuse` is where a simulation puts its bad days: it is asked before each operation, with the words that an error would
have, and raises, or not.
"""

import errno
import itertools
import os
from collections.abc import Callable

from msgspec.structs import replace

from weavenet.address import Cidr
from weavenet.dataplane.kernel import Watch
from weavenet.dataplane.limits import Limiter, limiter_alias, limiter_of, parse_limiter
from weavenet.dataplane.model import (
    DEVICE_ALIAS,
    Bridge,
    HostNetwork,
    HostRoute,
    MacAddress,
    OtherBridge,
    PodInterface,
    PodLink,
    PodPort,
    Stranger,
    Vxlan,
    host_end_names,
    parse_pod_alias,
    pod_alias,
    pod_routes,
    sort_routes,
)
from weavenet.dataplane.plan import (
    AddAddress,
    AttachPrograms,
    Change,
    CreateBridge,
    CreateVxlan,
    DeleteDevice,
    MarkOurs,
    RemoveAddress,
    SetAcceptRa,
    SetHairpin,
    SetIpv6LinkLocal,
    SetLearning,
    SetMac,
    SetMaster,
    SetMtu,
    SetNeighbourTimes,
    SetPromoteSecondaries,
    SetStp,
    SetUp,
)
from weavenet.errors import KernelError, NamespaceError, RefusedError
from weavenet.sim.devices import Device, FakeDatapath, FakeWatch
from weavenet.sim.nft import FakeTraffic

HOST_NAMESPACE = 0
_MTU_MIN, _MTU_MAX = 68, 65535  # RFC 791; the largest IP packet
_MULTICAST_BIT = 1 << 40
_MAC_BASE = 0x02_00_00_00_00_00


def never_refuse(operation: str) -> None:
    """Refuse nothing."""


class FakeKernel(FakeTraffic):
    """The network of one simulated host."""

    def __init__(
        self, bridge: str, vxlan: str, datapath: FakeDatapath, refuse: Callable[[str], None] = never_refuse
    ) -> None:
        """Start with a host that has no devices."""
        super().__init__(has_bridge=lambda: bridge in self._devices, refuse=refuse, hint=self._hint)
        self._bridge = bridge
        self._vxlan = vxlan
        self._datapath = datapath
        self._refuse = refuse
        self._devices: dict[str, Device] = {}
        self._namespaces: dict[int, dict[str, PodInterface]] = {}
        self._numbers = itertools.count(1)
        self._watches: list[FakeWatch] = []
        self.traffic_changes = self.changes
        self.routes: list[HostRoute] = []

    # --- what others do on a host ---

    def make_namespace(self) -> int:
        """Make a pod's namespace, and return its number."""
        number = next(self._numbers)
        self._namespaces[number] = {}
        return number

    def remove_namespace(self, number: int) -> None:
        """Remove a pod's namespace, and with it both ends of what leads into it."""
        del self._namespaces[number]
        for name in [device.name for device in self._devices.values() if device.inside and device.inside[0] == number]:
            self._remove(self._devices[name])

    def add_device(
        self, name: str, kind: str, *, alias: str = "", port: int = 0, external: bool = False, master: str = ""
    ) -> None:
        """Make a device that is not ours."""
        device = Device(name, kind, next(self._numbers), self._draw_mac(), 1500, alias=alias, master=master)
        device.port, device.external = port, external
        self._add(device)

    def add_pod(self, name: str, namespace: int, ifname: str, *, master: str = "") -> None:
        """Connect a pod as another network plugin would: nothing says whose it is."""
        device = Device(name, "veth", next(self._numbers), self._draw_mac(), 1500, up=True, master=master)
        device.inside = (namespace, ifname)
        self._add(device)
        self._namespaces[namespace][ifname] = PodInterface(
            ifname, self._draw_mac(), 1500, up=False, addresses=(), routes=(), host_end=name, host_mac=device.mac
        )

    def delete_device(self, name: str) -> None:
        """Remove any device."""
        self._remove(self._require(name))

    # --- the host ---

    def observe(self, *, with_macs: bool = False) -> HostNetwork:
        """Return all that is ours, or in our way."""
        self._refuse("look at the host's devices")
        pods = self.list_pods()
        if with_macs:
            pods = tuple(replace(pod, mac=self._inside(pod.name).mac) for pod in pods)
        others = frozenset(pod.bridge for pod in pods if pod.bridge and self.find_bridge(pod.bridge) is not None)
        return HostNetwork(self._observe_bridge(), self._observe_vxlan(), pods, self._observe_limiters(), others)

    def host_routes(self) -> tuple[HostRoute, ...]:
        """Return the routes that were put into `routes`, and those that come with addresses."""
        connected = [
            HostRoute(address.network, device.name)
            for device in self._devices.values()
            for address in device.addresses
            if device.up and address.prefix_length < 32
        ]
        return tuple(sorted({*self.routes, *connected}))

    def changes(self) -> Watch:
        """Start watching."""
        watch = FakeWatch()
        self._watches.append(watch)
        return watch

    def apply(self, change: Change) -> None:
        """Make one change of a plan."""
        self._refuse(str(change))
        match change:
            case CreateBridge(name, mac, mtu):
                self._add(Device(name, "bridge", next(self._numbers), mac, mtu, alias=DEVICE_ALIAS))
            case CreateVxlan(name, port, mtu):
                self._create_vxlan(name, port, mtu)
            case DeleteDevice(name):
                self._delete_ours(name)
            case _:
                self._change(self._require(change.name), change)
        self._hint()

    # --- pods ---

    def attach_pod(self, link: PodLink) -> PodInterface:
        """Connect a pod to the bridge."""
        self._refuse(f"connect container {link.container_id}")
        inside = self._enter(link.netns)
        bridge = self._require(link.bridge or self._bridge)
        if bridge.kind != "bridge":
            raise RefusedError(f"create a port of {bridge.name}", errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        name = self._free_host_end(link)
        if link.ifname in inside:
            raise KernelError(f"cannot connect the pod: it already has an interface {link.ifname}")
        _check_mtu(f"create veth pair {name} and {link.ifname}", link.mtu)
        for route in pod_routes(link):
            # "Nexthop has invalid gateway": a broadcast address is nobody's; a /31 has none (RFC 3021).
            if link.address.prefix_length <= 30 and route.gateway == link.address.broadcast:
                raise RefusedError(f"add route to {route.destination}", errno.EINVAL, os.strerror(errno.EINVAL))
        host_mac = self._draw_mac()
        interface = PodInterface(
            ifname=link.ifname,
            mac=self._draw_mac() if link.mac is None else link.mac,
            mtu=link.mtu,
            up=True,
            addresses=(link.address,),
            routes=sort_routes(pod_routes(link)),
            host_end=name,
            host_mac=host_mac,
            ingress=link.ingress,
            egress=link.egress,
        )
        if link.egress is not None:
            limiter = limiter_of(link.container_id, link.ifname)
            self._devices.pop(limiter.name, None)
            ifb = Device(limiter.name, "ifb", next(self._numbers), self._draw_mac(), link.mtu, up=True)
            ifb.alias = limiter_alias(limiter)
            self._add(ifb)
        inside[link.ifname] = interface
        host_end = Device(name, "veth", next(self._numbers), host_mac, link.mtu, up=True, master=bridge.name)
        host_end.alias = pod_alias(link)
        host_end.hairpin = link.hairpin
        host_end.inside = (link.netns, link.ifname)
        self._add(host_end)
        return interface

    def detach_pod(self, container_id: str, ifname: str, netns: int | None) -> bool:
        """Disconnect a pod; False if it was not connected."""
        self._refuse(f"disconnect container {container_id}")
        self._devices.pop(limiter_of(container_id, ifname).name, None)
        for name in host_end_names(container_id, ifname):
            device = self._devices.get(name)
            if device is not None and device.kind == "veth" and self._belongs(device, container_id, ifname):
                self._remove(device)
                return True
        if netns is not None and netns != HOST_NAMESPACE:
            self._enter(netns)
            for device in list(self._devices.values()):
                if device.inside == (netns, ifname) and self._is_unmarked_port(device):
                    self._remove(device)
                    return True
        return False

    def inspect_pod(self, netns: int, ifname: str) -> PodInterface | None:
        """Return an interface of a pod as it is."""
        self._refuse(f"look at {ifname}")
        return self._enter(netns).get(ifname)

    def has_default_route(self, netns: int, *, besides: str) -> bool:
        """Say whether a pod has a default route by another interface than this one."""
        self._refuse("look at a pod's routes")
        others = (interface for name, interface in self._enter(netns).items() if name != besides)
        return any(route.destination.prefix_length == 0 for other in others for route in other.routes)

    def find_bridge(self, name: str) -> OtherBridge | None:
        """Return a bridge of the host's; None if there is none of this name."""
        self._refuse(f"look at {name}")
        device = self._devices.get(name)
        if device is None or device.kind != "bridge":
            return None
        return OtherBridge(name, device.mtu, tuple(sorted(device.addresses)))

    def list_pods(self) -> tuple[PodPort, ...]:
        """Return the pods that are connected."""
        pods: list[PodPort] = []
        for device in self._devices.values():
            parsed = parse_pod_alias(device.alias)
            if parsed is not None and device.kind == "veth":
                pods.append(
                    PodPort(
                        device.name,
                        *parsed.owner,
                        up=device.up,
                        master=device.master,
                        hairpin=device.hairpin,
                        hairpin_wanted=parsed.hairpin,
                        bridge=parsed.bridge,
                    )
                )
        return tuple(sorted(pods))

    # --- observing ---

    def _inside(self, port: str) -> PodInterface:
        namespace, ifname = self._devices[port].inside or (-1, "")
        return self._namespaces[namespace][ifname]

    def _observe_limiters(self) -> tuple[Limiter, ...]:
        found = (parse_limiter(device.name, device.alias) for device in self._devices.values())
        return tuple(sorted(filter(None, found)))

    def _observe_bridge(self) -> Bridge | Stranger | None:
        device = self._devices.get(self._bridge)
        if device is None or device.kind != "bridge":
            return None if device is None else Stranger(device.name, device.kind)
        return Bridge(
            name=device.name,
            ours=device.alias == DEVICE_ALIAS,
            mac=device.mac,
            mtu=device.mtu,
            up=device.up,
            stp=device.stp,
            accept_ra=device.accept_ra,
            promote_secondaries=device.promote_secondaries,
            neighbours=device.neighbours,
            addresses=tuple(sorted(device.addresses)),
        )

    def _observe_vxlan(self) -> Vxlan | Stranger | None:
        device = self._devices.get(self._vxlan)
        if device is None or device.kind != "vxlan":
            return None if device is None else Stranger(device.name, device.kind)
        return Vxlan(
            name=device.name,
            ours=device.alias == DEVICE_ALIAS,
            port=device.port,
            external=device.external,
            learning=device.learning,
            mtu=device.mtu,
            up=device.up,
            master=device.master,
            ipv6_link_local=device.ipv6_link_local,
            programs=self._datapath.attached(device.index),
        )

    # --- changing ---

    def _create_vxlan(self, name: str, port: int, mtu: int) -> None:
        if any(device.kind == "vxlan" and device.port == port for device in self._devices.values()):
            raise RefusedError(f"create VXLAN device {name}", errno.EEXIST, os.strerror(errno.EEXIST))
        device = Device(name, "vxlan", next(self._numbers), self._draw_mac(), mtu, alias=DEVICE_ALIAS)
        device.port, device.external, device.learning, device.ipv6_link_local = port, True, False, False
        self._add(device)

    def _delete_ours(self, name: str) -> None:
        device = self._devices.get(name)
        if device is None:
            return
        is_pods = parse_pod_alias(device.alias) is not None or parse_limiter(name, device.alias) is not None
        if device.alias != DEVICE_ALIAS and not is_pods:
            raise KernelError(f"will not delete {name}: it is not ours (its alias is {device.alias!r})")
        self._remove(device)

    def _change(self, device: Device, change: Change) -> None:
        match change:
            case MarkOurs():
                device.alias = DEVICE_ALIAS
            case SetMac(name, mac):
                if mac & _MULTICAST_BIT or mac == 0:
                    number = errno.EADDRNOTAVAIL
                    raise RefusedError(f"set the MAC address of {name}", number, os.strerror(number))
                device.mac = mac
            case SetMtu(name, mtu):
                _check_mtu(f"set the MTU of {name} to {mtu}", mtu)
                device.mtu = mtu
            case SetUp(_, up):
                device.up = up
            case SetMaster(name, master):
                if master and self._require(master).kind != "bridge":
                    raise RefusedError(f"make {name} a port of {master}", errno.EOPNOTSUPP, "not a bridge")
                device.master, device.hairpin = master, False
            case SetHairpin(name, hairpin):
                if not device.master:
                    raise RefusedError(f"set hairpin mode of {name}", errno.EOPNOTSUPP, "not a port")
                device.hairpin = hairpin
            case SetStp(_, stp):
                device.stp = stp
            case SetLearning(_, learning):
                device.learning = learning
            case SetIpv6LinkLocal(_, enabled):
                device.ipv6_link_local = enabled
            case SetAcceptRa(_, accept):
                device.accept_ra = accept
            case SetNeighbourTimes(_, times):
                device.neighbours = times
            case SetPromoteSecondaries(_, promote):
                device.promote_secondaries = promote
            case AddAddress(_, address):
                if address not in device.addresses:
                    device.addresses.append(address)
            case RemoveAddress(_, address):
                _remove_address(device, address)
            case AttachPrograms():
                self._datapath.attach(device.index)
            case _:
                raise AssertionError(f"not a change of a device: {change}")

    # --- the tables ---

    def _add(self, device: Device) -> None:
        if device.name in self._devices:
            raise RefusedError(f"create {device.kind} {device.name}", errno.EEXIST, os.strerror(errno.EEXIST))
        _check_mtu(f"create {device.kind} {device.name}", device.mtu)
        self._devices[device.name] = device
        self._hint()

    def _remove(self, device: Device) -> None:
        del self._devices[device.name]
        self._datapath.devices.pop(device.index, None)
        for port in self._devices.values():
            if port.master == device.name:
                port.master, port.hairpin = "", False
        if device.inside is not None:
            namespace, ifname = device.inside
            self._namespaces.get(namespace, {}).pop(ifname, None)
        self._hint()

    def _require(self, name: str) -> Device:
        device = self._devices.get(name)
        if device is None:
            raise KernelError(f"there is no device {name!r}")
        return device

    def _enter(self, number: int) -> dict[str, PodInterface]:
        if number == HOST_NAMESPACE:
            raise NamespaceError(
                "can not specify host network namespace as network namespace to which container should be added"
            )
        if number not in self._namespaces:
            raise NamespaceError("error accessing namespace: not a network namespace")
        return self._namespaces[number]

    def _free_host_end(self, link: PodLink) -> str:
        name = ""
        for name in host_end_names(link.container_id, link.ifname):
            device = self._devices.get(name)
            if device is None:
                return name
            parsed = parse_pod_alias(device.alias)
            if parsed is not None and parsed.owner == (link.container_id, link.ifname):
                raise KernelError(
                    f"container {link.container_id} is already connected, by {name}; delete that connection first"
                )
        raise RefusedError(f"create veth pair {name} and {link.ifname}", errno.EEXIST, os.strerror(errno.EEXIST))

    def _belongs(self, device: Device, container_id: str, ifname: str) -> bool:
        parsed = parse_pod_alias(device.alias)
        return (parsed is not None and parsed.owner == (container_id, ifname)) or self._is_unmarked_port(device)

    def _is_unmarked_port(self, device: Device) -> bool:
        return not device.alias and device.master == self._bridge

    def _draw_mac(self) -> MacAddress:
        return MacAddress(_MAC_BASE + next(self._numbers))

    def _hint(self) -> None:
        for watch in self._watches:
            watch.hints += 1


def _remove_address(device: Device, address: Cidr) -> None:
    same_subnet = [other for other in device.addresses if other.network == address.network]
    if address in same_subnet:
        takes_all = same_subnet[0] == address and not device.promote_secondaries
        gone = same_subnet if takes_all else [address]
        device.addresses = [other for other in device.addresses if other not in gone]


def _check_mtu(operation: str, mtu: int) -> None:
    if not _MTU_MIN <= mtu <= _MTU_MAX:
        raise RefusedError(operation, errno.EINVAL, os.strerror(errno.EINVAL))
