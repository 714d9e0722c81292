"""Forgetting connections that the kernel tracks.

What was once decided about a flow of UDP holds for as long as packets come: one to a host port whose pod has gone would
never reach the pod that has the port now. TCP needs no such help, its connections end.

    nfgenmsg     family u8 │ version u8 │ resource u16, network order                      <linux/netfilter/nfnetlink.h>
    then CTA_TUPLE_ORIG { CTA_TUPLE_IP { … } CTA_TUPLE_PROTO { number u8, ports u16 in network order } }
                                                                                 <linux/netfilter/nfnetlink_conntrack.h>

The kernel can pick connections out by a few fields (CTA_FILTER), but only since 5.8; so the table is read whole, and
what cannot be of interest is passed over by a comparison of bytes before anything is decoded.
"""

import errno
import struct
from collections.abc import Collection

from weavenet.linux.netlink import NO_FLAGS, Family, Kind, Netlink, Request, attribute, nested, parse_attributes

_NFGENMSG = struct.Struct("=BBH")
_AF_INET = 2
_CTA_TUPLE_ORIG, _CTA_TUPLE_PROTO, _CTA_PROTO_NUM, _CTA_PROTO_DST_PORT, _CTA_ID = 1, 2, 1, 3, 12
_UDP = b"\x11"
_GONE = frozenset({errno.ENOENT})
_BATCH = 64


def forget_udp_flows(ports: Collection[int]) -> int:
    """Delete the flows of UDP that were sent to one of these ports, and say how many. Raises KernelError."""
    head = _NFGENMSG.pack(_AF_INET, 0, 0)
    wanted = {port.to_bytes(2, "big") for port in ports}
    with Netlink(Family.NETFILTER) as netlink:
        found: list[Request] = []
        for answer in netlink.dump(Request("list tracked connections", Kind.GETCONNECTION, head)):
            if not any(port in answer for port in wanted):
                continue
            attributes = parse_attributes(answer[_NFGENMSG.size :])
            original = attributes.get(_CTA_TUPLE_ORIG, b"")
            protocol = parse_attributes(parse_attributes(original).get(_CTA_TUPLE_PROTO, b""))
            if protocol.get(_CTA_PROTO_NUM) == _UDP and protocol.get(_CTA_PROTO_DST_PORT) in wanted:
                # By its tuple and its number, so that no newer connection of the same tuple is meant.
                body = head + nested(_CTA_TUPLE_ORIG, original) + attribute(_CTA_ID, attributes.get(_CTA_ID, b""))
                found.append(Request("forget a connection", Kind.DELCONNECTION, body, NO_FLAGS, _GONE))
        for at in range(0, len(found), _BATCH):
            netlink.execute(*found[at : at + _BATCH])
    return len(found)
