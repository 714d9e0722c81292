"""What is read of `host-local`'s configuration."""

import pytest

from weavenet.cni.host_local import LocalRange, WrittenRange, parse_local_range
from weavenet.errors import CniError


def ranged(**keys: str) -> LocalRange:
    return parse_local_range(WrittenRange(**keys), None)


def test_what_is_usable_of_a_subnet_is_what_is_written() -> None:
    assert str(ranged(subnet="192.0.2.0/24").usable) == "192.0.2.1-192.0.2.254"
    assert str(ranged(subnet="192.0.2.7/24", rangeStart="192.0.2.10").usable) == "192.0.2.10-192.0.2.254"
    both = ranged(subnet="192.0.2.0/24", rangeStart="192.0.2.10", rangeEnd="192.0.2.19")
    assert both.usable.size == 10
    assert parse_local_range(WrittenRange(), [[WrittenRange("192.0.2.0/31")]]).usable.size == 2


@pytest.mark.parametrize(
    ("keys", "ranges"),
    [
        ({}, None),
        ({"subnet": "192.0.2.0"}, None),
        ({"subnet": "192.0.2.0/24", "rangeStart": "192.0.3.1"}, None),
        ({"subnet": "192.0.2.0/24", "rangeEnd": "192.0.2.255"}, None),
        ({"subnet": "192.0.2.0/24", "gateway": "198.51.100.1"}, None),
        ({"subnet": "192.0.2.0/24", "rangeStart": "192.0.2.9", "rangeEnd": "192.0.2.8"}, None),
        ({"subnet": "192.0.2.0/24"}, [[WrittenRange("192.0.2.0/24")]]),
        ({}, [[WrittenRange("192.0.2.0/24")], [WrittenRange("198.51.100.0/24")]]),
        ({}, [[]]),
    ],
)
def test_a_range_that_makes_no_sense_is_refused(keys: dict[str, str], ranges: list[list[WrittenRange]] | None) -> None:
    with pytest.raises(CniError):
        parse_local_range(WrittenRange(**keys), ranges)
