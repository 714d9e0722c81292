"""HTTP listeners: where an application can be reached, and by whom. What it answers is not decided here.

A Unix socket is root's alone (mode 0600) from before it has a name, and takes the place of the one that a former agent
left without a moment at which there is none. TCP is for what is harmless to read, on loopback unless the user says
otherwise. A client that closes its connection cancels its request, so that a waiting allocation is given up with it.

The protocol itself is h11's, which touches no socket: here are the sockets, the limits and the timeouts. What breaks
the protocol or a limit is answered if that is still possible, and costs its sender the connection. Source: RFC 9112;
docs/adr/0009-an-agent-that-starts-fast.md.
"""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import h11
import msgspec

from weavenet.errors import ConfigError

SHUTDOWN_TIMEOUT_S = 1.0
KEEPALIVE_TIMEOUT_S = 15.0
RECEIVE_TIMEOUT_S = 30.0  # of a whole request, from its first byte
SEND_TIMEOUT_S = 30.0  # without the client reading anything
LINGER_TIMEOUT_S = 1.0
CONNECTIONS_MAX = 256
HEADERS_MAX_BYTES = 16 << 10
BODY_MAX_BYTES = 256 << 10
LINGER_MAX_BYTES = 4 << 20
_CHUNK_BYTES = 64 << 10
_PORT_MAX = 65535

_TOO_LARGE, _TOO_SLOW, _BAD_REQUEST = 413, 408, 400
_REASONS = {  # what people and simple scripts look for; any other status is its number
    200: "OK",
    204: "No Content",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
}


class Request(msgspec.Struct, frozen=True):
    """What a client wants. Header names are in lower case; a repeated header counts by its last value."""

    method: str
    target: str  # path and query, as sent
    headers: Mapping[str, str]
    body: bytes


class Response(msgspec.Struct, frozen=True):
    """What it gets. Without a content type there is no such header."""

    status: int
    body: bytes = b""
    content_type: str = ""


Application = Callable[[Request], Awaitable[Response]]


