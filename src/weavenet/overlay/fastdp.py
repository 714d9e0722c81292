"""The overlays of all connections: which run, what they are told, and which links that leaves.

    ConnectionAdded ─▶ negotiate ─▶ prepare each ─▶ start each ─▶ events ─▶ Switch ─▶ OverlayEstablished / OverlayFailed
                                      │                 ▲
                                      └ left out: Note  └ special frames, control messages, time

fastdp is the only overlay there is as yet. Its port rule: a link uses *the acceptor's* fastdp port, which is its mesh
port + 1, in both directions (docs/protocol.md, "fastdp: ports"). We have one VXLAN device and so one port; a peer
dialled at another port than ours therefore cannot be reached by fastdp.

Heartbeats that match no connection are remembered for a moment, few of them: heartbeat.py says why.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from weavenet.address import Address, Endpoint
from weavenet.codec.vxlan import split_vni
from weavenet.effects import (
    ConnectionAdded,
    ConnectionGone,
    ConnectionNumber,
    Level,
    LinksChanged,
    Note,
    Now,
    Output,
    OverlayControlArrived,
    OverlayEstablished,
    OverlayFailed,
)
from weavenet.identity import ConnectionUID, PeerName, format_peer_name
from weavenet.overlay.choose import NO_COMMON_OVERLAY, OverlayEvent, Switch, negotiate
from weavenet.overlay.forwarding import FASTDP, Link, ShortIDs
from weavenet.overlay.heartbeat import (
    ETHERNET_HEADER_BYTES,
    HEARTBEAT_ACK,
    TIMEOUT_S,
    FastdpLink,
    LinkIdentity,
    heartbeat_uid,
)

OURS = (FASTDP,)  # in order of preference

# implementation: an early heartbeat is early by about one TCP round trip, and few connections are added at a time
REMEMBERED_MAX = 32
REMEMBERED_S = 2.0


class PeerDirectory(ShortIDs, Protocol):
    """What overlays need to know of the mesh."""

    def nickname(self, peer: PeerName) -> str | None:
        """Return what a peer calls itself, for people to read."""
        ...


@dataclass(frozen=True, slots=True)
class _EarlyHeartbeat:
    vni: int
    remote: Address
    arrived_s: float


@dataclass(slots=True)
class _Connection:
    number: ConnectionNumber
    remote_name: PeerName
    remote_text: str
    switch: Switch
    fastdp: FastdpLink
    chosen: int | None = None  # None until the first event, as nothing is known before


class Overlays:
    """Driven by the mesh's signals, special frames, and a timer."""

    def __init__(self, *, short_ids: PeerDirectory, mtu_bytes: int, port: int) -> None:
        """Serve one VXLAN device: its MTU, and its UDP port, which is our mesh port + 1."""
        self._directory = short_ids
        self._mtu_bytes = mtu_bytes
        self._port = port
        self._connections: dict[ConnectionNumber, _Connection] = {}
        self._by_peer: dict[PeerName, ConnectionNumber] = {}
        self._early: dict[ConnectionUID, _EarlyHeartbeat] = {}  # oldest first
        # What next_deadline answers, until a link hears or does something: it is asked after every input of the node.
        self._deadline_s: float | None = None
        self._deadline_is_known = False

    # --- inputs -------------------------------------------------------------------------------------------------------

    def connection_added(self, added: ConnectionAdded, now: Now) -> list[Output]:
        """Start the overlays that both sides have and that can work over this connection."""
        peer = self._peer_text(added.remote_name)
        names = negotiate(OURS, added.overlays)
        if not names:
            return [OverlayFailed(added.connection, NO_COMMON_OVERLAY)]
        reason = self._obstacle(added)
        if reason is not None:
            return [
                Note(Level.WARNING, f"Unable to use {FASTDP} for connection to {peer}: {reason}"),
                OverlayFailed(added.connection, f"no working forwarders to {peer}: {FASTDP}: {reason}"),
            ]
        identity = LinkIdentity(added.connection, names.index(FASTDP), added.uid, added.remote_name, peer)
        link = FastdpLink(
            identity,
            Endpoint(added.remote.address, self._port),
            short_ids=self._directory,
            mtu_bytes=self._mtu_bytes,
        )
        connection = _Connection(added.connection, added.remote_name, peer, Switch(names), link)
        self._connections[added.connection] = connection
        replaced = self._by_peer.get(added.remote_name)
        self._by_peer[added.remote_name] = added.connection
        outputs: list[Output | OverlayEvent] = [] if replaced is None else [LinksChanged()]
        outputs += link.start(now.monotonic_s)
        early = self._recall(added.uid, now.monotonic_s)
        if early is not None and self._source_of(early.vni) == added.remote_name:
            outputs += link.heartbeat_replayed(early.remote, now.monotonic_s)
        return self._settle(connection, outputs)

    def connection_gone(self, gone: ConnectionGone, now: Now) -> list[Output]:  # noqa: ARG002 - every input has a time
        """Forget a connection."""
        connection = self._connections.get(gone.connection)
        return [] if connection is None else self._remove(connection)

    def control_arrived(self, arrived: OverlayControlArrived, now: Now) -> list[Output]:
        """Take a control message. What is malformed or unknown is noted and ignored: newer peers may know more tags."""
        connection = self._connections.get(arrived.connection)
        if connection is None:
            return []
        if len(arrived.payload) < 2 or arrived.payload[0] >= len(connection.switch.names):
            return [self._ignored(connection, arrived.payload)]
        index, tag = arrived.payload[:2]
        if index == connection.fastdp.identity.index and tag == HEARTBEAT_ACK:
            return self._settle(connection, connection.fastdp.acknowledged(now.monotonic_s))
        return [self._ignored(connection, arrived.payload)]

    def special_frame(self, vni: int, remote: Address, length: int, head: bytes, now: Now) -> list[Output]:
        """Take a frame with both MACs zero: its VNI, outer source, whole length, and first bytes.

        Counts as a heartbeat of the connection with the VNI's source peer, if it has that connection's UID.
        """
        uid = heartbeat_uid(length, head)
        if uid is None:
            return []
        source = self._source_of(vni)
        number = None if source is None else self._by_peer.get(source)
        connection = None if number is None else self._connections[number]
        if connection is None or connection.fastdp.identity.uid != uid:
            self._remember(uid, _EarlyHeartbeat(vni, remote, now.monotonic_s))
            return []
        return self._settle(connection, connection.fastdp.heartbeat_received(remote, now.monotonic_s))

    def handle_timer(self, now: Now) -> list[Output]:
        """Send the heartbeats and notice the silences that have become due."""
        outputs: list[Output] = []
        for number in sorted(self._connections):
            connection = self._connections[number]
            if connection.fastdp.next_deadline() <= now.monotonic_s:
                outputs += self._settle(connection, connection.fastdp.handle_timer(now.monotonic_s))
        return outputs

    # --- views --------------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """Monotonic seconds at which handle_timer has something to do."""
        if not self._deadline_is_known:
            self._deadline_s = min((one.fastdp.next_deadline() for one in self._connections.values()), default=None)
            self._deadline_is_known = True
        return self._deadline_s

    def links(self) -> Mapping[PeerName, Link]:
        """Return how each peer with a connection is reached, in the order of names."""
        return {name: self._link(self._connections[self._by_peer[name]]) for name in sorted(self._by_peer)}

    def _link(self, connection: _Connection) -> Link:
        index = connection.chosen or 0
        return Link(
            remote=connection.fastdp.remote,
            overlay=connection.switch.names[index],
            established=connection.switch.is_established(index),
            mtu=self._mtu_bytes,
        )

    # --- decisions ----------------------------------------------------------------------------------------------------

    def _obstacle(self, added: ConnectionAdded) -> str | None:
        if added.overlay_key is not None:
            return (
                "encrypted overlay traffic is not supported yet; start both peers without a password, "
                "or name each other's subnet in --trusted-subnets"
            )
        if added.outbound and added.remote.port + 1 != self._port:
            return (
                f"the peer was dialled at port {added.remote.port}, so its fastdp port is {added.remote.port + 1}, "
                f"and ours is {self._port}; start both peers with the same --port"
            )
        return None

    def _settle(self, connection: _Connection, outputs: list[Output | OverlayEvent]) -> list[Output]:
        """Put what follows from events in their place. The last step whenever something has happened to a link."""
        self._deadline_is_known = False
        settled: list[Output] = []
        for output in outputs:
            if isinstance(output, OverlayEvent):
                settled += self._event(connection, connection.fastdp.identity.index, output)
            else:
                settled.append(output)
        return settled

    def _event(self, connection: _Connection, index: int, event: OverlayEvent) -> list[Output]:
        was_established = connection.switch.established
        connection.switch.apply(index, event)
        outputs: list[Output] = []
        if connection.switch.established and not was_established:
            outputs.append(OverlayEstablished(connection.number))
        best = connection.switch.best()
        if best is None:
            detail = (
                f"{FASTDP}: no heartbeat for {TIMEOUT_S:.0f} s; is UDP port {self._port} open both ways, "
                f"for inner frames of {ETHERNET_HEADER_BYTES + self._mtu_bytes} bytes?"
            )
            reason = f"no working forwarders to {connection.remote_text}: {detail}"
            return [*outputs, *self._remove(connection), OverlayFailed(connection.number, reason)]
        if best != connection.chosen or event is OverlayEvent.ESTABLISHED:
            outputs.append(LinksChanged())
        if best != connection.chosen:
            connection.chosen = best
            text = f"overlay_switch ->[{connection.remote_text}] using {connection.switch.names[best]}"
            outputs.append(Note(Level.INFO, text))
        return outputs

    def _remove(self, connection: _Connection) -> list[Output]:
        del self._connections[connection.number]
        self._deadline_is_known = False
        if self._by_peer.get(connection.remote_name) != connection.number:
            return []  # a newer connection with the same peer has taken over
        del self._by_peer[connection.remote_name]
        return [LinksChanged()]

    # --- early heartbeats ---------------------------------------------------------------------------------------------

    def _source_of(self, vni: int) -> PeerName | None:
        """Return the peer a frame is from; None unless both short IDs of its VNI stand for somebody."""
        origin, destination = split_vni(vni)
        return None if self._directory.principal(destination) is None else self._directory.principal(origin)

    def _remember(self, uid: ConnectionUID, early: _EarlyHeartbeat) -> None:
        self._early.pop(uid, None)
        self._early[uid] = early
        if len(self._early) > REMEMBERED_MAX:
            del self._early[next(iter(self._early))]

    def _recall(self, uid: ConnectionUID, now_s: float) -> _EarlyHeartbeat | None:
        for known in list(self._early):
            if self._early[known].arrived_s + REMEMBERED_S < now_s:
                del self._early[known]
        return self._early.pop(uid, None)

    # --- texts --------------------------------------------------------------------------------------------------------

    def _peer_text(self, name: PeerName) -> str:
        return f"{format_peer_name(name)}({self._directory.nickname(name) or ''})"

    def _ignored(self, connection: _Connection, payload: bytes) -> Note:
        shown = payload[:2].hex() or "nothing"
        text = f"{connection.fastdp.log_prefix}ignoring an overlay control message that means nothing here: {shown}"
        return Note(Level.WARNING, text)
