"""One weavenet node without its outside: the cores, and the routing of signals between them. It decides nothing itself.

    Input ──▶ Node.handle ──▶ the core it concerns ──▶ outputs ─┬─ Effect: kept, in order
                                  ▲                             └─ Signal: to a core, whose outputs take its place
                                  └──────────────────────────────────────────────┘

The agent and the simulator drive this same class. They feed it inputs, perform its effects in order, call it again no
later than `next_deadline()`, and read its views (`forwarding`, `report`).
"""

from collections import deque
from collections.abc import Sequence
from typing import assert_never

import msgspec

from weavenet.effects import (
    ConnectionAdded,
    ConnectionGone,
    ConnectionNumber,
    Done,
    Effect,
    Entropy,
    GossipArrived,
    GossipKind,
    Level,
    LinksChanged,
    Note,
    Now,
    Output,
    OverlayControlArrived,
    OverlayEstablished,
    OverlayFailed,
    OverlayKeysChanged,
    PeersRemoved,
    Persist,
    PutSecret,
    PutValue,
    Reconcile,
    Refused,
    Reply,
    RoutesChanged,
    SendBroadcast,
    SendOverlayControl,
    SendUnicast,
    Signal,
)
from weavenet.errors import GossipError, IpamError, KeyringError
from weavenet.identity import PeerName, ShortID
from weavenet.ipam.allocator import Allocator, IpamConfig, StoredState
from weavenet.mesh.connector import Target
from weavenet.mesh.gossip import GossipData
from weavenet.mesh.keyring import KEY_KEYRING, encode_keyring
from weavenet.mesh.router import Mesh, MeshConfig
from weavenet.node import inputs as i
from weavenet.node.targets import KEY_TARGETS, encode_targets
from weavenet.overlay.forwarding import FASTDP, Forwarding, compute_forwarding
from weavenet.overlay.overlays import Overlays
from weavenet.overlay.sleeve.fast_wire import label_of
from weavenet.overlay.sleeve.table import SleeveConnection, SleeveTable

IPAM_CHANNEL = "IPallocation"

# A signal may cause signals, but they run downhill: mesh to overlay or IPAM, and back as messages to send. A chain this
# long is a loop, and a loop is a bug.
_SIGNALS_PER_INPUT_MAX = 100_000

EAGER_FLOOD_ROWS_MAX = 64


class NodeConfig(msgspec.Struct, frozen=True):
    """What a node is told at its start. Without `ipam` it relays other peers' IPAM gossip and gives no addresses."""

    mesh: MeshConfig
    ipam: IpamConfig | None
    mtu_bytes: int
    vxlan_port: int


