"""What the agent is told: Weave's flags where Weave has them, checked once, here, into types that are right."""

import os
import socket
from pathlib import Path

import msgspec

from weavenet.address import Cidr, parse_subnet
from weavenet.agent.artifacts import FASTDP_OBJECT, artifact
from weavenet.agent.expose import ExposeOption, parse_expose_option
from weavenet.api import client
from weavenet.errors import AddressError, ConfigError
from weavenet.identity import PeerName, parse_peer_name
from weavenet.ipam.modes import InitMode, parse_init_mode
from weavenet.mesh.keyring import PASSWORD_BYTES_MAX, Password
from weavenet.overlay.forwarding import FASTDP, SLEEVE
from weavenet.overlay.sleeve.fast_wire import FAST_FORMAT

PASSWORD_VARIABLE = "WEAVE_PASSWORD"  # noqa: S105 - its name
DEFAULT_PORT = 6783
DEFAULT_MTU_BYTES = 1376  # Weave's: the smallest known cloud underlay less VXLAN and ESP
DEFAULT_RANGE = "10.32.0.0/12"
DEFAULT_STATE_DIR = Path(client.DEFAULT_STATE_DIR)
DEFAULT_RUN_DIR = Path(client.DEFAULT_SOCKET).parent
DEFAULT_BPF_OBJECT = artifact(FASTDP_OBJECT)
MTU_MIN, MTU_MAX = 576, 65485  # RFC 791's least; 65535 less the 50 bytes of VXLAN
PORT_MAX = 65534  # the VXLAN port is one above
IFNAME_LENGTH_MAX = 15  # IFNAMSIZ less the terminating zero


class IpamOptions(msgspec.Struct, frozen=True):
    """The addresses to share."""

    universe: Cidr
    default_subnet: Cidr
    mode: InitMode


class KubeOptions(msgspec.Struct, frozen=True):
    """The cluster that we are part of; blank or None is found in the pod."""

    node: str
    api_url: str
    token_file: Path | None
    ca_file: Path | None
    daemonset: str


class AgentConfig(msgspec.Struct, frozen=True):
    """One agent, as asked for."""

    name: PeerName | None
    nickname: str
    host: str
    port: int
    password: Password | None
    forgets_passwords: bool  # those that are stored
    trusted_subnets: tuple[Cidr, ...]
    connection_limit: int
    discovery: bool
    min_protocol_version: int
    mtu_bytes: int
    overlays: tuple[str, ...]  # in order of preference
    sleeve_formats: tuple[str, ...]  # beside Weave's
    bridge: str
    ipam: IpamOptions | None
    peers: tuple[str, ...]
    resume: bool
    state_dir: Path
    run_dir: Path
    bpf_object: Path
    host_root: Path
    networks_dir: Path | None  # definitions of networks that pods may ask for
    status_address: str
    metrics_address: str
    http_address: str
    expose: ExposeOption | None
    no_masq_local: bool
    log_level: str
    keep_state: bool
    kube: KubeOptions | None = None

    @property
    def vxlan_port(self) -> int:
        """Weave's rule: the mesh port plus one."""
        return self.port + 1

    @property
    def database(self) -> Path:
        """Where everything that must outlive the process is."""
        return self.state_dir / client.DATABASE_NAME

    @property
    def control_socket(self) -> Path:
        """Where the `weave` command talks to us."""
        return self.run_dir / "weave.sock"

    @property
    def cni_socket(self) -> Path:
        """Where the CNI executable talks to us."""
        return self.run_dir / "cni.sock"


def read_password(given: str | None, file: Path | None, descriptor: int | None = None) -> Password | None:
    """Take the password from a file, a descriptor, the flag, or WEAVE_PASSWORD; blank is none. Raises ConfigError."""
    if file is not None and descriptor is not None:
        raise ConfigError("--password-file and --password-fd both name a password; give one of them")
    if file is not None:
        raw = _read_secret(file, f"--password-file {file}")
    elif descriptor is not None:
        raw = _read_secret(descriptor, f"--password-fd {descriptor}")
    else:
        raw = (os.environ.get(PASSWORD_VARIABLE, "") if given is None else given).encode()
    if len(raw) > PASSWORD_BYTES_MAX:
        raise ConfigError(f"the password has more than {PASSWORD_BYTES_MAX} bytes")
    return Password(raw) if raw else None


