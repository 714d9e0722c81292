"""Connections between ends with several passwords: who is let in, and how they move from one password to another."""

import itertools
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.bindings import crypto_secretbox
from nacl.exceptions import CryptoError

from weavenet.effects import Now
from weavenet.errors import HandshakeError, ProtocolError, RemoteError
from weavenet.identity import PeerName, PeerUID, ShortID
from weavenet.mesh.connection import Connection, ConnectionOptions, Introduced, LocalPeer, Message
from weavenet.mesh.keyring import KEYS_MAX, Key, Keyring, Password
from weavenet.mesh.session import GRACE_S, KEYS_PER_CONNECTION_MAX, SETTLE_S, Session
from weavenet.mesh.wire import REKEY_MESSAGE, Tag, build_message

ONE, TWO, THREE = (Password(text) for text in (b"1", b"2", b"3"))


def ring(text: str) -> Keyring:
    """`12` has the passwords 1 and 2, of which 1 is in use."""
    return Keyring(tuple(Key(f"key{one}", Password(one.encode()), 0.0) for one in text))


class SeededEntropy:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def bits(self, count: int) -> int:
        return self._random.getrandbits(count)

    def octets(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def fraction(self) -> float:
        return self._random.random()


class End:
    """One end of a connection, which is proceeded with as soon as it may be."""

    def __init__(self, keys: str, *, outbound: bool, version: int = 2, weave: bool = False, guess: str = "") -> None:
        self.now_s = 0.0
        peer = LocalPeer(PeerName(0x7A00_0000_0001 + outbound), PeerUID(1 + outbound), "")
        options = ConnectionOptions(ring(keys), max_version=version, can_move=not weave, compact=not weave)
        self.connection = Connection(
            peer,
            options,
            outbound=outbound,
            short_id=ShortID(1),
            trusted=False,
            entropy=SeededEntropy(outbound),
            now=self.now,
            guess=Password(guess.encode()) if guess else None,
        )
        self.sent: deque[bytes] = deque([self.connection.start()])
        self.introduced = False
        self.messages: list[bytes] = []
        self.error: RemoteError | None = None

    @property
    def now(self) -> Now:
        return Now(self.now_s, self.now_s)

    def take(self, data: bytes) -> None:
        if self.error is not None:
            return
        try:
            written, events = self.connection.receive(data, self.now)
            self._send(written)
            for event in events:
                if isinstance(event, Introduced):
                    self.introduced = True
                    written, messages = self.connection.proceed(self.now)
                    self._send(written)
                    self._keep(messages)
                else:
                    self._keep([event])
        except RemoteError as error:
            self.error = error

    def _keep(self, messages: Sequence[Message]) -> None:
        self.messages += [message.payload for message in messages if message.tag == Tag.GOSSIP]

    def _send(self, data: bytes) -> None:
        if data:
            self.sent.append(data)

    def say(self, payload: bytes) -> None:
        self._send(self.connection.send(build_message(Tag.GOSSIP, payload)))

    def change(self, keys: str) -> None:
        try:
            self._send(self.connection.ring_changed(ring(keys), self.now))
        except RemoteError as error:
            self.error = error

    def wait_until(self, now_s: float) -> None:
        while self.error is None and self.connection.next_deadline() <= now_s:
            self.now_s = max(self.now_s, self.connection.next_deadline())
            try:
                self._send(self.connection.handle_timer(self.now))
            except RemoteError as error:
                self.error = error
        self.now_s = now_s

    def uses(self) -> str:
        return "".join(sorted(password.reveal().decode() for password in self.connection.passwords()))


@dataclass
class Pair:
    a: End
    b: End
    now_s: float = 0.0
    ends: tuple[End, End] = field(init=False)

    def __post_init__(self) -> None:
        self.ends = (self.a, self.b)
        self.deliver()

    def deliver(self) -> None:
        while self.a.sent or self.b.sent:
            for sender, receiver in ((self.a, self.b), (self.b, self.a)):
                if sender.sent:
                    receiver.take(sender.sent.popleft())

    def wait(self, seconds: float) -> None:
        for _ in range(int(seconds * 4)):
            self.now_s += 0.25
            for end in self.ends:
                end.wait_until(self.now_s)
            self.deliver()

    def talks(self) -> bool:
        for sender, receiver in (self.ends, self.ends[::-1]):
            before = len(receiver.messages)
            sender.say(b"hello")
            self.deliver()
            if receiver.messages[before:] != [b"hello"]:
                return False
        return True


def pair(dialler: str, acceptor: str, **options: bool) -> Pair:
    weave_dials, weave_accepts = options.get("weave_dials", False), options.get("weave_accepts", False)
    return Pair(End(dialler, outbound=True, weave=weave_dials), End(acceptor, outbound=False, weave=weave_accepts))


# --- the start --------------------------------------------------------------------------------------------------------

RINGS = ["1", "2", "12", "21", "123", "321"]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("dialler", "acceptor"), list(itertools.product(RINGS, RINGS)))
def test_a_dialler_is_let_in_if_the_password_it_tries_is_valid_there(dialler: str, acceptor: str, version: int) -> None:
    a, b = End(dialler, outbound=True, version=version), End(acceptor, outbound=False, version=version)
    both = Pair(a, b)
    if version == 1 and a.introduced:
        a.say(b"hello")  # in version 1 the introduction is not sealed, and tells nothing
        both.deliver()
    if dialler[0] in acceptor:
        assert a.introduced
        assert b.introduced
        assert both.talks()
        assert a.uses() == b.uses() == dialler[0]
        assert not a.connection.is_guessing
    else:
        assert b.error is not None or a.error is not None


