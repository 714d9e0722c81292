"""Real Weave Net on lab hosts: started, asked, given pods, ended.

The program is not part of this project. Whoever has built Weave Net 2.8.1 says where it is in WEAVENET_REAL_WEAVER; it
runs with sleeve only, on a plain bridge, as it did on hosts without Open vSwitch. It takes the namespace of process 1
for the host's, so it gets a process namespace in which it is process 1 itself.
"""

import contextlib
import http.client
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from weavenet.errors import LabError
from weavenet.lab import process
from weavenet.lab.hosts import Lab
from weavenet.lab.process import Deadline, Process
from weavenet.lab.record import HostRecord, PodRecord

VARIABLE = "WEAVENET_REAL_WEAVER"
CONTROL = ("127.0.0.1", 6784)
STATUS = ("127.0.0.1", 6782)
TIMEOUT_S = 60.0
RANGE = "10.32.0.0/12"


def program() -> Path | None:
    """Return where real Weave Net is; None if there is none."""
    named = os.environ.get(VARIABLE, "")
    return Path(named) if named and os.access(named, os.X_OK) else None


class RealWeave:
    """Real Weave Net on hosts of a lab; the lab ends what is still running when it goes down."""

    def __init__(self, lab: Lab, weaver: Path) -> None:
        """Take the lab whose hosts it is to run on, and the program."""
        self._lab = lab
        self._weaver = weaver
        self._running: dict[int, Process] = {}

    # --- the program

    def start(
        self,
        host: HostRecord,
        *,
        peers: Sequence[str] = (),
        consensus: int = 1,
        options: Sequence[str] = (),
        password: str = "",
    ) -> None:
        """Start it on a host, told of `peers`; return when it answers. `options` win over the lab's own."""
        directory = self._lab.paths.state / host.name / "weave"
        directory.mkdir(exist_ok=True)
        (directory / "resolv.conf").touch()
        (directory / "restart.sentinel").unlink(missing_ok=True)
        # fmt: off
        words = [
            "env", "-C", str(directory), "unshare", "--pid", "--fork", "--mount-proc", "--kill-child=KILL", "--",
            str(self._weaver), "--port=6783", f"--name={host.peer_name}", f"--nickname={host.name}", "--no-fastdp",
            "--docker-api=", f"--http-addr={CONTROL[0]}:{CONTROL[1]}", f"--status-addr={STATUS[0]}:{STATUS[1]}",
            f"--ipalloc-range={RANGE}", f"--ipalloc-init=consensus={consensus}", f"--db-prefix={directory}/weave-net",
            "--no-dns", *options, *peers,
        ]
        # fmt: on
        environment = {**os.environ, "CHECKPOINT_DISABLE": "1"}
        if password:
            environment["WEAVE_PASSWORD"] = password
        with process.held():
            log = self._lab.paths.log(host)
            parent = process.start(
                words,
                what=f"unshare of {host.name}",
                namespace=self._lab.namespace(host.name),
                log=log,
                env=environment,
            )
            self._lab.record.others.append(parent)
            self._lab.paths.save(self._lab.record)
        self._running[host.number] = child = self._child(parent, host)
        with process.held():
            self._lab.record.others.insert(0, child)
            self._lab.paths.save(self._lab.record)
        deadline = Deadline.after(TIMEOUT_S, f"real Weave on {host.name} answers")
        while not self.answers(host):
            if not child.is_alive():
                raise LabError(f"real Weave on {host.name} ended:\n{log.read_text()[-2000:]}")
            deadline.pause()

    def _child(self, parent: Process, host: HostRecord) -> Process:
        deadline = Deadline.after(TIMEOUT_S, f"real Weave on {host.name} starts")
        while parent.is_alive():
            children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
            if children:
                found = process.marked_process(int(children[0]))
                if found is not None:
                    return Process(found.pid, found.start_ticks, f"real Weave of {host.name}")
            deadline.pause()
        raise LabError(f"real Weave on {host.name} ended:\n{self._lab.paths.log(host).read_text()[-2000:]}")

    def stop(self, host: HostRecord) -> None:
        """End it as an operator does."""
        process.stop(self._forget(host))

    def kill(self, host: HostRecord) -> None:
        """End it as a crash does."""
        process.kill(self._forget(host))

    def is_running(self, host: HostRecord) -> bool:
        """Whether it has not ended by itself."""
        return host.number in self._running and self._running[host.number].is_alive()

    def pid(self, host: HostRecord) -> int:
        """Return its process id."""
        return self._running[host.number].pid

    def _forget(self, host: HostRecord) -> Process:
        running = self._running.pop(host.number)
        self._lab.record.others.remove(running)
        return running

    # --- its control API

    def ask(self, host: HostRecord, method: str, path: str) -> tuple[int, str]:
        """Return status and body of an answer of its control API. Raises LabError if there is none."""
        connection = http.client.HTTPConnection(*CONTROL, timeout=TIMEOUT_S)
        try:
            with self._lab.namespace(host.name).entered():  # a socket stays in the namespace it was made in
                connection.sock = socket.create_connection(CONTROL, TIMEOUT_S)
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        except (OSError, http.client.HTTPException) as error:
            raise LabError(f"real Weave on {host.name} does not answer: {error}") from None
        finally:
            connection.close()

    def api(self, host: HostRecord, method: str, path: str) -> str:
        """Ask, and return a good answer. Raises LabError for another."""
        status, body = self.ask(host, method, path)
        if status >= http.client.BAD_REQUEST:
            raise LabError(f"real Weave on {host.name} answers {method} {path} with {status}: {body}")
        return body

    def status(self, host: HostRecord, what: str = "") -> str:
        """Return what `weave status WHAT` shows."""
        return self.api(host, "GET", f"/status/{what}".rstrip("/"))

    def answers(self, host: HostRecord) -> bool:
        """Whether it is up."""
        with contextlib.suppress(LabError):
            return "Version: 2" in self.status(host)
        return False

    # --- its pods

    def add_pod(self, host: HostRecord) -> PodRecord:
        """Make a pod and attach it as Weave's CNI plugin did."""
        number = sum(pod.host == host.number for pod in self._lab.record.pods) + 1
        pod = self._lab.make_pod(f"pod{host.number}-{number}", host)
        cidr = self.api(host, "POST", f"/ip/{pod.container}")
        pod.address, _, _ = cidr.partition("/")
        here, there = self._lab.namespace(host.name), self._lab.namespace(pod.name)
        outer, inner = f"vethwepl{number}", f"vethwepg{number}"
        mtu = process.run(["ip", "-o", "link", "show", "weave"], namespace=here).split(" mtu ")[1].split()[0]
        for line in (
            f"ip link add {outer} mtu {mtu} type veth peer name {inner} mtu {mtu}",
            f"ip link set {outer} master weave",
            f"ethtool -K {inner} tx off",
            f"ip link set {inner} netns {there.path}",
            f"ip link set {outer} type bridge_slave hairpin on",
            f"ip link set {outer} up",
        ):
            process.run(line.split(), namespace=here)
        for line in (
            f"ip link set {inner} name eth0",
            f"ip address add {cidr} dev eth0",
            "ip link set eth0 up",
            "ip route add 224.0.0.0/4 dev eth0",
        ):
            process.run(line.split(), namespace=there)
        self._lab.paths.save(self._lab.record)
        return pod

    def remove_pod(self, host: HostRecord, pod: PodRecord) -> None:
        """Give a pod's address back and let its namespace go; the lab forgets it."""
        self.api(host, "DELETE", f"/ip/{pod.container}")
        self._lab.namespace(pod.name).delete()
        self._lab.record.pods.remove(pod)
        self._lab.paths.save(self._lab.record)
