"""Segments under one header, against a slow and obvious model: what each segment's own header would be."""

import struct

import pytest
from fast_frames import ipv4_tcp, ipv6_tcp, tcp_checksum_is_right
from hypothesis import given
from hypothesis import strategies as st

from weavenet.codec.ip import checksum
from weavenet.overlay.sleeve.fast_cut import header_of_run, segments, shape_of, with_checksum

FIN, PSH, CWR = 0x01, 0x08, 0x80


@pytest.mark.parametrize("make", [ipv4_tcp, ipv6_tcp])
@given(size=st.integers(1, 5000), mss=st.integers(8, 1500), flags=st.integers(0, 255), options=st.integers(0, 10))
def test_each_segment_has_the_header_it_would_have_been_sent_with(  # type: ignore[no-untyped-def]
    make, size: int, mss: int, flags: int, options: int
) -> None:
    payload = bytes(n % 251 for n in range(size))
    packet = make(payload, flags=flags, options=options * 4, sequence=0xFFFF_FF00, identification=0xFFFE)
    cut = list(segments(packet.frame, packet.transport_at, mss))
    pieces = [payload[at : at + mss] for at in range(0, size, mss)]
    for number, (one, piece) in enumerate(zip(cut, pieces, strict=True)):
        kept = flags & ~(0 if number == len(pieces) - 1 else FIN | PSH) & ~(CWR if number else 0)
        expected = make(
            piece,
            flags=kept,
            options=options * 4,
            sequence=(0xFFFF_FF00 + number * mss) & 0xFFFF_FFFF,
            identification=(0xFFFE + number) & 0xFFFF,
        )
        assert tcp_checksum_is_right(one, packet)
        assert one == with_checksum(expected.frame, packet.transport_at, 16)


def test_the_header_of_all_of_it_is_the_header() -> None:
    packet = ipv4_tcp(bytes(3000))
    shape = shape_of(packet.frame, packet.transport_at)
    assert shape is not None
    header = packet.frame[: shape.header_bytes]
    assert header_of_run(header, shape, segment_bytes=1000, first=0, payload_bytes=3000) == header


def test_a_pods_own_vlan_tag_is_no_obstacle() -> None:
    packet = ipv4_tcp(bytes(3000), vlan=5)
    shape = shape_of(packet.frame, packet.transport_at)
    assert shape is not None
    assert (shape.network_at, shape.payload_bytes) == (18, 3000)
    assert all(tcp_checksum_is_right(one, packet) for one in segments(packet.frame, packet.transport_at, 1000))


def test_a_checksum_that_comes_out_as_zero_is_written_as_the_other_zero() -> None:
    frame = bytes(14) + b"\xff\xff\x00\x00"
    assert checksum(frame[14:]) == 0
    assert with_checksum(frame, 14, 2)[-2:] == b"\xff\xff"


@given(st.binary(max_size=120), st.integers(0, 0xFFFF))
def test_rubbish_has_no_shape_and_no_segments_or_some_and_nothing_breaks(frame: bytes, at: int) -> None:
    shape = shape_of(frame, at)
    if shape is not None:
        assert 14 <= shape.network_at < shape.transport_at < shape.header_bytes <= len(frame)
    for one in segments(frame, at, 8):
        assert one
    assert len(with_checksum(frame, at, 16)) == len(frame)


@given(st.integers(0, 80), st.integers(0, 255))
def test_a_header_with_one_wrong_byte_does_no_harm(where: int, value: int) -> None:
    packet = ipv4_tcp(bytes(100))
    frame = bytearray(packet.frame)
    frame[where] = value
    for one in segments(bytes(frame), packet.transport_at, 50):
        assert struct.unpack_from("!H", one, 12)
