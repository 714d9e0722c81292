"""With which password to dial whom."""

from hypothesis import given
from hypothesis import strategies as st

from weavenet.address import Address, Endpoint
from weavenet.mesh.guesses import TARGETS_MAX, Guesses
from weavenet.mesh.keyring import KEYS_MAX, Keyring, Password

THERE = Endpoint(Address(0x0A00_0001), 6783)
ONE, TWO, THREE = Password(b"1"), Password(b"2"), Password(b"3")
RING = Keyring.of(b"1", b"2", b"3")


def test_without_passwords_there_is_nothing_to_guess() -> None:
    guesses = Guesses(None)
    assert guesses.guess(THERE) is None
    assert not guesses.failed(THERE, ONE, None)


def test_one_password_is_never_tried_again_at_once() -> None:
    guesses = Guesses(Keyring.of(b"1"))
    assert guesses.guess(THERE) == ONE
    assert not guesses.failed(THERE, ONE, None)


def test_the_one_in_use_comes_first_and_the_others_follow_at_once_until_all_were_wrong() -> None:
    guesses = Guesses(RING)
    for password, more in ((ONE, True), (TWO, True), (THREE, False), (ONE, True)):
        assert guesses.guess(THERE) == password
        assert guesses.failed(THERE, password, None) == more


def test_what_worked_is_the_first_guess_until_it_is_retired() -> None:
    guesses = Guesses(RING)
    guesses.worked(THERE, TWO)
    assert guesses.guess(THERE) == TWO
    guesses.ring = RING.retire("key2")
    assert guesses.guess(THERE) == ONE


def test_a_hint_is_followed_next() -> None:
    guesses = Guesses(RING)
    assert guesses.failed(THERE, ONE, THREE)
    assert guesses.guess(THERE) == THREE


def test_a_hint_at_what_was_tried_ends_the_tries() -> None:
    guesses = Guesses(RING)
    assert guesses.failed(THERE, ONE, THREE)
    assert not guesses.failed(THERE, THREE, ONE)


@given(st.lists(st.sampled_from([None, ONE, TWO, THREE]), max_size=50), st.integers(1, KEYS_MAX))
def test_whatever_remotes_hint_there_are_no_more_tries_in_a_row_than_passwords(
    hints: list[Password | None], count: int
) -> None:
    guesses = Guesses(Keyring.of(*(bytes([48 + number]) for number in range(1, count + 1))))
    in_a_row = 0
    for hint in hints:
        tried = guesses.guess(THERE)
        assert tried is not None
        in_a_row = in_a_row + 1 if guesses.failed(THERE, tried, hint) else 0
        assert in_a_row < count


def test_memory_is_bounded() -> None:
    guesses = Guesses(RING)
    for number in range(TARGETS_MAX + 10):
        guesses.worked(Endpoint(Address(number), 6783), TWO)
    assert guesses.guess(Endpoint(Address(0), 6783)) == ONE
    assert guesses.guess(Endpoint(Address(TARGETS_MAX), 6783)) == TWO
