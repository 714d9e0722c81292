"""Weave's environment variables become flags of the agent."""

import pytest

from weavenet.agent.kube_env import launch_arguments
from weavenet.agent.main import main as weaver
from weavenet.errors import ConfigError

NODE = {"HOSTNAME": "node1"}
DEFAULTS = (
    "--nickname=node1",
    "--kube-node=node1",
    "--host-root=/host",
    "--networks-dir=/etc/weavenet/networks",
    "--state-dir=/weavedb",
    "--ipalloc-range=10.32.0.0/12",
    "--conn-limit=200",
    "--expose-ip=auto",
    "--expect-npc",
    "--no-masq-local",
    "--status-addr=127.0.0.1:6784",
    "--metrics-addr=0.0.0.0:6782",
)


def flags(**variables: str) -> list[str]:
    return list(launch_arguments(NODE | variables).arguments)


def added(**variables: str) -> list[str]:
    return [flag for flag in flags(**variables) if flag not in DEFAULTS]


def missing(**variables: str) -> list[str]:
    return [flag for flag in DEFAULTS if flag not in flags(**variables)]


def test_without_variables_the_defaults_are_weaves() -> None:
    assert tuple(flags()) == DEFAULTS


@pytest.mark.parametrize(
    ("variables", "added_flags", "missing_flags"),
    [
        ({"IPALLOC_RANGE": "10.40.0.0/16"}, ["--ipalloc-range=10.40.0.0/16"], ["--ipalloc-range=10.32.0.0/12"]),
        ({"IPALLOC_INIT": "consensus=3"}, ["--ipalloc-init=consensus=3"], []),
        ({"IPALLOC_INIT": "observer"}, ["--ipalloc-init=observer"], []),
        ({"WEAVE_MTU": "8916"}, ["--mtu=8916"], []),
        ({"WEAVE_MTU": "0"}, [], []),
        ({"CONN_LIMIT": "0"}, ["--conn-limit=0"], ["--conn-limit=200"]),
        ({"KUBE_PEERS": "10.0.0.1 10.0.0.2"}, ["--ipalloc-init=consensus=2", "--", "10.0.0.1", "10.0.0.2"], []),
        ({"NO_MASQ_LOCAL": "0"}, [], ["--no-masq-local"]),
        ({"EXPECT_NPC": "0"}, [], ["--expect-npc"]),
        ({"WEAVE_NO_FASTDP": "1"}, ["--no-fastdp"], []),
        ({"WEAVE_KEEP_STATE": "1"}, ["--keep-state"], []),
        ({"WEAVE_DEBUG": "true"}, ["--log-level=debug"], []),
        ({"WEAVE_EXPOSE_IP": "net:default"}, [], []),
        ({"WEAVE_EXPOSE_IP": "ip:10.32.0.1/12"}, ["--expose-ip=10.32.0.1/12"], ["--expose-ip=auto"]),
        ({"WEAVE_EXPOSE_IP": "10.32.0.1/12"}, ["--expose-ip=10.32.0.1/12"], ["--expose-ip=auto"]),
        ({"DB_PREFIX": "/data/weave-net"}, ["--state-dir=/data"], ["--state-dir=/weavedb"]),
        ({"DB_PREFIX": "/data/"}, ["--state-dir=/data"], ["--state-dir=/weavedb"]),
        ({"HOST_ROOT": "/"}, ["--host-root=/"], ["--host-root=/host"]),
        ({"WEAVE_HTTP_ADDR": "127.0.0.1:6790"}, ["--http-addr=127.0.0.1:6790"], []),
        ({"WEAVE_HTTP_ADDR": "/run/weave.sock"}, ["--http-addr=/run/weave.sock"], []),
        ({"WEAVE_METRICS_ADDR": ":6782"}, [], []),
        ({"WEAVE_METRICS_ADDR": "127.0.0.1:6782"}, ["--metrics-addr=127.0.0.1:6782"], ["--metrics-addr=0.0.0.0:6782"]),
        ({"WEAVE_PASSWORD": "secret"}, [], []),
        ({"HAIRPIN_MODE": "false", "INIT_CONTAINER": "true", "WEAVE_CNI_PLUGIN_DIR": "/host/opt"}, [], []),
        ({"IPALLOC_RANGE": "", "CONN_LIMIT": " ", "EXPECT_NPC": ""}, [], []),
    ],
    ids=lambda value: " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_a_variable_is_a_flag(variables: dict, added_flags: list, missing_flags: list) -> None:
    assert added(**variables) == added_flags
    assert missing(**variables) == missing_flags


def test_the_control_api_at_the_status_address_serves_the_status_too() -> None:
    assert added(WEAVE_HTTP_ADDR="127.0.0.1:6784") == ["--http-addr=127.0.0.1:6784"]
    assert missing(WEAVE_HTTP_ADDR="127.0.0.1:6784") == ["--status-addr=127.0.0.1:6784"]


def test_status_and_metrics_at_one_address_are_one_listener_as_in_old_manifests() -> None:
    assert added(WEAVE_STATUS_ADDR="0.0.0.0:6782") == ["--status-addr=0.0.0.0:6782"]
    assert missing(WEAVE_STATUS_ADDR="0.0.0.0:6782") == ["--status-addr=127.0.0.1:6784", "--metrics-addr=0.0.0.0:6782"]


def test_extra_arguments_come_first_and_the_containers_own_come_late() -> None:
    launch = launch_arguments(
        NODE | {"EXTRA_ARGS": "--log-level=debug  --nickname='a b'", "KUBE_PEERS": "10.0.0.1"},
        ["--min-protocol-version=2"],
    )
    assert launch.arguments[:2] == ("--log-level=debug", "--nickname=a b")
    assert launch.arguments[-3:] == ("--min-protocol-version=2", "--", "10.0.0.1")


def test_a_password_is_no_flag_and_stands_nowhere() -> None:
    launch = launch_arguments(NODE | {"WEAVE_PASSWORD": "correct horse"})
    assert "correct horse" not in repr(launch)


def test_variables_without_a_meaning_are_named() -> None:
    remarks = launch_arguments(NODE | {"IPTABLES_BACKEND": "legacy", "CHECKPOINT_DISABLE": "1"}).remarks
    assert len(remarks) == 2
    assert all("has no effect" in remark for remark in remarks)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HOSTNAME", ""),
        ("IPALLOC_RANGE", "10.32.0.1/12"),
        ("IPALLOC_RANGE", "everything"),
        ("IPALLOC_INIT", "consensus=many"),
        ("WEAVE_MTU", "big"),
        ("WEAVE_MTU", "68"),
        ("WEAVE_MTU", "70000"),
        ("CONN_LIMIT", "-1"),
        ("CONN_LIMIT", "²"),
        ("CONN_LIMIT", "9" * 5000),
        ("KUBE_PEERS", "10.0.0.1 --reset"),
        ("NO_MASQ_LOCAL", "yes"),
        ("EXPECT_NPC", "false"),
        ("EXTRA_ARGS", "--a 'b"),
        ("WEAVE_EXPOSE_IP", "10.32.0.1"),
        ("WEAVE_EXPOSE_IP", "net:10.2.0.0/16"),
        ("WEAVE_HTTP_ADDR", "localhost:6784"),
        ("WEAVE_STATUS_ADDR", "6784"),
        ("WEAVE_METRICS_ADDR", "0.0.0.0:70000"),
        ("DB_PREFIX", "weave-net"),
        ("WEAVE_KEEP_STATE", "maybe"),
    ],
)
def test_a_bad_value_is_refused_with_the_variables_name(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        launch_arguments(NODE | {name: value})


def test_the_agent_knows_every_flag() -> None:
    everything = {"WEAVE_NO_FASTDP": "1", "WEAVE_KEEP_STATE": "1", "WEAVE_MTU": "1400", "IPALLOC_INIT": "observer"}
    known = {name for option in weaver.params for name in option.opts}
    used = {flag.partition("=")[0] for flag in flags(**everything, WEAVE_HTTP_ADDR="127.0.0.1:1")}
    assert used <= known
