"""Reading what nft says in JSON, and telling which of its notifications concern us."""

import json

import pytest

from weavenet.address import Address, Cidr, Endpoint, Range, parse_address
from weavenet.dataplane.nft import AddressSet, Chain, Hook, PortMap, PortMapping, Protocol, Rule, Table
from weavenet.errors import KernelError
from weavenet.linux import nft
from weavenet.linux.netlink import Message, text
from weavenet.linux.nft import Nftables, read_forward, read_table


def said(*items: object) -> str:
    return json.dumps({"nftables": [{"metainfo": {"version": "1.0.6"}}, *items]})


def test_a_table_is_read_with_its_parts_in_order() -> None:
    chain = {"name": "prerouting", "type": "nat", "hook": "prerouting", "prio": -95, "policy": "accept"}
    ranges = ["10.0.0.1", {"prefix": {"addr": "10.32.0.0", "len": 12}}, {"range": ["10.48.0.0", "10.48.0.2"]}]
    maps = [
        [{"concat": ["tcp", 80]}, {"concat": ["10.32.0.5", 8080]}],
        [{"concat": [17, 53]}, {"concat": ["10.32.0.6", 53]}],  # as some versions print protocols
    ]
    table = read_table(
        said(
            {"table": {"name": "weavenet"}},
            {"map": {"name": "ports", "elem": maps}},
            {"map": {"name": "address_ports"}},
            {"set": {"name": "subnets", "elem": ranges}},
            {"chain": chain},
            {"chain": {"name": "hostports"}},
            {"rule": {"chain": "prerouting", "handle": 7, "comment": "to this host #1", "expr": [{"xt": None}]}},
            {"rule": {"chain": "prerouting", "handle": 8}},
        )
    )
    to_five = PortMapping(Protocol.TCP, 80, Endpoint(parse_address("10.32.0.5"), 8080))
    to_six = PortMapping(Protocol.UDP, 53, Endpoint(parse_address("10.32.0.6"), 53))
    assert table == Table(
        chains=(
            Chain("hostports", ()),
            Chain("prerouting", (Rule("to this host #1"), Rule("")), Hook("nat", "prerouting", -95)),
        ),
        sets=(
            AddressSet(
                "subnets",
                (
                    Range(parse_address("10.0.0.1"), parse_address("10.0.0.2")),
                    # Ranges that touch are one, as they are when we ask for them.
                    Range(Cidr.parse("10.32.0.0/12").address, Address(parse_address("10.48.0.2") + 1)),
                ),
            ),
        ),
        maps=(PortMap("address_ports", True, ()), PortMap("ports", False, (to_five, to_six))),
    )


@pytest.mark.parametrize(
    "element", [7, None, "fd00::1", {"prefix": {"addr": "x", "len": 8}}, {"range": ["10.0.0.1"]}, ["10.0.0.1", "x"]]
)
def test_elements_that_make_no_sense_are_not_there(element: object) -> None:
    table = read_table(
        said({"set": {"name": "ours", "elem": [element]}}, {"map": {"name": "ports", "elem": [element]}})
    )
    assert (table.sets[0].ranges, table.maps[0].mappings) == ((), ())


@pytest.mark.parametrize("answer", ["", "{", "[1]", '{"nftables": 7}', '{"nftables": [7, {"set": 8}]}', "\x00"])
def test_an_answer_that_makes_no_sense_is_an_error_or_nothing(answer: str) -> None:
    try:
        assert read_table(answer) == Table((), (), ())
    except KernelError as error:
        assert "not JSON" in str(error)  # noqa: PT017 - either is fine


def test_of_iptables_forward_only_our_rules_are_read() -> None:
    theirs, ours = {"handle": 1, "expr": []}, {"handle": 2, "comment": "weavenet: to pods #1", "expr": []}
    [rule] = read_forward(said({"chain": {"name": "FORWARD"}}, {"rule": theirs}, {"rule": ours}))
    assert (rule.comment, rule.handle) == ("weavenet: to pods #1", 2)


@pytest.mark.parametrize(
    ("kind", "table", "concerns"),
    [
        (0x0A06, "weavenet", True),
        (0x0A08, "filter", True),
        (0x0A06, "nat", False),
        (0x0A0F, "weavenet", False),
        (3, "", False),
    ],
)
def test_a_notification_concerns_us_if_it_is_about_our_table_or_iptables_filter(
    kind: int, table: str, concerns: bool
) -> None:
    assert nft._concerns_us(Message(kind, bytes(4) + text(1, table))) is concerns


def test_a_host_without_the_library_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nft, "_LIBRARY", "libnftables.so.nosuch")
    nft._library.cache_clear()
    try:
        with pytest.raises(KernelError, match=r"cannot load libnftables.so.nosuch .*; install libnftables1"):
            Nftables().observe()
    finally:
        nft._library.cache_clear()
