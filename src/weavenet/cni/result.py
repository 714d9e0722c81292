"""What the runtime reads from stdout: results, errors and the answer to VERSION, in the version of its request.

There is one shape inside, that of the newest version. Older versions are made from it at the edge, losing what they
cannot say (CNI specifications 0.2.0, 0.4.0 and 1.1.0, sections "Result"):

    up to 0.2.0   `ip4: {ip, gateway, routes}`, `dns`
    0.3.0-0.4.0   `interfaces`, `ips: [{version: "4", interface, address, gateway}]`, `routes`, `dns`
    1.0.0         without `version`
    1.1.0         with the interfaces' `mtu`

Weave's own results carried neither `cniVersion` nor `interfaces`, which broke with CNI library 1.1.0; ours have both.
`dns` is always there, if only as `{}`: up to 0.4.0 readers expect it.

A *previous result* comes back to us in the configuration (`prevResult`): of the plugin before us in a chain for ADD, of
the whole chain for CHECK. Other plugins wrote into it, so addresses in it stay text until one of ours is looked for.
"""

import msgspec

from weavenet.address import Address, Cidr, format_address
from weavenet.cni.codes import NEWEST_VERSION, Code, SpecVersion
from weavenet.errors import AddressError, CniError

_INDENT = 4  # as Weave and the Go plugins print it


class Interface(msgspec.Struct, frozen=True):
    """A network device of the attachment; `sandbox` is the CNI_NETNS it is in, blank for the host's end."""

    name: str
    mac: str
    mtu_bytes: int
    sandbox: str = ""


class AssignedAddress(msgspec.Struct, frozen=True):
    """An address; `interface` is the index into the result's interfaces, None from an IPAM plugin."""

    address: Cidr
    gateway: Address | None = None
    interface: int | None = None


class Route(msgspec.Struct, frozen=True):
    """A route in the pod; without a gateway it is on-link."""

    destination: Cidr
    gateway: Address | None = None


class Dns(msgspec.Struct, frozen=True, omit_defaults=True):
    """Resolver settings, copied from the configuration; we have no opinion about them."""

    nameservers: tuple[str, ...] | None = None
    domain: str | None = None
    search: tuple[str, ...] | None = None
    options: tuple[str, ...] | None = None


NO_DNS = Dns()


