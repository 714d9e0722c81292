"""Hosts for the tests of the fast data path: namespaces with a bridge, a VXLAN device and a pod each, on one underlay.

    pod ── weave ── vxlan-6784        vxlan-6784 ── weave ── pod
                  host ── uplink ── underlay ── uplink ── host
                                       │
                                      Wire: what passes there, and packets by hand

Host n has short ID n, underlay address 192.0.2.n and a pod with 10.32.0.n. IPv6 is off everywhere, as its chatter would
spoil the counting. No agent runs: tests write the maps.
"""

import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from weavenet.address import Address, parse_address
from weavenet.identity import ShortID
from weavenet.linux.fastdp import Counter, FastdpMaps
from weavenet.linux.netns import open_namespace, run_in_namespace
from weavenet.overlay.forwarding import Forwarding

T = TypeVar("T")

PORT = 6784
MTU = 1376
DEVICE = f"vxlan-{PORT}"
WIRE = parse_address("192.0.2.254")
ETHERTYPE = 0x88B5  # for local experiments, IEEE 802
BROADCAST = b"\xff" * 6
LIMIT_S = 10.0  # for what is certain to happen; it is long over in all but a failing test
SOURCE = Path(__file__).parents[2] / "src/weavenet/dataplane/bpf/fastdp.c"


def underlay(number: int) -> Address:
    return parse_address(f"192.0.2.{number}")


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def batch(netns: str, *lines: str) -> None:
    subprocess.run(["ip", "-n", netns, "-batch", "-"], input="\n".join(lines), check=True, text=True)


def compile_programs(directory: Path, source: Path = SOURCE) -> Path:
    target = directory / "fastdp.o"
    machine = run("gcc", "-print-multiarch").strip()
    flags = ["-O2", "-g", "-target", "bpf", "-Wall", "-Werror", "-idirafter", f"/usr/include/{machine}"]
    run("clang", *flags, "-c", "-o", str(target), str(source))
    return target


def until(condition: Callable[[], bool]) -> None:
    """Wait for what the kernel does a moment later, in a softirq on another CPU."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        os.sched_yield()


class Frames:
    """A packet socket that speaks one Ethernet type on one device."""

    def __init__(self, device: str) -> None:
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.socket.bind((device, ETHERTYPE))
        self.socket.settimeout(LIMIT_S)

    def send(self, source: bytes, destination: bytes, payload: bytes = b"") -> None:
        self.socket.send(destination + source + struct.pack("!H", ETHERTYPE) + payload)

    def receive(self) -> tuple[bytes, bytes, bytes]:
        frame = self.socket.recv(65536)
        return frame[6:12], frame[:6], frame[14:]

    def is_silent(self) -> bool:
        return not select.select([self.socket], [], [], 0)[0]

    def drain(self) -> None:
        while not self.is_silent():
            self.socket.recv(65536)


@dataclass
class Pod:
    netns: str
    descriptor: int
    address: str
    frames: Frames

    def inside(self, function: Callable[[], T]) -> T:
        return run_in_namespace(self.descriptor, function)

    def ping(self, other: "Pod", *options: str) -> str:
        return run("ip", "netns", "exec", self.netns, "ping", "-n", "-q", *options, other.address)


@dataclass
class Host:
    number: int
    netns: str
    descriptor: int
    ifindex: int
    maps: FastdpMaps
    pod: Pod

    @property
    def short_id(self) -> ShortID:
        return ShortID(self.number)

    def inside(self, function: Callable[[], T]) -> T:
        return run_in_namespace(self.descriptor, function)

    def counted(self) -> Callable[[Counter], int]:
        """Return a function that tells how much a counter has grown since now."""
        before = self.maps.counters()
        return lambda which: self.maps.counters()[which] - before[which]

    def route(self, peers: Mapping[int, int], floods: Mapping[int, Iterable[int]]) -> None:
        """Write the maps, in numbers of hosts; the wire has its own number."""
        self.maps.apply(
            Forwarding(
                ours=self.short_id,
                peers={ShortID(peer): underlay(hop) for peer, hop in peers.items()},
                floods={ShortID(o): tuple((ShortID(hop), underlay(hop)) for hop in hops) for o, hops in floods.items()},
            )
        )


class Wire:
    """The underlay's own end of it: sends VXLAN packets by hand and sees those that are sent to it."""

    def __init__(self) -> None:
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("192.0.2.254", PORT))
        self.packets = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        self.packets.bind(("underlay", 0x0800))
        self.packets.settimeout(LIMIT_S)

    def send(self, host: Host, vni: int, frame: bytes, ttl: int = 64) -> None:
        self.udp.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        header = bytes.fromhex("08000000") + vni.to_bytes(3, "big") + b"\0"
        self.udp.sendto(header + frame, (f"192.0.2.{host.number}", PORT))

    def receive(self) -> bytes:
        """Return the next IPv4 packet to us that is VXLAN."""
        while True:
            packet, address = self.packets.recvfrom(65536)
            if address[2] == socket.PACKET_HOST and packet[9] == socket.IPPROTO_UDP and packet[22:24] == b"\x1a\x80":
                return packet

    def drain(self) -> None:
        while select.select([self.packets], [], [], 0)[0]:
            self.packets.recv(65536)


