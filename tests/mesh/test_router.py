"""Whole meshes in memory: the bytes that one sends the other receives, and time is a number."""

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import pytest

from weavenet.address import Address, Cidr, Endpoint
from weavenet.effects import (
    CloseTcp,
    ConnectionAdded,
    ConnectionGone,
    ConnectionNumber,
    Dial,
    GossipArrived,
    GossipKind,
    Level,
    Note,
    Now,
    Output,
    OverlayControlArrived,
    PeersRemoved,
    RoutesChanged,
    SendTcp,
)
from weavenet.identity import PeerName, PeerUID, ShortID, format_peer_name
from weavenet.mesh import router
from weavenet.mesh.connection import Connection, ConnectionOptions, Introduced, LocalPeer, Message
from weavenet.mesh.connector import Target, TargetState
from weavenet.mesh.gossip import GossipData
from weavenet.mesh.keyring import Keyring
from weavenet.mesh.records import decode_update, encode_update
from weavenet.mesh.router import Mesh, MeshConfig
from weavenet.mesh.topology import Peer, PeerConnection
from weavenet.mesh.wire import GossipMessage, Tag, build_gossip, build_message, parse_gossip

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
        self, world: World, host: Host, name: PeerName = E, *, uid: int = 99, password: bytes | None = None
    ) -> None:
        self.world, self.host = world, host
        self._inbox: list[Message] = []
        self.connection = Connection(
            LocalPeer(name, PeerUID(uid), "stranger"),
            ConnectionOptions(None if password is None else Keyring.of(password)),
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


# --- becoming a mesh --------------------------------------------------------------------------------------------------


def test_three_peers_told_only_one_neighbour_become_fully_connected() -> None:
    world = World()
    a, b, c = (world.host(name) for name in (A, B, C))
    world.connect(b, a)
    world.connect(c, b)
    world.run(5)
    assert [host.connected_to() for host in (a, b, c)] == [[B, C], [A, C], [A, B]]
    for host in (a, b, c):
        assert sorted(host.mesh.routes.unicast) == [A, B, C]
        assert all(each.established for each in host.mesh.connections())
        assert [host.mesh.broadcast_row(origin) for origin in (A, B, C)] == [
            (B, C) if host is a else (),
            (A, C) if host is b else (),
            (A, B) if host is c else (),
        ]


@pytest.mark.parametrize("password", [None, b"wfvAwt7sj"])
def test_twelve_peers_in_a_chain_of_introductions_become_a_full_mesh(password: bytes | None) -> None:
    world = World()
    hosts = [world.host(PeerName(0x7A00_0000_0001 + index), password=password) for index in range(12)]
    for host, other in pairwise(hosts):
        world.connect(host, other)
    world.run(40)
    names = [host.name for host in hosts]
    for host in hosts:
        assert host.connected_to() == [name for name in names if name != host.name]
        assert sorted(host.mesh.routes.unicast) == names
    views = [{name: peer.version for name, peer in host.mesh.topology.items()} for host in hosts]
    assert all(view == views[0] for view in views)


@pytest.mark.parametrize("seed", range(8))
def test_two_that_dial_each_other_at_once_keep_the_connection_with_the_smaller_uid(seed: int) -> None:
    world = World(seed)
    a, b = world.host(A), world.host(B)
    world.connect(a, b)
    world.connect(b, a)
    world.run(20)
    assert [host.connected_to() for host in (a, b)] == [[B], [A]]
    uids = {added.connection: added.uid for added in a.of(ConnectionAdded)}
    (kept,) = a.mesh.connections()
    (kept_by_b,) = b.mesh.connections()
    assert kept.outbound is not kept_by_b.outbound
    assert (
        uids[kept.connection] == {added.connection: added.uid for added in b.of(ConnectionAdded)}[kept_by_b.connection]
    )
    ends = [text for host in (a, b) for text in host.notes() if "Multiple connections" in text]
    assert ends
    # The loser's connection never came to be on both sides at once, or it had the larger UID there.
    assert all(uids[kept.connection] <= uid for uid in uids.values())


def test_the_side_that_kept_a_connection_by_being_dialled_does_not_dial_any_more() -> None:
    world = World()
    a, b = world.host(A), world.host(B)
    world.connect(a, b)
    world.connect(b, a)
    world.run(5)
    dials = [len(host.of(Dial)) for host in (a, b)]
    world.run(1000)
    assert [len(host.of(Dial)) for host in (a, b)] == dials


# --- introductions that fail ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("passwords", "texts"),
    [
        ((b"one", b"two"), ("Unable to decrypt TCP msg",)),
        ((b"one", None), ("password specified, but peer requested an unencrypted connection",)),
        ((None, b"two"), ("no password specificed, but peer requested an encrypted connection",)),
    ],
    ids=["different", "only ours", "only theirs"],
)
def test_a_wrong_password_is_named_and_tried_again_at_growing_intervals(
    passwords: tuple[bytes | None, bytes | None], texts: tuple[str, ...]
) -> None:
    world = World()
    a, b = world.host(A, password=passwords[0]), world.host(B, password=passwords[1])
    world.connect(a, b)
    world.run()
    (target,) = a.mesh.targets()
    assert target.state is TargetState.WAITING
    assert target.error in {*texts, "connection reset by peer"}
    assert target.retry_wall_s is not None
    assert 1 <= target.retry_wall_s - world.now.wall_s < 3
    assert any(text in note for host in (a, b) for note in host.notes() for text in texts)
    assert any(
        note.startswith("->[10.0.0.2:6783] connection shutting down due to error during handshake: ")
        for note in a.notes()
    )
    world.run(3600)
    assert not a.mesh.connections()
    assert 3600 / 540 <= len(a.of(Dial)) <= 40
    assert a.mesh.termination_count == len(a.of(Dial))