def _read_secret(where: Path | int, what: str) -> bytes:
    try:
        with open(where, "rb") as file:  # noqa: PTH123 - a path, or a descriptor that is then closed
            raw = file.read(PASSWORD_BYTES_MAX + 2).rstrip(b"\n")
            raw.decode()
    except OSError as error:
        raise ConfigError(f"cannot read {what}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise ConfigError(f"cannot read {what}: it is not text in UTF-8") from None  # whose error would show it
    return raw


def parse_ipam_options(universe: str, default_subnet: str, init: str) -> IpamOptions | None:
    """Check the three IPAM flags together; no range means no IPAM. Raises ConfigError with Weave's words."""
    if not universe:
        if init:
            raise ConfigError("--ipalloc-init specified without --ipalloc-range.")
        if default_subnet:
            raise ConfigError("--ipalloc-default-subnet specified without --ipalloc-range.")
        return None
    whole = parse_subnet(universe)
    subnet = parse_subnet(default_subnet) if default_subnet else whole
    if not subnet.range.overlaps(whole.range):
        raise ConfigError(
            f"IP address allocation default subnet {subnet} does not overlap with allocation range {whole}"
        )
    return IpamOptions(whole, subnet, parse_init_mode(init or "consensus"))


def parse_trusted_subnets(text: str) -> tuple[Cidr, ...]:
    """Read comma-separated subnets. Raises ConfigError."""
    try:
        return tuple(Cidr.parse(part.strip()).network for part in text.split(",") if part.strip())
    except AddressError as error:
        raise ConfigError(f"--trusted-subnets: {error}") from error


class Flags(msgspec.Struct, frozen=True):
    """The command line, as parsed but not yet checked; names are those of the flags."""

    name: str
    nickname: str
    host: str
    port: int
    password: str | None
    password_file: Path | None
    password_fd: int | None
    no_password: bool
    trusted_subnets: str
    conn_limit: int
    no_discovery: bool
    min_protocol_version: int
    mtu: int
    no_fastdp: bool
    no_sleeve: bool
    no_fast_sleeve: bool
    weave_bridge: str
    ipalloc_range: str
    ipalloc_default_subnet: str
    ipalloc_init: str
    resume: bool
    state_dir: Path
    run_dir: Path
    bpf_object: Path
    host_root: Path
    networks_dir: Path | None
    status_addr: str
    metrics_addr: str
    http_addr: str
    expose_ip: str
    no_masq_local: bool
    expect_npc: bool
    log_level: str
    keep_state: bool
    kube_node: str
    kube_api: str
    kube_token_file: Path | None
    kube_ca_file: Path | None
    kube_daemonset: str
    peers: tuple[str, ...]


def build_config(flags: Flags) -> AgentConfig:
    """Check the flags. Raises ConfigError or another InputError that says which one is wrong and why."""
    if flags.mtu and flags.mtu < MTU_MIN:
        raise ConfigError(f"--mtu {flags.mtu} is too small for IPv4: give at least {MTU_MIN}, or 0 for the default")
    if flags.resume and flags.peers:
        raise ConfigError("You must not specify an initial peer list in conjunction with --resume")
    if not 0 < len(flags.weave_bridge.encode()) <= IFNAME_LENGTH_MAX or set(flags.weave_bridge) & set("/: \t\n"):
        raise ConfigError(
            f"--weave-bridge {flags.weave_bridge!r} is no interface name: 1 to 15 bytes, no blank, / or :"
        )
    password = read_password(flags.password, flags.password_file, flags.password_fd)
    os.environ.pop(PASSWORD_VARIABLE, None)  # the processes that we start must not have it
    if flags.no_password and password is not None:
        raise ConfigError("--no-password, and yet a password is given; leave one of them out")
    return AgentConfig(
        name=parse_name(flags.name),
        nickname=flags.nickname,
        host=flags.host,
        port=flags.port,
        password=password,
        forgets_passwords=flags.no_password,
        trusted_subnets=parse_trusted_subnets(flags.trusted_subnets),
        connection_limit=flags.conn_limit,
        discovery=not flags.no_discovery,
        min_protocol_version=flags.min_protocol_version,
        mtu_bytes=flags.mtu or DEFAULT_MTU_BYTES,
        sleeve_formats=() if flags.no_fast_sleeve else (FAST_FORMAT,),
        overlays=parse_overlays(fastdp=not flags.no_fastdp, sleeve=not flags.no_sleeve),
        bridge=flags.weave_bridge,
        ipam=parse_ipam_options(flags.ipalloc_range, flags.ipalloc_default_subnet, flags.ipalloc_init),
        peers=flags.peers,
        resume=flags.resume,
        state_dir=flags.state_dir.absolute(),
        run_dir=flags.run_dir.absolute(),
        bpf_object=flags.bpf_object.absolute(),
        host_root=flags.host_root,
        networks_dir=flags.networks_dir,
        status_address=flags.status_addr,
        metrics_address=flags.metrics_addr,
        http_address=flags.http_addr,
        expose=parse_expose_option(flags.expose_ip, allocates=bool(flags.ipalloc_range)),
        no_masq_local=flags.no_masq_local,
        log_level=flags.log_level,
        keep_state=flags.keep_state,
        kube=_kube_options(flags),
    )


def parse_overlays(*, fastdp: bool, sleeve: bool) -> tuple[str, ...]:
    """Return the overlays to offer, the better first. Raises ConfigError for none."""
    overlays = tuple(name for name, wanted in ((FASTDP, fastdp), (SLEEVE, sleeve)) if wanted)
    if not overlays:
        raise ConfigError("--no-fastdp and --no-sleeve together leave no way to reach a peer")
    return overlays


def _kube_options(flags: Flags) -> KubeOptions | None:
    if not flags.kube_node:
        if flags.kube_api or flags.kube_token_file or flags.kube_ca_file:
            raise ConfigError("--kube-api, --kube-token-file and --kube-ca-file are of use only with --kube-node")
        return None
    return KubeOptions(flags.kube_node, flags.kube_api, flags.kube_token_file, flags.kube_ca_file, flags.kube_daemonset)


def parse_name(text: str) -> PeerName | None:
    """Read --name; blank is none. Raises PeerNameError."""
    return parse_peer_name(text) if text else None


def default_nickname() -> str:
    """Return the host's name."""
    return socket.gethostname()