class Node:
    """The production node, pure: same inputs, same outputs."""

    def __init__(self, config: NodeConfig, entropy: Entropy, now: Now) -> None:
        """Compose the cores."""
        self.config = config
        self._now = now
        channels = {IPAM_CHANNEL: _IpamSource(self)} if config.ipam is not None else {}
        self.mesh = Mesh(config.mesh, channels, entropy, now)
        self._directory = _MeshDirectory(self.mesh)
        self.ipam = Allocator(config.ipam, self._directory, entropy) if config.ipam is not None else None
        self.overlays = Overlays(
            short_ids=self._directory,
            mtu_bytes=config.mtu_bytes,
            port=config.vxlan_port,
            names=config.mesh.overlays.split(),
            sleeve_formats=config.mesh.sleeve_formats.split(),
        )
        self._flood_origins: set[PeerName] = set()

    # --- driving ------------------------------------------------------------------------------------------------------

    def start(self, stored: StoredState, targets: Sequence[Target], now: Now) -> list[Effect]:
        """Begin with what is on disk and the peers to join."""
        self._now = now
        outputs: list[Output] = []
        if self.ipam is not None:
            outputs += self.ipam.start(stored, now)
        if self.mesh.keyring is not None or stored.values.get(KEY_KEYRING):
            outputs.append(self._persist_keyring())  # behind what start may clear
        outputs += self._connect(targets, replace=True, now=now)
        return self._settle(outputs, now)

    def handle(self, happened: i.Input, now: Now) -> list[Effect]:
        """Take one input; return what to do about it, in order."""
        self._now = now
        return self._settle(self._dispatch(happened, now), now)

    def next_deadline(self) -> float | None:
        """Monotonic seconds at which TimerFired is due; None if nothing is waiting."""
        deadlines = [self.mesh.next_deadline(), self.overlays.next_deadline()]
        if self.ipam is not None:
            deadlines.append(self.ipam.next_deadline())
        return min((due for due in deadlines if due is not None), default=None)

    def forwarding(self) -> Forwarding:
        """Return what the data plane's maps should hold now."""
        return compute_forwarding(
            short_ids=self._directory,
            unicast=self.mesh.routes.unicast,
            floods={origin: self.mesh.broadcast_row(origin) for origin in self._flood_origin_names()},
            links=self.overlays.links(),
        )

    def sleeve_table(self) -> SleeveTable:
        """Return what the forwarder of sleeve should go by now."""
        sleeves = self.overlays.sleeves()
        links = self.overlays.links()
        names = {self._directory.ours(): self.config.mesh.name}
        held = {self._directory.ours()}
        routes: dict[ShortID, ConnectionNumber] = {}
        for destination, hop in sorted(self.mesh.routes.unicast.items()):
            short_id = self._directory.of(destination)
            if short_id is None or self._directory.principal(short_id) != destination:
                continue
            names[short_id] = destination
            if hop in sleeves and destination != self.config.mesh.name:
                routes[short_id] = sleeves[hop][0].connection
            if hop in links and links[hop].overlay == FASTDP:
                held.add(short_id)
        connections = tuple(
            SleeveConnection(
                number=added.connection,
                peer=name,
                remote=link.remote,
                key=added.overlay_key,
                opening=opening,
                dialled=added.outbound,
                mtu_bytes=link.mtu_bytes,
                payload_bytes_max=link.payload_bytes_max,
                fragments_pass=link.fragments_pass,
                fast_label=label_of(added.uid) if self.overlays.has_fast_sleeve(added) else None,
            )
            for name, (added, link, opening) in sleeves.items()
        )
        return SleeveTable(self.config.mesh.name, names, connections, routes, self.config.mtu_bytes, frozenset(held))

    @property
    def now(self) -> Now:
        """When the last input came: what an encoder that runs later may say of the time."""
        return self._now

    # --- inputs -------------------------------------------------------------------------------------------------------

    def _dispatch(self, happened: i.Input, now: Now) -> list[Output]:
        match happened:
            case i.TcpAccepted(connection, local, remote):
                return self.mesh.tcp_accepted(connection, local, remote, now)
            case i.TcpDialled(connection, local):
                return self.mesh.tcp_dialled(connection, local, now)
            case i.DialFailed(connection, error):
                return self.mesh.dial_failed(connection, error, now)
            case i.TcpReceived(connection, data):
                return self.mesh.tcp_received(connection, data, now)
            case i.TcpClosed(connection, error):
                return self.mesh.tcp_closed(connection, error, now)
            case i.TcpWritable(connection, writable):
                return self.mesh.tcp_writable(connection, writable, now)
            case i.SpecialFrameArrived(vni, remote, length, head):
                return self.overlays.special_frame(vni, remote, length, head, now)
            case i.SleeveFrameArrived(connection, remote, length, head, intact):
                return self.overlays.sleeve_frame(connection, remote, length, head, intact=intact, now=now)
            case i.SleeveTooBig(connection, pmtu):
                return self.overlays.sleeve_too_big(connection, pmtu, now)
            case i.SleeveFailed(connection, error):
                return self.overlays.sleeve_failed(connection, error)
            case i.FloodMissed(origin):
                return self._flood_missed(origin)
            case i.Connect(targets, replace):
                return self._connect(targets, replace=replace, now=now)
            case i.Forget(texts):
                return [*self.mesh.forget(texts, now), self._persist_targets()]
            case i.AddKey() | i.UseKey() | i.RetireKey():
                return self._change_keys(happened, now)
            case i.TimerFired():
                return self._timer_fired(now)
            case _:
                return self._dispatch_ipam(happened, now)

    def _dispatch_ipam(self, happened: "i.IpamInput", now: Now) -> list[Output]:
        if self.ipam is None:
            return _refuse_without_ipam(happened)
        try:
            return _ask_ipam(self.ipam, happened, now)
        except IpamError as error:
            assert not isinstance(happened, i.CountPeers | i.Cancel | i.ShutDown), "these cannot be refused"
            return [Reply(happened.request, Refused(str(error)))]

    def _timer_fired(self, now: Now) -> list[Output]:
        outputs = [*self.mesh.handle_timer(now), *self.overlays.handle_timer(now)]
        if self.ipam is not None:
            outputs += self.ipam.handle_timer(now)
        return outputs

    def _connect(self, targets: Sequence[Target], *, replace: bool, now: Now) -> list[Output]:
        outputs = self.mesh.connect(targets, replace=replace, now=now)
        return [self._persist_targets(), *outputs]

    def _persist_targets(self) -> Persist:
        return Persist((PutValue(KEY_TARGETS, encode_targets(self.mesh.direct_targets())),))

    def _change_keys(self, happened: i.KeyInput, now: Now) -> list[Output]:
        ring = self.mesh.keyring
        if ring is None:
            reason = "this mesh is not encrypted: to have it so, start the agents of all its hosts with a password"
            return [Reply(happened.request, Refused(reason))]
        try:
            match happened:
                case i.AddKey(_, name, password):
                    changed, done = ring.add(name, password, now), "added, and accepted from now on"
                case i.UseKey(_, name):
                    changed, done = ring.use(name), "in use from now on"
                case i.RetireKey(_, name):
                    changed, done = ring.retire(name), "retired"
                case _:
                    assert_never(happened)
        except KeyringError as error:
            return [Reply(happened.request, Refused(str(error)))]
        outputs = self.mesh.change_keyring(changed, now)
        note = Note(Level.INFO, f"key {name}: {done}")
        return [self._persist_keyring(), note, *outputs, Reply(happened.request, Done())]

    def _persist_keyring(self) -> Persist:
        ring = self.mesh.keyring
        return Persist((PutSecret(KEY_KEYRING, b"" if ring is None else encode_keyring(ring)),))

    def _flood_missed(self, origin: ShortID) -> list[Output]:
        name = self._directory.principal(origin)
        if name is None or name in self._flood_origins:
            return []
        self._flood_origins.add(name)
        return [Reconcile()]

    def _flood_origin_names(self) -> list[PeerName]:
        # A row per origin costs a walk of the topology: n walks of n² edges in a full mesh. Small meshes get them all
        # at once, so that not even a first broadcast is lost; in large ones the data plane asks for those it meets.
        known = self.mesh.peer_names()
        if len(known) <= EAGER_FLOOD_ROWS_MAX:
            return sorted(known)
        self._flood_origins &= known
        return sorted(self._flood_origins | {self.mesh.local_name})

    # --- signals ------------------------------------------------------------------------------------------------------

    def _settle(self, outputs: list[Output], now: Now) -> list[Effect]:
        """Route signals, and what they cause before those behind them. Effects stay in the order of their making.

        A message is sealed when it is made, with a number that counts on: what a signal causes must not overtake what
        was made before it.
        """
        effects: list[Effect] = []
        waiting: deque[Signal] = deque()
        routed = 0
        reconcile = False
        while True:
            signals: list[Signal] = []
            for output in outputs:
                # Once per input is enough: it is a hint.
                reconcile |= isinstance(output, Reconcile | RoutesChanged | LinksChanged)
                if isinstance(output, Signal):
                    signals.append(output)
                elif not isinstance(output, Reconcile):
                    effects.append(output)
            waiting.extendleft(reversed(signals))
            if not waiting:
                break
            signal = waiting.popleft()
            routed += 1
            assert routed < _SIGNALS_PER_INPUT_MAX, f"signals go in circles: {signal}"
            outputs = self._route(signal, now)
        if reconcile:
            effects.append(Reconcile())
        return effects

    def _route(self, signal: Signal, now: Now) -> list[Output]:
        match signal:
            case GossipArrived():
                return self._gossip_arrived(signal, now)
            case ConnectionAdded() | ConnectionGone() | OverlayControlArrived() | OverlayKeysChanged():
                return self._tell_overlays(signal, now)
            case PeersRemoved(names, nicknames):
                return self.ipam.peers_removed(names, nicknames, now) if self.ipam is not None else []
            case RoutesChanged() | LinksChanged():
                return []  # _settle has noted that the kernel is to be looked at again
            case OverlayEstablished(connection):
                return self.mesh.overlay_established(connection, now)
            case OverlayFailed(connection, reason):
                return self.mesh.close(connection, reason, now)
            case SendOverlayControl(connection, payload, bare):
                return self.mesh.send_overlay_control(connection, payload, now, bare=bare)
            case SendUnicast(channel, destination, data):
                return self.mesh.send_unicast(channel, destination, data, now)
            case SendBroadcast(channel):
                assert self.ipam is not None
                return self.mesh.broadcast(channel, _IpamState(self), now)
            case _:
                assert_never(signal)

    def _gossip_arrived(self, signal: GossipArrived, now: Now) -> list[Output]:
        assert self.ipam is not None, "without IPAM its channel is a surrogate"
        try:
            outputs = self.ipam.gossip_arrived(signal.kind, signal.source, signal.data, now)
        except GossipError as error:
            return self.mesh.close(signal.connection, str(error), now)
        if signal.kind is GossipKind.BROADCAST:
            # A relay passes on its own latest state, under the name of the origin (docs/protocol.md, "IPAM messages").
            outputs = [*outputs, *self.mesh.broadcast(signal.channel, _IpamState(self), now, source=signal.source)]
        return outputs

    def _tell_overlays(
        self,
        signal: ConnectionAdded | ConnectionGone | OverlayControlArrived | OverlayKeysChanged,
        now: Now,
    ) -> list[Output]:
        match signal:
            case ConnectionAdded():
                return self.overlays.connection_added(signal, now)
            case ConnectionGone():
                return self.overlays.connection_gone(signal, now)
            case OverlayControlArrived():
                return self.overlays.control_arrived(signal, now)
            case OverlayKeysChanged():
                return self.overlays.keys_changed(signal)


