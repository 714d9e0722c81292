"""Host ports of pods: who has which, what is stored, and who is refused."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weavenet.address import Address, Cidr, Endpoint, parse_address
from weavenet.agent.hostports import (
    HostPorts,
    NoHostPorts,
    Owner,
    decode_host_ports,
    encode_host_ports,
    port_mappings,
)
from weavenet.cni.codes import Code
from weavenet.cni.runtime import HostPort
from weavenet.dataplane.nft import PortMapping, Protocol
from weavenet.effects import PutValue
from weavenet.errors import CniError, KernelError

ONE, TWO = ("c1", "eth0"), ("c2", "eth0")
WEB = PortMapping(Protocol.TCP, 80, Endpoint(parse_address("10.32.0.5"), 8080))
OTHER_WEB = PortMapping(Protocol.TCP, 80, Endpoint(parse_address("10.32.0.6"), 8080))
DNS = PortMapping(Protocol.UDP, 53, Endpoint(parse_address("10.32.0.5"), 53), parse_address("192.0.2.1"))


class Host:
    """Stores what it is given, and notes the order of things."""

    def __init__(self) -> None:
        self.happened: list[str] = []
        self.stored = b"[]"
        self.connected: set[Owner] = {ONE, TWO}
        self.broken = ""
        self.ports = self.new()

    def new(self) -> HostPorts:
        return HostPorts(self.settle, self.store, self.list_connected, logging.getLogger("test"))

    async def settle(self) -> None:
        self.happened.append(f"settle {', '.join(map(str, self.ports.mappings()))}")
        if self.broken:
            raise KernelError(self.broken)

    async def store(self, change: PutValue) -> None:
        self.happened.append("store")
        self.stored = change.value

    async def list_connected(self) -> Collection[Owner]:
        return self.connected


def run(scenario: Callable[[Host], Awaitable[None]]) -> Host:
    host = Host()
    asyncio.run(asyncio.wait_for(scenario(host), 10))
    return host


def test_a_port_is_on_disk_before_it_is_in_the_kernel_and_gone_from_both_afterwards() -> None:
    async def scenario(host: Host) -> None:
        await host.ports.publish(ONE, (WEB,))
        assert host.happened == ["store", "settle 80/tcp -> 10.32.0.5:8080"]
        assert await host.ports.withdraw(ONE)
        assert host.happened[2:] == ["store", "settle "]
        assert not await host.ports.withdraw(ONE)
        assert len(host.happened) == 4

    run(scenario)


def test_publishing_again_only_looks() -> None:
    async def scenario(host: Host) -> None:
        await host.ports.publish(ONE, (WEB,))
        await host.ports.publish(ONE, (WEB,))
        assert host.happened.count("store") == 1
        assert await host.ports.missing(ONE, (WEB, DNS)) == (DNS,)

    run(scenario)


def test_a_port_of_another_pod_is_refused_by_the_name_of_its_holder() -> None:
    async def scenario(host: Host) -> None:
        await host.ports.publish(ONE, (WEB,))
        with pytest.raises(CniError, match=r"host port 80/tcp is taken: .* is of container c1") as refused:
            await host.ports.publish(TWO, (OTHER_WEB,))
        assert refused.value.code == Code.HOST_PORT_TAKEN
        assert host.ports.mappings() == (WEB,)

    run(scenario)


def test_of_two_pods_that_ask_at_once_one_gets_the_port() -> None:
    async def scenario(host: Host) -> None:
        answers = await asyncio.gather(
            host.ports.publish(ONE, (WEB,)), host.ports.publish(TWO, (OTHER_WEB,)), return_exceptions=True
        )
        assert sorted(isinstance(answer, CniError) for answer in answers) == [False, True]

    run(scenario)


def test_a_pod_that_is_gone_does_not_hold_its_port() -> None:
    async def scenario(host: Host) -> None:
        await host.ports.publish(ONE, (WEB,))
        host.connected = {TWO}
        await host.ports.publish(TWO, (OTHER_WEB,))
        assert host.ports.mappings() == (OTHER_WEB,)

    run(scenario)


def test_the_next_agent_knows_the_ports_of_pods_that_are_still_there() -> None:
    async def scenario(host: Host) -> None:
        await host.ports.publish(ONE, (WEB, DNS))
        await host.ports.publish(TWO, (PortMapping(Protocol.TCP, 81, Endpoint(Address(9), 1)),))
        host.connected = {ONE}
        host.ports = host.new()
        await host.ports.restore(host.stored)
        assert host.ports.mappings() == (WEB, DNS)
        assert list(decode_host_ports(host.stored)) == [ONE]

    run(scenario)


@pytest.mark.parametrize("stored", [b"", b"{", b'[{"container_id": 7}]', b"\xff"])
def test_what_cannot_be_read_is_forgotten(stored: bytes) -> None:
    async def scenario(host: Host) -> None:
        await host.ports.restore(stored)
        assert host.ports.mappings() == ()

    run(scenario)


def test_what_the_kernel_refuses_to_take_away_is_not_wanted_any_more() -> None:
    async def scenario(host: Host) -> None:
        await host.ports.publish(ONE, (WEB,))
        host.broken = "no"
        with pytest.raises(KernelError):
            await host.ports.withdraw(ONE)
        assert host.ports.mappings() == ()
        assert not await host.ports.withdraw(ONE)

    run(scenario)


def test_one_pod_cannot_have_a_port_twice() -> None:
    address = Cidr.parse("10.32.0.5/12")
    assert port_mappings([HostPort("tcp", 80, 8080), HostPort("udp", 80, 8080)], address)[0] == WEB
    with pytest.raises(CniError, match="host port 80/tcp is asked for twice"):
        port_mappings([HostPort("tcp", 80, 8080, Address(7)), HostPort("tcp", 80, 8081)], address)


def test_without_host_ports_asking_for_one_is_an_error_and_giving_up_is_not() -> None:
    async def scenario(_: Host) -> None:
        none = NoHostPorts()
        with pytest.raises(CniError, match="no host ports are served"):
            await none.publish(ONE, (WEB,))
        assert not await none.withdraw(ONE)
        assert await none.missing(ONE, (WEB,)) == (WEB,)

    run(scenario)


MAPPINGS = st.builds(
    PortMapping,
    st.sampled_from(Protocol),
    st.integers(1, 65535),
    st.builds(Endpoint, st.integers(0, 2**32 - 1).map(Address), st.integers(1, 65535)),
    st.none() | st.integers(0, 2**32 - 1).map(Address),
)


@given(st.dictionaries(st.tuples(st.text(), st.text()), st.lists(MAPPINGS).map(tuple)))
def test_what_is_stored_is_read_back(published: dict[Owner, tuple[PortMapping, ...]]) -> None:
    assert decode_host_ports(encode_host_ports(published)) == published