class HttpListener:
    """One application at one place."""

    def __init__(self, application: Application) -> None:
        """Serve this application once there is a place."""
        self._application = application
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], _Connection] = {}
        self._unix_path: Path | None = None
        self._unix_inode = 0

    async def listen_unix(self, path: Path) -> None:
        """Take a path. Raises ConfigError if that is not possible."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        unnamed = path.with_name(path.name + ".new")
        try:
            os.fchmod(listener.fileno(), 0o600)  # before bind: the file inherits it (unix_bind in net/unix/af_unix.c)
            unnamed.unlink(missing_ok=True)
            listener.bind(str(unnamed))
            listener.listen(socket.SOMAXCONN)
            self._unix_inode = unnamed.stat().st_ino
            unnamed.rename(path)
        except OSError as error:
            listener.close()
            raise ConfigError(f"Unable to create http listener socket: {path}: {error}") from error
        self._unix_path = path
        self._server = await asyncio.start_unix_server(self._accepted, sock=listener, limit=_CHUNK_BYTES)

    async def listen_tcp(self, address: str) -> int:
        """Take `host:port` and return the port, which matters where port 0 was asked for. Raises ConfigError."""
        host, port = parse_listen_address(address)
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(socket.SOMAXCONN)
        except OSError as error:
            listener.close()
            raise ConfigError(f"Unable to create http listener socket: {address}: {error}") from error
        bound_port = int(listener.getsockname()[1])
        self._server = await asyncio.start_server(self._accepted, sock=listener, limit=_CHUNK_BYTES)
        return bound_port

    async def listen(self, address: str) -> None:
        """Take what a flag says: an absolute path is a Unix socket, anything else `host:port`. Raises ConfigError."""
        if address.startswith("/"):
            await self.listen_unix(Path(address))
        else:
            await self.listen_tcp(address)

    async def close(self) -> None:
        """Stop listening, end open requests, and take our socket file away unless a later agent has replaced it."""
        if self._server is not None:
            self._server.close()
        for task, connection in self._connections.items():
            if not connection.is_busy:
                task.cancel()
        if self._connections:
            _, waiting = await asyncio.wait([*self._connections], timeout=SHUTDOWN_TIMEOUT_S)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        path = self._unix_path
        if path is not None:
            self._unix_path = None
            try:
                if path.stat().st_ino == self._unix_inode:
                    path.unlink()
            except FileNotFoundError:
                return

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= CONNECTIONS_MAX:
            writer.transport.abort()
            return
        connection = _Connection(self._application, reader, writer)
        task = asyncio.get_running_loop().create_task(connection.serve(), name="HTTP connection")
        self._connections[task] = connection
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._connections.pop(task).close()


class _RefusedError(Exception):
    """A request that will not be looked at."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Connection:
    """One client."""

    def __init__(self, application: Application, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._application = application
        self._reader = reader
        self._writer = writer
        writer.transport.set_write_buffer_limits(high=0)  # so that drain waits until all is sent
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADERS_MAX_BYTES)
        self._has_body = True  # whether an answer's body is sent: not to HEAD
        self.is_busy = False

    async def serve(self) -> None:
        """Answer requests until the client is gone, silent for too long, or not to be understood."""
        try:
            while await self._serve_one():
                self.is_busy = False
                self._http.start_next_cycle()
        except (OSError, TimeoutError):
            self._writer.transport.abort()  # who does not listen is not told either

    def close(self) -> None:
        """Hang up, once what has been written is sent."""
        self._writer.close()

    async def _serve_one(self) -> bool:
        """Answer one request; False if it was the last."""
        try:
            request = await self._receive()
            if request is None:
                return False
            response = await self._unless_gone(self._application(request))
            if response is None:
                return False
            await self._send(response)
        except _RefusedError as error:
            await self._refuse(error.status, str(error))
            return False
        except h11.RemoteProtocolError as error:
            await self._refuse(error.error_status_hint, str(error))
            return False
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    # --- in -----------------------------------------------------------------------------------------------------------

    async def _receive(self) -> Request | None:
        """Return the next request; None if there is none."""
        try:
            async with asyncio.timeout(KEEPALIVE_TIMEOUT_S):
                event = await self._next_event(only_first_bytes=True)
        except TimeoutError:
            return None
        self.is_busy = True
        try:
            async with asyncio.timeout(RECEIVE_TIMEOUT_S):
                if event is h11.NEED_DATA:
                    event = await self._next_event()
                if not isinstance(event, h11.Request):
                    return None
                return await self._receive_body(event)
        except TimeoutError as error:
            raise _RefusedError(_TOO_SLOW, f"the request was not complete after {RECEIVE_TIMEOUT_S:.0f} s") from error

    async def _receive_body(self, head: h11.Request) -> Request:
        self._has_body = head.method != b"HEAD"
        body = bytearray()
        if self._http.they_are_waiting_for_100_continue:
            self._write(h11.InformationalResponse(status_code=100, headers=[]))
        while True:
            event = await self._next_event()
            match event:
                case h11.Data(data=data):
                    body += data
                    if len(body) > BODY_MAX_BYTES:
                        raise _RefusedError(_TOO_LARGE, f"the body is larger than {BODY_MAX_BYTES} bytes")
                case h11.EndOfMessage():
                    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
                    return Request(head.method.decode("latin-1"), head.target.decode("latin-1"), headers, bytes(body))
                case _:
                    raise _RefusedError(_BAD_REQUEST, f"the body ended after {len(body)} bytes, too early")

    async def _next_event(self, *, only_first_bytes: bool = False) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            data = await self._reader.read(_CHUNK_BYTES)
            self._http.receive_data(data)
            if data and only_first_bytes:
                return self._http.next_event()
        return event

    # --- the application ----------------------------------------------------------------------------------------------

    async def _unless_gone(self, work: Awaitable[Response]) -> Response | None:
        """Wait for an answer; None, and the work is cancelled, if the client hangs up before."""
        answer = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self._hang_up())
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            return answer.result() if answer.done() else None
        finally:
            answer.cancel()
            gone.cancel()
            await asyncio.gather(answer, gone, return_exceptions=True)

    async def _hang_up(self) -> None:
        """Return when the client is gone. A request that it has sent ahead waits its turn, up to a limit."""
        ahead_bytes = 0
        while data := await self._reader.read(_CHUNK_BYTES):
            self._http.receive_data(data)
            ahead_bytes += len(data)
            if ahead_bytes > BODY_MAX_BYTES:
                await asyncio.get_running_loop().create_future()  # it is not read any further, nor heard hanging up

    # --- out ----------------------------------------------------------------------------------------------------------

    async def _send(self, response: Response) -> None:
        headers = [("Date", time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime()))]
        if response.content_type:
            headers.append(("Content-Type", response.content_type))
        if response.status != 204:
            headers.append(("Content-Length", str(len(response.body))))
        reason = _REASONS.get(response.status, "")
        self._write(h11.Response(status_code=response.status, reason=reason.encode(), headers=headers))
        if response.body and self._has_body:
            self._write(h11.Data(data=response.body))
        self._write(h11.EndOfMessage())
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await self._writer.drain()

    def _write(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data:
            self._writer.write(data)

    async def _refuse(self, status: int, text: str) -> None:
        """Say what is wrong and hang up, but not before the client had time to read it.

        Closing while it still sends would be a reset, and might take the answer away from under it (RFC 9112, 9.6).
        """
        if self._http.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            return
        await self._send(Response(status, f"{text}\n".encode(), "text/plain; charset=utf-8"))
        if self._writer.transport.is_closing():
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_TIMEOUT_S):
                self._writer.write_eof()
                thrown_away_bytes = 0
                while thrown_away_bytes < LINGER_MAX_BYTES and (data := await self._reader.read(_CHUNK_BYTES)):
                    thrown_away_bytes += len(data)


def parse_listen_address(text: str) -> tuple[str, int]:
    """Read `host:port`, where no host means all of them, as in Go. Raises ConfigError."""
    host, colon, port_text = text.rpartition(":")
    if not colon or not (port_text.isascii() and port_text.isdigit()) or int(port_text) > _PORT_MAX:
        raise ConfigError(f"cannot listen at {text!r}: expected an address, a colon, and a port, as in 127.0.0.1:6782")
    return host, int(port_text)
