"""Two overlays on one connection: which of them carries its traffic, and what each is told."""

from dataclasses import replace

import pytest

from weavenet.address import Address, Endpoint
from weavenet.codec.vxlan import pack_vni
from weavenet.effects import (
    ConnectionAdded,
    ConnectionNumber,
    Note,
    Now,
    Output,
    OverlayControlArrived,
    OverlayEstablished,
    OverlayFailed,
    SendOverlayControl,
    SendSleeveFrame,
    SendSpecialFrame,
)
from weavenet.identity import ConnectionUID, PeerName, ShortID
from weavenet.overlay.heartbeat import encode_heartbeat
from weavenet.overlay.overlays import Overlays
from weavenet.overlay.sleeve.wire import encode_heartbeat as encode_sleeve_heartbeat

A, B = PeerName(0x7A0000000001), PeerName(0x7A0000000002)
HERE, THERE = Address(0xC000_0201), Address(0xC000_0202)
IDS = {A: ShortID(0x111), B: ShortID(0x222)}
UID = ConnectionUID(0x1122334455667788)
CONNECTION = ConnectionNumber(1)
MTU = 1376


class Directory:
    def ours(self) -> ShortID:
        return IDS[A]

    def of(self, name: PeerName) -> ShortID | None:
        return IDS.get(name)

    def principal(self, short_id: ShortID) -> PeerName | None:
        return next((name for name, number in IDS.items() if number == short_id), None)

    def nickname(self, peer: PeerName) -> str | None:
        return {A: "host1", B: "host2"}[peer]


def at(seconds: float) -> Now:
    return Now(monotonic_s=100.0 + seconds, wall_s=1.7e9 + seconds)


def added(
    *, overlays: tuple[str, ...] | None = ("fastdp", "sleeve"), key: bytes | None = None, outbound: bool = True
) -> ConnectionAdded:
    return ConnectionAdded(
        CONNECTION, B, Endpoint(HERE, 6783), Endpoint(THERE, 6783), outbound, UID, overlay_key=key, overlays=overlays
    )


def make() -> Overlays:
    return Overlays(short_ids=Directory(), mtu_bytes=MTU, port=6784, names=("fastdp", "sleeve"))


def control(index: int, tag: int, *, bare: bool = False) -> OverlayControlArrived:
    return OverlayControlArrived(CONNECTION, bytes((index, tag)), bare)


def by_vxlan(overlays: Overlays, seconds: float) -> list[Output]:
    frame = encode_heartbeat(UID, MTU)
    return overlays.special_frame(pack_vni(IDS[B], IDS[A]), THERE, len(frame), frame[:32], at(seconds))


def by_sleeve(overlays: Overlays, seconds: float, remote: Endpoint | None = None) -> list[Output]:
    frame = encode_sleeve_heartbeat(UID)
    source = remote or Endpoint(THERE, 6783)
    return overlays.sleeve_frame(CONNECTION, source, len(frame), frame, intact=False, now=at(seconds))


def chosen(overlays: Overlays) -> str:
    return overlays.links()[B].overlay


def run(overlays: Overlays, until: float) -> list[Output]:
    outputs: list[Output] = []
    while (due := overlays.next_deadline()) is not None and due <= at(until).monotonic_s:
        outputs += overlays.handle_timer(Now(due, 0.0))
    return outputs


def test_all_common_overlays_run_and_the_first_that_works_establishes_the_connection() -> None:
    overlays = make()
    started = overlays.connection_added(added(), at(0))
    assert [type(output) for output in started] == [SendSpecialFrame, SendSleeveFrame]
    outputs = overlays.control_arrived(control(1, 1), at(0.1))
    assert OverlayEstablished(CONNECTION) in outputs
    assert chosen(overlays) == "sleeve"
    outputs = overlays.control_arrived(control(0, 0), at(0.2))
    assert OverlayEstablished(CONNECTION) not in outputs
    assert chosen(overlays) == "fastdp"


def test_traffic_moves_to_sleeve_when_fastdp_falls_silent_and_back_when_it_is_heard_again() -> None:
    overlays = make()
    overlays.connection_added(added(), at(0))
    overlays.control_arrived(control(0, 0), at(0.1))
    overlays.control_arrived(control(1, 1), at(0.1))
    by_vxlan(overlays, 0.1)
    by_sleeve(overlays, 0.1)
    assert chosen(overlays) == "fastdp"
    by_sleeve(overlays, 50.0)
    outputs = run(overlays, 65.0)
    assert not [output for output in outputs if isinstance(output, OverlayFailed)]
    assert chosen(overlays) == "sleeve"
    by_vxlan(overlays, 70.0)
    assert chosen(overlays) == "fastdp"


def test_with_both_silent_the_connection_ends_and_says_by_which() -> None:
    overlays = make()
    overlays.connection_added(added(), at(0))
    overlays.control_arrived(control(0, 0), at(0.1))
    overlays.control_arrived(control(1, 1), at(0.1))
    (failed,) = [output for output in run(overlays, 130.0) if isinstance(output, OverlayFailed)]
    assert failed.reason.startswith("no working forwarders to 7a:00:00:00:00:02(host2): sleeve: no heartbeat for 60 s")
    assert overlays.links() == {}


def test_encrypted_traffic_goes_by_sleeve_whose_index_stays() -> None:
    overlays = make()
    outputs = overlays.connection_added(added(key=bytes(32)), at(0))
    (note,) = [output for output in outputs if isinstance(output, Note)]
    assert note.text.startswith("Unable to use fastdp for connection to 7a:00:00:00:00:02(host2): encrypted overlay")
    assert SendOverlayControl(CONNECTION, b"\1\1") in by_sleeve(overlays, 0.1)
    assert OverlayEstablished(CONNECTION) in overlays.control_arrived(control(1, 1), at(0.2))
    assert by_vxlan(overlays, 0.3) == []


