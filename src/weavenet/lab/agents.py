"""The agents of lab hosts: how each is started, and asking one how it is over its control socket."""

import http.client
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from weavenet.errors import LabError
from weavenet.lab.process import Deadline
from weavenet.lab.record import HostRecord, Paths

RANGE = "10.32.0.0/12"
MTU = 1376  # what Weave gives its fast datapath unless told otherwise: fits everywhere, even with encryption
QUERY_TIMEOUT_S = 5.0
LOGS_TELL_S = 5.0


def programs() -> Path:
    """Return where our own programs are: beside the interpreter, in the virtual environment."""
    return Path(sys.executable).parent


def command(
    paths: Paths, host: HostRecord, *, peers: Sequence[str], consensus: int, options: Sequence[str] = ()
) -> list[str]:
    """Return the command line of a host's agent, which is told only of `peers`. `options` win over the lab's own."""
    return [
        str(programs() / "weaver"),
        f"--name={host.peer_name}",
        f"--nickname={host.name}",
        "--port=6783",
        f"--ipalloc-range={RANGE}",
        f"--ipalloc-init=consensus={consensus}",
        f"--state-dir={paths.state / host.name}",
        f"--run-dir={paths.host(host)}",
        "--weave-bridge=weave",
        f"--mtu={MTU}",
        "--log-level=info",
        *options,
        *peers,
    ]


def environment(paths: Paths, host: HostRecord) -> dict[str, str]:
    """Return the environment in which commands on a host find its agent and our programs."""
    path = f"{programs()}:{os.environ.get('PATH', '/usr/sbin:/usr/bin:/sbin:/bin')}"
    return {**os.environ, **sockets(paths, host), "PATH": path}


def sockets(paths: Paths, host: HostRecord) -> Mapping[str, str]:
    """Return the variables that name an agent's sockets."""
    return {
        "WEAVENET_SOCKET": str(paths.host(host) / "weave.sock"),
        "WEAVENET_CNI_SOCKET": str(paths.host(host) / "cni.sock"),
    }


class _ControlConnection(http.client.HTTPConnection):
    """HTTP over the control socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=QUERY_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(QUERY_TIMEOUT_S)
        self.sock.connect(str(self._path))


def query(paths: Paths, host: HostRecord, url: str, method: str = "GET") -> str:
    """Ask an agent's control API. Raises LabError if there is no answer, or not a good one."""
    connection = _ControlConnection(paths.host(host) / "weave.sock")
    try:
        connection.request(method, url)
        response = connection.getresponse()
        body = response.read().decode()
    except (OSError, http.client.HTTPException) as error:
        raise LabError(f"the agent of {host.name} does not answer: {error}") from None
    finally:
        connection.close()
    if response.status not in {http.client.OK, http.client.NO_CONTENT}:
        raise LabError(f"the agent of {host.name} answered {url} with {response.status}: {body.strip()}")
    return body


def established(paths: Paths, host: HostRecord) -> int:
    """Return how many established connections an agent has; 0 while it does not answer."""
    try:
        text = query(paths, host, "/status/connections")
    except LabError:
        return 0
    # Arrow, address and state are columns of their own (docs/protocol.md, "Status texts").
    return sum(line.split()[2:3] == ["established"] for line in text.splitlines())


def wait_until_connected(
    paths: Paths, hosts: Sequence[HostRecord], *, timeout_s: float = 30.0, poll_s: float = 0.02
) -> None:
    """Wait until each host is connected to each other. Raises LabError with the end of a log."""
    deadline = Deadline.after(timeout_s, "the hosts are not all connected to each other", poll_s=poll_s)
    waiting = list(hosts)
    # An agent that is starting has better things to do than to answer questions a hundred times a second, so its log is
    # read first; but an agent may log less, and then it is asked all the same.
    logs_tell_until_s = time.monotonic() + LOGS_TELL_S
    while waiting:
        for host in waiting:
            if host.agent is None or not host.agent.is_alive():
                raise LabError(f"the agent of {host.name} ended; the end of its log:\n{log_tail(paths, host)}")
        wanted, patient = len(hosts) - 1, time.monotonic() < logs_tell_until_s
        waiting = [
            host
            for host in waiting
            if (patient and _logged_established(paths, host) < wanted) or established(paths, host) < wanted
        ]
        if not waiting:
            return
        try:
            deadline.pause()
        except LabError as error:
            host = waiting[0]
            raise LabError(f"{error}; the end of the log of {host.name}:\n{log_tail(paths, host)}") from None


def _logged_established(paths: Paths, host: HostRecord) -> int:
    try:
        return paths.log(host).read_text(errors="replace").count(": connection fully established\n")
    except FileNotFoundError:
        return 0


def log_tail(paths: Paths, host: HostRecord, lines: int = 15) -> str:
    """Return the last lines of an agent's log."""
    try:
        text = paths.log(host).read_text(errors="replace")
    except FileNotFoundError:
        return "(there is no log)"
    return "\n".join(f"    {line}" for line in text.splitlines()[-lines:])
