import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weavenet.address import Address, Cidr, parse_address
from weavenet.cni.codes import Code, SpecVersion
from weavenet.cni.result import (
    AssignedAddress,
    Dns,
    Interface,
    Result,
    Route,
    encode_error,
    encode_result,
    encode_versions,
    parse_previous,
)
from weavenet.errors import CniError

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "cni.json").read_text())["vectors"]
ADDED = [v for v in VECTORS if "env" in v and v["env"]["CNI_COMMAND"] == "ADD" and v["exit"] == 0]

RESULT = Result(
    addresses=(AssignedAddress(Cidr.parse("10.32.0.1/12"), parse_address("10.32.0.2"), 1),),
    interfaces=(
        Interface("vethweplc0ffee0", "02:00:00:00:00:01", 1376),
        Interface("eth0", "02:00:00:00:00:02", 1376, "/run/netns/pod"),
    ),
    routes=(Route(Cidr.parse("0.0.0.0/0"), parse_address("10.32.0.2")), Route(Cidr.parse("10.0.0.0/8"))),
    dns=Dns(nameservers=("10.32.0.2",), domain="weave.local"),
)
ROUTES = [{"dst": "0.0.0.0/0", "gw": "10.32.0.2"}, {"dst": "10.0.0.0/8"}]
DNS = {"nameservers": ["10.32.0.2"], "domain": "weave.local"}


def interfaces(**container: object) -> list[dict[str, object]]:
    host = {"name": "vethweplc0ffee0", "mac": "02:00:00:00:00:01"} | container
    return [host, {"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/pod"} | container]


def old(version: str) -> dict[str, object]:
    ip4 = {"ip": "10.32.0.1/12", "gateway": "10.32.0.2", "routes": ROUTES}
    return {"cniVersion": version, "ip4": ip4, "dns": DNS}


def middle(version: str) -> dict[str, object]:
    ips = [{"version": "4", "interface": 1, "address": "10.32.0.1/12", "gateway": "10.32.0.2"}]
    return {"cniVersion": version, "interfaces": interfaces(), "ips": ips, "routes": ROUTES, "dns": DNS}


def new(version: str, **interface: object) -> dict[str, object]:
    ips = [{"interface": 1, "address": "10.32.0.1/12", "gateway": "10.32.0.2"}]
    return {"cniVersion": version, "interfaces": interfaces(**interface), "ips": ips, "routes": ROUTES, "dns": DNS}


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.1.0", old("0.1.0")),
        ("0.2.0", old("0.2.0")),
        ("0.3.0", middle("0.3.0")),
        ("0.3.1", middle("0.3.1")),
        ("0.4.0", middle("0.4.0")),
        ("1.0.0", new("1.0.0")),
        ("1.1.0", new("1.1.0", mtu=1376)),
    ],
)
def test_a_result_is_written_as_its_version_wants_it(version: str, expected: dict[str, object]) -> None:
    assert json.loads(encode_result(RESULT, SpecVersion(version))) == expected


@pytest.mark.parametrize("version", list(SpecVersion), ids=lambda version: version.value)
def test_a_result_of_an_ipam_plugin_has_neither_interfaces_nor_indexes(version: SpecVersion) -> None:
    written = json.loads(encode_result(Result((AssignedAddress(Cidr.parse("10.32.9.1/24")),)), version))
    assert "interfaces" not in written
    assert "routes" not in written
    assert written["dns"] == {}
    assert written.get("ips", [{}])[0].keys() <= {"version", "address"}


def from_weaves_answer(stdout: str) -> Result:
    """Build the result that should be written as this."""
    written = json.loads(stdout)
    ip = written["ips"][0] if "ips" in written else written["ip4"]
    gateway = parse_address(ip["gateway"]) if "gateway" in ip else None
    routes = [
        Route(Cidr.parse(r["dst"]), parse_address(r["gw"]) if "gw" in r else None) for r in written.get("routes", [])
    ]
    return Result((AssignedAddress(Cidr.parse(ip.get("address") or ip["ip"]), gateway),), routes=tuple(routes))


@pytest.mark.parametrize("vector", ADDED, ids=lambda vector: f"{vector['plugin']} {vector['note']}")
def test_weaves_recorded_results_are_ours_byte_for_byte_but_for_the_version(vector: dict[str, object]) -> None:
    stdin = vector["stdin"]
    assert isinstance(stdin, dict)
    version = SpecVersion(stdin.get("cniVersion", "0.1.0"))
    written = encode_result(from_weaves_answer(str(vector["stdout"])), version).decode()
    assert re.sub(r'\n    "cniVersion": "[0-9.]+",', "", written, count=1) == vector["stdout"]


@pytest.mark.parametrize("version", list(SpecVersion), ids=lambda version: version.value)
def test_an_error_has_version_code_message_and_details(version: SpecVersion) -> None:
    error = CniError(Code.UNSUPPORTED_FIELD, "Gateway functionality not supported", "isGateway is true")
    assert json.loads(encode_error(error, version)) == {
        "cniVersion": version.value,
        "code": 2,
        "msg": "Gateway functionality not supported",
        "details": "isGateway is true",
    }


