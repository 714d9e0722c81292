"""Where the API server is and how it knows us: what a pod finds in its environment, or what the flags say instead.

The token is a file, since kubelet replaces it every hour or so; it is read again when the file has changed, and so is
the certificate authority. Neither the token nor anything made from it is ever shown: the objects here print without it,
and it leaves them only as the header of a request. Source: kubernetes.io, "Accessing the Kubernetes API from a Pod".
"""

import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from weavenet.errors import ConfigError, KubeUnreachableError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_BYTES_MAX = 64 << 10
_DEFAULT_PORTS = {"https": 443, "http": 80}

_Signature = tuple[int, int, int]


class TokenFile:
    """A bearer token in a file, read again when the file changes. Prints as its path."""

    def __init__(self, path: Path) -> None:
        """Name the file; it is read when it is needed."""
        self._path = path
        self._seen: _Signature | None = None
        self._token = ""

    def read(self) -> str:
        """Return the token as it is now. Raises KubeUnreachableError: without it there is no asking."""
        try:
            signature = _signature(self._path)
            if signature != self._seen:
                with self._path.open("rb") as file:
                    raw = file.read(TOKEN_BYTES_MAX + 1)
                self._token = _check_token(raw, self._path)
                self._seen = signature
        except OSError as error:
            raise KubeUnreachableError(f"cannot read the API token {self._path}: {error.strerror}") from error
        return self._token

    def __repr__(self) -> str:
        return f"TokenFile({str(self._path)!r})"


class Authority:
    """The certificate authority of an HTTPS server; None is the machine's own list."""

    def __init__(self, ca_file: Path | None) -> None:
        """Name the file; it is read when it is needed."""
        self._ca_file = ca_file
        self._seen: _Signature | None = None
        self._context: ssl.SSLContext | None = None

    def context(self) -> ssl.SSLContext:
        """Return what checks the server, made anew when the file has changed. Raises KubeUnreachableError."""
        try:
            signature = None if self._ca_file is None else _signature(self._ca_file)
            if self._context is None or signature != self._seen:
                self._context = ssl.create_default_context(cafile=self._ca_file)
                self._seen = signature
        except OSError as error:  # ssl.SSLError is one
            raise KubeUnreachableError(f"cannot use the API's authority {self._ca_file}: {error}") from error
        return self._context


class ApiAccess(msgspec.Struct, frozen=True):
    """One API server and our way in. Without `authority` the connection is plain; without `token` we are nobody."""

    host: str
    port: int
    authority: Authority | None
    token: TokenFile | None

    @property
    def url(self) -> str:
        """The server, for users to read."""
        return f"{'http' if self.authority is None else 'https'}://{self.host_header}"

    @property
    def host_header(self) -> str:
        """Host and port as HTTP has them: an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class AccessFlags(msgspec.Struct, frozen=True):
    """What the command line says; blank or None is to be found in the pod."""

    url: str = ""
    token_file: Path | None = None
    ca_file: Path | None = None


def find_access(flags: AccessFlags, environment: Mapping[str, str], mounted: Path = SERVICE_ACCOUNT) -> ApiAccess:
    """Put flags and the pod's environment together. Raises ConfigError if no server is named by either.

    With `--kube-api` only what the flags say is used: a pod's own token is not for whatever server somebody names.
    """
    if flags.url:
        scheme, host, port = _parse_url(flags.url)
        authority = Authority(flags.ca_file) if scheme == "https" else None
        token = TokenFile(flags.token_file) if flags.token_file is not None else None
        return ApiAccess(host, port, authority, token)
    host, port_text = environment.get("KUBERNETES_SERVICE_HOST", ""), environment.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise ConfigError(
            "--kube-node is given, but there is no API server: KUBERNETES_SERVICE_HOST is not set, as it is in a pod; "
            "name the server with --kube-api"
        )
    if not (port_text.isascii() and port_text.isdigit() and 0 < int(port_text) <= 0xFFFF):
        raise ConfigError(f"KUBERNETES_SERVICE_PORT is {port_text!r}, which is no port")
    return ApiAccess(
        host=host.strip("[]"),
        port=int(port_text),
        authority=Authority(flags.ca_file or mounted / "ca.crt"),
        token=TokenFile(flags.token_file or mounted / "token"),
    )


def pod_namespace(default: str, mounted: Path = SERVICE_ACCOUNT) -> str:
    """Return the namespace that we run in, if this is a pod."""
    try:
        return (mounted / "namespace").read_text().strip() or default
    except (OSError, UnicodeDecodeError):  # not a pod
        return default


def in_pod_environment() -> Mapping[str, str]:
    """Return the environment that `find_access` looks at."""
    return os.environ


def _parse_url(url: str) -> tuple[str, str, int]:
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)
    except ValueError as error:
        raise ConfigError(f"--kube-api {url!r}: {error}") from error
    odd = parts.path.strip("/") or parts.query or parts.fragment or parts.username
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or odd:
        raise ConfigError(f"--kube-api {url!r} is not of the form https://HOST:PORT")
    return parts.scheme, parts.hostname, port


def _check_token(raw: bytes, path: Path) -> str:
    text = raw.decode("ascii", errors="replace").strip()
    # What is not printable cannot be in a header; say so without showing any of it.
    if not text or len(raw) > TOKEN_BYTES_MAX or not text.isascii() or not text.isprintable() or " " in text:
        raise KubeUnreachableError(f"the API token {path} is empty, too long, or no token")
    return text


def _signature(path: Path) -> _Signature:
    found = path.stat()
    return (found.st_ino, found.st_mtime_ns, found.st_size)
