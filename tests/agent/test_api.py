"""The HTTP layer against recorded requests: given what the cores would say, the reply must be Weave's to the byte."""

import asyncio
import http.client
import json
import logging
import os
import re
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from weavenet.address import Address, Cidr
from weavenet.agent.api import make_control_application, make_metrics_application, make_status_application
from weavenet.api.client import Client
from weavenet.api.schema import decode_report
from weavenet.drivers.http import Application, HttpListener
from weavenet.effects import Cancelled, Done, Granted, Outcome, Refused, TookOver
from weavenet.errors import AgentAwayError, ApiStatusError, IpamError
from weavenet.node.report import Attachment, Report, Weavenet

TESTS = Path(__file__).parents[1]
VECTORS = json.loads((TESTS / "vectors" / "http_cli_outputs.json").read_text())["vectors"]
REPORT = decode_report((TESTS / "recorded" / "host1-report.json").read_bytes())
SUBNET = Cidr.parse("10.32.0.0/12")
LOG = logging.getLogger("test")


@dataclass
class FakeControl:
    """Says what it was told to say, and remembers what it was asked."""

    outcome: Outcome = field(default_factory=Done)
    problems: tuple[str, ...] = ()
    found: tuple[Cidr, ...] = ()
    holders: Mapping[str, Sequence[Cidr]] = field(default_factory=dict)
    subnet: Cidr | None = SUBNET
    shown: Report = REPORT
    asked: list[tuple[object, ...]] = field(default_factory=list)
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    error: Exception | None = None
    blocked: bool = False

    async def _outcome(self, *asked: object) -> Outcome:
        self.asked.append(asked)
        if self.error is not None:
            raise self.error
        if self.blocked:
            self.waiting.set()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self.cancelled.set()
        return self.outcome

    async def report(self) -> Report:
        return self.shown

    async def connect(self, peers: Sequence[str], *, replace: bool) -> Sequence[str]:
        self.asked.append(("connect", *peers, replace))
        return self.problems

    async def forget(self, peers: Sequence[str]) -> None:
        self.asked.append(("forget", *peers))

    def default_subnet(self) -> Cidr | None:
        return self.subnet

    async def allocate(self, ident: str, subnet: Cidr | None, *, check_alive: bool) -> Outcome:
        return await self._outcome("allocate", ident, subnet, check_alive)

    async def claim(self, ident: str, address: Cidr, *, check_alive: bool, no_error_on_unknown: bool) -> Outcome:
        return await self._outcome("claim", ident, address, check_alive, no_error_on_unknown)

    async def lookup(self, ident: str, subnet: Cidr | None) -> Sequence[Cidr]:
        self.asked.append(("lookup", ident, subnet))
        return self.found

    async def owned(self) -> Mapping[str, Sequence[Cidr]]:
        return self.holders

    async def release(self, ident: str) -> Outcome:
        return await self._outcome("release", ident)

    async def release_address(self, ident: str, address: Address) -> Outcome:
        return await self._outcome("release address", ident, address)

    async def await_consensus(self) -> Outcome:
        return await self._outcome("await consensus")

    async def take_over(self, ident: str) -> Outcome:
        return await self._outcome("take over", ident)

    async def shut_down(self) -> Outcome:
        return await self._outcome("shut down")


@dataclass(frozen=True)
class Reply:
    status: int
    content_type: str
    body: str


async def ask(
    control: FakeControl,
    method: str,
    target: str,
    *,
    form: Sequence[str] = (),
    accept: str = "",
    make: Callable[[FakeControl, logging.Logger], Application] = make_control_application,
) -> Reply:
    listener = HttpListener(make(control, LOG))
    port = await listener.listen_tcp("127.0.0.1:0")
    headers = {"Accept": accept, "Content-Type": "application/x-www-form-urlencoded"}
    body = "&".join(re.sub(r"[^\w=.]", lambda found: f"%{ord(found[0]):02x}", one) for one in form)
    try:
        return await asyncio.to_thread(_exchange, port, method, target, body, headers)
    finally:
        await listener.close()


def _exchange(port: int, method: str, target: str, body: str, headers: dict[str, str]) -> Reply:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, target, body=body or None, headers=headers)
        response = connection.getresponse()
        return Reply(response.status, response.headers.get("Content-Type", ""), response.read().decode())
    finally:
        connection.close()


