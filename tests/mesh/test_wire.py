import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from weavenet.errors import HandshakeError, ProtocolError, RemoteError
from weavenet.identity import PeerName, PeerUID, ShortID, format_peer_name, parse_peer_name
from weavenet.mesh.crypto import SEAL_BYTES
from weavenet.mesh.wire import (
    MESSAGE_BYTES_MAX,
    GossipMessage,
    Inbox,
    LocalFeatures,
    RemoteFeatures,
    Tag,
    build_features,
    build_gossip,
    build_message,
    check_outgoing,
    frame,
    negotiate_version,
    parse_features,
    parse_gossip,
    restrict_to_v1,
)

VECTORS = Path(__file__).parent.parent / "vectors"
HANDSHAKE = json.loads((VECTORS / "mesh_handshake.json").read_text())["vectors"]
MESSAGES = json.loads((VECTORS / "mesh_messages.json").read_text())["vectors"]
CRYPTO = json.loads((VECTORS / "mesh_crypto.json").read_text())["vectors"]
GOSSIP_TAGS = (Tag.GOSSIP, Tag.GOSSIP_UNICAST, Tag.GOSSIP_BROADCAST)


def named(vectors: list[dict]) -> list:
    return [pytest.param(vector, id=vector["name"]) for vector in vectors]


# --- header -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "version"),
    [((1, 2), (1, 2), 2), ((1, 2), (1, 1), 1), ((1, 1), (1, 2), 1), ((2, 2), (1, 2), 2), ((1, 2), (1, 255), 2)],
)
def test_the_lower_maximum_is_spoken(ours: tuple[int, int], theirs: tuple[int, int], version: int) -> None:
    assert negotiate_version(b"weave" + bytes(theirs), *ours) == version


@pytest.mark.parametrize("vector", [v for v in named(HANDSHAKE["header_errors"]) if "range" in v.id or "magic" in v.id])
def test_a_header_is_refused_in_weaves_words(vector: dict) -> None:
    with pytest.raises(HandshakeError) as raised:
        negotiate_version(bytes.fromhex(vector["sent_to_peer"]), 1, 2)
    assert str(raised.value) == vector["peer_error"]


# --- features ---------------------------------------------------------------------------------------------------------


def test_features_are_named_as_weave_names_them() -> None:
    wanted = HANDSHAKE["make_features"]
    features = wanted["features"]
    local = LocalFeatures(
        name=parse_peer_name(features["Name"]),
        nickname=features["NickName"],
        uid=PeerUID(int(features["UID"])),
        connection_id=int(features["ConnID"]),
        short_id=ShortID(int(features["ShortID"])),
        trusted=True,
        overlays=features["Overlays"],
    )
    assert build_features(local) == features
    assert restrict_to_v1(build_features(local)) == wanted["after_v1_filter"]


@pytest.mark.parametrize("vector", named(HANDSHAKE["parse_features"]))
def test_features_are_read_as_weave_reads_them(vector: dict) -> None:
    if vector["error"] is not None:
        with pytest.raises(HandshakeError) as raised:
            parse_features(vector["features"])
        assert str(raised.value) == vector["error"]
        return
    remote, peer = parse_features(vector["features"]), vector["peer"]
    assert format_peer_name(remote.name) == peer["name"]
    assert (remote.nickname, remote.uid) == (peer["nickname"], peer["uid"])
    assert remote.short_id == (peer["short_id"] if peer["has_short_id"] else None)
    assert remote.trusted == vector["trusted_by_remote"]
    assert remote.connection_id ^ vector["local_conn_id"] == vector["connection_uid_xor"]
    assert remote.overlays == ("fastdp", "sleeve")


REQUIRED = {"PeerNameFlavour": "mac", "Name": "::1", "NickName": "n", "UID": "1", "ConnID": "2"}


def test_features_of_version_1_leave_the_rest_open() -> None:
    assert parse_features(REQUIRED) == RemoteFeatures(
        PeerName(1), "n", PeerUID(1), 2, None, trusted=False, overlays=None
    )


