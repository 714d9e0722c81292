"""Weave's environment variables, as its DaemonSet has them, turned into the agent's flags: text in, text out.

Defaults are those of Weave's launch.sh (docs/protocol/kubernetes.md, 3.1), with these differences:

* WEAVE_HTTP_ADDR, the whole control API over TCP, is off unless it is set: whoever reaches it rules the node's network.
  At Weave's address, 127.0.0.1:6784, is the read-only status instead, for the probes and for curl.
* WEAVE_PASSWORD is not turned into a flag: the agent reads it by itself, and flags show in process lists.
* DB_PREFIX names the directory; the file in it is ours, beside Weave's.
* Without KUBE_PEERS the agent asks the API who the peers are (--kube-node), and how many: so no --ipalloc-init then.

A value that makes no sense is refused with the variable's name: "exit 2, no such option" in a pod's log helps nobody.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from weavenet.address import Cidr, parse_address, parse_subnet
from weavenet.agent.config import DEFAULT_RANGE, MTU_MAX, MTU_MIN
from weavenet.agent.kube_place import DEFAULT_HOST_ROOT, Environment
from weavenet.drivers.http import parse_listen_address
from weavenet.errors import AddressError, ConfigError
from weavenet.ipam.modes import parse_init_mode

DEFAULT_STATUS_ADDRESS: Final = "127.0.0.1:6784"
DEFAULT_METRICS_ADDRESS: Final = "0.0.0.0:6782"
DEFAULT_CONNECTION_LIMIT: Final = 200
DEFAULT_DB_PREFIX: Final = "/weavedb/weave-net"
_CONNECTION_LIMIT_MAX = 1_000_000

# Understood, and without a meaning here; those who set them should know.
_WITHOUT_MEANING = {
    "CHECKPOINT_DISABLE": "no version is ever checked for",
    "IPTABLES_BACKEND": "rules are nftables' own",
}


NETWORKS_DIRECTORY = "/etc/weavenet/networks"  # where the manifest mounts the ConfigMap weave-networks, if there is one


class Launch(msgspec.Struct, frozen=True):
    """How to start the agent, and what to tell whoever reads its log."""

    arguments: tuple[str, ...]
    remarks: tuple[str, ...]


def launch_arguments(environment: Mapping[str, str], container_arguments: Sequence[str] = ()) -> Launch:
    """Return the agent's command line. Raises ConfigError, which names the variable."""
    env = Environment(environment)
    node = env.text("HOSTNAME")
    if not node:
        raise ConfigError("HOSTNAME is not set; the manifest sets it to the node's name, from spec.nodeName")
    peers = _peers(env)
    arguments = [
        *env.words("EXTRA_ARGS"),  # first: of a flag that is given twice, the last one counts, as with Weave
        f"--nickname={node}",
        f"--kube-node={node}",
        f"--host-root={env.text('HOST_ROOT', DEFAULT_HOST_ROOT)}",
        f"--networks-dir={NETWORKS_DIRECTORY}",
        f"--state-dir={_state_directory(env)}",
        f"--ipalloc-range={_range(env)}",
        *_optional("--ipalloc-init", _init(env, peers)),
        f"--conn-limit={env.number('CONN_LIMIT', DEFAULT_CONNECTION_LIMIT, 0, _CONNECTION_LIMIT_MAX)}",
        *_optional("--mtu", _mtu(env)),
        f"--expose-ip={_expose(env)}",
        *(["--expect-npc"] if env.switch("EXPECT_NPC") else []),
        *(["--no-masq-local"] if env.switch("NO_MASQ_LOCAL") else []),
        *(["--no-fastdp"] if env.text("WEAVE_NO_FASTDP") else []),
        *(["--keep-state"] if env.switch("WEAVE_KEEP_STATE", default=False) else []),
        *(["--log-level=debug"] if env.text("WEAVE_DEBUG") else []),
        *_listeners(env),
        *container_arguments,
        *(["--", *peers] if peers else []),
    ]
    remarks = [f"{name} has no effect: {why}" for name, why in _WITHOUT_MEANING.items() if env.text(name)]
    return Launch(tuple(arguments), tuple(remarks))


def _optional(flag: str, value: str) -> list[str]:
    return [f"{flag}={value}"] if value else []


def _peers(env: Environment) -> list[str]:
    peers = env.text("KUBE_PEERS").split()
    for peer in peers:
        if peer.startswith("-"):
            raise ConfigError(f"KUBE_PEERS: {peer!r} is no address; write them with blanks between them")
    return peers


def _range(env: Environment) -> str:
    text = env.text("IPALLOC_RANGE", DEFAULT_RANGE)
    try:
        return str(parse_subnet(text))
    except AddressError as error:
        raise ConfigError(f"IPALLOC_RANGE: {error}") from error


def _init(env: Environment, peers: list[str]) -> str:
    text = env.text("IPALLOC_INIT", f"consensus={len(peers)}" if peers else "")
    if text:
        try:
            parse_init_mode(text)
        except ConfigError as error:
            raise ConfigError(f"IPALLOC_INIT={text}: {error}") from error
    return text


def _mtu(env: Environment) -> str:
    text = env.text("WEAVE_MTU")
    return str(env.number("WEAVE_MTU", 0, MTU_MIN, MTU_MAX)) if text not in {"", "0"} else ""


def _state_directory(env: Environment) -> str:
    prefix = env.text("DB_PREFIX", DEFAULT_DB_PREFIX)
    if not prefix.startswith("/"):
        raise ConfigError(f"DB_PREFIX={prefix}: must be an absolute path, as in {DEFAULT_DB_PREFIX}")
    return prefix.rstrip("/") if prefix.endswith("/") and prefix != "/" else str(Path(prefix).parent)


def _expose(env: Environment) -> str:
    """Read what `weave expose` takes: nothing, net:default, [ip:]CIDR."""
    text = env.text("WEAVE_EXPOSE_IP")
    if text in {"", "net:default"}:
        return "auto"
    try:
        return str(Cidr.parse(text.removeprefix("ip:")))
    except AddressError as error:
        raise ConfigError(f"WEAVE_EXPOSE_IP={text}: {error}; or leave it out to have an address allocated") from error


def _listeners(env: Environment) -> list[str]:
    """Return who listens where. What would be two listeners at one address becomes the one that says more."""
    control = _listener(env, "WEAVE_HTTP_ADDR", "")
    status = _listener(env, "WEAVE_STATUS_ADDR", DEFAULT_STATUS_ADDRESS)
    metrics = _listener(env, "WEAVE_METRICS_ADDR", DEFAULT_METRICS_ADDRESS)
    taken: set[str] = set()
    flags = []
    for flag, address in (("--http-addr", control), ("--status-addr", status), ("--metrics-addr", metrics)):
        if address and address not in taken:
            flags.append(f"{flag}={address}")
            taken.add(address)
    return flags


def _listener(env: Environment, name: str, default: str) -> str:
    text = env.text(name, default)
    if text.startswith("/") or not text:
        return text  # a Unix socket, or none
    try:
        host, port = parse_listen_address(text)
        parse_address(host or "0.0.0.0")  # noqa: S104 - read, not listened at
    except (ConfigError, AddressError) as error:
        raise ConfigError(f"{name}: {error}") from error
    return f"{host or '0.0.0.0'}:{port}"  # noqa: S104 - what Go means by no host
