"""The forwarder: a process that moves frames between the data plane and sleeve's UDP port, and does nothing else.

    agent ──table, special frames to send──▶ ┐
                                             ├ forwarder: packet socket ◀──▶ SleevePipe ◀──▶ UDP 6783
          ◀─special frames, refusals, counts─┘            another one   ◀──▶ FastPipe   ◀──▶ the same

It is a process of its own so that packets and the control plane never wait for each other. It gets its descriptors
from the agent, gives up every right it has, and from then on has nothing but them: what peers send is parsed by a
process that can do nothing else. It ends when the agent does; sequence numbers are lost with the
process, so the agent then ends every connection that had a sleeve, and with it the key that must not see them again.
"""

import ctypes
import os
import select
import socket
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib import import_module

from msgspec.structs import asdict

from weavenet.drivers.udp import Refusal, UdpPort
from weavenet.effects import ConnectionNumber
from weavenet.linux.fast_port import receive_whole, send_whole
from weavenet.linux.sleeve_port import receive_frames
from weavenet.overlay.sleeve import messages as m
from weavenet.overlay.sleeve.fast_pipe import FastPipe
from weavenet.overlay.sleeve.join import join
from weavenet.overlay.sleeve.pipe import Arrived, Datagram, SleevePipe

# What the forwarder is told with its descriptors: whether there can be keys.
PLAIN, SEALED = b"p", b"s"
BATCH = 64
WHOLE_BATCH = 16  # of what may be 64 KB each
_FRAME_BYTES_MAX = 65_600
_COUNTERS_INTERVAL_S = 1.0
_COMPLAINT_INTERVAL_S = 0.25
_CRYPTOGRAPHY = "weavenet.overlay.sleeve.fast_crypto"
_NOBODY = 65_534

_PR_SET_NO_NEW_PRIVS, _PR_SET_NAME = 38, 15
_CAPABILITY_VERSION_3 = 0x20080522


def forward(control: socket.socket) -> None:
    """Be the forwarder: wait for the descriptors, then serve until the agent is gone."""
    message, descriptors, _, _ = socket.recv_fds(control, 1, 3)
    if not message or len(descriptors) != 3:
        return  # the agent never got that far
    if message == SEALED:
        import_module(_CRYPTOGRAPHY)  # while we may still read it: nobody may be kept out of where Python is installed
    port, fast_port, udp = (socket.socket(fileno=one) for one in descriptors)
    give_up_rights()
    with suppress(KeyboardInterrupt, BrokenPipeError, ConnectionResetError):
        Forwarder(control, port, fast_port, udp).run()


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


class Due:
    """How many to ask the kernel for at once: to hear that there is no more costs as much as two of them.

    What is left behind is asked for at once, as the poll says that there is something.
    """

    def __init__(self, most: int) -> None:
        """Begin with one, and never ask for more than `most`."""
        self.count = 1
        self._most = most

    def learn(self, got: int) -> None:
        """Ask for more the next time, if there was all that was asked for; else for as many as there were."""
        self.count = min(2 * self.count, self._most) if got >= self.count else max(got, 1)


class Forwarder:
    """The loop around a SleevePipe and a FastPipe."""

    def __init__(
        self, control: socket.socket, port: socket.socket, fast_port: socket.socket, udp: socket.socket
    ) -> None:
        """Serve these four."""
        self._control = control
        self._port = port
        self._fast_port = fast_port
        self._udp = UdpPort(udp)
        self._pipe = SleevePipe()
        self._fast = FastPipe(self._pipe.counters)
        self._buffers = [bytearray(_FRAME_BYTES_MAX) for _ in range(WHOLE_BATCH)]
        self._frames_due, self._packets_due, self._datagrams_due = Due(BATCH), Due(WHOLE_BATCH), Due(WHOLE_BATCH)
        self._heard = bytearray()
        self._complained: dict[tuple[ConnectionNumber, str], float] = {}
        self._counted: dict[str, int] = {}

    def run(self) -> None:
        """Serve until the other end of the control socket is closed."""
        poll = select.epoll()
        for descriptor in (one.fileno() for one in (self._control, self._port, self._fast_port, self._udp)):
            poll.register(descriptor, select.EPOLLIN)
        counters_due_s = 0.0
        while True:
            ready = {descriptor for descriptor, _ in poll.poll(_COUNTERS_INTERVAL_S)}
            if self._control.fileno() in ready and not self._listen():
                return
            if self._port.fileno() in ready:
                self._send_batch()
            if self._fast_port.fileno() in ready:
                self._send_whole_batch()
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
                    self._fast.apply(table)
                case m.SendMessage(connection, frame, dont_fragment):
                    datagram = self._pipe.special(connection, frame, dont_fragment=dont_fragment)
                    if datagram is not None:
                        self._send([datagram])
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
        frames = list(receive_frames(self._port, self._frames_due.count))
        self._frames_due.learn(len(frames))
        self._take_out(frames)

    def _send_whole_batch(self) -> None:
        packets = list(receive_whole(self._fast_port, self._buffers[: self._packets_due.count]))
        self._packets_due.learn(len(packets))
        sends, others = self._fast.outgoing(packets)
        self._complain(self._udp.send_gathered(sends))
        if others:
            self._take_out(others)

    def _take_out(self, frames: Iterable[bytes]) -> None:
        datagrams, back = self._pipe.outgoing(frames)
        self._send(datagrams)
        self._write(back)

    def _receive_batch(self) -> None:
        received = self._udp.receive_into(self._buffers[: self._datagrams_due.count])
        self._datagrams_due.learn(len(received))
        fast = self._fast.incoming(received)
        send_whole(self._fast_port, fast.frames)
        if fast.large:
            self._pass_on(self._pipe.incoming_large(fast.large))
        if fast.others:
            self._pass_on(self._pipe.incoming(fast.others))

    def _pass_on(self, arrived: Arrived) -> None:
        if len(arrived.frames) > 1:
            self._write_joined(arrived.frames)
        else:
            self._write(arrived.frames)
        self._send(arrived.answers)
        for one in arrived.specials:
            self._say(m.SpecialMessage(one.connection, one.remote, one.length, one.head, one.intact))

    def _write_joined(self, frames: list[bytes]) -> None:
        for one in join(frames):
            if isinstance(one, bytes):
                self._write([one])
            else:
                send_whole(self._fast_port, [one])

    def _write(self, frames: list[bytes]) -> None:
        for frame in frames:
            with suppress(OSError):  # a full queue drops, as any queue does
                self._port.send(frame)

    def _send(self, datagrams: Sequence[Datagram]) -> None:
        self._complain(self._udp.send(datagrams))

    def _complain(self, refusals: Sequence[Refusal]) -> None:
        for refusal in refusals:
            connection, pmtu_bytes = refusal.datagram.connection, refusal.pmtu_bytes
            if not self._may_complain(connection, f"pmtu {pmtu_bytes}"):
                continue
            if pmtu_bytes:
                self._say(m.TooBigMessage(connection, pmtu_bytes))
            elif refusal.reason:
                self._say(m.FailedMessage(connection, refusal.reason))

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


if __name__ == "__main__":
    import sys

    forward(socket.socket(fileno=int(sys.argv[1])))
