"""One HTTP request at a time, each on a connection of its own: h11 has the protocol, asyncio the socket.

The agent keeps a watch or two open for minutes and asks for little else, so there is nothing for a pool of connections
to save, and a connection that is never used twice cannot be found dead when it is. There are no redirects, no cookies
and no proxies either: an API server needs none (docs/adr/0010-kubernetes-over-h11.md has what larger clients cost).

Every wait has a limit. A server that has lost its power says nothing at all; TCP keepalive finds that out on a watch
long before the watch's own time is over.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator

import h11
import msgspec

from weavenet.errors import KubeUnreachableError
from weavenet.kube.access import ApiAccess

CONNECT_TIMEOUT_S = 10.0
HEAD_BYTES_MAX = 64 << 10
_CHUNK_BYTES = 64 << 10
_KEEPALIVE = {socket.TCP_KEEPIDLE: 20, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 4}  # dead after 40 s
_UNACKNOWLEDGED_MS = 40_000

JSON = "application/json"


class Request(msgspec.Struct, frozen=True):
    """What is asked: the target is path and query, quoted."""

    method: str
    target: str
    body: bytes = b""
    content_type: str = JSON


class Response:
    """An answer whose head has come, and whose body is read piece by piece."""

    def __init__(self, status: int, headers: dict[str, str], connection: h11.Connection, stream: "_Stream") -> None:
        """Keep where the body comes from."""
        self.status = status
        self.headers = headers
        self._connection = connection
        self._stream = stream

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """Yield the body as it comes. Raises KubeUnreachableError if it ends before it is complete."""
        while True:
            match await self._stream.next_event(self._connection):
                case h11.Data(data=data):
                    yield bytes(data)
                case h11.EndOfMessage():
                    return
                case _:
                    raise KubeUnreachableError("the API server ended the connection")


@contextlib.asynccontextmanager
async def exchange(access: ApiAccess, request: Request) -> AsyncGenerator[Response, None]:
    """Ask, and give the answer to the block. How long all of it may take is the caller's to limit.

    Raises KubeUnreachableError, naming the server, if there is no answer.
    """
    token = "" if access.token is None else access.token.read()
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES_MAX)
    reader, writer = await _connect(access)
    try:
        _keep_alive(writer)
        writer.write(_encode(connection, access, request, token))  # drained by the server's reading it, or never
        stream = _Stream(reader)
        head = await _read_head(connection, stream)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
        yield Response(head.status_code, headers, connection, stream)
    except OSError as error:
        if isinstance(error, TimeoutError) and error.errno is None:
            raise  # a limit of the caller's, for the caller to word
        raise KubeUnreachableError(f"the API server {access.url}: {_reason(error)}") from error
    except h11.ProtocolError as error:
        raise KubeUnreachableError(f"the API server {access.url} broke off or does not speak HTTP: {error}") from error
    finally:
        writer.transport.abort()


async def _connect(access: ApiAccess) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = None if access.authority is None else access.authority.context()
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(access.host, access.port, ssl=context)
    except TimeoutError as error:
        raise KubeUnreachableError(f"the API server {access.url}: no connection in time") from error
    except OSError as error:
        raise KubeUnreachableError(f"the API server {access.url}: {_reason(error)}") from error
    except UnicodeError as error:  # from the codec for host names
        raise KubeUnreachableError(f"the API server {access.url}: no host can have this name: {error}") from error
    return reader, writer


def _encode(connection: h11.Connection, access: ApiAccess, request: Request, token: str) -> bytes:
    headers = [
        ("Host", access.host_header),
        ("User-Agent", "weavenet"),
        ("Accept", JSON),
        ("Connection", "close"),
    ]
    if token:
        headers.append(("Authorization", f"Bearer {token}"))
    if request.body:
        headers += [("Content-Type", request.content_type), ("Content-Length", str(len(request.body)))]
    events: list[h11.Event] = [h11.Request(method=request.method, target=request.target, headers=headers)]
    if request.body:
        events.append(h11.Data(data=request.body))
    events.append(h11.EndOfMessage())
    return b"".join(connection.send(event) or b"" for event in events)


async def _read_head(connection: h11.Connection, stream: "_Stream") -> h11.Response:
    while True:
        match await stream.next_event(connection):
            case h11.Response() as head:
                return head
            case h11.InformationalResponse():
                continue
            case _:
                raise KubeUnreachableError("the API server ended the connection without an answer")


class _Stream:
    """The bytes of one connection, fed to h11 as it asks for them."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader

    async def next_event(self, connection: h11.Connection) -> h11.Event | type[h11.PAUSED]:
        while True:
            event = connection.next_event()
            if not isinstance(event, type) or event is h11.PAUSED:
                return event
            connection.receive_data(await self._reader.read(_CHUNK_BYTES))


def _keep_alive(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE.items():
        raw.setsockopt(socket.IPPROTO_TCP, option, value)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