def test_who_has_our_name_is_told_apart_by_its_uid_and_never_tried_again() -> None:
    world = World()
    a = world.host(A)
    b = world.host(A, uid=55)
    world.hosts = {Address(1): a, Address(2): b}
    a.address, b.address = Address(1), Address(2)
    world.connect(a, b)
    world.run(10_000)
    assert len(a.of(Dial)) == 1
    text = f'local "{format_peer_name(A)}(host1)" and remote "{format_peer_name(A)}(host1)" peer names collision'
    (target,) = a.mesh.targets()
    assert (target.error, target.retry_wall_s) == (text, None)
    assert a.mesh.active_target_count() == 0
    assert a.mesh.direct_targets() == ["0.0.0.2"]
    assert a.mesh.termination_count == 1
    world.connect(a, b)
    assert a.mesh.active_target_count() == 1
    world.run()
    assert len(a.of(Dial)) == 2


def test_a_connection_to_ourself_is_never_tried_again_and_not_counted() -> None:
    world = World()
    a = world.host(A)
    world.connect(a, a)
    world.run(10_000)
    assert len(a.of(Dial)) == 1
    assert [target.error for target in a.mesh.targets()] == ["cannot connect to ourself"]
    assert a.mesh.active_target_count() == 0
    assert a.mesh.termination_count == 0
    assert list(a.mesh.topology) == [A]


def test_where_discovery_sent_us_nobody_unknown_is_welcome() -> None:
    world = World()
    a, c = world.host(A), world.host(C)
    stranger = Stranger(world, a)
    claim = {B: PeerConnection(str(Endpoint(c.address, 6783)), outbound=True, established=True)}
    stranger.gossip(encode_update([Peer(E, PeerUID(99), 1, connections=claim)])[0], channel="topology")
    (dial,) = [output for output in stranger.outputs if isinstance(output, Dial)]
    world.perform(a, [dial])
    world.run()
    assert f"Found unknown remote name: {format_peer_name(C)} at 10.0.0.3:6783" in a.notes()[-1]
    assert a.connected_to() == [E]


def test_there_are_no_more_connections_than_allowed_in_either_direction() -> None:
    world = World()
    a = world.host(A, connection_limit=2)
    others = [world.host(name) for name in (B, C, D)]
    world.connect(a, *others)
    world.run(20)
    assert len(a.connected_to()) == 2
    refused = [text for text in a.notes() if text.endswith("Connection limit reached (2)")]
    assert any("error during connection attempt" in text or "shutting down" in text for text in refused)
    late = world.host(E)
    world.connect(late, a)
    world.run(20)
    assert len(a.connected_to()) == 2
    assert a.name not in late.connected_to()


def test_so_many_may_knock_without_introducing_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "INTRODUCTIONS_MAX", 2)
    world = World()
    a = world.host(A)
    here = Endpoint(a.address, 6783)
    results = [
        a.mesh.tcp_accepted(ConnectionNumber(2 * number), here, Endpoint(Address(9), number), world.now)
        for number in range(1, 4)
    ]
    assert [CloseTcp(ConnectionNumber(2 * number)) in outputs for number, outputs in enumerate(results, 1)] == [
        False,
        False,
        True,
    ]
    world.now_s += 10
    assert a.mesh.next_deadline() == world.now_s
    outputs = a.mesh.handle_timer(world.now)
    assert [output for output in outputs if isinstance(output, CloseTcp)] == [
        CloseTcp(ConnectionNumber(2)),
        CloseTcp(ConnectionNumber(4)),
    ]
    assert any(
        "failed to receive remote protocol header: i/o timeout" in output.text
        for output in outputs
        if isinstance(output, Note)
    )


# --- a connection's life ----------------------------------------------------------------------------------------------


