"""The objects: valid for every supported Kubernetes, with Weave's names, and with no right too many."""

from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from weavenet.manifest.kubernetes_version import MINOR_NEWEST, MINOR_OLDEST
from weavenet.manifest.objects import manifest, objects
from weavenet.manifest.options import ImageSource, ManifestOptions, parse_options
from weavenet.manifest.text import render

IMAGE = ImageSource("registry.example/weavenet", "0.1.0")
GOLDEN = Path(__file__).with_name("weavenet.yaml")
EVERYTHING = [
    ("password-secret", "weave-passwd"),
    ("known-peers", "10.0.0.1,10.0.0.2"),
    ("trusted-subnets", "10.0.0.0/8,192.168.0.0/16"),
    ("env.WEAVE_MTU", "8916"),
    ("env.HAIRPIN_MODE", "false"),
    ("env.WEAVE_STATUS_ADDR", "0.0.0.0:6790"),
    ("seLinuxOptions.level", "s0:c1,c2"),
    ("keep-state", "true"),
]


def asked(*parameters: tuple[str, str]) -> ManifestOptions:
    return parse_options([("k8s-version", "1.36"), *parameters], IMAGE)


def kinds(options: ManifestOptions) -> dict:
    return {found["kind"]: found for found in objects(options)}


def pod(options: ManifestOptions) -> dict:
    return kinds(options)["DaemonSet"]["spec"]["template"]["spec"]


def variables(container: dict) -> dict:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container.get("env", [])}


@pytest.mark.parametrize("minor", range(MINOR_OLDEST, MINOR_NEWEST + 1))
@pytest.mark.parametrize(
    "parameters", [[], EVERYTHING, [("disable-npc", "true")]], ids=["plain", "everything", "no npc"]
)
def test_the_api_server_of_every_supported_version_takes_all_objects(minor: int, parameters: list) -> None:
    options = parse_options([("k8s-version", f"v1.{minor}.0"), *parameters], IMAGE)
    for found in objects(options):
        checked = kubernetes_validate.validate(found, f"1.{minor}", strict=True)
        assert checked == f"1.{minor}"


