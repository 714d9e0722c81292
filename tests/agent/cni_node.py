"""The CNI verbs over fakes of the services they use, which refuse what real ones would and list what happened."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from weavenet.address import Address, Cidr, format_address
from weavenet.agent.attach import CniVerbs
from weavenet.agent.hostports import Owner
from weavenet.agent.local_addresses import LocalAddresses
from weavenet.agent.networks import NoNetworks, PodNetworks
from weavenet.agent.pod_addresses import PodAddresses
from weavenet.cni.codes import Code
from weavenet.cni.request import Sandbox, parse_call
from weavenet.dataplane.model import MacAddress, OtherBridge, PodInterface, PodLink, PodPort, pod_routes
from weavenet.dataplane.nft import PortMapping
from weavenet.effects import PutValue, Refused
from weavenet.errors import CniError, IpamError, KernelError

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "cni.json").read_text())["vectors"]
RECORDED = [vector for vector in VECTORS if "env" in vector]
BRIDGE = Cidr.parse("10.32.0.2/12")
RANGE = Cidr.parse("10.32.0.0/12")
NETNS = 9
PATH = "/run/netns/pod"


@dataclass
class FakeAddresses:
    """Gives the lowest free address. `gate`, where set, must be opened before an allocation is served."""

    happened: list[str]
    held: dict[str, Cidr] = field(default_factory=dict)
    bridge: Cidr | None = BRIDGE
    gate: asyncio.Event | None = None
    refused: str = ""
    grant_although_cancelled: bool = False

    async def allocate(self, ident: str, subnet: Cidr | None) -> Cidr:
        if self.refused:
            raise IpamError(self.refused)
        if ident in self.held:
            return self.held[ident]
        wanted = subnet or RANGE
        taken = {cidr.address for cidr in self.held.values()} | ({self.bridge.address} if self.bridge else set())
        free = next(
            address for address in range(wanted.host_range.start, wanted.host_range.end) if address not in taken
        )
        try:
            if self.gate is not None:
                self.happened.append("wait")
                await self.gate.wait()
        except asyncio.CancelledError:
            if self.grant_although_cancelled:
                self.held[ident] = Cidr(Address(free), wanted.prefix_length)
            raise
        self.held[ident] = Cidr(Address(free), wanted.prefix_length)
        self.happened.append(f"allocate {ident}")
        return self.held[ident]

    async def assign(self, ident: str, wanted: Address, subnet: Cidr | None) -> Cidr:
        within = subnet or RANGE
        if wanted in {cidr.address for owner, cidr in self.held.items() if owner != ident}:
            raise IpamError(f"address {format_address(wanted)} is already owned")
        self.held[ident] = Cidr(wanted, within.prefix_length)
        self.happened.append(f"assign {ident}")
        return self.held[ident]

    async def release(self, ident: str) -> None:
        if ident not in self.held:
            raise IpamError(f"no addresses for {ident}")
        if self.refused:
            raise IpamError(self.refused)
        del self.held[ident]
        self.happened.append(f"release {ident}")

    async def lookup(self, ident: str) -> tuple[Cidr, ...]:
        return (self.held[ident],) if ident in self.held else ()

    async def owned(self) -> Mapping[str, tuple[Cidr, ...]]:
        return {ident: (cidr,) for ident, cidr in self.held.items()}

    async def refusal(self) -> Refused | None:
        return Refused(self.refused) if self.refused else None

    async def gateway(self, subnet: Cidr) -> Address | None:
        del subnet
        return None if self.bridge is None else self.bridge.address


@dataclass
class FakePods:
    """Interfaces by namespace and name. `gate`, where set, must be opened before an attachment is made."""

    happened: list[str]
    interfaces: dict[tuple[int, str], PodInterface] = field(default_factory=dict)
    ports: dict[tuple[str, str], PodPort] = field(default_factory=dict)
    links: list[PodLink] = field(default_factory=list)
    gate: asyncio.Event | None = None
    broken: str = ""
    fails_late: bool = False
    bridges: dict[str, OtherBridge] = field(default_factory=dict)

    async def attach(self, link: PodLink) -> PodInterface:
        if self.broken:
            raise KernelError(self.broken)
        if (link.netns, link.ifname) in self.interfaces:
            raise KernelError(f"{link.ifname}: file exists")
        if self.gate is not None:
            self.happened.append("attaching")
            await self.gate.wait()
        if self.fails_late:
            raise KernelError(f"{link.ifname}: file exists")
        host_end = f"vethwepl{link.container_id[:7]}"
        if link.ifname != "eth0":
            host_end = f"{host_end[:-1]}{link.ifname}"[:15]
        master = link.bridge or "weave"
        port = PodPort(host_end, link.container_id, link.ifname, True, master, link.hairpin, link.hairpin, link.bridge)
        interface = PodInterface(
            link.ifname, MacAddress(2), link.mtu, True, (link.address,), pod_routes(link), host_end, MacAddress(1)
        )
        self.ports[link.container_id, link.ifname] = port
        self.interfaces[link.netns, link.ifname] = interface
        self.links.append(link)
        self.happened.append(f"attach {link.container_id}/{link.ifname}")
        return interface

    async def detach(self, container_id: str, ifname: str, netns: int | None) -> bool:
        if self.broken:
            raise KernelError(self.broken)
        port = self.ports.pop((container_id, ifname), None)
        found = {key for key, interface in self.interfaces.items() if port and interface.host_end == port.name}
        for key in found:
            del self.interfaces[key]
        self.happened.append(f"detach {container_id}/{ifname}" + ("" if netns is None else f" in {netns}"))
        return port is not None

    async def inspect(self, netns: int, ifname: str) -> PodInterface | None:
        return self.interfaces.get((netns, ifname))

    async def has_default_route(self, netns: int, besides: str) -> bool:
        others = [one for (where, name), one in self.interfaces.items() if where == netns and name != besides]
        return any(route.destination.prefix_length == 0 for other in others for route in other.routes)

    async def find_bridge(self, name: str) -> OtherBridge | None:
        return self.bridges.get(name)

    async def list_ports(self) -> tuple[PodPort, ...]:
        return tuple(sorted(self.ports.values()))


@dataclass
class FakePorts:
    """Takes any port but those in `taken`."""

    happened: list[str]
    published: dict[Owner, tuple[PortMapping, ...]] = field(default_factory=dict)
    taken: int = 0
    broken: str = ""

    async def publish(self, owner: Owner, mappings: tuple[PortMapping, ...]) -> None:
        if self.broken:
            raise KernelError(self.broken)
        if any(mapping.host_port == self.taken for mapping in mappings):
            raise CniError(Code.HOST_PORT_TAKEN, f"host port {self.taken} is taken")
        self.published[owner] = mappings
        self.happened.append(f"publish {', '.join(map(str, mappings))}")

    async def withdraw(self, owner: Owner) -> bool:
        if self.broken:
            raise KernelError(self.broken)
        if self.published.pop(owner, None) is None:
            return False
        self.happened.append("withdraw")
        return True

    async def missing(self, owner: Owner, mappings: tuple[PortMapping, ...]) -> tuple[PortMapping, ...]:
        return tuple(mapping for mapping in mappings if mapping not in self.published.get(owner, ()))


class Node:
    """The verbs over the fakes, called as the driver calls them."""

    def __init__(self, networks: PodNetworks | None = None) -> None:
        self.happened: list[str] = []
        self.stored: dict[str, bytes] = {}
        self.local = LocalAddresses(self._store, logging.getLogger("test"))
        self.addresses = FakeAddresses(self.happened)
        self.pods = FakePods(self.happened)
        self.ports = FakePorts(self.happened)
        self.verbs = CniVerbs(
            PodAddresses(self.addresses, self.local),
            self.pods,
            logging.getLogger("test"),
            bridge="weave",
            mtu_bytes=1376,
            ports=self.ports,
            networks=networks or NoNetworks(),
        )

    async def _store(self, change: PutValue) -> None:
        self.stored[change.key] = change.value

    async def until(self, happening: str) -> None:
        while happening not in self.happened:  # noqa: ASYNC110 - the fakes do not know who waits
            await asyncio.sleep(0)

    async def call(
        self,
        command: str,
        container: str = "c0ffee0123",
        interface: str = "eth0",
        *,
        plugin: str = "weave-net",
        sandbox: Sandbox | None = None,
        **keys: object,
    ) -> bytes:
        environment = {"CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_IFNAME": interface}
        config = {"cniVersion": "1.1.0", "name": "weave"} | keys
        parsed = parse_call(plugin, environment, json.dumps(config).encode(), sandbox or Sandbox(PATH, NETNS))
        return await self.verbs.handle(parsed)

    async def add(self, container: str = "c0ffee0123", interface: str = "eth0", **keys: object) -> dict[str, object]:
        result: dict[str, object] = json.loads(await self.call("ADD", container, interface, **keys))  # type: ignore[arg-type]
        return result

    async def refusal(self, command: str, **more: object) -> CniError:
        with pytest.raises(CniError) as caught:
            await self.call(command, **more)  # type: ignore[arg-type]
        return caught.value


def run(scenario: Callable[[Node], Awaitable[None]], networks: PodNetworks | None = None) -> Node:
    """Run a scenario on a fresh node."""
    node = Node(networks)

    async def timed() -> None:
        async with asyncio.timeout(10):
            await scenario(node)

    asyncio.run(timed())
    return node
