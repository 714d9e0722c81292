"""What can be asked of a manifest: the parameters of Weave's manifest service, checked once, into types that are right.

The command's options become the same pairs that a query has, so that both doors refuse the same things in the same
words. Parameters are Weave's (docs/protocol/kubernetes.md, 8.1); `keep-state` is ours.

Which registry the image comes from is not among them. A link to a service that people trust must not be able to make
them run somebody else's image as root on every node; only who runs the service, or the command, chooses that.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from weavenet.address import Cidr, parse_address, parse_subnet
from weavenet.errors import AddressError, ManifestError
from weavenet.manifest.kubernetes_version import Asked, parse_kubernetes_version

ITEMS_MAX = 256  # of one list, and of variables
VALUE_LENGTH_MAX = 4096
PORT_MAX = 65535
_SHOWN = 60

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)  # the OCI distribution specification, "tag"
_REPOSITORY = re.compile(r"[a-zA-Z0-9.-]+(:\d{1,5})?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*(@sha256:[0-9a-f]{64})?", re.ASCII)
_SUBDOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*", re.ASCII)  # RFC 1123
_NAME_LENGTH_MAX = 253
_SELINUX_NAMES = ("level", "role", "type", "user")
_SELINUX_VALUE = re.compile(r"[\w.:,-]{1,256}", re.ASCII)
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False, "": False}

# Set by the manifest itself, each for a reason that a user's value would defeat.
_OURS = {
    "HOSTNAME": "it is the node's name",
    "INIT_CONTAINER": "it says that the init container has run",
    "KUBE_PEERS": "use known-peers=A,B",
    "WEAVE_KEEP_STATE": "use keep-state=true",
    "WEAVE_PASSWORD": "it would be readable in the DaemonSet, and in the log of whoever serves this; "
    "use password-secret=NAME",
}
_NUMBERS = {"WEAVE_MTU": 65_485, "CONN_LIMIT": 1_000_000}
_SWITCHES = {"EXPECT_NPC": ("0", "1"), "NO_MASQ_LOCAL": ("0", "1"), "HAIRPIN_MODE": ("true", "false")}
_LISTENERS = ("WEAVE_HTTP_ADDR", "WEAVE_STATUS_ADDR", "WEAVE_METRICS_ADDR")


@dataclass(frozen=True, slots=True)
class ManifestOptions:
    """One manifest, as asked for."""

    kubernetes: Asked
    image: str
    environment: tuple[tuple[str, str], ...] = ()
    password_secret: str = ""
    network_policy: bool = True
    known_peers: tuple[str, ...] = ()
    trusted_subnets: tuple[Cidr, ...] = ()
    selinux: tuple[tuple[str, str], ...] = ()
    keep_state: bool = False

    def variable(self, name: str) -> str:
        """Return what the user set an environment variable to; blank if they did not."""
        return dict(self.environment).get(name, "")


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Where the image comes from: repository and tag."""

    repository: str
    tag: str

    def __post_init__(self) -> None:
        """Refuse what no runtime could pull. Raises ManifestError."""
        if not _REPOSITORY.fullmatch(self.repository):
            raise ManifestError(f"image {self.repository[:_SHOWN]!r} is no repository, as in registry.example/weavenet")
        if not _TAG.fullmatch(self.tag):
            raise ManifestError(f"version {self.tag[:_SHOWN]!r} is no image tag: letters, digits, '_', '.', '-'")

    def with_tag(self, tag: str) -> "ImageSource":
        """Return the same image in another version. Raises ManifestError."""
        return ImageSource(self.repository, tag)

    def __str__(self) -> str:
        return self.repository if "@" in self.repository else f"{self.repository}:{self.tag}"


def parse_image(text: str, default_tag: str) -> ImageSource:
    """Read `repository`, `repository:tag` or `repository@digest`. Raises ManifestError."""
    head, colon, tag = text.rpartition(":")
    if colon and "/" not in tag and "@" not in head:
        return ImageSource(head, tag)
    return ImageSource(text, default_tag)


def parse_options(parameters: Iterable[tuple[str, str]], image: ImageSource) -> ManifestOptions:
    """Check parameters as a query has them. Raises ManifestError, which names the parameter and says what is wrong."""
    plain: dict[str, str] = {}
    environment: dict[str, str] = {}
    selinux: dict[str, str] = {}
    for name, value in parameters:
        family, dot, member = name.partition(".")
        if len(plain) + len(environment) + len(selinux) >= ITEMS_MAX:
            raise ManifestError(f"more than {ITEMS_MAX} parameters")
        if dot and family == "env":
            _put(environment, name, member, check_variable(member, value))
        elif dot and family == "seLinuxOptions":
            _put(selinux, name, member, _check_selinux(member, value))
        elif name in _PARAMETERS:
            _put(plain, name, "version" if name == "v" else name, value)
        else:
            known = ", ".join([*_PARAMETERS, "env.NAME", "seLinuxOptions.NAME"])
            raise ManifestError(f"unknown parameter {name[:_SHOWN]!r}; there are {known}")
    tag = plain.get("version", "")
    return ManifestOptions(
        kubernetes=parse_kubernetes_version(plain.get("k8s-version", "")),
        # Weave's service was given `latest` where no version was wanted; our own release is that.
        image=str(image if tag in {"", "latest"} else image.with_tag(tag)),
        environment=tuple(sorted(environment.items())),
        password_secret=_check_secret(plain.get("password-secret", "")),
        network_policy=not _boolean("disable-npc", plain.get("disable-npc", "false"))
        and environment.get("EXPECT_NPC") != "0",
        known_peers=_peers(plain.get("known-peers", "")),
        trusted_subnets=_subnets(plain.get("trusted-subnets", "")),
        selinux=tuple(sorted(selinux.items())),
        keep_state=_boolean("keep-state", plain.get("keep-state", "false")),
    )


