"""The passwords that are valid here: what may be done with them, what is remembered, and that nothing shows them."""

import random
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weavenet.effects import Now
from weavenet.errors import KeyringError
from weavenet.mesh.keyring import (
    KEYS_MAX,
    Key,
    Keyring,
    Password,
    decode_keyring,
    encode_keyring,
    keyring_at_launch,
)

NOW = Now(5.0, 1_700_000_005.0)
TWO = Keyring.of(b"first secret").add("spring", Password(b"second secret"), NOW)


class SeededEntropy:
    def __init__(self) -> None:
        self._random = random.Random(7)

    def bits(self, count: int) -> int:
        return self._random.getrandbits(count)

    def octets(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def fraction(self) -> float:
        return self._random.random()


def names(ring: Keyring | None) -> list[str]:
    return [key.name for key in ring or ()]


def test_a_password_is_added_used_and_the_old_one_retired() -> None:
    assert names(TWO) == ["initial", "spring"]
    used = TWO.use("spring")
    assert used.in_use.password == Password(b"second secret")
    assert names(used.retire("initial")) == ["spring"]
    assert used.keys[0].added_wall_s == NOW.wall_s


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda: TWO.add("", Password(b"x"), NOW), "is no name for a key"),
        (lambda: TWO.add("a" * 33, Password(b"x"), NOW), "is no name for a key"),
        (lambda: TWO.add("a\x1b[2J", Password(b"x"), NOW), "is no name for a key"),
        (lambda: TWO.add("summer", Password(b""), NOW), "1 to 1024 bytes, this one 0"),
        (lambda: TWO.add("summer", Password(bytes(1025)), NOW), "1 to 1024 bytes, this one 1025"),
        (lambda: TWO.add("spring", Password(b"x"), NOW), "there is a key spring already"),
        (lambda: TWO.add("summer", Password(b"second secret"), NOW), "it is key spring"),
        (lambda: TWO.use("summer"), "there is no key 'summer' here, only initial, spring"),
        (lambda: TWO.retire("summer"), "there is no key 'summer' here"),
        (lambda: TWO.retire("initial"), "initial is in use: first `weave key use` another one \\(spring\\)"),
        (lambda: Keyring.of(b"x").retire("initial"), "initial is the only key"),
        (lambda: decode_keyring(b'{"keys": "first secret"}'), "the stored passwords cannot be read"),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason_that_holds_no_password(change: object, reason: str) -> None:
    assert callable(change)
    with pytest.raises(KeyringError, match=reason) as caught:
        change()
    assert "secret" not in str(caught.value)


def test_there_is_a_limit() -> None:
    ring = Keyring.of(*(bytes([number]) for number in range(KEYS_MAX)))
    with pytest.raises(KeyringError, match="there are 8 keys already"):
        ring.add("one-more", Password(b"x"), NOW)


def test_a_ring_prints_without_its_passwords() -> None:
    assert "secret" not in repr(TWO)
    assert "redacted" in repr(TWO)


@given(st.lists(st.tuples(st.text(string.ascii_letters, min_size=1, max_size=8), st.binary(max_size=40)), min_size=1))
def test_a_stored_ring_comes_back(keys: list[tuple[str, bytes]]) -> None:
    ring = Keyring(tuple(Key(name, Password(raw), 1.5) for name, raw in keys), b"salt and hash")
    assert decode_keyring(encode_keyring(ring)) == ring


def test_nothing_stored_is_no_ring() -> None:
    assert decode_keyring(b"") is None


def launch(stored: Keyring | None, given: bytes | None) -> tuple[Keyring | None, str]:
    return keyring_at_launch(stored, None if given is None else Password(given), SeededEntropy(), NOW)


def test_a_first_start_makes_a_ring_of_what_is_given() -> None:
    assert launch(None, None) == (None, "")
    ring, remark = launch(None, b"first secret")
    assert (names(ring), remark) == (["initial"], "")


def test_a_restart_with_the_same_password_finds_the_ring_as_it_was_left() -> None:
    first, _ = launch(None, b"first secret")
    assert first is not None
    left = first.add("spring", Password(b"second secret"), NOW).use("spring")
    assert launch(left, b"first secret") == (left, "")


def test_a_restart_with_a_retired_password_does_not_bring_it_back() -> None:
    first, _ = launch(None, b"first secret")
    assert first is not None
    left = first.add("spring", Password(b"second secret"), NOW).use("spring").retire("initial")
    again, remark = launch(left, b"first secret")
    assert again == left
    assert "has been retired; using those that are stored: give spring instead" in remark


def test_a_restart_with_the_new_password_keeps_the_ring_and_then_the_former_one_is_a_stranger() -> None:
    first, _ = launch(None, b"first secret")
    assert first is not None
    left = first.add("spring", Password(b"second secret"), NOW).use("spring").retire("initial")
    again, remark = launch(left, b"second secret")
    assert (names(again), remark) == (["spring"], "")
    changed, remark = launch(again, b"first secret")
    assert names(changed) == ["initial"]
    assert "those that were stored are forgotten" in remark


def test_another_password_than_the_last_time_makes_a_new_ring() -> None:
    first, _ = launch(None, b"first secret")
    changed, _ = launch(first, b"another")
    assert changed is not None
    assert [key.password for key in changed] == [Password(b"another")]


def test_a_restart_without_a_password_keeps_the_ring_and_says_so() -> None:
    kept, remark = launch(TWO, None)
    assert kept == TWO
    assert "--no-password would forget them" in remark
