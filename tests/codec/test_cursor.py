import pytest
from hypothesis import given
from hypothesis import strategies as st

from weavenet.codec.cursor import Cursor
from weavenet.errors import CodecError, TruncatedError


def test_numbers_are_big_endian() -> None:
    cursor = Cursor(bytes.fromhex("01 0203 04050607"))
    assert (cursor.octet(), cursor.unsigned(2), cursor.unsigned(4)) == (1, 0x0203, 0x04050607)
    cursor.finish()


def test_reading_past_the_end_is_refused_and_moves_nothing() -> None:
    cursor = Cursor(b"ab")
    for read in (lambda: cursor.take(3), lambda: cursor.unsigned(4), lambda: cursor.skip(3), lambda: cursor.skip(-1)):
        with pytest.raises(TruncatedError):
            read()
        assert cursor.position == 0
    assert cursor.rest() == b"ab"
    with pytest.raises(TruncatedError):
        cursor.octet()
    assert cursor.rest() == b""


def test_a_part_cannot_reach_beyond_its_own_length() -> None:
    cursor = Cursor(b"\x02abcd")
    part = cursor.restrict_to(cursor.octet())
    with pytest.raises(TruncatedError):
        part.take(3)
    assert part.rest() == b"ab"
    assert cursor.rest() == b"cd"


def test_a_part_longer_than_the_whole_is_refused() -> None:
    with pytest.raises(TruncatedError):
        Cursor(b"abc").restrict_to(4)


def test_what_is_left_over_is_reported() -> None:
    cursor = Cursor(b"abc")
    cursor.skip(1)
    with pytest.raises(CodecError, match="2 bytes are left over"):
        cursor.finish()


@given(data=st.binary(max_size=30), counts=st.lists(st.integers(0, 10), max_size=8))
def test_pieces_taken_in_turn_are_the_data(data: bytes, counts: list[int]) -> None:
    cursor, pieces = Cursor(data), []
    for count in counts:
        try:
            pieces.append(cursor.take(count))
        except TruncatedError:
            assert count > cursor.remaining
    assert b"".join(pieces) + cursor.rest() == data