def test_the_overlay_hears_of_a_connection_before_any_message_on_it() -> None:
    world = World()
    a, b = world.host(A), world.host(B)
    a.source.data, b.source.data = numbers(1), numbers(2)
    world.connect(a, b)
    world.run()
    for host in (a, b):
        kinds = [type(output) for output in host.outputs]
        assert kinds.index(ConnectionAdded) < kinds.index(GossipArrived)
    (added,) = a.of(ConnectionAdded)
    assert (added.remote_name, added.outbound, added.overlays) == (B, True, ("fastdp",))
    assert (added.local, added.remote) == (Endpoint.parse("10.0.0.1:40001"), Endpoint.parse("10.0.0.2:6783"))
    (accepted,) = b.of(ConnectionAdded)
    assert (accepted.local, accepted.remote) == (added.remote, added.local)
    assert added.uid == accepted.uid


def test_a_new_connection_carries_the_topology_and_every_channel_that_has_something_to_tell() -> None:
    world = World()
    a = world.host(A, channels=["one", "two", "three"])
    a.source.data = numbers(7)
    stranger = Stranger(world, a)
    heard = stranger.heard()
    assert [(tag, each.channel, each.source) for tag, each in heard] == [
        (4, "topology", A),
        (4, "one", A),
        (4, "three", A),
        (4, "two", A),
    ]
    assert [peer.name for peer in decode_update(heard[0][1].data)] == [A, E]
    assert heard[1][1].data == bytes([7])


def test_a_channel_without_state_is_left_out() -> None:
    world = World()
    stranger = Stranger(world, world.host(A))
    assert [each.channel for _, each in stranger.heard()] == ["topology"]


@pytest.mark.parametrize(
    ("password", "subnets", "is_encrypted"),
    [
        (None, (None, None), False),
        (b"secret", (None, None), True),
        (b"secret", ("10.0.0.0/8", None), True),
        (b"secret", (None, "10.0.0.0/8"), True),
        (b"secret", ("10.0.0.0/8", "10.0.0.0/30"), False),
        (b"secret", ("10.1.0.0/16", "10.0.0.0/8"), True),
    ],
)
def test_overlay_traffic_is_encrypted_unless_both_trust_the_other(
    password: bytes | None, subnets: tuple[str | None, str | None], is_encrypted: bool
) -> None:
    world = World()
    trusted = [() if subnet is None else (Cidr.parse(subnet),) for subnet in subnets]
    a = world.host(A, password=password, trusted_subnets=trusted[0])
    b = world.host(B, password=password, trusted_subnets=trusted[1])
    world.connect(a, b)
    world.run()
    keys = [host.of(ConnectionAdded)[0].overlay_key for host in (a, b)]
    assert keys[0] == keys[1]
    assert (keys[0] is not None) == is_encrypted
    assert [each.encrypted for each in a.mesh.connections()] == [is_encrypted]


def test_a_connection_counts_for_overlay_routes_once_both_ends_say_it_works() -> None:
    world = World()
    a, b = world.host(A), world.host(B)
    a.is_overlay_working = b.is_overlay_working = False
    world.connect(a, b)
    world.run(2)
    assert sorted(a.mesh.routes.unicast) == [A]
    assert sorted(a.mesh.routes.unicast_all) == [A, B]
    assert [each.established for each in a.mesh.connections()] == [False]
    for host in (a, b):
        (added,) = host.of(ConnectionAdded)
        world.perform(host, host.mesh.overlay_established(added.connection, world.now))
        world.run(2)
    assert sorted(a.mesh.routes.unicast) == [A, B]
    assert any(text.endswith("]: connection fully established") for text in a.notes())
    assert a.of(RoutesChanged)


def test_a_failed_overlay_ends_the_connection_which_is_then_tried_again() -> None:
    world = World()
    a, b = world.host(A), world.host(B)
    world.connect(a, b)
    world.run(2)
    (added,) = a.of(ConnectionAdded)
    world.perform(a, a.mesh.close(added.connection, "no overlay is left", world.now))
    world.run()
    assert a.of(ConnectionGone) == [ConnectionGone(added.connection, B)]
    assert b.of(ConnectionGone)
    prefix = f"->[10.0.0.2:6783|{format_peer_name(B)}(host2)]: "
    assert f"{prefix}connection shutting down due to error: no overlay is left" in a.notes()
    assert f"{prefix}connection deleted" in a.notes()
    world.run(4)
    assert a.connected_to() == [B]


def test_inputs_about_connections_that_are_over_do_nothing() -> None:
    world = World()
    a = world.host(A)
    gone = ConnectionNumber(1001)
    assert a.mesh.tcp_received(gone, b"x", world.now) == []
    assert a.mesh.tcp_closed(gone, "", world.now) == []
    assert a.mesh.tcp_writable(gone, True, world.now) == []
    assert a.mesh.dial_failed(gone, "x", world.now) == []
    assert a.mesh.close(gone, "x", world.now) == []
    assert a.mesh.overlay_established(gone, world.now) == []
    assert a.mesh.send_overlay_control(gone, b"x", world.now) == []
    assert a.mesh.tcp_dialled(gone, Endpoint(Address(1), 1), world.now) == [CloseTcp(gone)]


