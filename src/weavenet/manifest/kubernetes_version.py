r"""Which Kubernetes a manifest is for, read from whatever `kubectl version` has printed over the years.

    kubectl apply -f "http://HOST/k8s/net?k8s-version=$(kubectl version | base64 | tr -d '\n')"

has been in people's scripts since 2016, so all that such a line can bring is understood here:

* `Server Version: version.Info{Major:"1", Minor:"25", GitVersion:"v1.25.3", ...}`, the default until 1.27;
* `Server Version: v1.28.2`, with `--short`, and the default since 1.28;
* `serverVersion:` and `"serverVersion": {`, with `--output yaml` and `json`;
* the same without the server, when kubectl could not reach it or was called with `--client`;
* a plain `v1.29.3` or `1.29`.

YAML and JSON are searched, not parsed: what comes from strangers need not reach a parser that knows aliases and depth.
A `+` in a query means a blank, so base64 that was not escaped arrives with blanks; its padding may be cut off as well.
"""

import base64
import re
from dataclasses import dataclass

from weavenet.errors import ManifestError

MAJOR = 1
MINOR_OLDEST, MINOR_NEWEST = 25, 36
ENCODED_LENGTH_MAX = 16 << 10  # kubectl's longest, JSON with all of its fields, is 1 KB
_SHOWN = 60

_PLAIN = re.compile(r"v?(\d{1,3})\.(\d{1,3})(\.\d{1,5})?([-+][\w.+-]{1,80})?", re.ASCII)
_GIT_VERSION = re.compile(r"v(\d{1,3})\.(\d{1,3})", re.ASCII)
_TEXT_SERVER = re.compile(r"^Server Version:[^\n]*", re.MULTILINE)
# The block of either notation: up to the closing brace, or as long as lines are indented.
_JSON_SERVER = re.compile(r'"serverVersion"\s*:\s*\{[^{}]*\}')
_YAML_SERVER = re.compile(r"^serverVersion:[ \t]*\r?\n(?:[ \t]+[^\n]*(?:\n|\Z))+", re.MULTILINE)
_MAJOR_MINOR = re.compile(r'major"?\s*:\s*"(\d{1,3})"[^{}]{0,80}?minor"?\s*:\s*"(\d{1,3})', re.IGNORECASE)
_IS_KUBECTL = re.compile(r"client ?version|server ?version", re.IGNORECASE)


@dataclass(frozen=True, slots=True, order=True)
class KubernetesVersion:
    """A server's major and minor version."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


@dataclass(frozen=True, slots=True)
class Asked:
    """The version to write for, and a remark for whoever reads the manifest where that version was not simply named."""

    version: KubernetesVersion
    remark: str = ""


NEWEST = KubernetesVersion(MAJOR, MINOR_NEWEST)
OLDEST = KubernetesVersion(MAJOR, MINOR_OLDEST)


def parse_kubernetes_version(text: str) -> Asked:
    """Read a plain version, or kubectl's output, base64 or not. Raises ManifestError."""
    if len(text) > ENCODED_LENGTH_MAX:
        raise ManifestError(f"k8s-version has {len(text)} characters; `kubectl version` prints far fewer")
    text = text.strip()
    if not text:
        return Asked(NEWEST, "no Kubernetes version was given; this is for the newest one")
    plain = _PLAIN.fullmatch(text)
    if plain:
        return choose(KubernetesVersion(int(plain[1]), int(plain[2])))
    output = text if _IS_KUBECTL.search(text) else _decode(text)
    server = _server_version(output)
    if server is None:
        return Asked(
            NEWEST,
            "`kubectl version` did not say the server's version (no cluster reached?); this is for the newest one",
        )
    return choose(server)


def choose(version: KubernetesVersion) -> Asked:
    """Check that we write for this version. Raises ManifestError."""
    if version.major != MAJOR or version < OLDEST:
        raise ManifestError(
            f"Kubernetes {version} is not supported: {OLDEST} to {NEWEST} are; upgrade the cluster first"
        )
    if version > NEWEST:
        return Asked(version, f"Kubernetes {version} is newer than {NEWEST}, the newest that this was checked for")
    return Asked(version)


def _decode(text: str) -> str:
    """Undo base64 as it survives a query. Raises ManifestError."""
    # A blank was a `+`; or else the end of a line that `tr` should have removed.
    for candidate in (re.sub(r"[\r\n]", "", text).replace(" ", "+"), re.sub(r"\s", "", text)):
        standard = candidate.rstrip("=").replace("-", "+").replace("_", "/")
        try:
            raw = base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
            output = raw.decode()
        except ValueError:  # of the alphabet, of the padding, or of UTF-8
            continue
        plain = _PLAIN.fullmatch(output.strip())
        if plain:
            return f"Server Version: v{plain[1]}.{plain[2]}"
        if _IS_KUBECTL.search(output):
            return output
    raise ManifestError(
        f"k8s-version {text[:_SHOWN]!r} is neither a version, as in v1.29.3, nor what `kubectl version | base64` prints"
    )


def _server_version(output: str) -> KubernetesVersion | None:
    """Find the server's version in kubectl's output; None if it is not there. Raises ManifestError if it is odd."""
    for pattern in (_TEXT_SERVER, _JSON_SERVER, _YAML_SERVER):
        block = pattern.search(output)
        if block is None:
            continue
        found = _GIT_VERSION.search(block[0]) or _MAJOR_MINOR.search(block[0])
        if found is None:
            raise ManifestError(f"k8s-version has no version in {block[0].strip()[:_SHOWN]!r}")
        return KubernetesVersion(int(found[1]), int(found[2]))
    return None
