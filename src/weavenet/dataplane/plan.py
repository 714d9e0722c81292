"""The difference between two host networks, as a list of changes that lead from one to the other.

    actual ──┐
             ├─▶ plan() ─▶ changes, in the order in which to make them; each prints as the command a person would type
    desired ─┘

The order is: what is missing is created before anything is removed, the bridge before its ports, and the tc programs
are on the VXLAN device before it joins the bridge, so that no frame meets a device that does not know where to send it.
The one deletion that comes first is of a VXLAN device of ours whose port or mode is wrong: neither can be changed, and
two such devices cannot share a name.

A device that is not ours (model.py says how one tells) but has one of our names is adopted if it can be made to do: a
node that comes from Weave Net has a bridge `weave` with pods on it, and they stay connected. If it cannot, the plan is
refused with the attribute that differs, as flannel does, and the kernel is left alone.

Pods are not created by a plan: that takes their network namespace, which only a CNI request brings along (kernel.py).
"""

import msgspec

from weavenet.address import Cidr
from weavenet.dataplane.model import (
    KERNEL_NEIGHBOUR_TIMES,
    NO_PROGRAMS,
    Bridge,
    HostNetwork,
    MacAddress,
    NeighbourTimes,
    PodPort,
    Programs,
    Stranger,
    Vxlan,
    format_mac,
)
from weavenet.errors import IncompatibleDeviceError

# --- changes ----------------------------------------------------------------------------------------------------------


def _switch(*, on: bool) -> str:
    return "on" if on else "off"


class CreateBridge(msgspec.Struct, frozen=True):
    """Make the bridge, down, without spanning tree, marked as ours."""

    name: str
    mac: MacAddress
    mtu: int

    def __str__(self) -> str:
        return f"ip link add {self.name} address {format_mac(self.mac)} mtu {self.mtu} type bridge stp_state 0"


class CreateVxlan(msgspec.Struct, frozen=True):
    """Make the VXLAN device, down, marked as ours, and without an IPv6 address of its own."""

    name: str
    port: int
    mtu: int

    def __str__(self) -> str:
        return f"ip link add {self.name} mtu {self.mtu} type vxlan external dstport {self.port} nolearning"


class DeleteDevice(msgspec.Struct, frozen=True):
    """Remove a device; for a host end, the pod's end goes with it. Absent is fine."""

    name: str

    def __str__(self) -> str:
        return f"ip link delete {self.name}"


class MarkOurs(msgspec.Struct, frozen=True):
    """Give an adopted device our alias."""

    name: str

    def __str__(self) -> str:
        return f"ip link set {self.name} alias weavenet"


class SetMac(msgspec.Struct, frozen=True):
    """Set a device's MAC address."""

    name: str
    mac: MacAddress

    def __str__(self) -> str:
        return f"ip link set {self.name} address {format_mac(self.mac)}"


class SetMtu(msgspec.Struct, frozen=True):
    """Set a device's MTU."""

    name: str
    mtu: int

    def __str__(self) -> str:
        return f"ip link set {self.name} mtu {self.mtu}"


class SetUp(msgspec.Struct, frozen=True):
    """Switch a device on or off."""

    name: str
    up: bool

    def __str__(self) -> str:
        return f"ip link set {self.name} {'up' if self.up else 'down'}"


class SetMaster(msgspec.Struct, frozen=True):
    """Make a device a port of a bridge, or of none (blank)."""

    name: str
    master: str

    def __str__(self) -> str:
        return f"ip link set {self.name} master {self.master}" if self.master else f"ip link set {self.name} nomaster"


class SetHairpin(msgspec.Struct, frozen=True):
    """Allow, or not, that a port of the bridge gets back what it sent."""

    name: str
    hairpin: bool

    def __str__(self) -> str:
        return f"ip link set {self.name} type bridge_slave hairpin {_switch(on=self.hairpin)}"


class SetStp(msgspec.Struct, frozen=True):
    """Switch a bridge's spanning tree protocol."""

    name: str
    stp: bool

    def __str__(self) -> str:
        return f"ip link set {self.name} type bridge stp_state {int(self.stp)}"


