"""The wires between lab hosts: one bridge in a namespace of its own, and a veth pair to each host.

           host1                    underlay                    host2
      eth0 10.99.0.1 ---- port1 [ bridge ul0 ] port2 ---- eth0 10.99.0.2

Both ends of a pair are made in their places at once; no device ever appears in the machine's own namespace. The bridge
has no address, so that the hosts reach each other and nothing else.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from weavenet.errors import LabError
from weavenet.lab.namespace import Namespace
from weavenet.lab.process import execute

UPLINK = "eth0"
PREFIX_LENGTH = 24


def ip(namespace: Namespace, lines: Sequence[str], *, tool: str = "ip") -> None:
    """Have `ip -batch` carry out lines in a namespace. Raises LabError that names the line which failed."""
    for_batch = "".join(f"{line}\n" for line in lines)
    outcome = execute([tool, "-batch", "-"], namespace=namespace, text=for_batch)
    if outcome.status != 0:
        # It says "Command failed -:3", counting from 1.
        _, _, number = outcome.errors.strip().rpartition(":")
        which = lines[int(number) - 1] if number.isdecimal() and 0 < int(number) <= len(lines) else "-batch"
        raise LabError(f"in {namespace.path.name}, `{tool} {which}` failed: {outcome.errors.strip() or outcome.output}")


def set_sysctl(namespace: Namespace, name: str, value: str) -> None:
    """Set a kernel parameter below net/ as seen in a namespace: /proc/sys/net answers for who asks."""
    with namespace.entered():
        Path("/proc/sys/net", name).write_text(value)


def make_underlay(namespace: Namespace) -> None:
    """Make the namespace that stands for the network between the hosts."""
    namespace.create()
    set_sysctl(namespace, "ipv6/conf/all/disable_ipv6", "1")
    set_sysctl(namespace, "ipv6/conf/default/disable_ipv6", "1")
    ip(namespace, ["link set lo up", "link add ul0 type bridge mcast_snooping 0", "link set ul0 up"])
    for table in ("iptables", "ip6tables", "arptables"):
        # A switch does not filter; absent where br_netfilter is not loaded.
        with suppress(FileNotFoundError):
            set_sysctl(namespace, f"bridge/bridge-nf-call-{table}", "0")


def make_host(namespace: Namespace, underlay: Namespace, number: int, address: str, *, mtu: int = 1500) -> None:
    """Make a host: a namespace with loopback and an uplink, forwarding as a Kubernetes node does."""
    namespace.create()
    ip(
        underlay,
        [
            f"link add port{number} mtu {mtu} type veth peer name {UPLINK} mtu {mtu} netns {namespace.path}",
            f"link set port{number} master ul0 up",
        ],
    )
    ip(
        namespace,
        ["link set lo up", f"address add {address}/{PREFIX_LENGTH} dev {UPLINK}", f"link set {UPLINK} up"],
    )
    set_sysctl(namespace, "ipv4/ip_forward", "1")


def unplug_host(underlay: Namespace, number: int) -> None:
    """Take a host's uplink away at once; with its namespace it would go, too, but later, and its name be in the way."""
    ip(underlay, [f"link delete port{number}"])


def make_pod(namespace: Namespace) -> None:
    """Make a pod's sandbox as a runtime does before it calls CNI: loopback up, nothing else."""
    namespace.create()
    ip(namespace, ["link set lo up"])
