import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weavenet.address import Cidr, parse_address
from weavenet.cni.codes import Code, SpecVersion
from weavenet.cni.request import (
    Add,
    Attachment,
    Check,
    CniCall,
    Del,
    Gc,
    Plugin,
    Sandbox,
    Status,
    Version,
    parse_call,
    version_for_error,
)
from weavenet.cni.result import Route
from weavenet.errors import CniError

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "cni.json").read_text())["vectors"]
RECORDED = [vector for vector in VECTORS if "env" in vector]
ENVIRONMENT = {"CNI_CONTAINERID": "c0ffee0123456789", "CNI_NETNS": "/run/netns/pod", "CNI_IFNAME": "eth0"}
CONFIG = {"cniVersion": "1.1.0", "name": "weave", "type": "weave-net"}
SANDBOX = Sandbox("/run/netns/pod", 9)


def call(
    command: str,
    config: Mapping[str, object] | bytes = CONFIG,
    *,
    name: str = "weave-net",
    sandbox: Sandbox = SANDBOX,
    **variables: str,
) -> CniCall:
    stdin = config if isinstance(config, bytes) else json.dumps(config).encode()
    return parse_call(name, ENVIRONMENT | {"CNI_COMMAND": command} | variables, stdin, sandbox)


def add(**keys: object) -> Add:
    parsed = call("ADD", CONFIG | keys)
    assert isinstance(parsed, Add)
    return parsed


def refusal(command: str, config: Mapping[str, object] | bytes = CONFIG, **variables: str) -> CniError:
    with pytest.raises(CniError) as caught:
        call(command, config, **variables)
    return caught.value


# --- recorded sessions ------------------------------------------------------------------------------------------------


# Where the recorded program failed while *parsing*: the code and text that we give. None: Weave could not, we can.
REFUSED_DIFFERENTLY = {
    "CHECK": (Code.INCOMPATIBLE_VERSION, "config version does not allow CHECK"),
    "0.4.0": None,
    "1.0.0": None,
    "isGateway": (Code.UNSUPPORTED_FIELD, "Gateway functionality not supported"),
    "ipMasq": (Code.UNSUPPORTED_FIELD, "IP Masquerading functionality not supported"),
    "no container id": (Code.INVALID_ENVIRONMENT, "CNI_CONTAINERID is not set"),
    "bad json": (Code.DECODING_FAILURE, "decoding network config: Input data was truncated"),
    "bad subnet": (
        Code.INVALID_CONFIG,
        "unable to allocate IP address: subnet given in config, but not parseable: invalid CIDR address: 10.32.8.1/24x",
    ),
}


@pytest.mark.parametrize("vector", RECORDED, ids=lambda v: f"{v['plugin']} {v['env']['CNI_COMMAND']} {v['note']}")
def test_what_weave_was_asked_is_understood(vector: dict[str, object]) -> None:
    stdin = vector["stdin"] if isinstance(vector["stdin"], str) else json.dumps(vector["stdin"])
    environment = vector["env"]
    assert isinstance(environment, dict)
    assert isinstance(stdin, str)
    sandbox = Sandbox(environment["CNI_NETNS"], 9)
    expected = REFUSED_DIFFERENTLY.get(str(vector["note"]))
    if expected is not None:
        with pytest.raises(CniError) as caught:
            parse_call(str(vector["plugin"]), environment, stdin.encode(), sandbox)
        assert (caught.value.code, caught.value.message) == expected
        return
    parsed = parse_call(str(vector["plugin"]), environment, stdin.encode(), sandbox)
    assert type(parsed).__name__.upper() == environment["CNI_COMMAND"]


def test_routes_mtu_and_hairpin_are_read_as_weave_reads_them() -> None:
    [vector] = [vector for vector in RECORDED if vector["note"] == "routes in config, mtu, no hairpin"]
    parsed = call("ADD", vector["stdin"])
    assert isinstance(parsed, Add)
    assert parsed.version is SpecVersion.V0_3_0
    assert (parsed.config.mtu_bytes, parsed.config.hairpin, parsed.config.bridge) == (1300, False, "weave")
    assert parsed.config.ipam.routes == (
        Route(Cidr.parse("10.0.0.0/8")),
        Route(Cidr.parse("0.0.0.0/0"), parse_address("10.32.0.9")),
    )


