"""Limits on what a pod sends and receives: tbf on the host's end, and on an ifb device for the other direction.

    tc_ratespec   cell log u8 │ link layer u8 │ overhead u16 │ cell align i16 │ mpu u16 │ rate u32      12 bytes
    tc_tbf_qopt   rate │ peak rate │ limit u32 │ buffer u32 │ mtu u32
    tc_u32_sel    flags u8 │ shift u8 │ keys u8 │ - │ offset mask be16 │ off u16 │ off i16
                  hash off i16 │ hash mask be32
                  then per key: mask be32 │ value be32 │ offset i32 │ offset mask i32
    tc_mirred     index u32 │ capab u32 │ action i32 │ references i32 │ binds i32 │ what to do i32 │ ifindex u32

With the link layer said to be Ethernet the kernel needs no rate table, and TCA_TBF_BURST spares us its ticks of 64 ns
(net/sched/sch_tbf.c). It tells the rate and the limit again, from which the burst follows. The classifier is u32 with
one key that matches anything: the oldest there is, and the one that CNI's plugin uses. Sources: <linux/pkt_sched.h>,
<linux/pkt_cls.h>, <linux/tc_act/tc_mirred.h>, tc-tbf(8).
"""

import errno
import socket
import struct
from collections.abc import Mapping

from weavenet.dataplane.limits import LATENCY_MS, Limiter, RateLimit, limiter_alias, parse_limiter
from weavenet.errors import KernelError
from weavenet.linux.links import change_link, create_ifb, find_link, list_links, set_alias, set_ipv6_link_local
from weavenet.linux.netlink import (
    NEW,
    Flag,
    Kind,
    Netlink,
    Request,
    attribute,
    nested,
    parse_attributes,
    read_number,
    read_text,
    text,
    u32,
    u64,
)

_TCMSG = struct.Struct("=BxxxiIII")
_RATE = struct.Struct("=BBHhHI")
_TBF = struct.Struct("=12s12sIII")
_U32_SELECTOR = struct.Struct("=BBBxHHhhI IIii")
_MIRRED = struct.Struct("=IIiiiiI")

_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_TBF_PARMS, _TCA_TBF_RATE64, _TCA_TBF_BURST = 1, 4, 6
_TCA_U32_SEL, _TCA_U32_ACT = 5, 7
_TCA_ACT_KIND, _TCA_ACT_OPTIONS, _TCA_MIRRED_PARMS = 1, 2, 2
_ROOT, _INGRESS, _INGRESS_HANDLE, _FIRST_HANDLE = 0xFFFF_FFFF, 0xFFFF_FFF1, 0xFFFF_0000, 0x0001_0000
_ETHERNET = 1  # TC_LINKLAYER_ETHERNET
_TERMINAL = 1  # TC_U32_TERMINAL
_STOLEN, _REDIRECT_TO_EGRESS = 4, 1  # TC_ACT_STOLEN, TCA_EGRESS_REDIR
_ALL_PROTOCOLS = 0x0003
_PRIORITY = 1
_U32_MAX = 0xFFFF_FFFF
_NONE = frozenset({errno.ENOENT, errno.EINVAL, errno.ENODEV})  # no qdisc, or the kernel's default; no device


def limit_towards_pod(netlink: Netlink, index: int, limit: RateLimit) -> None:
    """Limit what leaves by the host's end. Raises KernelError."""
    netlink.execute(_tbf(index, limit))


def limit_from_pod(netlink: Netlink, index: int, limiter: Limiter, limit: RateLimit, *, mtu: int) -> None:
    """Limit what comes in by the host's end; on failure the limiter may be left. Raises KernelError."""
    netlink.execute(create_ifb(limiter.name, mtu))
    made = find_link(netlink, limiter.name)
    if made is None:
        raise KernelError(f"cannot limit the pod: {limiter.name} vanished")
    operation = f"mark {limiter.name} as ours and switch it on"
    netlink.execute(
        change_link(made.index, operation, set_alias(limiter_alias(limiter)), set_ipv6_link_local(on=False), up=True),
        _tbf(made.index, limit),
        _ingress(index),
        _redirection(index, made.index),
    )


def list_limiters(netlink: Netlink) -> tuple[Limiter, ...]:
    """Return all that are ours. Raises KernelError."""
    found = (parse_limiter(link.name, link.alias) for link in list_links(netlink, "ifb"))
    return tuple(sorted(filter(None, found)))


