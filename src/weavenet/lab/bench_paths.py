"""The paths that weavenet is measured beside, each between two hosts of a lab.

    bare            host to host on the uplinks: what the link itself can do
    vxlan-bridge    pod - bridge - VXLAN device - uplink: one layer-2 network from the kernel's own parts, learning
    vxlan-routed    pod - bridge - route - VXLAN device - uplink: a subnet per host, as Flannel sets it up
    weavenet        pod - bridge - VXLAN device with eBPF - uplink
    sleeve          pod - bridge - eBPF - veth pair - process - UDP - uplink; and the same with a password
    sleeve-weave    the same in Weave's own format, as with a peer that knows no other
    weave           sleeve between two real Weave Net routers, where there is that program; and with a password
    mixed-to        sleeve from weavenet to a real Weave Net router; mixed-from the other way; and both with a password

A host has one agent, so each way to run one has hosts of its own; the others share theirs. All of them are up at the
same time and are measured in turns, so that what else happens on the machine happens to all.
"""

import secrets
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from weavenet.lab import agents
from weavenet.lab.demo import bring_up
from weavenet.lab.hosts import Lab
from weavenet.lab.network import UPLINK, ip
from weavenet.lab.process import Deadline, this_process
from weavenet.lab.real_weave import RealWeave
from weavenet.lab.record import HostRecord, Paths, PodRecord
from weavenet.lab.traffic import Route

VXLAN_MTU = 1450  # 1500 less the outer IPv4, UDP, VXLAN and Ethernet headers
FLANNEL_PORT = 8472  # Linux' default, which Flannel keeps; 4789 is IANA's
BRIDGE_VNI = 42
FLANNEL_VNI = 1
CONNECTED_S = 30.0


@dataclass(frozen=True, slots=True)
class Contender:
    """A path to measure."""

    name: str
    title: str
    lab: Lab
    route: Route


def bare(lab: Lab) -> Contender:
    """Return the path from host to host."""
    first, second = lab.record.hosts[:2]
    return Contender("bare", "bare link, host to host", lab, Route(first.name, second.name, second.address))


def vxlan_bridge(lab: Lab) -> Contender:
    """Set up kernel VXLAN as a port of a bridge, which learns, between two pods. Raises LabError."""
    hosts = lab.record.hosts[:2]
    pods = []
    for host, other in zip(hosts, reversed(hosts), strict=True):
        ip(
            lab.namespace(host.name),
            [
                f"link add vxbridge type vxlan id {BRIDGE_VNI} dev {UPLINK} local {host.address} dstport 4789",
                f"link set vxbridge mtu {VXLAN_MTU}",
                f"link add brvx mtu {VXLAN_MTU} type bridge",
                "link set vxbridge master brvx up",
                "link set brvx up",
            ],
        )
        # What is not learnt yet is flooded to the other host.
        flood = [f"fdb append 00:00:00:00:00:00 dev vxbridge dst {other.address}"]
        ip(lab.namespace(host.name), flood, tool="bridge")
        pods.append(_plug(lab, host, f"vxb{host.number}", bridge="brvx", address=f"10.244.0.{host.number}/24"))
    return Contender("vxlan-bridge", "kernel VXLAN and bridge", lab, _between(pods, "10.244.0.2"))


def vxlan_routed(lab: Lab) -> Contender:
    """Set up what Flannel does with its VXLAN backend, between two pods. Raises LabError."""
    hosts = lab.record.hosts[:2]
    pods = []
    for host, other in zip(hosts, reversed(hosts), strict=True):
        here, there = f"10.245.{host.number}", f"10.245.{other.number}"
        kind = f"vxlan id {FLANNEL_VNI} dev {UPLINK} local {host.address} dstport {FLANNEL_PORT} nolearning"
        ip(
            lab.namespace(host.name),
            [
                f"link add flannel.1 address {_flannel_mac(host)} type {kind}",
                f"link set flannel.1 mtu {VXLAN_MTU} up",
                f"address add {here}.0/32 dev flannel.1",
                f"link add cni0 mtu {VXLAN_MTU} type bridge",
                "link set cni0 up",
                f"address add {here}.1/24 dev cni0",
                f"route add {there}.0/24 via {there}.0 dev flannel.1 onlink",
                f"neighbour add {there}.0 lladdr {_flannel_mac(other)} dev flannel.1 nud permanent",
            ],
        )
        forward = [f"fdb add {_flannel_mac(other)} dev flannel.1 dst {other.address}"]
        ip(lab.namespace(host.name), forward, tool="bridge")
        pod = _plug(lab, host, f"flannel{host.number}", bridge="cni0", address=f"{here}.2/24")
        ip(lab.namespace(pod.name), [f"route add default via {here}.1"])
        pods.append(pod)
    return Contender("vxlan-routed", "kernel VXLAN, routed (as Flannel)", lab, _between(pods, "10.245.2.2"))


