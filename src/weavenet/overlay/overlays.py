"""The overlays of all connections: which of them run, over which one traffic goes, and what to tell the mesh.

    mesh ──ConnectionAdded──▶ one row per connection: the overlays both sides have, prepared and started
         ──control messages─▶ to the overlay with that index
    frames with zero MACs ──▶ a heartbeat, by VXLAN to fastdp, by UDP to sleeve
         ◀─OverlayEstablished, OverlayFailed─ the first one that works; none is left

All common overlays run at the same time. Traffic takes the best (choose.py): normally fastdp, while sleeve stands by;
if fastdp falls silent traffic moves to sleeve, and back when it is heard again. One that cannot be prepared keeps its
index and is noted, with the reason.

fastdp's port rule: a link uses *the acceptor's* fastdp port, which is its mesh port + 1, in both directions
(docs/protocol.md, "fastdp: ports"). We have one VXLAN device and so one port; a peer dialled at another port than ours
therefore cannot be reached by it. Nor can one whose traffic must be encrypted: that is Weave's IPsec, which is not
here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import Enum
from typing import Protocol

import msgspec

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
    OverlayKeysChanged,
    SendOverlayControl,
)
from weavenet.identity import PeerName, format_peer_name
from weavenet.overlay.choose import NO_COMMON_OVERLAY, OverlayEvent, Switch, negotiate
from weavenet.overlay.early import EarlyHeartbeat, EarlyHeartbeats
from weavenet.overlay.forwarding import FASTDP, SLEEVE, Link, ShortIDs
from weavenet.overlay.heartbeat import (
    ETHERNET_HEADER_BYTES,
    HEARTBEAT_ACK,
    TIMEOUT_S,
    FastdpLink,
    LinkIdentity,
    heartbeat_uid,
)
from weavenet.overlay.sleeve.fast_wire import FAST_FORMAT
from weavenet.overlay.sleeve.link import Said, SendControl, SleeveIdentity, SleeveLink
from weavenet.overlay.sleeve.wire import SpecialKind, special_kind_of
from weavenet.overlay.sleeve.wire import heartbeat_uid as sleeve_heartbeat_uid


class PeerDirectory(ShortIDs, Protocol):
    """What overlays need to know of the mesh."""

    def nickname(self, peer: PeerName) -> str | None:
        """Return what a peer calls itself, for people to read."""
        ...


class State(Enum):
    """How an overlay stands in a connection."""

    IN_USE = "in use"
    STANDS_BY = "stands by"  # established, and a better one is in use
    TRYING = "trying"
    SILENT = "silent"  # established, but nothing has been heard for too long
    FAILED = "failed"  # for good
    NOT_OFFERED = "not offered"


class Standing(msgspec.Struct, frozen=True):
    """One overlay of a connection: how it stands, and why it is not in use; blank where there is nothing to explain."""

    overlay: str
    state: State
    reason: str


class _Connection(msgspec.Struct):
    added: ConnectionAdded
    remote_text: str
    switch: Switch
    fastdp: FastdpLink | None = None
    sleeve: SleeveLink | None = None
    opening: tuple[bytes, ...] = ()  # keys that sleeve's datagrams may be sealed with
    chosen: int | None = None  # None until the first event, as nothing is known before
    trouble: str = ""  # of the overlay that failed last
    troubles: dict[str, str] = msgspec.field(default_factory=dict)  # of each that failed or fell silent: why

    @property
    def number(self) -> ConnectionNumber:
        return self.added.connection

    def next_deadline(self) -> float | None:
        links = (self.fastdp, self.sleeve)
        return min((link.next_deadline() for link in links if link is not None), default=None)


class Overlays:
    """Driven by the mesh's signals, special frames, what the kernel refuses, and a timer."""

    def __init__(
        self,
        *,
        short_ids: PeerDirectory,
        mtu_bytes: int,
        port: int,
        names: Sequence[str] = (FASTDP,),
        sleeve_formats: Sequence[str] = (),
    ) -> None:
        """Serve one VXLAN device: its MTU, and its UDP port, which is our mesh port + 1; `names` in our preference.

        `sleeve_formats` are those that we understand beside Weave's.
        """
        self._directory = short_ids
        self._mtu_bytes = mtu_bytes
        self._port = port
        self._names = tuple(names)
        self._sleeve_formats = frozenset(sleeve_formats)
        self._connections: dict[ConnectionNumber, _Connection] = {}
        self._by_peer: dict[PeerName, ConnectionNumber] = {}
        self._early = EarlyHeartbeats()
        # What next_deadline answers, until a link hears or does something: it is asked after every input of the node.
        self._deadline_s: float | None = None
        self._deadline_is_known = False

    # --- the mesh tells -----------------------------------------------------------------------------------------------

    def connection_added(self, added: ConnectionAdded, now: Now) -> list[Output]:
        """Start the overlays that both sides have and that can work over this connection."""
        peer = self._peer_text(added.remote_name)
        bare = added.overlays is None and SLEEVE in self._names
        names = (SLEEVE,) if bare else negotiate(self._names, added.overlays)
        if not names:
            return [OverlayFailed(added.connection, NO_COMMON_OVERLAY)]
        opening = () if added.overlay_key is None else (added.overlay_key,)
        connection = _Connection(added, peer, Switch(names), opening=opening)
        outputs: list[Output] = []
        for index, name in enumerate(names):
            obstacle = self._prepare(connection, index, name)
            if obstacle:
                connection.switch.apply(index, OverlayEvent.FAILED)
                connection.trouble = f"{name}: {obstacle}"
                connection.troubles[name] = obstacle
                outputs.append(Note(Level.WARNING, f"Unable to use {name} for connection to {peer}: {obstacle}"))
        if connection.fastdp is None and connection.sleeve is None:
            return [
                *outputs,
                OverlayFailed(added.connection, f"no working forwarders to {peer}: {connection.trouble}"),
            ]
        self._connections[added.connection] = connection
        if added.remote_name in self._by_peer:
            outputs.append(LinksChanged())
        self._by_peer[added.remote_name] = added.connection
        return [*outputs, *self._start(connection, now.monotonic_s)]

    def connection_gone(self, gone: ConnectionGone, now: Now) -> list[Output]:  # noqa: ARG002 - every input has a time
        """Forget a connection."""
        connection = self._connections.get(gone.connection)
        return [] if connection is None else self._remove(connection)

    def control_arrived(self, arrived: OverlayControlArrived, now: Now) -> list[Output]:
        """Take a control message. What is malformed or unknown is noted and ignored: newer peers may know more tags."""
        connection = self._connections.get(arrived.connection)
        if connection is None:
            return []
        payload = arrived.payload
        bare = connection.added.overlays is None
        if arrived.bare != bare or len(payload) < 2 or payload[0] >= len(connection.switch.names):
            return [self._ignored(connection, payload)]
        index, tag = payload[:2]
        name = connection.switch.names[index]
        if name == FASTDP and connection.fastdp is not None and tag == HEARTBEAT_ACK:
            return self._settle(connection, FASTDP, connection.fastdp.acknowledged(now.monotonic_s))
        if name == SLEEVE and connection.sleeve is not None:
            said = connection.sleeve.control_received(tag, payload[2:], now.monotonic_s)
            return self._settle(connection, SLEEVE, said)
        return [self._ignored(connection, payload)]

    def keys_changed(self, changed: OverlayKeysChanged) -> list[Output]:
        """Seal and open with other keys. Only sleeve does."""
        connection = self._connections.get(changed.connection)
        if connection is None:
            return []
        connection.added = replace(connection.added, overlay_key=changed.sealing)
        connection.opening = changed.opening
        return [LinksChanged()]

    # --- frames tell --------------------------------------------------------------------------------------------------

    def special_frame(self, vni: int, remote: Address, length: int, head: bytes, now: Now) -> list[Output]:
        """Take a frame with both MACs zero that came by VXLAN: its VNI, outer source, whole length, first bytes.

        Counts as a heartbeat of the connection with the VNI's source peer, if it has that connection's UID.
        """
        uid = heartbeat_uid(length, head)
        if uid is None:
            return []
        source = self._source_of(vni)
        number = None if source is None else self._by_peer.get(source)
        connection = None if number is None else self._connections[number]
        if connection is None or connection.added.uid != uid:
            self._early.keep(uid, EarlyHeartbeat(vni, remote, now.monotonic_s))
            return []
        if connection.fastdp is None:
            return []
        return self._settle(connection, FASTDP, connection.fastdp.heartbeat_received(remote, now.monotonic_s))

    def sleeve_frame(
        self, number: ConnectionNumber, remote: Endpoint, length: int, head: bytes, *, intact: bool, now: Now
    ) -> list[Output]:
        """Take a frame with both MACs zero that came by sleeve: where from, whole length, first bytes, all zeros."""
        connection = self._connections.get(number)
        if connection is None or connection.sleeve is None:
            return []
        kind = special_kind_of(length)
        if kind is SpecialKind.HEARTBEAT:
            said = connection.sleeve.heartbeat_received(sleeve_heartbeat_uid(head), remote, now.monotonic_s)
        else:
            said = connection.sleeve.test_received(kind, length, intact=intact)
        return self._settle(connection, SLEEVE, said)

    def sleeve_too_big(self, number: ConnectionNumber, pmtu_bytes: int, now: Now) -> list[Output]:
        """Learn that the kernel refused to send a datagram, as the path takes no more than that."""
        connection = self._connections.get(number)
        if connection is None or connection.sleeve is None:
            return []
        return self._settle(connection, SLEEVE, connection.sleeve.too_big(pmtu_bytes, now.monotonic_s))

    def sleeve_failed(self, number: ConnectionNumber, error: str) -> list[Output]:
        """Learn that datagrams to the peer cannot be sent at all."""
        connection = self._connections.get(number)
        if connection is None or connection.sleeve is None:
            return []
        return self._settle(connection, SLEEVE, connection.sleeve.send_failed(error))

    def handle_timer(self, now: Now) -> list[Output]:
        """Send the heartbeats and notice the silences that have become due."""
        outputs: list[Output] = []
        for number in sorted(self._connections):
            connection = self._connections[number]
            for name, link in ((FASTDP, connection.fastdp), (SLEEVE, connection.sleeve)):
                if link is not None and link.next_deadline() <= now.monotonic_s:
                    outputs += self._settle(connection, name, link.handle_timer(now.monotonic_s))
        return outputs

    # --- views --------------------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """Monotonic seconds at which handle_timer has something to do."""
        if not self._deadline_is_known:
            deadlines = (connection.next_deadline() for connection in self._connections.values())
            self._deadline_s = min((due for due in deadlines if due is not None), default=None)
            self._deadline_is_known = True
        return self._deadline_s

    def links(self) -> Mapping[PeerName, Link]:
        """Return how each peer with a connection is reached, in the order of names."""
        return {name: self._link(self._connections[self._by_peer[name]]) for name in sorted(self._by_peer)}

    def sleeves(self) -> Mapping[PeerName, tuple[ConnectionAdded, SleeveLink, tuple[bytes, ...]]]:
        """Return the sleeve of each peer that has one, and what opens its datagrams, in the order of names."""
        found: dict[PeerName, tuple[ConnectionAdded, SleeveLink, tuple[bytes, ...]]] = {}
        for name in sorted(self._by_peer):
            connection = self._connections[self._by_peer[name]]
            if connection.sleeve is not None:
                found[name] = (connection.added, connection.sleeve, connection.opening)
        return found

    def standings(self) -> Mapping[PeerName, tuple[Standing, ...]]:
        """Return how each overlay stands in each connection, those that both sides have first, best first."""
        return {name: self._standings(self._connections[number]) for name, number in sorted(self._by_peer.items())}

    def _standings(self, connection: _Connection) -> tuple[Standing, ...]:
        switch, theirs = connection.switch, connection.added.overlays
        found = [self._standing(connection, index, name) for index, name in enumerate(switch.names)]
        found += [
            Standing(name, State.NOT_OFFERED, "the peer does not offer it")
            for name in self._names
            if name not in switch.names
        ]
        found += [
            Standing(name, State.NOT_OFFERED, "it is switched off here")
            for name in theirs or ()
            if name in {FASTDP, SLEEVE} and name not in self._names
        ]
        return tuple(found)

    def _standing(self, connection: _Connection, index: int, name: str) -> Standing:
        switch, trouble = connection.switch, connection.troubles.get(name, "")
        if switch.has_failed(index):
            return Standing(name, State.FAILED, trouble)
        if switch.is_on_hold(index):
            return Standing(name, State.SILENT, trouble)
        if switch.is_established(index):
            return Standing(name, State.IN_USE if index == connection.chosen else State.STANDS_BY, "")
        link = connection.fastdp if name == FASTDP else connection.sleeve
        port = self._port if name == FASTDP else self._port - 1
        return Standing(name, State.TRYING, "" if link is None else link.heard.doubt(port))

    def has_fast_sleeve(self, added: ConnectionAdded) -> bool:
        """Whether both ends of a connection understand sleeve's fast format."""
        return FAST_FORMAT in self._sleeve_formats and FAST_FORMAT in added.sleeve_formats

    def _link(self, connection: _Connection) -> Link:
        index = connection.chosen or 0
        overlay = connection.switch.names[index]
        sleeve = connection.sleeve if overlay == SLEEVE else None
        if sleeve is not None:
            remote, mtu = sleeve.remote, sleeve.mtu_bytes
        else:
            remote, mtu = connection.fastdp.remote if connection.fastdp is not None else None, self._mtu_bytes
        return Link(
            remote or connection.added.remote,
            overlay,
            connection.switch.is_established(index),
            mtu,
            is_fast=sleeve is not None and self.has_fast_sleeve(connection.added),
        )

    # --- decisions ----------------------------------------------------------------------------------------------------

    def _prepare(self, connection: _Connection, index: int, name: str) -> str:
        """Make an overlay of a connection; return why it cannot be used, blank if it can."""
        added = connection.added
        if name == SLEEVE:
            identity = SleeveIdentity(
                added.connection, added.uid, added.remote_name, connection.remote_text, added.overlay_key is not None
            )
            connection.sleeve = SleeveLink(identity, added.remote if added.outbound else None)
            return ""
        reason = self._fastdp_obstacle(added)
        if not reason:
            identity_of_link = LinkIdentity(
                added.connection, index, added.uid, added.remote_name, connection.remote_text
            )
            connection.fastdp = FastdpLink(
                identity_of_link,
                Endpoint(added.remote.address, self._port),
                short_ids=self._directory,
                mtu_bytes=self._mtu_bytes,
            )
        return reason

    def _fastdp_obstacle(self, added: ConnectionAdded) -> str:
        if added.overlay_key is not None:
            return (
                "encrypted overlay traffic is not supported by it; start both peers without a password, "
                "or name each other's subnet in --trusted-subnets"
            )
        if added.outbound and added.remote.port + 1 != self._port:
            return (
                f"the peer was dialled at port {added.remote.port}, so its fastdp port is {added.remote.port + 1}, "
                f"and ours is {self._port}; start both peers with the same --port"
            )
        return ""

    def _start(self, connection: _Connection, now_s: float) -> list[Output]:
        outputs: list[Output] = []
        if connection.fastdp is not None:
            said = connection.fastdp.start(now_s)
            early = self._early.take(connection.added.uid, now_s)
            if early is not None and self._source_of(early.vni) == connection.added.remote_name:
                said += connection.fastdp.heartbeat_replayed(early.remote, now_s)
            outputs += self._settle(connection, FASTDP, said)
        if connection.sleeve is not None:
            outputs += self._settle(connection, SLEEVE, connection.sleeve.start(now_s))
        return outputs

    def _settle(self, connection: _Connection, name: str, said: Sequence[Said]) -> list[Output]:
        """Put what follows from an overlay's events in their place. The last step when something happened to one."""
        self._deadline_is_known = False
        settled: list[Output] = []
        index = connection.switch.names.index(name)
        for output in said:
            if isinstance(output, OverlayEvent):
                settled += self._event(connection, index, output)
            elif isinstance(output, SendControl):
                bare = connection.added.overlays is None
                payload = bytes((index, output.tag)) + output.payload
                settled.append(SendOverlayControl(connection.number, payload, bare=bare))
            else:
                settled.append(output)
        return settled

    def _event(self, connection: _Connection, index: int, event: OverlayEvent) -> list[Output]:
        was_established = connection.switch.established
        connection.switch.apply(index, event)
        outputs: list[Output] = []
        if connection.switch.established and not was_established:
            outputs.append(OverlayEstablished(connection.number))
        if event in {OverlayEvent.FAILED, OverlayEvent.UNHEALTHY}:
            name = connection.switch.names[index]
            connection.troubles[name] = self._silence(name)
            connection.trouble = f"{name}: {connection.troubles[name]}"
            if event is OverlayEvent.FAILED and name == SLEEVE:
                connection.sleeve = None
        best = connection.switch.best()
        if best is None:
            reason = f"no working forwarders to {connection.remote_text}: {connection.trouble}"
            return [*outputs, *self._remove(connection), OverlayFailed(connection.number, reason)]
        if best != connection.chosen or event is OverlayEvent.ESTABLISHED:
            outputs.append(LinksChanged())
        if best != connection.chosen:
            connection.chosen = best
            text = f"overlay_switch ->[{connection.remote_text}] using {connection.switch.names[best]}"
            outputs.append(Note(Level.INFO, text))
        return outputs

    def _silence(self, name: str) -> str:
        if name == SLEEVE:
            return f"no heartbeat for {TIMEOUT_S:.0f} s; is UDP port {self._port - 1} open both ways?"
        return (
            f"no heartbeat for {TIMEOUT_S:.0f} s; is UDP port {self._port} open both ways, "
            f"for inner frames of {ETHERNET_HEADER_BYTES + self._mtu_bytes} bytes?"
        )

    def _remove(self, connection: _Connection) -> list[Output]:
        self._deadline_is_known = False
        del self._connections[connection.number]
        if self._by_peer.get(connection.added.remote_name) != connection.number:
            return []  # a newer connection with the same peer has taken over
        del self._by_peer[connection.added.remote_name]
        return [LinksChanged()]

    def _source_of(self, vni: int) -> PeerName | None:
        """Return the peer a frame is from; None unless both short IDs of its VNI stand for somebody."""
        origin, destination = split_vni(vni)
        return None if self._directory.principal(destination) is None else self._directory.principal(origin)

    # --- texts --------------------------------------------------------------------------------------------------------

    def _peer_text(self, name: PeerName) -> str:
        return f"{format_peer_name(name)}({self._directory.nickname(name) or ''})"

    @staticmethod
    def _ignored(connection: _Connection, payload: bytes) -> Note:
        shown = payload[:2].hex() or "nothing"
        link = connection.fastdp or connection.sleeve
        prefix = link.log_prefix if link is not None else ""
        return Note(Level.WARNING, f"{prefix}ignoring an overlay control message that means nothing here: {shown}")
