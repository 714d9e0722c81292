"""Datagrams and frames against what the reference makes of them (tests/vectors/sleeve.json), and captured ones."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weavenet.codec import ip
from weavenet.identity import PeerName, parse_peer_name
from weavenet.overlay.sleeve.crypto import DatagramOpener, DatagramSealer
from weavenet.overlay.sleeve.wire import (
    NAME_BYTES,
    PLAIN_OVERHEAD_BYTES,
    SEALED_OVERHEAD_BYTES,
    SpecialKind,
    encode_frame_header,
    encode_heartbeat,
    heartbeat_uid,
    is_special,
    is_too_big,
    names_of,
    overhead_bytes,
    peers_of,
    special_kind_of,
    split_frames,
)

TESTS = Path(__file__).parents[2]
VECTORS: dict[str, Any] = json.loads((TESTS / "vectors/sleeve.json").read_text())["vectors"]


def named(kind: str) -> Any:
    return pytest.mark.parametrize("vector", VECTORS[kind], ids=lambda vector: str(vector.get("name")))


def carried(frames: list[dict[str, str]] | None) -> list[tuple[bytes, bytes]]:
    def name(text: str) -> PeerName:
        return parse_peer_name(text) if ":" in text else PeerName(int(text, 16))

    return [(names_of(name(f["src"]), name(f["dst"])), bytes.fromhex(f["frame"])) for f in frames or []]


def encode_frame(one: tuple[bytes, bytes]) -> bytes:
    names, frame = one
    return encode_frame_header(*peers_of(names), len(frame)) + frame


def encode_name(text: str) -> bytes:
    return parse_peer_name(text).to_bytes(NAME_BYTES, "big")


@named("plain")
def test_a_plain_datagram_is_written_and_read_as_the_reference_does(vector: Any) -> None:
    payload = bytes.fromhex(vector["udp_payload"])
    frames = carried(vector["frames"])
    assert encode_name(vector["sender"]) + b"".join(map(encode_frame, frames)) == payload
    assert split_frames(payload, NAME_BYTES) == (frames, "")
    lengths = [PLAIN_OVERHEAD_BYTES]
    for frame in frames:
        lengths.append(lengths[-1] + len(encode_frame(frame)))
    assert lengths == vector["total_len_after_each_append"]


@named("decode_plain")
def test_what_is_malformed_spoils_the_rest_of_its_datagram_only(vector: Any) -> None:
    frames, problem = split_frames(bytes.fromhex(vector["payload"]))
    assert frames == carried([{**f} for f in vector["frames"] or []])
    assert problem == (vector["error"] or "")


@named("encrypted")
def test_a_sealed_datagram_is_that_of_the_reference_bit_by_bit(vector: Any) -> None:
    key, dialled = bytes.fromhex(vector["session_key"]), vector["sender_is_outbound"]
    sealer = DatagramSealer(key, dialled=dialled)
    sealer._next[vector["df"]] = vector["seq"]
    frames = b"".join(map(encode_frame, carried(vector["frames"])))
    payload = encode_name(vector["sender"]) + sealer.seal(frames, dont_fragment=vector["df"])
    assert payload == bytes.fromhex(vector["udp_payload"])
    assert len(payload) == SEALED_OVERHEAD_BYTES + len(frames)
    assert DatagramOpener(key, dialled=not dialled).open(payload[NAME_BYTES:]) == (frames, "")


def test_every_datagram_has_a_number_of_its_own_in_its_stream() -> None:
    sealer = DatagramSealer(bytes(32), dialled=True)
    numbers = [sealer.seal(b"", dont_fragment=way)[:8].hex() for way in (True, False, True, False)]
    assert numbers == ["8000000000000000", "0000000000000000", "8000000000000001", "0000000000000001"]


@named("decode_encrypted")
def test_a_datagram_is_opened_once_whatever_its_order(vector: Any) -> None:
    opener = DatagramOpener(bytes.fromhex(vector["session_key"]), dialled=vector["receiver_is_outbound"])
    for step in vector["steps"]:
        frames, problem = opener.open(bytes.fromhex(step["packet"]))
        assert (frames is not None) == step["delivered"], step
        assert problem == (step["error"] or ""), step


@named("classification")
def test_frames_are_told_apart(vector: Any) -> None:
    frame = bytes.fromhex(vector["frame"]) if "frame" in vector else bytes(vector["length"])
    assert is_special(frame) == vector["special"]
    flagged = ip.ipv4_header_bytes(frame) and frame[ip.FLAGS_AT] & ip.DONT_FRAGMENT
    assert bool(flagged) == vector["df"]
    assert bool(ip.ipv4_header_bytes(frame)) == (vector["decoded_layers"] == 2)


@named("frame_too_big")
def test_the_mtu_does_not_count_the_ethernet_header(vector: Any) -> None:
    assert is_too_big(vector["frame_length"], vector["mtu"]) == vector["too_big"]


@named("fragmentation")
def test_a_packet_is_cut_as_the_reference_cuts_it(vector: Any) -> None:
    frame = bytes.fromhex(vector["frame"])
    assert [piece.hex() for piece in ip.fragment(frame, vector["mtu"])] == vector["fragments"]


@named("icmp_frag_needed")
def test_a_sender_is_told_what_would_fit_in_the_references_words(vector: Any) -> None:
    answer = ip.fragmentation_needed(bytes.fromhex(vector["original"]), vector["mtu"])
    assert answer.hex() == vector["icmp_frame"]


def test_overheads_are_the_references() -> None:
    known = VECTORS["overheads"]
    assert (overhead_bytes(sealed=False), overhead_bytes(sealed=True)) == (known["plain"], known["encrypted"])
    assert 1500 - overhead_bytes(sealed=False) == known["example_mtu_for_underlay_1500"]["plain"]
    assert SEALED_OVERHEAD_BYTES - PLAIN_OVERHEAD_BYTES == 24


@pytest.mark.parametrize("capture", ["captures_plain", "captures_encrypted"])
def test_datagrams_of_real_peers_are_read(capture: str) -> None:
    recorded = json.loads((TESTS / f"vectors/{capture}.json").read_text())
    keys = {bytes.fromhex(stream["session_key"]) for stream in recorded["tcp"] if stream.get("session_key")}
    assert recorded["udp"]
    for datagram in recorded["udp"]:
        if datagram["payload"] is None:
            continue  # more than 4,000 bytes, which the recording leaves out
        payload, decoded = bytes.fromhex(datagram["payload"]), datagram["decoded"]
        assert len(payload) == datagram["len"]
        assert payload[:NAME_BYTES] == encode_name(decoded["sender"])
        frames = payload[NAME_BYTES:]
        if "seq" in decoded:
            dialled = not decoded["sender_is_outbound"]
            opened = [DatagramOpener(key, dialled=dialled).open(frames)[0] for key in keys]
            frames = next(one for one in opened if one is not None)
        found, problem = split_frames(frames)
        assert problem == ""
        assert [len(frame) for _, frame in found] == [shown["len"] for shown in decoded["frames"]]
        assert [peers_of(names)[0] for names, _ in found] == [
            parse_peer_name(shown["src"]) for shown in decoded["frames"]
        ]
        kinds = [special_kind_of(len(frame)) if is_special(frame) else None for _, frame in found]
        assert kinds == [SHOWN_KINDS.get(shown["kind"]) for shown in decoded["frames"]]


def udp_payloads(pcap: bytes) -> list[bytes]:
    """Return the whole UDP datagrams of a capture, put together from their fragments."""
    payloads: list[bytes] = []
    parts: dict[bytes, dict[int, bytes]] = {}
    at = 24
    while at < len(pcap):
        captured = int.from_bytes(pcap[at + 8 : at + 12], "little")
        frame = pcap[at + 16 : at + 16 + captured]
        at += 16 + captured
        header = ip.ipv4_header_bytes(frame)
        if not header or frame[23] != 17:
            continue
        total, flags = int.from_bytes(frame[16:18], "big"), int.from_bytes(frame[20:22], "big")
        pieces = parts.setdefault(frame[18:20] + frame[26:34], {})
        pieces[(flags & 0x1FFF) * 8] = frame[14 + header : 14 + total]
        if not flags & 0x2000:
            whole = b"".join(pieces[start] for start in sorted(pieces))
            if len(whole) == int.from_bytes(whole[4:6], "big"):
                payloads.append(whole[8:])
            del parts[frame[18:20] + frame[26:34]]
    return payloads


@pytest.mark.parametrize("kind", ["plain", "enc"])
def test_a_captured_session_of_real_peers_is_opened_and_read_whole(kind: str) -> None:
    payloads = udp_payloads((TESTS / f"recorded/sleeve-udp-{kind}.pcap").read_bytes())
    log = (TESTS / "recorded/keylog-enc.jsonl").read_text().splitlines()
    key = bytes.fromhex(json.loads(log[0])["session_key"])
    openers = [DatagramOpener(key, dialled=way) for way in (False, True)]
    seen: dict[str, int] = {}
    for payload in payloads:
        frames = payload[NAME_BYTES:]
        if kind == "enc":
            frames = next(one for one in (opener.open(frames)[0] for opener in openers) if one is not None)
        found, problem = split_frames(frames)
        assert problem == ""
        for _, frame in found:
            what = special_kind_of(len(frame)).name if is_special(frame) else frame[12:14].hex()
            seen[what] = seen.get(what, 0) + 1
    assert len(payloads) > 500
    assert seen.keys() >= {"HEARTBEAT", "MTU_TEST", "FRAGMENTATION_TEST", "0800", "0806"}


SHOWN_KINDS = {
    "heartbeat": SpecialKind.HEARTBEAT,
    "fragtest": SpecialKind.FRAGMENTATION_TEST,
    "pmtu-test": SpecialKind.MTU_TEST,
}


@given(st.binary(max_size=400))
def test_no_bytes_crash_the_decoder_and_what_it_takes_it_can_write(payload: bytes) -> None:
    frames, problem = split_frames(payload)
    written = b"".join(map(encode_frame, frames))
    assert payload.startswith(written)
    assert (written == payload) == (problem == "")


@given(st.binary(max_size=200))
def test_no_frame_crashes_the_reader_of_ip(frame: bytes) -> None:
    if ip.ipv4_header_bytes(frame):
        assert b"".join(ip.fragment(frame, 576))
        assert ip.fragmentation_needed(frame, 576)


@given(st.binary(min_size=8, max_size=3000), st.integers(68, 1500), st.binary(max_size=30))
def test_pieces_put_together_are_the_packet(payload: bytes, mtu: int, padding: bytes) -> None:
    header = bytes.fromhex("4510 0000 0063 0000 4011 0000 0a200001 0a2c0002".replace(" ", ""))
    total = (20 + len(payload)).to_bytes(2, "big")
    frame = bytes(12) + b"\x08\x00" + header[:2] + total + header[4:] + payload + padding
    together = bytearray(len(payload))
    for piece in ip.fragment(frame, mtu):
        size = int.from_bytes(piece[16:18], "big")
        assert size <= mtu
        assert ip.checksum(piece[14:34]) == 0
        at = (int.from_bytes(piece[20:22], "big") & 0x1FFF) * 8
        together[at : at + size - 20] = piece[34 : 14 + size]
    assert together == payload


def test_a_heartbeat_tells_its_connection() -> None:
    frame = encode_heartbeat(heartbeat_uid(bytes(14) + bytes.fromhex("1122334455667788")))
    assert special_kind_of(len(frame)) is SpecialKind.HEARTBEAT
    assert special_kind_of(len(bytes(60_001))) is SpecialKind.FRAGMENTATION_TEST
    assert special_kind_of(len(bytes(1452))) is SpecialKind.MTU_TEST
