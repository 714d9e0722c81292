"""The other end of the control API: one request, one answer, over the agent's Unix socket.

Standard library only, and little of it, since every `weave` command waits for these imports.
"""

import http.client
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from weavenet.api.visible import visible
from weavenet.errors import AgentAwayError, ApiError, ApiStatusError

SOCKET_VARIABLE = "WEAVENET_SOCKET"
DEFAULT_SOCKET = "/run/weavenet/weave.sock"
ANSWER_TIMEOUT_S = 30.0
ANSWER_MAX_BYTES = 256 << 20

_SUCCESSES = range(200, 300)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the agent said, made safe to print."""

    status: int
    body: str


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float | None) -> None:
        super().__init__("weavenet", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


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
        self._path = path or default_socket()

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
        headers = {"Connection": "close"}
        if accept:
            headers["Accept"] = accept
        body = urlencode(form) if form else None
        if body is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        connection = _UnixConnection(self._path, timeout_s)
        try:
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            raw = response.read(ANSWER_MAX_BYTES)
        except FileNotFoundError as error:
            raise AgentAwayError(
                f"weave is not running on this host (no socket at {self._path}): start it with `weaver`, "
                "or see whether the weave-net pod of this node runs",
                was_there=False,
            ) from error
        except ConnectionRefusedError as error:
            raise AgentAwayError(
                f"weave is not running on this host (nobody answers at {self._path}): start it again with `weaver`, "
                "or see why the weave-net pod of this node ended",
                was_there=True,
            ) from error
        except PermissionError as error:
            raise ApiError(f"permission denied for {self._path}: weave must be run as 'root'") from error
        except TimeoutError as error:
            raise ApiError(f"weave did not answer {method} {path} within {timeout_s:.0f} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise ApiError(f"the connection to weave at {self._path} failed: {error}") from error
        finally:
            connection.close()
        # A template's output is not made safe by the agent, since not only terminals read it.
        return Answer(response.status, visible(raw.decode(errors="replace"), keep="\n\t"))
