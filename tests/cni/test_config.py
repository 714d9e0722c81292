import json

import pytest

from weavenet.address import Cidr, parse_address
from weavenet.cni.codes import Code
from weavenet.cni.config import (
    IpamConfig,
    IpamPluginKeys,
    NetPluginKeys,
    NetworkConfig,
    decode_keys,
    parse_config,
)
from weavenet.cni.result import Dns, Route
from weavenet.errors import CniError


def net(**keys: object) -> NetworkConfig:
    return parse_config(decode_keys(json.dumps({"name": "weave"} | keys).encode(), NetPluginKeys))


def refusal(**keys: object) -> CniError:
    with pytest.raises(CniError) as caught:
        net(**keys)
    return caught.value


def test_what_is_left_out_has_weaves_defaults() -> None:
    assert net() == NetworkConfig(
        network="weave", bridge="weave", mtu_bytes=None, hairpin=None, ipam=IpamConfig(None, None, ()), dns=Dns()
    )


def test_null_is_left_out() -> None:
    keys = ["bridge", "mtu", "hairpinMode", "isGateway", "ipMasq", "dns", "ipam"]
    assert net(**dict.fromkeys(keys)) == net()
    assert net(ipam={"type": None, "subnet": None, "gateway": None, "routes": None}) == net()


def test_zero_values_are_defaults_as_in_go() -> None:
    assert (
        net(bridge="", mtu=0, isGateway=False, ipMasq=False, dns={}, ipam={"type": "", "subnet": "", "routes": []})
        == net()
    )


def test_everything_that_can_be_said_is_read() -> None:
    config = net(
        name="backend",
        bridge="weave2",
        mtu=1450,
        hairpinMode=False,
        dns={"nameservers": ["10.32.0.1"], "domain": "weave.local", "search": ["a.b"], "options": ["ndots:5"]},
        ipam={
            "type": "weave-ipam",
            "subnet": "10.32.8.7/24",
            "gateway": "10.32.8.1",
            "routes": [{"dst": "10.0.0.0/8"}, {"dst": "192.0.2.1/24", "gw": "10.32.8.2"}],
        },
    )
    assert config == NetworkConfig(
        "backend",
        "weave2",
        1450,
        hairpin=False,
        ipam=IpamConfig(
            Cidr.parse("10.32.8.0/24"),
            parse_address("10.32.8.1"),
            (Route(Cidr.parse("10.0.0.0/8")), Route(Cidr.parse("192.0.2.0/24"), parse_address("10.32.8.2"))),
        ),
        dns=Dns(("10.32.0.1",), "weave.local", ("a.b",), ("ndots:5",)),
    )


@pytest.mark.parametrize(
    ("keys", "code", "message"),
    [
        ({"name": ""}, Code.INVALID_CONFIG, "missing network name"),
        ({"name": "../etc"}, Code.INVALID_CONFIG, "invalid network name '../etc'"),
        ({"name": "x" * 81}, Code.INVALID_CONFIG, "invalid network name '" + "x" * 80 + "'"),
        ({"isGateway": True}, Code.UNSUPPORTED_FIELD, "Gateway functionality not supported"),
        ({"ipMasq": True}, Code.UNSUPPORTED_FIELD, "IP Masquerading functionality not supported"),
        ({"ipam": {"type": "dhcp"}}, Code.INVALID_CONFIG, "unsupported ipam.type 'dhcp'"),
        ({"ipam": {"type": "host-local"}}, Code.INVALID_CONFIG, "invalid network config: no ipam.subnet"),
        ({"bridge": "a/b"}, Code.INVALID_CONFIG, "invalid bridge 'a/b'"),
        ({"mtu": 67}, Code.INVALID_CONFIG, "invalid mtu 67"),
        ({"mtu": -1}, Code.INVALID_CONFIG, "invalid mtu -1"),
        ({"mtu": 65536}, Code.INVALID_CONFIG, "invalid mtu 65536"),
        ({"mtu": "1450"}, Code.INVALID_CONFIG, "invalid network config: Expected `int | null`, got `str` - at `$.mtu`"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_what_cannot_be_done_is_refused(keys: dict[str, object], code: Code, message: str) -> None:
    error = refusal(**keys)
    assert (error.code, error.message) == (code, message)


@pytest.mark.parametrize(
    ("ipam", "words"),
    [
        ({"subnet": "fd00::/64"}, "expected an address, a slash, and a length from 0 to 32"),
        ({"subnet": "10.32.0.0"}, "expected an address, a slash, and a length"),
        ({"gateway": "10.32.0.1/12"}, "ipam.gateway or ipam.routes"),
        ({"gateway": "fd00::1"}, "IPv6 is not supported yet"),
        ({"routes": [{"dst": "10.0.0.0"}]}, "ipam.gateway or ipam.routes"),
        ({"routes": [{"dst": "10.0.0.0/8", "gw": "x"}]}, "ipam.gateway or ipam.routes"),
        ({"routes": [{"gw": "10.0.0.1"}]}, "missing required field `dst`"),
        ({"routes": [{"dst": "10.0.0.0/8"}] * 257}, "257 ipam.routes"),
    ],
    ids=["IPv6 subnet", "no length", "gateway with length", "IPv6 gateway", "no length", "bad gw", "no dst", "many"],
)
def test_an_address_that_is_none_is_refused_with_the_reason(ipam: dict[str, object], words: str) -> None:
    error = refusal(ipam=ipam)
    assert error.code == Code.INVALID_CONFIG
    assert words in f"{error.message} {error.details}"


def test_of_another_main_plugins_configuration_only_the_ipam_section_is_ours() -> None:
    theirs = {
        "name": "backend",
        "type": "bridge",
        "bridge": 7,
        "isGateway": True,
        "ipMasq": True,
        "mtu": "theirs",
        "ipam": {"type": "weave-ipam", "subnet": "10.32.8.0/24", "ranges": [[{"subnet": "x"}]]},
    }
    config = parse_config(decode_keys(json.dumps(theirs).encode(), IpamPluginKeys))
    assert config == NetworkConfig("backend", ipam=IpamConfig(Cidr.parse("10.32.8.0/24")))
