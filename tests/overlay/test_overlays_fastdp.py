"""The overlays as the mesh sees them: two of them joined by a lossy wire, or one of them fed by hand."""

from collections.abc import Callable

import pytest

from weavenet.address import Address, Endpoint
from weavenet.codec.vxlan import pack_vni
from weavenet.effects import (
    ConnectionAdded,
    ConnectionGone,
    ConnectionNumber,
    LinksChanged,
    Note,
    Now,
    Output,
    OverlayControlArrived,
    OverlayEstablished,
    OverlayFailed,
    SendOverlayControl,
    SendSpecialFrame,
)
from weavenet.identity import ConnectionUID, PeerName, ShortID
from weavenet.overlay.early import REMEMBERED_MAX
from weavenet.overlay.forwarding import Link
from weavenet.overlay.heartbeat import encode_heartbeat
from weavenet.overlay.overlays import Overlays

A, B = PeerName(0x7A0000000001), PeerName(0x7A0000000002)
ADDRESSES = {A: Address(0xC000_0201), B: Address(0xC000_0202)}
IDS = {A: ShortID(0x111), B: ShortID(0x222)}
UID = ConnectionUID(0x1122334455667788)
CONNECTION = ConnectionNumber(1)
PORT = 6784
MTU = 1376


class Directory:
    def __init__(self, us: PeerName, ids: dict[PeerName, ShortID]) -> None:
        self.us, self.ids = us, ids

    def ours(self) -> ShortID:
        return self.ids[self.us]

    def of(self, name: PeerName) -> ShortID | None:
        return self.ids.get(name)

    def principal(self, short_id: ShortID) -> PeerName | None:
        return min((name for name, number in self.ids.items() if number == short_id), default=None)

    def nickname(self, peer: PeerName) -> str | None:
        return {A: "host1", B: "host2"}.get(peer)


def at(seconds: float) -> Now:
    return Now(monotonic_s=100.0 + seconds, wall_s=1.7e9 + seconds)


def added(
    remote: PeerName = B,
    *,
    outbound: bool = True,
    port: int = 6783,
    connection: ConnectionNumber = CONNECTION,
    uid: ConnectionUID = UID,
    overlays: tuple[str, ...] | None = ("fastdp", "sleeve"),
    overlay_key: bytes | None = None,
) -> ConnectionAdded:
    local = A if remote == B else B
    return ConnectionAdded(
        connection=connection,
        remote_name=remote,
        local=Endpoint(ADDRESSES[local], 6783),
        remote=Endpoint(ADDRESSES[remote], port),
        outbound=outbound,
        uid=uid,
        overlay_key=overlay_key,
        overlays=overlays,
    )


def make(us: PeerName = A, ids: dict[PeerName, ShortID] | None = None) -> Overlays:
    return Overlays(short_ids=Directory(us, dict(IDS) if ids is None else ids), mtu_bytes=MTU, port=PORT)


def ack(connection: ConnectionNumber = CONNECTION) -> OverlayControlArrived:
    return OverlayControlArrived(connection, b"\0\0")


def heartbeat_from_b(
    overlays: Overlays, seconds: float, *, uid: ConnectionUID = UID, remote: Address | None = None
) -> list[Output]:
    frame = encode_heartbeat(uid, 1410)  # the ends may have different MTUs
    source = ADDRESSES[B] if remote is None else remote
    return overlays.special_frame(pack_vni(IDS[B], IDS[A]), source, len(frame), frame[:32], at(seconds))


OUR_HEARTBEAT = SendSpecialFrame(Endpoint(ADDRESSES[B], PORT), 0x222111, encode_heartbeat(UID, MTU))
ACK = SendOverlayControl(CONNECTION, b"\0\0")


def heartbeats(outputs: list[Output]) -> list[Output]:
    return [output for output in outputs if isinstance(output, SendSpecialFrame)]


def notes(outputs: list[Output]) -> list[str]:
    return [output.text for output in outputs if isinstance(output, Note)]


# --- heartbeats -------------------------------------------------------------------------------------------------------


