"""The world of the simulator: virtual time, hosts, a network between them, and production nodes on the hosts.

A seed determines everything. A run has two phases, as TigerBeetle's simulator has: in the *safety* phase anything may
fail, and the checkers look after every single effect; in the *liveness* phase all is healed, every crashed host boots
again, and the world must converge within a time limit.
"""

import hashlib
import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable

from weavenet.address import Address, Cidr, Endpoint, format_address, parse_address
from weavenet.effects import (
    Cancelled,
    CloseTcp,
    ConnectionNumber,
    Dial,
    Done,
    Effect,
    Granted,
    Note,
    Now,
    Outcome,
    Refused,
    Reply,
    RequestNumber,
    SendSpecialFrame,
    SendTcp,
    TookOver,
)
from weavenet.identity import PeerName, PeerUID, format_peer_name
from weavenet.ipam.allocator import IpamConfig
from weavenet.ipam.modes import InitMode
from weavenet.mesh.connector import Target
from weavenet.mesh.keyring import KEY_KEYRING, Keyring, Password, decode_keyring
from weavenet.mesh.router import MeshConfig
from weavenet.node import inputs as i
from weavenet.node.node import Node, NodeConfig
from weavenet.overlay.forwarding import FASTDP, SLEEVE
from weavenet.sim.checkers import Ledger
from weavenet.sim.host import Host, Performer, Waiting
from weavenet.sim.network import DIAL_TIMEOUT_S, MESH_PORT, Network, Pipe
from weavenet.sim.sleeve import Sleeves

WALL_START_S = 1_700_000_000.0
SPECIAL_HEAD_BYTES = 32
REMEMBERED_MAX = 1000
# What a refused merge says (docs/protocol/ipam.md, 2.5, errors A, B and C).
RING_CONFLICT_SIGNS = ("which I think I own", "Inconsistent entries for", "Received update for IP range I own")