# --- who asks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attachment", "ident"),
    [
        (Attachment("c0ffee", "eth0"), "c0ffee/eth0"),
        (Attachment("c0ffee", "net1", "backend"), "c0ffee/net1/backend"),
        (Attachment("c0ffee", "net1", "docker", "eth0"), "c0ffee/net1/docker/eth0"),
    ],
)
def test_an_attachment_and_its_ident_are_one_thing(attachment: Attachment, ident: str) -> None:
    assert attachment.ident == ident
    assert Attachment.from_ident(ident) == attachment


@pytest.mark.parametrize("ident", ["weave:expose", "c0ffee0123456789", "", "_", "a/b/c/d/e"])
def test_what_weave_holds_addresses_under_is_no_attachment_of_ours(ident: str) -> None:
    assert Attachment.from_ident(ident) is None


@pytest.mark.parametrize("name", ["weave-net", "weave-ipam"])
def test_the_name_of_the_executable_says_which_plugin_is_wanted(name: str) -> None:
    parsed = call("ADD", name=name)
    assert isinstance(parsed, Add)
    assert parsed.plugin is Plugin(name)


def test_another_name_of_the_executable_is_refused() -> None:
    error = refusal("ADD", name="weave-plugin-2.8.1")
    assert error.code == Code.INVALID_ENVIRONMENT
    assert "weave-net and weave-ipam" in error.details


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CNI_COMMAND", ""),
        ("CNI_COMMAND", "EVAL"),
        ("CNI_COMMAND", "add"),
        ("CNI_CONTAINERID", ""),
        ("CNI_CONTAINERID", "-c0ffee"),
        ("CNI_CONTAINERID", "c0/ffee"),
        ("CNI_CONTAINERID", "c0ffee\n"),
        ("CNI_CONTAINERID", "café"),
        ("CNI_CONTAINERID", "x" * 129),
        ("CNI_IFNAME", ""),
        ("CNI_IFNAME", "."),
        ("CNI_IFNAME", ".."),
        ("CNI_IFNAME", "a/b"),
        ("CNI_IFNAME", "a:b"),
        ("CNI_IFNAME", "a b"),
        ("CNI_IFNAME", "a\u00a0b"),
        ("CNI_IFNAME", "eth%d"),
        ("CNI_IFNAME", "eth\x010"),
        ("CNI_IFNAME", "sixteen-letters-"),
        ("CNI_IFNAME", "ééééèèèè"),
        ("CNI_ARGS", "K8S_POD_NAME"),
        ("CNI_ARGS", "=web"),
    ],
)
def test_a_wrong_variable_is_refused_by_its_name(variable: str, value: str) -> None:
    error = refusal("ADD", **{variable: value})
    assert error.code == Code.INVALID_ENVIRONMENT
    assert variable in error.message


def test_add_and_check_need_a_namespace() -> None:
    for command in ("ADD", "CHECK"):
        error = refusal(command, sandbox=Sandbox("", None, "not given"))
        assert (error.code, error.message) == (Code.INVALID_ENVIRONMENT, "CNI_NETNS is not set")


def test_the_pod_is_named_by_the_arguments() -> None:
    arguments = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=c0ffee;X=a=b;"
    parsed = call("ADD", CNI_ARGS=arguments)
    assert isinstance(parsed, Add)
    assert str(parsed.pod) == "default/web"


def test_without_arguments_no_pod_is_named() -> None:
    assert str(add().pod) == "a container outside Kubernetes"


# --- versions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", list(SpecVersion), ids=lambda version: version.value)
@pytest.mark.parametrize(
    ("command", "since"),
    [("ADD", "0.1.0"), ("DEL", "0.1.0"), ("CHECK", "0.4.0"), ("STATUS", "1.1.0"), ("GC", "1.1.0")],
)
def test_a_verb_is_served_in_the_versions_that_have_it(version: SpecVersion, command: str, since: str) -> None:
    config = CONFIG | {"cniVersion": version.value, "prevResult": {}, "cni.dev/valid-attachments": []}
    if version.at_least(SpecVersion(since)):
        parsed = call(command, config)
        assert not isinstance(parsed, Version)
        assert parsed.version is version
    else:
        error = refusal(command, config)
        assert (error.code, error.message) == (Code.INCOMPATIBLE_VERSION, f"config version does not allow {command}")


