"""Mesh TCP: sockets to inputs, effects to sockets. Decides nothing but how fast strangers may knock.

Every socket has SO_LINGER 0, so that closing is a reset (Weave does the same: a peer must not keep half a connection),
and TCP_NODELAY, as messages are small and latency counts. Strangers are let in at the rate of Weave's token bucket: 20
at once, then one every 50 ms. A connection whose send buffer has passed HIGH_WATER is reported as not writable, and
gossip then waits, merged, in the core; one that lets MAX_UNSENT pile up is dropped, since unicasts are not held back.
"""

import asyncio
import contextlib
import os
import socket
import struct
import sys
from collections.abc import Callable
from functools import partial
from typing import cast

from weavenet.address import Endpoint, format_address
from weavenet.effects import ConnectionNumber
from weavenet.node.inputs import DialFailed, Input, TcpAccepted, TcpClosed, TcpDialled, TcpReceived, TcpWritable

HIGH_WATER_BYTES = 256 << 10
MAX_UNSENT_BYTES = 32 << 20
DIAL_TIMEOUT_S = 10.0
ACCEPT_BURST = 20
ACCEPT_INTERVAL_S = 0.05
LISTEN_BACKLOG = 128

# struct tcp_info, <linux/tcp.h>: the shortest round trip seen in tcp_min_rtt_wlen, 5 minutes (tcp(7), ip-sysctl). The
# smoothed one would have the 40 ms in it for which the other end holds back acknowledgements of small messages.
_MIN_RTT_AT, _MIN_RTT_END = 148, 152
_RTT_UNKNOWN = 0xFFFF_FFFF
_LINGER_RESET = struct.pack("ii", 1, 0)


class TokenBucket:
    """How long the next stranger waits: not at all for the first 20, then 50 ms each."""

    def __init__(self, now_s: float) -> None:
        """Start full."""
        self._tokens = float(ACCEPT_BURST)
        self._refilled_s = now_s

    def take(self, now_s: float) -> float:
        """Take a token; return the seconds until it is there."""
        earned = (now_s - self._refilled_s) / ACCEPT_INTERVAL_S
        self._tokens = min(ACCEPT_BURST, self._tokens + earned) - 1
        self._refilled_s = now_s
        return max(0.0, -self._tokens * ACCEPT_INTERVAL_S)


