"""The manifest service, asked over real HTTP on loopback."""

import errno
import http.client
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
import yaml

from weavenet.manifest import service as under_test
from weavenet.manifest.objects import manifest
from weavenet.manifest.options import ImageSource, parse_options
from weavenet.manifest.service import ManifestService, answer

IMAGE = ImageSource("registry.example/weavenet", "0.1.0")
LIMIT_S = 10
# `kubectl version | base64 | tr -d '\n'` of a server 1.30.5, with a plus in it.
KUBECTL = "Q2xpZW50IFZlcnNpb246IHYxLjMxLjAgPj4+fn5+Pj4+ClNlcnZlciBWZXJzaW9uOiB2MS4zMC41Cg=="


@pytest.fixture
def service() -> Iterator[ManifestService]:
    serving = ManifestService(("127.0.0.1", 0), IMAGE, "0.1.0", logging.getLogger("test"))
    thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield serving
    finally:
        serving.shutdown()
        thread.join(LIMIT_S)
        serving.server_close()


def ask(service: ManifestService, target: str, method: str = "GET") -> tuple[int, http.client.HTTPMessage, str]:
    with closing(http.client.HTTPConnection("127.0.0.1", service.server_port, timeout=LIMIT_S)) as connection:
        connection.request(method, target)
        response = connection.getresponse()
        return response.status, response.headers, response.read().decode()


def send(service: ManifestService, raw: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", service.server_port), timeout=LIMIT_S) as connection:
        received = b""
        try:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(65536):
                received += chunk
        except OSError as error:
            # What was not read is answered with a reset, which may come before any of these calls.
            if error.errno not in {errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN}:
                raise
        return received


def test_the_line_from_everybodys_scripts_works(service: ManifestService) -> None:
    assert "+" in KUBECTL
    status, headers, body = ask(
        service, f"/k8s/net?k8s-version={KUBECTL}&env.IPALLOC_RANGE=10.40.0.0/16&password-secret=w"
    )
    assert status == 200
    assert headers["Content-Type"] == "application/yaml"
    assert body.startswith("# weavenet 0.1.0 for Kubernetes 1.30\n")
    pairs = [("k8s-version", "1.30"), ("env.IPALLOC_RANGE", "10.40.0.0/16"), ("password-secret", "w")]
    assert yaml.safe_load(body) == manifest(parse_options(pairs, IMAGE))


@pytest.mark.parametrize(
    "path", ["/k8s/v1.29/net.yaml", "/k8s/v1.29/net", "/k8s/1.29/net", "/k8s/net?k8s-version=1.29"]
)
def test_the_version_may_stand_in_the_path(service: ManifestService, path: str) -> None:
    status, _, body = ask(service, path)
    assert status == 200
    assert body.startswith("# weavenet 0.1.0 for Kubernetes 1.29\n")


def test_without_a_version_it_is_the_newest_and_says_so(service: ManifestService) -> None:
    status, _, body = ask(service, "/k8s/net")
    assert status == 200
    assert "# Note: no Kubernetes version was given" in body


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("/k8s/net?k8sversion=1.29", "unknown parameter 'k8sversion'"),
        ("/k8s/net?k8s-version=1.5", "Kubernetes 1.5 is not supported: 1.25 to 1.36 are"),
        ("/k8s/v1.5/net", "Kubernetes 1.5 is not supported"),
        ("/k8s/v1.29/net?k8s-version=1.29", "give one of them"),
        ("/k8s/net?k8s-version=%00%01", "is neither a version"),
        ("/k8s/net?env.IPALLOC_RANGE=10.0.0.0/33", "env.IPALLOC_RANGE: invalid CIDR address"),
        ("/k8s/net?known-peers=10.0.0.300", "known-peers: invalid address"),
        ("/k8s/net?image=evil", "unknown parameter 'image'"),
        ("/k8s/net?version", "the query cannot be read"),
        ("/k8s/net?" + "&".join(["a=b"] * 300), "the query cannot be read"),
    ],
)
def test_nonsense_is_a_400_that_says_what_is_wrong(service: ManifestService, target: str, words: str) -> None:
    status, headers, body = ask(service, target)
    assert status == 400
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert words in body
    assert body.count("\n") == 1


@pytest.mark.parametrize("target", ["/", "/k8s", "/k8s/net/", "/k8s/v1/net", "/k8s/../net", "/k8s/net.json"])
def test_anything_else_is_not_found(service: ManifestService, target: str) -> None:
    assert ask(service, target)[0] == 404


def test_head_is_get_without_the_body(service: ManifestService) -> None:
    status, headers, body = ask(service, "/k8s/v1.29/net", "HEAD")
    _, wanted, text = ask(service, "/k8s/v1.29/net")
    assert (status, body) == (200, "")
    assert headers["Content-Length"] == wanted["Content-Length"] == str(len(text.encode()))
    assert headers["ETag"] == wanted["ETag"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "BREW"])
def test_nothing_but_reading_is_answered(service: ManifestService, method: str) -> None:
    status, _, body = ask(service, "/k8s/net", method)
    assert status == 501
    assert "<" not in body


def test_health_is_answered(service: ManifestService) -> None:
    assert ask(service, "/healthz")[::2] == (200, "ok\n")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\r\n",
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"GET http://else.example/ HTTP/1.0\r\n\r\n",
        b"GET /k8s/net HTTP/9.9\r\n\r\n",
        b"GET /k8s/net HTTP/1.0\r\nnonsense\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.0\r\n\r\n",
        b"GET /k8s/net HTTP/1.0\r\n" + b"A: b\r\n" * 50_000,
        b"GET /k8s/net HTTP/1.0\r\nA: " + b"b" * 100_000 + b"\r\n\r\n",
    ],
    ids=["nothing", "a blank line", "half a request", "TLS", "a proxy request", "HTTP 9.9", "no header", "a long line",
         "headers without end", "a long header"],
)  # fmt: skip
def test_what_is_no_request_costs_its_sender_the_connection_and_nobody_else(
    service: ManifestService, raw: bytes
) -> None:
    received = send(service, raw)
    assert b"Traceback" not in received
    assert ask(service, "/healthz")[0] == 200


def test_who_sends_nothing_is_cut_off(service: ManifestService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "CONNECTION_LIMIT_S", 0.0)
    with socket.create_connection(("127.0.0.1", service.server_port), timeout=LIMIT_S) as connection:
        connection.sendall(b"GET /k8s/n")
        assert connection.recv(1) == b""


def test_when_all_places_are_taken_the_next_is_turned_away_until_one_is_free(service: ManifestService) -> None:
    waiting = [
        socket.create_connection(("127.0.0.1", service.server_port), timeout=LIMIT_S)
        for _ in range(under_test.CONNECTIONS_MAX)
    ]
    try:
        with socket.create_connection(("127.0.0.1", service.server_port), timeout=LIMIT_S) as one_more:
            assert one_more.recv(1) == b""
        waiting[0].sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert waiting[0].recv(64).startswith(b"HTTP/1.0 200")
    finally:
        for connection in waiting:
            connection.close()


def test_the_log_has_neither_queries_nor_addresses(service: ManifestService, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "test"):
        ask(service, "/k8s/net?env.EXTRA_ARGS=private")
    assert caplog.messages == ["GET /k8s/net 200"]


def test_a_target_that_is_no_path_is_not_found() -> None:
    assert answer("*", IMAGE, "0.1.0").status == 404
    assert answer("http://[::1/", IMAGE, "0.1.0").status == 404
    assert answer("//[::1/k8s/net", IMAGE, "0.1.0").status == 404
