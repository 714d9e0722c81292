"""The TAP device by which frames come to user space, and go back, for peers that are reached by sleeve.

It is there for as long as somebody holds its descriptor, so nothing of it outlives the process it belongs to, however
that ends. Reading and writing never block. Source: Documentation/networking/tuntap.rst; <linux/if_tun.h>.
"""

import errno
import fcntl
import os
import stat
import struct
import time
from pathlib import Path

from weavenet.errors import KernelError
from weavenet.linux.links import change_link, require_link, set_ipv6_link_local, set_mtu
from weavenet.linux.netlink import Netlink

SLEEVE_TAP = "weave-sleeve"
_DEVICE = Path("/dev/net/tun")
_DEVICE_NUMBER = os.makedev(10, 200)
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_IFREQ = struct.Struct("16sH22x")
_MTU_BYTES = 65_521  # the most a TAP takes: 65535 less the Ethernet header
_BUSY_S, _BUSY_STEP_S = 3.0, 0.02


def open_tap(name: str = SLEEVE_TAP) -> tuple[int, int]:
    """Make the device in the calling thread's network namespace; return its descriptor and its interface index.

    One of a process that is just ending is waited for. Raises KernelError.
    """
    descriptor = _open_device()
    try:
        _claim(descriptor, name)
        with Netlink() as netlink:
            index = require_link(netlink, name).index
            quiet = set_ipv6_link_local(on=False)
            netlink.execute(change_link(index, f"switch {name} on", set_mtu(_MTU_BYTES), quiet, up=True))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, index


def _open_device() -> int:
    try:
        if not _DEVICE.exists():  # a container's /dev may lack it
            _DEVICE.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            os.mknod(_DEVICE, stat.S_IFCHR | 0o600, _DEVICE_NUMBER)
        return os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError(f"cannot open {_DEVICE}: {error.strerror}; sleeve needs it") from error


def _claim(descriptor: int, name: str) -> None:
    deadline_s = time.monotonic() + _BUSY_S
    while True:
        try:
            fcntl.ioctl(descriptor, _TUNSETIFF, _IFREQ.pack(name.encode(), _IFF_TAP | _IFF_NO_PI))
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline_s:
                raise KernelError(f"cannot make the TAP device {name}: {error.strerror}") from error
            time.sleep(_BUSY_STEP_S)
        else:
            return
