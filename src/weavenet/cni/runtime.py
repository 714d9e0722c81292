"""`runtimeConfig`: what the runtime itself asks of a plugin that says it is capable of it, by CNI's conventions.

    portMappings    [{hostPort, containerPort, protocol, hostIP}]
    bandwidth       {ingressRate, ingressBurst, egressRate, egressBurst}     bits per second, bits; 0 is no limit
    ips             ["10.32.7.7"]      one IPv4 address, with a prefix length or without, which the container must get

containerd writes `HostPort` and `IngressRate`, from Go structs without tags, and Go's decoder takes that for the same
(encoding/json, "preferring exact matches but also accepting case-insensitive matches"). So the case of their letters
does not count here either.

With these there is no need for the plugins `portmap` and `bandwidth` behind ours. Source: CNI's CONVENTIONS.md,
"Dynamic Plugin specific Fields"; what is refused follows those two plugins.
"""

from typing import TypeVar

import msgspec

from weavenet.address import Address, Cidr, parse_address
from weavenet.cni.codes import Code
from weavenet.errors import AddressError, CniError

PORT_MAX = 65_535
PORT_MAPPINGS_MAX = 1024
PROTOCOLS = ("tcp", "udp", "sctp")
# Together they keep what may wait in the kernel's queue, 25 ms and the burst, within its 32 bits.
BITS_PER_S_MAX, BURST_BITS_MAX = 800_000_000_000, 8 << 30


class HostPort(msgspec.Struct, frozen=True):
    """A port of the host that leads to the container; without an address, at all of the host's."""

    protocol: str  # of PROTOCOLS
    host_port: int
    container_port: int
    host_address: Address | None = None


class Rate(msgspec.Struct, frozen=True):
    """How fast a container may go: for long, and how much at once."""

    bits_per_s: int
    burst_bits: int


class Bandwidth(msgspec.Struct, frozen=True):
    """The limits of a container; `ingress` is towards it. None is no limit."""

    ingress: Rate | None = None
    egress: Rate | None = None


NO_LIMITS = Bandwidth()

_T = TypeVar("_T", bound=msgspec.Struct)


class WrittenPortMapping(msgspec.Struct):
    """As on stdin."""

    hostPort: int  # noqa: N815 - the key's spelling
    containerPort: int  # noqa: N815
    protocol: str = "tcp"
    hostIP: str | None = None  # noqa: N815


class WrittenBandwidth(msgspec.Struct):
    """As on stdin."""

    ingressRate: int | None = None  # noqa: N815
    ingressBurst: int | None = None  # noqa: N815
    egressRate: int | None = None  # noqa: N815
    egressBurst: int | None = None  # noqa: N815


_Object = dict[str, int | str | None]


class WrittenRuntimeConfig(msgspec.Struct):
    """As on stdin, but for the spelling of the keys inside."""

    portMappings: list[_Object] | None = None  # noqa: N815
    bandwidth: _Object | None = None
    ips: list[str] | None = None


def parse_wanted_address(written: WrittenRuntimeConfig | None) -> Address | None:
    """Return the address that the container must get; None for any. Raises CniError."""
    texts = (written.ips if written is not None else None) or []
    if not texts:
        return None
    if len(texts) > 1:
        raise _refused(f"{len(texts)} ips", "An interface gets one address here; ask for one.")
    try:
        return Cidr.parse(texts[0]).address if "/" in texts[0] else parse_address(texts[0])
    except AddressError as error:
        raise _refused(f"invalid ips {texts[0][:64]!r}", error.reason) from error


def parse_port_mappings(written: WrittenRuntimeConfig | None) -> tuple[HostPort, ...]:
    """Check the host ports. Raises CniError."""
    mappings = (written.portMappings if written is not None else None) or []
    if len(mappings) > PORT_MAPPINGS_MAX:
        raise CniError(Code.INVALID_CONFIG, f"{len(mappings)} portMappings", f"At most {PORT_MAPPINGS_MAX} are served.")
    written_mappings = [_read(mapping, WrittenPortMapping, "portMappings") for mapping in mappings]
    return tuple(dict.fromkeys(_parse_port_mapping(mapping) for mapping in written_mappings))


def parse_bandwidth(written: WrittenRuntimeConfig | None) -> Bandwidth:
    """Check the limits. Raises CniError."""
    given = written.bandwidth if written is not None else None
    if given is None:
        return NO_LIMITS
    limits = _read(given, WrittenBandwidth, "bandwidth")
    return Bandwidth(
        ingress=_parse_rate("ingress", limits.ingressRate or 0, limits.ingressBurst or 0),
        egress=_parse_rate("egress", limits.egressRate or 0, limits.egressBurst or 0),
    )


def _read(given: _Object, kind: type[_T], what: str) -> _T:
    spellings = {name.lower(): name for name in kind.__struct_fields__}
    exact = {spellings.get(key.lower(), key): value for key, value in given.items() if value is not None}
    try:
        return msgspec.convert(exact, kind)
    except msgspec.ValidationError as error:
        raise _refused(f"invalid network config: {error}", f"That is in runtimeConfig.{what}.") from error


def _parse_port_mapping(written: WrittenPortMapping) -> HostPort:
    if not 0 < written.hostPort <= PORT_MAX:
        raise _refused(f"invalid host port number: {written.hostPort}", f"A port is from 1 to {PORT_MAX}.")
    if not 0 < written.containerPort <= PORT_MAX:
        raise _refused(f"invalid container port number: {written.containerPort}", f"A port is from 1 to {PORT_MAX}.")
    protocol = written.protocol.lower()
    if protocol not in PROTOCOLS:
        raise _refused(f"invalid protocol {written.protocol[:32]!r}", f"Served are {', '.join(PROTOCOLS)}.")
    return HostPort(protocol, written.hostPort, written.containerPort, _parse_host_address(written.hostIP or ""))


def _parse_host_address(text: str) -> Address | None:
    if not text:
        return None
    try:
        return parse_address(text) or None  # 0.0.0.0 is any address
    except AddressError as error:
        raise _refused(f"invalid hostIP {text[:64]!r}", error.reason) from error


def _parse_rate(direction: str, bits_per_s: int, burst_bits: int) -> Rate | None:
    if bits_per_s == 0 and burst_bits == 0:
        return None
    keys = f"{direction}Rate {bits_per_s}, {direction}Burst {burst_bits}"
    if bits_per_s == 0 or burst_bits == 0:
        raise _refused(keys, "Give both, or neither.")
    if not (8 <= bits_per_s <= BITS_PER_S_MAX and 8 <= burst_bits <= BURST_BITS_MAX):
        limits = f"A rate is from 8 to {BITS_PER_S_MAX} bits per second, a burst from 8 to {BURST_BITS_MAX} bits."
        raise _refused(keys, limits)
    return Rate(bits_per_s, burst_bits)


def _refused(what: str, details: str) -> CniError:
    return CniError(Code.INVALID_CONFIG, f"invalid runtimeConfig: {what}", details)