def _ask_ipam(ipam: Allocator, happened: i.IpamInput, now: Now) -> list[Output]:
    match happened:
        case i.Allocate(request, ident, subnet, is_container):
            return ipam.allocate(request, ident, subnet, is_container=is_container, now=now)
        case i.Claim(request, ident, address, is_container, no_error_on_unknown):
            return ipam.claim(
                request,
                ident,
                address,
                is_container=is_container,
                no_error_on_unknown=no_error_on_unknown,
                now=now,
            )
        case i.Release(request, ident):
            return [*ipam.release(ident, now), Reply(request, Done())]
        case i.ReleaseAddress(request, ident, address):
            return [*ipam.release_address(ident, address, now), Reply(request, Done())]
        case i.AwaitConsensus(request):
            return ipam.await_consensus(request, now)
        case i.TakeOver(request, ident):
            return ipam.take_over(request, ident, now)
        case i.CountPeers(peer_count):
            return ipam.count_peers(peer_count, now)
        case i.Cancel(request):
            return ipam.cancel(request, now)
        case i.ShutDown():
            return ipam.shut_down(now)
        case _:
            assert_never(happened)


def _refuse_without_ipam(happened: i.IpamInput) -> list[Output]:
    if isinstance(happened, i.CountPeers | i.Cancel | i.ShutDown):
        return []
    return [Reply(happened.request, Refused("IP address allocation is off: the agent was started without a range"))]


