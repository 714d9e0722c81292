"""A lab: hosts that are network namespaces on one machine, an agent on each, and pods attached through CNI.

A lab host is what a node is to weavenet: an uplink with an address, forwarding on, a directory for sockets and one for
the database. It shares the kernel, the file system and the clock with the others, nothing else. Everything a lab makes
lies in its own directories (record.py), so `down` needs to remember nothing but processes, and works after any crash.

The BPF file system is the lab's own, too: pins of all its agents go with one unmount, and the machine's /sys/fs/bpf,
which may not even be mounted, is left alone.
"""

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from weavenet.errors import LabError
from weavenet.lab import agents, network, process, runtime
from weavenet.lab.namespace import Namespace, mount, unmount
from weavenet.lab.process import Process
from weavenet.lab.record import UNDERLAY, HostRecord, Paths, PodRecord, Record

SHIM = Path(__file__).parents[3] / "build" / "weave-cni"
HOSTS_MAX = 99
CNI_CONFIGURATION: Mapping[str, object] = {
    "cniVersion": "1.1.0",
    "name": "weave",
    "type": "weave-net",
    "hairpinMode": True,
}


class Lab:
    """One lab; `create` makes an empty one, `open` finds one that was left up."""

    def __init__(self, paths: Paths, record: Record) -> None:
        """Take over a lab as recorded."""
        self.paths = paths
        self.record = record

    @classmethod
    def create(cls, paths: Paths, owner: Process | None = None) -> "Lab":
        """Make a lab without hosts. One whose owner was killed is taken down first. Raises LabError."""
        if paths.run.exists():
            left = paths.load()
            if left.owner is None or left.owner.is_alive():
                raise LabError(f"a lab called {paths.name} is up already; take it down: lab --lab {paths.name} down")
            cls(paths, left).down()
        paths.make()
        lab = cls(paths, Record(owner=owner))
        try:
            lab.paths.save(lab.record)
            mount("bpf", paths.bpf, "bpf")
            for name in ("weave-net", "weave-ipam"):
                (paths.executables / name).symlink_to(SHIM)
            network.make_underlay(paths.namespace(UNDERLAY))
        except BaseException:
            lab.down()
            raise
        return lab

    @classmethod
    def open(cls, paths: Paths) -> "Lab":
        """Find a lab that was left up. Raises LabError if there is none."""
        return cls(paths, paths.load())

    # --- hosts

    def add_host(self) -> HostRecord:
        """Make the next host, without an agent. Raises LabError."""
        number = max((host.number for host in self.record.hosts), default=0) + 1
        if number > HOSTS_MAX:
            raise LabError(f"a lab has at most {HOSTS_MAX} hosts")
        host = HostRecord(number)
        self.record.hosts.append(host)
        self.paths.save(self.record)
        self.paths.host(host).mkdir(mode=0o700)
        (self.paths.state / host.name).mkdir()
        network.make_host(self.namespace(host.name), self.paths.namespace(UNDERLAY), number, host.address)
        return host

    def start_agent(
        self, host: HostRecord, *, peers: Sequence[str], consensus: int, options: Sequence[str] = ()
    ) -> None:
        """Start a host's agent, told of `peers` only, with more flags; return at once. Raises LabError."""
        with process.held():
            host.agent = process.start(
                agents.command(self.paths, host, peers=peers, consensus=consensus, options=options),
                what=f"the agent of {host.name}",
                namespace=self.namespace(host.name),
                log=self.paths.log(host),
                env=self.environment(host),
            )
            self.paths.save(self.record)

    def stop_agent(self, host: HostRecord) -> None:
        """End a host's agent; what it put into the kernel stays. Raises LabError."""
        if host.agent is not None:
            process.stop(host.agent)
            host.agent = None
            self.paths.save(self.record)

    def wait_until_connected(self, *, timeout_s: float = 30.0, poll_s: float = 0.02) -> None:
        """Wait until every host's agent has a connection to every other's. Raises LabError."""
        agents.wait_until_connected(self.paths, self.record.hosts, timeout_s=timeout_s, poll_s=poll_s)

    def start(self, what: str, argv: Sequence[str], *, where: str) -> Process:
        """Start another process on a host or in a pod; `down` ends it if nobody does before. Raises LabError."""
        with process.held():
            log = self.paths.run / f"{what.replace(' ', '-')}.log"
            started = process.start(argv, what=what, namespace=self.namespace(where), log=log)
            self.record.others.append(started)
            self.paths.save(self.record)
        return started

    def finish(self, started: Process) -> None:
        """End a process that `start` started. Raises LabError."""
        process.stop(started)
        self.record.others.remove(started)
        self.paths.save(self.record)

    # --- pods

    def add_pod(self, host: HostRecord) -> PodRecord:
        """Make a pod on a host and attach it through the CNI executable. Raises LabError."""
        number = sum(pod.host == host.number for pod in self.record.pods) + 1
        pod = self.make_pod(f"pod{host.number}-{number}", host)
        network_of_host = self.network(host)
        pod.result = network_of_host.add(self.sandbox(pod))
        pod.address, _, _ = runtime.address_of(pod.result).partition("/")
        self.paths.save(self.record)
        return pod

    def make_pod(self, name: str, host: HostRecord) -> PodRecord:
        """Make a pod's sandbox, attached to nothing. Raises LabError."""
        # Runtimes use 64 hexadecimal digits; these are the same for the same pod in every run.
        pod = PodRecord(name, host.number, hashlib.sha256(f"{self.paths.name}/{name}".encode()).hexdigest())
        self.record.pods.append(pod)
        self.paths.save(self.record)
        network.make_pod(self.namespace(name))
        return pod

    def remove_pod(self, pod: PodRecord) -> None:
        """Detach a pod through the CNI executable and let its namespace go. Raises LabError."""
        if pod.result:
            self.network(self.host(f"host{pod.host}")).delete(self.sandbox(pod), pod.result)
        self.namespace(pod.name).delete()
        self.record.pods.remove(pod)
        self.paths.save(self.record)

    def sandbox(self, pod: PodRecord) -> runtime.Sandbox:
        """Return a pod as a runtime knows it."""
        return runtime.Sandbox(pod.name, pod.container, self.namespace(pod.name))

    def network(self, host: HostRecord, configuration: Mapping[str, object] = CNI_CONFIGURATION) -> runtime.Network:
        """Return weavenet's network as a runtime on a host would be configured for it. Raises LabError."""
        if not SHIM.exists():
            raise LabError(f"the CNI executable {SHIM} is not built; run: make setup")
        return runtime.Network(self.paths.executables, self.namespace(host.name), configuration, self.environment(host))

    # --- finding things

    def host(self, name: str) -> HostRecord:
        """Return a host by name. Raises LabError."""
        for host in self.record.hosts:
            if host.name == name:
                return host
        raise LabError(f"the lab has no host {name}; there are {self._names()}")

    def host_of(self, name: str) -> HostRecord:
        """Return a host by its own name or that of a pod on it. Raises LabError."""
        for pod in self.record.pods:
            if pod.name == name:
                return self.host(f"host{pod.host}")
        return self.host(name)

    def namespace(self, name: str) -> Namespace:
        """Return the namespace of a host or a pod."""
        return self.paths.namespace(name)

    def environment(self, host: HostRecord) -> dict[str, str]:
        """Return the environment for commands on a host."""
        return agents.environment(self.paths, host)

    def _names(self) -> str:
        return ", ".join([host.name for host in self.record.hosts] + [pod.name for pod in self.record.pods]) or "none"

    # --- the end

    def down(self) -> None:
        """Take everything down, whatever state it is in; signals wait meanwhile. Raises LabError."""
        with process.held():
            problems = self._end_processes() + self._foreign_processes()
            problems += self._drop_mounts()
            if not problems or not self.record_is_needed():
                try:
                    self.paths.remove()
                except LabError as error:
                    problems.append(str(error))
        if problems:
            raise LabError(f"the lab {self.paths.name} is not quite gone: " + "; ".join(problems))

    def record_is_needed(self) -> bool:
        """Whether a process of ours still runs, so that another `down` must find it."""
        return any(ours.is_alive() for ours in self._processes())

    def _processes(self) -> list[Process]:
        agents_running = [host.agent for host in self.record.hosts if host.agent is not None]
        return [*self.record.others, *agents_running]

    def _end_processes(self) -> list[str]:
        problems = []
        for ours in self._processes():
            try:
                process.stop(ours)
            except LabError as error:
                problems.append(str(error))
        return problems

    def _foreign_processes(self) -> list[str]:
        """Name processes that others left in our namespaces: not ours to end, and they keep the namespace alive."""
        ours = {space.inode(): space.path.name for space in self._namespaces()}
        found = []
        for entry in sorted(Path("/proc").iterdir()):
            try:
                where = ours.get((entry / "ns" / "net").stat().st_ino) if entry.name.isdecimal() else None
                if where is not None and int(entry.name) != os.getpid():
                    words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    found.append(f"process {entry.name} ({words}) still runs in {where}")
            except OSError:
                continue  # it has ended
        return found

    def _namespaces(self) -> list[Namespace]:
        if not self.paths.namespaces.is_dir():
            return []
        return [Namespace(path) for path in sorted(self.paths.namespaces.iterdir())]

    def _drop_mounts(self) -> list[str]:
        problems = []
        for space in self._namespaces():
            try:
                space.delete()
            except LabError as error:
                problems.append(str(error))
        try:
            unmount(self.paths.bpf)
        except LabError as error:
            problems.append(str(error))
        return problems


def down(paths: Paths) -> bool:
    """Take a lab down, if it is there. Raises LabError."""
    if not paths.run.exists():
        shutil.rmtree(paths.state, ignore_errors=True)
        return False
    Lab(paths, paths.load()).down()
    return True