def weavenet(lab: Lab) -> Contender:
    """Attach two pods to weavenet; the agents run already. Raises LabError."""
    pods = [lab.add_pod(host) for host in lab.record.hosts[:2]]
    return Contender("weavenet", "weavenet", lab, _between(pods, pods[1].address))


def sleeves(stack: ExitStack) -> list[Contender]:
    """Set up hosts whose agents reach each other by sleeve alone, until the stack is closed. Raises LabError."""
    return [
        _sleeve(stack, "sleeve", "weavenet, sleeve"),
        _sleeve(stack, "sleeve-sealed", "weavenet, sleeve, password", has_password=True),
        _sleeve(stack, "sleeve-weave", "weavenet, sleeve in Weave's format", "--no-fast-sleeve"),
    ]


def with_weave(stack: ExitStack, weaver: Path) -> list[Contender]:
    """Set up real Weave Net beside itself and beside weavenet, until the stack is closed. Raises LabError."""
    return [
        one
        for password in ("", secrets.token_hex())
        for one in [*_weave_alone(stack, weaver, password), *_weave_mixed(stack, weaver, password)]
    ]


def _weave_alone(stack: ExitStack, weaver: Path, password: str) -> list[Contender]:
    name, suffix = ("weave-sealed", ", password") if password else ("weave", "")
    lab = _lab(stack, name)
    real = RealWeave(lab, weaver)
    one, two = lab.add_host(), lab.add_host()
    real.start(one, consensus=2, password=password)
    real.start(two, peers=[one.address], consensus=2, password=password)
    pods = [real.add_pod(one), real.add_pod(two)]
    return [Contender(name, f"Weave Net, sleeve{suffix}", lab, _between(pods, pods[1].address))]


def _weave_mixed(stack: ExitStack, weaver: Path, password: str) -> list[Contender]:
    name, suffix = ("mixed-sealed", ", password") if password else ("mixed", "")
    lab = _lab(stack, name)
    real = RealWeave(lab, weaver)
    theirs, ours = lab.add_host(), lab.add_host()
    real.start(theirs, consensus=2, password=password)
    options = [f"--password-file={_password_file(lab, password)}"] if password else []
    lab.start_agent(ours, peers=[theirs.address], consensus=2, options=options)
    deadline = Deadline.after(CONNECTED_S, f"{ours.name} is not connected to {theirs.name}")
    while not agents.established(lab.paths, ours):
        deadline.pause()
    pods = [lab.add_pod(ours), real.add_pod(theirs)]
    return [
        Contender(f"{name}-to", f"weavenet to Weave Net{suffix}", lab, _between(pods, pods[1].address)),
        Contender(f"{name}-from", f"Weave Net to weavenet{suffix}", lab, _between(pods[::-1], pods[0].address)),
    ]


def _lab(stack: ExitStack, name: str) -> Lab:
    """Make a lab that is there until the stack is closed."""
    lab = Lab.create(Paths(f"bench-{name}"), owner=this_process())
    stack.callback(lab.down)
    return lab


def _password_file(lab: Lab, password: str) -> Path:
    file = lab.paths.state / "password"
    file.touch(mode=0o600)
    file.write_text(password)
    return file


def _sleeve(stack: ExitStack, name: str, title: str, *options: str, has_password: bool = False) -> Contender:
    lab = _lab(stack, name)
    if has_password:
        options = (*options, f"--password-file={_password_file(lab, secrets.token_hex())}")
    bring_up(lab, 2, options=["--no-fastdp", *options])
    lab.wait_until_connected()
    pods = [lab.add_pod(host) for host in lab.record.hosts]
    return Contender(name, title, lab, _between(pods, pods[1].address))


def _plug(lab: Lab, host: HostRecord, name: str, *, bridge: str, address: str) -> PodRecord:
    """Make a pod and attach it to a bridge, in the fewest steps that do it."""
    pod = lab.make_pod(name, host)
    space = lab.namespace(name)
    ip(
        lab.namespace(host.name),
        [
            f"link add v{name} mtu {VXLAN_MTU} type veth peer name eth0 mtu {VXLAN_MTU} netns {space.path}",
            f"link set v{name} master {bridge} up",
        ],
    )
    ip(space, [f"address add {address} dev eth0", "link set eth0 up"])
    return pod


def _between(pods: list[PodRecord], address: str) -> Route:
    return Route(pods[0].name, pods[1].name, address)


def _flannel_mac(host: HostRecord) -> str:
    return f"0e:00:00:00:00:{host.number:02x}"