def test_a_heartbeat_goes_out_at_once_and_then_every_half_second() -> None:
    overlays = make()

    assert overlays.connection_added(added(), at(0)) == [OUR_HEARTBEAT]
    assert overlays.next_deadline() == at(0.5).monotonic_s
    assert overlays.handle_timer(at(0.4)) == []
    assert overlays.handle_timer(at(0.5)) == [OUR_HEARTBEAT]
    assert overlays.next_deadline() == at(1.0).monotonic_s


def test_the_first_acknowledgement_establishes_the_link_and_slows_heartbeats_down() -> None:
    overlays = make()
    overlays.connection_added(added(), at(0))

    outputs = overlays.control_arrived(ack(), at(0.1))

    assert outputs[:2] == [OverlayEstablished(CONNECTION), LinksChanged()]
    assert notes(outputs) == ["overlay_switch ->[7a:00:00:00:00:02(host2)] using fastdp"]
    assert overlays.links() == {
        B: Link(remote=Endpoint(ADDRESSES[B], PORT), overlay="fastdp", established=True, mtu=MTU),
    }
    assert overlays.control_arrived(ack(), at(0.2)) == []
    assert overlays.next_deadline() == at(10.1).monotonic_s
    assert overlays.handle_timer(at(10.1)) == [OUR_HEARTBEAT]


def test_only_the_first_heartbeat_is_acknowledged() -> None:
    overlays = make()
    overlays.connection_added(added(), at(0))

    assert ACK in heartbeat_from_b(overlays, 0.1)
    assert ACK not in heartbeat_from_b(overlays, 0.6)


def test_a_heartbeat_that_comes_before_our_acknowledgement_has_ours_sent_again_at_once_but_once() -> None:
    overlays = make()
    overlays.connection_added(added(), at(0))

    assert heartbeats(heartbeat_from_b(overlays, 0.02)) == [OUR_HEARTBEAT]
    assert heartbeats(heartbeat_from_b(overlays, 0.03)) == []
    assert overlays.next_deadline() == at(0.52).monotonic_s


def test_a_heartbeat_after_our_acknowledgement_has_nothing_sent() -> None:
    overlays = make()
    overlays.connection_added(added(), at(0))
    overlays.control_arrived(ack(), at(0.1))

    assert heartbeat_from_b(overlays, 0.2) == [ACK]


def test_a_heartbeat_that_came_before_its_connection_counts_when_the_connection_is_added() -> None:
    overlays = make()

    assert heartbeat_from_b(overlays, 0) == []
    assert overlays.connection_added(added(), at(0.05)) == [OUR_HEARTBEAT, ACK]


def test_a_heartbeat_of_a_peer_unknown_at_the_time_counts_once_the_peer_is_known() -> None:
    ids = {A: IDS[A]}
    overlays = make(ids=ids)

    assert heartbeat_from_b(overlays, 0) == []
    ids[B] = IDS[B]
    assert ACK in overlays.connection_added(added(), at(0.05))


def test_an_early_heartbeat_is_forgotten_after_two_seconds() -> None:
    overlays = make()
    heartbeat_from_b(overlays, 0)

    assert overlays.connection_added(added(), at(2.1)) == [OUR_HEARTBEAT]


def test_an_early_heartbeat_with_our_uid_from_somebody_else_does_not_count() -> None:
    ids = {**IDS, PeerName(3): ShortID(0x333)}
    overlays = make(ids=ids)
    frame = encode_heartbeat(UID, MTU)
    overlays.special_frame(pack_vni(ShortID(0x333), IDS[A]), ADDRESSES[B], len(frame), frame, at(0))

    assert overlays.connection_added(added(), at(0.1)) == [OUR_HEARTBEAT]


def test_early_heartbeats_are_few_and_the_oldest_goes_first() -> None:
    overlays = make()
    for number in range(REMEMBERED_MAX + 1):
        heartbeat_from_b(overlays, 0, uid=ConnectionUID(number))

    assert ACK not in overlays.connection_added(added(uid=ConnectionUID(0)), at(0.1))
    assert ACK in overlays.connection_added(added(uid=ConnectionUID(1)), at(0.1))


