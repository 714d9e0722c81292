"""The mesh core: who is in the mesh and how to reach them, with everything in this package put together.

Driven by TCP (a connection was accepted, dialled, failed; bytes arrived; it closed), by the user (connect, forget), by
other cores (send this, the overlay works) and by a timer. It returns what to do, in order, and signals for the others.

    bytes ─► connection ─┬► introduction ─► admission ─► topology, routes, gossip of everything
                         └► messages ─┬► topology: merge, pass on what was news
                                      ├► a registered channel: GossipArrived
                                      ├► any other channel: the surrogate
                                      └► overlay: OverlayControlArrived

The order of things on a new connection is a rule of the protocol: first it is added, then the overlay may talk
(ConnectionAdded), and only then are messages looked at. Every input ends the same way: connections that broke a rule
meanwhile are ended, targets are looked at if something about them may have changed, and what waits for writable
connections is encoded and sent, so that it is as fresh as can be.

A remote that breaks a rule loses its connection, and nothing else happens. Source: docs/protocol.md, "Mesh"; Weave's
mesh router.go, connection.go and gossip.go.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from weavenet.address import Cidr, Endpoint
from weavenet.effects import (
    CloseTcp,
    ConnectionNumber,
    Dial,
    Entropy,
    Level,
    Note,
    Now,
    Output,
    OverlayControlArrived,
    OverlayKeysChanged,
    SendTcp,
)
from weavenet.errors import HandshakeError, ProtocolError, RemoteError
from weavenet.identity import SHORT_ID_BITS, PeerName, PeerUID, ShortID
from weavenet.mesh.admission import Admission
from weavenet.mesh.arrival import Arrival
from weavenet.mesh.connection import Connection, ConnectionOptions, Introduced, LocalPeer, Message
from weavenet.mesh.connector import Attempt, Connector, Target, TargetStatus
from weavenet.mesh.exchange import Exchange
from weavenet.mesh.gossip import (
    TOPOLOGY_CHANNEL,
    GossipData,
    GossipSource,
)
from weavenet.mesh.guesses import Guesses
from weavenet.mesh.keyring import Keyring, KeyStatus
from weavenet.mesh.local import ConnectionStatus, LocalConnection, LocalConnections
from weavenet.mesh.records import Peer
from weavenet.mesh.relay import Relay
from weavenet.mesh.routes import Routes
from weavenet.mesh.topology import Topology
from weavenet.mesh.upkeep import Upkeep
from weavenet.mesh.wire import VERSION_MAX, VERSION_MIN, Tag, build_message

# Accepted and not added yet. Strangers can make us hold these, each for no longer than the timeouts of an introduction.
INTRODUCTIONS_MAX = 1000


class MeshConfig(msgspec.Struct, frozen=True):
    """Who we are in the mesh, and what we insist on."""

    name: PeerName
    uid: PeerUID
    nickname: str
    port: int = 6783
    keyring: Keyring | None = None  # at the start
    trusted_subnets: tuple[Cidr, ...] = ()
    connection_limit: int = 200  # 0: none
    discovery: bool = True
    min_version: int = VERSION_MIN
    max_version: int = VERSION_MAX
    overlays: str = "fastdp"
    sleeve_formats: str = ""  # beside Weave's
    compact: bool = True  # compare state with peers that can, too; off: exactly Weave's gossip
    short_id: ShortID | None = None  # what others knew us by before a restart; None: a random one


class Mesh:
    """The mesh as one peer sees it and takes part in it."""

    def __init__(self, config: MeshConfig, channels: Mapping[str, GossipSource], entropy: Entropy, now: Now) -> None:
        """Be alone, for now. `channels` are those whose gossip others handle; the topology is ours."""
        assert TOPOLOGY_CHANNEL not in channels
        self.config = config
        self._entropy = entropy
        self._local_peer = LocalPeer(config.name, config.uid, config.nickname)
        self._options = ConnectionOptions(
            config.keyring,
            config.min_version,
            config.max_version,
            config.overlays,
            config.sleeve_formats,
            compact=config.compact,
        )
        self._out: list[Output] = []
        self._dialled_count = 0
        short_id = ShortID(entropy.bits(SHORT_ID_BITS)) if config.short_id is None else config.short_id
        self.topology = Topology(Peer(config.name, config.uid, nickname=config.nickname, short_id=short_id), entropy)
        self.routes = Routes(config.name)
        self._links = LocalConnections()
        self._connector = Connector(config.name, port=config.port, discovery=config.discovery, entropy=entropy)
        self._guesses = Guesses(config.keyring)
        self._exchange = Exchange(self.topology, self._links, channels, self._out)
        self._relay = Relay(config.name, self.routes, self._links, self._exchange, entropy)
        self._upkeep = Upkeep(
            topology=self.topology,
            routes=self.routes,
            relay=self._relay,
            channels=channels,
            out=self._out,
            now=now,
        )
        self._admission = Admission(
            topology=self.topology,
            routes=self.routes,
            links=self._links,
            connector=self._connector,
            guesses=self._guesses,
            exchange=self._exchange,
            relay=self._relay,
            upkeep=self._upkeep,
            out=self._out,
            connection_limit=config.connection_limit,
        )
        self._arrival = Arrival(
            ourself=config.name,
            topology=self.topology,
            channels=channels,
            relay=self._relay,
            exchange=self._exchange,
            upkeep=self._upkeep,
            out=self._out,
        )

    # --- TCP ----------------------------------------------------------------------------------------------------------

    def tcp_accepted(self, connection: ConnectionNumber, local: Endpoint, remote: Endpoint, now: Now) -> list[Output]:
        """Take over a connection that somebody dialled to us."""
        assert connection % 2 == 0, "odd numbers are for connections that we dial"
        if len(self._links) - self._links.added_count >= INTRODUCTIONS_MAX:
            text = f"->[{remote}] connection refused: {INTRODUCTIONS_MAX} others have not introduced themselves yet"
            return [Note(Level.WARNING, text), CloseTcp(connection)]
        link = LocalConnection(connection, remote, outbound=False, direct=True, trusted=self._trusts(remote))
        self._links.begin(link)
        self._admission.note(link, "connection accepted")
        self._start(link, local, now)
        return self._finish(now)

    def tcp_dialled(self, connection: ConnectionNumber, local: Endpoint, now: Now) -> list[Output]:
        """Take over a connection that we asked for."""
        link = self._links.get(connection)
        if link is None:
            # It was closed before it was open.
            return [CloseTcp(connection)]
        self._start(link, local, now)
        return self._finish(now)

    def _start(self, link: LocalConnection, local: Endpoint, now: Now) -> None:
        link.local = local
        link.guess = self._guesses.guess(link.remote) if link.outbound else None
        link.protocol = Connection(
            self._local_peer,
            self._options,
            outbound=link.outbound,
            short_id=self.short_id,
            trusted=link.trusted,
            entropy=self._entropy,
            now=now,
            guess=link.guess,
        )
        link.due_s = link.protocol.next_deadline()
        self._out.append(SendTcp(link.number, link.protocol.start()))

    def _trusts(self, remote: Endpoint) -> bool:
        return any(remote.address in subnet.range for subnet in self.config.trusted_subnets)

    def dial_failed(self, connection: ConnectionNumber, error: str, now: Now) -> list[Output]:
        """Note that a dial led to nothing."""
        link = self._links.get(connection)
        if link is not None:
            self._links.end(link)
            self._attempt_failed(link.remote, error, now)
        return self._finish(now)

    def tcp_received(self, connection: ConnectionNumber, data: bytes, now: Now) -> list[Output]:
        """Take bytes that arrived."""
        link = self._links.get(connection)
        if link is not None and link.protocol is not None:
            try:
                written, events = link.protocol.receive(data, now)
                if written:
                    self._out.append(SendTcp(connection, written))
                self._note_guess(link)
                self._handle(link, events, now)
                link.due_s = link.protocol.next_deadline()
                self._tell_overlay_keys(link)
            except RemoteError as error:
                self._admission.end(link, error, now)
        return self._finish(now)

    def tcp_closed(self, connection: ConnectionNumber, error: str, now: Now) -> list[Output]:
        """Note that a connection is over; `error` is empty if the remote closed it in order."""
        link = self._links.get(connection)
        if link is not None:
            reason: RemoteError = ProtocolError(error or "connection closed")
            if link.protocol is not None:
                reason = link.protocol.broken(error) if error else link.protocol.end_of_stream()
            self._admission.end(link, reason, now, is_closed=True)
        return self._finish(now)

    def tcp_writable(self, connection: ConnectionNumber, writable: bool, now: Now) -> list[Output]:  # noqa: FBT001 (the order of the input's fields)
        """Have gossip flow again, or wait because so much else waits in the connection already."""
        link = self._links.get(connection)
        if link is not None:
            link.writable = writable
        return self._finish(now)

    # --- the user -----------------------------------------------------------------------------------------------------

    def connect(self, targets: Sequence[Target], *, replace: bool, now: Now) -> list[Output]:
        """Add direct targets, or have only these. Existing connections stay."""
        self._connector.connect(targets, replace_all=replace, now=now)
        self._upkeep.targets_are_stale = True
        return self._finish(now)

    def forget(self, texts: Iterable[str], now: Now) -> list[Output]:
        """Drop direct targets, spelled as they were when they were added. Existing connections stay."""
        self._connector.forget(texts)
        self._upkeep.targets_are_stale = True
        return self._finish(now)

    @property
    def keyring(self) -> Keyring | None:
        """The passwords; None where the mesh is not encrypted."""
        return self._options.keyring

    def change_keyring(self, ring: Keyring, now: Now) -> list[Output]:
        """Go by other passwords. Connections that can move do; those that cannot and use a retired one end."""
        assert self.keyring is not None, "what is not encrypted cannot become so"
        self._options = replace(self._options, keyring=ring)
        self._guesses.ring = ring
        for link in self._links.all():
            if link.protocol is None:
                continue
            try:
                written = link.protocol.ring_changed(ring, now)
                link.due_s = link.protocol.next_deadline()
                if written:
                    self._out.append(SendTcp(link.number, written))
                self._tell_overlay_keys(link)
            except RemoteError as error:
                self._admission.end(link, error, now)
        return self._finish(now)

    def key_status(self) -> list[KeyStatus]:
        """Return what there is to say about each key, in the order in which they were added."""
        ring = self.keyring
        if ring is None:
            return []
        used = [link.protocol.passwords() for link in self._links.added() if link.protocol is not None]
        return [
            KeyStatus(key.name, key is ring.in_use, key.added_wall_s, sum(key.password in each for each in used))
            for key in sorted(ring, key=lambda key: key.added_wall_s)
        ]

    # --- other cores --------------------------------------------------------------------------------------------------

    def close(self, connection: ConnectionNumber, reason: str, now: Now) -> list[Output]:
        """End a connection: its overlay failed, or a channel refused its gossip."""
        link = self._links.get(connection)
        if link is not None:
            self._admission.end(link, ProtocolError(reason), now)
        return self._finish(now)

    def overlay_established(self, connection: ConnectionNumber, now: Now) -> list[Output]:
        """Packets flow both ways over a connection."""
        link = self._links.get(connection)
        if link is not None:
            self._admission.establish(link, now)
        return self._finish(now)

    def send_overlay_control(
        self, connection: ConnectionNumber, payload: bytes, now: Now, *, bare: bool = False
    ) -> list[Output]:
        """Send an overlay's message to its other end; `bare` as in SendOverlayControl."""
        link = self._links.get(connection)
        if link is not None and link.added:
            link.send(payload[1:] if bare else build_message(Tag.OVERLAY_CONTROL, payload), self._out)
        return self._finish(now)

    def send_unicast(self, channel: str, destination: PeerName, data: bytes, now: Now) -> list[Output]:
        """Send a channel's message to one peer. Unless `can_reach`, it is lost, with a note."""
        self._relay.unicast(channel, destination, data, self._out)
        return self._finish(now)

    def broadcast(self, channel: str, data: GossipData, now: Now, source: PeerName | None = None) -> list[Output]:
        """Send data to everybody, or pass on what came as a broadcast of `source`."""
        self._relay.broadcast(channel, data, self.local_name if source is None else source)
        return self._finish(now)

    def gossip_neighbours(
        self, channel: str, data: GossipData, now: Now, excluding: PeerName | None = None
    ) -> list[Output]:
        """Send data to a few neighbours, or pass on what was news to us in the gossip of `excluding`."""
        self._relay.tell_neighbours(channel, data, excluding)
        return self._finish(now)

    # --- time ---------------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When `handle_timer` has something to do, in monotonic seconds."""
        due = [self._upkeep.next_deadline(), self._connector.next_deadline(), self._exchange.next_deadline()]
        due += [link.due_s for link in self._links.all()]
        return min((due_s for due_s in due if due_s is not None), default=None)

    def handle_timer(self, now: Now) -> list[Output]:
        """Do what is due."""
        for link in self._links.all():
            if link.protocol is None or link.due_s > now.monotonic_s:
                continue
            try:
                written = link.protocol.handle_timer(now)
                link.due_s = link.protocol.next_deadline()
                if written:
                    self._out.append(SendTcp(link.number, written))
                self._tell_overlay_keys(link)
            except RemoteError as error:
                self._admission.end(link, error, now)
        self._upkeep.handle_timer(now)
        self._exchange.handle_timer(now)
        return self._finish(now)

    # --- views --------------------------------------------------------------------------------------------------------

    @property
    def local_name(self) -> PeerName:
        """Our name."""
        return self.config.name

    @property
    def short_id(self) -> ShortID:
        """Our short ID. It may change, and may for a moment stand for somebody else."""
        short_id = self.topology.ourself.short_id
        assert short_id is not None
        return short_id

    @property
    def termination_count(self) -> int:
        """How many connections have ended, except those to ourself."""
        return self._admission.termination_count

    def peer_names(self) -> frozenset[PeerName]:
        """Return the names of all peers we know of, ours among them."""
        return frozenset(self.topology)

    def can_reach(self, destination: PeerName) -> bool:
        """Whether a unicast to that peer would leave here."""
        return self._relay.can_reach(destination)

    def broadcast_row(self, origin: PeerName) -> tuple[PeerName, ...]:
        """To whom we forward overlay broadcasts of `origin`."""
        return self.routes.broadcast_row(origin)

    def connections(self) -> list[ConnectionStatus]:
        """Return what there is to say about each connection that has been added, by the remote's name."""
        return [
            ConnectionStatus(
                connection=link.number,
                remote=link.remote,
                outbound=link.outbound,
                established=link.established,
                name=name,
                nickname=self.topology[name].nickname,
                encrypted=link.overlay_keys is not None,
            )
            for name, link in ((link.name, link) for link in self._links.added())
            if name is not None
        ]

    def targets(self) -> list[TargetStatus]:
        """Return what there is to say about each target, by address."""
        return self._connector.status()

    def direct_targets(self) -> list[str]:
        """Return the texts of all direct targets."""
        return self._connector.direct_texts()

    def active_target_count(self) -> int:
        """How many direct targets have not been given up for good."""
        return len(self._connector.active_texts())

    # --- what arrives -------------------------------------------------------------------------------------------------

    def _handle(self, link: LocalConnection, events: Iterable[Introduced | Message], now: Now) -> None:
        """Take what a connection has to say. Raises RemoteError for what must end it."""
        for event in events:
            if isinstance(event, Message):
                self._message(link, event, now)
            elif self._admission.admit(link, event, now):
                assert link.protocol is not None
                written, messages = link.protocol.proceed(now)
                if written:
                    self._out.append(SendTcp(link.number, written))
                self._handle(link, messages, now)

    def _note_guess(self, link: LocalConnection) -> None:
        """Remember with which password we were let in."""
        proved = None if link.protocol is None else link.protocol.settled_on
        if link.guess is not None and proved is not None:
            link.guess = None
            self._guesses.worked(link.remote, proved)

    def _tell_overlay_keys(self, link: LocalConnection) -> None:
        """Have the overlay seal, and open, with what the connection does."""
        keys = None if link.protocol is None or not link.added else link.protocol.overlay_keys()
        if keys is not None and link.overlay_keys not in {None, keys}:
            link.overlay_keys = keys
            self._out.append(OverlayKeysChanged(link.number, keys.sealing, keys.opening))

    def _message(self, link: LocalConnection, message: Message, now: Now) -> None:
        match message.tag:
            case Tag.HEARTBEAT:
                pass
            case Tag.GOSSIP | Tag.GOSSIP_UNICAST | Tag.GOSSIP_BROADCAST as tag:
                self._arrival.gossip(link, Tag(tag), message.payload, now)
            case Tag.COMPACT if link.compact:
                self._arrival.compact(link, message.payload, now)
            case Tag.OVERLAY_CONTROL:
                self._out.append(OverlayControlArrived(link.number, message.payload))
            case Tag.CONNECTION_ESTABLISHED | Tag.FRAGMENTATION_RECEIVED | Tag.PMTU_VERIFIED as tag:
                payload = bytes((0, tag)) + message.payload
                self._out.append(OverlayControlArrived(link.number, payload, bare=True))
            case tag:
                self._admission.note(link, f"ignored a message with tag {tag}", Level.DEBUG)

    # --- how every input ends -----------------------------------------------------------------------------------------

    def _finish(self, now: Now) -> list[Output]:
        self._relay.flush(self._out)
        while (failed := self._links.first_failed()) is not None:
            self._admission.end(failed, ProtocolError(failed.failure or ""), now)
        due_s = self._connector.next_deadline()
        if self._upkeep.targets_are_stale or (due_s is not None and due_s <= now.monotonic_s):
            self._upkeep.targets_are_stale = False
            for attempt in self._connector.attempts(self._links.connected(), self.topology, now):
                self._attempt(attempt, now)
        taken = self._out[:]
        self._out.clear()
        return taken

    def _attempt(self, attempt: Attempt, now: Now) -> None:
        remote = attempt.endpoint
        self._out.append(Note(Level.INFO, f"->[{remote}] attempting connection"))
        try:
            self._admission.check_limit()
        except HandshakeError as error:
            self._attempt_failed(remote, str(error), now)
            return
        number = ConnectionNumber(2 * self._dialled_count + 1)
        self._dialled_count += 1
        self._links.begin(
            LocalConnection(number, remote, outbound=True, direct=attempt.direct, trusted=self._trusts(remote))
        )
        self._out.append(Dial(number, remote))

    def _attempt_failed(self, remote: Endpoint, error: str, now: Now) -> None:
        self._out.append(Note(Level.WARNING, f"->[{remote}] error during connection attempt: {error}"))
        self._connector.failed(remote, error, now)
        self._upkeep.targets_are_stale = True