class SetLearning(msgspec.Struct, frozen=True):
    """Switch a VXLAN device's own learning of remotes."""

    name: str
    learning: bool

    def __str__(self) -> str:
        return f"ip link set {self.name} type vxlan {'' if self.learning else 'no'}learning"


class SetIpv6LinkLocal(msgspec.Struct, frozen=True):
    """Switch whether the kernel gives a device an IPv6 link-local address when it comes up."""

    name: str
    enabled: bool

    def __str__(self) -> str:
        return f"ip link set {self.name} addrgenmode {'eui64' if self.enabled else 'none'}"


class SetAcceptRa(msgspec.Struct, frozen=True):
    """Switch whether IPv6 router advertisements are obeyed on a device."""

    name: str
    accept: bool

    def __str__(self) -> str:
        return f"sysctl net.ipv6.conf.{self.name}.accept_ra={int(self.accept)}"


class SetPromoteSecondaries(msgspec.Struct, frozen=True):
    """Switch whether a device keeps its other addresses in a subnet when it loses the first."""

    name: str
    promote: bool

    def __str__(self) -> str:
        return f"sysctl net.ipv4.conf.{self.name}.promote_secondaries={int(self.promote)}"


class SetNeighbourTimes(msgspec.Struct, frozen=True):
    """Set the pace of a device's ARP entries."""

    name: str
    neighbours: NeighbourTimes

    def __str__(self) -> str:
        return f"sysctl net.ipv4.neigh.{self.name}: {self.neighbours}"


class AddAddress(msgspec.Struct, frozen=True):
    """Give a device an address."""

    name: str
    address: Cidr

    def __str__(self) -> str:
        return f"ip address add {self.address} dev {self.name}"


class RemoveAddress(msgspec.Struct, frozen=True):
    """Take an address from a device."""

    name: str
    address: Cidr

    def __str__(self) -> str:
        return f"ip address delete {self.address} dev {self.name}"


class AttachPrograms(msgspec.Struct, frozen=True):
    """Put our tc programs on the VXLAN device, in place of older ones of ours."""

    name: str
    programs: Programs

    def __str__(self) -> str:
        return f"tc filter replace dev {self.name}: {self.programs}"


Change = (
    CreateBridge
    | CreateVxlan
    | DeleteDevice
    | MarkOurs
    | SetMac
    | SetMtu
    | SetUp
    | SetMaster
    | SetHairpin
    | SetStp
    | SetLearning
    | SetIpv6LinkLocal
    | SetAcceptRa
    | SetPromoteSecondaries
    | SetNeighbourTimes
    | AddAddress
    | RemoveAddress
    | AttachPrograms
)


# --- the plan ---------------------------------------------------------------------------------------------------------


def plan(actual: HostNetwork, desired: HostNetwork) -> list[Change]:
    """Return what to do, in order, to make `actual` into `desired`; nothing if they are equal.

    Raises IncompatibleDeviceError if something that is not ours is in the way.
    """
    changes: list[Change] = []
    if isinstance(desired.bridge, Bridge):
        changes += _plan_bridge(actual.bridge, desired.bridge)
    if isinstance(desired.vxlan, Vxlan):
        changes += _plan_vxlan(actual.vxlan, desired.vxlan)
    wanted = {pod.name: pod for pod in desired.pods}
    for pod in actual.pods:
        if pod.name in wanted:
            changes += _plan_port(pod, wanted[pod.name])
    changes += [DeleteDevice(pod.name) for pod in actual.pods if pod.name not in wanted]
    changes += [DeleteDevice(limiter.name) for limiter in actual.limiters if limiter not in desired.limiters]
    if desired.vxlan is None and isinstance(actual.vxlan, Vxlan) and actual.vxlan.ours:
        changes.append(DeleteDevice(actual.vxlan.name))
    if desired.bridge is None and isinstance(actual.bridge, Bridge) and actual.bridge.ours:
        changes.append(DeleteDevice(actual.bridge.name))
    return changes


def new_bridge(change: CreateBridge) -> Bridge:
    """Return the bridge as the kernel has it right after its creation."""
    return Bridge(
        name=change.name,
        ours=True,
        mac=change.mac,
        mtu=change.mtu,
        up=False,
        stp=False,
        accept_ra=True,
        promote_secondaries=False,
        neighbours=KERNEL_NEIGHBOUR_TIMES,
    )