@pytest.mark.parametrize("written", [{}, {"cniVersion": ""}, {"cniVersion": None}], ids=["missing", "blank", "null"])
def test_no_version_means_the_oldest(written: dict[str, object]) -> None:
    parsed = call("ADD", {"name": "weave"} | written)
    assert isinstance(parsed, Add)
    assert parsed.version is SpecVersion.V0_1_0


@pytest.mark.parametrize("version", ["0.4", "1.2.0", "2.0.0", "latest"])
def test_an_unknown_version_is_refused_with_the_known_ones(version: str) -> None:
    error = refusal("ADD", CONFIG | {"cniVersion": version})
    assert (error.code, error.message) == (Code.INCOMPATIBLE_VERSION, "incompatible CNI versions")
    assert f'config is "{version}"' in error.details
    assert '"1.1.0"' in error.details


@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        (b'{"cniVersion": "0.4.0", "mtu": "large"}', "0.4.0"),
        (b'{"cniVersion": "9.9.9"}', "1.1.0"),
        (b'{"cniVersion": 1}', "1.1.0"),
        (b"{", "1.1.0"),
        (b"{}", "0.1.0"),
    ],
)
def test_errors_are_written_in_the_version_that_was_asked_for_if_it_can_be_read(stdin: bytes, version: str) -> None:
    assert version_for_error(stdin).value == version


def test_version_needs_nothing() -> None:
    assert parse_call("", {"CNI_COMMAND": "VERSION"}, b"", Sandbox("", None)) == Version()


# --- DEL does what it can ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stdin", "complaint"),
    [
        (b"", "decoding network config"),
        (b'{"cniVersion":', "decoding network config"),
        (b"[]", "invalid network config"),
        (b'{"cniVersion": "1.0.0"}', "missing network name"),
        (b'{"cniVersion": "3.0.0", "name": "weave"}', "incompatible CNI versions"),
        (b'{"cniVersion": "1.0.0", "name": "weave", "mtu": "large", "ipam": 7, "isGateway": true}', ""),
    ],
)
def test_del_understands_who_is_meant_whatever_the_configuration(stdin: bytes, complaint: str) -> None:
    parsed = call("DEL", stdin)
    assert isinstance(parsed, Del)
    assert parsed.attachment.ident == "c0ffee0123456789/eth0"
    assert parsed.complaint.startswith(complaint)


def test_del_knows_the_network_even_of_a_version_from_the_future() -> None:
    parsed = call("DEL", {"cniVersion": "3.0.0", "name": "backend"})
    assert isinstance(parsed, Del)
    assert parsed.attachment.ident == "c0ffee0123456789/eth0/backend"


def test_del_needs_no_namespace() -> None:
    parsed = call("DEL", sandbox=Sandbox("", None, "not given"))
    assert isinstance(parsed, Del)


@pytest.mark.parametrize("variable", ["CNI_CONTAINERID", "CNI_IFNAME"])
def test_del_needs_to_know_who_is_meant(variable: str) -> None:
    assert refusal("DEL", **{variable: ""}).code == Code.INVALID_ENVIRONMENT


# --- CHECK, STATUS, GC ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", [{}, {"prevResult": None}], ids=["missing", "null"])
def test_check_without_a_previous_result_is_refused(written: dict[str, object]) -> None:
    error = refusal("CHECK", CONFIG | written)
    assert (error.code, error.message) == (Code.INVALID_CONFIG, "prevResult is missing")


def test_check_has_the_previous_result() -> None:
    interfaces = [{"name": "eth0", "sandbox": "/run/netns/pod", "mac": "02:00:00:00:00:01"}]
    parsed = call("CHECK", CONFIG | {"prevResult": {"cniVersion": "1.1.0", "interfaces": interfaces}})
    assert isinstance(parsed, Check)
    assert parsed.previous.mac_of("eth0", "/run/netns/pod") == "02:00:00:00:00:01"


