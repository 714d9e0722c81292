import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weavenet.codec.vxlan import HEADER_BYTES, VNI_COUNT, decode_header, encode_header, pack_vni, split_vni
from weavenet.errors import CodecError, TruncatedError
from weavenet.identity import SHORT_ID_COUNT, ShortID

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "fastdp.json").read_text())["vectors"]["vni"]

short_ids = st.integers(0, SHORT_ID_COUNT - 1).map(ShortID)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: f"{vector['src_short_id']}-{vector['dst_short_id']}")
def test_a_vni_is_packed_as_weave_packs_it(vector: dict[str, int | str]) -> None:
    origin, destination = ShortID(int(vector["src_short_id"])), ShortID(int(vector["dst_short_id"]))

    vni = pack_vni(origin, destination)

    assert vni == vector["vni"]
    assert vni.to_bytes(8, "big").hex() == vector["tunnel_id_8_bytes"]
    assert encode_header(vni).hex() == vector["vxlan_header"]
    assert split_vni(vni) == (origin, destination)


@given(short_ids, short_ids)
def test_a_vni_holds_two_short_ids(origin: ShortID, destination: ShortID) -> None:
    assert split_vni(pack_vni(origin, destination)) == (origin, destination)


@given(st.integers(0, VNI_COUNT - 1), st.binary(max_size=20))
def test_a_header_is_read_back_whatever_follows_it(vni: int, rest: bytes) -> None:
    assert decode_header(encode_header(vni) + rest) == vni


@pytest.mark.parametrize("length", range(HEADER_BYTES))
def test_every_truncated_header_is_refused(length: int) -> None:
    with pytest.raises(TruncatedError, match=f"here are {length}"):
        decode_header(encode_header(0x123ABC)[:length])


def test_a_header_without_the_flag_for_a_vni_is_refused() -> None:
    with pytest.raises(CodecError, match="without a VNI"):
        decode_header(bytes(8))


@given(st.binary(max_size=40))
def test_any_bytes_are_decoded_or_refused(raw: bytes) -> None:
    try:
        assert 0 <= decode_header(raw) < VNI_COUNT
    except CodecError:
        assert len(raw) < HEADER_BYTES or not raw[0] & 8
