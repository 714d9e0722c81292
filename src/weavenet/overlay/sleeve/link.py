"""The life of one connection's sleeve: heartbeats, and how large a datagram the path takes.

    we send heartbeats every 500 ms ─▶ they answer with control 1     the link is *established*; then one every 10 s
    they send heartbeats ─▶ we answer the first, and learn where they are: through NAT that is the only way to know
    60 s without one: the overlay has failed, for good

Two ways lead to the peer. On one the kernel may fragment; whether fragments arrive is tested every five minutes with a
frame that cannot but be fragmented. On the other it must not, and refuses what is larger than the path's MTU as it
knows it. A refusal starts a search for what really passes, between 552 and what the kernel believes: a test frame of a
candidate's size is sent up to eight times, with doubling pauses; if its receipt is confirmed (control 3) the candidate
is good, if not it is bad, and the next one is half-way between the best good and the worst bad. The candidate is used
at once, good or not. The very first refusal is provoked, by a frame larger than any path.

Source: docs/protocol/sleeve.md, B5 to B7. The datagrams themselves are made elsewhere (agent/forward.py); what is
decided here is when, and by which way.
"""

import msgspec

from weavenet.address import Endpoint
from weavenet.effects import ConnectionNumber, Level, LinksChanged, Note, Output, SendSleeveFrame
from weavenet.identity import ConnectionUID, PeerName
from weavenet.overlay.choose import OverlayEvent
from weavenet.overlay.heartbeat import Heard
from weavenet.overlay.sleeve.wire import (
    FRAGMENTATION_TEST_BYTES,
    PMTU_PROBE_BYTES,
    UDP_OVERHEAD_BYTES,
    SpecialKind,
    encode_heartbeat,
    overhead_bytes,
)

# specification
UNACKNOWLEDGED_INTERVAL_S = 0.5
ACKNOWLEDGED_INTERVAL_S = 10.0
TIMEOUT_S = 60.0
FRAGMENTATION_TEST_INTERVAL_S = 300.0
MTU_GOOD_MIN = 552
MTU_INITIAL = 65_535
_MTU_TEST_ATTEMPTS = 8
_MTU_TEST_WAIT_S = 0.01  # doubled after each attempt
_ETHERNET_HEADER_BYTES = 14

CONNECTION_ESTABLISHED, FRAGMENTATION_RECEIVED, PMTU_VERIFIED = 1, 2, 3


class SendControl(msgspec.Struct, frozen=True):
    """Ask for a control message to the peer's sleeve, over the connection. Whoever knows the index adds it."""

    tag: int
    payload: bytes = b""


class SleeveIdentity(msgspec.Struct, frozen=True):
    """What stays the same during the life of a link."""

    connection: ConnectionNumber
    uid: ConnectionUID
    remote_name: PeerName
    remote_text: str  # name(nickname)
    sealed: bool


class _Search(msgspec.Struct):
    good: int
    bad: int
    candidate: int
    attempts: int = 0
    due_s: float = 0.0


Said = Output | OverlayEvent | SendControl


