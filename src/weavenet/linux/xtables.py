"""Whether iptables-legacy drops what pods send through this host: read only, and only where it is in use.

nftables does not show these rules, and nothing in it overrules them. They are had by getsockopt(2), as the iptables
program has them: first where things are, then the table itself.

    ipt_getinfo   name 32 │ valid hooks u32 │ where each hook begins 5 u32 │ its policy 5 u32 │ entries u32 │ bytes u32
    ipt_entry     addresses 16 │ in 16 │ out 16 │ masks 32 │ protocol, flags 4 │ - u32 │ target at u16 │ next at u16
                  │ - u32 │ counters 16 │ matches … │ target
    target        size u16 │ name 29, blank for a verdict │ revision u8 │ verdict i32

Asking for a table makes it, so what is in use is read from /proc first. Source: <linux/netfilter_ipv4/ip_tables.h>,
<linux/netfilter/x_tables.h>.
"""

import ctypes
import os
import socket
import struct
from pathlib import Path

from weavenet.errors import RefusedError

_NAMES = Path("/proc/thread-self/net/ip_tables_names")  # of the calling thread's network namespace
_FILTER, _FORWARD = b"filter", 2
_GET_INFO, _GET_ENTRIES = 64, 65  # IPT_SO_GET_INFO, IPT_SO_GET_ENTRIES
_INFO = struct.Struct("=32sI5I5III")
_ENTRIES_HEAD_BYTES = 40  # name, size, and four bytes so that entries lie on eight
_ENTRY = struct.Struct("=16x16s16s36xIHHI16x")
_TARGET = struct.Struct("=H29sBi")
_DROP, _ACCEPT = -1, -2  # -NF_DROP - 1, -NF_ACCEPT - 1
_TABLE_BYTES_MAX = 64 << 20

_libc = ctypes.CDLL(None, use_errno=True)


def legacy_forward_drops(bridge: str) -> bool:
    """Say whether FORWARD drops by default and has no rules that accept what comes from, and goes to, a bridge.

    Raises RefusedError.
    """
    try:
        names = _NAMES.read_bytes().split()
    except FileNotFoundError:
        return False
    if _FILTER not in names:
        return False
    info = _INFO.unpack(_ask(_GET_INFO, _FILTER.ljust(32, b"\0"), _INFO.size))
    begin, policy, size = info[2 + _FORWARD], info[7 + _FORWARD], info[-1]
    head = struct.pack("=32sI", _FILTER, size).ljust(_ENTRIES_HEAD_BYTES, b"\0")
    entries = _ask(_GET_ENTRIES, head, _ENTRIES_HEAD_BYTES + min(size, _TABLE_BYTES_MAX))[_ENTRIES_HEAD_BYTES:]
    return read_forward_drops(entries, begin, policy, bridge.encode())


def read_forward_drops(entries: bytes, begin: int, policy: int, bridge: bytes) -> bool:
    """Read the rules from `begin` to the one that is the policy, of which the last counts."""
    accepted: set[int] = set()
    at = begin
    while 0 <= at <= len(entries) - _ENTRY.size:
        came_by, goes_by, _, target_at, next_at, _ = _ENTRY.unpack_from(entries, at)
        verdict = 0
        if target_at >= _ENTRY.size and at + target_at + _TARGET.size <= len(entries):
            _, name, _, number = _TARGET.unpack_from(entries, at + target_at)
            verdict = 0 if name.strip(b"\0") else number
        if at == policy:
            return verdict == _DROP and len(accepted) < 2
        if verdict == _ACCEPT:
            accepted |= {number for number, device in enumerate((came_by, goes_by)) if device.rstrip(b"\0") == bridge}
        if next_at < _ENTRY.size:
            return False
        at += next_at
    return False


def _ask(option: int, question: bytes, length: int) -> bytes:
    buffer = ctypes.create_string_buffer(question, length)
    size = ctypes.c_uint32(length)
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as opened:
        if _libc.getsockopt(opened.fileno(), socket.SOL_IP, option, buffer, ctypes.byref(size)):
            number = ctypes.get_errno()
            raise RefusedError("read the rules of iptables-legacy", number, os.strerror(number))
    return buffer.raw[: size.value]
