"""Special frames that this host's firewall lets in: as nftables logs them to us, behind everybody else's rules.

A packet socket sees a heartbeat before any firewall does (special.py), and would believe in a path that drops all else
that comes. So a rule of ours, at the end of the input hook (dataplane/nft.py), logs heartbeats to a group of netlink's
nfnetlink_log, and this is its reader. Where the kernel has no such thing, or refuses the rule, the packet socket is all
there is.

    nfgenmsg     family u8 │ version u8 │ group u16, network order
    configuring  command u8: bind;  mode { bytes u32, network order │ copy u8 │ pad };  queue length u32, network order
    hearing      payload: the packet from its IPv4 header on, as far as was asked for

Sources: <linux/netfilter/nfnetlink.h>, <linux/netfilter/nfnetlink_log.h>.
"""

import struct

from weavenet.dataplane.nft import HEARTBEAT_BYTES
from weavenet.linux.netlink import Family, Kind, Netlink, Request, attribute, parse_attributes
from weavenet.linux.special import SpecialFrame, decode_special

_NFGENMSG_BYTES = 4
_MODE = struct.Struct("!IBx")
_COMMAND, _MODE_KIND, _QUEUE_LENGTH = 1, 2, 5  # NFULA_CFG_CMD, _MODE, _QTHRESH
_BIND, _COPY_PACKET = 1, 2  # NFULNL_CFG_CMD_BIND, NFULNL_COPY_PACKET
_PACKET = 0x400  # NFULNL_MSG_PACKET of NFNL_SUBSYS_ULOG
_PAYLOAD = 9  # NFULA_PAYLOAD
_TOTAL_LENGTH = slice(2, 4)  # of IPv4's header
_READS_MAX = 64  # in one go, so that a storm cannot hold the loop


class PassedReceiver:
    """Receives special frames that the firewall has let pass, for one UDP port."""

    def __init__(self, port: int) -> None:
        """Be the reader of the log group of that number, in the calling thread's network namespace.

        Raises KernelError; for a group that somebody else reads, too.
        """
        self._port = port
        self._netlink = Netlink(Family.NETFILTER)
        body = bytes(2) + port.to_bytes(2, "big")
        body += attribute(_COMMAND, bytes((_BIND,)))
        body += attribute(_MODE_KIND, _MODE.pack(HEARTBEAT_BYTES, _COPY_PACKET))
        body += attribute(_QUEUE_LENGTH, (1).to_bytes(4, "big"))
        try:
            self._netlink.execute(Request(f"read nftables' log group {port}", Kind.CONFIGURE_LOG, body))
        except BaseException:
            self._netlink.close()
            raise

    def fileno(self) -> int:
        """Return a descriptor that is readable when frames wait."""
        return self._netlink.fileno()

    def receive(self) -> list[SpecialFrame]:
        """Take the frames that wait, up to a limit. Raises KernelError."""
        frames: list[SpecialFrame] = []
        for _ in range(_READS_MAX):
            messages = self._netlink.hear()
            if not messages:
                break
            for message in messages:
                if message.kind != _PACKET:
                    continue
                packet = parse_attributes(message.body[_NFGENMSG_BYTES:]).get(_PAYLOAD, b"")
                frame = decode_special(packet, int.from_bytes(packet[_TOTAL_LENGTH], "big"), self._port)
                if frame is not None:
                    frames.append(frame)
        return frames

    def close(self) -> None:
        """Stop reading."""
        self._netlink.close()
