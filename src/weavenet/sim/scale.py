"""`python -m weavenet.sim.scale`: meshes of ten to a thousand nodes in virtual time, and what each node does in them.

Each host is told of a few others, at random, and keeps to those (no discovery), so that a node has about 12 connections
whatever the mesh has nodes: a full mesh of a thousand would have half a million. A mesh is made and then lives through:

    join storm        all hosts start within a second
    rest              half a minute in which nothing happens
    one joins         known once all have its record, agreed once all have the same table for good
    ... with loss     the same, with every twentieth datagram lost, and TCP segment sent again
    ... slow nodes    the same, where every twentieth host takes half a second longer to send and to receive
    rolling restart   ten hosts, one every two seconds
    split, heal       nothing gets from one half of the hosts to the other for 90 s; then all does again

What a node sends is counted as it writes it to TCP: gossip, heartbeats and introductions, without TCP's own headers.
"""

import argparse
import gc
import random
import sys
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import msgspec

from weavenet.address import Address, Cidr
from weavenet.identity import PeerName
from weavenet.ipam.modes import Seed
from weavenet.sim.faults import FIRST_NAME
from weavenet.sim.host import Host
from weavenet.sim.meter import Count, MeteredWorld, held_bytes
from weavenet.sim.network import NetworkFaults
from weavenet.sim.scale_report import Measured, line, replace_section, section
from weavenet.sim.world import host_address

UNIVERSE = Cidr.parse("10.32.0.0/12")
NETWORK = NetworkFaults(latency_s=(0.0002, 0.002), datagram_loss=0.0, datagram_duplication=0.0, datagram_delay_s=0.0)
LOSS = 0.05
SLOW_SHARE, SLOW_S = 0.05, 0.5

TOLD_OF = 6
STORM_S = 1.0
STORM_WATCHED_S = 60.0
REST_S = 30.0
JOIN_WATCHED_S = 10.0
RESTARTS, RESTART_EVERY_S = 10, 2.0
RESTART_WATCHED_S = 20.0
SPLIT_S = 90.0
HEAL_WATCHED_S = 60.0
STEP_S = 0.1
WEIGHED = 3


class ScaleError(AssertionError):
    """A mesh did not come to what it must come to."""


