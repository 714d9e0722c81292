"""Network namespaces that live as files in a directory of the lab, and entering them.

A namespace lives as long as something refers to it: a process in it, or a mount of its /proc/PID/ns/net. `ip netns`
keeps such mounts in /run/netns, for the whole machine; a lab keeps its own below its own directory, so that two labs
cannot meet, and so that whatever is found there is the lab's to remove, even when the lab that made it was killed.

Entering is setns(2), not `ip netns exec`: that also gives the command a mount namespace of its own with a fresh /sys.
After a plain setns the mounts are the machine's; only /sys/class/net keeps naming the devices of the namespace that
/sys was mounted in, so nothing here reads it. A namespace belongs to a thread: the caller comes back before anything
else runs, and if it cannot, ends.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from weavenet.errors import LabError

CLONE_NEWNET = 0x40000000  # <linux/sched.h>
MS_BIND = 0x1000  # <linux/mount.h>
MNT_DETACH = 2
THIS_THREADS = "/proc/thread-self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: Path, kind: str, flags: int = 0) -> None:
    """Attach a file system, or with MS_BIND a file. Raises LabError."""
    if _libc.mount(source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), None) != 0:
        raise _refused(f"mount {source} on {target}")


def unmount(target: Path) -> bool:
    """Unmount at once, even if in use; False if nothing is mounted there. Raises LabError."""
    if _libc.umount2(os.fsencode(target), MNT_DETACH) == 0:
        return True
    if ctypes.get_errno() in (22, 2):  # EINVAL: not a mount point; ENOENT: not there at all
        return False
    raise _refused(f"unmount {target}")


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace kept by a mount on `path`."""

    path: Path

    def create(self) -> None:
        """Make the namespace, with nothing in it but a loopback device that is down. Raises LabError."""
        try:
            self.path.touch(exist_ok=False)
        except FileExistsError:
            raise LabError(f"namespace {self.path} is there already") from None
        with _back_afterwards():
            if _libc.unshare(CLONE_NEWNET) != 0:
                raise _refused("make a network namespace")
            mount(THIS_THREADS, self.path, "none", MS_BIND)

    def delete(self) -> None:
        """Let go of the namespace; it ends, with the devices in it, when no process is left in it."""
        unmount(self.path)
        self.path.unlink(missing_ok=True)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Have this thread, and the processes it starts, in the namespace. Raises LabError."""
        with _back_afterwards():
            self.enter()
            yield

    def enter(self) -> None:
        """Move this thread into the namespace for good. Raises LabError."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise LabError(f"cannot open namespace {self.path}: {error.strerror}") from None
        try:
            if _libc.setns(descriptor, CLONE_NEWNET) != 0:
                raise _refused(f"enter namespace {self.path}")
        finally:
            os.close(descriptor)

    def inode(self) -> int | None:
        """Return the number by which the kernel names the namespace; None if it is not there."""
        try:
            return self.path.stat().st_ino
        except FileNotFoundError:
            return None


@contextmanager
def _back_afterwards() -> Iterator[None]:
    home = os.open(THIS_THREADS, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        # Going on in the wrong namespace would do things to the wrong host.
        assert _libc.setns(home, CLONE_NEWNET) == 0, "cannot return to the namespace this thread came from"
        os.close(home)


def _refused(action: str) -> LabError:
    number = ctypes.get_errno()
    hint = "; this needs root" if number == 1 else ""
    return LabError(f"cannot {action}: {os.strerror(number)}{hint}")