def run(coroutine: Awaitable[Reply]) -> Reply:
    async def wrapped() -> Reply:
        return await coroutine

    return asyncio.run(wrapped())


# --- vectors ----------------------------------------------------------------------------------------------------------

# Not there yet: names. /expose: test_expose_api.py. What is made from reports: where reports are (test_metrics.py).
_LATER = ("/name", "/domain", "/dns-address", "/expose", "/status/dns")
_MADE_FROM_REPORTS = ("/status", "/report", "/metrics")


def api_steps() -> list[tuple[str, dict[str, str]]]:
    found: list[tuple[str, dict[str, str]]] = []
    for scenario in VECTORS:
        for number, step in enumerate(scenario["steps"]):
            path = step.get("path", "")
            if not path or path.startswith(_LATER):
                continue
            if path.startswith(_MADE_FROM_REPORTS) and step["status"] == 200:
                continue
            found.append((f"{scenario['scenario']}.{number} {step['method']} {path}", step))
    return found


def what_the_cores_said(step: dict[str, str]) -> FakeControl:
    """Work out from a recorded reply what the cores must have answered."""
    body, path, status = step["body"].rstrip("\n"), step["path"], int(step["status"])
    control = FakeControl()
    if path == "/connect" and status == 400:
        control.problems = (body,)
    elif step["method"] == "GET" and path == "/ip":
        owned = json.loads(body)["owned"]
        control.holders = {one["containerid"]: [Cidr.parse(text) for text in one["addrs"]] for one in owned}
    elif step["method"] == "GET":
        control.found = tuple(Cidr.parse(text) for text in body.split() if text.count(".") == 3 and status == 200)
    elif status == 400:
        control.outcome = Refused(re.sub("^(Unable to claim|Unable to free): ", "", body))
    elif body == "cancelled":
        control.outcome = Cancelled()
    elif taken := re.match(r"(\d+) IPs taken over", body):
        control.outcome = TookOver(int(taken[1]))
    elif step["method"] == "POST" and path.startswith("/ip"):
        control.outcome = Granted((Cidr.parse(body),))
    return control


@pytest.mark.parametrize("step", [step for _, step in api_steps()], ids=[name for name, _ in api_steps()])
def test_a_recorded_request_gets_the_recorded_reply(step: dict[str, str]) -> None:
    accept = "".join(header.partition(": ")[2] for header in step["request_headers"])
    make = make_status_application if step["port"] == 6782 else make_control_application

    reply = run(
        ask(what_the_cores_said(step), step["method"], step["path"], form=step["form"], accept=accept, make=make)
    )

    body = reply.body
    if step["method"] == "GET" and step["path"] == "/ip":  # a Go map has no order, ours does
        assert sorted(json.loads(body)["owned"], key=str) == sorted(json.loads(step["body"])["owned"], key=str)
        body = step["body"]
    if reply.status == 500:
        body = body.replace(": .Nope: there is no Nope", "")  # we say why
    assert Reply(reply.status, reply.content_type, body) == Reply(
        int(step["status"]), step["content_type"], step["body"]
    )


# --- what reaches the cores -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "target", "form", "asked"),
    [
        ("POST", "/ip/c1", [], ("allocate", "c1", None, False)),
        ("POST", "/ip/c1?check-alive=true", [], ("allocate", "c1", None, True)),
        ("POST", "/ip/c1/10.32.4.0/24", ["check-alive=true"], ("allocate", "c1", Cidr.parse("10.32.4.0/24"), True)),
        (
            "PUT",
            "/ip/weave:expose/10.32.0.7/12",
            ["noErrorOnUnknown=true"],
            ("claim", "weave:expose", Cidr.parse("10.32.0.7/12"), False, True),
        ),
        ("DELETE", "/ip/_/10.32.0.7", [], ("release address", "_", Address(0x0A200007))),
        ("DELETE", "/ip/c1", [], ("release", "c1")),
        ("GET", "/ring", [], ("await consensus",)),
        ("DELETE", "/peer/host%203", [], ("take over", "host 3")),
        ("DELETE", "/peer", [], ("shut down",)),
        ("POST", "/connect", ["peer=a", "peer=b:1", "replace=true"], ("connect", "a", "b:1", True)),
        ("POST", "/connect?peer=a", [], ("connect", "a", False)),
        ("POST", "/connect", ["replace=true"], ("connect", True)),
        ("POST", "/forget", ["peer=a", "peer=b"], ("forget", "a", "b")),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_request_reaches_the_cores_as_values(
    method: str,
    target: str,
    form: list[str],
    asked: tuple[object, ...],
) -> None:
    control = FakeControl()

    run(ask(control, method, target, form=form))

    assert control.asked == [asked]


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", "/ip/c1"),
        ("GET", "/ip"),
        ("GET", "/ip/c1"),
        ("PUT", "/ip/c1/10.32.0.1/12"),
        ("DELETE", "/ip/c1"),
        ("DELETE", "/ip/c1/10.32.0.1"),
        ("GET", "/ring"),
        ("GET", "/ipinfo/defaultsubnet"),
        ("GET", "/ipinfo/tracker"),
        ("GET", "/status/ipam"),
    ],
)
def test_without_address_allocation_its_paths_are_not_there(method: str, target: str) -> None:
    reply = run(ask(FakeControl(subnet=None), method, target))

    assert reply == Reply(404, "text/plain; charset=utf-8", "404 page not found\n")


