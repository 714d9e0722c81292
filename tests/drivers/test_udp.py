"""Datagrams in batches, between two sockets on loopback: they arrive as they were, however few calls it took."""

import select
import socket
from collections.abc import Iterator

import pytest

from weavenet.address import Endpoint, address_from_bytes
from weavenet.drivers.udp import UdpPort, open_udp
from weavenet.effects import ConnectionNumber
from weavenet.overlay.sleeve.pipe import Datagram

LOOPBACK = address_from_bytes(bytes((127, 0, 0, 1)))


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    with open_udp("127.0.0.1", 0) as one, open_udp("127.0.0.1", 0) as two:
        yield one, two


def datagrams(to: socket.socket, lengths: list[int], *, dont_fragment: bool = True) -> list[Datagram]:
    remote = Endpoint(LOOPBACK, to.getsockname()[1])
    payloads = [bytes([number + 1]) * length for number, length in enumerate(lengths)]
    return [Datagram(ConnectionNumber(1), remote, payload, dont_fragment) for payload in payloads]


def received(by: socket.socket, count: int) -> list[tuple[bytes, Endpoint]]:
    port = UdpPort(by)
    found: list[tuple[bytes, Endpoint]] = []
    while len(found) < count:
        assert select.select([port], [], [], 10)[0], f"only {len(found)} came"
        for buffer, size, step, source in port.receive_into([bytearray(65_536) for _ in range(4)]):
            found += [(bytes(buffer[at : min(at + step, size)]), source) for at in range(0, size, step)]
    return found


@pytest.mark.parametrize("dont_fragment", [True, False])
@pytest.mark.parametrize(
    "lengths",
    [[100], [100] * 3, [100, 100, 40, 100], [40, 100], [1400] * 60, [100] * 130, [60_000, 60_000]],
)
def test_what_is_sent_together_arrives_one_by_one_in_order(
    sockets: tuple[socket.socket, socket.socket], lengths: list[int], dont_fragment: bool
) -> None:
    one, two = sockets
    batch = datagrams(two, lengths, dont_fragment=dont_fragment)
    assert UdpPort(one).send(batch) == []
    source = Endpoint(LOOPBACK, one.getsockname()[1])
    assert received(two, len(batch)) == [(datagram.payload, source) for datagram in batch]


@pytest.mark.parametrize(
    ("lengths", "runs"),
    [
        ([100] * 5, [5]),
        ([100, 100, 40, 100], [3, 1]),
        ([40, 100, 100], [1, 2]),
        ([1400] * 60, [46, 14]),  # 65507 bytes at most
        ([100] * 130, [64, 64, 2]),
    ],
)
def test_a_run_is_of_one_length_and_ends_with_a_shorter_one(
    sockets: tuple[socket.socket, socket.socket], lengths: list[int], runs: list[int]
) -> None:
    port, batch = UdpPort(sockets[0]), datagrams(sockets[1], lengths)
    found, at = [], 0
    while at < len(batch):
        end = port._run_end(batch, at)
        found.append(end - at)
        at = end
    assert found == runs


def test_where_the_kernel_takes_each_but_not_all_together_none_are_joined_any_more(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    one, two = sockets
    one.setsockopt(socket.SOL_SOCKET, 11, 1)  # SO_NO_CHECK: the kernel joins no datagrams without a checksum
    port, batch = UdpPort(one), datagrams(two, [100] * 3)
    assert port.send(batch) == []
    assert [data for data, _ in received(two, 3)] == [datagram.payload for datagram in batch]
    assert port._run_end(batch, 0) == 1


def test_what_can_never_be_sent_is_told_with_the_reason(sockets: tuple[socket.socket, socket.socket]) -> None:
    (datagram,) = datagrams(sockets[1], [10])
    nowhere = Datagram(datagram.connection, Endpoint(address_from_bytes(bytes(4)), 0), b"x", dont_fragment=True)
    (refusal,) = UdpPort(sockets[0]).send([nowhere])
    assert refusal.pmtu_bytes == 0
    assert refusal.reason.startswith("cannot send to 0.0.0.0:0: ")