def test_a_previous_result_that_is_none_is_refused() -> None:
    error = refusal("ADD", CONFIG | {"prevResult": {"ips": 7}})
    assert (error.code, error.message.partition(":")[0]) == (Code.DECODING_FAILURE, "cannot decode prevResult")


def test_before_chains_a_previous_result_means_nothing() -> None:
    assert add(cniVersion="0.2.0", prevResult={"ips": 7}).previous is None


def test_gc_lists_the_attachments_of_its_network() -> None:
    valid = [{"containerID": "c0ffee", "ifname": "eth0"}, {"containerID": "deadbeef", "ifname": "net1"}]
    parsed = call("GC", CONFIG | {"name": "backend", "cni.dev/valid-attachments": valid})
    assert isinstance(parsed, Gc)
    assert parsed.network == "backend"
    assert sorted(attachment.ident for attachment in parsed.valid) == ["c0ffee/eth0/backend", "deadbeef/net1/backend"]


@pytest.mark.parametrize("valid", [[], None], ids=["empty", "null"])
def test_gc_with_an_empty_list_means_that_nothing_is_valid(valid: object) -> None:
    parsed = call("GC", CONFIG | {"cni.dev/valid-attachments": valid})
    assert isinstance(parsed, Gc)
    assert parsed.valid == frozenset()


def test_gc_without_a_list_is_refused_and_not_taken_for_an_empty_one() -> None:
    error = refusal("GC")
    assert (error.code, error.message) == (Code.INVALID_CONFIG, "cni.dev/valid-attachments is missing")


def test_gc_with_absurdly_many_attachments_is_refused() -> None:
    valid = [{"containerID": "c", "ifname": "e"}] * 10_001
    assert refusal("GC", CONFIG | {"cni.dev/valid-attachments": valid}).code == Code.INVALID_CONFIG


def test_status_needs_no_container() -> None:
    parsed = call("STATUS", CNI_CONTAINERID="", CNI_IFNAME="", CNI_NETNS="", sandbox=Sandbox("", None))
    assert isinstance(parsed, Status)


# --- robustness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["ADD", "CHECK", "GC", "STATUS"])
def test_every_truncated_configuration_is_refused_as_such(command: str) -> None:
    whole = json.dumps(CONFIG | {"dns": {"search": ["example.com"]}, "prevResult": {}}).encode()
    for cut in range(len(whole)):
        assert refusal(command, whole[:cut]).code == Code.DECODING_FAILURE


def test_nesting_without_end_is_refused() -> None:
    assert refusal("ADD", b'{"prevResult":' + b"[" * 500_000).code == Code.DECODING_FAILURE
    assert refusal("ADD", b'{"name": "weave", "unknown":' + b"[" * 500_000).code == Code.DECODING_FAILURE


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_KEYS = [
    "cniVersion",
    "name",
    "bridge",
    "mtu",
    "hairpinMode",
    "isGateway",
    "ipMasq",
    "dns",
    "ipam",
    "prevResult",
    "cni.dev/valid-attachments",
    "type",
]


@given(
    command=st.sampled_from(["ADD", "DEL", "CHECK", "STATUS", "GC"]),
    keys=st.dictionaries(st.sampled_from(_KEYS), _JSON),
    ipam=st.dictionaries(st.sampled_from(["type", "subnet", "gateway", "routes"]), _JSON),
)
def test_any_configuration_is_understood_or_refused(
    command: str, keys: dict[str, object], ipam: dict[str, object]
) -> None:
    for config in (keys, CONFIG | keys, CONFIG | keys | {"ipam": ipam}):
        try:
            call(command, config)
        except CniError as error:
            assert error.code in {1, 2, 6, 7}  # noqa: PT017 - either outcome is right


@given(st.binary(max_size=200))
def test_any_bytes_are_understood_or_refused(stdin: bytes) -> None:
    try:
        call("ADD", stdin)
    except CniError as error:
        assert error.code in {1, 6, 7}  # noqa: PT017
