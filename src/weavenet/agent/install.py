"""The node's side of the CNI contract: our executables among the runtime's plugins, and the network's configuration.

    $HOST_ROOT/opt/cni/bin/weave-net, weave-ipam     one static program under two names
    $HOST_ROOT/etc/cni/net.d/10-weave.conflist       from when a pod can get its network, and not before

A runtime takes the appearance of the configuration for "the network is ready". Weave writes it in its init container,
and pods are then refused until the router is up; here the agent writes it once it serves CNI.

Runtimes and kubelets read these directories at any moment, so a file is written beside its place, brought to the disk,
and renamed: it is there as a whole or not at all, also after a power cut. Names of unfinished files end in `.tmp`,
which no runtime takes for a configuration (libcni reads .conf, .conflist and .json).

A configuration that a user has changed is theirs. Ours carries the digest of its own text, under a key that libcni
ignores, so that a changed one is recognised without remembering anything; and Weave Net's own, unchanged, is replaced.
"""

import contextlib
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Final

import msgspec

from weavenet.errors import ConfigError

EXECUTABLE_NAMES: Final = ("weave-net", "weave-ipam")
CONFLIST_NAME: Final = "10-weave.conflist"
OBSOLETE_CONFIG_NAME: Final = "10-weave.conf"
_SET_ASIDE_NAME = f"{CONFLIST_NAME}.kept"
_EXECUTABLE_MODE, _CONFIG_MODE = 0o755, 0o600  # CIS Kubernetes Benchmark, 1.1.9, for the second
_CONFIG_BYTES_MAX = 1 << 20
_MARK = "weavenet"
_PLUGIN_DIRECTORIES = ("opt/cni/bin", "home/kubernetes/bin")  # the second is GKE's, where /opt is read-only
_CONFIG_DIRECTORY = "etc/cni/net.d"
_CONFIG_SUFFIXES = frozenset({".conf", ".conflist", ".json"})


class Place(msgspec.Struct, frozen=True):
    """One node: where its files are, and what to put there."""

    host_root: Path
    executable: Path
    plugin_directory: Path | None = None  # WEAVE_CNI_PLUGIN_DIR
    hairpin: bool = True

    @property
    def conflist(self) -> Path:
        """The network's configuration."""
        return self.host_root / _CONFIG_DIRECTORY / CONFLIST_NAME

    @property
    def plugin_directories(self) -> tuple[Path, ...]:
        """Where executables may go, the best place first."""
        if self.plugin_directory is not None:
            return (self.plugin_directory,)
        return tuple(self.host_root / directory for directory in _PLUGIN_DIRECTORIES)


# --- what the agent and the init container call -----------------------------------------------------------------------


def install_executables(place: Place) -> list[str]:
    """Put our executables where the runtime looks, and return what was done. Raises ConfigError."""
    content = _read_own(place.executable)
    directory = _make_plugin_directory(place)
    return [
        f"installed {directory / name}"
        for name in EXECUTABLE_NAMES
        if _put(directory / name, content, _EXECUTABLE_MODE)
    ]


def install_network(place: Place, log: logging.Logger) -> list[str]:
    """Tell the runtime that there is a network: call this once CNI is served. Returns what was done.

    Raises ConfigError.
    """
    path = place.conflist
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot("make", path.parent, error) from error
    done = install_conflist(place, log)
    obsolete = path.with_name(OBSOLETE_CONFIG_NAME)
    if _remove(obsolete):
        done.append(f"removed {obsolete}")
    for other in _configurations_before(path):
        log.warning("%s comes before %s: the container runtime uses that network, not this one", other, path)
    return done


def install_conflist(place: Place, log: logging.Logger) -> list[str]:
    """Write the configuration unless the user has one of their own. Returns what was done. Raises ConfigError."""
    path, wanted = place.conflist, conflist_text(hairpin=place.hairpin)
    present = _read(path)
    if present == wanted:
        return []
    if present is not None and not is_ours(present):
        log.info("%s was changed by hand, and stays as it is; to have it renewed, remove it", path)
        return []
    _put(path, wanted, _CONFIG_MODE)
    return [f"{'installed' if present is None else 'renewed'} {path}"]


def keep_current(place: Place, log: logging.Logger) -> list[str]:
    """Put back what has gone or was replaced, and return what was repaired. Raises ConfigError.

    For an agent that serves CNI, every now and then: packages of CNI plugins own these directories, and their
    installation or removal takes ours along. A configuration changed by hand is left alone without a word.
    """
    done = install_executables(place)
    present = _read(place.conflist)
    if present is None or is_ours(present):
        done += install_conflist(place, log)
    return done


