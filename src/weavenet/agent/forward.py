"""The forwarder: a process that moves frames between the data plane and sleeve's UDP port, and does nothing else.

    agent ──table, special frames to send──▶ ┐
                                             ├ forwarder: packet socket ◀──▶ SleevePipe ◀──▶ UDP 6783
          ◀─special frames, refusals, counts─┘

It is a process of its own so that packets and the control plane never wait for each other. It gets three descriptors
from the agent, gives up every right it has, and from then on has nothing but them: what peers send is parsed by a
process that can do nothing else. It ends when the agent does; sequence numbers are lost with the
process, so the agent then ends every connection that had a sleeve, and with it the key that must not see them again.
"""

import ctypes
import errno
import os
import select
import socket
import time
from contextlib import suppress

from msgspec.structs import asdict

from weavenet.address import Address, Endpoint, address_from_bytes, format_address
from weavenet.effects import ConnectionNumber
from weavenet.linux.sleeve_port import receive_frames
from weavenet.overlay.sleeve import messages as m
from weavenet.overlay.sleeve.pipe import Datagram, SleevePipe

BATCH = 64
_FRAME_BYTES_MAX = 65_600
_COUNTERS_INTERVAL_S = 1.0
_COMPLAINT_INTERVAL_S = 0.25
_NOBODY = 65_534

_IP_MTU_DISCOVER, _PMTUDISC_DONT, _PMTUDISC_DO = 10, 0, 2  # <linux/in.h>
_IP_MTU = 14
_SO_NO_CHECK = 11  # <asm-generic/socket.h>; sleeve's datagrams have no UDP checksum, as Weave's
_PR_SET_NO_NEW_PRIVS, _PR_SET_NAME = 38, 15
_CAPABILITY_VERSION_3 = 0x20080522
_TRANSIENT = frozenset({errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ECONNREFUSED, errno.EINTR})


def open_udp(host: str, port: int) -> socket.socket:
    """Make the socket that sleeve speaks by. Raises OSError."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        udp.setsockopt(socket.SOL_SOCKET, _SO_NO_CHECK, 1)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            udp.setsockopt(socket.SOL_SOCKET, option, 4 << 20)
        udp.bind((host, port))
    except OSError:
        udp.close()
        raise
    return udp


def forward(control: socket.socket) -> None:
    """Be the forwarder: wait for the descriptors, then serve until the agent is gone."""
    message, descriptors, _, _ = socket.recv_fds(control, 1, 2)
    if not message or len(descriptors) != 2:
        return  # the agent never got that far
    udp = socket.socket(fileno=descriptors[1])
    give_up_rights()
    with suppress(KeyboardInterrupt, BrokenPipeError, ConnectionResetError):
        Forwarder(control, socket.socket(fileno=descriptors[0]), udp).run()


def give_up_rights() -> None:
    """Become nobody, without capabilities, and without a way to get any."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NAME, b"weave-forward", 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    with suppress(PermissionError):  # a container may lack the right to change; then clearing capabilities is all
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    libc.capset(ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))


