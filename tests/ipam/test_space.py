"""The free list against the real one (vectors), and against two plain sets of numbers."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from weavenet.address import Address, Range, format_address, parse_address
from weavenet.errors import IpamError
from weavenet.ipam.space import Space

RUNS = json.loads((Path(__file__).parent.parent / "vectors" / "ipam_space.json").read_text())["vectors"]["runs"]


def read_range(json_range: dict) -> Range:
    return Range(parse_address(json_range["start"]), parse_address(json_range["end"]))


def flat(ranges: list[Range]) -> list[str]:
    return [format_address(border) for part in ranges for border in (part.start, part.end)]


def run_step(space: Space, step: dict) -> None:
    match step["op"]:
        case "add":
            start = parse_address(step["start"])
            space.extend([*space.owned_ranges(), Range(start, Address(start + step["size"]))])
        case "update_ranges":
            space.extend([read_range(part) for part in step["ranges"]])
        case "clear":
            space.clear()
        case "count_free":
            assert space.count_free(read_range(step["range"])) == step["result"]
        case "allocate":
            address = space.allocate(read_range(step["range"]))
            assert (address is not None) == step["ok"]
            assert address is None or format_address(address) == step["address"]
        case "claim" | "free":
            act = space.claim if step["op"] == "claim" else space.release
            error = None
            try:
                act(parse_address(step["address"]))
            except IpamError as raised:
                error = str(raised)
            assert error == step["error"]
        case "donate":
            block = space.biggest_free_block(read_range(step["range"]))
            assert block.size == step["biggest_free_cidr"]["size"]
            assert not block.size or format_address(block.start) == step["biggest_free_cidr"]["start"]
            donated = space.donate(read_range(step["range"]))
            assert (donated is not None) == step["ok"]
            assert donated is None or donated == read_range(step["donated"])
        case unknown:
            pytest.fail(f"unknown operation {unknown}")


@pytest.mark.parametrize("run", RUNS, ids=[run["name"] for run in RUNS])
def test_a_run_leaves_the_same_boundaries_as_the_real_space(run: dict) -> None:
    space = Space()
    for step in run["steps"]:
        run_step(space, step)
        assert flat(space.free_ranges()) == step["free_after"]
        assert flat(space.used_ranges()) == step["owned_after"]
        assert space.free_count == step["num_free"]
        assert space.used_count == step["num_owned"]
        assert space.owned_ranges() == [read_range(part) for part in step["owned_ranges"]]


def test_giving_up_a_range_keeps_what_is_in_use_elsewhere() -> None:
    space = Space()
    space.extend([Range(Address(0), Address(16))])
    space.claim(Address(3))
    space.restrict([Range(Address(2), Address(5)), Range(Address(8), Address(20))])
    assert space.free_ranges() == [
        Range(Address(2), Address(3)),
        Range(Address(4), Address(5)),
        Range(Address(8), Address(16)),
    ]
    assert space.used_ranges() == [Range(Address(3), Address(4))]


def test_giving_up_a_range_in_use_is_a_programmers_error() -> None:
    space = Space()
    space.extend([Range(Address(0), Address(16))])
    space.claim(Address(3))
    with pytest.raises(AssertionError, match="would be lost"):
        space.restrict([Range(Address(4), Address(16))])


def test_a_million_addresses_with_twenty_thousand_in_use_are_two_short_lists() -> None:
    space = Space()
    whole = Range(parse_address("10.32.0.0"), parse_address("10.48.0.0"))
    space.extend([whole])
    taken = [space.allocate(whole) for _ in range(20_000)]
    assert taken == list(range(whole.start, whole.start + 20_000))
    assert len(space.free_ranges()) == len(space.used_ranges()) == 1
    for address in taken[::2]:
        assert address is not None
        space.release(address)
    assert space.count_free(whole) == whole.size - 10_000
    assert space.allocate(whole) == taken[0]


UNIVERSE = 48


class SpaceIsTwoSets(RuleBasedStateMachine):
    """Every operation does to the boundaries what it says it does to sets."""

    def __init__(self) -> None:
        super().__init__()
        self.space = Space()
        self.free: set[int] = set()
        self.used: set[int] = set()

    ranges = st.tuples(st.integers(0, UNIVERSE), st.integers(0, UNIVERSE)).map(
        lambda ends: Range(Address(min(ends)), Address(max(ends)))
    )
    addresses = st.integers(0, UNIVERSE).map(Address)

    @rule(part=ranges)
    def extend(self, part: Range) -> None:
        self.space.extend([part])
        self.free |= set(range(part.start, part.end)) - self.used

    @rule(parts=st.lists(ranges, max_size=3))
    def restrict(self, parts: list[Range]) -> None:
        kept = set().union(*(range(part.start, part.end) for part in parts)) | self.used
        self.space.restrict([Range(Address(address), Address(address + 1)) for address in sorted(kept)])
        self.free &= kept

    @rule(within=ranges)
    def allocate(self, within: Range) -> None:
        inside = {address for address in self.free if address in within}
        address = self.space.allocate(within)
        assert address == min(inside, default=None)
        if address is not None:
            self.free.remove(address)
            self.used.add(address)

    @rule(address=addresses)
    def claim(self, address: Address) -> None:
        if address in self.free:
            self.space.claim(address)
            self.free.remove(address)
            self.used.add(address)
        else:
            with pytest.raises(IpamError, match=f"^Address 0.0.0.{address} is not free to claim$"):
                self.space.claim(address)

    @rule(address=addresses)
    def release(self, address: Address) -> None:
        assert self.space.is_used(address) == (address in self.used)
        if address in self.used:
            self.space.release(address)
            self.used.remove(address)
            self.free.add(address)
        else:
            with pytest.raises(IpamError, match=f"^Address 0.0.0.{address} is not ours$"):
                self.space.release(address)

    @rule(within=ranges)
    def donate(self, within: Range) -> None:
        inside = {address for address in self.free if address in within}
        donated = self.space.donate(within)
        assert (donated is None) == (not inside)
        if donated is not None:
            given = set(range(donated.start, donated.end))
            assert given
            assert given <= inside
            assert len(given) <= len(inside) - len(inside) // 2
            self.free -= given

    @rule(within=ranges)
    def count(self, within: Range) -> None:
        inside = {address for address in self.free if address in within}
        assert self.space.count_free(within) == len(inside)
        assert self.space.has_allocations([within]) == (len(inside) != within.size)

    @invariant()
    def both_sets_are_the_same(self) -> None:
        for ranges, numbers in (
            (self.space.free_ranges(), self.free),
            (self.space.used_ranges(), self.used),
            (self.space.owned_ranges(), self.free | self.used),
        ):
            assert [address for part in ranges for address in range(part.start, part.end)] == sorted(numbers)
            assert all(a.end < b.start for a, b in pairwise(ranges)), "ranges that touch are one"
        assert self.space.free_count == len(self.free)
        assert self.space.used_count == len(self.used)


SpaceIsTwoSets.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestSpaceIsTwoSets = SpaceIsTwoSets.TestCase