def test_the_schemas_would_notice_a_mistake() -> None:
    wrong = kinds(asked())["DaemonSet"]
    wrong["spec"]["template"]["spec"]["hostNetwrok"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.29", strict=True)


def test_the_manifest_is_the_one_that_was_reviewed() -> None:
    # To renew: weave manifest --k8s-version 1.36 --image registry.example/weavenet:0.1.0 >tests/manifest/weavenet.yaml
    assert render(asked(), "0.1.0") == GOLDEN.read_text()


def test_the_text_says_what_the_objects_are() -> None:
    text = render(asked(*EVERYTHING), "0.1.0")
    assert yaml.safe_load(text) == manifest(asked(*EVERYTHING))
    assert "&id" not in text, "people edit this: no part of it may be an alias of another"


def test_the_daemon_set_is_deleted_before_the_rights_of_its_agents() -> None:
    assert [found["kind"] for found in objects(asked())] == [
        "DaemonSet",
        "ServiceAccount",
        "ClusterRole",
        "ClusterRoleBinding",
        "Role",
        "RoleBinding",
    ]


def test_names_and_labels_are_weaves() -> None:
    for found in objects(asked()):
        assert found["metadata"]["name"] == "weave-net"
        assert found["metadata"]["labels"] == {"name": "weave-net"}
        assert found["metadata"].get("namespace") == (None if found["kind"].startswith("Cluster") else "kube-system")
    spec = kinds(asked())["DaemonSet"]["spec"]
    assert spec["selector"] == {"matchLabels": {"name": "weave-net"}}
    assert spec["template"]["metadata"]["labels"] == {"name": "weave-net"}


def test_nothing_is_privileged_and_only_the_network_is_shared_with_the_host() -> None:
    spec = pod(asked(*EVERYTHING))
    assert spec["hostNetwork"]
    assert not {"hostPID", "hostIPC"} & set(spec)
    for container in (*spec["initContainers"], *spec["containers"]):
        rights = container["securityContext"]
        assert not rights.get("privileged", False)
        assert rights["readOnlyRootFilesystem"]
        assert rights["capabilities"]["drop"] == ["ALL"]
        assert not any("mountPropagation" in mount for mount in container["volumeMounts"])


def test_capabilities_are_these_and_no_more() -> None:
    spec = pod(asked())
    assert spec["containers"][0]["securityContext"]["capabilities"]["add"] == [
        "DAC_OVERRIDE",
        "NET_ADMIN",
        "NET_RAW",
        "SYS_ADMIN",
    ]
    assert spec["initContainers"][0]["securityContext"]["capabilities"]["add"] == [
        "DAC_OVERRIDE",
        "NET_ADMIN",
        "SYS_MODULE",
    ]


def test_nobody_may_delete_or_write_anything_but_the_peer_list_and_the_nodes_condition() -> None:
    rules = [*kinds(asked())["ClusterRole"]["rules"], *kinds(asked())["Role"]["rules"]]
    written = {
        (resource, verb, *rule.get("resourceNames", []))
        for rule in rules
        for resource in rule["resources"]
        for verb in rule["verbs"]
        if verb not in {"get", "list", "watch"}
    }
    assert written == {
        ("nodes/status", "patch"),
        ("configmaps", "update", "weave-net"),
        ("configmaps", "create"),
    }
    assert not any("*" in rule["resources"] + rule["verbs"] + rule["apiGroups"] for rule in rules)
    assert not any("secrets" in rule["resources"] for rule in rules)


def test_without_network_policy_only_single_pods_may_be_looked_at() -> None:
    options = asked(("disable-npc", "true"))
    rules = kinds(options)["ClusterRole"]["rules"]
    assert {resource for rule in rules for resource in rule["resources"]} == {"nodes", "nodes/status", "pods"}
    assert [rule["verbs"] for rule in rules if rule["resources"] == ["pods"]] == [["get"]]
    assert variables(pod(options)["containers"][0])["EXPECT_NPC"] == "0"
    assert variables(pod(options)["initContainers"][0])["EXPECT_NPC"] == "0"


def test_every_volume_is_mounted_and_every_mount_has_a_volume() -> None:
    spec = pod(asked())
    mounted = {mount["name"] for one in (*spec["initContainers"], *spec["containers"]) for mount in one["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["volumes"]}


def test_the_password_comes_from_a_secret_and_stands_nowhere() -> None:
    given = variables(pod(asked(("password-secret", "weave-passwd")))["containers"][0])
    assert given["WEAVE_PASSWORD"] == {"secretKeyRef": {"name": "weave-passwd", "key": "weave-passwd"}}


def test_parameters_reach_the_agent() -> None:
    container = pod(asked(*EVERYTHING))["containers"][0]
    assert container["command"] == ["weave-kube", "launch", "--trusted-subnets=10.0.0.0/8,192.168.0.0/16"]
    given = variables(container)
    assert given["KUBE_PEERS"] == "10.0.0.1 10.0.0.2"
    assert given["WEAVE_MTU"] == "8916"
    assert given["WEAVE_KEEP_STATE"] == "1"
    assert given["HOSTNAME"] == {"fieldRef": {"apiVersion": "v1", "fieldPath": "spec.nodeName"}}


def test_the_init_container_has_the_users_variables_and_no_secret() -> None:
    given = variables(pod(asked(*EVERYTHING))["initContainers"][0])
    assert given == {"HAIRPIN_MODE": "false", "WEAVE_MTU": "8916", "WEAVE_STATUS_ADDR": "0.0.0.0:6790"}


def test_the_users_selinux_options_go_before_ours() -> None:
    given = pod(asked(("seLinuxOptions.type", "my_t"), ("seLinuxOptions.level", "s0")))
    assert given["securityContext"]["seLinuxOptions"] == {"type": "my_t", "level": "s0"}
    assert pod(asked())["securityContext"]["seLinuxOptions"] == {"type": "spc_t"}


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [("", "127.0.0.1", 6784), ("0.0.0.0:6790", "127.0.0.1", 6790), ("10.0.0.5:6790", "10.0.0.5", 6790)],
)
def test_probes_ask_where_the_agent_listens(address: str, host: str, port: int) -> None:
    container = pod(asked(("env.WEAVE_STATUS_ADDR", address)))["containers"][0]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["host"] == host
        assert container[probe]["httpGet"]["port"] == port


def test_an_agent_that_waits_for_its_peers_is_unready_but_not_ended() -> None:
    container = pod(asked())["containers"][0]
    assert container["readinessProbe"]["httpGet"]["path"] == "/status"
    assert container["livenessProbe"]["httpGet"]["path"] == "/metrics"
    assert container["startupProbe"]["httpGet"]["path"] == "/metrics"