class Scale:
    """One mesh, and what happens to it."""

    def __init__(self, hosts: int, *, compact: bool, seed: int = 1) -> None:
        """Place the hosts; none runs yet."""
        self.hosts, self.compact = hosts, compact
        names = tuple(PeerName(FIRST_NAME + index) for index in range(1, hosts + 1))
        self.world = MeteredWorld(seed, UNIVERSE, Seed(names), discovery=False)
        self.world.network.faults = NETWORK
        self._rng = random.Random(f"scale {seed}")  # noqa: S311 - replayable is the point
        self._agreed: dict[Address, tuple[int, bytes | None]] = {}
        told = told_of(hosts, self._rng)
        for index in range(1, hosts + 1):
            self._add(index, told[index])

    def _add(self, index: int, told: tuple[int, ...]) -> Host:
        known = tuple(host_address(other) for other in told)
        host = self.world.add_host(host_address(index), PeerName(FIRST_NAME + index), known)
        host.compact = self.compact
        return host

    # --- what happens -------------------------------------------------------------------------------------------------

    def play(self) -> Iterator[Measured]:
        """Let everything happen, in order. Raises ScaleError."""
        yield self._storm()
        yield self._rest()
        yield self._join("one joins")
        yield from self._join_in_adversity()
        yield self._rolling_restart()
        yield from self._split_and_heal()

    def _storm(self) -> Measured:
        before, start_s = self.world.count(), self.world.now_s
        for _, host in sorted(self.world.hosts.items()):
            self.world.after(self._rng.random() * STORM_S, partial(self.world.boot, host))
        agreed_s = self._watch(STORM_WATCHED_S)
        return self._measured("join storm", before, start_s, agreed_s=agreed_s)

    def _rest(self) -> Measured:
        before, start_s = self.world.count(), self.world.now_s
        self.world.run_until(start_s + REST_S)
        measured = self._measured("rest", before, start_s)
        sample = [self.world.hosts[host_address(1 + index)].node for index in range(WEIGHED)]
        held = sum(held_bytes([node]) for node in sample if node is not None) // WEIGHED
        return msgspec.structs.replace(measured, held_bytes=held)

    def _join(self, phase: str) -> Measured:
        others = self._rng.sample(range(1, self.hosts + 1), min(TOLD_OF, self.hosts))
        newcomer = self._add(len(self.world.hosts) + 1, tuple(others))
        before, start_s = self.world.count(), self.world.now_s
        self.world.boot(newcomer)
        while not self._all_know(newcomer.name):
            if self.world.now_s >= start_s + JOIN_WATCHED_S:
                raise ScaleError(f"{self.hosts} hosts do not all know a newcomer after {JOIN_WATCHED_S:.0f} s")
            self.world.run_until(self.world.now_s + STEP_S)
        known_s = self.world.now_s - start_s
        agreed_s = known_s + self._watch(JOIN_WATCHED_S - known_s)
        return self._measured(phase, before, start_s, known_s=known_s, agreed_s=agreed_s)

    def _join_in_adversity(self) -> Iterator[Measured]:
        network = self.world.network
        network.faults = msgspec.structs.replace(NETWORK, datagram_loss=LOSS, stream_loss=LOSS)
        yield self._join("one joins, 5 % loss")
        network.faults = NETWORK
        slow = self._rng.sample(sorted(self.world.hosts), max(1, round(len(self.world.hosts) * SLOW_SHARE)))
        network.slow_s = dict.fromkeys(slow, SLOW_S)
        yield self._join("one joins, slow nodes")
        network.slow_s = {}

    def _rolling_restart(self) -> Measured:
        world, before, start_s = self.world, self.world.count(), self.world.now_s
        for address in self._rng.sample(sorted(world.hosts), min(RESTARTS, self.hosts)):
            world.run_until(world.now_s + RESTART_EVERY_S)
            world.crash(world.hosts[address])
            world.boot(world.hosts[address])
        agreed_s = self._watch(RESTART_WATCHED_S)
        return self._measured("rolling restart", before, start_s, agreed_s=agreed_s)

    def _split_and_heal(self) -> Iterator[Measured]:
        world, before, start_s = self.world, self.world.count(), self.world.now_s
        addresses = sorted(world.hosts)
        half = set(addresses[::2])
        for near in addresses:
            for far in addresses:
                if (near in half) != (far in half):
                    world.network.block(near, far)
        world.run_until(start_s + SPLIT_S)
        yield self._measured("split", before, start_s)
        before, start_s = world.count(), world.now_s
        world.network.heal()
        agreed_s = self._watch(HEAL_WATCHED_S)
        yield self._measured("heal", before, start_s, agreed_s=agreed_s)

    # --- how it is ----------------------------------------------------------------------------------------------------

    def _watch(self, duration_s: float) -> float:
        """Let time pass, and return after how much of it all agreed for good. Raises ScaleError if they do not."""
        start_s = self.world.now_s
        agreed_s: float | None = None
        while self.world.now_s < start_s + duration_s:
            self.world.run_until(self.world.now_s + STEP_S)
            if not self._all_agree():
                agreed_s = None
            elif agreed_s is None:
                agreed_s = self.world.now_s - start_s
        if agreed_s is None:
            raise ScaleError(f"{self.hosts} hosts do not agree after {duration_s:.0f} s")
        return agreed_s

    def _all_know(self, name: PeerName) -> bool:
        for host in self.world.running():
            assert host.node is not None
            record = host.node.mesh.topology.get(name)
            if record is None or not record.connections:
                return False
        return True

    def _all_agree(self) -> bool:
        """Whether all who run know all who run, and have one table and one ring."""
        running = self.world.running()
        if len(running) < len(self.world.hosts):
            return False
        return all(
            _knows(host) == len(running)
            and self._view(host) == self._view(running[0])
            and _ring(host) == _ring(running[0])
            for host in running
        )

    def _view(self, host: Host) -> bytes | None:
        """Return the versions that a host sees, made anew only if they have changed."""
        assert host.node is not None
        topology = host.node.mesh.topology
        generation, view = self._agreed.get(host.address, (-1, None))
        key = host.life << 48 | topology.generation
        if generation != key:
            view = repr([(each.name, each.uid, each.version) for each in topology.values()]).encode()
            self._agreed[host.address] = key, view
        return view

    def _measured(
        self,
        phase: str,
        before: Count,
        start_s: float,
        *,
        known_s: float | None = None,
        agreed_s: float | None = None,
    ) -> Measured:
        done = self.world.count().since(before)
        nodes = len(self.world.hosts)
        return Measured(
            hosts=self.hosts,
            compact=self.compact,
            phase=phase,
            duration_s=self.world.now_s - start_s,
            messages=done.messages / nodes,
            sent_bytes=done.sent_bytes / nodes,
            cpu_s=done.cpu_s / nodes,
            known_s=known_s,
            agreed_s=agreed_s,
        )


