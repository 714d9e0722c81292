"""The networks that a pod asks for beside its first one, by annotation; no other plugin is needed for them.

    metadata:
      annotations:
        weave.works/networks: "docker, backup@net7"         names, each with the interface it gets, or net1, net2, …

What networks there are is the administrator's to say: a directory of CNI configurations of type `weave-net`, each known
by its `name`. A pod can only choose among them; it cannot name a bridge of the host by itself. The directory is read at
each question, as it may be a mounted ConfigMap, whose files are replaced. While it is empty, nobody is asked anything:
pods depend on the API server only where networks are defined.
"""

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec

from weavenet.cni.codes import Code
from weavenet.cni.config import (
    DEFAULT_NETWORK,
    NetPluginKeys,
    NetworkConfig,
    decode_keys,
    interface_name_problem,
    parse_config,
)
from weavenet.cni.request import Pod
from weavenet.errors import CniError

ANNOTATION = "weave.works/networks"
NETWORKS_MAX = 16  # of one pod
DEFINITIONS_MAX = 100
_DEFINITION_BYTES_MAX = 64 << 10
_SUFFIXES = (".conf", ".json")
_PLUGIN = "weave-net"
_FIRST, _LOOPBACK = "eth0", "lo"


class WantedNetwork(msgspec.Struct, frozen=True):
    """A network, and the interface by which the pod is to be on it."""

    interface: str
    config: NetworkConfig


class PodNetworks(Protocol):
    """Who knows what networks a pod asks for."""

    async def asked_for(self, pod: Pod) -> tuple[WantedNetwork, ...]:
        """Return them in the pod's order. Raises CniError."""
        ...

    def find(self, name: str) -> NetworkConfig | None:
        """Return how a network is defined; None if it is not, or not properly."""
        ...


class NoNetworks:
    """Knows of none."""

    async def asked_for(self, pod: Pod) -> tuple[WantedNetwork, ...]:
        """Return nothing."""
        del pod
        return ()

    def find(self, name: str) -> NetworkConfig | None:
        """Find nothing."""
        del name
        return None


class _Typed(NetPluginKeys):
    type: str | None = None


class AnnotatedNetworks:
    """Those that are defined in a directory, for pods that ask for them by annotation."""

    def __init__(self, directory: Path, read_annotations: Callable[[Pod], Awaitable[Mapping[str, str]]]) -> None:
        """`read_annotations` asks the API for a pod's; it raises CniError, 11 if that may work later."""
        self._directory = directory
        self._read_annotations = read_annotations

    async def asked_for(self, pod: Pod) -> tuple[WantedNetwork, ...]:
        """Return them in the pod's order. Raises CniError."""
        if not pod.name or not self._files():
            return ()
        text = (await self._read_annotations(pod)).get(ANNOTATION, "")
        return tuple(
            WantedNetwork(interface, self._require(name, pod)) for name, interface in parse_annotation(text, str(pod))
        )

    def find(self, name: str) -> NetworkConfig | None:
        """Return how a network is defined; None if it is not, or not properly."""
        try:
            return self._definitions().get(name)
        except CniError:
            return None

    def _require(self, name: str, pod: Pod) -> NetworkConfig:
        known = self._definitions()
        if name not in known:
            message = f"pod {pod} asks for network {name[:80]!r}, which is not defined here"
            details = f"Defined in {self._directory}: {', '.join(sorted(known))}. Correct the annotation {ANNOTATION}."
            raise CniError(Code.INVALID_CONFIG, message, details)
        return known[name]

    def _files(self) -> list[Path]:
        try:
            found = sorted(path for path in self._directory.iterdir() if path.suffix in _SUFFIXES)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CniError(Code.IO_FAILURE, f"cannot read {self._directory}: {error.strerror}") from error
        return found[:DEFINITIONS_MAX]

    def _definitions(self) -> dict[str, NetworkConfig]:
        found: dict[str, NetworkConfig] = {}
        for path in self._files():
            config = read_definition(path)
            found[config.network] = config
        return found


def read_definition(path: Path) -> NetworkConfig:
    """Read one definition. Raises CniError, which names the file."""
    try:
        with path.open("rb") as file:
            raw = file.read(_DEFINITION_BYTES_MAX + 1)
    except OSError as error:
        raise CniError(Code.IO_FAILURE, f"cannot read {path}: {error.strerror}") from error
    try:
        return parse_definition(raw)
    except CniError as error:
        raise CniError(error.code, f"{path}: {error.message}", error.details) from error


def parse_definition(raw: bytes) -> NetworkConfig:
    """Check a definition. Raises CniError."""
    if len(raw) > _DEFINITION_BYTES_MAX:
        raise CniError(Code.INVALID_CONFIG, f"larger than {_DEFINITION_BYTES_MAX} bytes")
    keys = decode_keys(raw, _Typed)
    if keys.type not in {None, _PLUGIN}:
        raise CniError(Code.INVALID_CONFIG, f"type {keys.type!r}", f"Only {_PLUGIN!r} is served by annotation.")
    config = parse_config(keys)
    if config.network == DEFAULT_NETWORK:
        raise CniError(Code.INVALID_CONFIG, f"the name {DEFAULT_NETWORK!r} is that of every pod's first network")
    return config


def parse_annotation(text: str, whose: str) -> list[tuple[str, str]]:
    """Read an annotation: names and interfaces, in order. Raises CniError."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if len(words) > NETWORKS_MAX:
        raise _refused(whose, f"{len(words)} networks", f"At most {NETWORKS_MAX} are served.")
    found: list[tuple[str, str]] = []
    for number, word in enumerate(words, start=1):
        name, at, interface = word.partition("@")
        interface = interface if at else f"net{number}"
        problem = interface_name_problem(interface)
        if problem:
            raise _refused(whose, f"interface {interface[:16]!r}", f"An interface name {problem}.")
        if interface in {_FIRST, _LOOPBACK, *(other for _, other in found)}:
            raise _refused(whose, f"interface {interface} twice", "Give each network another one, as in name@net2.")
        found.append((name, interface))
    return found


def _refused(whose: str, what: str, details: str) -> CniError:
    return CniError(Code.INVALID_CONFIG, f"annotation {ANNOTATION} of pod {whose}: {what}", details)
