import pytest

from weavenet.lab.bench_results import median_ratio, percentile


@pytest.mark.parametrize(
    ("count", "fraction", "expected"),
    [(100, 0.99, 99), (100, 0.5, 50), (101, 0.99, 100), (10, 0.99, 10), (1, 0.99, 1), (4, 0.0, 1)],
    ids=str,
)
def test_a_percentile_is_one_of_the_values(count: int, fraction: float, expected: int) -> None:
    assert percentile(list(range(count, 0, -1)), fraction) == expected


def test_a_ratio_is_taken_within_each_round() -> None:
    # The machine was ten times slower in the second round; both sides of the ratio were.
    assert median_ratio([5.0, 0.5, 6.0], [10.0, 1.0, 10.0]) == 0.5
