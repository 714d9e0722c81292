"""Peers as users write them."""

import asyncio

import pytest

from weavenet.address import Endpoint
from weavenet.agent.resolve import resolve_target, resolve_targets
from weavenet.errors import InputError


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [("192.0.2.1", "192.0.2.1:0"), ("192.0.2.1:6783", "192.0.2.1:6783"), ("127.0.0.1:http", "127.0.0.1:80")],
)
def test_a_peer_is_a_host_and_maybe_a_port(text: str, endpoint: str) -> None:
    assert asyncio.run(resolve_target(text)).endpoint == Endpoint.parse(endpoint)


@pytest.mark.parametrize("text", ["", ":6783", "host:", "host:67:83", "a host", "host:-1", "192.0.2.1:99999"])
def test_anything_else_is_refused_by_name(text: str) -> None:
    with pytest.raises(InputError, match="invalid peer name"):
        asyncio.run(resolve_target(text))


def test_a_bad_peer_does_not_keep_the_good_ones_out() -> None:
    targets, failures = asyncio.run(resolve_targets(["192.0.2.1", ":", "192.0.2.2"]))
    assert [target.text for target in targets] == ["192.0.2.1", "192.0.2.2"]
    assert len(failures) == 1
