"""Packets of the kernel's into datagrams of the fast format and back, whatever the path does to them."""

import random
import struct

import pytest
from fast_frames import Packet, ipv4_tcp, ipv6_tcp, tcp_checksum_is_right
from hypothesis import given
from hypothesis import strategies as st

from weavenet.address import Address, Endpoint
from weavenet.codec import ip
from weavenet.effects import ConnectionNumber
from weavenet.identity import ConnectionUID, PeerName, ShortID
from weavenet.overlay.sleeve.fast_cut import segments, with_checksum
from weavenet.overlay.sleeve.fast_peer import FastSend
from weavenet.overlay.sleeve.fast_pipe import FastArrived, FastPipe
from weavenet.overlay.sleeve.fast_wire import RECORD, TCPV4, TCPV6, VIRTIO, label_of
from weavenet.overlay.sleeve.pipe import Counters, Large
from weavenet.overlay.sleeve.table import SleeveConnection, SleeveTable
from weavenet.overlay.sleeve.wire import encode_heartbeat

A, B = PeerName(0x7A0000000001), PeerName(0x7A0000000002)
IDS = {ShortID(0x111): A, ShortID(0x222): B}
AT = {A: Endpoint(Address(0xC000_0201), 6783), B: Endpoint(Address(0xC000_0202), 6783)}
KEY = bytes(range(32))
LINK = ConnectionNumber(7)
LABEL = label_of(ConnectionUID(0x0123456789ABCDEF))
MSS = 1324
TAGS = b"\x88\xa8\x02\x22\x81\x00\x01\x11"  # to B from A
KEYS = pytest.mark.parametrize("key", [None, KEY])


def pipe(
    us: PeerName,
    *,
    key: bytes | None = None,
    opening: tuple[bytes, ...] | None = None,
    mtu: int = 1438,
    pmtu: int = 1500,
    known: bool = True,
    label: bytes | None = LABEL,
    taken: int = 65_535,
) -> FastPipe:
    peer = B if us == A else A
    keys = opening if opening is not None else (key,) if key else ()
    remote = AT[peer] if known else None
    connection = SleeveConnection(LINK, peer, remote, key, keys, us == A, mtu, pmtu - 28, False, label)
    made = FastPipe(Counters())
    held = frozenset({ShortID(0x111 if us == A else 0x222)})
    routes = {ShortID(0x222 if us == A else 0x111): LINK}
    made.apply(SleeveTable(us, IDS, (connection,), routes, taken, held))
    return made


def from_kernel(
    packet: Packet, mss: int = 0, *, checksum: bool = True, destination: int = 0x222
) -> tuple[memoryview, int]:
    """As the packet socket gives it: virtio_net header, the inner tag in its place, the outer one beside it."""
    is_large = mss and len(packet.frame) - packet.header_bytes > mss
    kind = (TCPV4 if packet.frame[packet.network_at] >> 4 == 4 else TCPV6) if is_large else 0
    start = packet.transport_at + 4
    virtio = VIRTIO.pack(1, kind, 0, mss if is_large else 0, start, 16) if checksum else bytes(VIRTIO.size)
    return memoryview(virtio + packet.frame[:12] + b"\x81\x00\x01\x11" + packet.frame[12:]), destination


def datagrams(sends: list[FastSend]) -> list[bytes]:
    found = []
    for send in sends:
        whole = b"".join(send.buffers)
        assert len(whole) == send.total_bytes <= 65_507
        cut = [whole[at : at + send.segment_bytes] for at in range(0, len(whole), send.segment_bytes)]
        assert len(cut) == send.count <= 64
        found += cut
    return found


def arrive(at: FastPipe, payloads: list[bytes]) -> FastArrived:
    return at.incoming([(bytearray(one) + bytearray(9), len(one), len(one), AT[A]) for one in payloads])


def to_kernel(arrived: FastArrived) -> list[bytes]:
    """The frames that the kernel is given, as it would cut them to segments itself, without their tags."""
    found = []
    for parts in arrived.frames:
        whole = b"".join(parts)
        flags, kind, header_bytes, mss, start, offset = VIRTIO.unpack_from(whole)
        frame = whole[VIRTIO.size :]
        assert frame[12:20] == TAGS
        frame = frame[:12] + frame[20:]
        if kind:
            assert header_bytes - 8 < len(frame)
            found += segments(frame, start - 8, mss)
        else:
            found.append(with_checksum(frame, start - 8, offset) if flags else frame)
    return found


@KEYS
@pytest.mark.parametrize("make", [ipv4_tcp, ipv6_tcp])
def test_a_large_packet_is_one_again_at_the_other_end(make, key: bytes | None) -> None:  # type: ignore[no-untyped-def]
    packet = make(random.Random(1).randbytes(48 * MSS))
    a, b = pipe(A, key=key), pipe(B, key=key)
    sends, others = a.outgoing([from_kernel(packet, MSS)])
    assert others == []
    assert len(datagrams(sends)) == 48
    assert max(map(len, datagrams(sends))) <= 1472
    (parts,) = arrive(b, datagrams(sends)).frames
    whole = b"".join(parts)
    assert VIRTIO.unpack_from(whole)[3] == MSS
    assert whole[VIRTIO.size :] == packet.frame[:12] + TAGS + packet.frame[12:]


