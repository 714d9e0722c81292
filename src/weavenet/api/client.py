"""The other end of the control API: one request, one answer, over the agent's Unix socket.

Every `weave` command waits for what is imported here, so it is little: h11 takes half of what the standard library's
http.client does, which brings in TLS and the parser for e-mail.
"""

import os
import select
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import quote, urlencode

import h11

from weavenet.api.visible import visible
from weavenet.errors import AgentAwayError, ApiError, ApiStatusError

SOCKET_VARIABLE = "WEAVENET_SOCKET"
DEFAULT_SOCKET = "/run/weavenet/weave.sock"
DEFAULT_STATE_DIR = "/var/lib/weavenet"
DATABASE_NAME = "weavenet.db"  # in the state directory; where it is, a peer was
ANSWER_TIMEOUT_S = 30.0
ANSWER_MAX_BYTES = 256 << 20

_CHUNK_BYTES = 256 << 10
_SUCCESSES = range(200, 300)
_CREDENTIALS = struct.Struct("=iII")  # struct ucred: process, user, group


@dataclass(frozen=True, slots=True)
class Answer:
    """What the agent said, made safe to print."""

    status: int
    body: str


def default_socket() -> str:
    """Return where the agent is looked for if nobody says otherwise."""
    return os.environ.get(SOCKET_VARIABLE) or DEFAULT_SOCKET


def path_of(*segments: str) -> str:
    """Join segments to a path, quoting what users gave."""
    return "".join("/" + quote(segment, safe=":") for segment in segments)


class Client:
    """Talks to one agent."""

    def __init__(self, path: str | None = None) -> None:
        """Use the socket at `path`."""
        self.path = path or default_socket()

    def get(self, path: str, *, accept: str = "", query: Mapping[str, str] | None = None) -> str:
        """Return the body of a GET. Raises ApiError."""
        target = f"{path}?{urlencode(query)}" if query else path
        return self.call("GET", target, accept=accept)

    def call(
        self,
        method: str,
        path: str,
        *,
        accept: str = "",
        form: Sequence[tuple[str, str]] = (),
        timeout_s: float | None = ANSWER_TIMEOUT_S,
    ) -> str:
        """Return the body of a successful answer. Raises ApiStatusError for any other, AgentAwayError without one."""
        answer = self.exchange(method, path, accept=accept, form=form, timeout_s=timeout_s)
        if answer.status not in _SUCCESSES:
            raise ApiStatusError(answer.status, answer.body)
        return answer.body

    def exchange(
        self,
        method: str,
        path: str,
        *,
        accept: str = "",
        form: Sequence[tuple[str, str]] = (),
        timeout_s: float | None = ANSWER_TIMEOUT_S,
    ) -> Answer:
        """Send one request and return whatever is answered; `timeout_s` None waits for ever. Raises ApiError."""
        body = urlencode(form).encode() if form else b""
        headers = [("Host", "weavenet"), ("Connection", "close"), ("Content-Length", str(len(body)))]
        if accept:
            headers.append(("Accept", accept))
        if body:
            headers.append(("Content-Type", "application/x-www-form-urlencoded"))
        request = h11.Request(method=method, target=path, headers=headers)
        try:
            with self._connected(timeout_s) as connection:
                return _exchange(connection, request, body)
        except TimeoutError as error:
            raise ApiError(f"weave did not answer {method} {path} within {timeout_s:.0f} s") from error
        except (OSError, h11.RemoteProtocolError) as error:
            raise ApiError(f"the connection to weave at {self.path} failed: {error}") from error

    @contextmanager
    def process(self) -> Iterator["AgentProcess"]:
        """Find the agent's process. Raises AgentAwayError without an agent, ApiError where it cannot be seen.

        The kernel tells its number, as of this process' own namespace: unix(7), SO_PEERCRED.
        """
        try:
            with self._connected(ANSWER_TIMEOUT_S) as connection:
                raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            number, _, _ = _CREDENTIALS.unpack(raw)
            descriptor = os.pidfd_open(number)
        except OSError as error:
            raise ApiError(
                f"cannot tell which process the agent at {self.path} is: {error}; stop it by hand"
            ) from error
        try:
            yield AgentProcess(number, descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def _connected(self, timeout_s: float | None) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            try:
                connection.connect(self.path)
            except FileNotFoundError as error:
                raise AgentAwayError(
                    f"weave is not running on this host (no socket at {self.path}): start it with `weaver`, "
                    "or see whether the weave-net pod of this node runs",
                    was_there=False,
                ) from error
            except ConnectionRefusedError as error:
                raise AgentAwayError(
                    f"weave is not running on this host (nobody answers at {self.path}): start it again with `weaver`, "
                    "or see why the weave-net pod of this node ended",
                    was_there=True,
                ) from error
            except PermissionError as error:
                raise ApiError(f"permission denied for {self.path}: weave must be run as 'root'") from error
            yield connection


class AgentProcess:
    """The process of an agent, whatever becomes of its number."""

    def __init__(self, number: int, descriptor: int) -> None:
        """Watch a process, by a descriptor of it."""
        self.number = number
        self._descriptor = descriptor

    def shares_our_network(self) -> bool:
        """Say whether it is in this process' network namespace. Raises ApiError where that cannot be seen."""
        try:
            theirs, ours = (os.stat(f"/proc/{which}/ns/net") for which in (self.number, "self"))  # noqa: PTH116
        except OSError as error:
            raise ApiError(f"cannot tell in which network namespace process {self.number} is: {error}") from error
        return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)

    def has_ended(self, within_s: float) -> bool:
        """Wait for its end, for so long; say whether it has come."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(within_s * 1000))


def _exchange(connection: socket.socket, request: h11.Request, body: bytes) -> Answer:
    http = h11.Connection(h11.CLIENT)
    connection.sendall(b"".join(http.send(part) or b"" for part in (request, h11.Data(data=body), h11.EndOfMessage())))
    status = 0
    answer = bytearray()
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(connection.recv(_CHUNK_BYTES))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            answer += event.data
            if len(answer) > ANSWER_MAX_BYTES:
                raise ApiError(f"the answer is longer than {ANSWER_MAX_BYTES} bytes")
        elif isinstance(event, h11.EndOfMessage):
            # A template's output is not made safe by the agent, since not only terminals read it.
            return Answer(status, visible(answer.decode(errors="replace"), keep="\n\t"))