class TcpDriver:
    """All mesh connections of one node."""

    def __init__(self, feed: Callable[[Input], None], bind_address: str) -> None:
        """Feed inputs to `feed`; listen and dial from `bind_address`, where an empty text means any."""
        self._feed = feed
        self._bind_address = bind_address
        self._connections: dict[ConnectionNumber, _MeshProtocol] = {}
        self._next_accepted = 2
        self._listener: socket.socket | None = None
        self._dials: dict[ConnectionNumber, asyncio.Task[None]] = {}

    def listen(self, port: int) -> None:
        """Take the port. Raises OSError where it is taken or not ours to take."""
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self._bind_address, port))
            listener.listen(LISTEN_BACKLOG)
        except OSError:
            listener.close()
            raise
        self._listener = listener

    async def accept_forever(self) -> None:
        """Accept connections until cancelled, no faster than the token bucket allows."""
        assert self._listener is not None, "listen comes first"
        loop = asyncio.get_running_loop()
        bucket = TokenBucket(loop.time())
        while True:
            try:
                accepted, _ = await loop.sock_accept(self._listener)
            except OSError:  # the stranger is gone already, or we are out of descriptors: both pass
                await asyncio.sleep(ACCEPT_INTERVAL_S)
                continue
            await asyncio.sleep(bucket.take(loop.time()))
            connection = ConnectionNumber(self._next_accepted)
            self._next_accepted += 2
            with contextlib.suppress(OSError):
                await loop.connect_accepted_socket(partial(self._protocol, connection, None), accepted)

    def dial(self, connection: ConnectionNumber, remote: Endpoint) -> None:
        """Start dialling; the outcome is fed as TcpDialled or DialFailed."""
        task = asyncio.get_running_loop().create_task(self._dial(connection, remote), name=f"dial {remote}")
        self._dials[connection] = task
        task.add_done_callback(lambda _: self._dials.pop(connection, None))

    def send(self, connection: ConnectionNumber, data: bytes) -> None:
        """Write; silently nothing if the connection is gone."""
        protocol = self._connections.get(connection)
        if protocol is not None:
            protocol.write(data)

    def close(self, connection: ConnectionNumber) -> None:
        """Reset the connection, or give up dialling it; no input about it follows."""
        task = self._dials.pop(connection, None)
        if task is not None:
            task.cancel()
        protocol = self._connections.pop(connection, None)
        if protocol is not None:
            protocol.abort()

    def round_trips(self) -> dict[ConnectionNumber, int]:
        """Return the shortest round trip of each connection's last minutes, in µs, where the kernel has seen one."""
        found = {number: protocol.round_trip_us() for number, protocol in self._connections.items()}
        return {number: rtt_us for number, rtt_us in found.items() if rtt_us is not None}

    def close_all(self) -> None:
        """Stop listening and reset everything."""
        if self._listener is not None:
            self._listener.close()
        for connection in [*self._dials, *self._connections]:
            self.close(connection)

    async def _dial(self, connection: ConnectionNumber, remote: Endpoint) -> None:
        loop = asyncio.get_running_loop()
        local_address = (self._bind_address, 0) if self._bind_address else None
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                await loop.create_connection(
                    lambda: self._protocol(connection, remote),
                    format_address(remote.address),
                    remote.port,
                    local_addr=local_address,
                )
        except TimeoutError:
            self._feed(DialFailed(connection, f"dial tcp {remote}: i/o timeout"))
        except OSError as error:
            why = os.strerror(error.errno).lower() if error.errno else str(error)
            self._feed(DialFailed(connection, f"dial tcp {remote}: connect: {why}"))

    def _protocol(self, connection: ConnectionNumber, dialled: Endpoint | None) -> "_MeshProtocol":
        protocol = _MeshProtocol(self, connection, dialled)
        self._connections[connection] = protocol
        return protocol

    def made(self, connection: ConnectionNumber, dialled: Endpoint | None, local: Endpoint, remote: Endpoint) -> None:
        """Tell the node that a connection is there."""
        if dialled is None:
            self._feed(TcpAccepted(connection, local, remote))
        else:
            self._feed(TcpDialled(connection, local))

    def received(self, connection: ConnectionNumber, data: bytes) -> None:
        """Pass bytes on, unless we have closed the connection ourselves."""
        if connection in self._connections:
            self._feed(TcpReceived(connection, data))

    def writable(self, connection: ConnectionNumber, *, writable: bool) -> None:
        """Pass back-pressure on."""
        if connection in self._connections:
            self._feed(TcpWritable(connection, writable))

    def lost(self, connection: ConnectionNumber, error: str) -> None:
        """Tell the node that the other side is gone, unless it was us."""
        if self._connections.pop(connection, None) is not None:
            self._feed(TcpClosed(connection, error))


class _MeshProtocol(asyncio.Protocol):
    def __init__(self, driver: TcpDriver, connection: ConnectionNumber, dialled: Endpoint | None) -> None:
        self._driver = driver
        self._connection = connection
        self._dialled = dialled
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes, though they do the same.
        stream = cast("asyncio.Transport", transport)
        self._transport = stream
        raw: socket.socket = stream.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream.set_write_buffer_limits(high=HIGH_WATER_BYTES)
        local, remote = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
        if local is None or remote is None:  # reset between accept and now
            stream.abort()
            return
        self._driver.made(
            self._connection,
            self._dialled,
            Endpoint.parse(f"{local[0]}:{local[1]}"),
            self._dialled or Endpoint.parse(f"{remote[0]}:{remote[1]}"),
        )

    def data_received(self, data: bytes) -> None:
        self._driver.received(self._connection, bytes(data))

    def pause_writing(self) -> None:
        self._driver.writable(self._connection, writable=False)

    def resume_writing(self) -> None:
        self._driver.writable(self._connection, writable=True)

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None:
            self._driver.lost(self._connection, "")
            return
        why = os.strerror(exc.errno).lower() if isinstance(exc, OSError) and exc.errno else str(exc)
        self._driver.lost(self._connection, why)

    def round_trip_us(self) -> int | None:
        opened: socket.socket | None = None if self._transport is None else self._transport.get_extra_info("socket")
        if opened is None:
            return None
        try:
            raw = opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _MIN_RTT_END)
        except OSError:  # just closed
            return None
        rtt_us = int.from_bytes(raw[_MIN_RTT_AT:_MIN_RTT_END], sys.byteorder)
        return rtt_us if len(raw) == _MIN_RTT_END and rtt_us not in {0, _RTT_UNKNOWN} else None

    def write(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
            self._transport.abort()  # connection_lost follows and tells the node
            return
        self._transport.write(data)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