def _knows(host: Host) -> int:
    assert host.node is not None
    return len(host.node.mesh.topology)


def _ring(host: Host) -> bytes | None:
    assert host.node is not None
    assert host.node.ipam is not None
    return host.node.ipam.ring.digest()


def told_of(hosts: int, rng: random.Random) -> dict[int, tuple[int, ...]]:
    """Return whom each host is told of, such that each is told to as many: along a few random tours of all."""
    told: dict[int, set[int]] = {index: set() for index in range(1, hosts + 1)}
    for _ in range(min(TOLD_OF, max(1, (hosts - 1) // 2))):
        tour = rng.sample(range(1, hosts + 1), hosts)
        for host, following in pairwise([*tour, tour[0]]):
            told[host].add(following)
    return {index: tuple(sorted(others)) for index, others in told.items()}


def main() -> int:
    """Play what the command line asks for, print each measurement as it is made, and the tables at the end."""
    parser = argparse.ArgumentParser(prog="weavenet.sim.scale", description=__doc__)
    parser.add_argument("--hosts", type=int, nargs="+", default=[10, 50, 200, 1000], help="with compact gossip")
    parser.add_argument("--weave", type=int, nargs="*", default=[10, 50, 200], help="with Weave's gossip alone")
    parser.add_argument("--phases", type=int, default=100, help="only so many of the phases")
    parser.add_argument("--into", type=Path, help="a page of which to replace what stands behind its mark")
    parser.add_argument("--earlier", type=Path, help="a file of measurements, to be read first and then added to")
    options = parser.parse_args()
    gc.disable()  # it would look through tens of millions of objects again and again, and few are in cycles
    earlier: list[Measured] = []
    if options.earlier is not None and options.earlier.exists():
        earlier = msgspec.json.decode(options.earlier.read_bytes(), type=list[Measured])
    results = earlier
    for compact, sizes in ((True, options.hosts), (False, options.weave)):
        for hosts in sizes:
            gc.collect()
            for number, measured in enumerate(Scale(hosts, compact=compact).play(), 1):
                results = [each for each in results if each.key != measured.key] + [measured]
                sys.stdout.write(line(measured))
                sys.stdout.flush()
                if options.earlier is not None:
                    options.earlier.write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")
                if number == options.phases:
                    break
    page = section(results)
    sys.stdout.write(page)
    if options.into is not None:
        options.into.write_text(replace_section(options.into.read_text(), page))
    return 0


if __name__ == "__main__":
    sys.exit(main())
