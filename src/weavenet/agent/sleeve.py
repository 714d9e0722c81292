"""Sleeve as the agent runs it: keeps a forwarder going, tells it what the node wants, and the node what it met.

The forwarder is forked before the agent has threads or anything worth sharing, which costs a few milliseconds; one that
died is started anew as a program. A new one knows no sequence numbers, so every connection that had a sleeve ends then
and comes back with a new key.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import msgspec

from weavenet.agent.forward import PLAIN, SEALED, forward
from weavenet.agent.loop import NodeLoop
from weavenet.drivers.udp import open_udp
from weavenet.effects import SendSleeveFrame
from weavenet.errors import ConfigError, KernelError
from weavenet.linux.fast_port import open_fast_port
from weavenet.linux.sleeve_port import open_port
from weavenet.node import inputs as i
from weavenet.overlay.sleeve import messages as m
from weavenet.overlay.sleeve.table import SleeveTable

RESTART_S = (0.1, 10.0)
CONTROL_TIMEOUT_S = 10.0


class ForwarderProcess(msgspec.Struct, frozen=True):
    """A running forwarder, which waits for its descriptors."""

    control: socket.socket
    pid: int


def fork_forwarder() -> ForwarderProcess:
    """Start a forwarder by forking. Only before there are threads and event loops."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid:
        theirs.close()
        return ForwarderProcess(ours, pid)
    status = 1
    try:
        # Among what else is open may be a password (--password-fd).
        os.closerange(3, theirs.fileno())
        os.closerange(theirs.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the agent, and we end with it
        forward(theirs)
        status = 0
    finally:
        os._exit(status)


def spawn_forwarder() -> ForwarderProcess:
    """Start a forwarder as a program."""
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-m", "weavenet.agent.forward", str(theirs.fileno())]
        child = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)  # noqa: S603
    return ForwarderProcess(ours, child.pid)


class Sleeve:
    """The agent's side of the forwarder."""

    def __init__(
        self,
        loop: NodeLoop,
        first: ForwarderProcess,
        attach: Callable[[int, int], None],
        kernel_thread: ThreadPoolExecutor,
        log: logging.Logger,
    ) -> None:
        """`attach` puts the programs on both ports, given as interface indexes; it runs in the kernel's thread."""
        self.counters: Mapping[str, int] = {}
        self._loop = loop
        self._process = first
        self._attach = attach
        self._kernel_thread = kernel_thread
        self._log = log
        self._udp: socket.socket | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._told: SleeveTable | None = None
        loop.send_sleeve_frame = self._send

    async def prepare(self, host: str, port: int) -> None:
        """Take the UDP port and give the forwarder what it needs. Raises ConfigError or KernelError."""
        try:
            self._udp = open_udp(host, port)
        except OSError as error:
            raise ConfigError(f"cannot listen for sleeve at UDP {host or '*'}:{port}: {error.strerror}") from error
        await self._equip()

    def close(self) -> None:
        """Let the forwarder end."""
        self._process.control.close()
        if self._udp is not None:
            self._udp.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._process.pid, 0)

    async def run(self) -> None:
        """Keep a forwarder going, until cancelled."""
        pause_s = RESTART_S[0]
        while True:
            try:
                await self._serve()
            except (OSError, asyncio.IncompleteReadError, msgspec.MsgspecError, KernelError) as error:
                self._log.error("the sleeve forwarder ended (%s); starting another", str(error) or type(error).__name__)
            self._fail_all()
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, RESTART_S[1])
            await self._replace()

    async def _equip(self) -> None:
        """Give the forwarder its descriptors."""
        assert self._udp is not None
        running = asyncio.get_running_loop()
        port, index = await running.run_in_executor(self._kernel_thread, open_port)
        with port:
            fast_port, fast_index = await running.run_in_executor(self._kernel_thread, open_fast_port)
            with fast_port:
                await running.run_in_executor(self._kernel_thread, self._attach, index, fast_index)
                given = [one.fileno() for one in (port, fast_port, self._udp)]
                kind = PLAIN if self._loop.node.mesh.keyring is None else SEALED
                socket.send_fds(self._process.control, [kind], given)

    async def _replace(self) -> None:
        self._process.control.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            await asyncio.get_running_loop().run_in_executor(None, os.waitpid, self._process.pid, 0)
        self._process = spawn_forwarder()
        try:
            await self._equip()
        except (OSError, KernelError) as error:
            self._log.error("cannot start the sleeve forwarder: %s", error)

    async def _serve(self) -> None:
        control = self._process.control
        control.settimeout(0)
        reader, writer = await asyncio.open_connection(sock=control)
        self._writer = writer
        self._told = None
        try:
            async with asyncio.TaskGroup() as group:
                telling = group.create_task(self._tell_tables())
                try:
                    await self._listen(reader)
                finally:
                    telling.cancel()
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from failures
        finally:
            self._writer = None
            writer.close()

    async def _tell_tables(self) -> None:
        wanted = self._loop.sleeve_wanted
        wanted.set()
        while True:
            await wanted.wait()
            wanted.clear()
            self._tell()
            assert self._writer is not None
            async with asyncio.timeout(CONTROL_TIMEOUT_S):
                await self._writer.drain()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while True:
            length = int.from_bytes(await reader.readexactly(m.LENGTH_BYTES), "big")
            if length > m.MESSAGE_BYTES_MAX:
                raise msgspec.ValidationError(f"a message of {length} bytes")
            match m.decode_from_forwarder(await reader.readexactly(length)):
                case m.SpecialMessage(connection, remote, size, head, intact):
                    self._loop.feed(i.SleeveFrameArrived(connection, remote, size, head, intact))
                case m.TooBigMessage(connection, pmtu):
                    self._loop.feed(i.SleeveTooBig(connection, pmtu))
                case m.FailedMessage(connection, error):
                    self._loop.feed(i.SleeveFailed(connection, error))
                case m.CountersMessage(counters):
                    self.counters = counters

    def _fail_all(self) -> None:
        for added, *_ in list(self._loop.node.overlays.sleeves().values()):
            self._loop.feed(i.SleeveFailed(added.connection, "the process that forwards its datagrams ended"))

    def _send(self, effect: SendSleeveFrame) -> None:
        self._tell()  # a connection must be known before anything can be sent for it
        self._write(m.SendMessage(effect.connection, effect.frame, effect.dont_fragment))

    def _tell(self) -> None:
        table = self._loop.node.sleeve_table()
        if table != self._told:
            self._told = table
            self._write(m.TableMessage(table))

    def _write(self, message: m.ToForwarder) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(m.encode(message))
