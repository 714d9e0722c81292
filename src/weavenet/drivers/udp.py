"""The UDP socket that sleeve speaks by: datagrams in batches, as few calls of the kernel as it takes.

Datagrams to one peer that are of one length, but for a shorter last one, leave in one call: the kernel cuts them apart
as late as it can (UDP_SEGMENT, udp(7)), and what is on the wire is as ever. It wants UDP checksums for that, which
Weave's datagrams do not have and its sockets do not mind. In the other direction what came in a row may come out in
one piece, with the length at which to cut it (UDP_GRO). Where the kernel refuses, everything goes one by one.

Two ways lead to a peer: on one the kernel may fragment, on the other it must not, and refuses what is too large.
"""

import errno
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from weavenet.address import Endpoint, address_from_bytes, format_address
from weavenet.overlay.sleeve.fast_peer import FastSend
from weavenet.overlay.sleeve.fast_pipe import Received
from weavenet.overlay.sleeve.pipe import Datagram

DATAGRAM_BYTES_MAX = 65_507  # of UDP payload, in one call too
_SEGMENTS_MAX = 64  # UDP_MAX_SEGMENTS of <linux/udp.h> until 6.9
_BUFFER_BYTES = 4 << 20
_PEERS_MAX = 4096  # addresses remembered in both forms

_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33  # <asm-generic/socket.h>
_IP_MTU_DISCOVER, _PMTUDISC_DONT, _PMTUDISC_DO = 10, 0, 2  # <linux/in.h>
_IP_MTU = 14
_SEGMENT = struct.Struct("=H")
_SOL_UDP, _UDP_SEGMENT, _UDP_GRO = 17, 103, 104  # <linux/udp.h>
_ANCILLARY_BYTES = socket.CMSG_SPACE(4)
_TRANSIENT = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ECONNREFUSED, errno.EINTR})


class Refusal(msgspec.Struct, frozen=True):
    """A datagram that the kernel will not send, as packets to there take `pmtu_bytes`, or for a reason."""

    datagram: Datagram
    pmtu_bytes: int
    reason: str