def test_formats_of_sleeve_are_a_feature_of_our_own_and_none_is_not_named() -> None:
    local = LocalFeatures(PeerName(1), "n", PeerUID(1), 2, ShortID(3), trusted=False, overlays="sleeve")
    assert "SleeveFormats" not in build_features(local)
    named = build_features(replace(local, sleeve_formats="one two"))
    assert named["SleeveFormats"] == "one two"
    assert parse_features(named).sleeve_formats == ("one", "two")
    assert parse_features(restrict_to_v1(named)).sleeve_formats == ()


@pytest.mark.parametrize("text", ["1", "t", "T", "TRUE", "true", "True"])
def test_yes_is_spelled_as_in_go(text: str) -> None:
    assert parse_features({**REQUIRED, "Trusted": text}).trusted


@pytest.mark.parametrize("text", ["0", "f", "F", "FALSE", "false", "False"])
def test_no_is_spelled_as_in_go(text: str) -> None:
    assert not parse_features({**REQUIRED, "Trusted": text}).trusted


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("", "invalid syntax", id="empty"),
        pytest.param("+1", "invalid syntax", id="sign"),
        pytest.param("1_0", "invalid syntax", id="underscore"),
        pytest.param(" 1", "invalid syntax", id="space"),
        pytest.param("\u0661", "invalid syntax", id="a digit that is not ASCII"),
        pytest.param("9" * 100_000, "value out of range", id="very many digits"),
    ],
)
def test_a_number_that_is_none_is_refused(text: str, reason: str) -> None:
    with pytest.raises(HandshakeError, match=reason) as raised:
        parse_features({**REQUIRED, "UID": text})
    assert len(str(raised.value)) < 200


def test_leading_zeros_do_not_matter() -> None:
    assert parse_features({**REQUIRED, "UID": "0" * 10_000 + "18446744073709551615"}).uid == 2**64 - 1
    assert parse_features({**REQUIRED, "UID": "000"}).uid == 0


def test_a_strangers_text_is_cut_before_it_reaches_the_log() -> None:
    for key in ("Name", "PeerNameFlavour", "ConnID", "ShortID", "Trusted"):
        with pytest.raises(HandshakeError) as raised:
            parse_features({**REQUIRED, key: "x" * 60_000})
        assert len(str(raised.value)) < 200


@given(features=st.dictionaries(st.sampled_from([*REQUIRED, "ShortID", "Trusted", "Overlays"]), st.text(max_size=20)))
def test_any_features_are_read_or_refused(features: dict[str, str]) -> None:
    for candidate in (features, {**REQUIRED, **features}):
        with suppress(HandshakeError):
            parse_features(candidate)


# --- frames -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", named(CRYPTO["length_prefix"]))
def test_frames_are_read_as_weave_reads_them(vector: dict) -> None:
    inbox = Inbox()
    inbox.feed(bytes.fromhex(vector["stream"]))
    if vector["error"] is None:
        assert inbox.take_frame(MESSAGE_BYTES_MAX) == bytes.fromhex(vector["message"])
        assert frame(bytes.fromhex(vector["message"])).hex() == vector["stream"]
    elif vector["error"] == "EOF":
        assert inbox.take_frame(MESSAGE_BYTES_MAX) is None
    else:
        with pytest.raises(ProtocolError) as raised:
            inbox.take_frame(MESSAGE_BYTES_MAX)
        assert str(raised.value) == vector["error"]


@pytest.mark.parametrize("vector", CRYPTO["sender_limits"])
def test_the_limit_is_on_what_is_on_the_wire(vector: dict) -> None:
    length = vector["length"] + (SEAL_BYTES if vector.get("encrypted") else 0)
    if vector["error"] is None:
        check_outgoing(length)
        assert len(frame(bytes(length))) == length + 4
        return
    with pytest.raises(ProtocolError) as raised:
        check_outgoing(length)
    assert str(raised.value) == vector["error"]
    with pytest.raises(ProtocolError):
        frame(bytes(length))


