"""Conversations of real Weave peers, fed to ours in the place of either of them.

Three sources: introductions made by Weave's own code with chosen random numbers, byte streams of whole sessions with
their decoding, and packet captures with the private keys of both ends.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from weavenet.codec.cursor import Cursor
from weavenet.effects import Now
from weavenet.errors import HandshakeError, ProtocolError, RemoteError
from weavenet.identity import PeerName, PeerUID, ShortID, format_peer_name, parse_peer_name
from weavenet.mesh import session as session_module
from weavenet.mesh.connection import Connection, ConnectionOptions, Introduced, LocalPeer, Message
from weavenet.mesh.keyring import Keyring, Password
from weavenet.mesh.wire import FEATURES_V1, Tag, parse_features, parse_gossip

TESTS = Path(__file__).parent.parent
HANDSHAKE = json.loads((TESTS / "vectors" / "mesh_handshake.json").read_text())["vectors"]
NOW = Now(monotonic_s=0.0, wall_s=0.0)
GOSSIP_TAGS = {Tag.GOSSIP, Tag.GOSSIP_UNICAST, Tag.GOSSIP_BROADCAST}


class ChosenEntropy:
    """The numbers that the recorded peer drew."""

    def __init__(self, connection_id: int, private: bytes = bytes(32)) -> None:
        self._connection_id = connection_id
        self._private = private

    def bits(self, count: int) -> int:
        assert count == 64
        return self._connection_id

    def octets(self, count: int) -> bytes:
        assert count == 32
        return self._private

    def fraction(self) -> float:
        raise AssertionError


def stand_in(
    features: dict[str, str],
    password: bytes | None,
    *,
    outbound: bool,
    private: bytes = bytes(32),
    versions: tuple[int, int] = (1, 2),
    beside: Sequence[bytes] = (),
) -> Connection:
    """Make a connection that introduces itself as a recorded peer did."""
    ring = None if password is None else Keyring.of(*beside, password)
    return Connection(
        LocalPeer(parse_peer_name(features["Name"]), PeerUID(int(features["UID"])), features["NickName"]),
        ConnectionOptions(ring, *versions, overlays=features["Overlays"], can_move=False, compact=False),
        outbound=outbound,
        short_id=ShortID(int(features["ShortID"])),
        trusted=features["Trusted"] == "true",
        entropy=ChosenEntropy(int(features["ConnID"]), private),
        now=NOW,
    )


def listen(connection: Connection, stream: bytes, piece_bytes: int) -> tuple[bytes, Introduced, list[Message]]:
    """Feed a whole stream; return what the connection wrote, and what it understood."""
    written, introduced, messages = connection.start(), None, []
    for start in range(0, len(stream), piece_bytes):
        more, events = connection.receive(stream[start : start + piece_bytes], NOW)
        written += more
        for event in events:
            if isinstance(event, Introduced):
                introduced = event
                messages += connection.proceed(NOW)[1]
            else:
                messages.append(event)
    assert introduced is not None
    return written, introduced, messages


def as_messages(plaintexts: list[bytes]) -> list[Message]:
    return [Message(plain[0], plain[1:]) for plain in plaintexts if plain]


# --- introductions made by Weave's code -------------------------------------------------------------------------------

TRANSCRIPTS = HANDSHAKE["transcripts"]
COMPLETE = [pytest.param(v, id=v["name"]) for v in TRANSCRIPTS if v["a_error"] is None]
FAILING = [pytest.param(v, id=v["name"]) for v in TRANSCRIPTS if v["a_error"] is not None]


def end_of(transcript: dict, end: str, beside: Sequence[bytes] = ()) -> Connection:
    password = transcript[f"{end}_password"]
    low, high = transcript[f"{end}_versions"]
    return stand_in(
        transcript[f"{end}_features_in"],
        None if password is None else password.encode(),
        outbound=end == "a",
        private=bytes.fromhex(transcript.get(f"{end}_private", "00" * 32)),
        versions=(low, high),
        beside=beside,
    )


@pytest.mark.parametrize("piece_bytes", [1, 1 << 20])
@pytest.mark.parametrize(("end", "other"), [("a", "b"), ("b", "a")])
@pytest.mark.parametrize("transcript", COMPLETE)
def test_we_can_take_either_place_in_an_introduction(transcript: dict, end: str, other: str, piece_bytes: int) -> None:
    stream = bytes.fromhex(transcript[f"bytes_{other}_to_{end}"])
    connection = end_of(transcript, end)
    written, introduced, messages = listen(connection, stream, piece_bytes)
    assert introduced.features == parse_features(transcript[f"{end}_got_features"])
    assert introduced.version == transcript["version"]
    assert (introduced.session_key or b"").hex() == transcript.get("session_key", "")
    plaintexts = [bytes.fromhex(each) for each in transcript[f"messages_{other}_to_{end}"]]
    assert messages == as_messages(plaintexts)
    assert str(connection.end_of_stream()) == "EOF"
    # Features have no order, so what we write is judged by the other end; and our type id, 65, takes a byte more.
    sent = b"".join(connection.send(bytes.fromhex(each)) for each in transcript[f"messages_{end}_to_{other}"])
    assert len(written + sent) == len(bytes.fromhex(transcript[f"bytes_{end}_to_{other}"])) + 1
    _, seen, got = listen(end_of(transcript, other), written + sent, piece_bytes)
    assert seen.features == parse_features(transcript[f"{other}_got_features"])
    assert got == as_messages([bytes.fromhex(each) for each in transcript[f"messages_{end}_to_{other}"]])


ENCRYPTED = [param for param in COMPLETE if "session_key" in param.values[0]]


@pytest.mark.parametrize("piece_bytes", [1, 1 << 20])
@pytest.mark.parametrize("transcript", ENCRYPTED)
def test_weave_dials_an_acceptor_with_several_passwords_and_notices_nothing(transcript: dict, piece_bytes: int) -> None:
    connection = end_of(transcript, "b", beside=[b"in use", b"another"])
    written, introduced, messages = listen(connection, bytes.fromhex(transcript["bytes_a_to_b"]), piece_bytes)
    assert (introduced.session_key or b"").hex() == transcript["session_key"]
    assert messages == as_messages([bytes.fromhex(each) for each in transcript["messages_a_to_b"]])
    sent = b"".join(connection.send(bytes.fromhex(each)) for each in transcript["messages_b_to_a"])
    _, seen, got = listen(end_of(transcript, "a"), written + sent, piece_bytes)
    assert seen.features == parse_features(transcript["a_got_features"])
    assert got == as_messages([bytes.fromhex(each) for each in transcript["messages_b_to_a"]])


@pytest.mark.parametrize("transcript", ENCRYPTED)
def test_a_dialler_that_guessed_wrong_learns_the_password_from_what_weave_had_sealed(transcript: dict) -> None:
    connection = end_of(transcript, "a", beside=[b"in use", b"another"])
    with pytest.raises((HandshakeError, ProtocolError), match="the peer uses key key3, and was greeted with key init"):
        listen(connection, bytes.fromhex(transcript["bytes_b_to_a"]), 1 << 20)
    assert connection.hint == Password(transcript["b_password"].encode())


@pytest.mark.parametrize(("end", "other"), [("a", "b"), ("b", "a")])
@pytest.mark.parametrize("transcript", FAILING)
def test_an_introduction_fails_as_it_did_for_weave(transcript: dict, end: str, other: str) -> None:
    connection, error = end_of(transcript, end), ""
    try:
        connection.receive(bytes.fromhex(transcript[f"bytes_{other}_to_{end}"]), NOW)
        error = str(connection.end_of_stream())
    except HandshakeError as raised:
        error = str(raised)
    wanted = transcript[f"{end}_error"]
    if transcript["name"] == "v2_password_mismatch":
        # Each end's private key is not recorded, but no key makes the other's frame open. Weave's first end to notice
        # closed the connection before the other had read.
        wanted = "Unable to decrypt TCP msg; is the password the same on both peers?"
    elif wanted == "EOF" or "connection reset" in wanted:
        # Weave saw the other end hang up; the reason for that had been sent before, and we read it.
        wanted = {
            "v2_password_only_a": "no password specificed, but peer requested an encrypted connection",
            "v2_password_only_b": "password specified, but peer requested an unencrypted connection",
        }[transcript["name"]]
    assert error == wanted


@pytest.mark.parametrize("vector", [pytest.param(v, id=v["name"]) for v in HANDSHAKE["header_errors"]])
def test_a_broken_opening_is_refused_in_weaves_words(vector: dict) -> None:
    features = TRANSCRIPTS[0]["b_features_in"]
    connection, error = stand_in(features, None, outbound=False), None
    written = connection.start()
    try:
        more, _ = connection.receive(bytes.fromhex(vector["sent_to_peer"]), NOW)
        written += more
        error = str(connection.end_of_stream())
    except HandshakeError as raised:
        error = str(raised)
    assert error == vector["peer_error"]
    replied = bytes.fromhex(vector["peer_replied"])
    # A flag that we refuse with the header in the same piece leaves our own flag unsent; and our type id is 65.
    assert len(written) - len(replied) == {"v2 then bad encryption flag": -1, "v2 plain flag then EOF": 1}.get(
        vector["name"], 0
    )


def test_version_1_carries_five_features_only() -> None:
    transcript = next(v for v in TRANSCRIPTS if v["name"] == "v1_plain")
    assert set(transcript["b_got_features"]) == set(FEATURES_V1)


# --- recorded sessions with their decoding ----------------------------------------------------------------------------

SESSIONS = [
    pytest.param(session, id=f"{kind} {session['client']}")
    for kind in ("plain", "encrypted")
    for session in json.loads((TESTS / "vectors" / f"captures_{kind}.json").read_text())["tcp"]
]
WHOLE_SESSIONS = [param for param in SESSIONS if "features" in param.values[0]["client_decoded"]]
BROKEN_SESSIONS = [param for param in SESSIONS if param not in WHOLE_SESSIONS]
DIRECTIONS = [("client", "server"), ("server", "client")]


def test_every_recorded_session_is_used() -> None:
    assert (len(WHOLE_SESSIONS), len(BROKEN_SESSIONS)) == (6, 5)


@pytest.mark.parametrize("piece_bytes", [1, 1448, 1 << 20])
@pytest.mark.parametrize(("end", "other"), DIRECTIONS)
@pytest.mark.parametrize("session", WHOLE_SESSIONS)
def test_a_recorded_session_is_understood_to_its_end(
    session: dict, end: str, other: str, piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = None
    if "session_key" in session:
        # The private keys were not recorded, but what both ends made of them was.
        password = b"wfvAwt7sj"
        monkeypatch.setattr(session_module, "session_key_of", lambda *_: bytes.fromhex(session["session_key"]))
    ours, theirs = session[f"{end}_decoded"], session[f"{other}_decoded"]
    connection = stand_in(ours["features"], password, outbound=end == "client")
    stream = bytes.fromhex(session[f"{other}_to_{end}"])
    written, introduced, messages = listen(connection, stream, piece_bytes)
    assert introduced.features == parse_features(theirs["features"])
    assert introduced.uid == int(ours["features"]["ConnID"]) ^ int(theirs["features"]["ConnID"])
    assert messages == as_messages([bytes.fromhex(each["plaintext"]) for each in theirs["messages"]])
    check_gossip(messages, theirs["messages"])
    assert len(written) < len(stream)


def check_gossip(messages: list[Message], decoded: list[dict]) -> None:
    for message, wanted in zip(messages, decoded, strict=True):
        assert message.tag == wanted["tag"]
        if message.tag in GOSSIP_TAGS:
            gossip = parse_gossip(Tag(message.tag), message.payload)
            assert gossip.channel == wanted["channel"]
            assert f"{gossip.source:012x}" == wanted["src"]


@pytest.mark.parametrize(("end", "other"), DIRECTIONS)
@pytest.mark.parametrize("session", BROKEN_SESSIONS)
def test_a_recorded_session_that_failed_fails_for_us(session: dict, end: str, other: str) -> None:
    stream = bytes.fromhex(session[f"{other}_to_{end}"])
    password = b"wfvAwt7sj" if "note" in session else None
    features = WHOLE_SESSIONS[0].values[0][f"{end}_decoded"]["features"]
    connection, error = stand_in(features, password, outbound=end == "client"), ""
    try:
        connection.receive(stream, NOW)
        error = str(connection.end_of_stream())
    except RemoteError as raised:
        error = str(raised)
    if not stream:
        assert error == "failed to receive remote protocol header: EOF"
    elif len(stream) in {7, 40}:  # the other end hung up behind its header, or its key
        assert error == "EOF"
    else:
        assert error == "Unable to decrypt TCP msg; is the password the same on both peers?"


# --- packet captures with private keys --------------------------------------------------------------------------------


def tcp_streams(pcap: bytes) -> dict[tuple[str, str], bytes]:
    """Return the byte streams of a capture's only TCP connection, by sender and receiver; dialler first."""
    segments: dict[tuple[str, str], dict[int, bytes]] = {}
    first: dict[tuple[str, str], int] = {}
    cursor = Cursor(pcap, 24)
    assert int.from_bytes(pcap[:4], "little") == 0xA1B2C3D4
    while cursor.remaining:
        cursor.skip(8)
        captured = int.from_bytes(cursor.take(4), "little")
        cursor.skip(4)
        packet = cursor.restrict_to(captured)
        packet.skip(14)
        start, head = packet.position, packet.octet()
        total = (packet.skip(1), packet.unsigned(2))[1]
        addresses = pcap[start + 12 : start + 16].hex(), pcap[start + 16 : start + 20].hex()
        packet = Cursor(pcap, start + (head & 15) * 4, start + total)
        packet.skip(4)
        sequence = packet.unsigned(4)
        packet.skip(4)
        offset, flags = (packet.octet() >> 4) * 4, packet.octet()
        packet.skip(offset - 14)
        if flags & 2:
            first[addresses] = sequence + 1
            segments[addresses] = {}
        elif packet.remaining:
            segments[addresses][(sequence - first[addresses]) % 2**32] = packet.rest()
    return {addresses: joined(parts) for addresses, parts in segments.items()}