@KEYS
@given(
    sizes=st.lists(st.integers(1, 9000), min_size=1, max_size=4),
    mss=st.integers(300, MSS),
    pmtu=st.sampled_from([1500, 4000, 9000]),
    fate=st.randoms(use_true_random=False),
)
def test_whatever_the_path_loses_repeats_and_mixes_up_only_what_was_lost_is_missing(
    key: bytes | None, sizes: list[int], mss: int, pmtu: int, fate: random.Random
) -> None:
    packets = [
        ipv4_tcp(fate.randbytes(size), sequence=number * 100_000, identification=number * 100, flags=0x19)
        for number, size in enumerate(sizes)
    ]
    a, b = pipe(A, key=key, mtu=pmtu - 86, pmtu=pmtu), pipe(B, key=key)
    sends, others = a.outgoing([from_kernel(one, mss) for one in packets])
    assert others == []
    sent = datagrams(sends)
    expected = {cut for one in packets for cut in segments(one.frame, one.transport_at, mss)}
    arriving = [one for one in sent for _ in range(fate.choice((0, 1, 1, 1, 2)))]
    if fate.random() < 0.5:
        fate.shuffle(arriving)
    got = to_kernel(arrive(b, arriving))
    assert set(got) <= expected, "nothing is made up, and every checksum is right"
    all_here = set(arriving) == set(sent)
    assert not all_here or set(got) == expected
    if key is not None:
        assert len(got) == len(set(got)), "sealed datagrams are taken once"


@KEYS
def test_small_frames_share_a_datagram_and_keep_their_order_among_large_ones(key: bytes | None) -> None:
    small = [ipv4_tcp(bytes([n]) * 20, sequence=n) for n in range(6)]
    large = ipv4_tcp(bytes(3 * MSS), sequence=77)
    batch = (
        [from_kernel(one) for one in small[:4]] + [from_kernel(large, MSS)] + [from_kernel(one) for one in small[4:]]
    )
    a, b = pipe(A, key=key), pipe(B, key=key)
    sent = datagrams(a.outgoing(batch)[0])
    assert len(sent) == 1 + 3 + 1
    got = to_kernel(arrive(b, sent))
    cut = [list(segments(one.frame, one.transport_at, MSS)) for one in [*small[:4], large, *small[4:]]]
    assert got == [one for each in cut for one in each]
    assert all(tcp_checksum_is_right(one, large) for one in got)


def test_a_frame_without_an_open_checksum_stays_as_it_is() -> None:
    packet = ipv4_tcp(bytes(20))
    sends, _ = pipe(A).outgoing([from_kernel(packet, checksum=False)])
    assert to_kernel(arrive(pipe(B), datagrams(sends))) == [packet.frame]


def test_datagrams_are_no_longer_than_those_of_weaves_format_for_the_same_mtu() -> None:
    for key, mtu in ((None, 1438), (KEY, 1414)):
        packet = ipv4_tcp(bytes(mtu - 52))
        sends, others = pipe(A, key=key, mtu=mtu).outgoing([from_kernel(packet)])
        assert others == []
        assert [len(one) for one in datagrams(sends)] == [1472]


def test_a_large_path_takes_several_segments_at_a_time() -> None:
    sends, _ = pipe(A, mtu=8938, pmtu=9000).outgoing([from_kernel(ipv4_tcp(bytes(12 * MSS)), MSS)])
    assert len(datagrams(sends)) == 2


def test_what_the_path_does_not_take_goes_to_the_other_pipe_complete() -> None:
    large = ipv4_tcp(bytes(3000), dont_fragment=False)
    sends, others = pipe(A, mtu=1000).outgoing([from_kernel(large), from_kernel(large, 1400)])
    assert sends == []
    cut = list(segments(large.frame, large.transport_at, 1400))
    whole = with_checksum(large.frame, large.transport_at, 16)
    assert others == [one[:12] + TAGS + one[12:] for one in [whole, *cut]]
    assert all(tcp_checksum_is_right(one[:12] + one[20:], large) for one in others)


def test_of_many_segments_that_must_not_be_cut_one_is_enough_to_tell_their_sender() -> None:
    _, others = pipe(A, mtu=1000).outgoing([from_kernel(ipv4_tcp(bytes(30_000)), 1400)])
    assert len(others) == 1
    assert others[0][20 + 2 + 6 + 0] & ip.DONT_FRAGMENT


def test_what_comes_and_is_larger_than_we_take_goes_to_the_other_pipe_too() -> None:
    whole, many = ipv4_tcp(bytes(1200)), ipv4_tcp(bytes(5000), dont_fragment=False)
    sends, _ = pipe(A).outgoing([from_kernel(whole), from_kernel(many, 1300)])
    arrived = arrive(pipe(B, taken=1000), datagrams(sends))
    assert arrived.frames == []
    expected = [with_checksum(whole.frame, whole.transport_at, 16), *segments(many.frame, many.transport_at, 1300)]
    assert arrived.large == [Large(LINK, ShortID(0x111), ShortID(0x222), one) for one in expected]


