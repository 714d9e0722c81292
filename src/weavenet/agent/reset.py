"""Leaving a host as it was found: devices, rules, CNI files, and what is on disk.

`weaver --reset` (and so `weave reset`) does it by hand; the agent does it itself at its end, if it has seen that it is
being uninstalled (uninstall.py). Each part is tried even where another fails, and what is left is said.
"""

import contextlib
import errno
import logging
import socket
from collections.abc import Callable
from pathlib import Path

from weavenet.agent import run_dir
from weavenet.agent.config import AgentConfig
from weavenet.agent.install import Place, uninstall
from weavenet.dataplane.desired import vxlan_name
from weavenet.dataplane.kernel import teardown
from weavenet.errors import ConfigError, WeavenetError
from weavenet.linux.datapath import FastDatapath
from weavenet.linux.fast_port import FAST_PAIR
from weavenet.linux.kernel import LinuxKernel
from weavenet.linux.sleeve_port import SLEEVE_PAIR, remove_pair


def reset_host(config: AgentConfig, log: logging.Logger) -> None:
    """Remove all that is ours from this host's kernel and disk. Raises WeavenetError, and says what is left.

    Not while an agent runs, which would make it all anew: one of this run directory holds its lock, and one of another,
    or whose run directory somebody removed, still listens for peers.
    """
    with run_dir.locked(config.run_dir):
        _require_silence(config.port)
        try:
            _remove_from_kernel(config, log)
        finally:
            _remove_files(config, log)


def reset_arguments(config: AgentConfig) -> list[str]:
    """Return the flags by which `weaver --reset` finds what an agent of this configuration has made."""
    return [
        f"--run-dir={config.run_dir}",
        f"--state-dir={config.state_dir}",
        f"--port={config.port}",
        f"--weave-bridge={config.bridge}",
        f"--bpf-object={config.bpf_object}",
        *(["--keep-state"] if config.keep_state else []),
    ]


def leave_host(config: AgentConfig, place: Place | None, log: logging.Logger) -> None:
    """Remove all that is ours, as far as it can be removed; what cannot is logged.

    The CNI files go first: from then on nobody is told to ask us for a pod's network.
    """
    parts: list[Callable[[], None]] = [
        lambda: _remove_from_kernel(config, log),
        lambda: _remove_files(config, log),
    ]
    if place is not None:
        parts.insert(0, lambda: _remove_installed(place, log))
    for part in parts:
        try:
            part()
        except (WeavenetError, OSError) as error:
            log.warning("cannot leave this node as it was found: %s; run `weave reset` on it", error)


def _remove_installed(place: Place, log: logging.Logger) -> None:
    for done in uninstall(place):
        log.info("%s", done)


def _require_silence(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that have just ended do not count
        try:
            probe.bind(("", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ConfigError(f"cannot tell whether an agent still runs: TCP port {port}: {error}") from error
            raise ConfigError(
                f"an agent still runs: something listens on TCP port {port}; stop it first "
                f"(`ss -ltnp sport = :{port}` shows what it is)"
            ) from error


def _remove_from_kernel(config: AgentConfig, log: logging.Logger) -> None:
    device = vxlan_name(config.vxlan_port)
    kernel = LinuxKernel(config.bridge, device, FastDatapath(device, config.bpf_object))
    try:
        for pair in (SLEEVE_PAIR, FAST_PAIR):
            if remove_pair(pair):
                log.info("kernel: ip link delete %s", pair.near)
        for change in teardown(kernel):
            log.info("kernel: %s", change)
    finally:
        kernel.close()


def _remove_files(config: AgentConfig, log: logging.Logger) -> None:
    for path in _files(config):
        if path.exists():
            log.info("removing %s", path)
        path.unlink(missing_ok=True)
    for directory in (config.run_dir, config.state_dir):
        with contextlib.suppress(OSError):  # something of somebody else's is in it, or it is a mount: it stays
            directory.rmdir()


def _files(config: AgentConfig) -> list[Path]:
    database = config.database
    state = [database.with_name(database.name + end) for end in ("", "-wal", "-shm")]
    kept = [] if config.keep_state else state
    return [*kept, config.control_socket, config.cni_socket, config.run_dir / run_dir.LOCK_NAME]
