"""Two ends of a sleeve joined by a path with an MTU, loss and NAT, in virtual time; and one end fed by hand."""

import random
from dataclasses import dataclass, field

import pytest

from weavenet.address import Address, Endpoint
from weavenet.effects import ConnectionNumber, LinksChanged, Note, SendSleeveFrame
from weavenet.identity import ConnectionUID, PeerName
from weavenet.overlay.choose import OverlayEvent
from weavenet.overlay.sleeve.link import (
    CONNECTION_ESTABLISHED,
    FRAGMENTATION_RECEIVED,
    MTU_INITIAL,
    PMTU_VERIFIED,
    Said,
    SendControl,
    SleeveIdentity,
    SleeveLink,
)
from weavenet.overlay.sleeve.wire import (
    UDP_OVERHEAD_BYTES,
    SpecialKind,
    encode_heartbeat,
    heartbeat_uid,
    overhead_bytes,
    special_kind_of,
)

UID = ConnectionUID(0x1122334455667788)
A, B = Endpoint(Address(0xC000_0201), 6783), Endpoint(Address(0xC000_0202), 6783)
NAT = Endpoint(Address(0xC633_6401), 40_000)


def make(remote: Endpoint | None, *, sealed: bool = False) -> SleeveLink:
    identity = SleeveIdentity(ConnectionNumber(1), UID, PeerName(1), "7a:00:00:00:00:01(host1)", sealed)
    return SleeveLink(identity, remote)


def frames(said: list[Said]) -> list[SendSleeveFrame]:
    return [one for one in said if isinstance(one, SendSleeveFrame)]


def controls(said: list[Said]) -> list[SendControl]:
    return [one for one in said if isinstance(one, SendControl)]


HEARTBEAT = SendSleeveFrame(ConnectionNumber(1), encode_heartbeat(UID), dont_fragment=True)