def read_limit_towards_pod(netlink: Netlink, index: int) -> RateLimit | None:
    """Return what limits what leaves by the host's end. Raises KernelError."""
    return _read_tbf(netlink, index)


def read_limit_from_pod(netlink: Netlink, index: int, limiter: Limiter) -> RateLimit | None:
    """Return what limits what comes in by the host's end; None also where nothing leads to the limiter."""
    link = find_link(netlink, limiter.name)
    if link is None or parse_limiter(link.name, link.alias) != limiter or not link.up:
        return None
    filters = Request("look for filters", Kind.GETTFILTER, _TCMSG.pack(0, index, 0, _INGRESS_HANDLE, 0), forgiven=_NONE)
    if not any(
        read_text(parse_attributes(answer[_TCMSG.size :]), _TCA_KIND) == "u32" for answer in netlink.dump(filters)
    ):
        return None
    return _read_tbf(netlink, link.index)


def _tbf(index: int, limit: RateLimit) -> Request:
    rate = _RATE.pack(0, _ETHERNET, 0, 0, 0, min(limit.bytes_per_s, _U32_MAX))
    options = attribute(_TCA_TBF_PARMS, _TBF.pack(rate, bytes(12), min(limit.queue_bytes, _U32_MAX), 0, 0))
    options += u32(_TCA_TBF_BURST, limit.burst_bytes)
    if limit.bytes_per_s > _U32_MAX:
        options += u64(_TCA_TBF_RATE64, limit.bytes_per_s)
    body = _TCMSG.pack(0, index, _FIRST_HANDLE, _ROOT, 0) + text(_TCA_KIND, "tbf") + nested(_TCA_OPTIONS, options)
    return Request(f"limit device {index} to {limit}", Kind.NEWQDISC, body, NEW)


def _ingress(index: int) -> Request:
    body = _TCMSG.pack(0, index, _INGRESS_HANDLE, _INGRESS, 0) + text(_TCA_KIND, "ingress")
    return Request(f"have device {index} look at what comes in", Kind.NEWQDISC, body, NEW)


def _redirection(index: int, limiter: int) -> Request:
    selector = _U32_SELECTOR.pack(_TERMINAL, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    redirect = attribute(_TCA_MIRRED_PARMS, _MIRRED.pack(0, 0, _STOLEN, 0, 0, _REDIRECT_TO_EGRESS, limiter))
    action = nested(1, text(_TCA_ACT_KIND, "mirred"), nested(_TCA_ACT_OPTIONS, redirect))
    options = nested(_TCA_OPTIONS, attribute(_TCA_U32_SEL, selector), nested(_TCA_U32_ACT, action))
    info = _PRIORITY << 16 | socket.htons(_ALL_PROTOCOLS)
    body = _TCMSG.pack(0, index, 0, _INGRESS_HANDLE, info) + text(_TCA_KIND, "u32") + options
    return Request(f"lead what comes in by device {index} over device {limiter}", Kind.NEWTFILTER, body, Flag.CREATE)


def _read_tbf(netlink: Netlink, index: int) -> RateLimit | None:
    # Asked for one queue, a kernel that has only its default there does not answer at all; a list always ends.
    for answer in netlink.dump(Request("list queues", Kind.GETQDISC, _TCMSG.pack(0, 0, 0, 0, 0))):
        _, device, _, parent, _ = _TCMSG.unpack_from(answer)
        attributes = parse_attributes(answer[_TCMSG.size :])
        if (device, parent, read_text(attributes, _TCA_KIND)) == (index, _ROOT, "tbf"):
            # Only now: other queues' options are bare structs, such as pfifo_fast's.
            return _decode_tbf(parse_attributes(attributes.get(_TCA_OPTIONS, b"")))
    return None


def _decode_tbf(options: Mapping[int, bytes]) -> RateLimit:
    parameters = options.get(_TCA_TBF_PARMS, b"")
    if len(parameters) < _TBF.size:
        raise KernelError(f"a netlink message about tbf has only {len(parameters)} bytes of parameters")
    rate, _, limit, _, _ = _TBF.unpack_from(parameters)
    bytes_per_s = read_number(options, _TCA_TBF_RATE64, _RATE.unpack(rate)[-1])
    return RateLimit(bytes_per_s, limit - bytes_per_s * LATENCY_MS // 1000)
