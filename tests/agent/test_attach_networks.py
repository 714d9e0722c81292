"""One pod on several networks: on other bridges, by a second CNI network, and by annotation."""

import json
from collections.abc import Mapping
from pathlib import Path

import cni_node as attach
import pytest

from weavenet.address import Cidr, parse_address
from weavenet.agent.local_addresses import (
    KEY_LOCAL_ADDRESSES,
    decode_local_addresses,
)
from weavenet.agent.networks import AnnotatedNetworks, parse_annotation, read_definition
from weavenet.cni.codes import Code
from weavenet.cni.request import Pod
from weavenet.dataplane.model import OtherBridge
from weavenet.errors import CniError

DOCKER0 = OtherBridge("docker0", 1500, (Cidr.parse("172.17.0.1/16"),))
HOST_LOCAL = {"type": "host-local", "subnet": "172.17.0.0/16"}
DOCKER = {"name": "docker", "bridge": "docker0", "ipam": HOST_LOCAL}


# --- on another bridge ------------------------------------------------------------------------------------------------


def test_a_pod_is_on_another_bridge_with_an_address_of_this_node_and_no_default_route() -> None:
    async def scenario(node) -> None:
        node.pods.bridges["docker0"] = DOCKER0
        await node.add()
        result = await node.add(interface="net1", **DOCKER)
        assert [ip["address"] for ip in result["ips"]] == ["172.17.0.2/16"]
        assert "routes" not in result
        assert result["interfaces"][1] == {
            "name": "net1",
            "mac": "00:00:00:00:00:02",
            "mtu": 1500,
            "sandbox": attach.PATH,
        }

    node = attach.run(scenario)
    link = node.pods.links[1]
    assert (link.bridge, link.gateway, link.mtu, link.hairpin) == ("docker0", None, 1500, False)
    assert decode_local_addresses(node.stored[KEY_LOCAL_ADDRESSES]) == {
        "c0ffee0123/net1/docker": Cidr.parse("172.17.0.2/16")
    }


def test_routes_that_are_asked_for_lead_to_the_gateway_of_the_other_bridge() -> None:
    async def scenario(node) -> None:
        node.pods.bridges["docker0"] = DOCKER0
        ipam = {**HOST_LOCAL, "gateway": "172.17.0.1", "routes": [{"dst": "198.51.100.0/24"}]}
        result = await node.add(interface="net1", **{**DOCKER, "ipam": ipam})
        assert result["ips"][0]["gateway"] == "172.17.0.1"
        assert result["routes"] == [{"dst": "198.51.100.0/24"}]

    node = attach.run(scenario)
    assert node.pods.links[0].gateway == parse_address("172.17.0.1")


def test_a_bridge_that_is_not_there_is_named_and_nothing_is_reserved() -> None:
    async def scenario(node) -> None:
        error = await node.refusal("ADD", interface="net1", **DOCKER)
        assert error.code is Code.INVALID_CONFIG
        assert 'Failed to get netdev for "docker0" bridge' in error.message
        assert (await node.refusal("STATUS", **DOCKER)).code is Code.INVALID_CONFIG

    node = attach.run(scenario)
    assert node.stored == {}


def test_addresses_of_one_node_are_not_for_the_bridge_that_all_nodes_share() -> None:
    async def scenario(node) -> None:
        error = await node.refusal("ADD", ipam=HOST_LOCAL)
        assert error.code is Code.INVALID_CONFIG
        assert "host-local addresses on the bridge weave" in error.message

    attach.run(scenario)


def test_an_address_of_this_node_is_given_again_to_whom_has_it_and_free_after_del() -> None:
    async def scenario(node) -> None:
        node.pods.bridges["docker0"] = DOCKER0
        first = await node.add(interface="net1", **DOCKER)
        assert await node.add(interface="net1", **DOCKER) == first
        await node.call("CHECK", interface="net1", prevResult=first, **DOCKER)
        await node.call("DEL", interface="net1", **DOCKER)
        assert node.local.owned() == {}
        # The one just freed rests.
        assert (await node.add(interface="net1", **DOCKER))["ips"][0]["address"] == "172.17.0.3/16"

    attach.run(scenario)