def test_with_a_peer_that_never_named_overlays_sleeve_has_messages_of_its_own() -> None:
    overlays = make()
    overlays.connection_added(added(overlays=None, outbound=False), at(0))
    assert overlays.links()[B].overlay == "sleeve"
    assert SendOverlayControl(CONNECTION, b"\0\1", bare=True) in by_sleeve(overlays, 0.1)
    assert isinstance(overlays.control_arrived(control(0, 1), at(0.2))[0], Note)
    assert OverlayEstablished(CONNECTION) in overlays.control_arrived(control(0, 1, bare=True), at(0.2))


@pytest.mark.parametrize(
    ("ours", "theirs", "is_fast"),
    [
        (("segments-1",), ("segments-1",), True),
        (("segments-1",), ("segments-2", "segments-1"), True),
        (("segments-1",), ("segments-2",), False),
        (("segments-1",), (), False),
        ((), ("segments-1",), False),
    ],
)
def test_sleeve_is_fast_where_both_ends_understand_the_format(
    ours: tuple[str, ...], theirs: tuple[str, ...], is_fast: bool
) -> None:
    overlays = Overlays(short_ids=Directory(), mtu_bytes=MTU, port=6784, names=("sleeve",), sleeve_formats=ours)
    overlays.connection_added(replace(added(overlays=("sleeve",)), sleeve_formats=theirs), at(0))
    assert overlays.links()[B].is_fast == is_fast


def test_sleeve_alone_has_index_0() -> None:
    overlays = make()
    overlays.connection_added(added(overlays=("sleeve",)), at(0))
    assert SendOverlayControl(CONNECTION, b"\0\1") in by_sleeve(overlays, 0.1)


def test_what_the_kernel_says_of_an_unknown_connection_means_nothing() -> None:
    overlays = make()
    assert overlays.sleeve_too_big(CONNECTION, 1500, at(0)) == []
    assert overlays.sleeve_failed(CONNECTION, "network is unreachable") == []
    assert by_sleeve(overlays, 0) == []


def test_a_sleeve_that_cannot_send_leaves_fastdp_to_it() -> None:
    overlays = make()
    overlays.connection_added(added(), at(0))
    overlays.control_arrived(control(0, 0), at(0.1))
    overlays.sleeve_failed(CONNECTION, "network is unreachable")
    assert chosen(overlays) == "fastdp"
    assert overlays.sleeves() == {}
    assert isinstance(overlays.control_arrived(control(1, 1), at(0.2))[0], Note)


# --- how each stands, and why -----------------------------------------------------------------------------------------


def standings(overlays: Overlays) -> list[tuple[str, str, str]]:
    return [(one.overlay, one.state.value, one.reason) for one in overlays.standings()[B]]


def test_what_is_tried_says_which_heartbeats_are_missing() -> None:
    overlays = make()
    overlays.connection_added(added(), at(0))
    nothing = "no heartbeat has come yet, and none of ours is acknowledged: is UDP port {} open both ways?"
    assert standings(overlays) == [
        ("fastdp", "trying", nothing.format(6784)),
        ("sleeve", "trying", nothing.format(6783)),
    ]
    by_vxlan(overlays, 0.1)
    assert standings(overlays)[0][2].endswith("ours are not acknowledged: is UDP port 6784 open towards the peer?")
    overlays.control_arrived(control(1, 1), at(0.2))
    assert standings(overlays)[1] == ("sleeve", "in use", "")
    overlays.control_arrived(control(0, 0), at(0.3))
    assert standings(overlays) == [("fastdp", "in use", ""), ("sleeve", "stands by", "")]


def test_what_only_arrives_there_says_that_nothing_comes_back() -> None:
    overlays = make()
    overlays.connection_added(added(overlays=("sleeve",)), at(0))
    # Acknowledged is established, so what is missing shows on the other overlay's way only; ask the link itself.
    (link,) = (sleeve for _, sleeve, _ in overlays.sleeves().values())
    overlays.control_arrived(control(0, 1), at(0.1))
    assert link.heard.doubt(6783) == (
        "our heartbeats are acknowledged, the peer's do not come: is UDP port 6783 open towards us?"
    )


def test_what_fell_silent_says_for_how_long_and_what_failed_says_why() -> None:
    overlays = make()
    overlays.connection_added(added(), at(0))
    overlays.control_arrived(control(0, 0), at(0.1))
    overlays.control_arrived(control(1, 1), at(0.1))
    by_sleeve(overlays, 50)
    run(overlays, 61)
    assert standings(overlays)[0] == (
        "fastdp",
        "silent",
        "no heartbeat for 60 s; is UDP port 6784 open both ways, for inner frames of 1390 bytes?",
    )
    assert standings(overlays)[1] == ("sleeve", "in use", "")
    sealed = make()
    sealed.connection_added(added(key=b"k" * 32), at(0))
    assert standings(sealed)[0][:2] == ("fastdp", "failed")
    assert standings(sealed)[0][2].startswith("encrypted overlay traffic is not supported by it")


def test_what_one_side_lacks_says_which_side() -> None:
    overlays = make()
    overlays.connection_added(added(overlays=("sleeve",)), at(0))
    assert standings(overlays)[1] == ("fastdp", "not offered", "the peer does not offer it")
    ours = Overlays(short_ids=Directory(), mtu_bytes=MTU, port=6784, names=("sleeve",))
    ours.connection_added(added(), at(0))
    assert standings(ours)[1] == ("fastdp", "not offered", "it is switched off here")
