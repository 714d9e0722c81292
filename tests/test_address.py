"""Addresses, ranges and CIDRs against Weave's arithmetic (vectors) and against counting one by one."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weavenet.address import (
    Address,
    Cidr,
    Endpoint,
    Range,
    address_from_bytes,
    address_to_bytes,
    format_address,
    parse_address,
    parse_subnet,
)
from weavenet.errors import AddressError, SubnetError

CIDRS = json.loads((Path(__file__).parent / "vectors" / "ipam_space.json").read_text())["vectors"]["cidr"]

addresses = st.integers(0, 0xFFFF_FFFF).map(Address)
ranges = st.tuples(addresses, addresses).map(lambda ends: Range(min(ends), max(ends)))
small_ranges = st.tuples(st.integers(0, 300), st.integers(0, 300)).map(
    lambda ends: Range(Address(min(ends)), Address(max(ends)))
)


@pytest.mark.parametrize("vector", CIDRS, ids=[vector["string"] for vector in CIDRS])
def test_a_range_is_cut_into_the_same_blocks_as_by_weave(vector: dict) -> None:
    span = Range(Address(vector["start"]), Address(vector["start"] + vector["size"]))
    assert span.size == vector["size"]
    assert str(span) == vector["string"]
    assert [str(block) for block in span.cidrs()] == vector["cidrs"]
    assert span.as_cidr_text() == vector["as_cidr_string"]
    assert span.biggest_cidr_block() == Range(
        Address(vector["biggest_start"]), Address(vector["biggest_start"] + vector["biggest_size"])
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("banana/24", "invalid CIDR address"),
        ("10.0.0.0", "invalid CIDR address"),
        ("10.0.0/8", "invalid CIDR address"),
        ("10.0.0.0/33", "invalid CIDR address"),
        ("10.0.0.0/-1", "invalid CIDR address"),
        ("", "invalid CIDR address"),
        ("::zz/64", "invalid CIDR address"),
        ("fd00::1", "invalid CIDR address"),
        ("fd00::/64", "Non-IPv4 address not supported"),
        ("fd00::1/64", "Non-IPv4 address not supported"),
        ("10.32.4.1/24", "invalid subnet - bits after network prefix are not all zero"),
        ("10.32.4.0/31", "invalid subnet - smaller than minimum size 4"),
        ("10.32.4.1/31", "invalid subnet - smaller than minimum size 4"),
        ("10.32.4.1/32", "invalid subnet - smaller than minimum size 4"),
    ],
)
def test_a_text_that_is_no_subnet_is_refused_with_weaves_words(text: str, reason: str) -> None:
    with pytest.raises(SubnetError) as raised:
        parse_subnet(text)
    assert str(raised.value) == f"{reason}: {text}"
    assert isinstance(raised.value, AddressError)
    assert raised.value.text == text


@pytest.mark.parametrize("text", ["10.32.0.0/12", "0.0.0.0/0", "192.0.2.4/30"])
def test_a_subnet_of_four_addresses_or_more_is_read(text: str) -> None:
    assert str(parse_subnet(text)) == text


@pytest.mark.parametrize("text", ["", "1.2.3", "1.2.3.4.5", "1.2.3.256", "1.2.3.04", "1.2.3.x", "1.2.3.", "1.2.3.٤"])
def test_a_text_that_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(AddressError):
        parse_address(text)


@given(address=addresses)
def test_an_address_is_the_same_after_writing_and_reading(address: Address) -> None:
    assert parse_address(format_address(address)) == address
    assert address_from_bytes(address_to_bytes(address)) == address


@given(address=addresses, length=st.integers(0, 32), port=st.integers(0, 65535))
def test_cidrs_and_endpoints_are_the_same_after_writing_and_reading(address: Address, length: int, port: int) -> None:
    cidr = Cidr(address, length)
    assert Cidr.parse(str(cidr)) == cidr
    assert Endpoint.parse(str(Endpoint(address, port))) == Endpoint(address, port)
    assert cidr.network.is_subnet
    assert address in cidr.range
    assert cidr.range.size == cidr.size
    assert cidr.broadcast == cidr.range.end - 1


@given(span=ranges)
def test_the_blocks_of_a_range_are_aligned_and_cover_it_exactly(span: Range) -> None:
    at = span.start
    for block in span.cidrs():
        assert block.is_subnet
        assert block.address == at
        at = block.range.end
    assert at == span.end


@given(one=small_ranges, other=small_ranges)
def test_ranges_meet_where_their_addresses_do(one: Range, other: Range) -> None:
    common = set(range(one.start, one.end)) & set(range(other.start, other.end))
    met = one.intersect(other)
    assert set(range(met.start, met.end)) == common
    if one.size and other.size:
        assert one.overlaps(other) == bool(common)


@pytest.mark.parametrize(
    ("subnet", "hosts"),
    [
        ("10.0.0.0/30", ("10.0.0.1", "10.0.0.3")),
        ("10.0.0.0/24", ("10.0.0.1", "10.0.0.255")),
        ("10.0.0.0/31", ("10.0.0.1", "10.0.0.1")),
        ("10.0.0.0/32", ("10.0.0.1", "10.0.0.1")),
    ],
)
def test_hosts_are_all_but_the_first_and_last_address(subnet: str, hosts: tuple[str, str]) -> None:
    span = Cidr.parse(subnet).host_range
    assert (format_address(span.start), format_address(span.end)) == hosts
