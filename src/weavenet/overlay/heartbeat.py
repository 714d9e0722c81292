"""Heartbeats of fastdp: the frame, and the life of one link as its heartbeats tell it.

    offset  0  14  zero: both MACs and the EtherType, which marks a special frame
           14   8  connection UID, big-endian
           22   2  length of the whole frame modulo 65536, big-endian
           24      zeros, up to 14 + the interface's MTU

A heartbeat is as long as the largest data frame, so one that arrives whole proves that full-size frames pass; the
length field makes one that was cut or padded on the way invalid. The ends may have different MTUs.

    we send ──▶ they acknowledge over TCP     the link is *established*; from 500 ms we go to one every 10 s
    they send ─▶ we acknowledge the first     60 s without one: *unhealthy*, until the next arrives

Weave's first heartbeat usually comes too early: it is sent when the sender has added the connection, and thrown away
by a receiver that has not, so that establishing takes 500 ms more. We do two things about it, and both are invisible to
the other side. A heartbeat that matches nothing is kept for a moment (fastdp.py) and counts when its connection
appears. And a heartbeat that arrives while ours is unacknowledged shows that the other side is ready now, so ours goes
out again at once, one time. Source: docs/protocol.md, "fastdp: connection life" and "fastdp: heartbeat frame".
"""

import msgspec

from weavenet.address import Address, Endpoint, format_address
from weavenet.codec.vxlan import pack_vni
from weavenet.effects import ConnectionNumber, Level, LinksChanged, Note, Output, SendOverlayControl, SendSpecialFrame
from weavenet.identity import ConnectionUID, PeerName
from weavenet.overlay.choose import OverlayEvent
from weavenet.overlay.forwarding import ShortIDs

# specification
ETHERNET_HEADER_BYTES = 14
HEARTBEAT_BYTES_MIN = 24
UNACKNOWLEDGED_INTERVAL_S = 0.5
ACKNOWLEDGED_INTERVAL_S = 10.0
TIMEOUT_S = 60.0
HEARTBEAT_ACK = 0  # overlay control tag

_LENGTH_MODULUS = 1 << 16


def encode_heartbeat(uid: ConnectionUID, mtu_bytes: int) -> bytes:
    """Write the heartbeat frame of a connection over an interface of that MTU."""
    length = max(HEARTBEAT_BYTES_MIN, ETHERNET_HEADER_BYTES + mtu_bytes)
    head = bytes(ETHERNET_HEADER_BYTES) + uid.to_bytes(8, "big") + (length % _LENGTH_MODULUS).to_bytes(2, "big")
    return head.ljust(length, b"\0")


def heartbeat_uid(length: int, head: bytes) -> ConnectionUID | None:
    """Return the connection UID of a special frame, given its length as received and at least its first 24 bytes.

    None if it is no heartbeat, or did not arrive as it was sent. That its MACs are zero is for the caller to know.
    """
    if length < HEARTBEAT_BYTES_MIN or len(head) < HEARTBEAT_BYTES_MIN:
        return None
    if head[12:14] != b"\0\0" or int.from_bytes(head[22:24], "big") != length % _LENGTH_MODULUS:
        return None
    return ConnectionUID(int.from_bytes(head[14:22], "big"))


class Heard(msgspec.Struct, frozen=True):
    """Which heartbeats of a link have arrived at least once."""

    theirs: bool
    ours: bool

    def doubt(self, port: int) -> str:
        """Say what stands between an overlay and its being established."""
        if self.theirs and not self.ours:
            return f"the peer's heartbeats come, ours are not acknowledged: is UDP port {port} open towards the peer?"
        if self.ours and not self.theirs:
            return f"our heartbeats are acknowledged, the peer's do not come: is UDP port {port} open towards us?"
        return f"no heartbeat has come yet, and none of ours is acknowledged: is UDP port {port} open both ways?"


class LinkIdentity(msgspec.Struct, frozen=True):
    """What stays the same during the life of a link."""

    connection: ConnectionNumber
    index: int  # of fastdp in the connection's list of overlays
    uid: ConnectionUID
    remote_name: PeerName
    remote_text: str  # name(nickname)


