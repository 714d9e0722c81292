"""The network configuration, read and checked: what stands on stdin, but for the verb's own keys.

Keys are Weave's: bridge, mtu, hairpinMode, isGateway and ipMasq (both must be false), dns, ipam.{type, subnet, gateway,
routes}, and of runtimeConfig what runtime.py knows. Unknown ones are ignored, as the specification asks for the sake of
capabilities and conventions to come. A `null` is a key that is not there, as for the Go plugins.

When we are called as the IPAM plugin of another main plugin, all but the name and the `ipam` section means something to
that plugin, and is not looked at.
"""

import re
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from weavenet.address import Address, Cidr, parse_address
from weavenet.cni.codes import Code, SpecVersion
from weavenet.cni.host_local import HOST_LOCAL, LocalRange, WrittenRange, parse_local_range
from weavenet.cni.result import NO_DNS, Dns, Route
from weavenet.cni.runtime import (
    NO_LIMITS,
    Bandwidth,
    HostPort,
    WrittenRuntimeConfig,
    parse_bandwidth,
    parse_port_mappings,
    parse_wanted_address,
)
from weavenet.errors import AddressError, CniError

DEFAULT_NETWORK = "weave"
DEFAULT_BRIDGE = "weave"
OUR_IPAM = "weave-ipam"
ROUTES_MAX = 256
MTU_MIN_BYTES, MTU_MAX_BYTES = 68, 65_535  # RFC 791; the kernel's ETH_MAX_MTU
NETWORK_NAME_MAX = 80
INTERFACE_NAME_MAX = 15

# CNI 1.1.0, sections 1 and 3, has one rule for network names and container IDs.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]*", re.ASCII)


class IpamConfig(msgspec.Struct, frozen=True):
    """The `ipam` section; without a subnet the node's default one is used.

    With a local range addresses are not of the mesh's IPAM, but this node's own.
    """

    subnet: Cidr | None = None
    gateway: Address | None = None
    routes: tuple[Route, ...] = ()
    local: LocalRange | None = None
    wanted: Address | None = None  # the very address to give, asked for by whoever calls


class NetworkConfig(msgspec.Struct, frozen=True):
    """What the network configuration says, checked. An MTU of None is the bridge's."""

    network: str = DEFAULT_NETWORK
    bridge: str = DEFAULT_BRIDGE
    mtu_bytes: int | None = None
    hairpin: bool | None = None  # None: as is usual for the bridge
    ipam: IpamConfig = IpamConfig()
    dns: Dns = NO_DNS
    ports: tuple[HostPort, ...] = ()
    bandwidth: Bandwidth = NO_LIMITS


class _WrittenRoute(msgspec.Struct):
    dst: str
    gw: str | None = None


class _WrittenIpam(WrittenRange):
    type: str | None = None
    ranges: list[list[WrittenRange]] | None = None
    routes: list[_WrittenRoute] | None = None


class _WrittenAttachment(msgspec.Struct):
    containerID: str  # noqa: N815 - the key's spelling
    ifname: str


class NameKeys(msgspec.Struct):
    """What even DEL needs to read."""

    cniVersion: str | None = None  # noqa: N815
    name: str | None = None


class IpamPluginKeys(NameKeys):
    """What is ours in a main plugin's configuration when we are its IPAM plugin: the rest means something to *it*."""

    ipam: _WrittenIpam | None = None
    prevResult: msgspec.Raw = msgspec.Raw()  # noqa: N815
    valid_attachments: list[_WrittenAttachment] | msgspec.UnsetType | None = msgspec.field(
        default=msgspec.UNSET, name="cni.dev/valid-attachments"
    )
    runtimeConfig: WrittenRuntimeConfig | None = None  # noqa: N815


class NetPluginKeys(IpamPluginKeys):
    """What is ours when we are the main plugin."""

    bridge: str | None = None
    mtu: int | None = None
    hairpinMode: bool | None = None  # noqa: N815
    isGateway: bool | None = None  # noqa: N815
    ipMasq: bool | None = None  # noqa: N815
    dns: Dns | None = None


_Keys = TypeVar("_Keys", bound=NameKeys)