def test_a_failed_add_gives_the_address_of_this_node_back() -> None:
    async def scenario(node) -> None:
        node.pods.bridges["docker0"] = DOCKER0
        node.pods.broken = "no"
        assert (await node.refusal("ADD", interface="net1", **DOCKER)).code is Code.KERNEL_REFUSED
        node.pods.broken = ""
        assert node.local.owned() == {}

    attach.run(scenario)


# --- a second network on our own bridge, as Multus asks for it --------------------------------------------------------


def test_only_the_first_interface_gets_a_default_route() -> None:
    async def scenario(node) -> None:
        await node.add()
        ipam = {"type": "weave-ipam", "subnet": "10.40.0.0/16"}
        result = await node.add(interface="net1", name="backend", ipam=ipam)
        assert result["ips"] == [{"address": "10.40.0.1/16", "interface": 1}]
        assert "routes" not in result
        await node.call("CHECK", interface="net1", name="backend", ipam=ipam, prevResult=result)

    attach.run(scenario)


def test_a_pod_whose_only_interface_has_another_name_has_a_default_route() -> None:
    async def scenario(node) -> None:
        result = await node.add(interface="net1", name="backend")
        assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.32.0.2"}]

    attach.run(scenario)


# --- by annotation ----------------------------------------------------------------------------------------------------


class Api:
    """Tells pods' annotations, or that it does not."""

    def __init__(self, annotation: str) -> None:
        self.annotation = annotation
        self.asked: list[Pod] = []
        self.error: CniError | None = None

    async def read(self, pod: Pod) -> Mapping[str, str]:
        self.asked.append(pod)
        if self.error is not None:
            raise self.error
        return {"weave.works/networks": self.annotation} if self.annotation else {}


POD = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u1"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    define(tmp_path, "docker.conf", type="weave-net", **DOCKER)
    define(tmp_path, "storage.json", name="storage", ipam={"subnet": "10.41.0.0/16"})
    return tmp_path


def define(directory: Path, file: str, **keys: object) -> None:
    (directory / file).write_text(json.dumps({"cniVersion": "1.0.0", **keys}))


async def of_pod(node, command: str, **keys: object) -> bytes:
    environment = {"CNI_COMMAND": command, "CNI_CONTAINERID": "c0ffee0123", "CNI_IFNAME": "eth0", "CNI_ARGS": POD}
    config = {"cniVersion": "1.1.0", "name": "weave"} | keys
    sandbox = attach.Sandbox(attach.PATH, attach.NETNS)
    parsed = attach.parse_call("weave-net", environment, json.dumps(config).encode(), sandbox)
    return await node.verbs.handle(parsed)


def test_a_pod_gets_the_networks_that_its_annotation_names(directory: Path) -> None:
    api = Api("docker, storage@back")

    async def scenario(node) -> None:
        node.pods.bridges["docker0"] = DOCKER0
        result = json.loads(await of_pod(node, "ADD"))
        assert [one["name"] for one in result["interfaces"][1::2]] == ["eth0", "net1", "back"]
        assert [(one["address"], one["interface"]) for one in result["ips"]] == [
            ("10.32.0.1/12", 1),
            ("172.17.0.2/16", 3),
            ("10.41.0.1/16", 5),
        ]
        assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.32.0.2"}]
        assert json.loads(await of_pod(node, "ADD")) == result, "asked again"
        await of_pod(node, "CHECK", prevResult=result)
        gone = node.pods.interfaces.pop((attach.NETNS, "net1"))
        with pytest.raises(CniError, match="interface net1 is not in the container"):
            await of_pod(node, "CHECK", prevResult=result)
        node.pods.interfaces[attach.NETNS, "net1"] = gone
        api.error = CniError(Code.TRY_AGAIN_LATER, "the API is away")
        await of_pod(node, "DEL")  # asks nobody
        assert node.pods.ports == {}
        assert await PodAddressesOf(node).owned() == {}

    node = attach.run(scenario, AnnotatedNetworks(directory, api.read))
    assert api.asked[0] == Pod("shop", "web-0", "u1")
    assert node.happened.index("detach c0ffee0123/net1") < node.happened.index("detach c0ffee0123/eth0 in 9")


class PodAddressesOf:
    """What a node holds of both kinds."""

    def __init__(self, node) -> None:
        self.node = node

    async def owned(self) -> dict[str, tuple[Cidr, ...]]:
        return {**await self.node.addresses.owned(), **self.node.local.owned()}