@dataclass
class Path:
    """What lies between `dialler` and `acceptor`: the kernels know `local_mtu`, and `path_mtu` is what passes."""

    sealed: bool = False
    local_mtu: int = 1500
    path_mtu: int = 1500
    fragments: bool = True
    loss: float = 0.0
    acceptor_sees: Endpoint = A
    rng: random.Random = field(default_factory=lambda: random.Random(1))
    now_s: float = 100.0
    events: list[tuple[str, OverlayEvent]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    control_loss: float = 0.0

    def __post_init__(self) -> None:
        self.ends = {"dialler": make(B, sealed=self.sealed), "acceptor": make(None, sealed=self.sealed)}
        self.overhead = overhead_bytes(sealed=self.sealed)
        for who in self.ends:
            self.take(who, self.ends[who].start(self.now_s))

    def other(self, who: str) -> str:
        return "acceptor" if who == "dialler" else "dialler"

    def take(self, who: str, said: list[Said]) -> None:
        for one in said:
            if isinstance(one, SendSleeveFrame):
                self.send(who, one)
            elif isinstance(one, SendControl):
                other = self.other(who)
                self.take(other, self.ends[other].control_received(one.tag, one.payload, self.now_s))
            elif isinstance(one, OverlayEvent):
                self.events.append((who, one))
            elif isinstance(one, Note):
                self.notes.append(one.text)

    def send(self, who: str, sent: SendSleeveFrame) -> None:
        packet = len(sent.frame) + self.overhead - 14
        if sent.dont_fragment and packet > self.local_mtu:
            self.take(who, self.ends[who].too_big(self.local_mtu, self.now_s))
            return
        if packet > self.path_mtu and (sent.dont_fragment or not self.fragments):
            return
        if self.rng.random() < self.loss:
            return
        other = self.other(who)
        link, kind = self.ends[other], special_kind_of(len(sent.frame))
        if kind is SpecialKind.HEARTBEAT:
            source = self.acceptor_sees if who == "dialler" else B
            self.take(other, link.heartbeat_received(heartbeat_uid(sent.frame), source, self.now_s))
        else:
            self.take(other, link.test_received(kind, len(sent.frame), intact=True))

    def run(self, seconds: float) -> None:
        end_s = self.now_s + seconds
        while True:
            who = min(self.ends, key=lambda name: self.ends[name].next_deadline())
            due_s = self.ends[who].next_deadline()
            if due_s > end_s:
                break
            self.now_s = max(self.now_s, due_s)
            self.take(who, self.ends[who].handle_timer(self.now_s))
            if OverlayEvent.FAILED in {event for _, event in self.events}:
                break
        self.now_s = end_s


@pytest.mark.parametrize(("sealed", "mtu"), [(False, 1438), (True, 1414)])
def test_over_a_usual_path_both_ends_establish_and_verify_its_mtu_at_once(sealed: bool, mtu: int) -> None:
    path = Path(sealed=sealed)
    path.run(0.0)
    assert sorted(path.events) == [("acceptor", OverlayEvent.ESTABLISHED), ("dialler", OverlayEvent.ESTABLISHED)]
    for link in path.ends.values():
        assert link.mtu_bytes == mtu
        assert link.payload_bytes_max == 1500 - UDP_OVERHEAD_BYTES
        assert link.fragments_pass
    assert path.notes.count(f"sleeve ->[192.0.2.2:6783|7a:00:00:00:00:01(host1)]: Effective MTU verified at {mtu}") == 1


@pytest.mark.parametrize("path_mtu", [700, 1000, 1280, 1400, 1499])
def test_a_path_smaller_than_the_kernel_knows_is_found_by_halving(path_mtu: int) -> None:
    path = Path(path_mtu=path_mtu)
    path.run(60.0)
    for link in path.ends.values():
        assert link.mtu_bytes == path_mtu - path.overhead


def test_a_path_where_fragments_die_is_noticed() -> None:
    path = Path(fragments=False)
    path.run(1.0)
    assert not any(link.fragments_pass for link in path.ends.values())
    path.fragments = True
    path.run(301.0)
    assert all(link.fragments_pass for link in path.ends.values())


def test_a_path_larger_than_the_probe_is_never_searched() -> None:
    path = Path(local_mtu=65_535, path_mtu=65_535)
    path.run(10.0)
    assert {link.mtu_bytes for link in path.ends.values()} == {MTU_INITIAL}


def test_lost_datagrams_delay_and_do_no_more() -> None:
    path = Path(loss=0.5)
    path.run(120.0)
    assert sorted(path.events) == [("acceptor", OverlayEvent.ESTABLISHED), ("dialler", OverlayEvent.ESTABLISHED)]
    assert {link.mtu_bytes for link in path.ends.values()} == {1438}


def test_behind_nat_the_acceptor_learns_where_the_dialler_is_from_its_datagrams() -> None:
    path = Path(acceptor_sees=NAT)
    assert path.ends["acceptor"].remote == NAT
    path.acceptor_sees = Endpoint(NAT.address, 40_001)
    path.run(11.0)
    assert path.ends["acceptor"].remote == Endpoint(NAT.address, 40_001)
    assert "Peer UDP address changed to 198.51.100.1:40001" in "\n".join(path.notes)


def test_sixty_silent_seconds_end_the_overlay() -> None:
    path = Path()
    path.loss = 1.0
    path.run(61.0)
    assert path.events[-1][1] is OverlayEvent.FAILED
    assert path.notes[-1].endswith("timed out waiting for UDP heartbeat")


def test_heartbeats_come_every_half_second_and_after_the_acknowledgement_every_ten() -> None:
    link = make(B)
    assert link.start(0.0) == [HEARTBEAT]
    assert link.next_deadline() == 0.5
    assert link.handle_timer(0.4) == []
    assert link.handle_timer(0.5) == [HEARTBEAT]
    said = link.control_received(CONNECTION_ESTABLISHED, b"", 0.7)
    assert said[0] is OverlayEvent.ESTABLISHED
    assert [len(one.frame) for one in frames(said)] == [60_001, 60_000]
    assert [one.dont_fragment for one in frames(said)] == [False, True]
    assert link.control_received(CONNECTION_ESTABLISHED, b"", 0.8) == []
    assert link.handle_timer(10.6) == []
    assert link.handle_timer(10.7) == [HEARTBEAT]


def test_an_acceptor_says_nothing_before_it_knows_where_to() -> None:
    link = make(None)
    assert link.start(0.0) == []
    assert link.next_deadline() == 60.0
    said = link.heartbeat_received(UID, A, 0.1)
    assert said == [LinksChanged(), HEARTBEAT, SendControl(CONNECTION_ESTABLISHED)]
    assert link.heartbeat_received(UID, A, 0.2) == []


def test_a_heartbeat_of_an_earlier_connection_means_nothing() -> None:
    link = make(None)
    link.start(0.0)
    assert link.heartbeat_received(ConnectionUID(1), A, 0.1) == []
    assert link.remote is None


def test_tests_are_confirmed_with_what_arrived() -> None:
    link = make(B)
    assert link.test_received(SpecialKind.MTU_TEST, 1452, intact=True) == [SendControl(PMTU_VERIFIED, b"\x05\x9e")]
    assert link.test_received(SpecialKind.FRAGMENTATION_TEST, 60_001, intact=True) == [
        SendControl(FRAGMENTATION_RECEIVED)
    ]
    assert link.test_received(SpecialKind.FRAGMENTATION_TEST, 60_001, intact=False) == []


def test_a_candidate_is_tried_eight_times_with_doubling_pauses() -> None:
    link = make(B)
    link.start(0.0)
    link.control_received(CONNECTION_ESTABLISHED, b"", 0.0)
    said = link.too_big(1500, 0.0)
    sent, waits, now_s = len(frames(said)), [], 0.0
    while sent < 8:
        waits.append(round(link.next_deadline() - now_s, 3))
        now_s = link.next_deadline()
        sent += len([one for one in frames(link.handle_timer(now_s)) if len(one.frame) == 1452])
    assert waits == [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64]
    link.handle_timer(now_s + 1.28)
    assert link.mtu_bytes == (552 + 1438) // 2


def test_a_confirmation_of_another_size_is_ignored_and_a_smaller_refusal_starts_anew() -> None:
    link = make(B)
    link.start(0.0)
    link.too_big(1500, 0.0)
    assert link.control_received(PMTU_VERIFIED, (59_986).to_bytes(2, "big"), 0.0) == []
    assert link.too_big(1600, 0.0) == []
    assert link.too_big(1400, 0.0) != []
    assert link.mtu_bytes == 1338
    link.control_received(PMTU_VERIFIED, (1338).to_bytes(2, "big"), 0.0)
    assert link.mtu_bytes == 1338
    assert link.payload_bytes_max == 1372


@pytest.mark.parametrize(("tag", "payload"), [(9, b""), (PMTU_VERIFIED, b"\1"), (0, b"x" * 100)])
def test_what_means_nothing_is_noted(tag: int, payload: bytes) -> None:
    (note,) = make(B).control_received(tag, payload, 0.0)
    assert isinstance(note, Note)
    assert "ignoring unknown control message" in note.text


def test_a_path_too_small_for_the_smallest_mtu_is_used_with_that() -> None:
    link = make(B)
    link.start(0.0)
    link.too_big(500, 0.0)
    assert link.mtu_bytes == 552
