"""One call of the runtime: what the shim brought in, a `CniCall` out, or a CniError that says what is wrong.

Who asks is the *attachment*: container ID, interface name and network name together (CNI 1.1.0, section 3). Its ident
is what IPAM and the pod's interface are kept under:

    <container ID>/<interface>              in the network that is named `weave`, as our own configuration names it
    <container ID>/<interface>/<network>    in any other
    <container ID>/<interface>/<network>/<main interface>    in one that its pod asked for by annotation; it was made by
                                            the ADD of the main interface, and goes with it

The network is part of it because GC lists the valid attachments of *one* network: a node with two networks would
otherwise lose the addresses of each when the other is cleaned up. Weave's idents are bare container IDs, so the `/`
also tells ours from those, which GC must leave alone.

Strictness follows the verb. ADD and CHECK refuse what they do not understand. DEL does what it can with what it was
given, since an error would only make the runtime call it again with the same input.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Self

import msgspec

from weavenet.cni.codes import NEWEST_VERSION, Code, SpecVersion
from weavenet.cni.config import (
    DEFAULT_NETWORK,
    INTERFACE_NAME_MAX,
    IpamPluginKeys,
    NameKeys,
    NetPluginKeys,
    NetworkConfig,
    decode_keys,
    interface_name_problem,
    is_name,
    name_rule,
    parse_config,
    parse_network_name,
    parse_version,
)
from weavenet.cni.result import PreviousResult, parse_previous
from weavenet.errors import CniError

VALID_ATTACHMENTS_MAX = 10_000  # pods per node are in the hundreds; the 1 MiB of stdin holds about this many
# The kernel keeps at most 255 bytes in a device's alias (IFALIASZ), and the ident goes there.
CONTAINER_ID_MAX = 128


class Plugin(Enum):
    """The names that we are installed under."""

    NET = "weave-net"
    IPAM = "weave-ipam"


class Attachment(msgspec.Struct, frozen=True, order=True):
    """One interface of one container in one network."""

    container_id: str
    interface: str
    network: str = DEFAULT_NETWORK
    main: str = ""  # interface by whose ADD this one was made, blank for its own

    @property
    def ident(self) -> str:
        """What its addresses are held under."""
        if self.main:
            return f"{self.container_id}/{self.interface}/{self.network}/{self.main}"
        ident = f"{self.container_id}/{self.interface}"
        return ident if self.network == DEFAULT_NETWORK else f"{ident}/{self.network}"

    @classmethod
    def from_ident(cls, ident: str) -> Self | None:
        """Read an ident back; None if it is not one of ours but a bare container ID or `weave:expose`."""
        match ident.split("/"):
            case [container_id, interface]:
                return cls(container_id, interface)
            case [container_id, interface, network]:
                return cls(container_id, interface, network)
            case [container_id, interface, network, main]:
                return cls(container_id, interface, network, main)
            case _:
                return None


class Sandbox(msgspec.Struct, frozen=True):
    """The pod's network namespace as the shim found it: an open descriptor, or why there is none.

    The descriptor belongs to the driver, which closes it when the call is answered.
    """

    path: str
    descriptor: int | None
    problem: str = ""
    is_hosts_own: bool = False


class Pod(msgspec.Struct, frozen=True):
    """Which pod the container is of, from CNI_ARGS; blank outside Kubernetes."""

    namespace: str = ""
    name: str = ""
    uid: str = ""  # blank where the runtime does not say

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.name else "a container outside Kubernetes"


# --- the calls --------------------------------------------------------------------------------------------------------


class Add(msgspec.Struct, frozen=True):
    """Connect a container. `previous` is what earlier plugins of the chain made."""

    plugin: Plugin
    version: SpecVersion
    attachment: Attachment
    sandbox: Sandbox
    config: NetworkConfig
    previous: PreviousResult | None
    pod: Pod


class Del(msgspec.Struct, frozen=True):
    """Disconnect a container. The configuration is not needed for it, and may have been unreadable."""

    plugin: Plugin
    version: SpecVersion
    attachment: Attachment
    sandbox: Sandbox
    complaint: str  # what was wrong with the configuration, for the log; blank for nothing


class Check(msgspec.Struct, frozen=True):
    """Say whether all is still as ADD left it. `previous` is the whole chain's result."""

    plugin: Plugin
    version: SpecVersion
    attachment: Attachment
    sandbox: Sandbox
    config: NetworkConfig
    previous: PreviousResult