class Forwarder:
    """The loop around a SleevePipe."""

    def __init__(self, control: socket.socket, port: socket.socket, udp: socket.socket) -> None:
        """Serve these three."""
        self._control = control
        self._port = port
        self._udp = udp
        self._pipe = SleevePipe()
        self._heard = bytearray()
        self._may_fragment: bool | None = None
        self._complained: dict[tuple[ConnectionNumber, str], float] = {}
        self._counted: dict[str, int] = {}

    def run(self) -> None:
        """Serve until the other end of the control socket is closed."""
        poll = select.epoll()
        for descriptor in (self._control.fileno(), self._port.fileno(), self._udp.fileno()):
            poll.register(descriptor, select.EPOLLIN)
        counters_due_s = 0.0
        while True:
            ready = {descriptor for descriptor, _ in poll.poll(_COUNTERS_INTERVAL_S)}
            if self._control.fileno() in ready and not self._listen():
                return
            if self._port.fileno() in ready:
                self._send_batch()
            if self._udp.fileno() in ready:
                self._receive_batch()
            now_s = time.monotonic()
            if now_s >= counters_due_s:
                counters_due_s = now_s + _COUNTERS_INTERVAL_S
                self._report_counters()

    # --- the agent ----------------------------------------------------------------------------------------------------

    def _listen(self) -> bool:
        data = self._control.recv(1 << 20)
        self._heard += data
        while len(self._heard) >= m.LENGTH_BYTES:
            end = m.LENGTH_BYTES + int.from_bytes(self._heard[: m.LENGTH_BYTES], "big")
            if len(self._heard) < end:
                break
            match m.decode_to_forwarder(bytes(self._heard[m.LENGTH_BYTES : end])):
                case m.TableMessage(table):
                    self._pipe.apply(table)
                case m.SendMessage(connection, frame, dont_fragment):
                    datagram = self._pipe.special(connection, frame, dont_fragment=dont_fragment)
                    if datagram is not None:
                        self._send(datagram)
            del self._heard[:end]
        return bool(data)

    def _say(self, message: m.FromForwarder) -> None:
        self._control.sendall(m.encode(message))

    def _report_counters(self) -> None:
        counters = asdict(self._pipe.counters)
        if counters != self._counted:
            self._counted = counters
            self._say(m.CountersMessage(counters))

    # --- frames -------------------------------------------------------------------------------------------------------

    def _send_batch(self) -> None:
        datagrams, back = self._pipe.outgoing(receive_frames(self._port, BATCH))
        for datagram in datagrams:
            self._send(datagram)
        self._write(back)

    def _receive_batch(self) -> None:
        received: list[tuple[bytes, Endpoint]] = []
        with suppress(BlockingIOError):
            for _ in range(BATCH):
                data, (host, port) = self._udp.recvfrom(_FRAME_BYTES_MAX)
                received.append((data, Endpoint(address_from_bytes(socket.inet_aton(host)), port)))
        frames, specials = self._pipe.incoming(received)
        self._write(frames)
        for one in specials:
            self._say(m.SpecialMessage(one.connection, one.remote, one.length, one.head, one.intact))

    def _write(self, frames: list[bytes]) -> None:
        for frame in frames:
            with suppress(OSError):  # a full queue drops, as any queue does
                self._port.send(frame)

    def _send(self, datagram: Datagram) -> None:
        may_fragment = not datagram.dont_fragment
        if may_fragment != self._may_fragment:
            how = _PMTUDISC_DONT if may_fragment else _PMTUDISC_DO
            self._udp.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, how)
            self._may_fragment = may_fragment
        remote = (format_address(datagram.remote.address), datagram.remote.port)
        try:
            self._udp.sendto(datagram.payload, remote)
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                self._too_big(datagram)
            elif error.errno not in _TRANSIENT and self._may_complain(datagram.connection, "failed"):
                self._say(m.FailedMessage(datagram.connection, f"cannot send to {datagram.remote}: {error.strerror}"))

    def _too_big(self, datagram: Datagram) -> None:
        pmtu = _path_mtu(datagram.remote.address, datagram.remote.port)
        if pmtu and self._may_complain(datagram.connection, f"pmtu {pmtu}"):
            self._say(m.TooBigMessage(datagram.connection, pmtu))

    def _may_complain(self, connection: ConnectionNumber, what: str) -> bool:
        """Whether to tell the agent: the same once in a while, as thousands of packets may meet the same fate."""
        now_s = time.monotonic()
        key = (connection, what)
        if now_s - self._complained.get(key, float("-inf")) < _COMPLAINT_INTERVAL_S:
            return False
        if len(self._complained) > 4096:
            self._complained.clear()
        self._complained[key] = now_s
        return True


def _path_mtu(address: Address, port: int) -> int:
    """Ask the kernel how large packets to there may be; 0 if it does not say."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((format_address(address), port))
        return probe.getsockopt(socket.IPPROTO_IP, _IP_MTU)
    return 0


if __name__ == "__main__":
    import sys

    forward(socket.socket(fileno=int(sys.argv[1])))
