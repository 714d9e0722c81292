"""Hosts, and what lies between them: TCP that keeps its order but may stall or break, and unreliable datagrams.

A partition is a set of directed pairs of hosts. TCP data sent into one waits, as retransmission would make it wait, and
goes on when the partition heals; a dial into one times out; a datagram into one is lost. Latency is drawn per message,
but a TCP message never overtakes an earlier one of its connection.
"""

import random
from collections.abc import Callable
from typing import Protocol

import msgspec

from weavenet.address import Address, Endpoint

MESH_PORT = 6783
DIAL_TIMEOUT_S = 10.0
FIRST_EPHEMERAL_PORT = 30_000
RETRANSMISSION_S = 0.2  # Linux waits no shorter than that


class NetworkFaults(msgspec.Struct, frozen=True):
    """How bad the network is; every share is a probability per message."""

    latency_s: tuple[float, float]
    datagram_loss: float
    datagram_duplication: float
    datagram_delay_s: float  # up to this much more, which is what reorders
    stream_loss: float = 0.0  # of TCP, that is a wait for the retransmission, and for all behind it


PERFECT = NetworkFaults(latency_s=(0.0005, 0.001), datagram_loss=0.0, datagram_duplication=0.0, datagram_delay_s=0.0)


class Pipe(msgspec.Struct, eq=False):
    """One TCP connection: who is at each end, under which number there, and what a partition holds back."""

    dialler: Address
    acceptor: Address
    numbers: dict[Address, int]
    ports: dict[Address, int]
    ended: set[Address] = msgspec.field(default_factory=set)  # hosts that have closed, or lost, their end
    ready_at: dict[Address, float] = msgspec.field(default_factory=dict)  # by receiver: nothing may arrive before
    held: dict[Address, list[bytes | None]] = msgspec.field(default_factory=dict)  # by receiver; None is a reset

    def other(self, host: Address) -> Address:
        """Return the far end."""
        return self.acceptor if host == self.dialler else self.dialler

    def endpoint(self, host: Address) -> Endpoint:
        """Return a host's own end."""
        return Endpoint(host, self.ports[host])


class Scheduler(Protocol):
    """The world's clock and its queue."""

    @property
    def now_s(self) -> float:
        """Virtual seconds."""
        ...

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        """Call later."""
        ...


class Network:
    """Decides when, and whether, something arrives; the world makes it happen."""

    def __init__(
        self,
        rng: random.Random,
        scheduler: Scheduler,
        deliver: Callable[[Pipe, Address, bytes | None], None],
    ) -> None:
        """Draw from `rng`; hand what arrives on a pipe to `deliver(pipe, receiver, data)`."""
        self.faults = PERFECT
        self._rng = rng
        self._scheduler = scheduler
        self._deliver = deliver
        self._blocked: set[tuple[Address, Address]] = set()
        self._pipes: list[Pipe] = []
        self._pipes_worth_a_look = 64
        self.slow_s: dict[Address, float] = {}  # hosts that take so much longer to get anything out, and in
        self._next_port = FIRST_EPHEMERAL_PORT

    def latency(self) -> float:
        """Draw one message's travel time, in seconds."""
        return self._rng.uniform(*self.faults.latency_s)

    def blocked(self, source: Address, destination: Address) -> bool:
        """Say whether nothing gets from one host to the other."""
        return (source, destination) in self._blocked

    def block(self, source: Address, destination: Address) -> None:
        """Cut one direction."""
        self._blocked.add((source, destination))

    def heal(self) -> None:
        """Mend all cuts; what TCP held back goes on."""
        self._blocked.clear()
        for pipe in self._pipes:
            for receiver in sorted(pipe.held):
                for data in pipe.held.pop(receiver):
                    self.send_stream(pipe, pipe.other(receiver), data)

    def open_pipe(self, dialler: tuple[Address, int], acceptor: tuple[Address, int]) -> Pipe:
        """Connect two hosts, each given with its own number for the connection."""
        self._next_port += 1
        pipe = Pipe(
            dialler[0],
            acceptor[0],
            numbers=dict([dialler, acceptor]),
            ports={dialler[0]: self._next_port, acceptor[0]: MESH_PORT},
        )
        if len(self._pipes) >= self._pipes_worth_a_look:
            self._pipes = [kept for kept in self._pipes if len(kept.ended) < len(kept.numbers)]
            self._pipes_worth_a_look = 2 * len(self._pipes) + 64
        self._pipes.append(pipe)
        return pipe

    def send_stream(self, pipe: Pipe, sender: Address, data: bytes | None) -> None:
        """Carry bytes, or a reset, in order; hold them while the way is cut."""
        receiver = pipe.other(sender)
        if self.blocked(sender, receiver):
            pipe.held.setdefault(receiver, []).append(data)
            return
        now_s = self._scheduler.now_s
        delay_s = self.latency() + self.slow_s.get(sender, 0.0) + self.slow_s.get(receiver, 0.0)
        if self.faults.stream_loss and self._rng.random() < self.faults.stream_loss:
            delay_s += RETRANSMISSION_S
        due_s = max(now_s + delay_s, pipe.ready_at.get(receiver, 0.0))
        pipe.ready_at[receiver] = due_s
        self._scheduler.after(due_s - now_s, lambda: self._deliver(pipe, receiver, data))

    def end(self, pipe: Pipe, host: Address) -> None:
        """A host closes its end: the other hears of it, unless it has ended, too."""
        if host in pipe.ended:
            return
        pipe.ended.add(host)
        if pipe.other(host) not in pipe.ended:
            self.send_stream(pipe, host, None)

    def lose_power(self, host: Address) -> None:
        """End all of a host's connections without a word to anybody."""
        for pipe in self.pipes_of(host):
            pipe.ended.add(host)

    def send_datagram(self, source: Address, destination: Address, arrive: Callable[[], None]) -> None:
        """Carry, lose, repeat or delay one datagram."""
        if self.blocked(source, destination) or self._rng.random() < self.faults.datagram_loss:
            return
        copies = 2 if self._rng.random() < self.faults.datagram_duplication else 1
        slow_s = self.slow_s.get(source, 0.0) + self.slow_s.get(destination, 0.0)
        for _ in range(copies):
            self._scheduler.after(self.latency() + self._rng.random() * self.faults.datagram_delay_s + slow_s, arrive)

    def pipes_of(self, host: Address) -> list[Pipe]:
        """Return the pipes whose end at this host is open, oldest first."""
        return [pipe for pipe in self._pipes if host in pipe.numbers and host not in pipe.ended]
