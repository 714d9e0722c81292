"""The manifest service: what `https://cloud.weave.works/k8s/net` was, for whoever wants to run one.

    GET /k8s/net?k8s-version=...            the manifest for this version, with Weave's parameters (options.py)
    GET /k8s/v1.29/net   /k8s/v1.29/net.yaml   the same, with the version in the path
    GET /healthz                            200 as long as it serves

It answers strangers, so everything has a limit: connections at a time, bytes of a request, seconds of a connection. It
keeps nothing, reads no files, and its log has neither addresses nor queries. One request per connection; a refusal is
one line of text with the status 400.

http.server's own caution is about serving files and running programs, of which this does neither.
"""

import io
import logging
import re
import socket
import sys
import threading
import time
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final
from urllib.parse import parse_qsl

from weavenet.errors import ManifestError
from weavenet.manifest.options import ITEMS_MAX, ImageSource, parse_options
from weavenet.manifest.text import entity_tag, render

CONNECTIONS_MAX = 64
REQUEST_BYTES_MAX = 64 << 10
CONNECTION_LIMIT_S = 15.0
READ_LIMIT_S = 5.0
_CACHE_S = 300
_SHOWN = 80

_YAML: Final = "application/yaml"  # RFC 9512
_TEXT: Final = "text/plain; charset=utf-8"
_MANIFEST_PATH = re.compile(r"/k8s(?:/(v?\d{1,3}\.\d{1,3}(?:\.\d{1,5})?))?/net(?:\.yaml)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back: a status, what kind of text, and the text."""

    status: HTTPStatus
    kind: str
    body: str


def answer(target: str, image: ImageSource, release: str) -> Answer:
    """Answer a GET of this request target. Everything but the connection is here."""
    where, _, query = target.partition("?")
    if where == "/healthz":
        return Answer(HTTPStatus.OK, _TEXT, "ok\n")
    path = _MANIFEST_PATH.fullmatch(where)
    if path is None:
        return Answer(
            HTTPStatus.NOT_FOUND, _TEXT, "not found; there is /k8s/net?k8s-version=... and /k8s/v1.29/net.yaml\n"
        )
    try:
        return Answer(HTTPStatus.OK, _YAML, _render(query, path[1], image, release))
    except ManifestError as error:
        return Answer(HTTPStatus.BAD_REQUEST, _TEXT, f"{error}\n")


def _render(query: str, version: str | None, image: ImageSource, release: str) -> str:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=ITEMS_MAX)
    except ValueError as error:
        raise ManifestError(f"the query cannot be read: {error}") from error
    if version is not None:
        if any(name == "k8s-version" for name, _ in pairs):
            raise ManifestError("the version stands in the path and in k8s-version; give one of them")
        pairs.append(("k8s-version", version))
    return render(parse_options(pairs, image), release)


class _RequestReader(io.BufferedIOBase):
    """The request as http.server reads it, line by line, ending where it becomes too long."""

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self._stream = stream
        self._left = REQUEST_BYTES_MAX

    def readline(self, size: int | None = -1, /) -> bytes:
        """Read on, as far as there is room."""
        wanted = self._left if size is None or size < 0 else min(size, self._left)
        line = self._stream.readline(wanted)
        self._left -= len(line)
        return line

    def close(self) -> None:
        """Close the connection's stream."""
        self._stream.close()
        super().close()


class ManifestService(ThreadingHTTPServer):
    """The listening socket and its threads."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], image: ImageSource, release: str, log: logging.Logger) -> None:
        """Listen, and hand out this image. Raises OSError."""
        self.image = image
        self.release = release
        self.log = log
        self._places = threading.BoundedSemaphore(CONNECTIONS_MAX)
        self._deadlines: dict[socket.socket, float] = {}
        self._guard = threading.Lock()
        super().__init__(address, _Handler)

    def process_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        """Serve a connection in a thread of its own; when all places are taken, close it."""
        assert isinstance(request, socket.socket), "a TCP server"
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        with self._guard:
            self._deadlines[request] = time.monotonic() + CONNECTION_LIMIT_S
        super().process_request(request, client_address)

    def process_request_thread(
        self, request: socket.socket | tuple[bytes, socket.socket], client_address: object
    ) -> None:
        """Serve, and give the place back."""
        assert isinstance(request, socket.socket), "a TCP server"
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._guard:
                self._deadlines.pop(request, None)
            self._places.release()

    def service_actions(self) -> None:
        """Cut off those who take too long: a limit on each read is none on someone who sends a byte now and then."""
        now = time.monotonic()
        with self._guard:
            late = [connection for connection, deadline in self._deadlines.items() if deadline < now]
        for connection in late:
            try:
                connection.shutdown(socket.SHUT_RDWR)  # its thread wakes with an end of file, and closes it
            except OSError:  # it has just ended by itself
                continue

    def handle_error(self, _request: object, _client_address: object) -> None:
        """Log what a thread died of: a client that went away is not worth a line."""
        self.log.debug("a connection ended early: %s", sys.exception())


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: ManifestService
    server_version = "weavenet"
    sys_version = ""
    timeout = READ_LIMIT_S
    error_content_type = _TEXT
    error_message_format = "%(code)d %(message)s\n"

    def setup(self) -> None:
        super().setup()
        self.rfile = _RequestReader(self.rfile)

    def do_GET(self) -> None:
        """Answer."""
        self._send(answer(self.path, self.server.image, self.server.release), body=True)

    def do_HEAD(self) -> None:
        """Answer without the body."""
        self._send(answer(self.path, self.server.image, self.server.release), body=False)

    def _send(self, given: Answer, *, body: bool) -> None:
        raw = given.body.encode()
        self.send_response(given.status)
        self.send_header("Content-Type", given.kind)
        self.send_header("Content-Length", str(len(raw)))
        self.send_header("X-Content-Type-Options", "nosniff")
        if given.status == HTTPStatus.OK and given.kind == _YAML:
            self.send_header("ETag", entity_tag(given.body))
            self.send_header("Cache-Control", f"public, max-age={_CACHE_S}")
        self.end_headers()
        if body:
            self.wfile.write(raw)

    def log_message(self, message: str, *values: object) -> None:
        self.server.log.debug(message, *values)

    def log_request(self, code: int | str = "-", _size: int | str = "-") -> None:
        status = code.value if isinstance(code, HTTPStatus) else code
        # Neither is there yet when the request's first line was none.
        method, target = getattr(self, "command", None) or "-", getattr(self, "path", "-")
        self.server.log.info("%s %s %s", method[:_SHOWN], target.partition("?")[0][:_SHOWN], status)
