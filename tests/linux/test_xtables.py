"""Reading the rules of iptables-legacy."""

import struct

import pytest

from weavenet.linux.xtables import read_forward_drops

DROP, ACCEPT = -1, -2
ENTRY = 112 + 40


def entry(came_by: bytes = b"", goes_by: bytes = b"", verdict: int = ACCEPT, name: bytes = b"") -> bytes:
    head = struct.pack("=16x16s16s36xIHHI16x", came_by, goes_by, 0, 112, ENTRY, 0)
    return head + struct.pack("=H29sBi4x", 40, name, 0, verdict)


FROM, TO = entry(b"weave"), entry(goes_by=b"weave")


@pytest.mark.parametrize(
    ("rules", "policy", "drops"),
    [
        ([], DROP, True),
        ([], ACCEPT, False),
        ([FROM, TO], DROP, False),
        ([FROM], DROP, True),
        ([FROM, entry(goes_by=b"weave2")], DROP, True),
        ([FROM, entry(goes_by=b"weave", verdict=DROP)], DROP, True),
        ([FROM, entry(goes_by=b"weave", name=b"LOG")], DROP, True),
    ],
)
def test_forward_drops_unless_both_directions_are_accepted(rules: list[bytes], policy: int, drops: bool) -> None:
    table = b"".join([entry(), *rules, entry(verdict=policy)])
    assert read_forward_drops(table, ENTRY, ENTRY * (1 + len(rules)), b"weave") is drops


def test_a_table_that_is_cut_or_goes_in_circles_is_read_to_its_end() -> None:
    table = b"".join([FROM, TO, entry(verdict=DROP)])
    for length in range(len(table)):
        assert read_forward_drops(table[:length], 0, 2 * ENTRY, b"weave") in {True, False}
    assert not read_forward_drops(bytes(500), 0, 2 * ENTRY, b"weave")