def test_a_silent_remote_loses_its_connection_after_a_minute_and_hears_heartbeats_until_then() -> None:
    world = World()
    a = world.host(A)
    stranger = Stranger(world, a)
    start_s = world.now_s
    sent: list[float] = []
    while not stranger.is_closed:
        world.now_s = a.mesh.next_deadline() or 0.0
        before = len(stranger.outputs)
        stranger.timer()
        sent += [
            world.now_s for output in stranger.outputs[before:] if isinstance(output, SendTcp) and len(output.data) == 5
        ]
    assert world.now_s == start_s + 60
    assert sent == [start_s + 30]
    assert "i/o timeout" in " ".join(a.notes())


def test_overlay_messages_are_carried_both_ways() -> None:
    world = World()
    a, b = world.line(A, B)
    (added,) = a.of(ConnectionAdded)
    world.perform(a, a.mesh.send_overlay_control(added.connection, b"\0\1hello", world.now))
    world.run()
    assert [each.payload for each in b.of(OverlayControlArrived)] == [b"\0\1hello"]


def test_a_peer_that_is_back_within_a_moment_gets_everything_again() -> None:
    world = World()
    a, b = world.line(A, B)
    b.source.data = numbers(9)
    world.crash(a)
    a = world.host(A, uid=4711)
    world.connect(a, b)
    world.run()
    assert bytes([9]) in [each.data for each in a.heard()]


def test_a_restarted_peer_gets_everything_even_if_a_route_seems_to_lead_to_it() -> None:
    world = World()
    a, b, c = (world.host(name) for name in (A, B, C))
    world.connect(a, b, c)
    world.connect(b, c)
    world.run(5)
    b.source.data = numbers(9)
    world.cut = {frozenset({a.address, c.address})}
    world.crash(a)
    world.run(5)
    # C has not noticed, so B still sees a way.
    assert A in b.mesh.routes.unicast_all
    a = world.host(A, uid=4711)
    world.connect(a, b)
    world.run()
    assert bytes([9]) in [each.data for each in a.heard()]
    assert any("connection added (restarted peer)" in text for text in b.notes())
    world.run(3)
    assert b.mesh.topology[A].uid == 4711


def test_a_restart_makes_us_outlive_our_former_self() -> None:
    world = World()
    a, b, c = world.line(A, B, C)
    for _ in range(5):
        (connection,) = [each.connection for each in a.mesh.connections()]
        world.perform(a, a.mesh.close(connection, "again", world.now))
        world.run(20)
    version = c.mesh.topology[A].version
    world.crash(a)
    # Its record lives on with peers that have not noticed: B kept it in a placeholder's stead.
    stale = replace(c.mesh.topology.get(A) or Peer(A), uid=PeerUID(1), version=version + 10)
    a = world.host(A, uid=4711, discovery=False)
    world.connect(a, b)
    world.run(1)
    (connection,) = [each.connection for each in a.mesh.connections()]
    change = a.mesh.topology.merge(encode_update([stale])[0])
    assert change.ours
    assert a.mesh.topology.ourself.version == version + 11
    world.run(60)
    assert c.mesh.topology[A].uid == 4711


# --- garbage ----------------------------------------------------------------------------------------------------------


def test_the_far_side_of_a_partition_is_collected_and_comes_back() -> None:
    world = World()
    a, b, c, d = world.line(A, B, C, D)
    world.cut = {frozenset({b.address, c.address})}
    world.run(100)
    # Not just once: what the others still have to tell of them comes in for a second more.
    for host, gone in ((a, (C, D)), (b, (C, D)), (c, (A, B)), (d, (A, B))):
        assert {name for removed in host.of(PeersRemoved) for name in removed.names} == set(gone)
        assert len(host.of(PeersRemoved)) <= 3
    assert f"Removed unreachable peer {format_peer_name(C)}(host3)" in a.notes()
    assert sorted(a.mesh.peer_names()) == [A, B]
    world.cut = set()
    world.run(400)
    for host in (a, b, c, d):
        assert sorted(host.mesh.routes.unicast) == [A, B, C, D]


def test_a_lost_connection_is_collected_at_once_and_gossip_of_others_a_second_later() -> None:
    world = World()
    a = world.host(A)
    stranger = Stranger(world, a)
    orphan = Peer(C, PeerUID(3), 1)
    stranger.gossip(encode_update([orphan])[0], channel="topology")
    assert C in a.mesh.topology
    world.run(0.999)
    assert C in a.mesh.topology
    world.run(0.001)
    assert C not in a.mesh.topology
    before = len(a.outputs)
    a.outputs += a.mesh.tcp_closed(stranger.number, "", world.now)
    assert [type(output) for output in a.outputs[before:]] == [
        Note,
        Note,
        ConnectionGone,
        Note,
        PeersRemoved,
        RoutesChanged,
    ]
    assert list(a.mesh.topology) == [A]


# --- topology gossip --------------------------------------------------------------------------------------------------