class Status(msgspec.Struct, frozen=True):
    """Say whether an ADD would succeed now."""

    plugin: Plugin
    version: SpecVersion
    config: NetworkConfig


class Gc(msgspec.Struct, frozen=True):
    """Free what attachments of the network hold that are not in the list."""

    plugin: Plugin
    version: SpecVersion
    network: str
    valid: frozenset[Attachment]


class Version(msgspec.Struct, frozen=True):
    """Say which versions of the specification are served. The shim answers this itself."""


CniCall = Add | Del | Check | Status | Gc | Version


def parse_call(name: str, environment: Mapping[str, str], stdin: bytes, sandbox: Sandbox) -> CniCall:
    """Read a call from what the shim brought: the name it was called by, CNI_* variables, stdin, the namespace.

    Raises CniError; `version_for_error` says in which version to write it.
    """
    command = environment.get("CNI_COMMAND", "")
    match command:
        case "":
            raise CniError(
                Code.INVALID_ENVIRONMENT, "CNI_COMMAND is not set", "A container runtime sets it when it calls us."
            )
        case "VERSION":
            return Version()
        case "DEL":
            return _parse_del(_parse_plugin(name), environment, stdin, sandbox)
        case "ADD" | "CHECK":
            return _parse_for_attachment(command, _parse_plugin(name), environment, stdin, sandbox)
        case "STATUS" | "GC":
            return _parse_for_network(command, _parse_plugin(name), stdin)
        case _:
            raise CniError(Code.INVALID_ENVIRONMENT, f"unknown CNI_COMMAND: {command[:64]}")


def version_for_error(stdin: bytes) -> SpecVersion:
    """Return the version that the configuration asks for, or the newest where it cannot be read."""
    try:
        return parse_version(decode_keys(stdin, NameKeys))
    except CniError:
        return NEWEST_VERSION


def _parse_plugin(name: str) -> Plugin:
    try:
        return Plugin(name)
    except ValueError:
        names = " and ".join(plugin.value for plugin in Plugin)
        details = f"The executable serves the names {names}."
        raise CniError(Code.INVALID_ENVIRONMENT, f"unknown plugin {name[:64]!r}", details) from None


def _parse_for_attachment(
    command: str, plugin: Plugin, environment: Mapping[str, str], stdin: bytes, sandbox: Sandbox
) -> Add | Check:
    keys = _decode_for(plugin, stdin)
    version = parse_version(keys)
    _require_version(version, SpecVersion.V0_4_0 if command == "CHECK" else SpecVersion.V0_1_0, command)
    config = parse_config(keys)
    attachment = _parse_attachment(environment, config.network)
    if not sandbox.path:
        raise CniError(
            Code.INVALID_ENVIRONMENT, "CNI_NETNS is not set", f"{command} needs the path of the container's namespace."
        )
    previous = _parse_previous(keys, version)
    if command == "ADD":
        pod = _parse_pod(environment.get("CNI_ARGS", ""))
        return Add(plugin, version, attachment, sandbox, config, previous, pod)
    if previous is None:
        raise CniError(
            Code.INVALID_CONFIG,
            "prevResult is missing",
            "CHECK compares with it; the runtime has to keep what ADD gave.",
        )
    return Check(plugin, version, attachment, sandbox, config, previous)