def new_vxlan(change: CreateVxlan) -> Vxlan:
    """Return the VXLAN device as the kernel has it right after its creation."""
    return Vxlan(
        name=change.name,
        ours=True,
        port=change.port,
        external=True,
        learning=False,
        mtu=change.mtu,
        up=False,
        master="",
        ipv6_link_local=False,
        programs=NO_PROGRAMS,
    )


def _plan_bridge(actual: Bridge | Stranger | None, desired: Bridge) -> list[Change]:
    changes: list[Change] = []
    name = desired.name
    if isinstance(actual, Stranger):
        raise IncompatibleDeviceError(name, "link type", actual.kind, "bridge")
    if actual is None:
        create = CreateBridge(name, desired.mac, desired.mtu)
        changes.append(create)
        actual = new_bridge(create)
    if not actual.ours and desired.ours:
        changes.append(MarkOurs(name))
    if actual.mac != desired.mac:
        changes.append(SetMac(name, desired.mac))
    if actual.mtu != desired.mtu:
        changes.append(SetMtu(name, desired.mtu))
    if actual.stp != desired.stp:
        changes.append(SetStp(name, desired.stp))
    if actual.accept_ra != desired.accept_ra:
        changes.append(SetAcceptRa(name, desired.accept_ra))
    if actual.promote_secondaries != desired.promote_secondaries:
        changes.append(SetPromoteSecondaries(name, desired.promote_secondaries))
    if actual.neighbours != desired.neighbours:
        changes.append(SetNeighbourTimes(name, desired.neighbours))
    if actual.up != desired.up:
        changes.append(SetUp(name, desired.up))
    changes += [AddAddress(name, address) for address in desired.addresses if address not in actual.addresses]
    changes += [RemoveAddress(name, address) for address in actual.addresses if address not in desired.addresses]
    return changes


def _plan_vxlan(actual: Vxlan | Stranger | None, desired: Vxlan) -> list[Change]:
    changes: list[Change] = []
    name = desired.name
    if isinstance(actual, Stranger):
        raise IncompatibleDeviceError(name, "link type", actual.kind, "vxlan")
    if actual is not None and (actual.external, actual.port) != (desired.external, desired.port):
        if not actual.ours:
            raise _unchangeable(actual, desired)
        changes.append(DeleteDevice(name))
        actual = None
    if actual is None:
        create = CreateVxlan(name, desired.port, desired.mtu)
        changes.append(create)
        actual = new_vxlan(create)
    if not actual.ours and actual.master not in ("", desired.master):
        # Weave's fastdp leaves such a device, a port of its Open vSwitch datapath, under the very same name.
        raise IncompatibleDeviceError(name, "master", actual.master, desired.master)
    if not actual.ours and desired.ours:
        changes.append(MarkOurs(name))
    if actual.learning != desired.learning:
        changes.append(SetLearning(name, desired.learning))
    if actual.ipv6_link_local != desired.ipv6_link_local:
        changes.append(SetIpv6LinkLocal(name, desired.ipv6_link_local))
    if actual.mtu != desired.mtu:
        changes.append(SetMtu(name, desired.mtu))
    if actual.programs != desired.programs:
        changes.append(AttachPrograms(name, desired.programs))
    if actual.master != desired.master:
        changes.append(SetMaster(name, desired.master))
    if actual.up != desired.up:
        changes.append(SetUp(name, desired.up))
    return changes


def _unchangeable(actual: Vxlan, desired: Vxlan) -> IncompatibleDeviceError:
    if actual.external != desired.external:
        return IncompatibleDeviceError(
            desired.name, "external", _switch(on=actual.external), _switch(on=desired.external)
        )
    return IncompatibleDeviceError(desired.name, "dstport", str(actual.port), str(desired.port))


def _plan_port(actual: PodPort, desired: PodPort) -> list[Change]:
    changes: list[Change] = []
    name = desired.name
    hairpin = actual.hairpin
    if actual.master != desired.master:
        changes.append(SetMaster(name, desired.master))
        hairpin = False  # a flag of the port, and this will be a new one
    if hairpin != desired.hairpin:
        changes.append(SetHairpin(name, desired.hairpin))
    if actual.up != desired.up:
        changes.append(SetUp(name, desired.up))
    return changes