@pytest.mark.parametrize(
    ("vni", "length", "uid"),
    [
        pytest.param(0x111222, 1390, UID + 1, id="another connection's UID"),
        pytest.param(0x111333, 1390, UID, id="from nobody we know"),
        pytest.param(0x444222, 1390, UID, id="for nobody we know"),
        pytest.param(0x111222, 1389, UID, id="cut on the way"),
    ],
)
def test_a_heartbeat_that_is_not_this_connections_is_ignored(vni: int, length: int, uid: int) -> None:
    overlays = make()
    overlays.connection_added(added(), at(0))
    frame = encode_heartbeat(ConnectionUID(uid), 1376)

    assert overlays.special_frame(vni, ADDRESSES[B], length, frame[:32], at(0.1)) == []


def test_a_heartbeat_from_elsewhere_moves_the_link_there() -> None:
    overlays = make()
    overlays.connection_added(added(), at(0))
    overlays.control_arrived(ack(), at(0.1))
    elsewhere = Address(0xC000_0209)

    outputs = heartbeat_from_b(overlays, 0.2, remote=elsewhere)

    assert LinksChanged() in outputs
    assert notes(outputs) == [
        "fastdp ->[192.0.2.2:6784|7a:00:00:00:00:02(host2)]: Peer IP address changed to 192.0.2.9",
    ]
    assert overlays.links()[B].remote == Endpoint(elsewhere, PORT)
    assert overlays.handle_timer(at(10.1)) == [
        SendSpecialFrame(Endpoint(elsewhere, PORT), OUR_HEARTBEAT.vni, OUR_HEARTBEAT.frame),
    ]


def test_without_the_remotes_short_id_heartbeats_wait_for_it() -> None:
    ids = {A: IDS[A]}
    overlays = make(ids=ids)

    assert overlays.connection_added(added(), at(0)) == []
    ids[B] = IDS[B]
    assert overlays.handle_timer(at(0.5)) == [OUR_HEARTBEAT]


# --- silence ----------------------------------------------------------------------------------------------------------


def failure(outputs: list[Output]) -> str:
    (reason,) = [output.reason for output in outputs if isinstance(output, OverlayFailed)]
    return reason


@pytest.mark.parametrize("acknowledged", [False, True])
def test_a_minute_without_heartbeats_leaves_nothing_that_works(acknowledged: bool) -> None:
    overlays = make()
    overlays.connection_added(added(), at(0))
    if acknowledged:
        overlays.control_arrived(ack(), at(0.1))
    assert not any(isinstance(output, OverlayFailed) for output in overlays.handle_timer(at(59.9)))

    outputs = overlays.handle_timer(at(60))

    assert failure(outputs) == (
        "no working forwarders to 7a:00:00:00:00:02(host2): fastdp: no heartbeat for 60 s; "
        "is UDP port 6784 open both ways, for inner frames of 1390 bytes?"
    )
    assert overlays.links() == {}
    assert overlays.next_deadline() is None
    assert overlays.connection_gone(ConnectionGone(CONNECTION, B), at(60)) == []


def test_every_heartbeat_gives_the_link_another_minute() -> None:
    overlays = make()
    overlays.connection_added(added(), at(0))
    heartbeat_from_b(overlays, 50)

    assert not any(isinstance(output, OverlayFailed) for output in overlays.handle_timer(at(109)))
    assert failure(overlays.handle_timer(at(110)))


# --- connections ------------------------------------------------------------------------------------------------------


def test_an_accepted_connection_uses_our_port_whatever_port_the_peer_dialled_from() -> None:
    overlays = make()

    overlays.connection_added(added(outbound=False, port=49152), at(0))

    assert overlays.links()[B].remote == Endpoint(ADDRESSES[B], PORT)


@pytest.mark.parametrize(
    ("signal", "reason"),
    [
        pytest.param(added(overlays=None), "no overlays in common with peer", id="a peer without the feature"),
        pytest.param(added(overlays=("sleeve",)), "no overlays in common with peer", id="a peer with sleeve only"),
        pytest.param(
            added(port=7000),
            "the peer was dialled at port 7000, so its fastdp port is 7001, and ours is 6784",
            id="dialled at another port",
        ),
        pytest.param(added(overlay_key=bytes(32)), "encrypted overlay traffic is not supported by it", id="encrypted"),
    ],
)
def test_a_connection_that_no_overlay_can_serve_must_end(signal: ConnectionAdded, reason: str) -> None:
    overlays = make()

    outputs = overlays.connection_added(signal, at(0))

    assert reason in failure(outputs)
    assert overlays.links() == {}
    assert overlays.next_deadline() is None