def joined(parts: dict[int, bytes]) -> bytes:
    ordered = sorted(parts.items())
    for (start, part), (following, _) in pairwise(ordered):
        assert start + len(part) == following, "the capture has a gap or a retransmission"
    return b"".join(part for _, part in ordered)


@pytest.mark.parametrize("kind", ["plain", "enc"])
def test_a_captured_session_is_understood_with_the_keys_of_either_end(kind: str) -> None:
    streams = tcp_streams((TESTS / "recorded" / f"mesh-tcp-{kind}.pcap").read_bytes())
    from_dialler, from_acceptor = streams.values()
    log = [json.loads(line) for line in (TESTS / "recorded" / "keylog-enc.jsonl").read_text().splitlines()]
    for outbound, stream, other in ((True, from_acceptor, from_dialler), (False, from_dialler, from_acceptor)):
        # A key log line belongs to the end whose remote's key is in the stream it received.
        keys = next(keys for keys in log if kind == "plain" or bytes.fromhex(keys["remote_pub"]) in stream)
        password = None if kind == "plain" else keys["password"].encode()
        features = {"Name": "::9", "UID": "9", "NickName": "", "ConnID": "9", "ShortID": "9", "Trusted": "0"}
        connection = stand_in(
            {**features, "Overlays": "sleeve"},
            password,
            outbound=outbound,
            private=bytes.fromhex(keys["local_priv"]),
        )
        written, introduced, messages = listen(connection, stream, 1000)
        # Header, flag and public key are determined, and so is all of them.
        assert written[:40] == other[: len(written[:40])] or kind == "plain"
        if password is not None:
            assert introduced.session_key is not None
            assert introduced.session_key.hex() == keys["session_key"]
        assert format_peer_name(introduced.features.name) in {"7a:00:00:00:00:01", "7a:00:00:00:00:02"}
        gossip = [parse_gossip(Tag(each.tag), each.payload) for each in messages if each.tag in GOSSIP_TAGS]
        assert {each.channel for each in gossip} >= {"topology", "IPallocation"}
        assert all(each.source in {PeerName(0x7A00_0000_0001), PeerName(0x7A00_0000_0002)} for each in gossip)
