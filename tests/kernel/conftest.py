"""A host to try things on, twice: the kernel of this machine, in a network namespace made for the test, and the fake.

What holds for one must hold for the other; that is what makes the fake worth anything. The real host is entered by the
thread that runs the test, and left again afterwards, so that every program a test starts is inside, too. Namespaces
have no names here: they are descriptors, and end with them.
"""

import ctypes
import os
import subprocess
import threading
from collections.abc import Iterator

import pytest

from weavenet.dataplane.model import Programs
from weavenet.linux.kernel import LinuxKernel
from weavenet.linux.netns import run_in_namespace
from weavenet.sim.devices import FakeDatapath
from weavenet.sim.kernel import HOST_NAMESPACE, FakeKernel

BRIDGE, VXLAN = "weave", "vxlan-6784"
CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


class RealHost:
    """A network namespace of this machine."""

    real = True

    def __init__(self) -> None:
        self.datapath = FakeDatapath(Programs("ingress-1", "egress-1"))
        self.kernel = self.new_kernel()
        self.namespaces: list[int] = []
        self.own_namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.namespaces.append(self.own_namespace)

    def new_kernel(self) -> LinuxKernel:
        return LinuxKernel(BRIDGE, VXLAN, self.datapath)

    def make_namespace(self) -> int:
        opened: list[int] = []

        def make() -> None:
            if _libc.unshare(CLONE_NEWNET) == 0:
                opened.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        self.namespaces.append(opened[0])
        return opened[0]

    def add_device(
        self, name: str, kind: str, *, alias: str = "", port: int = 0, external: bool = False, master: str = ""
    ) -> None:
        extra: list[str] = []
        if kind == "vxlan":
            extra = ["dstport", str(port), *(["external"] if external else ["id", "77", "remote", "192.0.2.1"])]
        self.run("ip", "link", "add", name, "type", kind, *extra)
        if alias:
            self.run("ip", "link", "set", name, "alias", alias)
        if master:
            self.run("ip", "link", "set", name, "master", master)

    def add_pod(self, name: str, namespace: int, ifname: str, *, master: str = "") -> None:
        self.run(
            "ip", "link", "add", name, "type", "veth", "peer", ifname, "netns", f"/proc/{os.getpid()}/fd/{namespace}"
        )
        if master:
            self.run("ip", "link", "set", name, "master", master)

    def delete_device(self, name: str) -> None:
        self.run("ip", "link", "delete", name)

    def run(self, *command: str) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def run_inside(self, namespace: int, *command: str) -> str:
        return run_in_namespace(namespace, lambda: self.run(*command))

    def close(self) -> None:
        self.kernel.close()
        wait_for_leftovers()
        for descriptor in self.namespaces:
            os.close(descriptor)


class FakeHost:
    """The same in memory."""

    real = False
    own_namespace = HOST_NAMESPACE

    def __init__(self) -> None:
        self.datapath = FakeDatapath(Programs("ingress-1", "egress-1"))
        self.kernel = FakeKernel(BRIDGE, VXLAN, self.datapath)
        self.make_namespace = self.kernel.make_namespace
        self.add_device = self.kernel.add_device
        self.add_pod = self.kernel.add_pod
        self.delete_device = self.kernel.delete_device

    def new_kernel(self) -> FakeKernel:
        return self.kernel


def wait_for_leftovers() -> None:
    for thread in threading.enumerate():
        if thread.name == "weavenet-leftover":
            thread.join()


@pytest.fixture
def real_host() -> Iterator[RealHost]:
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        assert _libc.unshare(CLONE_NEWNET) == 0, "cannot make a network namespace"
        host = RealHost()
        try:
            yield host
        finally:
            host.close()
    finally:
        assert _libc.setns(home, CLONE_NEWNET) == 0, "cannot come back"
        os.close(home)


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.kernel)])
def host(request: pytest.FixtureRequest) -> RealHost | FakeHost:
    return request.getfixturevalue("real_host") if request.param == "real" else FakeHost()
