"""A mesh of both kinds: hosts with our agent and hosts with real Weave Net, on one underlay, asked alike."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import mesh_lab

from weavenet.errors import LabError
from weavenet.lab import process
from weavenet.lab.hosts import Lab
from weavenet.lab.real_weave import RealWeave
from weavenet.lab.record import HostRecord, PodRecord

OURS, THEIRS = "ours", "theirs"


class Mixed:
    """Hosts by number from 1, each of a kind."""

    def __init__(self, lab: Lab, weaver: Path, kinds: list[str]) -> None:
        self.lab = lab
        self.real = RealWeave(lab, weaver)
        self.kinds = kinds
        self.hosts = [lab.add_host() for _ in kinds]

    # --- programs

    def start(
        self,
        number: int,
        *,
        peers: Sequence[int] = (),
        consensus: int | None = None,
        options: Sequence[str] = (),
        password: str = "",
    ) -> None:
        """Start what runs on a host, told of those peers; return when it answers."""
        host = self.hosts[number - 1]
        addresses = [self.hosts[peer - 1].address for peer in peers]
        quorum = len(self.kinds) if consensus is None else consensus
        if self.kinds[number - 1] == THEIRS:
            self.real.start(host, peers=addresses, consensus=quorum, options=options, password=password)
            return
        if password:
            file = self.lab.paths.state / host.name / "password"
            file.write_text(password)
            options = [*options, f"--password-file={file}"]
        self.lab.start_agent(host, peers=addresses, consensus=quorum, options=options)
        mesh_lab.until(lambda: mesh_lab.answers(self.lab, host), f"the agent of {host.name} answers", self.lab, host)

    def start_all(self, options: Sequence[str] = (), password: str = "") -> None:
        """Start all, each told of the ones before it, and wait until all are connected to all."""
        for number in range(1, len(self.kinds) + 1):
            self.start(number, peers=range(1, number), options=options, password=password)
        self.until_connected()

    def start_line(self, options: Sequence[str] = (), password: str = "") -> None:
        """Start all in a line: each has connections to its neighbours only."""
        for number in range(1, len(self.kinds) + 1):
            peers = [number - 1] if number > 1 else []
            self.start(number, peers=peers, options=["--no-discovery", *options], password=password)
        last = len(self.kinds)
        for number in range(1, last + 1):
            wanted = 1 if number in (1, last) else 2
            mesh_lab.until(
                lambda n=number, w=wanted: len(self.established(n)) >= w, f"host{number} has {wanted} connections"
            )

    def stop(self, number: int, *, how: str = "stop") -> None:
        """End what runs on a host: `stop` or `kill`."""
        host = self.hosts[number - 1]
        if self.kinds[number - 1] == THEIRS:
            (self.real.stop if how == "stop" else self.real.kill)(host)
        else:
            (self.lab.stop_agent if how == "stop" else self.lab.kill_agent)(host)

    def weave(self, number: int, *words: str) -> str:
        """Do what the `weave` command does on a host: `status ...`, `connect`, `forget`, `rmpeer`."""
        host = self.hosts[number - 1]
        if self.kinds[number - 1] == OURS:
            return mesh_lab.weave(self.lab, host, *words)
        match words:
            case ("status", *what):
                return self.real.status(host, "/".join(what))
            case (("connect" | "forget") as verb, peer):
                status, body = self.real.ask(host, "POST", f"/{verb}?peer={peer}")
                assert status < 300, body
                return body
            case ("rmpeer", peer):
                return self.real.api(host, "DELETE", f"/peer/{peer}")
            case ("report",):
                return self.real.api(host, "GET", "/report")
        raise AssertionError(words)

    def log(self, number: int) -> str:
        """Return all that a host has logged."""
        return self.lab.paths.log(self.hosts[number - 1]).read_text()

    # --- what they say

    def status(self, number: int, what: str) -> str:
        """Return `weave status WHAT`; blank while there is no answer."""
        try:
            return self.weave(number, "status", what)
        except LabError:
            return ""

    def established(self, number: int) -> dict[str, str]:
        """Return the peers that a host has established connections to, each with the rest of its line."""
        found = {}
        for line in self.status(number, "connections").splitlines():
            match = re.match(r"^(?:<-|->) \S+ +established +(.*?)(7a:[0-9a-f:]+)\((.*?)\)(.*)$", line)
            if match:
                found[match[2]] = f"{match[1].strip()}{match[4]}"
        return found

    def topology(self, number: int) -> list[str]:
        """Return `status peers` without what differs from host to host: ports of dialling, order, directions."""
        links, at = set(), ""
        for line in self.status(number, "peers").splitlines():
            if not line.startswith(" "):
                at = line.split("(")[0]
            else:
                words = line.split()
                far = words[2].split("(")[0] if len(words) > 2 else line
                links.add(f"{at} {far} {words[-1]}")
        return sorted(links)

    def until_connected(self, numbers: Sequence[int] = ()) -> None:
        """Wait until those hosts, or all, have connections to each other."""
        chosen = list(numbers) or list(range(1, len(self.kinds) + 1))
        for number in chosen:
            wanted = {self.hosts[other - 1].peer_name for other in chosen if other != number}
            mesh_lab.until(
                lambda n=number, w=wanted: w <= self.established(n).keys(),
                f"host{number} is connected to {wanted}",
                self.lab,
                self.hosts[number - 1],
            )

    # --- pods

    def add_pod(self, number: int) -> PodRecord:
        """Attach a pod as a runtime would."""
        host = self.hosts[number - 1]
        if self.kinds[number - 1] == THEIRS:
            return self.real.add_pod(host)
        return self.lab.add_pod(host)

    def run(self, where: PodRecord | HostRecord, *words: str, timeout_s: float = 60.0) -> process.Outcome:
        """Run a program in a pod or on a host."""
        return process.execute(list(words), namespace=self.lab.namespace(where.name), timeout_s=timeout_s)

    def until_pods_talk(self, one: PodRecord, two: PodRecord) -> None:
        """Wait until a ping comes back."""
        mesh_lab.until(
            lambda: self.run(one, "ping", "-c", "1", "-W", "1", two.address).status == 0,
            f"{one.name} reaches {two.name}",
        )


@contextlib.contextmanager
def mesh(base: Path, weaver: Path, name: str, kinds: list[str]) -> Iterator[Mixed]:
    """Make hosts of those kinds, with nothing running yet; all is gone afterwards."""
    with mesh_lab.empty_lab(base, name) as lab:
        yield Mixed(lab, weaver, kinds)
