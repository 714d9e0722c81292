"""The kernel of this host, as dataplane/kernel.py wants it: the network namespace in which a LinuxKernel is made.

One netlink socket serves all requests about the host. It belongs to the namespace it was made in, but sysctls and the
sockets that listen belong to that of the thread that asks, so every call must come from a thread of that namespace. All
threads are, unless they were sent elsewhere, and those do not come back (netns.py).
"""

from typing import assert_never

from weavenet.dataplane.kernel import Datapath, Watch
from weavenet.dataplane.limits import parse_limiter
from weavenet.dataplane.model import (
    DEVICE_ALIAS,
    Bridge,
    HostNetwork,
    HostRoute,
    OtherBridge,
    PodInterface,
    PodLink,
    PodPort,
    Stranger,
    Vxlan,
    parse_pod_alias,
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
from weavenet.dataplane.traffic import (
    ForgetUdpFlows,
    HostTraffic,
    SetSwitch,
    Switch,
    Switches,
    TrafficChange,
    Transaction,
)
from weavenet.errors import KernelError
from weavenet.linux import links
from weavenet.linux.conntrack import forget_udp_flows
from weavenet.linux.limits import list_limiters
from weavenet.linux.links import change_link, find_link, require_link
from weavenet.linux.netlink import Group, Listener, Netlink, Request
from weavenet.linux.netns import own_namespace
from weavenet.linux.nft import Nftables, RuleWatch
from weavenet.linux.pods import PodLinks, announce
from weavenet.linux.removal import Leftovers
from weavenet.linux.routes import add_address, list_addresses, list_routes, remove_address, set_neighbour_times
from weavenet.linux.sysctl import (
    read_accept_ra,
    read_neighbour_times,
    read_promote_secondaries,
    read_switch,
    write_accept_ra,
    write_promote_secondaries,
    write_sysctl,
)
from weavenet.linux.xtables import legacy_forward_drops

_DeviceChange = (
    AddAddress
    | RemoveAddress
    | SetNeighbourTimes
    | SetUp
    | MarkOurs
    | SetMac
    | SetMtu
    | SetMaster
    | SetHairpin
    | SetStp
    | SetLearning
    | SetIpv6LinkLocal
)


class LinuxKernel:
    """The network of this host. Threads may share it."""

    def __init__(self, bridge: str, vxlan: str, datapath: Datapath) -> None:
        """Open the sockets; nothing is changed. Raises KernelError."""
        self._bridge = bridge
        self._vxlan = vxlan
        self._datapath = datapath
        self._namespace = own_namespace()
        self._netlink = Netlink()
        self._leftovers = Leftovers()
        self._pods = PodLinks(bridge, self._netlink, self._leftovers)
        self._nftables = Nftables()

    def close(self) -> None:
        """Close the sockets; everything in the kernel stays."""
        self._nftables.close()
        self._pods.close()
        self._netlink.close()

    # --- the host -----------------------------------------------------------------------------------------------------

    def observe(self, *, with_macs: bool = False) -> HostNetwork:
        """Return all that is ours, or in our way, and the pods' MAC addresses if wanted. Raises KernelError."""
        self._assert_at_home()
        pods = self._list_pods(with_macs=with_macs)
        wanted = {pod.bridge for pod in pods if pod.bridge}
        others = frozenset(name for name in wanted if self._find_bridge(name) is not None)
        return HostNetwork(self._observe_bridge(), self._observe_vxlan(), pods, list_limiters(self._netlink), others)

    def apply(self, change: Change) -> None:
        """Make one change of a plan. Raises KernelError."""
        self._assert_at_home()
        match change:
            case CreateBridge(name, mac, mtu):
                self._create(name, links.create_bridge(name, mac, mtu))
            case CreateVxlan(name, port, mtu):
                self._create(name, links.create_vxlan(name, port, mtu), links.set_ipv6_link_local(on=False))
            case DeleteDevice(name):
                self._delete(name)
            case SetAcceptRa(name, accept):
                write_accept_ra(require_link(self._netlink, name).name, accept=accept)
            case SetPromoteSecondaries(name, promote):
                write_promote_secondaries(require_link(self._netlink, name).name, promote=promote)
            case AttachPrograms(name):
                self._datapath.attach(require_link(self._netlink, name).index)
            case AddAddress(name, address):
                self._netlink.execute(self._request(change))
                # Another host may have had the address; whoever remembers its MAC address would go on asking there.
                announcer = announce(name, require_link(self._netlink, name).mac, address)
                self._leftovers.finish(announcer.close)
            case _:
                self._netlink.execute(self._request(change))

    # --- pods' traffic ------------------------------------------------------------------------------------------------

    def observe_traffic(self) -> HostTraffic:
        """Return how the host handles pods' traffic. Raises KernelError."""
        self._assert_at_home()
        table, forward = self._nftables.observe()
        forwarding, netfilter, localnet = (
            read_switch(switch.path(self._bridge))
            for switch in (Switch.FORWARDING, Switch.BRIDGE_NETFILTER, Switch.ROUTE_LOCALNET)
        )
        return HostTraffic(table, forward, Switches(forwarding is True, netfilter, localnet))

    def apply_traffic(self, change: TrafficChange) -> None:
        """Make one change of a plan. Raises KernelError."""
        self._assert_at_home()
        match change:
            case Transaction():
                self._nftables.run(change)
            case SetSwitch(switch, on):
                write_sysctl(str(int(on)), *switch.path(self._bridge))
            case ForgetUdpFlows(ports):
                forget_udp_flows(ports)
            case _:
                assert_never(change)

    def legacy_forward_drops(self) -> bool:
        """Say whether rules that nftables does not see drop what pods send through this host. Raises KernelError."""
        self._assert_at_home()
        return legacy_forward_drops(self._bridge)

    def traffic_changes(self) -> Watch:
        """Start watching nftables. Raises KernelError."""
        self._assert_at_home()
        return RuleWatch()

    # --- the host's surroundings --------------------------------------------------------------------------------------

    def host_routes(self) -> tuple[HostRoute, ...]:
        """Return the IPv4 routes of the main table, in order. Raises KernelError."""
        names = links.list_names(self._netlink)
        routes = {HostRoute(route.destination, names.get(route.device, "")) for route in list_routes(self._netlink)}
        return tuple(sorted(routes))

    def changes(self) -> Watch:
        """Start watching devices and addresses. Raises KernelError."""
        self._assert_at_home()
        return Listener(Group.LINK, Group.IPV4_ADDRESS)

    # --- pods ---------------------------------------------------------------------------------------------------------

    def attach_pod(self, link: PodLink) -> PodInterface:
        """Connect a pod to the bridge; it can send when this returns. Raises KernelError, and nothing is left then."""
        self._assert_at_home()
        return self._pods.attach(link)

    def detach_pod(self, container_id: str, ifname: str, netns: int | None) -> bool:
        """Disconnect a pod; False if it was not connected. Raises KernelError."""
        self._assert_at_home()
        return self._pods.detach(container_id, ifname, netns)

    def inspect_pod(self, netns: int, ifname: str) -> PodInterface | None:
        """Return an interface of a pod as it is; None if there is none by this name. Raises KernelError."""
        self._assert_at_home()
        return self._pods.inspect(netns, ifname)

    def list_pods(self) -> tuple[PodPort, ...]:
        """Return the pods that are connected. Raises KernelError."""
        return self._list_pods(with_macs=False)

    def find_bridge(self, name: str) -> OtherBridge | None:
        """Return a bridge of the host's; None if there is none of this name. Raises KernelError."""
        link = self._find_bridge(name)
        return None if link is None else OtherBridge(name, link.mtu, list_addresses(self._netlink, link.index))

    def has_default_route(self, netns: int, *, besides: str) -> bool:
        """Say whether a pod has a default route by another interface than this one. Raises KernelError."""
        return self._pods.has_default_route(netns, besides)

    def _find_bridge(self, name: str) -> links.Link | None:
        link = find_link(self._netlink, name)
        return link if link is not None and link.kind == "bridge" else None

    def _list_pods(self, *, with_macs: bool) -> tuple[PodPort, ...]:
        pods: list[PodPort] = []
        names: dict[int, str] = {0: ""}
        for link in links.list_links(self._netlink, "veth"):
            parsed = parse_pod_alias(link.alias)
            if parsed is None:
                continue
            if link.master not in names:
                names[link.master] = self._name(link.master)
            pods.append(
                PodPort(
                    name=link.name,
                    container_id=parsed.container_id,
                    ifname=parsed.ifname,
                    up=link.up,
                    master=names[link.master],
                    hairpin=link.hairpin,
                    hairpin_wanted=parsed.hairpin,
                    bridge=parsed.bridge,
                    mac=links.find_far_mac(self._netlink, link) if with_macs else None,
                )
            )
        return tuple(sorted(pods))

    # --- observing ----------------------------------------------------------------------------------------------------

    def _observe_bridge(self) -> Bridge | Stranger | None:
        link = find_link(self._netlink, self._bridge)
        if link is None:
            return None
        if link.kind != "bridge":
            return Stranger(link.name, link.kind or "physical")
        return Bridge(
            name=link.name,
            ours=link.alias == DEVICE_ALIAS,
            mac=link.mac,
            mtu=link.mtu,
            up=link.up,
            stp=link.stp,
            accept_ra=read_accept_ra(link.name),
            promote_secondaries=read_promote_secondaries(link.name),
            neighbours=read_neighbour_times(link.name),
            addresses=list_addresses(self._netlink, link.index),
        )

    def _observe_vxlan(self) -> Vxlan | Stranger | None:
        link = find_link(self._netlink, self._vxlan)
        if link is None:
            return None
        if link.kind != "vxlan":
            return Stranger(link.name, link.kind or "physical")
        return Vxlan(
            name=link.name,
            ours=link.alias == DEVICE_ALIAS,
            port=link.vxlan_port,
            external=link.vxlan_external,
            learning=link.vxlan_learning,
            mtu=link.mtu,
            up=link.up,
            master=self._name(link.master),
            ipv6_link_local=link.ipv6_link_local,
            programs=self._datapath.attached(link.index),
        )

    def _name(self, index: int) -> str:
        link = links.find_link_by_index(self._netlink, index) if index else None
        return "" if link is None else link.name

    # --- changing -----------------------------------------------------------------------------------------------------

    def _create(self, name: str, creation: Request, *more: bytes) -> None:
        self._netlink.execute(creation)
        index = require_link(self._netlink, name).index
        self._netlink.execute(change_link(index, f"mark {name} as ours", links.set_alias(DEVICE_ALIAS), *more))

    def _delete(self, name: str) -> None:
        link = find_link(self._netlink, name)
        if link is None:
            return
        # The plan saw that it was ours, but that was then, and under this name.
        is_pods = parse_pod_alias(link.alias) is not None or parse_limiter(name, link.alias) is not None
        if link.alias != DEVICE_ALIAS and not is_pods:
            raise KernelError(f"will not delete {name}: it is not ours (its alias is {link.alias!r})")
        self._leftovers.remove_link(link.index, name)

    def _request(self, change: _DeviceChange) -> Request:
        link = require_link(self._netlink, change.name)
        index, name = link.index, link.name
        match change:
            case AddAddress(_, address):
                return add_address(index, name, address)
            case RemoveAddress(_, address):
                return remove_address(index, name, address)
            case SetNeighbourTimes(_, times):
                return set_neighbour_times(index, name, times)
            case SetUp(_, up):
                return change_link(index, f"switch {name} {'on' if up else 'off'}", up=up)
            case MarkOurs():
                return change_link(index, f"mark {name} as ours", links.set_alias(DEVICE_ALIAS))
            case SetMac(_, mac):
                return change_link(index, f"set the MAC address of {name}", links.set_mac(mac))
            case SetMtu(_, mtu):
                return change_link(index, f"set the MTU of {name} to {mtu}", links.set_mtu(mtu))
            case SetMaster(_, master):
                port_of = require_link(self._netlink, master).index if master else 0
                return change_link(index, f"make {name} a port of {master or 'nothing'}", links.set_master(port_of))
            case SetHairpin(_, hairpin):
                return change_link(index, f"set hairpin mode of {name}", links.set_hairpin(on=hairpin))
            case SetStp(_, stp):
                return change_link(index, f"set spanning tree of {name}", links.set_stp(on=stp))
            case SetLearning(_, learning):
                return change_link(index, f"set learning of {name}", links.set_learning(on=learning))
            case SetIpv6LinkLocal(_, enabled):
                return change_link(index, f"set IPv6 addressing of {name}", links.set_ipv6_link_local(on=enabled))
            case _:
                assert_never(change)

    def _assert_at_home(self) -> None:
        assert own_namespace() == self._namespace, "this thread is in another network namespace than the kernel object"
