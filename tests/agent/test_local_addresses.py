"""Addresses that a node gives out by itself."""

import asyncio
import logging

import pytest
from msgspec.structs import replace

from weavenet.address import Cidr, parse_address
from weavenet.agent.local_addresses import LocalAddresses
from weavenet.cni.host_local import WrittenRange, parse_local_range
from weavenet.errors import IpamError, StoreError


def test_each_address_is_given_once_and_none_is_left_then() -> None:
    wanted = replace(parse_local_range(WrittenRange("192.0.2.0/29"), None), gateway=parse_address("192.0.2.6"))

    async def scenario() -> None:
        local = LocalAddresses(lambda _: asyncio.sleep(0), logging.getLogger("test"))
        taken = frozenset({parse_address("192.0.2.1")})
        given = [str(await local.allocate(str(number), wanted, taken)) for number in range(4)]
        assert given == [f"192.0.2.{last}/29" for last in (2, 3, 4, 5)]
        with pytest.raises(IpamError, match="no free address is left"):
            await local.allocate("one more", wanted, taken)
        assert await local.release("2")
        assert not await local.release("2")
        assert str(await local.allocate("one more", wanted, taken)) == "192.0.2.4/29"

    asyncio.run(scenario())


def test_a_certain_address_is_given_unless_somebody_has_it_or_nobody_may() -> None:
    wanted = replace(parse_local_range(WrittenRange("192.0.2.0/29"), None), gateway=parse_address("192.0.2.6"))

    async def scenario() -> None:
        local = LocalAddresses(lambda _: asyncio.sleep(0), logging.getLogger("test"))
        taken = frozenset({parse_address("192.0.2.1")})
        third = parse_address("192.0.2.3")
        for _ in range(2):  # also when asked again
            assert str(await local.allocate("a", wanted, taken, third)) == "192.0.2.3/29"
        for last in (1, 3, 6, 9):
            with pytest.raises(IpamError, match=rf"192\.0\.2\.{last} is not free in"):
                await local.allocate("b", wanted, taken, parse_address(f"192.0.2.{last}"))
        assert set(local.owned()) == {"a"}
        assert str(await local.allocate("a", wanted, taken, parse_address("192.0.2.4"))) == "192.0.2.4/29"
        assert str(await local.allocate("b", wanted, taken, third)) == "192.0.2.3/29"

    asyncio.run(scenario())


def test_a_reservation_that_cannot_be_stored_leaves_what_was() -> None:
    wanted = parse_local_range(WrittenRange("192.0.2.0/29"), None)

    async def scenario() -> None:
        async def store(_: object) -> None:
            if is_full:
                raise StoreError("disk full")

        is_full = False
        local = LocalAddresses(store, logging.getLogger("test"))
        held = await local.allocate("a", wanted, frozenset())
        is_full = True
        for ident in ("a", "b"):
            with pytest.raises(StoreError):
                await local.allocate(ident, wanted, frozenset(), parse_address("192.0.2.5"))
        assert local.owned() == {"a": (held,)}

    asyncio.run(scenario())


def test_what_cannot_be_read_from_disk_is_forgotten_and_what_can_is_held() -> None:
    local = LocalAddresses(lambda _: asyncio.sleep(0), logging.getLogger("test"))
    local.restore(b'{"a/net1/docker":"192.0.2.2/24"}')
    assert local.owned() == {"a/net1/docker": (Cidr.parse("192.0.2.2/24"),)}
    for raw in (b"", b"[]", b'{"a":"x"}', b'{"a":1}'):
        local.restore(raw)
    assert local.owned() == {"a/net1/docker": (Cidr.parse("192.0.2.2/24"),)}
