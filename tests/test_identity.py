import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weavenet.errors import PeerNameError
from weavenet.identity import (
    UNKNOWN_PEER,
    PeerName,
    format_peer_name,
    parse_peer_name,
    peer_name_from_bytes,
    peer_name_to_bytes,
)

VECTORS = json.loads((Path(__file__).parent / "vectors" / "mesh_peername.json").read_text())["vectors"]


@pytest.mark.parametrize("vector", [pytest.param(vector, id=repr(vector["input"])) for vector in VECTORS["parse"]])
def test_a_name_is_read_as_weave_reads_it(vector: dict) -> None:
    if vector["error"] is not None:
        with pytest.raises(PeerNameError) as raised:
            parse_peer_name(vector["input"])
        assert str(raised.value) == vector["error"]
        return
    name = parse_peer_name(vector["input"])
    assert name == vector["uint64"]
    assert format_peer_name(name) == vector["name"]
    assert peer_name_to_bytes(name).hex() == vector["bin"]


@pytest.mark.parametrize("vector", [pytest.param(vector, id=vector["bin"] or "none") for vector in VECTORS["from_bin"]])
def test_a_name_is_folded_from_any_number_of_bytes(vector: dict) -> None:
    name = peer_name_from_bytes(bytes.fromhex(vector["bin"]))
    assert name == vector["uint64"]
    assert format_peer_name(name) == vector["name"]


@given(name=st.integers(0, 2**48 - 1).map(PeerName))
def test_a_name_survives_being_written(name: PeerName) -> None:
    assert parse_peer_name(format_peer_name(name)) == name
    assert peer_name_from_bytes(peer_name_to_bytes(name)) == name


@given(text=st.text(alphabet="0123456789abcdefABCDEFg:+- \u0663", max_size=20))
def test_any_text_is_a_name_or_refused(text: str) -> None:
    with suppress(PeerNameError):
        assert 0 <= parse_peer_name(text) < 2**48


def test_zero_is_the_unknown_peer() -> None:
    assert format_peer_name(UNKNOWN_PEER) == "00:00:00:00:00:00"
