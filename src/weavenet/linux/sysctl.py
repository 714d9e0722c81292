"""Settings below /proc/sys, of the network namespace of the calling thread.

/proc/sys/net shows each reader its own namespace, thread by thread (net/sysctl_net.c), so there is no need for another
/proc, nor for entering more than the network namespace. Not all settings are there on all kernels: without IPv6 there
is no `net/ipv6`, and where a setting is not there, it need not be switched off.

In a container that is not privileged, /proc/sys is mounted read-only. The manifest then mounts the node's /proc/sys/net
below /host, writable; that it is the same view, thread by thread, holds there as well.
"""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from weavenet.dataplane.model import NeighbourTimes
from weavenet.errors import RefusedError

_ROOTS = (Path("/proc/sys"), Path("/host/proc/sys"))


@cache
def _root() -> Path:
    """Return where settings can be changed; where they can be read, if they can be changed nowhere."""
    return writable_root(_ROOTS)


def writable_root(roots: tuple[Path, ...]) -> Path:
    """Return the first root whose `net` is not mounted read-only; the first of all if there is none."""
    for root in roots:
        try:
            mounted = os.statvfs(root / "net")
        except OSError:  # not there: not in a container
            continue
        if not mounted.f_flag & os.ST_RDONLY:
            return root
    return roots[0]


def read_sysctl(*path: str) -> str | None:
    """Return a setting; None if this kernel has none by that name. Device names may have dots, so a path is in parts.

    Raises RefusedError.
    """
    try:
        return _root().joinpath(*path).read_text().strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _refused(f"read sysctl {'/'.join(path)}", error) from error


def write_sysctl(value: str, *path: str) -> bool:
    """Change a setting; False if this kernel has none by that name. Raises RefusedError."""
    try:
        # O_TRUNC has no meaning here, and "r+" is the mode without it that cannot create.
        with _root().joinpath(*path).open("rb+", buffering=0) as file:
            file.write(value.encode())
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _refused(f"set sysctl {'/'.join(path)} to {value}", error) from error
    return True


def read_switch(path: Sequence[str]) -> bool | None:
    """Say whether a setting is on, which is to say not 0; None if this kernel has none by that name."""
    value = read_sysctl(*path)
    return None if value is None else value != "0"


def read_accept_ra(device: str) -> bool:
    """Say whether IPv6 router advertisements are obeyed on a device."""
    return read_sysctl("net", "ipv6", "conf", device, "accept_ra") not in (None, "0")


def write_accept_ra(device: str, *, accept: bool) -> None:
    """Obey, or not, IPv6 router advertisements on a device."""
    write_sysctl("1" if accept else "0", "net", "ipv6", "conf", device, "accept_ra")


def read_promote_secondaries(device: str) -> bool:
    """Say whether a device keeps its other addresses in a subnet when it loses the first."""
    return read_sysctl("net", "ipv4", "conf", device, "promote_secondaries") not in (None, "0")


def write_promote_secondaries(device: str, *, promote: bool) -> None:
    """Have a device keep, or not, its other addresses in a subnet when it loses the first."""
    write_sysctl("1" if promote else "0", "net", "ipv4", "conf", device, "promote_secondaries")


def read_neighbour_times(device: str) -> NeighbourTimes:
    """Return the pace of a device's ARP entries. Raises RefusedError."""

    def number(name: str) -> int:
        return int(read_sysctl("net", "ipv4", "neigh", device, name) or "0")

    return NeighbourTimes(
        base_reachable_ms=number("base_reachable_time_ms"),
        delay_probe_s=number("delay_first_probe_time"),
        unicast_probes=number("ucast_solicit"),
    )


def _refused(operation: str, error: OSError) -> RefusedError:
    return RefusedError(operation, error.errno or 0, error.strerror or str(error))