@pytest.mark.parametrize(("dialler", "weaves"), [("12", "2"), ("123", "3"), ("21", "1")])
def test_a_wrong_guess_at_weave_teaches_the_dialler_its_password(dialler: str, weaves: str) -> None:
    first = End(dialler, outbound=True)
    Pair(first, End(weaves, outbound=False, weave=True))
    assert isinstance(first.error, HandshakeError)
    assert str(first.error) == f"the peer uses key key{weaves}, and was greeted with key key{dialler[0]}"
    assert first.connection.hint == Password(weaves.encode())
    second = End(dialler, outbound=True, guess=weaves)
    assert Pair(second, End(weaves, outbound=False, weave=True)).talks()


def test_a_guess_that_is_not_valid_any_more_is_not_made() -> None:
    assert Pair(End("12", outbound=True, guess="3"), End("1", outbound=False)).talks()


def test_an_acceptor_with_several_passwords_says_nothing_sealed_before_it_was_greeted() -> None:
    dialler, acceptor = End("1", outbound=True), End("12", outbound=False)
    acceptor.take(dialler.sent.popleft())
    acceptor.take(b"\1" + bytes([9, *bytes(31)]))
    assert sum(map(len, acceptor.sent)) == len(b"weave12") + 1 + 32
    lone = End("1", outbound=False)
    lone.take(b"weave\1\2\1" + bytes([9, *bytes(31)]))
    assert sum(map(len, lone.sent)) > 100


def test_version_1_waits_for_a_proof_and_does_not_lose_it() -> None:
    dialler = End("2", outbound=True, version=1, weave=True)
    acceptor = End("12", outbound=False)
    both = Pair(dialler, acceptor)
    assert dialler.introduced
    assert not acceptor.introduced
    dialler.say(b"first")
    both.deliver()
    assert acceptor.introduced
    assert acceptor.messages == [b"first"]
    assert both.talks()
    assert acceptor.uses() == "2"


def test_a_stranger_costs_no_more_trials_than_there_are_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    trials: list[int] = []
    keys = "".join(map(str, range(1, KEYS_MAX + 1)))
    acceptor = End(keys, outbound=False)

    def refuse(*_: bytes) -> bytes:
        trials.append(1)
        raise CryptoError

    monkeypatch.setattr("weavenet.mesh.crypto.crypto_secretbox_open", refuse)
    acceptor.take(b"weave\1\2\1" + bytes([9, *bytes(31)]) + (300).to_bytes(4, "big") + bytes(300))
    assert isinstance(acceptor.error, HandshakeError)
    assert len(trials) == KEYS_MAX


# --- moving -----------------------------------------------------------------------------------------------------------


def test_a_connection_moves_to_the_password_in_use_once_both_accept_it() -> None:
    both = pair("1", "1")
    both.a.change("12")
    both.b.change("12")
    both.wait(5)
    assert both.a.uses() == both.b.uses() == "1"
    both.a.change("21")
    both.deliver()
    assert both.talks()
    both.wait(SETTLE_S)
    assert both.a.uses() == both.b.uses() == "12"  # each direction moves by itself
    assert both.talks()
    both.b.change("21")
    both.wait(SETTLE_S)
    assert both.a.uses() == both.b.uses() == "2"
    both.a.change("2")
    both.b.change("2")
    both.wait(2 * GRACE_S)
    assert both.talks()
    assert both.a.connection.overlay_keys() == both.b.connection.overlay_keys()


def test_a_password_that_is_used_before_the_peer_has_it_is_moved_to_when_it_has() -> None:
    both = pair("1", "1")
    both.a.change("12")
    both.a.change("21")
    both.wait(5)
    assert both.a.uses() == "1"
    both.b.change("12")
    both.wait(5)
    assert both.talks()
    assert both.a.uses() == "12"


def test_retiring_moves_a_peer_that_still_sends_with_it() -> None:
    both = pair("12", "12")
    both.a.change("2" + "1")
    both.wait(5)
    both.a.change("2")
    both.wait(2 * GRACE_S)
    assert both.a.uses() == both.b.uses() == "2"
    assert both.talks()


