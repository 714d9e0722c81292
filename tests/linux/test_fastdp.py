"""What Python and C must agree on, without a kernel: the structs, the counters, the limits."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weavenet.address import Address
from weavenet.errors import KernelError
from weavenet.identity import SHORT_ID_COUNT, ShortID
from weavenet.linux import fastdp
from weavenet.linux.fastdp import HOPS_MAX, SLOTS_MAX, Counter

SOURCE = (Path(__file__).parents[2] / "src/weavenet/dataplane/bpf/fastdp.c").read_text()
CODE = re.sub(r"/\*.*?\*/", "", SOURCE, flags=re.DOTALL)


def defined(name: str) -> str:
    found = re.search(rf"^#define {name}\s+(.+?)\s*$", CODE, re.MULTILINE)
    assert found is not None
    return found[1]


def struct_bytes(name: str) -> int:
    """Add up the fields of a C struct, all of which are as aligned as they come."""
    found = re.search(rf"^struct {name} {{(.*?)^}};", CODE, re.MULTILINE | re.DOTALL)
    assert found is not None
    sizes = {"__u32": 4, "__u64": 8, "struct hop": 8}
    total = 0
    for kind, _name, array in re.findall(r"^\s*(__u\d+|struct \w+) (\w+)(\[HOPS_MAX\])?;", found[1], re.MULTILINE):
        total += sizes[kind] * (HOPS_MAX if array else 1)
    return total


def test_counters_have_the_names_and_the_order_of_the_programs() -> None:
    found = re.search(r"enum counter {(.*?)}", CODE, re.DOTALL)
    assert found is not None
    names = [name.strip() for name in found[1].split(",")]
    assert names == [*(counter.name for counter in Counter), "COUNTERS"]
    assert [counter.value for counter in Counter] == list(range(len(Counter)))


def test_limits_are_those_of_the_programs() -> None:
    assert int(defined("HOPS_MAX")) == HOPS_MAX
    assert int(defined("SLOTS_MAX")) == SLOTS_MAX
    assert int(defined("PEERS_MAX")) == SHORT_ID_COUNT
    assert defined("LOCAL") == "PEERS_MAX"
    assert defined("MAC_AGE_NS") == "(600 * SECOND_NS)"
    assert fastdp.MAC_AGE_NS == 600 * 10**9


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("config", fastdp._CONFIG.size),
        ("hop", fastdp._HOP.size),
        ("flood", fastdp._FLOOD_BYTES),
        ("place", fastdp._PLACE.size),
        ("special", fastdp._SPECIAL.size),
        ("traffic", fastdp._TRAFFIC.size),
        ("event", fastdp._EVENT.size),
    ],
)
def test_a_struct_is_as_long_as_in_the_programs(name: str, size: int) -> None:
    assert struct_bytes(name) == size


def test_all_maps_of_the_programs_are_known_by_name() -> None:
    assert set(re.findall(r'^} (\w+) SEC\("\.maps"\);', CODE, re.MULTILINE)) == fastdp._NAMES


short_ids = st.integers(0, SHORT_ID_COUNT - 1).map(ShortID)
hops = st.lists(st.tuples(short_ids, st.integers(1, 2**32 - 1).map(Address)), max_size=HOPS_MAX).map(tuple)


@given(short_ids, hops)
def test_a_flood_row_is_read_as_it_was_written(origin: ShortID, row: tuple[tuple[ShortID, Address], ...]) -> None:
    value = fastdp._write_flood(origin, row)
    assert len(value) == fastdp._FLOOD_BYTES
    assert fastdp._read_flood(fastdp._U32.pack(origin), value) == (origin, row)


@given(st.binary(min_size=4, max_size=64))
def test_a_row_that_another_program_wrote_never_reads_beyond_itself(start: bytes) -> None:
    _origin, row = fastdp._read_flood(bytes(4), start.ljust(fastdp._FLOOD_BYTES, b"\xff"))
    assert len(row) <= HOPS_MAX


def test_a_row_with_too_many_hops_is_refused_in_words() -> None:
    with pytest.raises(KernelError, match=r"short ID 9 to 513 next hops: there is room for 512; allow fewer"):
        fastdp._write_flood(ShortID(9), ((ShortID(1), Address(1)),) * (HOPS_MAX + 1))


def test_compiled_programs_are_taken_from_the_package_or_from_the_checkout() -> None:
    assert fastdp.default_object().name == "fastdp.o"
    assert fastdp.default_object().parent.name in {"bpf", "build"}