def open_udp(host: str, port: int) -> socket.socket:
    """Make the socket. Raises OSError."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        for option, force in ((socket.SO_RCVBUF, _SO_RCVBUFFORCE), (socket.SO_SNDBUF, _SO_SNDBUFFORCE)):
            try:
                udp.setsockopt(socket.SOL_SOCKET, force, _BUFFER_BYTES)
            except PermissionError:  # then it is as much as the host allows to all
                udp.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
        with suppress(OSError):  # kernels before 5.0
            udp.setsockopt(_SOL_UDP, _UDP_GRO, 1)
        udp.bind((host, port))
    except OSError:
        udp.close()
        raise
    return udp


class UdpPort:
    """Sends and receives by such a socket, which never blocks."""

    def __init__(self, udp: socket.socket) -> None:
        """Take it over."""
        self._udp = udp
        self._may_fragment: bool | None = None
        self._joins = True  # whether the kernel takes several datagrams at once
        self._endpoints: dict[tuple[str, int], Endpoint] = {}
        self._addresses: dict[Endpoint, tuple[str, int]] = {}

    def fileno(self) -> int:
        """Return the descriptor, to wait on."""
        return self._udp.fileno()

    def receive_into(self, buffers: Sequence[bytearray]) -> list[Received]:
        """Return what has come, one call for each buffer at most; of datagrams in a row the last may be shorter."""
        received: list[Received] = []
        for buffer in buffers:
            try:
                size, ancillary, _, address = self._udp.recvmsg_into([buffer], _ANCILLARY_BYTES)
            except BlockingIOError:
                break
            remote = self._endpoints.get(address) or self._remember(address)
            step = int.from_bytes(ancillary[0][2][:4], sys.byteorder) if ancillary else 0
            received.append((buffer, size, step or size or 1, remote))
        return received

    def send(self, datagrams: Sequence[Datagram]) -> list[Refusal]:
        """Send them in order; return those that can never be sent like this. What is lost on the way is lost."""
        refusals: list[Refusal] = []
        at = 0
        while at < len(datagrams):
            end = self._run_end(datagrams, at)
            if end - at == 1 or not self._send_joined(datagrams[at:end]):
                alone = [refusal for one in datagrams[at:end] for refusal in self._send_alone(one)]
                if end - at > 1 and not alone:
                    self._joins = False  # it took each, but not all together
                refusals += alone
            at = end
        return refusals

    def send_gathered(self, sends: Sequence[FastSend]) -> list[Refusal]:
        """Send what is put together already; as `send`."""
        refusals: list[Refusal] = []
        for one in sends:
            if one.count == 1 or self._joins:
                self._choose_way(may_fragment=False)
                control = [] if one.count == 1 else [(_SOL_UDP, _UDP_SEGMENT, _SEGMENT.pack(one.segment_bytes))]
                try:
                    self._udp.sendmsg(one.buffers, control, 0, self._address_of(one.remote))
                except OSError as error:
                    if error.errno in _TRANSIENT:
                        continue
                else:
                    continue
            refusals += self._send_apart(one)
        return refusals

    def _send_apart(self, one: FastSend) -> list[Refusal]:
        """Send one by one, as the kernel refuses all together; the first may tell why."""
        whole, step = b"".join(one.buffers), one.segment_bytes
        for at in range(0, len(whole), step):
            refused = self._send_alone(Datagram(one.connection, one.remote, whole[at : at + step], dont_fragment=True))
            if refused:
                return refused
        self._joins = self._joins and one.count == 1
        return []

    def _run_end(self, datagrams: Sequence[Datagram], start: int) -> int:
        """Return where the datagrams that can leave together with the one at `start` end."""
        first = datagrams[start]
        length = total = len(first.payload)
        end = start + 1
        if not first.dont_fragment or not self._joins:
            return end
        for one in datagrams[end : start + _SEGMENTS_MAX]:
            this = len(one.payload)
            total += this
            apart = one.connection != first.connection or not one.dont_fragment
            if apart or this > length or total > DATAGRAM_BYTES_MAX:
                break
            end += 1
            if this < length:
                break
        return end

    def _send_joined(self, datagrams: Sequence[Datagram]) -> bool:
        """Send all in one call; False if the kernel does not want to."""
        self._choose_way(may_fragment=False)
        control = [(_SOL_UDP, _UDP_SEGMENT, _SEGMENT.pack(len(datagrams[0].payload)))]
        payloads = [one.payload for one in datagrams]
        try:
            self._udp.sendmsg(payloads, control, 0, self._address_of(datagrams[0].remote))
        except OSError as error:
            return error.errno in _TRANSIENT
        return True

    def _send_alone(self, datagram: Datagram) -> list[Refusal]:
        self._choose_way(may_fragment=not datagram.dont_fragment)
        try:
            self._udp.sendto(datagram.payload, self._address_of(datagram.remote))
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                return [Refusal(datagram, self._path_mtu(datagram.remote), "")]
            if error.errno not in _TRANSIENT:
                return [Refusal(datagram, 0, f"cannot send to {datagram.remote}: {error.strerror}")]
        return []

    def _choose_way(self, *, may_fragment: bool) -> None:
        if may_fragment != self._may_fragment:
            how = _PMTUDISC_DONT if may_fragment else _PMTUDISC_DO
            self._udp.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, how)
            self._may_fragment = may_fragment

    def _remember(self, address: tuple[str, int]) -> Endpoint:
        host, port = address
        if len(self._endpoints) >= _PEERS_MAX:  # anybody can send from anywhere
            self._endpoints.clear()
        self._endpoints[address] = endpoint = Endpoint(address_from_bytes(socket.inet_aton(host)), port)
        return endpoint

    def _address_of(self, remote: Endpoint) -> tuple[str, int]:
        address = self._addresses.get(remote)
        if address is None:
            if len(self._addresses) >= _PEERS_MAX:
                self._addresses.clear()
            self._addresses[remote] = address = (format_address(remote.address), remote.port)
        return address

    def _path_mtu(self, remote: Endpoint) -> int:
        """Ask the kernel how large packets to there may be; 0 if it does not say."""
        with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(self._address_of(remote))
            return probe.getsockopt(socket.IPPROTO_IP, _IP_MTU)
        return 0
