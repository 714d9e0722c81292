"""Frames of the kernel's into datagrams and back; two pipes joined by a path that keeps what it is given."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weavenet.address import Address, Endpoint
from weavenet.codec import ip
from weavenet.effects import ConnectionNumber
from weavenet.identity import PeerName, ShortID
from weavenet.overlay.sleeve.pipe import Arrived, Datagram, SleevePipe, Special
from weavenet.overlay.sleeve.table import SleeveConnection, SleeveTable
from weavenet.overlay.sleeve.wire import encode_heartbeat, split_frames

A, B, C = PeerName(0x7A0000000001), PeerName(0x7A0000000002), PeerName(0x7A0000000003)
IDS = {ShortID(0x111): A, ShortID(0x222): B, ShortID(0x333): C}
AT = {A: Endpoint(Address(0xC000_0201), 6783), B: Endpoint(Address(0xC000_0202), 6783)}
KEY = bytes(range(32))
LINK = ConnectionNumber(7)
MACS = bytes.fromhex("020000000022 020000000011".replace(" ", ""))


def table(
    us: PeerName,
    *,
    key: bytes | None = None,
    mtu: int = 1438,
    fragments_pass: bool = False,
    known: bool = True,
    number: ConnectionNumber = LINK,
    opening: tuple[bytes, ...] = (),
    pods_mtu: int = 65_535,
) -> SleeveTable:
    peer = B if us == A else A
    remote = AT[peer] if known else None
    connection = SleeveConnection(
        number, peer, remote, key, opening or (key,) * (key is not None), us == A, mtu, 1472, fragments_pass
    )
    routes = {ShortID(0x222 if us == A else 0x111): number, ShortID(0x333): number}
    return SleeveTable(us, IDS, (connection,), routes, pods_mtu, frozenset((ShortID(0x111 if us == A else 0x222),)))


def pipe(us: PeerName, **kwargs: object) -> SleevePipe:
    made = SleevePipe()
    made.apply(table(us, **kwargs))  # type: ignore[arg-type]
    return made


def ipv4(size: int, *, dont_fragment: bool = True) -> bytes:
    flags = "4000" if dont_fragment else "0000"
    header = bytes.fromhex("45000000") + bytes.fromhex("0001" + flags + "40110000" + "0a200001" + "0a2c0002")
    return MACS + b"\x08\x00" + header[:2] + size.to_bytes(2, "big") + header[4:] + bytes(size - 20)


def tagged(frame: bytes, origin: int = 0x111, destination: int = 0x222, *, flooded: bool = False) -> bytes:
    outer = destination | (0x2000 if flooded else 0)
    return frame[:12] + b"\x88\xa8" + outer.to_bytes(2, "big") + b"\x81\x00" + origin.to_bytes(2, "big") + frame[12:]


def sent_frames(datagram: Datagram) -> list[bytes]:
    return [frame for _, frame in split_frames(datagram.payload, 6)[0]]


@pytest.mark.parametrize("key", [None, KEY])
def test_what_one_end_takes_from_its_kernel_the_other_gives_to_its_own(key: bytes | None) -> None:
    a, b = pipe(A, key=key), pipe(B, key=key)
    frames = [tagged(ipv4(100 + n)) for n in range(3)]
    datagrams, back = a.outgoing(frames)
    assert back == []
    assert [(one.remote, one.dont_fragment) for one in datagrams] == [(AT[B], True)]
    assert b.incoming([(one.payload, AT[A]) for one in datagrams]) == Arrived(frames, [], [])
    again = b.incoming([(one.payload, AT[A]) for one in datagrams])
    assert again.frames == ([] if key else frames), "a sealed datagram is taken once"


NEW_KEY = bytes(range(1, 33))


def test_datagrams_under_the_old_and_the_new_key_open_while_passwords_change() -> None:
    a, b = pipe(A, key=KEY), pipe(B, key=KEY)
    frames = [tagged(ipv4(100 + n)) for n in range(4)]
    before, _ = a.outgoing(frames[:1])
    b.apply(table(B, key=KEY, opening=(KEY, NEW_KEY)))
    a.apply(table(A, key=NEW_KEY, opening=(KEY, NEW_KEY)))
    after, _ = a.outgoing(frames[1:2])
    # They overtake each other on the way, and both are taken once.
    both = [(one.payload, AT[A]) for one in (*after, *before, *after)]
    assert b.incoming(both).frames == [frames[1], frames[0]]
    assert b.counters.drop_sealed == 0
    b.apply(table(B, key=NEW_KEY))
    last, _ = a.outgoing(frames[2:3])
    assert b.incoming([(one.payload, AT[A]) for one in (*before, *last)]).frames == [frames[2]]
    assert b.counters.drop_sealed == 1


def test_a_key_that_comes_back_counts_on_and_remembers_what_it_saw() -> None:
    a, b = pipe(A, key=KEY), pipe(B, key=KEY)
    first, _ = a.outgoing([tagged(ipv4(100))])
    assert b.incoming([(one.payload, AT[A]) for one in first]).frames
    for key in (NEW_KEY, KEY):
        a.apply(table(A, key=key))
        b.apply(table(B, key=key))
    second, _ = a.outgoing([tagged(ipv4(101))])
    assert second[0].payload[6:14] != first[0].payload[6:14], "a nonce never seals twice"
    assert b.incoming([(first[0].payload, AT[A])]).frames == [], "replayed"
    assert b.incoming([(second[0].payload, AT[A])]).frames == [tagged(ipv4(101))]


def test_frames_share_a_datagram_as_far_as_the_path_takes_it() -> None:
    datagrams, _ = pipe(A).outgoing([tagged(ipv4(600)) for _ in range(5)])
    assert [len(sent_frames(one)) for one in datagrams] == [2, 2, 1]
    assert all(len(one.payload) <= 1472 for one in datagrams)


def test_what_is_too_big_and_may_not_be_cut_is_answered_to_its_sender_in_the_destinations_name() -> None:
    datagrams, back = pipe(A, mtu=1000).outgoing([tagged(ipv4(1200))])
    assert datagrams == []
    assert back == [tagged(ip.fragmentation_needed(ipv4(1200), 1000), origin=0x222, destination=0x111)]


def test_a_flooded_one_is_dropped_instead() -> None:
    a = pipe(A, mtu=1000)
    assert a.outgoing([tagged(ipv4(1200), flooded=True)]) == ([], [])
    assert a.counters.drop_too_big == 1


def test_what_may_be_cut_is_cut_here_unless_fragments_pass() -> None:
    frame = ipv4(1200, dont_fragment=False)
    cut, _ = pipe(A, mtu=576).outgoing([tagged(frame)])
    pieces = [piece for one in cut for piece in sent_frames(one)]
    assert pieces == list(ip.fragment(frame, 576))
    assert all(one.dont_fragment for one in cut)
    (whole,), _ = pipe(A, mtu=576, fragments_pass=True).outgoing([tagged(frame)])
    assert sent_frames(whole) == [frame]
    assert not whole.dont_fragment


def test_what_is_not_ipv4_leaves_where_the_kernel_may_fragment() -> None:
    arp = MACS + b"\x08\x06" + bytes(28)
    (one,), _ = pipe(A).outgoing([tagged(arp)])
    assert sent_frames(one) == [arp]
    assert not one.dont_fragment


def test_frames_of_others_keep_their_origin_and_their_destination() -> None:
    a, b = pipe(A), pipe(B)
    relayed = tagged(ipv4(100), origin=0x333, destination=0x222)
    (one,), _ = a.outgoing([relayed])
    assert b.incoming([(one.payload, AT[A])]).frames == [relayed]


def test_what_comes_too_big_for_our_pods_and_may_be_cut_is_cut_before_the_kernel_gets_it() -> None:
    a, b = pipe(A), pipe(B, pods_mtu=1376)
    frame = ipv4(1400, dont_fragment=False)
    datagrams, _ = a.outgoing([tagged(frame)])
    arrived = b.incoming([(one.payload, AT[A]) for one in datagrams])
    assert arrived == Arrived([tagged(piece) for piece in ip.fragment(frame, 1376)], [], [])


@pytest.mark.parametrize("key", [None, KEY])
def test_what_comes_too_big_for_our_pods_and_may_not_be_cut_is_answered_over_the_wire(key: bytes | None) -> None:
    a, b = pipe(A, key=key), pipe(B, key=key, pods_mtu=1376)
    datagrams, _ = a.outgoing([tagged(ipv4(1377)), tagged(ipv4(1376))])
    arrived = b.incoming([(one.payload, AT[A]) for one in datagrams])
    assert arrived.frames == [tagged(ipv4(1376))]
    (answer,) = arrived.answers
    assert (answer.remote, answer.dont_fragment) == (AT[A], True)
    told = ip.fragmentation_needed(ipv4(1377), 1376)
    assert a.incoming([(answer.payload, AT[B])]).frames == [tagged(told, origin=0x222, destination=0x111)]


@pytest.mark.parametrize("frame", [b"\x03" + ipv4(1400)[1:], MACS + b"\x86\xdd" + bytes(1400)])
def test_what_comes_too_big_for_our_pods_is_dropped_if_nobody_can_be_told(frame: bytes) -> None:
    a, b = pipe(A), pipe(B, pods_mtu=1376)
    datagrams, _ = a.outgoing([tagged(frame)])
    assert b.incoming([(one.payload, AT[A]) for one in datagrams]) == Arrived([], [], [])
    assert b.counters.drop_too_big == 1


def test_what_is_relayed_by_sleeve_may_be_as_big_as_the_path_takes() -> None:
    a, b = pipe(A), pipe(B, pods_mtu=1376)
    frame = tagged(ipv4(1400), destination=0x333)
    datagrams, _ = a.outgoing([frame])
    assert b.incoming([(one.payload, AT[A]) for one in datagrams]).frames == [frame]


def test_what_is_relayed_by_fastdp_is_held_to_its_mtu() -> None:
    a, b = pipe(A), SleevePipe()
    b.apply(msgspec.structs.replace(table(B, pods_mtu=1376), held=frozenset((ShortID(0x333),))))
    frame = ipv4(1400, dont_fragment=False)
    datagrams, _ = a.outgoing([tagged(frame, destination=0x333), tagged(ipv4(1400), destination=0x333)])
    arrived = b.incoming([(one.payload, AT[A]) for one in datagrams])
    assert arrived.frames == [tagged(piece, destination=0x333) for piece in ip.fragment(frame, 1376)]
    (answer,) = arrived.answers
    told = ip.fragmentation_needed(ipv4(1400), 1376)
    assert a.incoming([(answer.payload, AT[B])]).frames == [tagged(told, origin=0x333, destination=0x111)]


@pytest.mark.parametrize(
    ("frame", "counter"),
    [
        (tagged(ipv4(100), destination=0x444), "drop_no_route"),
        (tagged(ipv4(100), origin=0x444), "drop_no_route"),
        (ipv4(100), "drop_malformed"),
        (b"short", "drop_malformed"),
    ],
)
def test_what_leads_nowhere_is_dropped_and_counted(frame: bytes, counter: str) -> None:
    a = pipe(A)
    assert a.outgoing([frame]) == ([], [])
    assert getattr(a.counters, counter) == 1


def test_before_the_peer_was_heard_nothing_can_be_sent() -> None:
    a = pipe(A, known=False)
    assert a.outgoing([tagged(ipv4(100))]) == ([], [])
    assert a.counters.drop_no_contact == 1
    assert a.special(LINK, encode_heartbeat(1), dont_fragment=True) is None  # type: ignore[arg-type]


@pytest.mark.parametrize("key", [None, KEY])
def test_special_frames_go_to_the_connections_core_and_never_to_the_kernel(key: bytes | None) -> None:
    a, b = pipe(A, key=key), pipe(B, key=key)
    for frame in (encode_heartbeat(5), bytes(1452)):  # type: ignore[arg-type]
        datagram = a.special(LINK, frame, dont_fragment=True)
        assert datagram is not None
        assert b.incoming([(datagram.payload, AT[A])]) == Arrived(
            [], [Special(LINK, AT[A], len(frame), frame[:32], intact=not any(frame))], []
        )


def test_a_connection_that_stays_in_the_table_keeps_its_numbers_and_a_new_one_starts_at_none() -> None:
    a = pipe(A, key=KEY)
    first, _ = a.outgoing([tagged(ipv4(100))])
    a.apply(table(A, key=KEY, mtu=1300))
    second, _ = a.outgoing([tagged(ipv4(100))])
    assert (first[0].payload[6:14].hex(), second[0].payload[6:14].hex()) == ("8000000000000000", "8000000000000001")
    a.apply(table(A, key=KEY, number=ConnectionNumber(9)))
    third, _ = a.outgoing([tagged(ipv4(100))])
    assert third[0].payload[6:14].hex() == "8000000000000000"


@given(st.lists(st.binary(max_size=300), max_size=8), st.sampled_from([None, KEY]))
def test_whatever_peers_send_costs_nobody_anything(datagrams: list[bytes], key: bytes | None) -> None:
    b = pipe(B, key=key)
    name = A.to_bytes(6, "big")
    b.incoming([(datagram, AT[A]) for datagram in datagrams])
    arrived = b.incoming([(name + datagram, AT[A]) for datagram in datagrams])
    assert key is None or arrived.frames == []


@given(st.lists(st.binary(max_size=120), max_size=8))
def test_whatever_the_kernel_hands_over_is_sent_or_counted(frames: list[bytes]) -> None:
    a = pipe(A, mtu=576)
    a.outgoing([frame[:12] + b"\x88\xa8\x02\x22\x81\x00\x01\x11" + frame[12:] for frame in frames])