def test_without_address_allocation_nothing_is_taken_over() -> None:
    assert run(ask(FakeControl(subnet=None), "DELETE", "/peer/host3")) == Reply(200, "", "")


@pytest.mark.parametrize(
    ("method", "target"),
    [("GET", "/connect"), ("POST", "/status"), ("HEAD", "/status"), ("PATCH", "/ip/c1"), ("PUT", "/peer")],
)
def test_a_known_path_with_another_method_is_refused_without_a_word(method: str, target: str) -> None:
    assert run(ask(FakeControl(), method, target)) == Reply(405, "", "")


@pytest.mark.parametrize("target", ["/connect", "/ip/c1", "/ps", "/ring", "/peer"])
def test_the_status_listener_shows_and_does_nothing(target: str) -> None:
    control = FakeControl()

    for method in ("GET", "POST", "PUT", "DELETE"):
        assert run(ask(control, method, target, make=make_status_application)).status == 404
    assert control.asked == []


@pytest.mark.parametrize("target", ["/status", "/report", "/connect", "/ip/c1"])
def test_the_metrics_listener_has_metrics_and_nothing_else(target: str) -> None:
    assert run(ask(FakeControl(), "GET", target, make=make_metrics_application)).status == 404
    reply = run(ask(FakeControl(), "GET", "/metrics", make=make_metrics_application))
    assert (reply.status, reply.content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert "\nweave_connections{" in reply.body
    assert run(ask(FakeControl(), "POST", "/metrics", make=make_metrics_application)) == Reply(405, "", "")


@pytest.mark.parametrize("target", ["/", "/nonsense", "/status/", "/ip/", "/ip/c1/10.32.0.1/12/x", "//status", "*"])
def test_an_unknown_path_is_not_there(target: str) -> None:
    reply = run(ask(FakeControl(), "GET", target))

    assert reply == Reply(404, "text/plain; charset=utf-8", "404 page not found\n")


def test_more_parameters_than_anybody_has_peers_are_refused() -> None:
    control = FakeControl()

    reply = run(ask(control, "POST", "/connect", form=["peer=a"] * 1001))

    assert (reply.status, reply.body) == (400, "too many parameters: at most 1000\n")
    assert control.asked == []


def test_a_part_that_is_not_ready_shows_as_503_with_the_same_text() -> None:
    unready = Report(
        ready=False, version="1", version_check=REPORT.version_check, router=REPORT.router, ipam=REPORT.ipam
    )

    reply = run(ask(FakeControl(shown=unready), "GET", "/status"))

    assert reply.status == 503
    assert "Service: router" in reply.body


def test_a_report_is_json_for_who_asks_for_exactly_that() -> None:
    reply = run(ask(FakeControl(), "GET", "/report", accept="application/json"))

    assert reply.content_type == "application/json"
    assert decode_report(reply.body.encode()) == REPORT


def test_a_report_can_be_had_in_a_format() -> None:
    format_text = "{{.Router.Name}}%20{{if%20.DNS}}dns{{else}}no%20dns{{end}}%20{{json%20.Router.Targets}}"

    reply = run(ask(FakeControl(), "GET", f"/report?format={format_text}"))

    assert reply.body == '7a:00:00:00:00:01 no dns ["192.168.77.2","192.168.77.3"]'


def test_attachments_are_listed_as_text_and_as_json() -> None:
    attachments = (Attachment("c0ffee0123456789", "vethwepl1", "3e:5c:41:ff:a0:12", ("10.32.0.2/12",)),)
    shown = Report(
        ready=True,
        version="1",
        version_check=REPORT.version_check,
        router=REPORT.router,
        weavenet=Weavenet(attachments=attachments),
    )

    text = run(ask(FakeControl(shown=shown), "GET", "/ps"))
    as_json = run(ask(FakeControl(shown=shown), "GET", "/ps?container=c0", accept="application/json"))

    assert text.body == "c0ffee012345 3e:5c:41:ff:a0:12 10.32.0.2/12\n"
    assert json.loads(as_json.body)[0]["ContainerID"] == "c0ffee0123456789"


def test_an_address_that_cannot_be_given_is_a_bad_request() -> None:
    assert run(ask(FakeControl(error=IpamError("no")), "POST", "/ip/c1")) == Reply(
        400, "text/plain; charset=utf-8", "no\n"
    )


def test_an_unexpected_error_costs_the_request_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    reply = run(ask(FakeControl(error=ValueError("a bug")), "POST", "/ip/c1"))

    assert reply.status == 500
    assert "a bug" not in reply.body
    assert "request failed: POST /ip/c1" in caplog.text


def test_a_body_beyond_the_limit_is_refused() -> None:
    reply = run(ask(FakeControl(), "POST", "/connect", form=["peer=" + "x" * (300 << 10)]))

    assert reply.status == 413


def test_a_caller_that_goes_away_gives_up_its_request() -> None:
    control = FakeControl(blocked=True)

    async def scenario() -> None:
        listener = HttpListener(make_control_application(control, LOG))
        port = await listener.listen_tcp("127.0.0.1:0")
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /ip/c1 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        async with asyncio.timeout(10):
            await control.waiting.wait()
            writer.close()
            await writer.wait_closed()
            await control.cancelled.wait()
        await listener.close()

    asyncio.run(scenario())


# --- listeners and the client -----------------------------------------------------------------------------------------


def test_the_control_socket_is_roots_alone_and_replaces_what_a_former_agent_left(tmp_path: Path) -> None:
    path = tmp_path / "weave.sock"
    left_behind = socket.socket(socket.AF_UNIX)
    left_behind.bind(str(path))
    left_behind.close()
    old_mask = os.umask(0)

    async def scenario() -> str:
        listener = HttpListener(make_control_application(FakeControl(), LOG))
        await listener.listen_unix(path)
        assert path.stat().st_mode & 0o777 == 0o600
        text = await asyncio.to_thread(Client(str(path)).get, "/status/targets")
        await listener.close()
        return text

    try:
        assert asyncio.run(scenario()) == "192.168.77.2\n192.168.77.3\n"
    finally:
        os.umask(old_mask)
    assert not path.exists()


def test_a_listener_that_closes_leaves_its_successors_socket_alone(tmp_path: Path) -> None:
    path = tmp_path / "weave.sock"

    async def scenario() -> None:
        old, new = (HttpListener(make_control_application(FakeControl(), LOG)) for _ in range(2))
        await old.listen(str(path))
        await new.listen(str(path))
        await old.close()
        assert path.exists()
        await new.close()

    asyncio.run(scenario())


def test_the_client_tells_a_refusal_from_success(tmp_path: Path) -> None:
    path = tmp_path / "weave.sock"

    async def scenario() -> None:
        listener = HttpListener(make_control_application(FakeControl(problems=("bad a", "bad b")), LOG))
        await listener.listen_unix(path)
        client = Client(str(path))
        with pytest.raises(ApiStatusError, match=r"^bad a\nbad b$") as refused:
            await asyncio.to_thread(client.call, "POST", "/connect", form=[("peer", "a"), ("peer", "b")])
        assert refused.value.status == 400
        await listener.close()

    asyncio.run(scenario())


def test_the_client_says_where_nobody_answers_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "weave.sock"

    with pytest.raises(AgentAwayError, match=r"no socket at .*start it with `weaver`") as never:
        Client(str(path)).get("/status")
    left_behind = socket.socket(socket.AF_UNIX)
    left_behind.bind(str(path))
    left_behind.close()
    with pytest.raises(AgentAwayError, match="nobody answers at") as ended:
        Client(str(path)).get("/status")

    assert not never.value.was_there
    assert ended.value.was_there