def test_our_changes_are_told_a_second_after_the_first_of_them() -> None:
    world = World()
    a = world.host(A)
    start_s = world.now_s
    stranger = Stranger(world, a)
    stranger.heard()
    world.now_s = start_s + 0.1
    assert a.mesh.next_deadline() == world.now_s
    stranger.timer()
    assert stranger.outputs[-1] == RoutesChanged()
    world.now_s = start_s + 0.95
    stranger.take(a.mesh.overlay_established(stranger.number, world.now))
    world.now_s = start_s + 1.0
    assert a.mesh.next_deadline() == world.now_s
    stranger.timer()
    # The routes are stale again, so it waits for them.
    assert stranger.heard() == []
    world.now_s = a.mesh.next_deadline() or 0.0
    assert world.now_s == pytest.approx(start_s + 1.05)
    stranger.timer()
    ((tag, update),) = stranger.heard()
    assert tag == 4
    assert [(peer.name, peer.version) for peer in decode_update(update.data)] == [(A, 2), (E, 0)]


def test_what_was_news_is_passed_on_to_others_and_what_was_not_is_not() -> None:
    world = World()
    a, b = world.line(A, B)
    stranger = Stranger(world, a)
    world.run(5)
    update = encode_update([Peer(E, PeerUID(99), 3, connections={A: PeerConnection("10.0.0.1:6783", True, True)})])[0]
    before = len(b.outputs)
    stranger.gossip(update, channel="topology")
    world.perform(a, a.mesh.handle_timer(world.now))
    world.run(0.2)
    assert b.mesh.topology[E].version == 3
    heard = len(b.outputs)
    assert heard > before
    sent = len(a.outputs)
    stranger.gossip(update, channel="topology")
    world.run(0.2)
    assert [output for output in a.outputs[sent:] if isinstance(output, SendTcp)] == []


def test_topology_by_broadcast_is_passed_on_whole_and_by_unicast_is_an_offence() -> None:
    world = World()
    a, b = world.line(A, B)
    stranger = Stranger(world, a)
    world.run(5)
    mine = Peer(E, PeerUID(99), 3, connections={A: PeerConnection("10.0.0.1:6783", True, True)})
    stranger.gossip(encode_update([mine])[0], channel="topology", tag=Tag.GOSSIP_BROADCAST)
    world.now_s += 0.1
    world.perform(a, a.mesh.handle_timer(world.now))
    world.run()
    assert b.mesh.topology[E].version == 3
    stranger.gossip(encode_update([mine])[0], channel="topology", tag=Tag.GOSSIP_UNICAST, to=A)
    assert stranger.is_closed
    assert any("unexpected topology gossip unicast" in text for text in a.notes())


def test_every_thirty_seconds_all_state_goes_to_neighbours() -> None:
    world = World()
    a = world.host(A)
    start_s = world.now_s
    a.source.data = numbers(5)
    stranger = Stranger(world, a)
    stranger.heard()
    while world.now_s < start_s + 30:
        assert "numbers" not in [each.channel for _, each in stranger.heard()]
        world.now_s = a.mesh.next_deadline() or 0.0
        stranger.timer()
    assert world.now_s == start_s + 30
    heard = stranger.heard()
    assert [(tag, each.channel) for tag, each in heard] == [(4, "topology"), (4, "numbers")]
    assert [peer.name for peer in decode_update(heard[0][1].data)] == [A, E]


# --- gossip of channels -----------------------------------------------------------------------------------------------


def test_a_broadcast_follows_the_tree_of_its_origin_and_keeps_its_name() -> None:
    world = World()
    a, b, c = world.line(A, B, C)
    world.perform(a, a.mesh.broadcast(CHANNEL, numbers(1, 2), world.now))
    world.run()
    (heard,) = b.heard()
    assert (heard.kind, heard.source, heard.data) == (GossipKind.BROADCAST, A, bytes([1, 2]))
    assert c.heard() == []
    world.perform(b, b.mesh.broadcast(CHANNEL, numbers(1, 2, 3), world.now, source=heard.source))
    world.run()
    (passed_on,) = c.heard()
    assert (passed_on.kind, passed_on.source, passed_on.data) == (GossipKind.BROADCAST, A, bytes([1, 2, 3]))
    assert len(a.heard()) == 0


def test_neighbour_gossip_is_in_the_name_of_the_relay_and_not_sent_back() -> None:
    world = World()
    a, b, c = world.line(A, B, C)
    world.perform(a, a.mesh.gossip_neighbours(CHANNEL, numbers(1), world.now))
    world.run()
    (heard,) = b.heard()
    assert (heard.kind, heard.source) == (GossipKind.NEIGHBOUR, A)
    world.perform(b, b.mesh.gossip_neighbours(CHANNEL, numbers(1), world.now, excluding=heard.source))
    world.run()
    assert [(each.kind, each.source) for each in c.heard()] == [(GossipKind.NEIGHBOUR, B)]
    assert a.heard() == []


def test_a_unicast_goes_from_hop_to_hop() -> None:
    world = World()
    a, b, c = world.line(A, B, C)
    assert a.mesh.can_reach(C)
    world.perform(a, a.mesh.send_unicast(CHANNEL, C, b"for c", world.now))
    world.run()
    assert b.heard() == []
    assert [(each.kind, each.source, each.data) for each in c.heard()] == [(GossipKind.UNICAST, A, b"for c")]