class SleeveLink:
    """One connection's sleeve: driven by its special frames, control messages, what the kernel refuses, and time."""

    def __init__(self, identity: SleeveIdentity, remote: Endpoint | None) -> None:
        """Know whom to talk to; `remote` is known if we dialled. `start` begins."""
        self.identity = identity
        self.remote = remote
        self.mtu_bytes = MTU_INITIAL
        self.payload_bytes_max = MTU_INITIAL - UDP_OVERHEAD_BYTES
        self.fragments_pass = False
        self._overhead_bytes = overhead_bytes(sealed=identity.sealed)
        self._acknowledged = False
        self._heard = False
        self._heartbeat_due_s: float | None = None
        self._timeout_due_s = 0.0
        self._fragmentation_due_s: float | None = None
        self._search: _Search | None = None

    @property
    def log_prefix(self) -> str:
        """How Weave begins a line about a link."""
        return f"sleeve ->[{self.remote or '<unknown>'}|{self.identity.remote_text}]: "

    @property
    def heard(self) -> Heard:
        """What has come of the heartbeats until now."""
        return Heard(theirs=self._heard, ours=self._acknowledged)

    def start(self, now_s: float) -> list[Said]:
        """Begin: the first heartbeat goes out if it is known where to, and theirs must come within 60 s."""
        self._timeout_due_s = now_s + TIMEOUT_S
        return self._send_heartbeat(now_s)

    def heartbeat_received(self, uid: ConnectionUID, source: Endpoint, now_s: float) -> list[Said]:
        """Take a heartbeat that came from there. One of another connection, such as a former one, means nothing."""
        if uid != self.identity.uid:
            return []
        said: list[Said] = []
        first = self.remote is None
        if source != self.remote:
            if not first:
                said.append(Note(Level.INFO, f"{self.log_prefix}Peer UDP address changed to {source}"))
            self.remote = source
            said.append(LinksChanged())
            if first:
                said += self._send_heartbeat(now_s)
        if not self._heard:
            self._heard = True
            said.append(SendControl(CONNECTION_ESTABLISHED))
            if not self._acknowledged and not first:
                # Ours, sent when the connection was added here, may have come before it was added there.
                said += self._send_heartbeat(now_s)
        self._timeout_due_s = now_s + TIMEOUT_S
        return said

    def test_received(self, kind: SpecialKind, length: int, *, intact: bool) -> list[Said]:
        """Confirm a test frame; `intact` is whether it was all zeros, which a fragmentation test must be."""
        if kind is SpecialKind.FRAGMENTATION_TEST:
            return [SendControl(FRAGMENTATION_RECEIVED)] if intact else []
        assert kind is SpecialKind.MTU_TEST
        size = length - _ETHERNET_HEADER_BYTES
        return [SendControl(PMTU_VERIFIED, (size & 0xFFFF).to_bytes(2, "big"))]

    def control_received(self, tag: int, payload: bytes, now_s: float) -> list[Said]:
        """Take what the peer's sleeve says. What means nothing is noted and ignored."""
        match tag:
            case value if value == CONNECTION_ESTABLISHED:
                return self._established(now_s)
            case value if value == FRAGMENTATION_RECEIVED:
                changed, self.fragments_pass = not self.fragments_pass, True
                return [LinksChanged()] if changed else []
            case value if value == PMTU_VERIFIED and len(payload) >= 2:
                return self._verified(int.from_bytes(payload[:2], "big"), now_s)
            case _:
                shown = bytes((tag,)).hex() + payload[:8].hex()
                return [Note(Level.WARNING, f"{self.log_prefix}ignoring unknown control message: {shown}")]

    def too_big(self, pmtu_bytes: int, now_s: float) -> list[Said]:
        """Learn that the kernel refused something: the path, as it knows it, takes packets of that many bytes."""
        candidate = pmtu_bytes - self._overhead_bytes
        if self._search is not None and candidate >= self._search.candidate:
            return []
        candidate = max(candidate, MTU_GOOD_MIN)
        self._search = _Search(MTU_GOOD_MIN, candidate + 1, candidate)
        self.mtu_bytes, self.payload_bytes_max = candidate, pmtu_bytes - UDP_OVERHEAD_BYTES
        return [LinksChanged(), *self._test(now_s)]

    def send_failed(self, error: str) -> list[Said]:
        """Learn that the kernel will not send to the peer at all."""
        return [Note(Level.WARNING, f"{self.log_prefix}{error}"), OverlayEvent.FAILED]

    def next_deadline(self) -> float:
        """Monotonic seconds at which handle_timer has something to do."""
        due = [self._timeout_due_s]
        if self._heartbeat_due_s is not None:
            due.append(self._heartbeat_due_s)
        if self._fragmentation_due_s is not None:
            due.append(self._fragmentation_due_s)
        if self._search is not None:
            due.append(self._search.due_s)
        return min(due)

    def handle_timer(self, now_s: float) -> list[Said]:
        """Do what has become due."""
        if now_s >= self._timeout_due_s:
            return self.send_failed("timed out waiting for UDP heartbeat")
        said: list[Said] = []
        if self._heartbeat_due_s is not None and now_s >= self._heartbeat_due_s:
            said += self._send_heartbeat(now_s)
        if self._fragmentation_due_s is not None and now_s >= self._fragmentation_due_s:
            said += self._test_fragmentation(now_s)
        if self._search is not None and now_s >= self._search.due_s:
            said += self._not_confirmed(now_s)
        return said

    # --- heartbeats ---------------------------------------------------------------------------------------------------

    def _send_heartbeat(self, now_s: float) -> list[Said]:
        if self.remote is None:
            return []
        self._heartbeat_due_s = now_s + (ACKNOWLEDGED_INTERVAL_S if self._acknowledged else UNACKNOWLEDGED_INTERVAL_S)
        return [self._special(encode_heartbeat(self.identity.uid))]

    def _established(self, now_s: float) -> list[Said]:
        if self._acknowledged:
            return []
        self._acknowledged = True
        self._heartbeat_due_s = now_s + ACKNOWLEDGED_INTERVAL_S
        probe = self._special(bytes(PMTU_PROBE_BYTES))
        return [OverlayEvent.ESTABLISHED, *self._test_fragmentation(now_s), probe]

    # --- what passes --------------------------------------------------------------------------------------------------

    def _test_fragmentation(self, now_s: float) -> list[Said]:
        self._fragmentation_due_s = now_s + FRAGMENTATION_TEST_INTERVAL_S
        changed, self.fragments_pass = self.fragments_pass, False
        test = self._special(bytes(FRAGMENTATION_TEST_BYTES), dont_fragment=False)
        return [LinksChanged(), test] if changed else [test]

    def _test(self, now_s: float) -> list[Said]:
        search = self._search
        assert search is not None
        search.due_s = now_s + _MTU_TEST_WAIT_S * 2**search.attempts
        search.attempts += 1
        return [self._special(bytes(search.candidate + _ETHERNET_HEADER_BYTES))]

    def _not_confirmed(self, now_s: float) -> list[Said]:
        search = self._search
        assert search is not None
        if search.attempts < _MTU_TEST_ATTEMPTS:
            return self._test(now_s)
        search.bad = search.candidate
        return self._narrow(now_s)

    def _verified(self, size: int, now_s: float) -> list[Said]:
        if self._search is None or size != self._search.candidate:
            return []
        self._search.good = size
        return self._narrow(now_s)

    def _narrow(self, now_s: float) -> list[Said]:
        search = self._search
        assert search is not None
        if search.good + 1 >= search.bad:
            self._search = None
            self.mtu_bytes = search.good
            self.payload_bytes_max = search.good + self._overhead_bytes - UDP_OVERHEAD_BYTES
            return [LinksChanged(), Note(Level.INFO, f"{self.log_prefix}Effective MTU verified at {search.good}")]
        search.candidate = (search.good + search.bad) // 2
        search.attempts = 0
        self.mtu_bytes = search.candidate
        return [LinksChanged(), *self._test(now_s)]

    def _special(self, frame: bytes, *, dont_fragment: bool = True) -> SendSleeveFrame:
        return SendSleeveFrame(self.identity.connection, frame, dont_fragment)