def test_a_peer_without_another_password_is_left_after_the_time_it_has_to_move() -> None:
    both = pair("12", "1")
    both.a.change("21")
    both.wait(1)
    both.a.change("2")
    both.wait(GRACE_S - 1)
    assert both.a.error is None
    both.wait(2)
    assert isinstance(both.a.error, ProtocolError)
    assert "has been retired" in str(both.a.error)


def test_weave_keeps_its_password_until_it_is_retired() -> None:
    both = pair("12", "1", weave_accepts=True)
    both.a.change("21")
    both.wait(20)
    assert both.talks()
    assert both.a.uses() == "1"
    assert both.a.connection.overlay_keys() == both.b.connection.overlay_keys()
    both.a.change("2")
    assert str(both.a.error) == "key key1, which this connection uses, has been retired"


def test_going_back_and_forth_never_uses_a_nonce_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    sealed: set[tuple[bytes, bytes]] = set()

    def seal(message: bytes, nonce: bytes, key: bytes) -> bytes:
        assert (nonce, key) not in sealed
        sealed.add((nonce, key))
        return bytes(crypto_secretbox(message, nonce, key))

    monkeypatch.setattr("weavenet.mesh.crypto.crypto_secretbox", seal)
    both = pair("12", "12")
    for keys in ("21", "12", "21", "2", "21", "12", "1", "21"):
        for end in both.ends:
            end.change(keys)
        both.wait(2 * GRACE_S)
        assert both.talks()
    assert both.a.uses() == both.b.uses() == "2"
    assert len({key for _, key in sealed}) == 2


def test_a_connection_that_has_seen_many_passwords_is_to_be_renewed() -> None:
    session = Session(bytes(32), ring("1"), outbound=True)
    session.begin(None)
    now = Now(0, 0)
    session.allow_moves(now)
    for number in range(KEYS_PER_CONNECTION_MAX - 1):
        session.ring_changed(Keyring.of(b"1", f"password {number}".encode()), now)
    with pytest.raises(ProtocolError, match="renew it"):
        session.ring_changed(Keyring.of(b"1", b"one more"), now)


@pytest.mark.parametrize("payload", [b"\1x", b"\1" + bytes(16 * 257), b"\2", b"\2" + bytes(16)])
def test_a_message_about_keys_that_means_nothing_ends_the_connection(payload: bytes) -> None:
    both = pair("1", "1")
    both.a.sent.append(both.a.connection.send(REKEY_MESSAGE + payload))
    both.deliver()
    assert isinstance(both.b.error, ProtocolError)


def test_a_message_about_keys_from_weave_or_of_a_later_version_is_ignored() -> None:
    both = pair("1", "1", weave_dials=True)
    both.a.sent.append(both.a.connection.send(REKEY_MESSAGE + b"\2"))
    both.deliver()
    assert both.talks()
    both = pair("1", "1")
    both.a.sent.append(both.a.connection.send(REKEY_MESSAGE + b"\x09"))
    both.deliver()
    assert both.talks()


# --- whatever operators do --------------------------------------------------------------------------------------------

STEPS = st.one_of(
    st.tuples(
        st.just("change"), st.booleans(), st.sampled_from(["1", "2", "12", "21", "123", "213", "312", "32", "3"])
    ),
    st.tuples(st.just("say"), st.booleans(), st.none()),
    st.tuples(st.just("deliver"), st.booleans(), st.none()),
    st.tuples(st.just("wait"), st.booleans(), st.none()),
)


@given(st.lists(STEPS, max_size=60))
def test_nothing_is_lost_and_datagrams_open_as_long_as_there_is_a_common_password(
    steps: list[tuple[str, bool, str | None]],
) -> None:
    both = pair("1", "1")
    said: dict[End, list[bytes]] = {end: [] for end in both.ends}
    valid: dict[End, set[str]] = {end: {"1"} for end in both.ends}
    had_common = True
    for number, (what, which, keys) in enumerate(steps):
        end, other = both.ends[which], both.ends[not which]
        if what == "change" and keys is not None:
            end.change(keys)
            valid[end] = set(keys)
            # An end knows of the other's change only when it is told, and both have time: here they have at once.
            had_common = had_common and bool(valid[end] & valid[other])
            if not had_common:
                return
        elif what == "say":
            said[end].append(bytes([number]))
            end.say(bytes([number]))
        elif what == "deliver" and end.sent:
            other.take(end.sent.popleft())
        elif what == "wait":
            both.wait(SETTLE_S / 2)
        assert both.a.error is both.b.error is None
        if not both.a.sent and not both.b.sent:
            ours, theirs = end.connection.overlay_keys(), other.connection.overlay_keys()
            assert ours is not None
            assert theirs is not None
            assert ours.sealing in theirs.opening
    both.deliver()
    assert both.b.messages == said[both.a]
    assert both.a.messages == said[both.b]
    both.wait(GRACE_S * 2)
    assert both.a.error is both.b.error is None
    assert both.talks()
    assert set(both.a.uses()) <= valid[both.a] & valid[both.b]