def test_a_unicast_to_nowhere_is_noted_and_costs_nobody_anything() -> None:
    world = World()
    a, b = world.line(A, B)
    assert not a.mesh.can_reach(D)
    assert not a.mesh.can_reach(A)
    assert a.mesh.send_unicast(CHANNEL, D, b"x", world.now) == [
        Note(Level.WARNING, f"unknown relay destination: {format_peer_name(D)}")
    ]
    stranger = Stranger(world, b)
    stranger.gossip(b"x", tag=Tag.GOSSIP_UNICAST, to=D)
    assert f"unknown relay destination: {format_peer_name(D)}" in b.notes()
    assert not stranger.is_closed


def test_a_route_outlives_its_connection_until_the_recalculation() -> None:
    world = World()
    a, b = world.line(A, B)
    (connection,) = [each.connection for each in a.mesh.connections()]
    world.perform(a, a.mesh.close(connection, "x", world.now))
    assert B in a.mesh.routes.unicast_all
    assert not a.mesh.can_reach(B)
    outputs = a.mesh.send_unicast(CHANNEL, B, b"x", world.now)
    assert outputs == [Note(Level.WARNING, f"unable to find connection to relay peer {format_peer_name(B)}")]
    assert b.heard() == []


def test_a_relay_serves_channels_it_knows_nothing_of() -> None:
    world = World()
    a, c = world.host(A, discovery=False), world.host(C, discovery=False)
    b = world.host(B, discovery=False, channels=[])
    world.connect(a, b)
    world.connect(b, c)
    world.run(5)
    world.perform(a, a.mesh.gossip_neighbours(CHANNEL, numbers(1), world.now))
    world.perform(a, a.mesh.broadcast(CHANNEL, numbers(2), world.now))
    world.perform(a, a.mesh.send_unicast(CHANNEL, C, b"\3", world.now))
    world.run()
    assert [(each.kind, each.source, each.data) for each in c.heard()] == [
        (GossipKind.NEIGHBOUR, B, b"\1"),
        (GossipKind.BROADCAST, A, b"\2"),
        (GossipKind.UNICAST, A, b"\3"),
    ]
    assert b.of(GossipArrived) == []
    # What it has passed on lately it does not pass on again, unless it is a broadcast.
    world.perform(a, a.mesh.gossip_neighbours(CHANNEL, numbers(1), world.now))
    world.perform(a, a.mesh.broadcast(CHANNEL, numbers(2), world.now))
    world.perform(a, a.mesh.send_unicast(CHANNEL, B, b"dropped", world.now))
    world.run()
    assert [each.data for each in c.heard()[3:]] == [b"\2"]
    world.run(31)
    world.perform(a, a.mesh.gossip_neighbours(CHANNEL, numbers(1), world.now))
    world.run()
    assert [each.data for each in c.heard()[4:]] == [b"\1"]


def test_gossip_waits_for_routes_that_are_about_to_be_recalculated_and_merges_meanwhile() -> None:
    world = World()
    a = world.host(A)
    stranger = Stranger(world, a)
    stranger.heard()
    for number in (1, 2, 3):
        stranger.take(a.mesh.gossip_neighbours(CHANNEL, numbers(number), world.now))
        stranger.take(a.mesh.broadcast(CHANNEL, numbers(10 + number), world.now))
    assert stranger.heard() == []
    world.now_s += 0.1
    stranger.timer()
    assert [(tag, each.data) for tag, each in stranger.heard()] == [(4, b"\1\2\3"), (6, b"\x0b\x0c\x0d")]


def test_gossip_for_a_slow_remote_merges_and_is_encoded_when_it_can_take_it() -> None:
    world = World()
    a = world.host(A)
    stranger = Stranger(world, a)
    world.now_s += 0.1
    stranger.timer()
    stranger.heard()
    stranger.take(a.mesh.tcp_writable(stranger.number, False, world.now))
    for number in (1, 2, 3):
        stranger.take(a.mesh.gossip_neighbours(CHANNEL, numbers(number), world.now))
        stranger.take(a.mesh.broadcast(CHANNEL, numbers(10 + number), world.now, source=A))
    assert stranger.heard() == []
    stranger.take(a.mesh.send_unicast(CHANNEL, E, b"at once", world.now))
    assert [each.data for _, each in stranger.heard()] == [b"at once"]
    stranger.take(a.mesh.tcp_writable(stranger.number, True, world.now))
    assert [(tag, each.data) for tag, each in stranger.heard()] == [(4, b"\1\2\3"), (6, b"\x0b\x0c\x0d")]


