"""Programs on a device's traffic: the clsact qdisc and the two filters of ours below it.

Each direction has exactly one filter of ours, with a fixed priority and handle. Adding it where it already is replaces
the program in one step (net/sched/cls_bpf.c, cls_bpf_change swaps the entry under RCU), so no packet passes without
one. Asking for it by the same priority and handle answers with its program's number, and needs no dump.

All of this is about the network namespace of the calling thread. Sources: tc-bpf(8), <linux/rtnetlink.h>,
<linux/pkt_cls.h>.
"""

import errno
import socket
import struct
from enum import IntEnum

from weavenet.linux.bpf import FileDescriptor
from weavenet.linux.netlink import (
    NEW,
    NO_FLAGS,
    Flag,
    Kind,
    Netlink,
    Request,
    nested,
    parse_attributes,
    read_number,
    text,
    u32,
)

_TCMSG = struct.Struct("=BxxxiIII")  # family, ifindex, handle, parent, info
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_BPF_FD, _TCA_BPF_NAME, _TCA_BPF_FLAGS, _TCA_BPF_ID = 6, 7, 8, 11
_DIRECT_ACTION = 1  # the program's return value is the verdict
_CLSACT, _CLSACT_HANDLE = 0xFFFF_FFF1, 0xFFFF_0000
_ALL_PROTOCOLS = 0x0003
_PRIORITY, _HANDLE = 1, 1
_ABSENT = frozenset({errno.ENOENT, errno.EINVAL, errno.ENODEV})  # no filter, no clsact, no device


class Direction(IntEnum):
    """Which way traffic goes; the values are the parents of the filters (TC_H_MIN_INGRESS, TC_H_MIN_EGRESS)."""

    INGRESS = 0xFFFF_FFF2
    EGRESS = 0xFFFF_FFF3


def attach(ifindex: int, programs: dict[Direction, tuple[str, FileDescriptor]]) -> None:
    """Put programs on a device, or replace those of ours that are there, without a gap. Raises KernelError."""
    qdisc = Request(
        f"add clsact to device {ifindex}",
        Kind.NEWQDISC,
        _TCMSG.pack(0, ifindex, _CLSACT_HANDLE, _CLSACT, 0) + text(_TCA_KIND, "clsact"),
        NEW,
        frozenset({errno.EEXIST}),
    )
    with Netlink() as netlink:
        netlink.execute(qdisc)
        for direction, (name, program) in programs.items():
            options = nested(
                _TCA_OPTIONS,
                u32(_TCA_BPF_FD, program),
                text(_TCA_BPF_NAME, name),
                u32(_TCA_BPF_FLAGS, _DIRECT_ACTION),
            )
            operation = f"attach {name} to device {ifindex}"
            body = _filter(ifindex, direction) + options
            netlink.execute(Request(operation, Kind.NEWTFILTER, body, Flag.CREATE | Flag.REPLACE))


def attached(ifindex: int, direction: Direction) -> int | None:
    """Return the number of our program on a device, or None if there is none. Raises KernelError."""
    operation = f"look for a program on device {ifindex}"
    with Netlink() as netlink:
        body = _filter(ifindex, direction)
        answer = netlink.get(Request(operation, Kind.GETTFILTER, body, NO_FLAGS, _ABSENT))
    if answer is None:
        return None
    options = parse_attributes(parse_attributes(answer[_TCMSG.size :]).get(_TCA_OPTIONS, b""))
    return read_number(options, _TCA_BPF_ID) or None


def detach(ifindex: int) -> None:
    """Take clsact, and with it both programs, off a device; nothing to do if there is none."""
    body = _TCMSG.pack(0, ifindex, _CLSACT_HANDLE, _CLSACT, 0) + text(_TCA_KIND, "clsact")
    operation = f"detach the programs from device {ifindex}"
    with Netlink() as netlink:
        netlink.execute(Request(operation, Kind.DELQDISC, body, NO_FLAGS, _ABSENT))


def _filter(ifindex: int, direction: Direction) -> bytes:
    info = _PRIORITY << 16 | socket.htons(_ALL_PROTOCOLS)
    return _TCMSG.pack(0, ifindex, _HANDLE, direction, info) + text(_TCA_KIND, "bpf")
