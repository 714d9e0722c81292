"""Sockets to inputs, effects to sockets; on loopback."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from weavenet.address import Endpoint, parse_address
from weavenet.drivers.tcp import ACCEPT_BURST, TcpDriver, TokenBucket
from weavenet.effects import ConnectionNumber
from weavenet.node.inputs import DialFailed, Input, TcpAccepted, TcpClosed, TcpDialled, TcpReceived, TcpWritable

LOOPBACK = parse_address("127.0.0.1")
FIRST_DIALLED = ConnectionNumber(1)


class Ears:
    """Collects inputs, and lets a test wait for one."""

    def __init__(self) -> None:
        self.heard: list[Input] = []
        self._changed = asyncio.Event()

    def feed(self, happened: Input) -> None:
        self.heard.append(happened)
        self._changed.set()

    async def wait_for(self, kind: type[Input]) -> Input:
        async with asyncio.timeout(10):
            while True:
                for happened in self.heard:
                    if isinstance(happened, kind):
                        return happened
                self._changed.clear()
                await self._changed.wait()


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _run(test: Callable[[TcpDriver, Ears, TcpDriver, Ears, Endpoint], Awaitable[None]]) -> None:
    async def body() -> None:
        near, far = Ears(), Ears()
        dialler, acceptor = TcpDriver(near.feed, "127.0.0.1"), TcpDriver(far.feed, "127.0.0.1")
        port = _free_port()
        acceptor.listen(port)
        accepting = asyncio.create_task(acceptor.accept_forever())
        try:
            await test(dialler, near, acceptor, far, Endpoint(LOOPBACK, port))
        finally:
            accepting.cancel()
            dialler.close_all()
            acceptor.close_all()
            await asyncio.gather(accepting, return_exceptions=True)
            await asyncio.sleep(0)

    asyncio.run(body())


def test_a_dialled_connection_has_an_odd_number_and_an_accepted_one_an_even_number() -> None:
    async def test(dialler: TcpDriver, near: Ears, _: TcpDriver, far: Ears, there: Endpoint) -> None:
        dialler.dial(FIRST_DIALLED, there)
        dialled, accepted = await near.wait_for(TcpDialled), await far.wait_for(TcpAccepted)
        assert isinstance(dialled, TcpDialled)
        assert isinstance(accepted, TcpAccepted)
        assert (dialled.connection, accepted.connection) == (1, 2)
        assert accepted.remote == dialled.local
        assert accepted.local == there

    _run(test)


def test_bytes_go_both_ways_and_closing_is_heard_by_the_other_side_only() -> None:
    async def test(dialler: TcpDriver, near: Ears, acceptor: TcpDriver, far: Ears, there: Endpoint) -> None:
        dialler.dial(FIRST_DIALLED, there)
        accepted = await far.wait_for(TcpAccepted)
        await near.wait_for(TcpDialled)
        assert isinstance(accepted, TcpAccepted)
        dialler.send(FIRST_DIALLED, b"weave\x01\x02")
        acceptor.send(accepted.connection, b"hello")
        assert await far.wait_for(TcpReceived) == TcpReceived(accepted.connection, b"weave\x01\x02")
        assert await near.wait_for(TcpReceived) == TcpReceived(FIRST_DIALLED, b"hello")
        dialler.close(FIRST_DIALLED)
        closed = await far.wait_for(TcpClosed)
        assert isinstance(closed, TcpClosed)
        assert not any(isinstance(happened, TcpClosed) for happened in near.heard)

    _run(test)


def test_a_refused_dial_says_so_with_the_address() -> None:
    async def test(dialler: TcpDriver, near: Ears, _acceptor: TcpDriver, _far: Ears, _there: Endpoint) -> None:
        nobody = Endpoint(LOOPBACK, _free_port())
        dialler.dial(FIRST_DIALLED, nobody)
        failed = await near.wait_for(DialFailed)
        assert failed == DialFailed(FIRST_DIALLED, f"dial tcp {nobody}: connect: connection refused")

    _run(test)


def test_a_reader_that_does_not_read_makes_the_connection_unwritable() -> None:
    async def test(dialler: TcpDriver, near: Ears, _: TcpDriver, far: Ears, _there: Endpoint) -> None:
        import socket

        with socket.create_server(("127.0.0.1", 0)) as deaf:
            dialler.dial(FIRST_DIALLED, Endpoint(LOOPBACK, deaf.getsockname()[1]))
            await near.wait_for(TcpDialled)
            for _ in range(64):
                dialler.send(FIRST_DIALLED, bytes(1 << 18))
            paused = await near.wait_for(TcpWritable)
            assert paused == TcpWritable(FIRST_DIALLED, writable=False)
            assert far.heard == []

    _run(test)


def test_what_is_sent_to_a_closed_or_unknown_connection_is_dropped_in_silence() -> None:
    async def test(dialler: TcpDriver, near: Ears, _: TcpDriver, _far: Ears, _there: Endpoint) -> None:
        dialler.send(ConnectionNumber(99), b"x")
        dialler.close(ConnectionNumber(99))
        assert near.heard == []

    _run(test)


def test_a_burst_of_strangers_is_let_in_at_once_and_the_rest_one_by_one() -> None:
    bucket = TokenBucket(100.0)
    assert [bucket.take(100.0) for _ in range(ACCEPT_BURST)] == [0.0] * ACCEPT_BURST
    assert [round(bucket.take(100.0), 3) for _ in range(3)] == [0.05, 0.1, 0.15]
    assert bucket.take(200.0) == 0.0


def test_listening_on_a_taken_port_fails_and_leaves_nothing() -> None:
    async def body() -> None:
        first, second = TcpDriver(lambda _: None, "127.0.0.1"), TcpDriver(lambda _: None, "127.0.0.1")
        port = _free_port()
        first.listen(port)
        with pytest.raises(OSError, match="in use"):
            second.listen(port)
        first.close_all()
        second.close_all()

    asyncio.run(body())


def test_the_kernel_tells_how_long_a_round_trip_takes() -> None:
    async def test(dialler: TcpDriver, near: Ears, _: TcpDriver, far: Ears, there: Endpoint) -> None:
        assert dialler.round_trips() == {}
        dialler.dial(FIRST_DIALLED, there)
        await near.wait_for(TcpDialled)
        await far.wait_for(TcpAccepted)
        dialler.send(FIRST_DIALLED, b"?")
        await far.wait_for(TcpReceived)
        found = dialler.round_trips()
        assert set(found) == {FIRST_DIALLED}
        assert 0 < found[FIRST_DIALLED] < 10_000_000

    _run(test)