def test_an_error_without_details_leaves_them_out() -> None:
    assert json.loads(encode_error(CniError(100, 'say "why"'))) == {
        "cniVersion": "1.1.0",
        "code": 100,
        "msg": 'say "why"',
    }


def test_every_version_is_listed() -> None:
    assert json.loads(encode_versions()) == {
        "cniVersion": "1.1.0",
        "supportedVersions": ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    }


# --- previous results -------------------------------------------------------------------------------------------------

THEIRS = {
    "cniVersion": "1.1.0",
    "interfaces": [
        {"name": "dummy0", "sandbox": "/run/netns/pod", "mac": "02:00:00:00:00:09", "mtu": 9000, "pciID": "0000:00"}
    ],
    "ips": [{"address": "fd00::1/64", "gateway": "fd00::ff", "interface": 0}],
    "routes": [{"dst": "fd00::/8", "scope": 253, "table": 7, "priority": 1, "advmss": 9, "mtu": 9000}],
    "dns": {"search": ["example.com"]},
}


def test_in_a_chain_ours_comes_behind_theirs_and_nothing_of_theirs_is_lost() -> None:
    written = json.loads(encode_result(RESULT, SpecVersion.V1_1_0, parse_previous(json.dumps(THEIRS).encode())))
    ours = new("1.1.0", mtu=1376)
    assert written == {
        "cniVersion": "1.1.0",
        "interfaces": THEIRS["interfaces"] + ours["interfaces"],
        "ips": [*THEIRS["ips"], {"interface": 2, "address": "10.32.0.1/12", "gateway": "10.32.0.2"}],
        "routes": THEIRS["routes"] + ROUTES,
        "dns": DNS,
    }


def test_in_a_chain_their_resolver_stays_if_we_have_none_to_offer() -> None:
    ours = Result((AssignedAddress(Cidr.parse("10.32.0.1/12")),))
    written = json.loads(encode_result(ours, SpecVersion.V1_0_0, parse_previous(json.dumps(THEIRS).encode())))
    assert written["dns"] == {"search": ["example.com"]}


@pytest.mark.parametrize("version", [v for v in SpecVersion if v.at_least(SpecVersion.V0_3_0)], ids=lambda v: v.value)
def test_our_own_result_is_understood_when_it_comes_back(version: SpecVersion) -> None:
    previous = parse_previous(encode_result(RESULT, version))
    assert previous.mac_of("eth0", "/run/netns/pod") == "02:00:00:00:00:02"
    assert previous.mac_of("vethweplc0ffee0", "") == "02:00:00:00:00:01"
    assert previous.addresses_of("eth0", "/run/netns/pod") == (Cidr.parse("10.32.0.1/12"),)
    assert previous.addresses_of("vethweplc0ffee0", "") == ()
    assert previous.lists_route(Cidr.parse("10.0.0.0/8"))
    assert not previous.lists_route(Cidr.parse("10.0.0.0/9"))


def test_an_interface_that_is_not_listed_has_no_mac() -> None:
    previous = parse_previous(json.dumps(THEIRS).encode())
    assert previous.mac_of("dummy0", "/run/netns/other") is None
    assert previous.mac_of("eth0", "/run/netns/pod") is None


def test_addresses_without_an_interface_count_as_anyones_and_ipv6_is_not_ours() -> None:
    written = {"ips": [{"address": "10.32.0.1/12"}, {"address": "fd00::1/64"}, {"address": "?"}]}
    previous = parse_previous(json.dumps(written).encode())
    assert previous.addresses_of("eth0", "/run/netns/pod") == (Cidr.parse("10.32.0.1/12"),)


def test_every_truncated_previous_result_is_refused() -> None:
    whole = encode_result(RESULT, SpecVersion.V1_1_0)
    for cut in range(len(whole)):
        with pytest.raises(CniError) as caught:
            parse_previous(whole[:cut])
        assert caught.value.code == Code.DECODING_FAILURE


_ADDRESSES = st.integers(0, 2**32 - 1).map(Address)
_CIDRS = st.builds(Cidr, _ADDRESSES, st.integers(0, 32))


@given(
    result=st.builds(
        Result,
        addresses=st.builds(AssignedAddress, _CIDRS, st.none() | _ADDRESSES, st.none() | st.just(0)).map(
            lambda a: (a,)
        ),
        interfaces=st.builds(Interface, st.text(), st.text(), st.integers(0, 65535), st.text(min_size=1)).map(
            lambda i: (i,)
        ),
        routes=st.lists(st.builds(Route, _CIDRS, st.none() | _ADDRESSES), max_size=3).map(tuple),
    ),
    version=st.sampled_from([v for v in SpecVersion if v.at_least(SpecVersion.V0_3_0)]),
)
def test_what_is_written_is_found_again(result: Result, version: SpecVersion) -> None:
    previous = parse_previous(encode_result(result, version))
    [interface] = result.interfaces
    assert previous.mac_of(interface.name, interface.sandbox) == interface.mac
    assert previous.addresses_of(interface.name, interface.sandbox) == tuple(a.address for a in result.addresses)
    assert all(previous.lists_route(route.destination) for route in result.routes)