def uninstall(place: Place) -> list[str]:
    """Remove what we have installed, and return what was removed. Raises ConfigError.

    The configuration goes first: without it, runtimes ask for no network that they cannot get. One that was changed by
    hand is set aside under a name that no runtime reads, since it names a plugin that goes now.
    """
    done = []
    present = _read(place.conflist)
    if present is not None and is_ours(present):
        _remove(place.conflist)
        done.append(f"removed {place.conflist}")
    elif present is not None:
        aside = place.conflist.with_name(_SET_ASIDE_NAME)
        _rename(place.conflist, aside)
        done.append(f"set {place.conflist} aside as {aside}")
    ours = [directory / name for directory in place.plugin_directories for name in EXECUTABLE_NAMES]
    return done + [f"removed {path}" for path in ours if _remove(path)]


# --- the configuration ------------------------------------------------------------------------------------------------


def conflist_text(*, hairpin: bool) -> bytes:
    """Return the configuration: our plugin alone, which does host ports and bandwidth by itself."""
    body = {
        "cniVersion": "1.0.0",
        "name": "weave",
        "plugins": [
            {
                "type": "weave-net",
                "hairpinMode": hairpin,
                "capabilities": {"portMappings": True, "bandwidth": True},
            }
        ],
    }
    return _dump({**body, _MARK: {"sha256": _digest(body)}})


def is_ours(content: bytes) -> bool:
    """Say whether a configuration is as some version of us, or Weave Net, has written it."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return False
    if not isinstance(body, dict):
        return False
    if body in _weave_nets():
        return True
    mark = body.pop(_MARK, None)
    return isinstance(mark, dict) and mark.get("sha256") == _digest(body)


def _weave_nets() -> list[object]:
    """Return what Weave Net writes (docs/protocol/kubernetes.md, 6), with either hairpin mode."""
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
    return [
        {
            "cniVersion": version,
            "name": "weave",
            "plugins": [{"name": "weave", "type": "weave-net", "hairpinMode": hairpin}, portmap],
        }
        for version in ("0.3.0", "1.0.0")
        for hairpin in (True, False)
    ]


def _dump(body: object) -> bytes:
    return json.dumps(body, indent=4).encode() + b"\n"


def _digest(body: object) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _configurations_before(path: Path) -> list[str]:
    try:
        names = [other.name for other in path.parent.iterdir()]
    except OSError:
        return []
    return sorted(name for name in names if name < path.name and Path(name).suffix in _CONFIG_SUFFIXES)


# --- files ------------------------------------------------------------------------------------------------------------


def _make_plugin_directory(place: Place) -> Path:
    failures = []
    for directory in place.plugin_directories:
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            failures.append(f"{directory}: {error.strerror}")
        else:
            return directory
    raise ConfigError(f"Failed to install the Weave CNI plugin: {'; '.join(failures)}; set WEAVE_CNI_PLUGIN_DIR")


def _read_own(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _cannot("read", path, error) from error


def _read(path: Path) -> bytes | None:
    """Return what is there; None if nothing is. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            return file.read(_CONFIG_BYTES_MAX)
    except FileNotFoundError:  # also a link that leads nowhere
        return None
    except OSError as error:
        raise _cannot("read", path, error) from error


def _is_current(path: Path, content: bytes, mode: int) -> bool:
    try:
        if path.is_symlink() or path.stat().st_mode & 0o7777 != mode or path.stat().st_size != len(content):
            return False
        return path.read_bytes() == content
    except OSError:
        return False


def _put(path: Path, content: bytes, mode: int) -> bool:
    """Have a file be this, at once and for good; False if it is already. Raises ConfigError."""
    if _is_current(path, content, mode):
        return False
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        unfinished.unlink(missing_ok=True)  # of a former try that was cut short
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                os.fchmod(file.fileno(), mode)
                file.flush()
                os.fsync(file.fileno())
            unfinished.rename(path)
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise
        _sync_directory(path.parent)
    except OSError as error:
        raise _cannot("write", path, error) from error
    return True


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> bool:
    """Remove a file; False if there is none. Raises ConfigError."""
    try:
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _cannot("remove", path, error) from error
    return True


def _rename(path: Path, to: Path) -> None:
    try:
        path.rename(to)
    except OSError as error:
        raise _cannot("rename", path, error) from error


def _cannot(what: str, path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"cannot {what} {path}: {error.strerror}; is the node's directory mounted, and writable?")
