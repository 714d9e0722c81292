"""The scenario scripts beside this file: what is said to a few hosts of the simulator, and what comes of it.

A script opens with a sentence that says what it shows. Then come commands, each with its recorded output behind `----`,
up to an empty line. To record anew what the commands give now, and then read the difference:

    RERECORD=1 pytest tests/scenarios

    begin RANGE consensus N        a world; or `begin RANGE seed HOST...`, or `begin RANGE observer`
    boot HOST [knows HOST...]      start a host's agent, telling it of these neighbours
    wait SECONDS                   let virtual time pass
    allocate HOST IDENT            a container wants an address; `release HOST IDENT`: it is gone
    rmpeer HOST HOST               the first takes over the ranges of the second
    connect HOST HOST              tell the first of the second
    kill HOST, power-off HOST      with and without resets for its connections; the disk stays
    lose HOST                      machine and disk are gone for good
    crash HOST after N             as kill, before the N+1st effect from now
    cut HOST...                    let nothing pass between these and all others; `heal`
    ipam HOST, connections HOST, peers HOST      what `weave status` shows there
    addresses                      who has which address, by the hosts' own books
    warnings HOST                  what its log has said since the last time
    converged                      whether all is as it must become, or what is not

Answers to requests are shown under the command during which they came.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from weavenet.address import Cidr, Endpoint, format_address
from weavenet.api.text import connections_text, ipam_state, ipam_text, peers_text
from weavenet.effects import Cancelled, Done, Granted, Level, Outcome, Refused, TookOver
from weavenet.identity import PeerName
from weavenet.ipam.modes import Consensus, InitMode, Observer, Seed
from weavenet.mesh.connector import Target
from weavenet.node.inputs import Connect
from weavenet.node.report import Report, VersionCheck
from weavenet.node.status import ipam_report, router_report
from weavenet.sim.checkers import unconverged
from weavenet.sim.faults import FIRST_NAME
from weavenet.sim.host import Host
from weavenet.sim.world import World, host_address

SCRIPTS = sorted(Path(__file__).parent.glob("*.txt"))
SEED = 1
DIVIDER = "----"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_the_commands_of_a_script_give_what_was_recorded(script: Path) -> None:
    recorded = script.read_text(encoding="utf-8")
    played = play(recorded)
    if os.environ.get("RERECORD"):
        script.write_text(played, encoding="utf-8")
    else:
        assert played == recorded


def test_every_script_opens_with_what_it_shows() -> None:
    assert SCRIPTS
    for script in SCRIPTS:
        assert script.read_text(encoding="utf-8").startswith("# "), script


def play(text: str) -> str:
    """Return a script with the output that its commands give now."""
    stage = Stage()
    blocks = []
    for block in text.strip().split("\n\n"):
        lines = block.split("\n")
        command = [line for line in lines[: lines.index(DIVIDER)] if line] if DIVIDER in lines else lines
        if command[0].startswith("#"):
            blocks.append("\n".join(command))
            continue
        output = [line for each in command for line in stage.perform(each)]
        blocks.append("\n".join([*command, DIVIDER, *output]))
    return "\n\n".join(blocks) + "\n"


class Stage:
    """A world, and the words for it."""

    def __init__(self) -> None:
        self._world: World | None = None

    @property
    def world(self) -> World:
        assert self._world is not None, "a script begins with `begin`"
        return self._world

    def perform(self, line: str) -> list[str]:
        """Do what a line says; return what is to be seen of it."""
        verb, *words = line.split()
        command: Callable[..., list[str] | None] = getattr(self, verb.replace("-", "_"))
        before = [] if self._world is None else [host.name for host in self.world.running()]
        shown = command(*words) or []
        return [*self._replies(), *self._crashes(before, verb, words), *shown]

    def _replies(self) -> list[str]:
        taken = [f"{nick(name)}: {ident}: {wording(outcome)}" for name, ident, outcome in self.world.replies]
        self.world.replies.clear()
        return taken

    def _crashes(self, before: list[PeerName], verb: str, words: list[str]) -> list[str]:
        meant = words if verb in {"kill", "power-off", "lose"} else []
        now = {host.name for host in self.world.running()}
        return [f"{nick(name)} crashed" for name in before if name not in now and nick(name) not in meant]

    def host(self, word: str) -> Host:
        """Return the host of a name, which must have been booted once."""
        return self.world.hosts[host_address(number(word))]

    # --- the world ---

    def begin(self, universe: str, mode: str, *words: str) -> None:
        modes: dict[str, Callable[[], InitMode]] = {
            "consensus": lambda: Consensus(int(words[0])),
            "seed": lambda: Seed(tuple(peer(word) for word in words)),
            "observer": Observer,
        }
        self._world = World(SEED, Cidr.parse(universe), modes[mode]())

    def boot(self, word: str, knows: str = "knows", *neighbours: str) -> None:
        assert knows == "knows"
        address = host_address(number(word))
        if address not in self.world.hosts:
            self.world.add_host(address, peer(word), tuple(host_address(number(each)) for each in neighbours))
        self.world.boot(self.host(word))

    def wait(self, seconds: str) -> None:
        self.world.run_until(self.world.now_s + float(seconds))

    def kill(self, word: str) -> None:
        self.world.crash(self.host(word))

    def power_off(self, word: str) -> None:
        self.world.lose_power(self.host(word))

    def lose(self, word: str) -> None:
        host = self.host(word)
        if host.node is not None:
            self.world.lose_power(host)
        del self.world.hosts[host.address]
        self.world.ledger.forget_host(host.name)

    def crash(self, word: str, after: str, count: str) -> None:
        assert after == "after"
        self.host(word).effects_until_crash = int(count)

    def cut(self, *words: str) -> None:
        inside = [self.host(word).address for word in words]
        for near in inside:
            for far in self.world.hosts:
                if far not in inside:
                    self.world.network.block(near, far)
                    self.world.network.block(far, near)

    def heal(self) -> None:
        self.world.network.heal()

    # --- requests ---

    def allocate(self, word: str, ident: str) -> None:
        self.world.allocate(self.host(word), ident)

    def release(self, word: str, ident: str) -> None:
        self.world.release(self.host(word), ident)

    def rmpeer(self, word: str, dead: str) -> None:
        self.world.take_over(self.host(word), peer(dead))

    def connect(self, word: str, neighbour: str) -> None:
        address = host_address(number(neighbour))
        target = Target(format_address(address), Endpoint(address, 0))
        self.world.feed(self.host(word), Connect((target,), replace=False))

    # --- views ---

    def ipam(self, word: str) -> list[str]:
        report = report_of(self.host(word))
        assert report.ipam is not None
        return [*ipam_text(report).splitlines(), f"status: {ipam_state(report.ipam)}"]

    def connections(self, word: str) -> list[str]:
        return connections_text(report_of(self.host(word))).splitlines()

    def peers(self, word: str) -> list[str]:
        return peers_text(report_of(self.host(word))).splitlines()

    def addresses(self) -> list[str]:
        return [
            f"{nick(host.name)}: {ident} {' '.join(str(cidr) for cidr in held)}"
            for host in self.world.running()
            if host.node is not None and host.node.ipam is not None
            for ident, held in host.node.ipam.owned().items()
        ]

    def warnings(self, word: str) -> list[str]:
        loud = {Level.WARNING, Level.ERROR}
        mine = [note.text for name, note in self.world.notes if name == peer(word) and note.level in loud]
        kept = [(name, note) for name, note in self.world.notes if name != peer(word)]
        self.world.notes.clear()
        self.world.notes.extend(kept)
        return mine

    def converged(self) -> list[str]:
        return [unconverged(self.world.running()) or "yes"]


def number(word: str) -> int:
    """Return the number of `host1`."""
    return int(word.removeprefix("host"))


def peer(word: str) -> PeerName:
    """Return the peer name of a host."""
    return PeerName(FIRST_NAME + number(word))


def nick(name: PeerName) -> str:
    """Return the name of a host in a script."""
    return f"host{name - FIRST_NAME}"


def wording(outcome: Outcome) -> str:
    """Say how a request ended."""
    match outcome:
        case Granted(addresses):
            return " ".join(str(cidr) for cidr in addresses)
        case Done():
            return "done"
        case Refused(reason):
            return f"refused: {reason}"
        case Cancelled():
            return "cancelled"
        case TookOver(count):
            return f"{count} IPs taken over"


def report_of(host: Host) -> Report:
    """Return what `weave report` has on a host, but for the kernel."""
    assert host.node is not None
    assert host.node.ipam is not None
    return Report(
        ready=True,
        version="",
        version_check=VersionCheck(),
        router=router_report(host.node, ()),
        ipam=ipam_report(host.node.ipam.status()),
    )
