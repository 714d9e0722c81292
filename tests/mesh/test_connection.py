"""Two connections joined in memory, and one connection facing a remote that misbehaves."""

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weavenet.codec.gob import BYTES, Encoder, encode_one
from weavenet.effects import Now
from weavenet.errors import HandshakeError, ProtocolError, RemoteError
from weavenet.identity import PeerName, PeerUID, ShortID
from weavenet.mesh.connection import (
    FEATURES_BYTES_MAX,
    HEARTBEAT_INTERVAL_S,
    READ_TIMEOUT_S,
    Connection,
    ConnectionOptions,
    Introduced,
    LocalPeer,
    Message,
)
from weavenet.mesh.keyring import Keyring
from weavenet.mesh.wire import FEATURES, MESSAGE_BYTES_MAX, RemoteFeatures, Tag, build_message, frame

ALICE = LocalPeer(PeerName(0x7A00_0000_0001), PeerUID(1001), "host1")
BOB = LocalPeer(PeerName(0x7A00_0000_0002), PeerUID(2002), "host2")


class SeededEntropy:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def bits(self, count: int) -> int:
        return self._random.getrandbits(count)

    def octets(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def fraction(self) -> float:
        return self._random.random()


def at(monotonic_s: float) -> Now:
    return Now(monotonic_s=monotonic_s, wall_s=1_700_000_000.0 + monotonic_s)


def connect(
    local: LocalPeer = ALICE,
    *,
    password: bytes | None = None,
    versions: tuple[int, int] = (1, 2),
    outbound: bool = True,
    trusted: bool = False,
) -> Connection:
    ring = None if password is None else Keyring.of(password)
    options = ConnectionOptions(ring, min_version=versions[0], max_version=versions[1], overlays="fastdp sleeve")
    return Connection(
        local,
        options,
        outbound=outbound,
        short_id=ShortID(local.uid % 4096),
        trusted=trusted,
        entropy=SeededEntropy(local.uid),
        now=at(0),
    )


@dataclass
class End:
    connection: Connection
    unsent: bytes = b""
    introduced: Introduced | None = None
    messages: list[Message] = field(default_factory=list)

    def take(self, data: bytes) -> None:
        written, events = self.connection.receive(data, at(1))
        self.unsent += written
        for event in events:
            if isinstance(event, Introduced):
                assert self.introduced is None
                self.introduced = event
            else:
                self.messages.append(event)


def transfer(alice: End, bob: End, piece_bytes: int = 1 << 20) -> None:
    """Deliver what each has written, in pieces, until both are quiet."""
    while alice.unsent or bob.unsent:
        for sender, receiver in ((alice, bob), (bob, alice)):
            data, sender.unsent = sender.unsent[:piece_bytes], sender.unsent[piece_bytes:]
            if data:
                receiver.take(data)


def introduce(alice: Connection, bob: Connection, piece_bytes: int = 1 << 20) -> tuple[End, End]:
    a, b = End(alice, alice.start()), End(bob, bob.start())
    transfer(a, b, piece_bytes)
    assert a.introduced is not None
    assert b.introduced is not None
    return a, b


def open_pair(*, password: bytes | None = None, version: int = 2, piece_bytes: int = 1 << 20) -> tuple[End, End]:
    alice = connect(ALICE, password=password)
    bob = connect(BOB, password=password, versions=(1, version), outbound=False)
    a, b = introduce(alice, bob, piece_bytes)
    assert alice.proceed(at(1)) == bob.proceed(at(1)) == (b"", [])
    return a, b


BOTH_VERSIONS = pytest.mark.parametrize("version", [1, 2], ids=["v1", "v2"])
ANY_PASSWORD = pytest.mark.parametrize("password", [None, b"", b"secret"], ids=["plain", "empty", "secret"])


# --- introductions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece_bytes", [1, 7, 1 << 20])
@ANY_PASSWORD
@pytest.mark.parametrize(
    ("alices", "bobs", "version"),
    [((1, 2), (1, 2), 2), ((2, 2), (1, 2), 2), ((1, 2), (1, 9), 2), ((1, 2), (1, 1), 1), ((1, 1), (1, 1), 1)],
)
def test_two_ends_introduce_themselves(
    alices: tuple[int, int], bobs: tuple[int, int], version: int, password: bytes | None, piece_bytes: int
) -> None:
    alice = connect(ALICE, password=password, versions=alices, trusted=True)
    bob = connect(BOB, password=password, versions=bobs, outbound=False)
    a, b = introduce(alice, bob, piece_bytes)
    assert a.introduced is not None
    assert b.introduced is not None
    assert (a.introduced.version, b.introduced.version) == (version, version)
    assert a.introduced.uid == b.introduced.uid
    assert a.introduced.uid == a.introduced.features.connection_id ^ b.introduced.features.connection_id
    assert a.introduced.session_key == b.introduced.session_key
    assert (a.introduced.session_key is None) == (password is None)
    assert b.introduced.features == RemoteFeatures(
        name=ALICE.name,
        nickname="host1",
        uid=ALICE.uid,
        connection_id=b.introduced.features.connection_id,
        short_id=ShortID(1001) if version == 2 else None,
        trusted=version == 2,
        overlays=("fastdp", "sleeve") if version == 2 else None,
        moves=version == 2 and password is not None,
        compact=version == 2,
    )
    assert a.introduced.compact is b.introduced.compact is (version == 2)
    assert a.introduced.features.trusted is False


@BOTH_VERSIONS
@pytest.mark.parametrize(("alices", "bobs"), [(b"secret", None), (None, b"secret")], ids=["only ours", "only theirs"])
def test_a_password_on_one_side_only_is_refused_by_both(version: int, alices: bytes | None, bobs: bytes | None) -> None:
    alice = connect(ALICE, password=alices, versions=(1, version))
    bob = connect(BOB, password=bobs, versions=(1, version), outbound=False)
    from_alice, _ = alice.receive(bob.start(), at(0))
    from_bob, _ = bob.receive(alice.start(), at(0))
    for end, other, data in ((alice, bobs, from_bob), (bob, alices, from_alice)):
        wanted = "no password specificed, but peer requested an encrypted connection"
        if other is None:
            wanted = "password specified, but peer requested an unencrypted connection"
        with pytest.raises(HandshakeError) as raised:
            end.receive(data, at(0))
        assert str(raised.value) == wanted


@BOTH_VERSIONS
def test_another_password_is_noticed_at_the_first_sealed_message(version: int) -> None:
    alice = connect(ALICE, password=b"secret", versions=(1, version))
    bob = connect(BOB, password=b"other", versions=(1, version), outbound=False)
    if version == 2:
        with pytest.raises(HandshakeError, match="Unable to decrypt TCP msg"):
            introduce(alice, bob)
        return
    a, b = introduce(alice, bob)
    alice.proceed(at(1))
    bob.proceed(at(1))
    with pytest.raises(ProtocolError, match="Unable to decrypt TCP msg"):
        b.take(a.connection.send(b"\0"))


def test_versions_without_overlap_are_refused_by_both() -> None:
    alice, bob = connect(versions=(2, 2)), connect(BOB, versions=(1, 1), outbound=False)
    with pytest.raises(HandshakeError, match=r"remote version range \[1,1\] is incompatible with ours \[2,2\]"):
        alice.receive(bob.start(), at(0))
    with pytest.raises(HandshakeError, match=r"remote version range \[2,2\] is incompatible with ours \[1,1\]"):
        bob.receive(alice.start(), at(0))


# --- messages ---------------------------------------------------------------------------------------------------------


@BOTH_VERSIONS
@ANY_PASSWORD
@pytest.mark.parametrize("piece_bytes", [1, 1 << 20])
def test_messages_pass_both_ways(version: int, password: bytes | None, piece_bytes: int) -> None:
    a, b = open_pair(password=password, version=version)
    texts = [b"\x04gossip", b"\0", b"\xffunknown", b"\x07" + bytes(3000)]
    for sender, receiver in ((a, b), (b, a)):
        sender.unsent = b"".join(sender.connection.send(text) for text in texts)
        transfer(a, b, piece_bytes)
        assert receiver.messages == [Message(text[0], text[1:]) for text in texts]


@BOTH_VERSIONS
@ANY_PASSWORD
def test_an_empty_message_is_ignored(version: int, password: bytes | None) -> None:
    a, b = open_pair(password=password, version=version)
    b.take(a.connection.send(b"") + a.connection.send(b"\x04x"))
    assert b.messages == [Message(Tag.GOSSIP, b"x")]


@BOTH_VERSIONS
@ANY_PASSWORD
def test_messages_wait_until_the_connection_has_been_added(version: int, password: bytes | None) -> None:
    alice = connect(ALICE, password=password)
    bob = connect(BOB, password=password, versions=(1, version), outbound=False)
    a, b = introduce(alice, bob)
    b.take(alice.send(build_message(Tag.GOSSIP, b"one")) + alice.send(b"\x04two")[:3])
    assert b.messages == []
    assert bob.proceed(at(1))[1] == [Message(Tag.GOSSIP, b"one")]
    assert a.messages == []


@BOTH_VERSIONS
def test_messages_that_come_with_the_introduction_wait_too(version: int) -> None:
    alice, bob = connect(), connect(BOB, versions=(1, version), outbound=False)
    a, b = introduce(alice, bob)
    again = connect(versions=(1, 2))
    written, _ = again.receive(bob.start(), at(0))
    if version == 2:
        more, _ = again.receive(b"\0", at(0))
        written += more
    fresh = End(connect(BOB, versions=(1, version), outbound=False))
    fresh.take(again.start() + written + alice.send(b"\x04early"))
    assert fresh.introduced is not None
    assert fresh.messages == []
    assert fresh.connection.proceed(at(1))[1] == [Message(Tag.GOSSIP, b"early")]
    assert (a.messages, b.messages) == ([], [])


@BOTH_VERSIONS
def test_what_waits_for_the_connection_to_be_added_is_limited(version: int) -> None:
    _, b = introduce(connect(), connect(BOB, versions=(1, version), outbound=False))
    b.take(bytes(MESSAGE_BYTES_MAX))
    with pytest.raises(ProtocolError, match="before the connection was added"):
        b.take(b"\0")


# --- limits -----------------------------------------------------------------------------------------------------------


@BOTH_VERSIONS
@pytest.mark.parametrize(("password", "limit"), [(None, MESSAGE_BYTES_MAX), (b"secret", MESSAGE_BYTES_MAX - 16)])
def test_the_longest_message_passes_and_a_longer_one_is_not_sent(
    version: int, password: bytes | None, limit: int
) -> None:
    a, b = open_pair(password=password, version=version)
    longest = b"\x04" + bytes(limit - 1)
    with pytest.raises(ProtocolError, match="outgoing message exceeds maximum size: 10485761 > 10485760"):
        a.connection.send(longest + b"x")
    sent = a.connection.send(longest)
    for start in range(0, len(sent), 1 << 16):
        b.take(sent[start : start + (1 << 16)])
    assert b.messages == [Message(Tag.GOSSIP, longest[1:])]


def test_a_frame_too_long_is_refused_by_its_length_alone() -> None:
    _, b = open_pair()
    with pytest.raises(ProtocolError, match="incoming message exceeds maximum size: 10485761 > 10485760"):
        b.take(bytes.fromhex("00a00001"))


def test_a_version_1_message_too_long_is_refused_by_its_length_alone() -> None:
    _, b = open_pair(version=1)
    with pytest.raises(ProtocolError, match="exceeds"):
        b.take(bytes.fromhex("fd a00100"))


@BOTH_VERSIONS
def test_features_too_long_are_refused_by_their_length_alone(version: int) -> None:
    connection = connect(versions=(1, version))
    connection.receive(b"weave\x01\x02" if version == 2 else b"weave\x01\x01", at(0))
    with pytest.raises(HandshakeError, match="exceeds"):
        connection.receive(bytes.fromhex("00 00010001" if version == 2 else "fd010001"), at(0))
    assert FEATURES_BYTES_MAX == 0x10000


# --- hostile remotes --------------------------------------------------------------------------------------------------


def v2_up_to_features(connection: Connection) -> None:
    connection.receive(b"weave\x01\x02\0", at(0))


@pytest.mark.parametrize(
    "features",
    [
        pytest.param({}, id="none"),
        pytest.param({"PeerNameFlavour": "mac", "Name": "x", "NickName": "", "UID": "1", "ConnID": "1"}, id="bad name"),
    ],
)
def test_features_that_make_no_sense_end_the_introduction(features: dict[str, str]) -> None:
    connection = connect()
    v2_up_to_features(connection)
    with pytest.raises(HandshakeError):
        connection.receive(frame(encode_one(FEATURES, features)), at(0))


@pytest.mark.parametrize("content", [b"", b"\0", b"garbage", encode_one(BYTES, b"x"), b"\xff" * 50])
def test_a_first_frame_that_is_no_features_ends_the_introduction(content: bytes) -> None:
    connection = connect()
    v2_up_to_features(connection)
    with pytest.raises(HandshakeError):
        connection.receive(frame(content), at(0))


@pytest.mark.parametrize("key", ["", "zz", "00" * 31, "00" * 32, "00" * 33, "\u0660" * 64])
def test_a_public_key_that_is_none_ends_a_version_1_introduction(key: str) -> None:
    connection = connect(password=b"secret", versions=(1, 1))
    features = {"PeerNameFlavour": "mac", "Name": "::1", "NickName": "", "UID": "1", "ConnID": "1", "PublicKey": key}
    with pytest.raises(HandshakeError):
        connection.receive(b"weave\x01\x01" + encode_one(FEATURES, features), at(0))


def test_a_public_key_of_small_order_ends_a_version_2_introduction() -> None:
    with pytest.raises(HandshakeError, match="small order"):
        connect(password=b"secret").receive(b"weave\x01\x02\x01" + bytes(32), at(0))


def test_a_version_1_message_of_another_type_ends_the_connection() -> None:
    _, b = open_pair(version=1)
    with pytest.raises(ProtocolError):
        b.take(encode_one(FEATURES, {}))


OPENINGS: list[Callable[[], Connection]] = [
    connect,
    lambda: connect(password=b"secret"),
    lambda: connect(versions=(1, 1)),
    lambda: connect(password=b"secret", versions=(1, 1)),
    lambda: open_pair()[0].connection,
    lambda: open_pair(password=b"secret")[0].connection,
    lambda: open_pair(version=1)[0].connection,
]


@given(opening=st.sampled_from(OPENINGS), pieces=st.lists(st.binary(max_size=40), max_size=4))
def test_garbage_raises_nothing_but_remote_errors(opening: Callable[[], Connection], pieces: list[bytes]) -> None:
    connection = opening()
    with suppress(RemoteError):
        for piece in [b"", *pieces]:
            connection.receive(piece, at(1))
    with suppress(RemoteError):
        raise connection.end_of_stream()


@given(data=st.data(), version=st.sampled_from([1, 2]), password=st.sampled_from([None, b"secret"]))
def test_an_introduction_with_bytes_changed_raises_nothing_but_remote_errors(
    data: st.DataObject, version: int, password: bytes | None
) -> None:
    alice = connect(ALICE, password=password)
    bob = connect(BOB, password=password, versions=(1, version), outbound=False)
    a, b = End(alice, alice.start()), End(bob, bob.start())
    with suppress(RemoteError):
        while a.unsent or b.unsent:
            for sender, receiver in ((a, b), (b, a)):
                changed, sender.unsent = bytearray(sender.unsent), b""
                if changed and data.draw(st.booleans()):
                    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
                receiver.take(bytes(changed))


# --- the end of the stream --------------------------------------------------------------------------------------------


@BOTH_VERSIONS
@pytest.mark.parametrize("password", [None, b"secret"], ids=["plain", "encrypted"])
def test_every_truncation_waits_and_its_end_is_named(version: int, password: bytes | None) -> None:
    stream = written_by_alice(password, version)
    for end in range(len(stream)):
        bob = connect(BOB, password=password, versions=(1, version), outbound=False)
        _, events = bob.receive(stream[:end], at(1))
        if events:
            assert bob.proceed(at(1))[1] == []
        error = bob.end_of_stream()
        assert isinstance(error, ProtocolError if events else HandshakeError)
        assert str(error).endswith("EOF")


def written_by_alice(password: bytes | None, version: int) -> bytes:
    """Return all that Alice writes to Bob in an introduction, and one message."""
    alice = connect(ALICE, password=password)
    a, b = End(alice, alice.start()), End(connect(BOB, password=password, versions=(1, version), outbound=False))
    b.unsent, stream = b.connection.start(), b""
    while a.unsent or b.unsent:
        from_alice, a.unsent = a.unsent, b""
        stream += from_alice
        b.take(from_alice)
        from_bob, b.unsent = b.unsent, b""
        a.take(from_bob)
    return stream + alice.send(b"\x04done")


# --- time -------------------------------------------------------------------------------------------------------------


def test_heartbeats_start_when_the_connection_was_added() -> None:
    alice, bob = connect(), connect(BOB, outbound=False)
    _, b = introduce(alice, bob)
    assert alice.next_deadline() == 1 + READ_TIMEOUT_S
    alice.proceed(at(5))
    bob.proceed(at(5))
    assert alice.next_deadline() == 5 + HEARTBEAT_INTERVAL_S
    assert alice.handle_timer(at(34)) == b""
    b.take(alice.handle_timer(at(35)))
    assert b.messages == [Message(Tag.HEARTBEAT, b"")]
    assert alice.next_deadline() == 65


def test_any_message_but_not_a_part_of_one_extends_the_read_timeout() -> None:
    a, b = open_pair()
    heartbeat = a.connection.send(b"\0")
    b.connection.receive(heartbeat, at(50))
    b.connection.receive(heartbeat[:2], at(100))
    b.connection.handle_timer(at(109))
    with pytest.raises(ProtocolError, match="i/o timeout"):
        b.connection.handle_timer(at(110))


def test_the_same_inputs_give_the_same_bytes() -> None:
    assert written_by_alice(b"secret", 2) == written_by_alice(b"secret", 2)


def test_a_message_that_was_too_long_to_send_uses_up_no_nonce() -> None:
    a, b = open_pair(password=b"secret")
    with pytest.raises(ProtocolError):
        a.connection.send(bytes(MESSAGE_BYTES_MAX))
    b.take(a.connection.send(b"\x04next"))
    assert b.messages == [Message(Tag.GOSSIP, b"next")]


def test_a_version_1_stream_defines_its_types_once() -> None:
    encoder = Encoder()
    first, second = encoder.encode(BYTES, b"\0"), encoder.encode(BYTES, b"\0")
    a, _ = open_pair(version=1)
    assert a.connection.send(b"\0") == first == second


@pytest.mark.parametrize(
    ("password", "hint"),
    [(b"secret", "; is the password the same on both peers?"), (None, "")],
    ids=["with", "without"],
)
def test_a_remote_that_hangs_up_where_passwords_are_compared_may_have_another_one(
    password: bytes | None, hint: str
) -> None:
    alice, bob = connect(ALICE, password=password), connect(BOB, password=password, outbound=False)
    assert str(alice.broken("connection reset by peer")) == "connection reset by peer"
    alice.receive(bob.start(), at(0))
    key, _ = bob.receive(alice.start(), at(0))
    alice.receive(key, at(0))
    error = alice.broken("connection reset by peer")
    assert isinstance(error, HandshakeError)
    assert str(error) == f"connection reset by peer{hint}"
