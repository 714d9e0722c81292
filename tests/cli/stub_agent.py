"""A stub of the agent, and the `weave` command run against it. As a program it is a process that `/stop` ends."""

import json
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qsl

import click
import pytest

from weavenet.cli.main import main


@dataclass
class Stub:
    """An agent that answers from a table of (method, path) and keeps what it was asked."""

    path: str
    replies: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)
    asked: list[tuple[str, str, list[tuple[str, str]], str]] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@contextmanager
def serving(stub: Stub) -> Iterator[Stub]:
    """Serve what the stub says, until left."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            accept = self.headers.get("Accept", "")
            stub.asked.append((self.command, self.path, parse_qsl(body), accept))
            status, text = stub.replies.get((self.command, self.path), (404, "404 page not found\n"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            if text:
                self.wfile.write(text.encode())
            if self.path == "/stop":
                stub.stopped.set()

        do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815 - http.server's names

        def address_string(self) -> str:  # a Unix socket's peer has none
            return "unix"

        def log_message(self, *_: object) -> None:
            pass

    server = _Server(stub.path, Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str


def weave(capsys: pytest.CaptureFixture[str], *arguments: str) -> Result:
    status = main(arguments)
    captured = capsys.readouterr()
    return Result(status, captured.out, captured.err)


if __name__ == "__main__":
    # The path, what GET answers as JSON; when stopped, what was asked is printed.
    with serving(Stub(sys.argv[1])) as program:
        program.replies |= {("GET", path): (200, json.dumps(body)) for path, body in json.loads(sys.argv[2]).items()}
        program.replies |= {("DELETE", "/peer"): (204, ""), ("POST", "/stop"): (204, "")}
        click.echo("ready")
        program.stopped.wait(timeout=30)
    click.echo("\n".join(f"{method} {path}" for method, path, *_ in program.asked))
