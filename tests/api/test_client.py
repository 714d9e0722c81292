"""What the client makes of answers, whole and broken, as bytes from a socket."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from weavenet.api import client as module
from weavenet.api.client import Answer, Client
from weavenet.errors import ApiError


@contextmanager
def agent_that_says(path: Path, answer: bytes) -> Iterator[list[bytes]]:
    """Answer one request with these bytes and hang up; give what was asked."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(10)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(10)
                asked.append(connection.recv(1 << 16))
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield asked
        finally:
            thread.join()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nhello",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    ],
    ids=["with its length", "in chunks", "up to the end", "after a word in between"],
)
def test_an_answer_is_read(tmp_path: Path, answer: bytes) -> None:
    with agent_that_says(tmp_path / "sock", answer):
        assert Client(str(tmp_path / "sock")).exchange("GET", "/status") == Answer(200, "hello")


def test_a_request_is_one_write_with_all_that_belongs_to_it(tmp_path: Path) -> None:
    with agent_that_says(tmp_path / "sock", b"HTTP/1.1 204 No Content\r\n\r\n") as asked:
        answer = Client(str(tmp_path / "sock")).exchange("POST", "/connect", accept="a/b", form=[("peer", "a b")])

    assert answer == Answer(204, "")
    head, _, body = asked[0].partition(b"\r\n\r\n")
    assert body == b"peer=a+b"
    assert head.split(b"\r\n") == [
        b"POST /connect HTTP/1.1",
        b"Host: weavenet",
        b"Connection: close",
        b"Content-Length: 8",
        b"Accept: a/b",
        b"Content-Type: application/x-www-form-urlencoded",
    ]


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200 OK\r\nContent-Len", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", b"nonsense\r\n\r\n"],
    ids=["nothing", "half a header", "half a body", "no http"],
)
def test_a_broken_answer_is_an_error_with_words(tmp_path: Path, answer: bytes) -> None:
    with (
        agent_that_says(tmp_path / "sock", answer),
        pytest.raises(ApiError, match=r"the connection to weave at .*sock failed: "),
    ):
        Client(str(tmp_path / "sock")).exchange("GET", "/status")


def test_an_answer_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_MAX_BYTES", 4)

    with (
        agent_that_says(tmp_path / "sock", b"HTTP/1.0 200 OK\r\n\r\nhello"),
        pytest.raises(ApiError, match="longer than 4 bytes"),
    ):
        Client(str(tmp_path / "sock")).exchange("GET", "/status")
