"""HTTP listeners as a client meets them: on a real socket, byte by byte where it matters."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from weavenet.drivers import http as module
from weavenet.drivers.http import HttpListener, Request, Response, parse_listen_address
from weavenet.errors import ConfigError

PLAIN = "text/plain"
GET = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"


async def echo(request: Request) -> Response:
    """Say what was asked."""
    return Response(200, f"{request.method} {request.target} {len(request.body)}".encode(), PLAIN)


class Client:
    """One connection to a listener."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    def hang_up(self) -> None:
        self._writer.close()

    async def answer(self, *, has_body: bool = True) -> tuple[int, dict[str, str], bytes]:
        """Read one answer, of which the length is told."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await self._reader.readexactly(int(headers.get("content-length", "0"))) if has_body else b""
        return int(head[0].split()[1]), headers, body

    async def rest(self) -> bytes:
        """Read to the end of the connection."""
        return await self._reader.read()


@contextlib.asynccontextmanager
async def served(
    application: Callable[[Request], Awaitable[Response]] = echo,
) -> AsyncIterator[Callable[[], Awaitable[Client]]]:
    """Serve an application, and give what connects to it."""
    listener = HttpListener(application)
    port = await listener.listen_tcp("127.0.0.1:0")
    opened: list[Client] = []

    async def connect() -> Client:
        opened.append(Client(*await asyncio.open_connection("127.0.0.1", port)))
        return opened[-1]

    try:
        async with asyncio.timeout(20):
            yield connect
    finally:
        for client in opened:
            client.hang_up()
        await listener.close()


def test_one_connection_carries_one_request_after_the_other() -> None:
    async def scenario() -> None:
        async with served() as connect:
            client = await connect()
            client.send(GET)
            assert (await client.answer())[2] == b"GET /a 0"
            client.send(b"POST /b?c=d HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
            status, headers, body = await client.answer()
            assert (status, headers["content-type"], body) == (200, PLAIN, b"POST /b?c=d 3")
            assert headers["date"].endswith(" gmt")

    uvloop.run(scenario())  # as the agent does: its transports are not asyncio's


def test_requests_sent_ahead_are_answered_in_turn() -> None:
    async def scenario() -> None:
        async with served() as connect:
            client = await connect()
            client.send(GET * 20)
            assert [(await client.answer())[2] for _ in range(20)] == [b"GET /a 0"] * 20

    uvloop.run(scenario())


def test_a_request_may_come_byte_by_byte_and_in_chunks() -> None:
    whole = b"POST /b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"

    async def scenario() -> None:
        async with served() as connect:
            client = await connect()
            for position in range(len(whole)):
                client.send(whole[position : position + 1])
                await asyncio.sleep(0)
            assert (await client.answer())[2] == b"POST /b 5"

    uvloop.run(scenario())


def test_who_waits_to_be_told_to_go_on_is_told() -> None:
    async def scenario() -> None:
        async with served() as connect:
            client = await connect()
            client.send(b"POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
            assert (await client.answer())[0] == 100
            client.send(b"abc")
            assert (await client.answer())[2] == b"POST /b 3"

    uvloop.run(scenario())


@pytest.mark.parametrize(
    "request_text",
    [b"GET /a HTTP/1.0\r\n\r\n", b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"],
    ids=["an old client", "a client that says so"],
)
def test_the_connection_ends_with_the_answer_for(request_text: bytes) -> None:
    async def scenario() -> None:
        async with served() as connect:
            client = await connect()
            client.send(request_text)
            answer = await client.rest()
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert answer.endswith(b"\r\n\r\nGET /a 0")

    uvloop.run(scenario())


def test_head_gets_the_length_of_what_it_does_not_get() -> None:
    async def scenario() -> None:
        async with served() as connect:
            client = await connect()
            client.send(GET.replace(b"GET", b"HEAD"))
            status, headers, _ = await client.answer(has_body=False)
            assert (status, headers["content-length"]) == (200, "9")
            client.send(GET)
            assert (await client.answer())[2] == b"GET /a 0"

    uvloop.run(scenario())


def test_an_answer_without_content_has_no_length() -> None:
    async def nothing(_: Request) -> Response:
        return Response(204)

    async def scenario() -> None:
        async with served(nothing) as connect:
            client = await connect()
            client.send(GET)
            status, headers, _ = await client.answer()
            assert status == 204
            assert headers.keys() == {"date"}

    uvloop.run(scenario())


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /a HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET /a HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET /a HTTP/1.1\r\nHost: x\r\nLong: " + b"y" * (20 << 10), 431),
        (b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n" + b"y" * 300_000, 413),
        (b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
    ],
    ids=["no http", "no host", "a length that is none", "endless headers", "a body too large", "unknown coding"],
)
def test_what_breaks_the_protocol_or_a_limit_is_told_so_and_loses_its_connection(bad: bytes, status: int) -> None:
    async def scenario() -> None:
        async with served() as connect:
            client, other = await connect(), await connect()
            client.send(bad)
            answered, _, body = await client.answer()
            assert answered == status
            assert body.endswith(b"\n")
            assert await client.rest() == b""
            other.send(GET)
            assert (await other.answer())[0] == 200

    uvloop.run(scenario())


def test_a_request_that_does_not_become_complete_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECEIVE_TIMEOUT_S", 0.05)

    async def scenario() -> None:
        async with served() as connect:
            client = await connect()
            client.send(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\na")
            assert (await client.answer())[0] == 408
            assert await client.rest() == b""

    uvloop.run(scenario())


def test_a_connection_without_requests_ends_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEEPALIVE_TIMEOUT_S", 0.05)

    async def scenario() -> None:
        async with served() as connect:
            assert await (await connect()).rest() == b""

    uvloop.run(scenario())


def test_a_client_that_hangs_up_cancels_its_request_and_no_other() -> None:
    begun, cancelled = asyncio.Queue[None](), asyncio.Event()

    async def wait(request: Request) -> Response:
        if request.target == "/b":
            return await echo(request)
        begun.put_nowait(None)
        try:
            return await asyncio.get_running_loop().create_future()
        finally:
            cancelled.set()

    async def scenario() -> None:
        async with served(wait) as connect:
            client, other = await connect(), await connect()
            client.send(GET)
            await begun.get()
            client.hang_up()
            await cancelled.wait()
            other.send(GET.replace(b"/a", b"/b"))
            assert (await other.answer())[0] == 200

    uvloop.run(scenario())


def test_there_are_no_more_connections_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECTIONS_MAX", 2)

    async def scenario() -> None:
        async with served() as connect:
            clients = [await connect() for _ in range(2)]
            for client in clients:
                client.send(GET)
                assert (await client.answer())[0] == 200
            with contextlib.suppress(ConnectionResetError):
                assert await (await connect()).rest() == b""
            clients[0].hang_up()
            await clients[0].rest()
            clients[1].send(GET)
            assert (await clients[1].answer())[0] == 200

    uvloop.run(scenario())


def test_closing_lets_an_answer_out_and_gives_up_what_still_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHUTDOWN_TIMEOUT_S", 0.05)
    begun, go_on = asyncio.Queue[None](), asyncio.Event()

    async def wait(request: Request) -> Response:
        begun.put_nowait(None)
        if request.target == "/b":
            await asyncio.get_running_loop().create_future()
        await go_on.wait()
        return await echo(request)

    async def scenario() -> None:
        listener = HttpListener(wait)
        port = await listener.listen_tcp("127.0.0.1:0")
        clients = [Client(*await asyncio.open_connection("127.0.0.1", port)) for _ in range(3)]
        clients[0].send(GET)
        clients[1].send(GET.replace(b"/a", b"/b"))
        async with asyncio.timeout(20):
            await begun.get()
            await begun.get()
            closing = asyncio.ensure_future(listener.close())
            go_on.set()
            assert (await clients[0].answer())[2] == b"GET /a 0"
            await closing
            assert [await client.rest() for client in clients[1:]] == [b"", b""]
            for client in clients:
                client.hang_up()

    uvloop.run(scenario())


@pytest.mark.parametrize(
    ("text", "where"),
    [("127.0.0.1:6782", ("127.0.0.1", 6782)), (":6782", ("", 6782)), ("0.0.0.0:0", ("0.0.0.0", 0))],
)
def test_a_listen_address_is_a_host_and_a_port(text: str, where: tuple[str, int]) -> None:
    assert parse_listen_address(text) == where


@pytest.mark.parametrize("text", ["", "6782", "127.0.0.1", "127.0.0.1:", "127.0.0.1:70000", "127.0.0.1:x"])
def test_anything_else_is_no_listen_address(text: str) -> None:
    with pytest.raises(ConfigError, match="cannot listen at"):
        parse_listen_address(text)


def test_a_place_that_cannot_be_taken_is_a_configuration_error(tmp_path: Path) -> None:
    async def scenario() -> None:
        listener = HttpListener(echo)
        with pytest.raises(ConfigError, match="Unable to create http listener socket"):
            await listener.listen(str(tmp_path / "nowhere" / "weave.sock"))
        with pytest.raises(ConfigError, match="Unable to create http listener socket"):
            await listener.listen("192.0.2.1:6782")
        await listener.close()

    uvloop.run(scenario())