class _IpamSource:
    """What the mesh asks for the IPAM channel's complete state."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def complete(self) -> GossipData | None:
        return _IpamState(self._node)

    def digest(self) -> bytes | None:
        assert self._node.ipam is not None
        return self._node.ipam.digest()


class _IpamState(msgspec.Struct, frozen=True):
    """IPAM's gossip is always all of its latest state, so pending data merge by doing nothing."""

    node: Node

    def merge(self, newer: GossipData) -> GossipData:
        return newer

    def encode(self) -> list[bytes]:
        assert self.node.ipam is not None
        return [self.node.ipam.encode_state(self.node.now.wall_s)]


class _MeshDirectory:
    """What IPAM and the overlays may know of the mesh."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    def can_reach(self, peer: PeerName) -> bool:
        return self._mesh.can_reach(peer)

    def is_known(self, peer: PeerName) -> bool:
        return self._mesh.topology.is_known(peer)

    def nickname(self, peer: PeerName) -> str | None:
        return self._mesh.topology.nickname(peer)

    def active_targets(self) -> int:
        return self._mesh.active_target_count()

    def ours(self) -> ShortID:
        return self._mesh.short_id

    def of(self, name: PeerName) -> ShortID | None:
        return self._mesh.topology.short_id(name)

    def principal(self, short_id: ShortID) -> PeerName | None:
        return self._mesh.topology.principal(short_id)