def frame_of(source: bytes, destination: bytes, payload: bytes = b"") -> bytes:
    return destination + source + struct.pack("!H", ETHERTYPE) + payload


@dataclass
class Lab:
    hosts: tuple[Host, ...]
    wire: Wire

    def mesh(self) -> None:
        """Everybody reaches everybody directly, and nobody knows any MAC address."""
        numbers = {host.number for host in self.hosts}
        for host in self.hosts:
            others = sorted(numbers - {host.number})
            rows: dict[int, Iterable[int]] = dict.fromkeys(others, ())
            host.route({other: other for other in others}, {**rows, host.number: others})
            for entry in host.maps.macs():
                host.maps.forget_mac(entry.mac)
            host.maps.misses()
            host.pod.frames.drain()
        self.wire.drain()


@contextmanager
def fastdp_lab(count: int, programs: Path) -> Iterator[Lab]:
    with ExitStack() as stack:
        prefix = f"wnf{os.getpid()}"
        ground = _namespace(stack, f"{prefix}u")
        batch(
            f"{prefix}u",
            "link add underlay type bridge mcast_snooping 0",
            "address add 192.0.2.254/24 dev underlay",
            "link set underlay up",
        )
        hosts = tuple(_host(stack, prefix, number, programs) for number in range(1, count + 1))
        wire = run_in_namespace(ground, Wire)
        stack.callback(wire.udp.close)
        stack.callback(wire.packets.close)
        yield Lab(hosts, wire)


def _namespace(stack: ExitStack, name: str) -> int:
    run("ip", "netns", "add", name)
    stack.callback(run, "ip", "netns", "delete", name)
    descriptor = open_namespace(f"/run/netns/{name}")
    stack.callback(os.close, descriptor)
    quiet = [f"net.ipv6.conf.{which}.disable_ipv6=1" for which in ("all", "default")]
    run("ip", "netns", "exec", name, "sysctl", "-q", "-w", *quiet)
    batch(name, "link set lo up")
    return descriptor


def _host(stack: ExitStack, prefix: str, number: int, programs: Path) -> Host:
    netns, pod_netns = f"{prefix}h{number}", f"{prefix}p{number}"
    descriptor, pod_descriptor = _namespace(stack, netns), _namespace(stack, pod_netns)
    batch(
        netns,
        f"link add uplink mtu 1500 type veth peer name h{number} netns {prefix}u",
        f"address add 192.0.2.{number}/24 dev uplink",
        "link set uplink up",
        "link add weave type bridge mcast_snooping 0",
        f"link add {DEVICE} mtu {MTU} type vxlan external dstport {PORT} nolearning",
        f"link set {DEVICE} master weave up",
        f"link add pod mtu {MTU} type veth peer name eth0 mtu {MTU} netns {pod_netns}",
        "link set pod master weave up",
        f"link set weave mtu {MTU} up",
    )
    batch(f"{prefix}u", f"link set h{number} master underlay up")
    batch(pod_netns, f"address add 10.32.0.{number}/24 dev eth0", "link set eth0 up")
    maps = FastdpMaps.open(path=programs)
    stack.callback(maps.close)
    ifindex = run_in_namespace(descriptor, lambda: socket.if_nametoindex(DEVICE))
    run_in_namespace(descriptor, lambda: maps.attach(ifindex))
    frames = run_in_namespace(pod_descriptor, lambda: Frames("eth0"))
    stack.callback(frames.socket.close)
    pod = Pod(pod_netns, pod_descriptor, f"10.32.0.{number}", frames)
    return Host(number, netns, descriptor, ifindex, maps, pod)
