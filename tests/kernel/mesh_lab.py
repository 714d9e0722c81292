"""What tests with real agents on lab hosts share: labs, waiting, logs, and a stream that counts what arrives.

Every wait is for a condition and ends when it holds; the limits are for a machine on which nothing works any more.
"""

import contextlib
import os
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from weavenet.errors import LabError
from weavenet.lab import agents, hosts, process
from weavenet.lab.hosts import Lab
from weavenet.lab.namespace import Namespace
from weavenet.lab.process import Deadline
from weavenet.lab.record import HostRecord, Paths, PodRecord

LIMIT_S = 30.0
INTERVAL_S = 0.01  # between two datagrams of a stream
STREAM_PORT = 9999


@contextlib.contextmanager
def empty_lab(base: Path, name: str) -> Iterator[Lab]:
    """Make a lab without hosts below a directory; it is down afterwards, whatever happens."""
    # Sockets lie in it, whose paths are short or impossible, so the name goes to where it cannot be too long.
    paths = Paths(f"{name}-{os.getpid()}", run_root=base / "r", state_root=base / "s")
    try:
        yield Lab.create(paths, owner=process.this_process())
    finally:
        hosts.down(paths)


@contextlib.contextmanager
def running_lab(base: Path, name: str, count: int, options: Sequence[str] = ()) -> Iterator[Lab]:
    """Make a lab of hosts whose agents are connected to each other."""
    with empty_lab(base, name) as lab:
        for _ in range(count):
            lab.add_host()
        for host in lab.record.hosts:
            start(lab, host, options)
        lab.wait_until_connected(timeout_s=LIMIT_S)
        yield lab


def start(lab: Lab, host: HostRecord, options: Sequence[str] = ()) -> None:
    """Start a host's agent, told of all other hosts, and wait until it answers; again after its end, too."""
    others = [other.address for other in lab.record.hosts if other is not host]
    lab.start_agent(host, peers=others, consensus=len(others) + 1, options=options)
    until(lambda: answers(lab, host), f"the agent of {host.name} answers", lab, host)


def answers(lab: Lab, host: HostRecord) -> bool:
    """Whether an agent answers. Raises LabError with the end of its log when it has ended."""
    assert host.agent is not None
    if not host.agent.is_alive():
        raise LabError(f"the agent of {host.name} ended:\n{agents.log_tail(lab.paths, host)}")
    try:
        agents.query(lab.paths, host, "/status")
    except LabError:
        return False
    return (lab.paths.host(host) / "cni.sock").exists()


def until(holds: Callable[[], object], what: str, lab: Lab | None = None, host: HostRecord | None = None) -> None:
    """Wait until something holds. Raises LabError that says what does not, with the end of a host's log."""
    deadline = Deadline.after(LIMIT_S, what)
    while not holds():
        try:
            deadline.pause()
        except LabError as error:
            log = "" if lab is None or host is None else f"\n{agents.log_tail(lab.paths, host, 30)}"
            raise LabError(f"{error}{log}") from None


def logged(lab: Lab, host: HostRecord) -> str:
    """Return all that a host's agents have logged."""
    return lab.paths.log(host).read_text()


def until_logged(lab: Lab, host: HostRecord, *texts: str) -> str:
    """Wait until one line of a host's log has all the texts; return the line."""
    found: list[str] = []

    def look() -> bool:
        found[:] = [line for line in logged(lab, host).splitlines() if all(text in line for text in texts)]
        return bool(found)

    until(look, f"the log of {host.name} says {' ... '.join(texts)}", lab, host)
    return found[0]


def weave(lab: Lab, host: HostRecord, *words: str) -> str:
    """Run the `weave` command on a host. Raises LabError."""
    program = str(agents.programs() / "weave")
    return process.run([program, *words], namespace=lab.namespace(host.name), env=lab.environment(host))


def told(lab: Lab, host: HostRecord, *words: str) -> process.Outcome:
    """Run the `weave` command on a host, and return how it ended and what it said where."""
    program = str(agents.programs() / "weave")
    namespace, env = lab.namespace(host.name), lab.environment(host)
    return process.execute([program, *words], namespace=namespace, env=env, timeout_s=60)


class Stream:
    """A hundred datagrams a second from one pod to another, each with its number, until it is finished."""

    def __init__(self, lab: Lab, source: PodRecord, target: PodRecord) -> None:
        """Start it, and wait until the first datagram has arrived."""
        self._from = _udp_socket(lab.namespace(source.name))
        self._to = _udp_socket(lab.namespace(target.name))
        self._to.bind((target.address, STREAM_PORT))
        self._address = (target.address, STREAM_PORT)
        self._name = f"{source.name} to {target.name}"
        self.sent = 0
        self.received: Counter[int] = Counter()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"stream {self._name}")
        self._thread.start()
        until(lambda: self.received, f"the first datagram from {self._name} arrives")
        self._first = min(self.received)  # what was lost before is of no interest here

    def go_on(self, count: int) -> None:
        """Wait until so many more datagrams have arrived."""
        enough = self.received.total() + count
        until(lambda: self.received.total() >= enough, f"{count} more datagrams from {self._name} arrive")

    def finish(self) -> tuple[list[int], list[int]]:
        """Stop; return the numbers of datagrams that were lost, and of those that came more than once."""
        self._stopped.set()
        self._thread.join()
        self._from.close()
        self._to.close()
        lost = [number for number in range(self._first, self.sent) if number not in self.received]
        return lost, sorted(number for number, times in self.received.items() if times > 1)

    def _run(self) -> None:
        due_s = time.monotonic()
        while not self._stopped.is_set():
            with contextlib.suppress(OSError):  # then it counts as lost
                self._from.sendto(self.sent.to_bytes(4, "big"), self._address)
            self.sent += 1
            due_s += INTERVAL_S
            self._take(max(0.0, due_s - time.monotonic()))
        last_s = time.monotonic() + 5.0
        while len(self.received) < self.sent - min(self.received, default=0) and time.monotonic() < last_s:
            self._take(0.1)

    def _take(self, wait_s: float) -> None:
        end_s = time.monotonic() + wait_s
        while True:
            readable, _, _ = select.select([self._to], [], [], max(0.0, end_s - time.monotonic()))
            if not readable:
                return
            self.received[int.from_bytes(self._to.recv(64), "big")] += 1


def _udp_socket(namespace: Namespace) -> socket.socket:
    with namespace.entered():  # a socket stays in the namespace it was made in
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def listen_tcp(port: int) -> socket.socket:
    """Listen in the namespace of this thread."""
    listener = socket.create_server(("", port))
    listener.settimeout(LIMIT_S)
    return listener


def connect_tcp(address: tuple[str, int]) -> socket.socket:
    """Connect from the namespace of this thread."""
    return socket.create_connection(address, timeout=LIMIT_S)


@contextlib.contextmanager
def streams(lab: Lab, one: PodRecord, two: PodRecord) -> Iterator[tuple[Stream, Stream]]:
    """Have two pods send to each other meanwhile, and assert that nothing was lost or came twice."""
    both: list[Stream] = []
    try:
        both += [Stream(lab, one, two)]
        both += [Stream(lab, two, one)]
        yield both[0], both[1]
    finally:
        outcomes = [stream.finish() for stream in both]
    assert outcomes == [([], []), ([], [])], "lost and duplicated datagrams, there and back"