def test_a_remote_too_slow_even_for_merged_gossip_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    from weavenet.mesh import gossip

    monkeypatch.setattr(gossip, "SLOTS_MAX", 3)
    world = World()
    a = world.host(A)
    stranger = Stranger(world, a)
    world.now_s += 0.1
    stranger.timer()
    stranger.take(a.mesh.tcp_writable(stranger.number, False, world.now))
    for number in range(4):
        assert not stranger.is_closed
        stranger.take(a.mesh.gossip_neighbours(f"channel {number}", numbers(1), world.now))
    assert stranger.is_closed
    assert any("too much gossip waits" in text for text in a.notes())


def test_a_message_too_long_to_send_ends_the_connection() -> None:
    world = World()
    a = world.host(A)
    stranger = Stranger(world, a)
    stranger.take(a.mesh.send_overlay_control(stranger.number, bytes(10 << 20), world.now))
    assert stranger.is_closed
    assert any("outgoing message exceeds maximum size: 10485761 > 10485760" in text for text in a.notes())


# --- bad remotes ------------------------------------------------------------------------------------------------------

GOOD = build_gossip(Tag.GOSSIP, GossipMessage(CHANNEL, E, None, b"x"))


@pytest.mark.parametrize(
    "message",
    [
        *(GOOD[:length] for length in range(1, len(GOOD) - 1)),
        build_message(Tag.GOSSIP_UNICAST, GOOD[1:]),
        build_gossip(Tag.GOSSIP, GossipMessage("topology", E, None, b"nonsense")),
        build_gossip(Tag.GOSSIP_BROADCAST, GossipMessage("topology", E, None, b"\0")),
    ],
)
def test_a_malformed_message_costs_its_sender_the_connection_and_nobody_else_anything(message: bytes) -> None:
    world = World()
    a, b = world.host(A, discovery=False), world.host(B, discovery=False)
    world.connect(a, b)
    world.run(2)
    stranger = Stranger(world, a)
    stranger.send(message)
    assert stranger.is_closed
    assert ConnectionGone(stranger.number, E) in stranger.outputs
    assert a.connected_to() == [B]
    terminations = a.mesh.termination_count
    stranger.send_raw(b"more")
    assert a.mesh.termination_count == terminations == 1
    world.run(2)
    assert sorted(a.mesh.routes.unicast) == [A, B]


@pytest.mark.parametrize("message", [b"\0", b"\0ignored", b"\x08", b"\xff\xff", b""])
def test_messages_that_mean_nothing_are_ignored(message: bytes) -> None:
    world = World()
    a = world.host(A)
    stranger = Stranger(world, a)
    stranger.send(message)
    assert not stranger.is_closed
    assert [output for output in stranger.outputs if isinstance(output, GossipArrived | OverlayControlArrived)] == []


def test_nothing_is_processed_after_the_message_that_ended_a_connection() -> None:
    world = World()
    a = world.host(A)
    stranger = Stranger(world, a)
    data = stranger.connection.send(GOOD) + stranger.connection.send(GOOD[:9]) + stranger.connection.send(GOOD)
    stranger.send_raw(data)
    assert len(a.heard()) == 1
    assert stranger.is_closed


def test_a_flood_of_made_up_peers_ends_at_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    from weavenet.mesh import topology

    monkeypatch.setattr(topology, "PEERS_MAX", 50)
    world = World()
    a = world.host(A)
    stranger = Stranger(world, a)
    for start in range(1, 100, 10):
        if not stranger.is_closed:
            made_up = [Peer(PeerName(start + index), PeerUID(1), 1) for index in range(10)]
            stranger.gossip(encode_update(made_up)[0], channel="topology")
    assert stranger.is_closed
    assert len(a.mesh.topology) <= 50


@pytest.mark.parametrize("seed", range(20))
def test_no_bytes_at_all_harm_more_than_the_connection_they_came_on(seed: int) -> None:
    world = World()
    a = world.host(A)
    stranger = Stranger(world, a)
    random = Random(seed)
    for _ in range(30):
        if stranger.is_closed:
            break
        base = bytearray(random.choice([GOOD, build_gossip(Tag.GOSSIP_UNICAST, GossipMessage(CHANNEL, E, A, b"x"))]))
        for _ in range(random.randrange(4)):
            base[random.randrange(len(base))] = random.randrange(256)
        stranger.send(bytes(base))
    assert a.connected_to() == ([] if stranger.is_closed else [E])


# --- short IDs --------------------------------------------------------------------------------------------------------


def test_two_with_the_same_short_id_settle_it_among_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    a, b = world.host(A), world.host(B)
    old = b.mesh.short_id
    monkeypatch.setattr(Mesh, "short_id", property(lambda mesh: mesh.topology.ourself.short_id))
    a.mesh.topology._put(replace(a.mesh.topology.ourself, short_id=old))
    world.connect(a, b)
    world.run(5)
    assert a.mesh.short_id == old
    assert b.mesh.short_id != old
    for host in (a, b):
        assert host.mesh.topology.principal(a.mesh.short_id) == A
        assert host.mesh.topology.principal(b.mesh.short_id) == B


# --- the whole --------------------------------------------------------------------------------------------------------


