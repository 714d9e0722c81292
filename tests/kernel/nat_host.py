"""One lab host with an agent and pods, and a neighbour outside: who asks whom, and what the asked one sees.

    client 10.99.0.2 ─── underlay ─── 10.99.0.1 host1, agent, bridge `weave` ─── pods

Servers answer every request with the address they were asked from, over TCP and UDP.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from weavenet.errors import LabError
from weavenet.lab import hosts, process
from weavenet.lab.agents import query
from weavenet.lab.hosts import CNI_CONFIGURATION, Lab
from weavenet.lab.process import Deadline, execute
from weavenet.lab.record import HostRecord, Paths, PodRecord
from weavenet.lab.runtime import address_of

HOST, CLIENT = "10.99.0.1", "10.99.0.2"

_SERVE = """
import select, socket, sys
port = int(sys.argv[1])
stream = socket.create_server(("0.0.0.0", port))
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(("0.0.0.0", port))
while True:
    for ready in select.select([stream, datagrams], [], [])[0]:
        if ready is stream:
            connection, (address, _) = stream.accept()
            connection.sendall((sys.argv[2] + " " + address).encode())
            connection.close()
        else:
            _, where = datagrams.recvfrom(100)
            datagrams.sendto((sys.argv[2] + " " + where[0]).encode(), where)
"""
_ASK = """
import socket, sys
kind, address, port, source = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
asking = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
asking.settimeout(1)
asking.bind(("", source))
try:
    asking.connect((address, port))
    if kind == "udp":
        asking.send(b"?")
    print(asking.recv(100).decode())
except OSError as error:
    sys.exit(str(error))
"""


class NatHost:
    """The host, its pods, and the client."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.host = lab.add_host()
        self.client = lab.add_host()  # has no agent

    def start_agent(self, *options: str) -> None:
        self.lab.start_agent(self.host, peers=[], consensus=1, options=options)
        self.wait(self.ready, "the agent is not ready")

    def restart_agent(self, *options: str) -> None:
        self.lab.stop_agent(self.host)
        self.start_agent(*options)

    def ready(self) -> bool:
        try:
            query(self.lab.paths, self.host, "/status")
        except LabError:
            assert self.host.agent is not None
            assert self.host.agent.is_alive(), self.log()
            return False
        return True

    def log(self) -> str:
        return self.lab.paths.log(self.host).read_text()

    def wait(self, condition, what: str) -> None:
        deadline = Deadline.after(20, what, poll_s=0.05)
        while not condition():
            try:
                deadline.pause()
            except LabError as error:
                raise AssertionError(f"{error}\n{self.log()}") from None

    # --- pods ---

    def pod(self, name: str, *, serve: int | None = None, **runtime_config: object) -> PodRecord:
        """Connect a pod; have it answer on a port."""
        pod = self.lab.make_pod(name, self.host)
        pod.result = self.add(pod, **runtime_config)
        pod.address = address_of(pod.result).partition("/")[0]
        if serve is not None:
            self.serve(name, serve)
        return pod

    def add(self, pod: PodRecord, **runtime_config: object) -> str:
        return self._network(runtime_config).add(self.lab.sandbox(pod))

    def check(self, pod: PodRecord, **runtime_config: object) -> None:
        self._network(runtime_config).check(self.lab.sandbox(pod), pod.result)

    def remove(self, pod: PodRecord) -> None:
        self._network({}).delete(self.lab.sandbox(pod), pod.result)

    def _network(self, runtime_config: Mapping[str, object]):
        more = {"runtimeConfig": dict(runtime_config)} if runtime_config else {}
        return self.lab.network(self.host, {**CNI_CONFIGURATION, **more})

    def serve(self, where: str, port: int) -> None:
        self.lab.start(f"server {where} {port}", [sys.executable, "-c", _SERVE, str(port), where], where=where)
        self.wait(lambda: self.ask(where, "127.0.0.1", port), "the server does not answer")

    def stop_servers(self, where: str) -> None:
        for server in [other for other in self.lab.record.others if other.what.startswith(f"server {where} ")]:
            self.lab.finish(server)

    # --- questions ---

    def ask(self, where: str, address: str, port: int, kind: str = "tcp", source: int = 0) -> str:
        """Ask a server, and return who answered and whom it saw; blank for no answer."""
        argv = [sys.executable, "-c", _ASK, kind, address, str(port), str(source)]
        outcome = execute(argv, namespace=self.lab.namespace(where), timeout_s=10)
        return outcome.output.strip() if outcome.status == 0 else ""

    def run(self, *command: str, where: str = "host1", text: str = "") -> str:
        with self.lab.namespace(where).entered():
            done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def rules(self) -> str:
        return self.run("nft", "list", "ruleset")

    def has_table(self) -> bool:
        return "table ip weavenet " in self.run("nft", "list", "tables") + " "

    def bridge_addresses(self) -> list[str]:
        shown = json.loads(self.run("ip", "-json", "address", "show", "weave"))
        return [f"{a['local']}/{a['prefixlen']}" for a in shown[0]["addr_info"] if a["family"] == "inet"]

    def weaver(self, *options: str) -> str:
        """Run `weaver` with this host's directories, to its end."""
        paths, host = self.lab.paths, self.host
        return self.run(
            str(Path(sys.executable).parent / "weaver"),
            f"--state-dir={paths.state / host.name}",
            f"--run-dir={paths.host(host)}",
            *options,
        )


@contextmanager
def nat_host(name: str, directory: Path) -> Iterator[NatHost]:
    """Make a host and a client, and remove all of it."""
    paths = Paths(name, run_root=directory / "run", state_root=directory / "state")
    try:
        yield NatHost(Lab.create(paths, owner=process.this_process()))
    finally:
        hosts.down(paths)


__all__ = ["CLIENT", "HOST", "HostRecord", "NatHost", "nat_host"]
