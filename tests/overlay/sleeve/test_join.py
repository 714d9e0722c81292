"""Segments that came one by one, put together for the kernel: what was joined can be cut into the same again."""

import random
import struct

import pytest
from fast_frames import ipv4_tcp, ipv6_tcp
from hypothesis import given
from hypothesis import strategies as st

from weavenet.overlay.sleeve.fast_cut import segments
from weavenet.overlay.sleeve.fast_wire import TCPV4, VIRTIO, VIRTIO_NEEDS_CHECKSUM
from weavenet.overlay.sleeve.join import Joined, join

TAGS = b"\x88\xa8\x02\x22\x81\x00\x01\x11"
MSS = 1324
TRANSPORT_AT = 34  # in a frame without tags


def tagged(frame: bytes) -> bytes:
    return frame[:12] + TAGS + frame[12:]


def sent(
    payload: bytes, *, flags: int = 0x10, options: int = 12, sequence: int = 1, identification: int = 1
) -> list[bytes]:
    """Return what the card of a pod makes of its TCP's packet: a frame per segment, both checksums made."""
    packet = ipv4_tcp(payload, flags=flags, options=options, sequence=sequence, identification=identification)
    return [tagged(piece) for piece in segments(packet.frame, packet.transport_at, MSS)]


def cut(joined: list[Joined]) -> list[bytes]:
    """Do what the kernel does with it when it must have segments again."""
    frames = []
    for one in joined:
        if isinstance(one, bytes):
            frames.append(one)
            continue
        whole = b"".join(one)
        flags, kind, header_bytes, segment_bytes, start, offset = VIRTIO.unpack_from(whole)
        frame = whole[VIRTIO.size :]
        assert (flags, kind, start, offset) == (VIRTIO_NEEDS_CHECKSUM, TCPV4, TRANSPORT_AT + len(TAGS), 16)
        assert header_bytes == start + (frame[start + 12] >> 4) * 4
        assert frame[12:20] == TAGS
        frames += [tagged(piece) for piece in segments(frame[:12] + frame[20:], TRANSPORT_AT, segment_bytes)]
    return frames


def payload_of(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def changed(frame: bytes, at: int, value: int) -> bytes:
    return frame[:at] + bytes([value]) + frame[at + 1 :]


@given(st.integers(1, 40_000), st.sampled_from([0x10, 0x18]), st.sampled_from([0, 12, 40]), st.integers(0, 2**32 - 1))
def test_what_one_packet_was_is_one_again(size: int, flags: int, options: int, sequence: int) -> None:
    frames = sent(payload_of(size, size), flags=flags, options=options, sequence=sequence)
    joined = join(frames)
    assert len(joined) == 1
    assert cut(joined) == frames


def test_a_frame_alone_stays_as_it_is() -> None:
    frames = sent(payload_of(100))
    assert join(frames) == frames


def test_two_flows_in_turns_are_both_joined() -> None:
    one, other = sent(payload_of(5 * MSS)), [changed(frame, 43, 99) for frame in sent(payload_of(5 * MSS, 2))]
    resealed = [with_right_checksum(frame) for frame in other]
    joined = join([frame for pair in zip(one, resealed, strict=True) for frame in pair])
    assert len(joined) == 2
    assert cut(joined) == one + resealed


def test_what_was_pushed_ends_a_packet_and_the_next_begins_another() -> None:
    first = sent(payload_of(3 * MSS), flags=0x18)
    second = sent(payload_of(3 * MSS, 2), sequence=1 + 3 * MSS, identification=4)
    joined = join(first + second)
    assert len(joined) == 2
    assert cut(joined) == first + second


def test_a_segment_that_is_missing_or_out_of_order_begins_another_packet() -> None:
    frames = sent(payload_of(6 * MSS))
    for given_frames in (frames[:2] + frames[3:], frames[3:] + frames[:3]):
        joined = join(given_frames)
        assert len(joined) == 2
        assert cut(joined) == given_frames


@pytest.mark.parametrize("at", [30, 34, 59, 62, 100, 1000])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_damaged_segment_is_not_joined_and_stays_damaged(at: int, which: int) -> None:
    frames = sent(payload_of(3 * MSS))
    frames[which] = changed(frames[which], at, frames[which][at] ^ 0x40)
    assert cut(join(frames)) == frames


def test_at_an_odd_length_the_checksum_counts_the_last_octet() -> None:
    frames = sent(payload_of(MSS + 101))
    assert len(join(frames)) == 1
    frames[1] = changed(frames[1], len(frames[1]) - 1, frames[1][-1] ^ 1)
    assert join(frames) == frames


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (23, 0x03),  # congestion was experienced
        (28, 0x00),  # may be fragmented
        (30, 9),  # came another way
        (50, 1),  # acknowledges something else
        (55, 0x11),  # FIN
        (55, 0x30),  # URG
        (56, 1),  # another window
        (63, 2),  # another option
    ],
)
def test_what_differs_in_anything_else_stays_apart(at: int, value: int) -> None:
    frames = sent(payload_of(2 * MSS))
    frames[1] = with_right_checksum(changed(frames[1], at, value))
    assert join(frames) == frames