def history(seed: int) -> Mapping[PeerName, list[Output]]:
    world = World(seed)
    hosts = [world.host(name, password=b"p", discovery=name != C) for name in (A, B, C, D)]
    for host in hosts:
        world.connect(host, *(other for other in hosts if other is not host))
    world.run(3)
    world.cut = {frozenset({hosts[0].address, other.address}) for other in hosts[1:]}
    world.run(70)
    world.cut = set()
    world.run(70)
    return {host.name: host.outputs for host in hosts}


def test_the_same_entropy_and_inputs_give_the_same_outputs() -> None:
    assert history(3) == history(3)
    assert history(3) != history(4)


def test_the_user_sees_targets_in_every_state() -> None:
    world = World()
    a, b = world.host(A), world.host(B)
    a.mesh.connect([Target("10.0.0.9", Endpoint.parse("10.0.0.9:0"))], replace=False, now=world.now)
    world.connect(a, b)
    assert [(str(each.endpoint), each.state, each.error) for each in a.mesh.targets()] == [
        ("10.0.0.2:6783", TargetState.ATTEMPTING, ""),
        ("10.0.0.9:6783", TargetState.ATTEMPTING, ""),
    ]
    world.perform(a, a.mesh.dial_failed(ConnectionNumber(1), "no route to host", world.now))
    world.run()
    assert [(each.state, each.error) for each in a.mesh.targets()] == [
        (TargetState.CONNECTED, ""),
        (TargetState.WAITING, "no route to host"),
    ]
    assert a.mesh.direct_targets() == ["10.0.0.2", "10.0.0.9"]
    assert a.mesh.active_target_count() == 2
    a.mesh.forget(["10.0.0.9"], world.now)
    assert a.mesh.direct_targets() == ["10.0.0.2"]
    assert [each.state for each in a.mesh.targets()] == [TargetState.CONNECTED]
    assert "->[10.0.0.9:6783] error during connection attempt: no route to host" in a.notes()


def test_a_closed_connection_is_explained_in_the_words_of_weave() -> None:
    world = World()
    a = world.host(A)
    stranger = Stranger(world, a)
    world.perform(a, a.mesh.tcp_closed(stranger.number, "", world.now))
    label = f"->[10.9.9.9:50000|{format_peer_name(E)}(stranger)]: "
    assert [text for text in a.notes() if text.startswith(label)] == [
        f"{label}connection ready; using protocol version 2",
        f"{label}connection added (new peer)",
        f"{label}connection shutting down due to error: EOF",
        f"{label}connection deleted",
    ]
    assert a.notes()[0] == "->[10.9.9.9:50000] connection accepted"


def test_the_reserved_name_is_refused() -> None:
    world = World()
    a = world.host(A)
    stranger = Stranger(world, a, PeerName(0))
    assert stranger.is_closed
    assert list(a.mesh.topology) == [A]


# --- real peers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["client_to_server", "server_to_client"])
@pytest.mark.parametrize("capture", CAPTURES, ids=range(len(CAPTURES)))
def test_a_recorded_peer_is_added_and_its_gossip_understood(capture: dict[str, Any], direction: str) -> None:
    world = World()
    here, there = Endpoint.parse(capture["server"]), Endpoint.parse(capture["client"])
    dialled = direction == "server_to_client"
    if dialled:
        here, there = there, here
    us, them = (PeerName(0x7A00_0000_0000 + (each.address & 0xFF) - 10) for each in (here, there))
    host = world.host(us, channels=["IPallocation"])
    if dialled:
        host.mesh.connect([Target("x", there)], replace=False, now=world.now)
        number = ConnectionNumber(1)
        host.outputs += host.mesh.tcp_dialled(number, here, world.now)
    else:
        number = ConnectionNumber(2)
        host.outputs += host.mesh.tcp_accepted(number, here, there, world.now)
    data = bytes.fromhex(capture[direction])
    for start in range(0, len(data), 1000):
        host.outputs += host.mesh.tcp_received(number, data[start : start + 1000], world.now)
    assert CloseTcp(number) not in host.outputs
    assert host.connected_to() == [them]
    assert host.mesh.topology[them].uid
    assert host.mesh.topology[them].version > 0
    assert us in host.mesh.topology[them].connections
    assert all(each.source in host.mesh.topology for each in host.heard("IPallocation"))
    assert host.heard("IPallocation")
    # Sleeve is not an overlay of ours, so its messages are somebody else's business; but they are carried.
    assert host.of(OverlayControlArrived)


def test_a_peer_of_version_1_is_added_without_a_short_id_and_overlays() -> None:
    world = World()
    a, b = world.host(A, password=b"p"), world.host(B, password=b"p", max_version=1)
    world.connect(a, b)
    world.run()
    (added,) = a.of(ConnectionAdded)
    assert added.overlays is None
    assert added.overlay_key is not None
    assert any("using protocol version 1" in text for text in a.notes())
    world.run(3)
    assert sorted(a.mesh.routes.unicast) == [A, B]
