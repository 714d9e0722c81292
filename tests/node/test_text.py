"""Dates without a clock agree with the standard library's."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from weavenet.node.text import wall_clock


@given(st.integers(min_value=0, max_value=4_102_444_800))
def test_a_second_reads_as_the_standard_library_reads_it(wall_s: int) -> None:
    assert wall_clock(wall_s) == datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def test_the_epoch_and_a_leap_day() -> None:
    assert wall_clock(0.0) == "1970-01-01 00:00:00 UTC"
    assert wall_clock(951_782_400.5) == "2000-02-29 00:00:00 UTC"
