"""`/expose` of the control API: Weave's answers where Weave has the path, and what is said otherwise."""

import asyncio
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from weavenet.address import Cidr
from weavenet.agent.dispatch import make_application
from weavenet.agent.expose import Exposed
from weavenet.agent.expose_api import expose_routes
from weavenet.drivers.http import Request, Response
from weavenet.errors import AddressError, IpamError, KernelError, StoreError

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "http_cli_outputs.json").read_text())["vectors"]
STEPS = [step for scenario in VECTORS for step in scenario["steps"] if step.get("path", "").startswith("/expose")]
ONE, TWO = Cidr.parse("10.32.0.1/12"), Cidr.parse("192.0.2.1/24")
TEXT = "text/plain; charset=utf-8"


class FakeExposure:
    def __init__(self, *, remark: str = "", error: Exception | None = None) -> None:
        self.remark, self.error = remark, error
        self.asked: list[tuple[object, ...]] = []

    async def exposed(self) -> Sequence[Exposed]:
        return (Exposed(ONE, masquerade=True), Exposed(TWO, masquerade=False))

    async def claim_and_expose(self, address: Cidr, *, masquerade: bool) -> str:
        return self._answer("expose", address, masquerade)

    async def hide_and_release(self, address: Cidr) -> str:
        return self._answer("hide", address)

    def _answer(self, *asked: object) -> str:
        self.asked.append(asked)
        if self.error is not None:
            raise self.error
        return self.remark


def ask(exposure: FakeExposure, method: str, target: str, accept: str = "") -> Response:
    application = make_application(logging.getLogger("test"), expose_routes(exposure))
    return asyncio.run(_awaited(application(Request(method, target, {"accept": accept}, b""))))


async def _awaited(answer):
    return await answer


@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step['method']} {step['path']}")
def test_a_recorded_request_gets_the_recorded_reply(step: dict[str, str]) -> None:
    reply = ask(FakeExposure(), step["method"], step["path"])

    assert (reply.status, reply.content_type, reply.body.decode()) == (
        int(step["status"]),
        step["content_type"],
        step["body"],
    )


def test_weaves_recorded_requests_are_there() -> None:
    assert len(STEPS) == 5


@pytest.mark.parametrize(
    ("method", "target", "asked"),
    [
        ("POST", "/expose/10.32.0.1/12", ("expose", ONE, True)),
        ("POST", "/expose/10.32.0.1/12?skipNAT=", ("expose", ONE, True)),
        ("POST", "/expose/10.32.0.1/12?skipNAT=F", ("expose", ONE, True)),
        ("POST", "/expose/10.32.0.1/12?skipNAT=true", ("expose", ONE, False)),
        ("POST", "/expose/10.32.0.1/12?skipNAT=1", ("expose", ONE, False)),
        ("DELETE", "/expose/192.0.2.1/24", ("hide", TWO)),
    ],
)
def test_what_is_asked_reaches_the_bridge(method: str, target: str, asked: tuple[object, ...]) -> None:
    exposure = FakeExposure()

    assert ask(exposure, method, target).status == 204
    assert exposure.asked == [asked]


@pytest.mark.parametrize("target", ["/expose/banana/12", "/expose/10.32.0.1/33", "/expose/10.32.0.1/12?skipNAT=maybe"])
def test_what_cannot_be_read_changes_nothing(target: str) -> None:
    exposure = FakeExposure()

    assert ask(exposure, "POST", target).status == 400
    assert exposure.asked == []


def test_what_is_worth_a_word_comes_with_it() -> None:
    for method in ("POST", "DELETE"):
        reply = ask(FakeExposure(remark="mind the gap\n"), method, "/expose/10.32.0.1/12")
        assert (reply.status, reply.body) == (200, b"mind the gap\n")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (AddressError("10.32.0.0/12", "no"), 400),
        (IpamError("no"), 500),
        (KernelError("no"), 500),
        (StoreError("no"), 500),
    ],
)
def test_a_refusal_says_why(error: Exception, status: int) -> None:
    reply = ask(FakeExposure(error=error), "POST", "/expose/10.32.0.1/12")
    assert (reply.status, reply.body.decode()) == (status, f"unable to expose: {error}\n")
    if status == 500:
        reply = ask(FakeExposure(error=error), "DELETE", "/expose/10.32.0.1/12")
        assert (reply.status, reply.body.decode()) == (500, f"unable to hide: {error}\n")


def test_what_is_exposed_is_shown_as_text_and_as_json() -> None:
    assert ask(FakeExposure(), "GET", "/expose") == Response(200, b"10.32.0.1/12 192.0.2.1/24", TEXT)
    shown = ask(FakeExposure(), "GET", "/expose", "application/json")
    assert json.loads(shown.body) == [
        {"address": "10.32.0.1/12", "masquerade": True},
        {"address": "192.0.2.1/24", "masquerade": False},
    ]