_PARAMETERS = (
    "k8s-version",
    "version",
    "v",
    "password-secret",
    "disable-npc",
    "known-peers",
    "trusted-subnets",
    "keep-state",
)


def _put(into: dict[str, str], parameter: str, key: str, value: str) -> None:
    if key in into:
        raise ManifestError(f"{parameter} is given twice")
    if len(value) > VALUE_LENGTH_MAX and parameter != "k8s-version":
        raise ManifestError(f"{parameter} has {len(value)} characters; {VALUE_LENGTH_MAX} are allowed")
    into[key] = value


def check_variable(name: str, value: str) -> str:
    """Check an environment variable of the agent, and return its value. Raises ManifestError."""
    if not _VARIABLE.fullmatch(name):
        raise ManifestError(f"env.{name[:_SHOWN]}: not the name of a variable: letters, digits, '_', no digit in front")
    if name in _OURS:
        raise ManifestError(f"env.{name} cannot be set: {_OURS[name]}")
    if not value.isprintable():  # it becomes a line of a file that people read, and a word of a command
        raise ManifestError(f"env.{name} has characters that cannot be printed")
    if name in _NUMBERS and not (value.isascii() and value.isdigit() and int(value[:9]) <= _NUMBERS[name]):
        raise ManifestError(f"env.{name}={value[:_SHOWN]}: not a number from 0 to {_NUMBERS[name]}")
    if name in _SWITCHES and value not in _SWITCHES[name]:
        raise ManifestError(f"env.{name}={value[:_SHOWN]}: must be one of {', '.join(_SWITCHES[name])}")
    if name in _LISTENERS and value:
        parse_listener(f"env.{name}", value)
    if name == "IPALLOC_RANGE":
        try:
            parse_subnet(value)
        except AddressError as error:
            raise ManifestError(f"env.IPALLOC_RANGE: {error}") from error
    return value


def parse_listener(what: str, text: str) -> tuple[str, int]:
    """Read the `host:port` that something listens at; a blank host is all. Raises ManifestError."""
    host, colon, port = text.rpartition(":")
    try:
        if host:
            parse_address(host)
    except AddressError as error:
        raise ManifestError(f"{what}: {error}") from error
    if not colon or not (port.isascii() and port.isdigit()) or not 0 < int(port[:6]) <= PORT_MAX:
        raise ManifestError(f"{what}: {text[:_SHOWN]!r} is not HOST:PORT, as in 127.0.0.1:6784")
    return host, int(port)


def _check_selinux(name: str, value: str) -> str:
    if name not in _SELINUX_NAMES:
        raise ManifestError(f"seLinuxOptions.{name[:_SHOWN]}: there are only {', '.join(_SELINUX_NAMES)}")
    if not _SELINUX_VALUE.fullmatch(value):
        raise ManifestError(f"seLinuxOptions.{name}={value[:_SHOWN]}: not part of an SELinux label")
    return value


def _check_secret(name: str) -> str:
    if name and (len(name) > _NAME_LENGTH_MAX or not _SUBDOMAIN.fullmatch(name)):
        raise ManifestError(
            f"password-secret={name[:_SHOWN]}: not the name of a secret: lower-case letters, digits, '-', '.'"
        )
    return name


def _boolean(name: str, text: str) -> bool:
    if text not in _BOOLEANS:
        raise ManifestError(f"{name}={text[:_SHOWN]}: must be true or false")
    return _BOOLEANS[text]


def _items(name: str, text: str) -> list[str]:
    items = [item.strip() for item in text.split(",")] if text.strip() else []
    if len(items) > ITEMS_MAX:
        raise ManifestError(f"{name} has {len(items)} members; {ITEMS_MAX} are allowed")
    return items


def _subnets(text: str) -> tuple[Cidr, ...]:
    try:
        return tuple(Cidr.parse(item).network for item in _items("trusted-subnets", text))
    except AddressError as error:
        raise ManifestError(f"trusted-subnets: {error}") from error


def _peers(text: str) -> tuple[str, ...]:
    peers = _items("known-peers", text)
    for peer in peers:
        host, colon, port = peer.partition(":")
        if colon and not ((port.isascii() and port.isdigit()) and 0 < int(port[:6]) <= PORT_MAX):
            raise ManifestError(f"known-peers: {peer[:_SHOWN]!r} has no port after its colon")
        if re.fullmatch(r"[\d.]+", host, re.ASCII):
            try:
                parse_address(host)
            except AddressError as error:
                raise ManifestError(f"known-peers: {error}") from error
        elif len(host) > _NAME_LENGTH_MAX or not _SUBDOMAIN.fullmatch(host.lower()):
            raise ManifestError(f"known-peers: {peer[:_SHOWN]!r} is neither an address nor a host name")
    return tuple(peers)
