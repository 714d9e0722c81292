"""Programs the lab runs: to the end with `run`, or in the background with `start` and `stop`.

A background process is remembered by its id and its start time (field 22 of /proc/PID/stat, proc(5)), because ids are
used again: `stop` signals a process only through a descriptor of it, taken before its start time was compared. Nothing
is ever ended by name. Background processes get a session of their own, so that Ctrl-C on the terminal reaches the lab
alone, which then ends them in its own order.
"""

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from weavenet.errors import LabError
from weavenet.lab.namespace import Namespace

# Signals that make the lab clean up. They wait while a process is being started, else it might never be recorded.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# In the environment of all that the lab runs. By it, and by the namespace it is in, a process is known to be the lab's
# when the lab was killed before it could write it down.
MARK = "WEAVENET_LAB_STARTED_THIS"


@dataclass(frozen=True, slots=True)
class Process:
    """A process that the lab started: its id, when it started, and what it is, for messages."""

    pid: int
    start_ticks: int
    what: str

    def is_alive(self) -> bool:
        """Whether this very process still runs."""
        return _start_ticks(self.pid) == self.start_ticks


def marked_process(pid: int) -> Process | None:
    """Return a process if it is one that a lab has started; None for others, and if it has ended."""
    ticks = _start_ticks(pid)
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    if ticks is None or f"{MARK}=1".encode() not in variables:
        return None
    return Process(pid, ticks, "a process that was not recorded")


def this_process() -> Process:
    """Return the process that asks."""
    ticks = _start_ticks(os.getpid())
    assert ticks is not None
    return Process(os.getpid(), ticks, "the lab")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended and what it said."""

    status: int
    output: str
    errors: str


def execute(
    argv: Sequence[str],
    *,
    namespace: Namespace | None = None,
    text: str = "",
    env: Mapping[str, str] | None = None,
    timeout_s: float = 30.0,
) -> Outcome:
    """Run a program to its end, `text` on its standard input. Raises LabError if it is missing or takes too long."""
    with namespace.entered() if namespace else nullcontext():
        try:
            done = subprocess.run(  # noqa: S603 - the lab's own commands, never through a shell
                argv, input=text, env=_marked(env), timeout=timeout_s, capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            raise LabError(f"{argv[0]} is not there; run scripts/setup.sh as root") from None
        except subprocess.TimeoutExpired:
            raise LabError(f"`{' '.join(argv)}` did not end within {timeout_s:g} s") from None
    return Outcome(done.returncode, done.stdout, done.stderr)


def run(
    argv: Sequence[str],
    *,
    namespace: Namespace | None = None,
    text: str = "",
    env: Mapping[str, str] | None = None,
    timeout_s: float = 30.0,
) -> str:
    """Run a program as `execute` does and return its output. Raises LabError with what it said if it fails."""
    outcome = execute(argv, namespace=namespace, text=text, env=env, timeout_s=timeout_s)
    if outcome.status != 0:
        said = (outcome.errors.strip() or outcome.output.strip() or "it printed nothing")[-2000:]
        raise LabError(f"`{' '.join(argv)}` ended with status {outcome.status}: {said}")
    return outcome.output


@contextmanager
def held() -> Iterator[None]:
    """Hold the ENDING signals back until the block is left."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start(
    argv: Sequence[str], *, what: str, namespace: Namespace, log: Path, env: Mapping[str, str] | None = None
) -> Process:
    """Start a program in the background, its output appended to `log`. Raises LabError if it cannot be started.

    Whoever calls this holds the ENDING signals back (`held`) until the answer is recorded.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    environment = _marked(env)
    with namespace.entered():
        try:
            # Python ignores SIGPIPE, and the caller holds signals back; a child would inherit both.
            pid = os.posix_spawnp(
                argv[0],
                list(argv),
                environment,
                file_actions=actions,
                setsid=True,
                setsigmask=(),
                setsigdef=(signal.SIGPIPE,),
            )
        except OSError as error:
            raise LabError(f"cannot start {what} ({argv[0]}): {error.strerror}") from None
    ticks = _start_ticks(pid)
    return Process(pid, -1 if ticks is None else ticks, what)


def stop(process: Process, *, grace_s: float = 10.0) -> bool:
    """End a process: SIGTERM, and SIGKILL after the grace. False if it had to be killed.

    One that is gone already, or whose id now belongs to another, is left alone. Raises LabError if it does not end.
    """
    return _end(process, (signal.SIGTERM, signal.SIGKILL), grace_s)


def kill(process: Process, *, grace_s: float = 10.0) -> None:
    """End a process without asking it. Else as `stop`."""
    _end(process, (signal.SIGKILL,), grace_s)


def _end(process: Process, numbers: Sequence[signal.Signals], grace_s: float) -> bool:
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        _reap(process.pid)
        return True
    try:
        if not process.is_alive():
            return True
        for number in numbers:
            signal.pidfd_send_signal(descriptor, number)
            if _ended(descriptor, grace_s):
                return number == numbers[0]
        raise LabError(f"{process.what} (process {process.pid}) does not end, not even when killed")
    finally:
        os.close(descriptor)
        _reap(process.pid)


def wait(process: Process, timeout_s: float) -> bool:
    """Wait until a process has ended by itself; False if it has not in that time."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        return not process.is_alive() or _ended(descriptor, timeout_s)
    finally:
        os.close(descriptor)
        _reap(process.pid)


@dataclass(frozen=True, slots=True)
class Deadline:
    """Until when to keep asking whether something has come true, and what."""

    condition: str
    end_s: float
    poll_s: float

    @classmethod
    def after(cls, timeout_s: float, condition: str, *, poll_s: float = 0.02) -> Self:
        """Start the clock."""
        return cls(condition, time.monotonic() + timeout_s, poll_s)

    def pause(self) -> None:
        """Sleep a moment. Raises LabError when the time is over."""
        if time.monotonic() >= self.end_s:
            raise LabError(f"gave up waiting: {self.condition}")
        time.sleep(self.poll_s)


def _marked(environment: Mapping[str, str] | None) -> dict[str, str]:
    return {**(os.environ if environment is None else environment), MARK: "1"}


def _ended(descriptor: int, timeout_s: float) -> bool:
    """Whether the process of a pidfd ends within that time: the descriptor becomes readable (pidfd_open(2))."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(timeout_s * 1000))


def _reap(pid: int) -> None:
    """Collect the exit status if the process was our child; others have another parent, who does."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def _start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None if it runs no more."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The program's name is in parentheses and may hold blanks and parentheses itself.
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])
