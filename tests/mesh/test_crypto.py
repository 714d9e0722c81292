import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weavenet.errors import HandshakeError, ProtocolError, RemoteError
from weavenet.mesh import crypto
from weavenet.mesh.crypto import SEAL_BYTES, KeyPair, Opener, Sealer, session_key
from weavenet.mesh.wire import MESSAGE_BYTES_MAX, Inbox, frame

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "mesh_crypto.json").read_text())["vectors"]
KEY = bytes.fromhex(VECTORS["tcp_frames"][0]["session_key"])


def test_a_key_pair_is_the_random_bytes_and_their_public_key() -> None:
    vector = VECTORS["generate_key_pair"]
    keys = KeyPair.from_entropy(bytes.fromhex(vector["random32"]))
    assert (keys.private.hex(), keys.public.hex()) == (vector["private"], vector["public"])


@pytest.mark.parametrize("vector", [pytest.param(v, id=v["password"][:12] or "empty") for v in VECTORS["session_keys"]])
def test_both_ends_come_to_weaves_session_key(vector: dict) -> None:
    password = bytes.fromhex(vector["password_hex"])
    ours = KeyPair.from_entropy(bytes.fromhex(vector["priv_a"]))
    theirs = KeyPair.from_entropy(bytes.fromhex(vector["priv_b"]))
    assert (ours.public.hex(), theirs.public.hex()) == (vector["pub_a"], vector["pub_b"])
    assert session_key(ours, theirs.public, password).hex() == vector["session_key"]
    assert session_key(theirs, ours.public, password).hex() == vector["session_key"]


@pytest.mark.parametrize("public", [bytes(32), b"\x01" + bytes(31)], ids=["zero", "one"])
def test_a_public_key_of_small_order_is_refused(public: bytes) -> None:
    with pytest.raises(HandshakeError, match="small order"):
        session_key(KeyPair.from_entropy(bytes(range(32))), public, b"secret")


@pytest.mark.parametrize(
    "vector", [pytest.param(v, id="dialler" if v["sender_is_outbound"] else "acceptor") for v in VECTORS["tcp_frames"]]
)
def test_messages_are_sealed_as_weave_seals_them(vector: dict) -> None:
    key, outbound = bytes.fromhex(vector["session_key"]), vector["sender_is_outbound"]
    sealer, opener, inbox = Sealer(key, outbound=outbound), Opener(key, outbound=not outbound), Inbox()
    nonces = crypto._Nonces(sender_dialled=outbound)
    inbox.feed(bytes.fromhex(vector["stream"]))
    for message in vector["messages"]:
        assert nonces.draw().hex() == message["nonce"]
        plain = bytes.fromhex(message["plaintext"])
        assert frame(sealer.seal(plain)).hex() == message["framed"]
        content = inbox.take_frame(MESSAGE_BYTES_MAX)
        assert content is not None
        assert opener.open(content) == plain
    assert len(inbox) == 0


@pytest.mark.parametrize("vector", [pytest.param(v, id=v["name"]) for v in VECTORS["receiver_outcomes"]])
def test_a_receiver_comes_to_weaves_conclusion(vector: dict) -> None:
    key = bytes.fromhex(VECTORS["tcp_frames"][0]["session_key"])
    opener, inbox = Opener(key, outbound=vector["receiver_is_outbound"]), Inbox()
    inbox.feed(bytes.fromhex(vector["stream"]))
    received, error = [], None
    try:
        while (content := inbox.take_frame(MESSAGE_BYTES_MAX)) is not None:
            received.append(opener.open(content).decode())
        error = "unexpected EOF" if len(inbox) else "EOF"
    except RemoteError as raised:
        error = str(raised)
    assert (received or None, error) == (vector["received"], vector["final_error"])


@given(messages=st.lists(st.binary(max_size=40), max_size=4), outbound=st.booleans())
def test_what_is_sealed_opens_at_the_other_end(messages: list[bytes], *, outbound: bool) -> None:
    sealer, opener = Sealer(KEY, outbound=outbound), Opener(KEY, outbound=not outbound)
    sealed = [sealer.seal(message) for message in messages]
    assert [len(each) for each in sealed] == [len(message) + SEAL_BYTES for message in messages]
    assert [opener.open(each) for each in sealed] == messages


@given(garbage=st.binary(max_size=60))
def test_garbage_does_not_open(garbage: bytes) -> None:
    with pytest.raises(ProtocolError, match="Unable to decrypt TCP msg"):
        Opener(KEY, outbound=True).open(garbage)
