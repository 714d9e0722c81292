"""Whole meshes in memory, for tests: the bytes that one sends the other receives, and time is a number."""

import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import TypeVar

from msgspec.structs import replace

from weavenet.address import Address, Endpoint
from weavenet.effects import (
    CloseTcp,
    ConnectionAdded,
    ConnectionNumber,
    Dial,
    GossipArrived,
    Note,
    Now,
    Output,
    SendTcp,
)
from weavenet.identity import PeerName, PeerUID, ShortID
from weavenet.mesh.connection import Connection, ConnectionOptions, Introduced, LocalPeer, Message
from weavenet.mesh.connector import Target
from weavenet.mesh.gossip import GossipData
from weavenet.mesh.keyring import Keyring
from weavenet.mesh.router import Mesh, MeshConfig
from weavenet.mesh.wire import GossipMessage, Tag, build_gossip, parse_gossip

A, B, C, D, E = (PeerName(0x7A00_0000_0001 + index) for index in range(5))
CHANNEL = "numbers"
# The fourth is a connection that was reset behind its header.
CAPTURES = json.loads((Path(__file__).parents[1] / "vectors" / "captures_plain.json").read_text())["tcp"][:3]
T = TypeVar("T", bound=Output)


class Seeded:
    """Entropy from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def bits(self, count: int) -> int:
        return self._random.getrandbits(count)

    def octets(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def fraction(self) -> float:
        return self._random.random()


@dataclass(frozen=True)
class Numbers:
    """The data of a channel that a test registers: a set of numbers, as bytes."""

    numbers: frozenset[int]

    def merge(self, newer: GossipData) -> "Numbers":
        assert isinstance(newer, Numbers)
        return Numbers(self.numbers | newer.numbers)

    def encode(self) -> list[bytes]:
        return [bytes(sorted(self.numbers))]


def numbers(*values: int) -> Numbers:
    return Numbers(frozenset(values))


@dataclass
class Source:
    """The owner of a channel."""

    data: Numbers | None = None

    def complete(self) -> GossipData | None:
        return self.data

    def digest(self) -> bytes | None:
        return None if self.data is None else blake2b(self.data.encode()[0], digest_size=8).digest()


@dataclass
class Host:
    """A peer, and all that it has asked for so far."""

    name: PeerName
    address: Address
    mesh: Mesh
    source: Source
    outputs: list[Output] = field(default_factory=list)
    is_overlay_working: bool = True

    def of(self, kind: type[T]) -> list[T]:
        return [output for output in self.outputs if isinstance(output, kind)]

    def notes(self) -> list[str]:
        return [note.text for note in self.of(Note)]

    def connected_to(self) -> list[PeerName]:
        return [each.name for each in self.mesh.connections()]

    def heard(self, channel: str = CHANNEL) -> list[GossipArrived]:
        return [each for each in self.of(GossipArrived) if each.channel == channel]


End = tuple[Address, ConnectionNumber]


class World:
    """Hosts by address, TCP between them without delay, and the time."""

    def __init__(self, seed: int = 1) -> None:
        self.now_s = 100.0
        self.seed = seed
        self.hosts: dict[Address, Host] = {}
        self.cut: set[frozenset[Address]] = set()
        self._ends: dict[End, End] = {}
        self._queue: deque[Callable[[], None]] = deque()
        self._accepted_count = 0

    @property
    def now(self) -> Now:
        return Now(self.now_s, 1_700_000_000 + self.now_s)

    def host(self, name: PeerName, *, uid: int = 0, channels: Sequence[str] = (CHANNEL,), **options: object) -> Host:
        password = options.pop("password", None)
        if isinstance(password, bytes):
            options["keyring"] = Keyring.of(password)
        config = replace(MeshConfig(name, PeerUID(uid or name * 7), f"host{name & 0xFF}"), **options)  # type: ignore[arg-type]
        source = Source()
        entropy = Seeded(self.seed * 1000 + name + uid)
        mesh = Mesh(config, dict.fromkeys(channels, source), entropy, self.now)
        host = Host(name, Address(0x0A000000 + (name & 0xFF)), mesh, source)
        self.hosts[host.address] = host
        return host

    def target(self, host: Host) -> Target:
        text = str(Endpoint(host.address, 0)).removesuffix(":0")
        return Target(text, Endpoint(host.address, 0))

    def connect(self, host: Host, *others: Host) -> None:
        self.perform(host, host.mesh.connect([self.target(other) for other in others], replace=False, now=self.now))

    def perform(self, host: Host, outputs: list[Output]) -> None:
        host.outputs += outputs
        for output in outputs:
            match output:
                case Dial(connection, remote):
                    self._queue.append(lambda c=connection, r=remote: self._dial(host, c, r))  # type: ignore[misc]
                case SendTcp(connection, data):
                    self._queue.append(lambda c=connection, d=data: self._send(host, c, d))  # type: ignore[misc]
                case CloseTcp(connection):
                    self._queue.append(lambda c=connection: self._close(host, c))  # type: ignore[misc]
                case ConnectionAdded(connection) if host.is_overlay_working:
                    self._queue.append(lambda c=connection: self._establish(host, c))  # type: ignore[misc]
                case _:
                    pass

    def _is_cut(self, one: Address, other: Address) -> bool:
        return frozenset({one, other}) in self.cut

    def _dial(self, host: Host, number: ConnectionNumber, remote: Endpoint) -> None:
        other = self.hosts.get(remote.address)
        if other is None or remote.port != other.mesh.config.port or self._is_cut(host.address, remote.address):
            self.perform(host, host.mesh.dial_failed(number, "connection refused", self.now))
            return
        self._accepted_count += 1
        accepted = ConnectionNumber(2 * self._accepted_count)
        here = Endpoint(host.address, 40000 + self._accepted_count)
        one, two = (host.address, number), (other.address, accepted)
        self._ends |= {one: two, two: one}
        self.perform(other, other.mesh.tcp_accepted(accepted, remote, here, self.now))
        self.perform(host, host.mesh.tcp_dialled(number, here, self.now))

    def _send(self, host: Host, number: ConnectionNumber, data: bytes) -> None:
        end = self._ends.get((host.address, number))
        if end is not None and not self._is_cut(host.address, end[0]):
            other = self.hosts[end[0]]
            self.perform(other, other.mesh.tcp_received(end[1], data, self.now))

    def _close(self, host: Host, number: ConnectionNumber, error: str = "connection reset by peer") -> None:
        end = self._ends.pop((host.address, number), None)
        if end is not None and end in self._ends and not self._is_cut(host.address, end[0]):
            del self._ends[end]
            other = self.hosts[end[0]]
            self.perform(other, other.mesh.tcp_closed(end[1], error, self.now))

    def _establish(self, host: Host, number: ConnectionNumber) -> None:
        self.perform(host, host.mesh.overlay_established(number, self.now))

    def crash(self, host: Host) -> None:
        """Take a host away; its connections are reset."""
        del self.hosts[host.address]
        for address, number in sorted(self._ends):
            if address == host.address:
                self._close(host, number)

    def run(self, seconds: float = 0.0) -> None:
        """Deliver all there is, and let time pass."""
        until_s = self.now_s + seconds
        while True:
            while self._queue:
                self._queue.popleft()()
            due = [(host.mesh.next_deadline() or 1e9, address) for address, host in sorted(self.hosts.items())]
            due_s = min(due_s for due_s, _ in due)
            if due_s > until_s:
                break
            assert due_s >= self.now_s, "a deadline in the past"
            self.now_s = due_s
            for deadline_s, address in due:
                if deadline_s == due_s:
                    host = self.hosts[address]
                    self.perform(host, host.mesh.handle_timer(self.now))
        self.now_s = until_s

    def line(self, *names: PeerName, **options: object) -> list[Host]:
        """Join hosts in a row, without discovery, so that it stays one."""
        hosts = [self.host(name, discovery=False, **options) for name in names]
        for host, other in pairwise(hosts):
            self.connect(host, other)
        self.run(10)
        return hosts


class Stranger:
    """A remote that says what a test wants, on a connection that it dialled to a mesh."""

    number = ConnectionNumber(2000)
    here = Endpoint.parse("10.9.9.9:50000")

    def __init__(
        self,
        world: World,
        host: Host,
        name: PeerName = E,
        *,
        uid: int = 99,
        password: bytes | None = None,
        compact: bool = False,
    ) -> None:
        self.world, self.host = world, host
        self._inbox: list[Message] = []
        self.connection = Connection(
            LocalPeer(name, PeerUID(uid), "stranger"),
            ConnectionOptions(None if password is None else Keyring.of(password), compact=compact),
            outbound=True,
            short_id=ShortID(77),
            trusted=False,
            entropy=Seeded(uid),
            now=world.now,
        )
        self.outputs: list[Output] = []
        self._untaken: deque[Output] = deque()
        self._is_taking = False
        self._untaken += host.mesh.tcp_accepted(self.number, Endpoint(host.address, 6783), self.here, world.now)
        self.send_raw(self.connection.start())

    def take(self, outputs: list[Output]) -> None:
        """See what the mesh wants done. Answers may lead to more of that, which comes after."""
        self._untaken += outputs
        while self._untaken and not self._is_taking:
            output = self._untaken.popleft()
            self.outputs.append(output)
            self.host.outputs.append(output)
            if isinstance(output, SendTcp) and output.connection == self.number:
                self._is_taking = True
                self._receive(output.data)
                self._is_taking = False

    def _receive(self, data: bytes) -> None:
        written, events = self.connection.receive(data, self.world.now)
        for event in events:
            if isinstance(event, Introduced):
                more, messages = self.connection.proceed(self.world.now)
                written += more
                self._inbox += messages
            else:
                self._inbox.append(event)
        if written:
            self.send_raw(written)

    def send_raw(self, data: bytes) -> None:
        self.take(self.host.mesh.tcp_received(self.number, data, self.world.now))

    def send(self, message: bytes) -> None:
        self.send_raw(self.connection.send(message))

    def gossip(self, data: bytes, *, channel: str = CHANNEL, tag: Tag = Tag.GOSSIP, to: PeerName | None = None) -> None:
        self.send(build_gossip(tag, GossipMessage(channel, E, to, data)))

    def timer(self) -> None:
        self.take(self.host.mesh.handle_timer(self.world.now))

    def heard(self) -> list[tuple[int, GossipMessage]]:
        """What came by gossip since the last time this was asked."""
        taken, self._inbox = self._inbox, []
        return [(each.tag, parse_gossip(Tag(each.tag), each.payload)) for each in taken if each.tag in {4, 5, 6}]

    @property
    def is_closed(self) -> bool:
        return CloseTcp(self.number) in self.outputs