def test_all_networks_are_made_or_none(directory: Path) -> None:
    async def scenario(node) -> None:
        with pytest.raises(CniError, match="docker0"):  # which is not there
            await of_pod(node, "ADD")
        assert node.pods.ports == {}
        assert await PodAddressesOf(node).owned() == {}

    attach.run(scenario, AnnotatedNetworks(directory, Api("storage,docker").read))


def test_an_api_that_is_away_is_a_reason_to_try_again_and_nothing_is_made(directory: Path) -> None:
    api = Api("docker")
    api.error = CniError(Code.TRY_AGAIN_LATER, "the API is away")

    async def scenario(node) -> None:
        with pytest.raises(CniError, match="the API is away"):
            await of_pod(node, "ADD")

    assert attach.run(scenario, AnnotatedNetworks(directory, api.read)).happened == []


@pytest.mark.parametrize("made", [True, False])
def test_where_no_networks_are_defined_nobody_is_asked(tmp_path: Path, *, made: bool) -> None:
    api = Api("docker")
    networks = AnnotatedNetworks(tmp_path if made else tmp_path / "missing", api.read)

    async def scenario(node) -> None:
        await of_pod(node, "ADD")

    attach.run(scenario, networks)
    assert api.asked == []


def test_a_network_that_is_not_defined_is_named_with_those_that_are(directory: Path) -> None:
    async def scenario(node) -> None:
        with pytest.raises(CniError) as caught:
            await of_pod(node, "ADD")
        assert "pod shop/web-0 asks for network 'nowhere'" in caught.value.message
        assert "docker, storage" in caught.value.details

    assert attach.run(scenario, AnnotatedNetworks(directory, Api("nowhere").read)).happened == []


def test_a_second_network_of_the_runtimes_does_not_bring_those_of_the_annotation(directory: Path) -> None:
    api = Api("docker")

    async def scenario(node) -> None:
        await node.add(interface="net1", name="backend")

    attach.run(scenario, AnnotatedNetworks(directory, api.read))
    assert api.asked == []


def test_gc_keeps_what_was_made_beside_a_valid_attachment_and_frees_it_with_one_that_is_not(directory: Path) -> None:
    async def scenario(node) -> None:
        node.pods.bridges["docker0"] = DOCKER0
        await of_pod(node, "ADD")
        valid = {"containerID": "c0ffee0123", "ifname": "eth0"}
        await node.call("GC", **{"cni.dev/valid-attachments": [valid]})
        await node.call("GC", name="docker", **{"cni.dev/valid-attachments": []})
        assert set(node.pods.ports) == {("c0ffee0123", "eth0"), ("c0ffee0123", "net1")}
        await node.call("GC", **{"cni.dev/valid-attachments": []})
        assert node.pods.ports == {}
        assert await PodAddressesOf(node).owned() == {}

    attach.run(scenario, AnnotatedNetworks(directory, Api("docker").read))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a@eth0", "interface eth0 twice"),
        ("a@lo", "interface lo twice"),
        ("a@net2,b", "interface net2 twice"),
        ("a@a/b", "An interface name has no /"),
        ("a@", "An interface name must not be empty"),
        (",".join("a" * 17), "At most 16"),
    ],
)
def test_an_annotation_that_makes_no_sense_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(CniError) as caught:
        parse_annotation(text, "shop/web-0")
    assert complaint in f"{caught.value.message} {caught.value.details}"


def test_interfaces_are_numbered_by_their_place_in_the_annotation() -> None:
    assert parse_annotation(" a , b@x,c ,", "p") == [("a", "net1"), ("b", "x"), ("c", "net3")]


@pytest.mark.parametrize(
    "keys",
    [{"name": "weave"}, {"name": "x", "type": "bridge"}, {}, {"name": "x", "mtu": "big"}, {"name": "x" * 70_000}],
)
def test_a_definition_that_makes_no_sense_is_named_by_its_file(tmp_path: Path, keys: dict[str, object]) -> None:
    define(tmp_path, "bad.conf", **keys)
    with pytest.raises(CniError, match=r"bad\.conf"):
        read_definition(tmp_path / "bad.conf")