class Result(msgspec.Struct, frozen=True):
    """What an ADD made."""

    addresses: tuple[AssignedAddress, ...]
    interfaces: tuple[Interface, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: Dns = NO_DNS


# --- the JSON of each version -----------------------------------------------------------------------------------------


class _Interface(msgspec.Struct, omit_defaults=True):
    name: str = ""
    mac: str | None = None
    mtu: int | None = None
    sandbox: str | None = None
    socketPath: str | None = None  # noqa: N815 - the key's spelling
    pciID: str | None = None  # noqa: N815


class _Ip(msgspec.Struct, omit_defaults=True):
    version: str | None = None
    interface: int | None = None
    address: str = ""
    gateway: str | None = None


class _Route(msgspec.Struct, omit_defaults=True):
    dst: str = ""
    gw: str | None = None
    mtu: int | None = None
    advmss: int | None = None
    priority: int | None = None
    table: int | None = None
    scope: int | None = None


class _Result(msgspec.Struct, omit_defaults=True):
    """From 0.3.0 on; the union of what the versions know."""

    cniVersion: str = ""  # noqa: N815
    interfaces: list[_Interface] | None = None
    ips: list[_Ip] | None = None
    routes: list[_Route] | None = None
    dns: Dns | None = None


class _Ip4(msgspec.Struct, omit_defaults=True):
    ip: str
    gateway: str | None = None
    routes: list[_Route] | None = None


class _OldResult(msgspec.Struct):
    """Up to 0.2.0."""

    cniVersion: str  # noqa: N815
    ip4: _Ip4
    dns: Dns


class _Error(msgspec.Struct, omit_defaults=True):
    cniVersion: str  # noqa: N815
    code: int
    msg: str
    details: str = ""


class _Versions(msgspec.Struct):
    cniVersion: str  # noqa: N815
    supportedVersions: list[str]  # noqa: N815


def encode_result(result: Result, version: SpecVersion, previous: "PreviousResult | None" = None) -> bytes:
    """Write a result in the version of the request, behind what earlier plugins of the chain have made."""
    if not version.at_least(SpecVersion.V0_3_0):
        return _encode(_old_result(result, version))
    made = _Result(
        cniVersion=version.value,
        interfaces=[_encode_interface(interface, version) for interface in result.interfaces],
        ips=[_encode_address(assigned, version) for assigned in result.addresses],
        routes=[_encode_route(route) for route in result.routes],
        dns=result.dns,
    )
    if previous is not None:
        made = previous.followed_by(made)
    # An empty list is left out, as Go's omitempty does.
    made.interfaces, made.ips, made.routes = made.interfaces or None, made.ips or None, made.routes or None
    return _encode(made)


def encode_error(error: CniError, version: SpecVersion = NEWEST_VERSION) -> bytes:
    """Write an error in the version of the request, or in ours if that was not to be had."""
    return _encode(_Error(version.value, int(error.code), error.message, error.details))


def encode_versions() -> bytes:
    """Write the answer to VERSION. The shim has the same text, so that it need not ask; a test compares the two."""
    return msgspec.json.encode(_Versions(NEWEST_VERSION.value, [version.value for version in SpecVersion]))


def _encode(message: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(message), indent=_INDENT)


def _encode_interface(interface: Interface, version: SpecVersion) -> _Interface:
    return _Interface(
        name=interface.name,
        mac=interface.mac,
        mtu=interface.mtu_bytes if version.at_least(SpecVersion.V1_1_0) else None,
        sandbox=interface.sandbox or None,
    )


def _encode_address(assigned: AssignedAddress, version: SpecVersion) -> _Ip:
    return _Ip(
        version=None if version.at_least(SpecVersion.V1_0_0) else "4",
        interface=assigned.interface,
        address=str(assigned.address),
        gateway=_optional_address(assigned.gateway),
    )


def _encode_route(route: Route) -> _Route:
    return _Route(dst=str(route.destination), gw=_optional_address(route.gateway))


def _optional_address(address: Address | None) -> str | None:
    return None if address is None else format_address(address)


def _old_result(result: Result, version: SpecVersion) -> _OldResult:
    first = result.addresses[0]
    ip4 = _Ip4(str(first.address), _optional_address(first.gateway), [_encode_route(r) for r in result.routes] or None)
    return _OldResult(version.value, ip4, result.dns)


# --- previous results -------------------------------------------------------------------------------------------------


class PreviousResult:
    """A `prevResult`, read to be asked about, and kept to be passed on."""

    def __init__(self, result: _Result) -> None:
        """Use `parse_previous`."""
        self._result = result

    def followed_by(self, ours: _Result) -> _Result:
        """Return what was there with ours behind it: in a chain nothing of an earlier plugin may get lost."""
        theirs = self._result
        shift = len(theirs.interfaces or [])
        for ip in ours.ips or []:
            ip.interface = None if ip.interface is None else ip.interface + shift
        return _Result(
            cniVersion=ours.cniVersion,
            interfaces=[*(theirs.interfaces or []), *(ours.interfaces or [])],
            ips=[*(theirs.ips or []), *(ours.ips or [])],
            routes=[*(theirs.routes or []), *(ours.routes or [])],
            dns=ours.dns if ours.dns != NO_DNS else theirs.dns or NO_DNS,
        )

    def mac_of(self, name: str, sandbox: str) -> str | None:
        """Return the MAC that interface should have, blank if unsaid, None if the result does not list it."""
        index = self._index_of(name, sandbox)
        return None if index is None else (self._result.interfaces or [])[index].mac or ""

    def addresses_of(self, name: str, sandbox: str) -> tuple[Cidr, ...]:
        """Return the IPv4 addresses that interface should have; those that name no interface count as its own."""
        index = self._index_of(name, sandbox)
        wanted = [ip.address for ip in self._result.ips or [] if ip.interface is None or ip.interface == index]
        return tuple(cidr for cidr in map(_ipv4_or_none, wanted) if cidr is not None)

    def lists_route(self, destination: Cidr) -> bool:
        """Say whether a route to that destination is in the result."""
        return any(_ipv4_or_none(route.dst) == destination for route in self._result.routes or [])

    def _index_of(self, name: str, sandbox: str) -> int | None:
        for index, interface in enumerate(self._result.interfaces or []):
            if interface.name == name and (interface.sandbox or "") == sandbox:
                return index
        return None


def parse_previous(raw: bytes) -> PreviousResult:
    """Read a `prevResult` of 0.3.0 or newer. Raises CniError for what is not one."""
    try:
        return PreviousResult(msgspec.json.decode(raw, type=_Result))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CniError(Code.DECODING_FAILURE, f"cannot decode prevResult: {error}") from error


def _ipv4_or_none(text: str) -> Cidr | None:
    try:
        return Cidr.parse(text)
    except AddressError:
        return None
