"""Telling special frames from everything else, in the kernel's filter and again behind it."""

import ctypes
import json
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from weavenet.address import parse_address
from weavenet.linux.special import HEAD_BYTES, SpecialFrame, decode_special, filter_program

PORT = 6784
SOURCE = parse_address("192.0.2.1")
VECTORS = json.loads((Path(__file__).parents[1] / "vectors/fastdp.json").read_text())["vectors"]


def packet_of(
    frame: bytes,
    *,
    vni: int = 0x002001,
    port: int = PORT,
    protocol: int = 17,
    fragment: int = 0x4000,
    flags: int = 0x08,
    options: bytes = b"",
    udp_length: int | None = None,
) -> bytes:
    """Build an outer packet; checksums are not looked at, and zero here."""
    length = 8 + 8 + len(frame)
    udp = struct.pack("!HHHH", 55555, port, length if udp_length is None else udp_length, 0)
    vxlan = bytes([flags, 0, 0, 0]) + vni.to_bytes(3, "big") + b"\0"
    first = 0x40 | 5 + len(options) // 4
    total = 20 + len(options) + length
    ip = struct.pack("!BBHHHBBH", first, 0, total, 7, fragment, 64, protocol, 0)
    return ip + SOURCE.to_bytes(4, "big") + bytes([192, 0, 2, 2]) + options + udp + vxlan + frame


def passes_filter(packet: bytes) -> bool:
    """Ask the kernel: the filter is attached to a socket pair, where it sees what is written into the other end."""
    reading, writing = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with reading, writing:
        program = filter_program(PORT)
        memory = ctypes.create_string_buffer(program, len(program))
        reading.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HP", len(program) // 8, ctypes.addressof(memory)))
        reading.setblocking(False)
        try:
            writing.send(packet)
            return reading.recv(65536, socket.MSG_TRUNC) == packet
        except (BlockingIOError, PermissionError):  # the latter tells a writer on the same machine that nobody took it
            return False


def full_frame(vector: dict[str, str | int]) -> bytes:
    head = bytes.fromhex(str(vector.get("frame", vector.get("first_32_bytes"))))
    return head.ljust(int(vector["length"]), b"\0")


HEARTBEATS = [vector for vector in VECTORS["heartbeats"] if vector["length"] <= 65000]  # one is longer than IPv4 allows


@pytest.mark.parametrize("vector", HEARTBEATS, ids=[vector["name"] for vector in HEARTBEATS])
def test_a_heartbeat_of_weave_passes_with_its_length_and_head(vector: dict[str, str | int]) -> None:
    frame = full_frame(vector)
    packet = packet_of(frame)
    assert passes_filter(packet)
    assert decode_special(packet, len(packet), PORT) == SpecialFrame(0x002001, SOURCE, len(frame), frame[:HEAD_BYTES])


@pytest.mark.parametrize("vector", VECTORS["vni"], ids=lambda vector: vector["vxlan_header"])
def test_the_vni_is_read_as_weave_writes_it(vector: dict[str, int]) -> None:
    packet = packet_of(bytes(40), vni=vector["vni"])
    assert packet[28:36].hex() == vector["vxlan_header"]
    frame = decode_special(packet, len(packet), PORT)
    assert frame is not None
    assert frame.vni == vector["src_short_id"] | vector["dst_short_id"] << 12


BEAT = bytes(14) + b"\x11" * 8 + b"\0\x40" + bytes(40)


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(packet_of(BEAT, protocol=6), id="not UDP"),
        pytest.param(packet_of(BEAT, port=4789), id="another port"),
        pytest.param(packet_of(BEAT, fragment=0x2000), id="a first fragment"),
        pytest.param(packet_of(BEAT, fragment=0x0010), id="a later fragment"),
        pytest.param(packet_of(BEAT, flags=0), id="no VNI"),
        *(
            pytest.param(packet_of(BEAT[:at] + b"\1" + BEAT[at + 1 :]), id=f"octet {at} of the addresses is not zero")
            for at in range(12)
        ),
        pytest.param(packet_of(bytes(11)), id="shorter than two addresses"),
        pytest.param(b"", id="empty"),
    ],
)
def test_anything_else_is_kept_out_by_the_filter_and_by_the_decoder(packet: bytes) -> None:
    assert not passes_filter(packet)
    assert decode_special(packet, len(packet), PORT) is None


def test_ip_options_are_stepped_over() -> None:
    packet = packet_of(BEAT, options=bytes([1] * 8))
    assert passes_filter(packet)
    assert decode_special(packet, len(packet), PORT) == SpecialFrame(0x002001, SOURCE, len(BEAT), BEAT[:32])


@pytest.mark.parametrize("udp_length", [0, 8, 27, len(BEAT) + 17, 65535])
def test_lengths_that_contradict_each_other_are_refused(udp_length: int) -> None:
    packet = packet_of(BEAT, udp_length=udp_length)
    assert decode_special(packet, len(packet), PORT) is None


def test_every_truncation_is_refused_or_is_the_same_frame_with_a_shorter_head() -> None:
    packet = packet_of(BEAT)
    whole = decode_special(packet, len(packet), PORT)
    assert whole is not None
    for end in range(len(packet)):
        assert decode_special(packet[:end], end, PORT) is None, "a packet cut on its way"
        started = decode_special(packet[:end], len(packet), PORT)  # a packet of which only the start was read
        assert started is None or started == replace(whole, head=whole.head[: end - 36])


def test_padding_behind_the_packet_does_not_count() -> None:
    packet = packet_of(BEAT[:24])
    frame = decode_special(packet + bytes(10), len(packet) + 10, PORT)
    assert frame is not None
    assert (frame.length, frame.head) == (24, BEAT[:24])


@given(st.binary(max_size=200))
def test_noise_never_raises(noise: bytes) -> None:
    decode_special(noise, len(noise), PORT)


@given(st.data())
def test_what_the_decoder_takes_the_filter_lets_through(data: st.DataObject) -> None:
    packet = bytearray(packet_of(BEAT, options=bytes(data.draw(st.sampled_from([0, 4, 40])))))
    for _ in range(data.draw(st.integers(0, 3))):
        packet[data.draw(st.integers(0, len(packet) - 1))] = data.draw(st.integers(0, 255))
    taken = decode_special(bytes(packet), len(packet), PORT)
    assert taken is None or passes_filter(bytes(packet))