class FastdpLink:
    """One connection's fastdp: driven by heartbeats, acknowledgements and time."""

    def __init__(self, identity: LinkIdentity, remote: Endpoint, *, short_ids: ShortIDs, mtu_bytes: int) -> None:
        """Know whom to talk to; `start` begins."""
        self.identity = identity
        self.remote = remote
        self._short_ids = short_ids
        self._mtu_bytes = mtu_bytes
        self._acknowledged = False
        self._heard = False
        self._healthy = True
        self._sent_on_hearing = False
        self._heartbeat_due_s = 0.0
        self._timeout_due_s: float | None = None

    @property
    def log_prefix(self) -> str:
        """How Weave begins a line about a link."""
        return f"fastdp ->[{self.remote}|{self.identity.remote_text}]: "

    @property
    def heard(self) -> Heard:
        """What has come of the heartbeats until now."""
        return Heard(theirs=self._heard, ours=self._acknowledged)

    def start(self, now_s: float) -> list[Output | OverlayEvent]:
        """Send the first heartbeat; the other side's must come within 60 s."""
        self._timeout_due_s = now_s + TIMEOUT_S
        return self._send_heartbeat(now_s)

    def heartbeat_received(self, remote: Address, now_s: float) -> list[Output | OverlayEvent]:
        """Take a valid heartbeat of this connection, which came from that outer address."""
        outputs: list[Output | OverlayEvent] = []
        if remote != self.remote.address:
            text = f"{self.log_prefix}Peer IP address changed to {format_address(remote)}"
            self.remote = Endpoint(remote, self.remote.port)
            outputs += [Note(Level.INFO, text), LinksChanged()]
        if not self._heard:
            self._heard = True
            payload = bytes((self.identity.index, HEARTBEAT_ACK))
            outputs.append(SendOverlayControl(self.identity.connection, payload))
        self._timeout_due_s = now_s + TIMEOUT_S
        if not self._healthy:
            self._healthy = True
            outputs.append(OverlayEvent.HEALTHY)
        if not self._acknowledged and not self._sent_on_hearing:
            self._sent_on_hearing = True
            outputs += self._send_heartbeat(now_s)
        return outputs

    def heartbeat_replayed(self, remote: Address, now_s: float) -> list[Output | OverlayEvent]:
        """Take a heartbeat that came before the connection was added; ours has just gone out and needs no repeating."""
        self._sent_on_hearing = True
        return self.heartbeat_received(remote, now_s)

    def acknowledged(self, now_s: float) -> list[Output | OverlayEvent]:
        """Take the other side's acknowledgement of our heartbeat; only the first one says anything."""
        if self._acknowledged:
            return []
        self._acknowledged = True
        self._heartbeat_due_s = now_s + ACKNOWLEDGED_INTERVAL_S
        return [OverlayEvent.ESTABLISHED]

    def next_deadline(self) -> float:
        """Monotonic seconds of the next heartbeat or timeout."""
        return self._heartbeat_due_s if self._timeout_due_s is None else min(self._heartbeat_due_s, self._timeout_due_s)

    def handle_timer(self, now_s: float) -> list[Output | OverlayEvent]:
        """Do what has become due."""
        outputs: list[Output | OverlayEvent] = []
        if self._timeout_due_s is not None and now_s >= self._timeout_due_s:
            self._timeout_due_s = None
            self._healthy = False
            text = f"{self.log_prefix}no heartbeat for {TIMEOUT_S:.0f} s"
            outputs += [Note(Level.WARNING, text), OverlayEvent.UNHEALTHY]
        if now_s >= self._heartbeat_due_s:
            outputs += self._send_heartbeat(now_s)
        return outputs

    def _send_heartbeat(self, now_s: float) -> list[Output | OverlayEvent]:
        quick = self._healthy and not self._acknowledged
        self._heartbeat_due_s = now_s + (UNACKNOWLEDGED_INTERVAL_S if quick else ACKNOWLEDGED_INTERVAL_S)
        theirs = self._short_ids.of(self.identity.remote_name)
        if theirs is None:  # not told yet; without it there is no VNI to send to, and the next attempt is on its way
            return []
        vni = pack_vni(self._short_ids.ours(), theirs)
        return [SendSpecialFrame(self.remote, vni, encode_heartbeat(self.identity.uid, self._mtu_bytes))]