def test_a_packet_is_no_longer_than_ipv4_allows() -> None:
    frames = sent(payload_of(49 * MSS))
    more = sent(payload_of(49 * MSS, 2), sequence=1 + 49 * MSS, identification=50)
    joined = join(frames + more)
    assert [len(b"".join(one)) <= VIRTIO.size + 22 + 65_535 for one in joined] == [True] * len(joined) == [True, True]
    assert cut(joined) == frames + more


def test_a_packet_has_no_more_parts_than_one_call_of_the_kernel_takes() -> None:
    packet = ipv4_tcp(payload_of(8 * 2000))
    frames = [tagged(piece) for piece in segments(packet.frame, packet.transport_at, 8)]
    joined = join(frames)
    assert max(map(len, joined)) <= 1024
    assert cut(joined) == frames


def test_all_else_is_left_alone_and_in_order() -> None:
    arp = tagged(bytes(12) + b"\x08\x06" + bytes(46))
    ipv6 = [tagged(piece) for piece in segments(ipv6_tcp(payload_of(3 * MSS)).frame, 54, MSS)]
    udp = tagged(changed(ipv4_tcp(payload_of(50)).frame, 23, 17))
    padded = sent(payload_of(1))[0] + bytes(6)
    acknowledgement = tagged(ipv4_tcp(b"").frame)
    for frames in ([arp, *ipv6, udp], [padded, padded], [acknowledgement, acknowledgement], [arp[:30], b"", arp[:20]]):
        assert join(frames) == frames


@given(st.lists(st.binary(max_size=90), max_size=6), st.integers(0, 5))
def test_whatever_comes_nothing_is_lost(noise: list[bytes], where: int) -> None:
    frames = sent(payload_of(4 * MSS))
    mixed = noise[:where] + frames[:2] + noise[where:] + frames[2:]
    assert sorted(cut(join(mixed))) == sorted(mixed)


def with_right_checksum(frame: bytes) -> bytes:
    """Make both checksums of a tagged frame of IPv4 and TCP again."""
    made = bytearray(frame)
    made[32:34] = made[58:60] = b"\0\0"
    struct.pack_into("!H", made, 32, summed(made[22:42]))
    pseudo = made[34:42] + struct.pack("!HH", 6, len(made) - 42)
    struct.pack_into("!H", made, 58, summed(pseudo + made[42:]))
    return bytes(made)


def summed(data: bytes | bytearray) -> int:
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", bytes(data) + bytes(len(data) % 2)))
    while total > 0xFFFF:
        total = (total >> 16) + (total & 0xFFFF)
    return 0xFFFF - total