def _parse_for_network(command: str, plugin: Plugin, stdin: bytes) -> Status | Gc:
    keys = _decode_for(plugin, stdin)
    version = parse_version(keys)
    _require_version(version, SpecVersion.V1_1_0, command)
    config = parse_config(keys)
    if command == "STATUS":
        return Status(plugin, version, config)
    return Gc(plugin, version, config.network, _parse_valid_attachments(keys, config.network))


def _parse_del(plugin: Plugin, environment: Mapping[str, str], stdin: bytes, sandbox: Sandbox) -> Del:
    network, version, complaint = DEFAULT_NETWORK, NEWEST_VERSION, ""
    try:
        keys = decode_keys(stdin, NameKeys)
        network = parse_network_name(keys.name)
        version = parse_version(keys)
    except CniError as error:
        complaint = str(error)
    return Del(plugin, version, _parse_attachment(environment, network), sandbox, complaint)


def _decode_for(plugin: Plugin, stdin: bytes) -> IpamPluginKeys:
    return decode_keys(stdin, NetPluginKeys if plugin is Plugin.NET else IpamPluginKeys)


def _parse_previous(keys: IpamPluginKeys, version: SpecVersion) -> PreviousResult | None:
    raw = bytes(keys.prevResult)
    # Chains came with 0.3.0; an earlier `prevResult` is nobody's.
    return parse_previous(raw) if raw not in {b"", b"null"} and version.at_least(SpecVersion.V0_3_0) else None


# --- environment ------------------------------------------------------------------------------------------------------


def _parse_attachment(environment: Mapping[str, str], network: str) -> Attachment:
    container_id = environment.get("CNI_CONTAINERID", "")
    interface = environment.get("CNI_IFNAME", "")
    if not container_id:
        raise CniError(Code.INVALID_ENVIRONMENT, "CNI_CONTAINERID is not set")
    if not is_name(container_id, CONTAINER_ID_MAX):
        what = f"invalid CNI_CONTAINERID: {container_id[:CONTAINER_ID_MAX]!r}"
        raise CniError(Code.INVALID_ENVIRONMENT, what, name_rule(CONTAINER_ID_MAX))
    problem = interface_name_problem(interface)
    if problem:
        raise CniError(
            Code.INVALID_ENVIRONMENT,
            f"invalid CNI_IFNAME: {interface[: INTERFACE_NAME_MAX + 1]!r}",
            f"An interface name {problem}.",
        )
    return Attachment(container_id, interface, network)


def _parse_pod(text: str) -> Pod:
    arguments: dict[str, str] = {}
    for pair in filter(None, text.split(";")):
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise CniError(Code.INVALID_ENVIRONMENT, f"invalid CNI_ARGS: {pair[:80]!r} is not NAME=value")
        arguments[key] = value
    keys = ("K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_UID")
    return Pod(*(arguments.get(key, "") for key in keys))


def _require_version(version: SpecVersion, since: SpecVersion, command: str) -> None:
    if not version.at_least(since):
        details = f'config is "{version.value}", {command} exists since "{since.value}"'
        raise CniError(Code.INCOMPATIBLE_VERSION, f"config version does not allow {command}", details)


def _parse_valid_attachments(keys: IpamPluginKeys, network: str) -> frozenset[Attachment]:
    # A missing list is not an empty one: taking it for that would take every running pod's address away. `null` is what
    # libcni writes for a list that is there and empty.
    if isinstance(keys.valid_attachments, msgspec.UnsetType):
        raise CniError(
            Code.INVALID_CONFIG, "cni.dev/valid-attachments is missing", "GC frees everything that is not listed there."
        )
    valid = keys.valid_attachments or []
    if len(valid) > VALID_ATTACHMENTS_MAX:
        raise CniError(
            Code.INVALID_CONFIG, f"{len(valid)} valid attachments", f"At most {VALID_ATTACHMENTS_MAX} are served."
        )
    return frozenset(Attachment(written.containerID, written.ifname, network) for written in valid)