@given(contents=st.lists(st.binary(max_size=10), max_size=5), cuts=st.lists(st.integers(0, 60), max_size=5))
def test_frames_do_not_depend_on_how_they_arrive(contents: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(frame(content) for content in contents)
    inbox, found, last = Inbox(), [], 0
    for cut in [*sorted(cuts), len(stream)]:
        inbox.feed(stream[last:cut])
        last = max(last, cut)
        while (content := inbox.take_frame(MESSAGE_BYTES_MAX)) is not None:
            found.append(content)
    assert found == contents
    assert len(inbox) == 0


# --- messages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", named(MESSAGES))
def test_each_message_is_built_as_weave_builds_it(vector: dict) -> None:
    tag, fields = Tag(vector["tag"]), vector["fields"]
    if tag in GOSSIP_TAGS:
        message = build_gossip(tag, gossip_of(fields))
    else:
        payload = bytes([fields["forwarder_index"], fields["subtag"]]) if tag is Tag.OVERLAY_CONTROL else b""
        payload += fields["mtu"].to_bytes(2, "big") if "mtu" in fields else b""
        if "nonce" in fields:
            payload += bytes.fromhex(fields["nonce"]) + fields["spi"].to_bytes(4, "big") + bytes(28)
        message = build_message(tag, payload)
    assert message.hex() == vector["message"]
    assert frame(message).hex() == vector["framed_v2_plain"]


def gossip_of(fields: dict) -> GossipMessage:
    return GossipMessage(
        channel=fields["channel"],
        source=parse_peer_name(fields["source"]),
        destination=parse_peer_name(fields["destination"]) if "destination" in fields else None,
        data=bytes.fromhex(fields["payload"]),
    )


GOSSIP_VECTORS = [vector for vector in MESSAGES if vector["tag"] in GOSSIP_TAGS]


@pytest.mark.parametrize("vector", named(GOSSIP_VECTORS))
def test_gossip_is_read_as_weave_wrote_it(vector: dict) -> None:
    payload = bytes.fromhex(vector["message"])[1:]
    assert parse_gossip(Tag(vector["tag"]), payload) == gossip_of(vector["fields"])
    assert parse_gossip(Tag(vector["tag"]), payload + b"more") == gossip_of(vector["fields"])


@pytest.mark.parametrize("vector", named(GOSSIP_VECTORS))
def test_gossip_cut_short_is_refused(vector: dict) -> None:
    payload = bytes.fromhex(vector["message"])[1:]
    for end in range(len(payload)):
        with pytest.raises(RemoteError):
            parse_gossip(Tag(vector["tag"]), payload[:end])


def test_gossip_of_one_kind_is_not_read_as_another() -> None:
    unicast = build_gossip(Tag.GOSSIP_UNICAST, GossipMessage("c", PeerName(1), PeerName(2), b"x"))
    broadcast = build_gossip(Tag.GOSSIP_BROADCAST, GossipMessage("c", PeerName(1), None, b"x"))
    with pytest.raises(RemoteError):
        parse_gossip(Tag.GOSSIP, unicast[1:])
    with pytest.raises(RemoteError):
        parse_gossip(Tag.GOSSIP_UNICAST, broadcast[1:])


NAMES = st.integers(0, 2**64 - 1).map(PeerName)


@given(channel=st.text(max_size=12), source=NAMES, destination=NAMES, data=st.binary(max_size=300))
def test_any_gossip_survives_the_wire(channel: str, source: PeerName, destination: PeerName, data: bytes) -> None:
    for tag in GOSSIP_TAGS:
        gossip = GossipMessage(channel, source, destination if tag is Tag.GOSSIP_UNICAST else None, data)
        message = build_gossip(tag, gossip)
        assert message[0] == tag
        assert parse_gossip(tag, message[1:]) == gossip


@given(garbage=st.binary(max_size=60), tag=st.sampled_from(GOSSIP_TAGS))
def test_garbage_gossip_raises_nothing_but_remote_errors(garbage: bytes, tag: Tag) -> None:
    with suppress(RemoteError):
        parse_gossip(tag, garbage)