def test_an_overlay_left_out_is_noted_with_the_reason() -> None:
    outputs = make().connection_added(added(port=7000), at(0))

    (text,) = notes(outputs)
    assert text.startswith("Unable to use fastdp for connection to 7a:00:00:00:00:02(host2): the peer was dialled at")


def test_a_connection_that_is_gone_leaves_no_link() -> None:
    overlays = make()
    overlays.connection_added(added(), at(0))

    assert overlays.connection_gone(ConnectionGone(CONNECTION, B), at(1)) == [LinksChanged()]
    assert overlays.links() == {}
    assert overlays.control_arrived(ack(), at(2)) == []


def test_a_second_connection_with_a_peer_takes_the_place_of_the_first() -> None:
    overlays = make()
    second = ConnectionNumber(3)
    overlays.connection_added(added(), at(0))
    overlays.control_arrived(ack(), at(0.1))

    outputs = overlays.connection_added(added(connection=second, uid=ConnectionUID(5)), at(1))
    overlays.connection_gone(ConnectionGone(CONNECTION, B), at(1))

    assert LinksChanged() in outputs
    assert not overlays.links()[B].established
    assert OverlayEstablished(second) in overlays.control_arrived(ack(second), at(2))


# --- control messages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [b"", b"\0", b"\1\0", b"\xff\0", b"\0\2", b"\0\1" + bytes(64)],
    ids=["empty", "no tag", "index beyond the list", "index 255", "unknown tag", "InitSARemote"],
)
def test_a_control_message_that_means_nothing_is_noted_and_ignored(payload: bytes) -> None:
    overlays = make()
    overlays.connection_added(added(), at(0))

    outputs = overlays.control_arrived(OverlayControlArrived(CONNECTION, payload), at(0.1))

    (text,) = notes(outputs)
    assert len(outputs) == 1
    assert text.startswith("fastdp ->[192.0.2.2:6784|7a:00:00:00:00:02(host2)]: ignoring")


# --- both ends --------------------------------------------------------------------------------------------------------


class Pair:
    """Two overlays joined by wires that deliver in order; `lost` says which special frames do not arrive."""

    def __init__(self, lost: Callable[[int], bool]) -> None:
        self.ends = {A: make(A), B: make(B)}
        self.established: list[PeerName] = []
        self._lost = lost
        self._frames = 0

    def deliver(self, sender: PeerName, outputs: list[Output], seconds: float) -> None:
        receiver = B if sender == A else A
        for output in outputs:
            if isinstance(output, OverlayEstablished):
                self.established.append(sender)
            elif isinstance(output, SendOverlayControl):
                arrived = OverlayControlArrived(CONNECTION, output.payload)
                self.deliver(receiver, self.ends[receiver].control_arrived(arrived, at(seconds)), seconds)
            elif isinstance(output, SendSpecialFrame):
                self._frames += 1
                if self._lost(self._frames):
                    continue
                assert output.remote.address == ADDRESSES[receiver]
                frame = output.frame
                self.deliver(
                    receiver,
                    self.ends[receiver].special_frame(
                        output.vni, ADDRESSES[sender], len(frame), frame[:32], at(seconds)
                    ),
                    seconds,
                )

    def add(self, end: PeerName, seconds: float) -> None:
        remote = B if end == A else A
        signal = added(remote, outbound=end == A, port=6783 if end == A else 50000)
        self.deliver(end, self.ends[end].connection_added(signal, at(seconds)), seconds)

    def run_timers(self, until_s: float) -> None:
        for tick in range(1, int(until_s * 10) + 1):
            for name in (A, B):
                self.deliver(name, self.ends[name].handle_timer(at(tick / 10)), tick / 10)


def test_two_ends_establish_as_soon_as_the_second_has_added_the_connection() -> None:
    pair = Pair(lost=lambda _: False)
    pair.add(A, 0)
    pair.add(B, 0.001)

    assert sorted(pair.established) == [A, B]


@pytest.mark.parametrize("period", [2, 3, 4])
def test_two_ends_establish_although_heartbeats_are_lost(period: int) -> None:
    pair = Pair(lost=lambda number: number % period == 0 or number < 4)
    pair.add(A, 0)
    pair.add(B, 0.001)
    pair.run_timers(5)

    assert sorted(pair.established) == [A, B]