def test_weaves_datagrams_among_the_others_are_handed_on() -> None:
    heartbeat = A.to_bytes(6, "big") + encode_heartbeat(ConnectionUID(1))
    a, b = pipe(A), pipe(B)
    sent = datagrams(a.outgoing([from_kernel(ipv4_tcp(bytes(2 * MSS)), MSS)])[0])
    joined = b"".join(sent) + heartbeat
    arrived = b.incoming([(bytearray(joined), len(joined), len(sent[0]), AT[A])])
    assert arrived.others == [(heartbeat, AT[A])]
    assert len(arrived.frames) == 1


def test_while_keys_change_either_opens() -> None:
    other = bytes(32)
    a, b = pipe(A, key=KEY), pipe(B, key=other, opening=(other, KEY))
    for _ in range(2):
        sends, _ = a.outgoing([from_kernel(ipv4_tcp(bytes(3 * MSS)), MSS)])
        assert len(to_kernel(arrive(b, datagrams(sends)))) == 3


def test_a_key_that_comes_back_goes_on_counting() -> None:
    a, b = pipe(A, key=KEY), pipe(B, key=KEY)
    first, second = a._table, pipe(A, key=bytes(32))._table
    for table in (first, second, first):
        a.apply(table)
        sends, _ = a.outgoing([from_kernel(ipv4_tcp(bytes(10)))])
        arrive(b, datagrams(sends))
    assert b._counters.received == 2, "those under the key it has: different numbers, so both are new"


@pytest.mark.parametrize(
    ("made", "destination", "counter"),
    [
        (pipe(A, known=False), 0x222, "drop_no_contact"),
        (pipe(A, label=None), 0x222, "drop_no_route"),
        (pipe(A), 0x333, "drop_no_route"),
    ],
)
def test_what_has_no_way_is_counted(made: FastPipe, destination: int, counter: str) -> None:
    assert made.outgoing([from_kernel(ipv4_tcp(b"x"), destination=destination)]) == ([], [])
    assert getattr(made._counters, counter) == 1


def hostile_record(fields: tuple[int, ...], body: bytes) -> bytes:
    return LABEL + RECORD.pack(*fields) + body


U16, U8 = st.integers(0, 0xFFFF), st.integers(0, 0xFF)


@given(
    st.lists(
        st.builds(
            hostile_record,
            st.tuples(U16, U16, U16, st.sampled_from([0, 14, 34, 0xFFFF]), U8, st.sampled_from([0, 1, 4, 7]), U16, U16),
            st.one_of(st.binary(max_size=200), st.just(ipv4_tcp(bytes(100)).frame)),
        )
        | st.binary(max_size=64).map(lambda rest: LABEL + rest)
        | st.binary(max_size=20),
        max_size=8,
    )
)
def test_whatever_comes_nothing_breaks_and_nothing_is_kept(payloads: list[bytes]) -> None:
    b = pipe(B)
    arrived = arrive(b, [one for one in payloads if one])
    for parts in arrived.frames:
        assert sum(map(len, parts)) <= 65_535 + VIRTIO.size + 8 + 14
    assert b._run is None


@given(data=st.data())
def test_a_datagram_of_ours_cut_or_changed_anywhere_breaks_nothing(data: st.DataObject) -> None:
    sends, _ = pipe(A).outgoing([from_kernel(ipv4_tcp(bytes(100))), from_kernel(ipv4_tcp(bytes(900)), 300)])
    sent = datagrams(sends)
    number = data.draw(st.integers(0, len(sent) - 1))
    changed = bytearray(sent[number])
    changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(U8)
    sent[number] = bytes(changed[: data.draw(st.integers(1, len(changed)))])
    arrive(pipe(B), sent)


def test_a_packet_in_thousands_of_parts_is_given_to_the_kernel_in_several() -> None:
    packet = ipv4_tcp(bytes(1500 * 8))
    records = [
        hostile_record(
            (0x1111, 0x222, packet.header_bytes + 8, packet.transport_at, 16, TCPV4, 8, number),
            packet.frame[: packet.header_bytes] + bytes(8),
        )
        for number in range(1500)
    ]
    arrived = arrive(pipe(B), records)
    assert [len(parts) for parts in arrived.frames] == [513, 513, 477]


def test_what_is_not_tagged_as_the_programs_do_is_malformed() -> None:
    a = pipe(A)
    view, tag = from_kernel(ipv4_tcp(bytes(10)))
    wrong = bytearray(view)
    struct.pack_into("!H", wrong, VIRTIO.size + 12, 0x0800)
    assert a.outgoing([(memoryview(wrong), tag), (view[:20], tag)]) == ([], [])
    assert a._counters.drop_malformed == 2