class World:
    """Everything there is."""

    def __init__(
        self,
        seed: int,
        universe: Cidr,
        mode: InitMode,
        *,
        keyring: Keyring | None = None,
        trusted_subnets: tuple[Cidr, ...] = (),
        overlays: str = FASTDP,
        discovery: bool = True,
        is_honest: bool = False,
    ) -> None:
        """Create an empty world; `seed` determines all that follows.

        `is_honest` is whether nobody here lies, so that a connection that ends as if somebody did is a violation.

        `keyring` is what each host has at its first start; later ones find on disk what became of it.
        """
        self._keyring = keyring
        self._trusted_subnets = trusted_subnets
        self._overlays = overlays
        self._discovery = discovery
        self._is_honest = is_honest
        self.seed = seed
        self.rng = random.Random(seed)  # noqa: S311 - replayable is the point
        self.universe = universe
        self.mode = mode
        self.now_s = 0.0
        self.hosts: dict[Address, Host] = {}
        self.ledger = Ledger()
        self.network = Network(self.rng, self, self._arrived)
        self.sleeves = Sleeves(self.rng, self.network, self.hosts, self.after, self.feed)
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._trace = hashlib.blake2b(digest_size=16)
        self.events = 0
        # What was answered, and what nodes had to say, lately: for whoever shows a run to people.
        self.replies: deque[tuple[PeerName, str, Outcome]] = deque(maxlen=REMEMBERED_MAX)
        self.notes: deque[tuple[PeerName, Note]] = deque(maxlen=REMEMBERED_MAX)
        self.ring_conflicts = 0  # how often a node has said that another's ring contradicts its own
        self._performer = Performer(
            dial=self._dial,
            send=self._send,
            close=self._close,
            special=self._send_special,
            sleeve=self.sleeves.send_special,
            reconcile=self.sleeves.reconcile if SLEEVE in overlays.split() else lambda _: None,
            reply=self._reply,
            crash=self.crash,
            trace=self._trace_effect,
        )

    # --- time ---------------------------------------------------------------------------------------------------------

    def after(self, delay_s: float, call: Callable[[], None]) -> None:
        """Call something later; among equals, what was asked for first comes first."""
        heapq.heappush(self._queue, (self.now_s + delay_s, next(self._order), call))

    def run_until(self, end_s: float) -> None:
        """Let time pass."""
        while self._queue and self._queue[0][0] <= end_s:
            self.now_s, _, call = heapq.heappop(self._queue)
            self.events += 1
            call()
        self.now_s = end_s

    def now(self, host: Host) -> Now:
        """What a node is told of the time: its wall clock may be wrong by any amount."""
        return Now(monotonic_s=self.now_s, wall_s=WALL_START_S + self.now_s + host.clock_error_s)

    def trace(self) -> str:
        """Return a digest of all that has happened, in order."""
        return self._trace.hexdigest()

    # --- hosts --------------------------------------------------------------------------------------------------------

    def add_host(self, address: Address, name: PeerName, targets: tuple[Address, ...]) -> Host:
        """Add a machine that is told of these neighbours; it is still off."""
        known = tuple(Target(format_address(target), Endpoint(target, 0)) for target in targets)
        self.hosts[address] = Host(address, name, known)
        return self.hosts[address]

    def boot(self, host: Host) -> None:
        """Start the process of a host."""
        now = self.now(host)
        uid = PeerUID(self.rng.getrandbits(64) | 1)
        nickname = f"host{host.address & 0xFF}"
        config = NodeConfig(
            mesh=MeshConfig(
                name=host.name,
                uid=uid,
                nickname=nickname,
                port=MESH_PORT,
                keyring=decode_keyring(host.disk.load().values.get(KEY_KEYRING, b"")) or self._keyring,
                trusted_subnets=self._trusted_subnets,
                overlays=self._overlays,
                discovery=self._discovery,
                compact=host.compact,
            ),
            ipam=IpamConfig(
                name=host.name,
                uid=uid,
                nickname=nickname,
                universe=self.universe,
                default_subnet=self.universe,
                mode=self.mode,
            ),
            mtu_bytes=1376,
            vxlan_port=MESH_PORT + 1,
        )
        self._note(f"boot {host.address}")
        effects = host.boot(config, str(self.seed), now)
        self.ledger.check_restored(host)
        self._performer.perform(host, effects)
        self._rearm(host)

    def crash(self, host: Host) -> None:
        """Kill the process; the host's kernel resets its connections."""
        self._note(f"crash {host.address}")
        for pipe in self.network.pipes_of(host.address):
            self.network.end(pipe, host.address)
        host.stop()

    def lose_power(self, host: Host) -> None:
        """The machine stops; nobody is told."""
        self._note(f"power {host.address}")
        self.network.lose_power(host.address)
        host.stop()

    def feed(self, host: Host, happened: i.Input) -> None:
        """Give a node an input and perform what it wants."""
        if host.node is None:
            return
        self._performer.perform(host, self._handle(host, host.node, happened))
        self._rearm(host)

    def _handle(self, host: Host, node: Node, happened: i.Input) -> list[Effect]:
        if isinstance(happened, i.TcpReceived):
            self._note(f"{host.address} {happened.connection} received")
            self._trace.update(happened.data)
        else:
            self._note(f"{host.address} {happened!r}")
        return node.handle(happened, self.now(host))

    def running(self) -> list[Host]:
        """Return the hosts whose process runs, in address order."""
        return [host for _, host in sorted(self.hosts.items()) if host.node is not None]

    # --- containers ---------------------------------------------------------------------------------------------------

    def allocate(self, host: Host, ident: str) -> None:
        """A container starts and wants an address."""
        self.ledger.ask(host.name, ident)
        self._ask(host, ident, lambda number: i.Allocate(number, ident, None, is_container=True))

    def give_up(self, host: Host, ident: str) -> None:
        """Whoever asked for a container has lost patience; the answer, if one comes, reaches nobody."""
        for number in [number for number, waiting in host.waiting.items() if waiting.ident == ident]:
            del host.waiting[number]
            self.feed(host, i.Cancel(number))

    def release(self, host: Host, ident: str) -> None:
        """A container is gone. From here on nobody uses its address, whatever becomes of the request."""
        self.ledger.forget(host.name, ident)
        self._ask(host, ident, lambda number: i.Release(number, ident))

    def take_over(self, host: Host, dead: PeerName) -> None:
        """An administrator says that a peer will not come back."""
        self._ask(host, f"rmpeer {format_peer_name(dead)}", lambda number: i.TakeOver(number, format_peer_name(dead)))

    # --- passwords ----------------------------------------------------------------------------------------------------

    def add_key(self, host: Host, name: str, password: bytes) -> None:
        """An administrator says `weave key add`."""
        self._ask(host, "", lambda number: i.AddKey(number, name, Password(password)))

    def use_key(self, host: Host, name: str) -> None:
        """An administrator says `weave key use`."""
        self._ask(host, "", lambda number: i.UseKey(number, name))

    def retire_key(self, host: Host, name: str) -> None:
        """An administrator says `weave key retire`."""
        self._ask(host, "", lambda number: i.RetireKey(number, name))

    def _ask(self, host: Host, ident: str, make: Callable[[RequestNumber], i.Input]) -> None:
        number = RequestNumber(host.next_request)
        host.next_request += 1
        host.waiting[number] = Waiting(ident, self.now_s)
        self.feed(host, make(number))

    def _reply(self, host: Host, reply: Reply) -> None:
        waiting = host.waiting.pop(reply.request, None)
        if waiting is None:
            return
        self.replies.append((host.name, waiting.ident, reply.outcome))
        match reply.outcome:
            case Granted(addresses):
                for cidr in addresses:
                    self.ledger.grant(host, waiting.ident, cidr)
            case Done() | Refused() | Cancelled() | TookOver():
                pass

    # --- network ------------------------------------------------------------------------------------------------------

    def _dial(self, host: Host, dial: Dial) -> None:
        host.dials.add(dial.connection)
        life = host.life
        there = self.network.latency()
        self.after(there, lambda: self._knock(host, life, dial))

    def _knock(self, host: Host, life: int, dial: Dial) -> None:
        if host.life != life or host.node is None or dial.connection not in host.dials:
            return
        target = self.hosts.get(dial.remote.address)
        cut = self.network.blocked(host.address, dial.remote.address)
        if target is None or cut or self.network.blocked(dial.remote.address, host.address):
            self.after(DIAL_TIMEOUT_S, lambda: self._dial_failed(host, life, dial, "i/o timeout"))
            return
        if target.node is None or dial.remote.port != MESH_PORT:
            self._dial_failed(host, life, dial, "connection refused")
            return
        accepted = ConnectionNumber(target.next_accepted)
        target.next_accepted += 2
        if target is host:  # dialling oneself needs no pipe to show what it shows: a name that is our own
            self._dial_failed(host, life, dial, "cannot connect to ourself")
            return
        host.dials.discard(dial.connection)
        pipe = self.network.open_pipe((host.address, dial.connection), (target.address, accepted))
        host.pipes[dial.connection] = pipe
        target.pipes[accepted] = pipe
        self.feed(host, i.TcpDialled(dial.connection, pipe.endpoint(host.address)))
        self.feed(
            target,
            i.TcpAccepted(accepted, pipe.endpoint(target.address), pipe.endpoint(host.address)),
        )

    def _dial_failed(self, host: Host, life: int, dial: Dial, why: str) -> None:
        if host.life == life and dial.connection in host.dials:
            host.dials.discard(dial.connection)
            self.feed(host, i.DialFailed(dial.connection, f"dial tcp {dial.remote}: connect: {why}"))

    def _send(self, host: Host, send: SendTcp) -> None:
        pipe = host.pipes.get(send.connection)
        if pipe is not None and host.address not in pipe.ended:
            self.network.send_stream(pipe, host.address, send.data)

    def _close(self, host: Host, close: CloseTcp) -> None:
        host.dials.discard(close.connection)
        pipe = host.pipes.pop(close.connection, None)
        if pipe is not None:
            self.network.end(pipe, host.address)

    def _arrived(self, pipe: Pipe, receiver: Address, data: bytes | None) -> None:
        host = self.hosts.get(receiver)
        if host is None:
            return  # that machine is no more
        number = ConnectionNumber(pipe.numbers[receiver])
        if receiver in pipe.ended or host.pipes.get(number) is not pipe:
            if data is not None and host.node is not None and pipe.other(receiver) not in pipe.ended:
                self.network.send_stream(pipe, receiver, None)  # nobody here knows this connection: a reset
            return
        if data is None:
            pipe.ended.add(receiver)
            del host.pipes[number]
            self.feed(host, i.TcpClosed(number, "connection reset by peer"))
        else:
            self.feed(host, i.TcpReceived(number, data))

    def _send_special(self, host: Host, send: SendSpecialFrame) -> None:
        target = self.hosts.get(send.remote.address)
        if target is None:
            return
        head = send.frame[:SPECIAL_HEAD_BYTES]
        happened = i.SpecialFrameArrived(send.vni, host.address, len(send.frame), head)
        self.network.send_datagram(host.address, target.address, lambda: self.feed(target, happened))

    # --- housekeeping -------------------------------------------------------------------------------------------------

    def _rearm(self, host: Host) -> None:
        if host.node is None:
            return
        due_s = host.node.next_deadline()
        if due_s is None or host.timer_due_s == due_s:
            return
        host.timer_due_s = due_s
        life = host.life
        self.after(max(0.0, due_s - self.now_s), lambda: self._fire(host, life, due_s))

    def _fire(self, host: Host, life: int, due_s: float) -> None:
        if host.life == life and host.timer_due_s == due_s:
            host.timer_due_s = None
            self.feed(host, i.TimerFired())

    def _trace_effect(self, host: Host, effect: Effect) -> None:
        if isinstance(effect, SendTcp):
            # As it is: to write all bytes as text took longer than to make them.
            self._trace.update(b"%d sent" % effect.connection)
            self._trace.update(effect.data)
            return
        self._trace.update(repr(effect).encode())
        if isinstance(effect, Note):
            self.ring_conflicts += any(sign in effect.text for sign in RING_CONFLICT_SIGNS)
            self.notes.append((host.name, effect))
            if self._is_honest:
                self.ledger.check_ending(host.name, effect.text)

    def _note(self, text: str) -> None:
        self._trace.update(f"{self.now_s:.9f} {text}".encode())


def host_address(index: int) -> Address:
    """Return the address of the n-th host, counted from 1."""
    return Address(parse_address("10.77.0.0") + index)
