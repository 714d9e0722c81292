"""What a runtime may ask for in runtimeConfig."""

import json

import pytest

from weavenet.address import parse_address
from weavenet.cni.codes import Code
from weavenet.cni.config import IpamPluginKeys, NetPluginKeys, NetworkConfig, decode_keys, parse_config
from weavenet.cni.runtime import Bandwidth, HostPort, Rate
from weavenet.errors import CniError


def parse(**runtime_config: object) -> NetworkConfig:
    stdin = json.dumps({"name": "weave", "runtimeConfig": runtime_config}).encode()
    return parse_config(decode_keys(stdin, NetPluginKeys))


def test_a_runtime_that_asks_for_nothing_gets_nothing() -> None:
    for nothing in ({}, {"portMappings": None, "bandwidth": None}, {"portMappings": [], "bandwidth": {}}):
        config = parse(**nothing)
        assert (config.ports, config.bandwidth) == ((), Bandwidth())


def test_host_ports_are_read_and_said_twice_are_one() -> None:
    web = {"hostPort": 80, "containerPort": 8080, "protocol": "TCP", "hostIP": "0.0.0.0"}
    dns = {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1", "more": 1}
    assert parse(portMappings=[web, dns, web]).ports == (
        HostPort("tcp", 80, 8080),
        HostPort("udp", 53, 53, parse_address("192.0.2.1")),
    )
    assert parse(portMappings=[{"hostPort": 1, "containerPort": 2}]).ports == (HostPort("tcp", 1, 2),)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hostPort": 0}, "invalid host port number: 0"),
        ({"hostPort": 65536}, "invalid host port number: 65536"),
        ({"containerPort": -1}, "invalid container port number: -1"),
        ({"protocol": "icmp"}, "invalid protocol 'icmp'"),
        ({"hostIP": "::1"}, "invalid hostIP '::1'"),
        ({"hostIP": "localhost"}, "invalid hostIP 'localhost'"),
    ],
)
def test_an_impossible_host_port_is_refused_by_name(change: dict[str, object], said: str) -> None:
    with pytest.raises(CniError) as refused:
        parse(portMappings=[{"hostPort": 80, "containerPort": 80, "protocol": "tcp"} | change])
    assert (refused.value.code, refused.value.message) == (Code.INVALID_CONFIG, f"invalid runtimeConfig: {said}")


def test_too_many_host_ports_are_refused() -> None:
    with pytest.raises(CniError, match="1025 portMappings"):
        parse(portMappings=[{"hostPort": port, "containerPort": port} for port in range(1, 1026)])


def test_limits_are_bits_and_zero_is_none() -> None:
    limits = {"ingressRate": 1000000, "ingressBurst": 80000, "egressRate": 0, "egressBurst": 0}
    assert parse(bandwidth=limits).bandwidth == Bandwidth(ingress=Rate(1_000_000, 80_000))


@pytest.mark.parametrize(
    "limits",
    [
        {"ingressRate": 1000},
        {"egressBurst": 1000},
        {"egressRate": -1, "egressBurst": 1000},
        {"ingressRate": 7, "ingressBurst": 1000},
        {"ingressRate": 1 << 44, "ingressBurst": 1000},
    ],
)
def test_an_impossible_limit_is_refused(limits: dict[str, int]) -> None:
    with pytest.raises(CniError) as refused:
        parse(bandwidth=limits)
    assert refused.value.code == Code.INVALID_CONFIG


@pytest.mark.parametrize("text", ["10.32.7.7", "10.32.7.7/24"])
def test_an_address_may_be_asked_for_with_a_prefix_or_without(text: str) -> None:
    assert parse(ips=[text]).ipam.wanted == parse_address("10.32.7.7")
    stdin = json.dumps({"name": "weave", "ipam": {"type": "weave-ipam"}, "runtimeConfig": {"ips": [text]}}).encode()
    assert parse_config(decode_keys(stdin, IpamPluginKeys)).ipam.wanted == parse_address("10.32.7.7")


@pytest.mark.parametrize("nothing", [None, []])
def test_a_runtime_that_asks_for_no_address_gets_any(nothing: object) -> None:
    assert parse(ips=nothing).ipam.wanted is None


@pytest.mark.parametrize(
    ("ips", "said"),
    [
        (["10.32.7.7", "fd00::7"], "2 ips"),
        (["fd00::7"], "invalid ips 'fd00::7'"),
        (["10.32.7.7/33"], "invalid ips '10.32.7.7/33'"),
    ],
)
def test_an_address_that_cannot_be_given_is_refused(ips: list[str], said: str) -> None:
    with pytest.raises(CniError) as refused:
        parse(ips=ips)
    assert (refused.value.code, refused.value.message) == (Code.INVALID_CONFIG, f"invalid runtimeConfig: {said}")


def test_keys_as_containerd_spells_them_are_the_same_keys() -> None:
    """containerd 2.3 (github.com/containerd/go-cni, types.go): Go structs without tags."""
    web = {"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}
    config = parse(portMappings=[web], bandwidth={"IngressRate": 8000, "IngressBurst": 800})
    assert config.ports == (HostPort("tcp", 8080, 80),)
    assert config.bandwidth == Bandwidth(ingress=Rate(8000, 800))
