"""The directory of the running agent: its sockets, and a lock so that one host has one agent."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from weavenet.errors import ConfigError

LOCK_NAME = "lock"


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the run directory. Raises ConfigError if somebody else does."""
    try:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(run_dir / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"cannot use --run-dir {run_dir}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ConfigError(f"weave is already running with --run-dir {run_dir}; stop it first") from error
    finally:
        os.close(descriptor)
