"""The private container runtime works here, shown with Debian's plugins, so that a failure with ours is ours.

The last test has our executable give addresses to Debian's `bridge`: everything between a container runtime and the CNI
verbs is real there, and only the address allocator is not.
"""

import asyncio
import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import pytest

from weavenet.address import Address, Cidr, parse_address
from weavenet.agent.attach import CniVerbs
from weavenet.agent.local_addresses import LocalAddresses
from weavenet.agent.pod_addresses import PodAddresses
from weavenet.drivers.cni import CniServer
from weavenet.effects import PutValue, Refused

SHIM_SOURCE = Path(__file__).parents[2] / "shim" / "weave-cni.c"
PLUGINS = Path("/usr/lib/cni")

pytestmark = pytest.mark.kernel


def _load_runtime() -> ModuleType:
    # tests/ is not a package, so a neighbour is loaded by its path.
    spec = importlib.util.spec_from_file_location("kernel_runtime", Path(__file__).with_name("runtime.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


runtime = _load_runtime()


@pytest.fixture
def netns() -> Iterator[str]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if missing := runtime.missing_programs():
        pytest.skip(f"needs {', '.join(missing)}")
    if not (PLUGINS / "host-local").exists():
        pytest.skip("needs containernetworking-plugins")
    name = f"wn-rt-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def _prepare(directory: Path, *plugins: object, name: str = "test") -> tuple[Path, Path]:
    """Write a configuration; return the directories for the runtime and of the configuration."""
    base, configurations = directory / "runtime", directory / "net.d"
    base.mkdir()
    configurations.mkdir()
    conflist = {"cniVersion": "0.4.0", "name": name, "plugins": plugins}
    (configurations / "10-test.conflist").write_text(json.dumps(conflist))
    return base, configurations


def test_containers_get_a_network_reach_each_other_and_give_it_back(netns: str, tmp_path: Path) -> None:
    ipam = {"type": "host-local", "subnet": "10.99.0.0/24", "dataDir": str(tmp_path / "addresses")}
    bridge = {"type": "bridge", "bridge": "cni0", "ipam": ipam}
    base, configurations = _prepare(tmp_path, bridge)
    with runtime.running_runtime(netns, base, configurations, PLUGINS) as containers:
        one, two = containers.start("one"), containers.start("two")
        assert one.container_id == "default-one"
        assert "10.99.0.2/24" in one.run("ip", "-brief", "address", "show", "eth0").stdout
        assert one.reaches("10.99.0.3")
        assert two.reaches("10.99.0.2")
        assert not one.reaches("10.99.0.4", 0.2)
        assert containers.stop("one") == ""
        assert sorted(entry.name for entry in (tmp_path / "addresses").glob("*/10.*")) == ["10.99.0.3"]


def test_a_network_that_cannot_be_had_fails_the_container_with_the_plugins_words(netns: str, tmp_path: Path) -> None:
    base, configurations = _prepare(tmp_path, {"type": "bridge", "ipam": {"type": "nonesuch"}})
    with (
        runtime.running_runtime(netns, base, configurations, PLUGINS) as containers,
        pytest.raises(RuntimeError, match='failed to find plugin "nonesuch"'),
    ):
        containers.start("one")


# --- our executable as another plugin's IPAM ------------------------------------------------------------------------


class CountingAddresses:
    """Gives one address after the other."""

    def __init__(self) -> None:
        self.held: dict[str, Cidr] = {}
        self.given = 0

    async def allocate(self, ident: str, subnet: Cidr | None) -> Cidr:
        assert subnet == Cidr.parse("10.99.0.0/24")
        self.given += 1
        self.held[ident] = Cidr(Address(subnet.address + self.given), subnet.prefix_length)
        return self.held[ident]

    async def release(self, ident: str) -> None:
        del self.held[ident]

    async def lookup(self, ident: str) -> tuple[Cidr, ...]:
        return (self.held[ident],) if ident in self.held else ()

    async def owned(self) -> Mapping[str, tuple[Cidr, ...]]:
        return {ident: (cidr,) for ident, cidr in self.held.items()}

    async def refusal(self) -> Refused | None:
        return None

    async def gateway(self, subnet: Cidr) -> Address | None:
        return subnet.address


class NoPods:
    """Is not to be asked anything."""

    def __getattr__(self, name: str) -> object:
        pytest.fail(f"weave-ipam touched an interface: {name}")


async def _no_store(change: PutValue) -> None:
    pytest.fail(f"weave-ipam stored {change.key}")


@pytest.fixture
def addresses(tmp_path: Path) -> Iterator[CountingAddresses]:
    """Serve the CNI socket cni.sock in `tmp_path`, in a thread."""
    counting = CountingAddresses()
    log = logging.getLogger("test")
    local = PodAddresses(counting, LocalAddresses(_no_store, log))  # type: ignore[arg-type]
    verbs = CniVerbs(local, NoPods(), log, bridge="weave", mtu_bytes=1376)  # type: ignore[arg-type]
    server = CniServer(tmp_path / "cni.sock", verbs.handle, logging.getLogger("test"))
    server.listen()
    loop = asyncio.new_event_loop()
    serving = loop.create_task(server.serve_forever())
    thread = threading.Thread(target=lambda: loop.run_until_complete(asyncio.wait({serving})))
    thread.start()
    try:
        yield counting
    finally:
        loop.call_soon_threadsafe(serving.cancel)
        thread.join()
        loop.close()


def test_weave_ipam_gives_debians_bridge_its_addresses_and_takes_them_back(
    netns: str, tmp_path: Path, addresses: CountingAddresses
) -> None:
    plugins = tmp_path / "bin"
    plugins.mkdir()
    shutil.copy(PLUGINS / "bridge", plugins)
    subprocess.run(["gcc", "-static", "-Os", "-o", str(plugins / "weave-net"), str(SHIM_SOURCE)], check=True)
    (plugins / "weave-ipam").symlink_to("weave-net")
    ipam = {"type": "weave-ipam", "subnet": "10.99.0.0/24", "gateway": "10.99.0.100", "routes": [{"dst": "0.0.0.0/0"}]}
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": False, "ipam": ipam}
    base, configurations = _prepare(tmp_path, bridge, name="weave")
    environment = {"WEAVENET_CNI_SOCKET": str(tmp_path / "cni.sock")}
    with runtime.running_runtime(netns, base, configurations, plugins, environment) as containers:
        one, two = containers.start("one"), containers.start("two")
        assert addresses.held == {
            "default-one/eth0": Cidr(parse_address("10.99.0.1"), 24),
            "default-two/eth0": Cidr(parse_address("10.99.0.2"), 24),
        }
        assert "10.99.0.1/24" in one.run("ip", "-brief", "address", "show", "eth0").stdout
        assert "default via 10.99.0.100" in two.run("ip", "route").stdout
        assert one.reaches("10.99.0.2")
        assert containers.stop("one") == ""
        assert list(addresses.held) == ["default-two/eth0"]
    assert addresses.held == {}