def decode_keys(stdin: bytes, keys: type[_Keys]) -> _Keys:
    """Read the JSON. Raises CniError: 6 for what is not JSON, 7 for a value of the wrong type."""
    try:
        return msgspec.json.decode(stdin, type=keys)
    except msgspec.ValidationError as error:
        raise CniError(Code.INVALID_CONFIG, f"invalid network config: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CniError(Code.DECODING_FAILURE, f"decoding network config: {error}") from error


def parse_version(keys: NameKeys) -> SpecVersion:
    """Return the version that the configuration is written in. Raises CniError for one that we do not know."""
    text = keys.cniVersion or SpecVersion.V0_1_0.value
    try:
        return SpecVersion(text)
    except ValueError:
        served = " ".join(f'"{version.value}"' for version in SpecVersion)
        details = f'config is "{text[:32]}", plugin supports [{served}]'
        raise CniError(Code.INCOMPATIBLE_VERSION, "incompatible CNI versions", details) from None


def parse_network_name(name: str | None) -> str:
    """Check a network's name. Raises CniError."""
    if not name:
        raise CniError(Code.INVALID_CONFIG, "missing network name", 'The network configuration needs a "name".')
    if not is_name(name, NETWORK_NAME_MAX):
        what = f"invalid network name {name[:NETWORK_NAME_MAX]!r}"
        raise CniError(Code.INVALID_CONFIG, what, name_rule(NETWORK_NAME_MAX))
    return name


def parse_config(keys: IpamPluginKeys) -> NetworkConfig:
    """Check everything that ADD uses. Raises CniError, with Weave's texts where it has one."""
    network = parse_network_name(keys.name)
    written = keys.ipam or _WrittenIpam()
    wanted = parse_wanted_address(keys.runtimeConfig)
    if not isinstance(keys, NetPluginKeys):
        return NetworkConfig(network, ipam=replace(_parse_ipam(written), wanted=wanted))
    if keys.isGateway:
        raise CniError(Code.UNSUPPORTED_FIELD, "Gateway functionality not supported", "isGateway is true; remove it.")
    if keys.ipMasq:
        raise CniError(
            Code.UNSUPPORTED_FIELD, "IP Masquerading functionality not supported", "ipMasq is true; remove it."
        )
    if keys.ipam is not None and keys.ipam.type not in {None, "", OUR_IPAM, HOST_LOCAL}:
        details = (
            f"The agent cannot run the host's IPAM plugins. Leave ipam.type out, or say {OUR_IPAM!r} or {HOST_LOCAL!r}."
        )
        raise CniError(Code.INVALID_CONFIG, f"unsupported ipam.type {keys.ipam.type!r}", details)
    ipam = _parse_host_local(written) if written.type == HOST_LOCAL else _parse_ipam(written)
    bridge = keys.bridge or DEFAULT_BRIDGE
    problem = interface_name_problem(bridge)
    if problem:
        raise CniError(Code.INVALID_CONFIG, f"invalid bridge {bridge[:32]!r}", f"An interface name {problem}.")
    if keys.mtu and not MTU_MIN_BYTES <= keys.mtu <= MTU_MAX_BYTES:
        details = f"An MTU is from {MTU_MIN_BYTES} to {MTU_MAX_BYTES}; 0, or none, is the bridge's."
        raise CniError(Code.INVALID_CONFIG, f"invalid mtu {keys.mtu}", details)
    return NetworkConfig(
        network,
        bridge,
        keys.mtu or None,
        keys.hairpinMode,
        replace(ipam, wanted=wanted),
        keys.dns or NO_DNS,
        parse_port_mappings(keys.runtimeConfig),
        parse_bandwidth(keys.runtimeConfig),
    )


def _parse_ipam(written: _WrittenIpam) -> IpamConfig:
    try:
        subnet = Cidr.parse(written.subnet).network if written.subnet else None
    except AddressError as error:
        what = "unable to allocate IP address: subnet given in config, but not parseable: invalid CIDR address"
        raise CniError(Code.INVALID_CONFIG, f"{what}: {error.text}", error.reason) from error
    try:
        gateway = parse_address(written.gateway) if written.gateway else None
        return IpamConfig(subnet, gateway, _parse_routes(written))
    except AddressError as error:
        raise CniError(Code.INVALID_CONFIG, f"invalid network config: ipam.gateway or ipam.routes: {error}") from error


def _parse_host_local(written: _WrittenIpam) -> IpamConfig:
    local = parse_local_range(written, written.ranges)
    try:
        return IpamConfig(local.subnet, local.gateway, _parse_routes(written), local)
    except AddressError as error:
        raise CniError(Code.INVALID_CONFIG, f"invalid network config: ipam.routes: {error}") from error


def _parse_routes(written: _WrittenIpam) -> tuple[Route, ...]:
    if written.routes is not None and len(written.routes) > ROUTES_MAX:
        raise CniError(Code.INVALID_CONFIG, f"{len(written.routes)} ipam.routes", f"At most {ROUTES_MAX} are served.")
    return tuple(_parse_route(route) for route in written.routes or [])


def _parse_route(written: _WrittenRoute) -> Route:
    return Route(Cidr.parse(written.dst).network, parse_address(written.gw) if written.gw else None)


def is_name(text: str, length_max: int) -> bool:
    """Say whether a text may name a network or a container: a letter or digit, then those and `_`, `.`, `-`."""
    return len(text) <= length_max and _NAME.fullmatch(text) is not None


def name_rule(length_max: int) -> str:
    """Return the rule of `is_name` as a sentence for the user."""
    return f"It starts with a letter or digit, goes on with those and _ . - and has at most {length_max} characters."


def interface_name_problem(name: str) -> str:
    """Return what Linux has against that name (dev_valid_name in net/core/dev.c), blank for nothing."""
    if not name:
        return "must not be empty"
    if len(name.encode(errors="replace")) > INTERFACE_NAME_MAX:
        return f"has at most {INTERFACE_NAME_MAX} bytes"
    if name in {".", ".."}:
        return "must not be . or .."
    # Linux takes a % for a pattern, eth%d, and would choose another name than the one asked for.
    if any(character in "/:%" or character.isspace() or not character.isprintable() for character in name):
        return "has no /, :, %, white space or control characters"
    return ""
