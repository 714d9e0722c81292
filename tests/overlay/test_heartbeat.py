import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weavenet.identity import ConnectionUID
from weavenet.overlay.heartbeat import HEARTBEAT_BYTES_MIN, encode_heartbeat, heartbeat_uid

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "fastdp.json").read_text())["vectors"]["heartbeats"]

uids = st.integers(0, 2**64 - 1).map(ConnectionUID)
mtus = st.integers(10, 65535)


def head_of(vector: dict[str, str]) -> bytes:
    return bytes.fromhex(vector.get("frame") or vector["first_32_bytes"])


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
def test_heartbeats_are_accepted_as_weave_accepts_them(vector: dict[str, str]) -> None:
    uid = heartbeat_uid(int(vector["length"]), head_of(vector)[:32])

    assert (uid == int(vector["connection_uid"])) == bool(vector["accepted"])


@pytest.mark.parametrize("vector", [v for v in VECTORS if v["accepted"]], ids=lambda vector: vector["name"])
def test_heartbeats_are_written_as_weave_writes_them(vector: dict[str, str]) -> None:
    length = int(vector["length"])
    frame = encode_heartbeat(ConnectionUID(int(vector["connection_uid"])), length - 14)

    assert len(frame) == length
    assert frame.startswith(head_of(vector))
    assert not any(frame[24:])


@given(uids, mtus)
def test_a_heartbeat_is_read_back(uid: ConnectionUID, mtu_bytes: int) -> None:
    frame = encode_heartbeat(uid, mtu_bytes)

    assert heartbeat_uid(len(frame), frame[:32]) == uid


@given(uids, st.integers(0, 1400))
def test_every_truncation_of_a_heartbeat_is_refused(uid: ConnectionUID, kept: int) -> None:
    frame = encode_heartbeat(uid, 1400)[:kept]

    assert heartbeat_uid(len(frame), frame[:32]) is None


def test_a_special_frame_with_an_ethernet_type_is_no_heartbeat() -> None:
    frame = bytearray(encode_heartbeat(ConnectionUID(1), 100))
    frame[12:14] = b"\x08\x00"

    assert heartbeat_uid(len(frame), bytes(frame)) is None


@given(st.integers(0, 70000), st.binary(max_size=40))
def test_any_bytes_are_a_heartbeat_or_nothing(length: int, head: bytes) -> None:
    if heartbeat_uid(length, head) is not None:
        assert length >= HEARTBEAT_BYTES_MIN
        assert int.from_bytes(head[22:24], "big") == length % 65536
