"""A remote that says nothing more: it hangs up, or time passes."""

import pytest

from weavenet.effects import Now
from weavenet.errors import HandshakeError
from weavenet.identity import PeerName, PeerUID, ShortID
from weavenet.mesh.connection import HEADER_TIMEOUT_S, READ_TIMEOUT_S, Connection, ConnectionOptions, LocalPeer


class FixedEntropy:
    def bits(self, count: int) -> int:
        return (1 << count) - 1

    def octets(self, count: int) -> bytes:
        return bytes(range(count))

    def fraction(self) -> float:
        return 0.5


def at(monotonic_s: float) -> Now:
    return Now(monotonic_s=monotonic_s, wall_s=0.0)


def connect(password: bytes | None = None) -> Connection:
    return Connection(
        LocalPeer(PeerName(1), PeerUID(1001), "host1"),
        ConnectionOptions(password),
        outbound=True,
        short_id=ShortID(1),
        trusted=False,
        entropy=FixedEntropy(),
        now=at(0),
    )


@pytest.mark.parametrize(
    ("received", "wanted"),
    [
        ("", "failed to receive remote protocol header: EOF"),
        (
            "7765 61",
            "received incomplete remote protocol header (3 octets instead of 7): [119 101 97]; error: unexpected EOF",
        ),
        ("77656176650102", "EOF"),
        ("7765617665010200", "EOF"),
        ("7765617665010200 0000", "unexpected EOF"),
        ("7765617665010200 00000005", "EOF"),
        ("7765617665010200 00000005 00", "unexpected EOF"),
        ("77656176650101", "EOF"),
        ("77656176650101 0d", "unexpected EOF"),
    ],
)
def test_the_end_of_a_stream_is_named_as_go_names_it(received: str, wanted: str) -> None:
    connection = connect()
    connection.receive(bytes.fromhex(received), at(0))
    assert str(connection.end_of_stream()) == wanted


def test_the_end_within_a_key_is_unexpected() -> None:
    connection = connect(password=b"secret")
    connection.receive(b"weave\x01\x02\x01", at(0))
    assert str(connection.end_of_stream()) == "EOF"
    connection.receive(b"key", at(0))
    assert str(connection.end_of_stream()) == "unexpected EOF"


def test_a_remote_has_ten_seconds_for_its_header() -> None:
    connection = connect()
    assert connection.next_deadline() == HEADER_TIMEOUT_S == 10
    assert connection.handle_timer(at(9.9)) == b""
    with pytest.raises(HandshakeError, match=r"failed to receive remote protocol header: i/o timeout"):
        connection.handle_timer(at(10))
    connection.receive(b"wea", at(9))
    with pytest.raises(HandshakeError, match=r"received incomplete remote protocol header .*; error: i/o timeout"):
        connection.handle_timer(at(10))


def test_a_remote_has_a_minute_for_the_rest_of_its_introduction() -> None:
    connection = connect()
    connection.receive(b"weave\x01\x02", at(9))
    connection.receive(b"\0\0\0", at(50))
    assert connection.next_deadline() == 9 + READ_TIMEOUT_S
    with pytest.raises(HandshakeError, match="i/o timeout"):
        connection.handle_timer(at(69))
