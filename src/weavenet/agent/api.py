"""The control API: HTTP requests to calls of `Control`, and its answers back to what Weave's router would have said.

    control   everything                                   Unix socket; with --http-addr over TCP, too
    status    /status..., /report, /metrics: reading only  --status-addr

Bodies are Weave's to the byte where scripts compare them: no newline after an address, one after an error, nothing at
all with 204. Nothing is decided here. Weave shows parts that are off as 404, which its script relies on, and so do we.
Not there yet: names (DNS) and /expose. Sources: docs/protocol.md, "HTTP interfaces" and "IPAM HTTP API".
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol, assert_never

import msgspec
from aiohttp import web

from weavenet.address import Address, Cidr, parse_address, parse_subnet
from weavenet.agent.metrics import CONTENT_TYPE as METRICS_CONTENT_TYPE
from weavenet.agent.metrics import metrics_text
from weavenet.api.schema import JSON, PLAIN_TEXT, encode_attachments, encode_owned, encode_report
from weavenet.api.template import Template, TemplateError, TemplateExecutionError
from weavenet.api.text import STATUS_TEXTS, attachments, ps_text
from weavenet.effects import Cancelled, Done, Granted, Outcome, Refused, TookOver
from weavenet.errors import AddressError, IpamError
from weavenet.node.report import Report

BODY_MAX_BYTES = 256 << 10

_OK, _NO_CONTENT, _BAD_REQUEST, _NOT_FOUND, _NOT_ALLOWED, _FAILED, _NOT_READY = 200, 204, 400, 404, 405, 500, 503
# Keys that are missing from a report while their part is off; a template sees them as nil.
_PARTS = ("IPAM", "DNS", "Proxy", "Plugin", "Weavenet")

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Control(Protocol):
    """What the agent can be asked to do. A call that is cancelled gives up what it waits for."""

    async def report(self) -> Report:
        """Say how everything is."""
        ...

    async def connect(self, peers: Sequence[str], *, replace: bool) -> Sequence[str]:
        """Look for these peers from now on; return what is wrong with those that cannot be looked for."""
        ...

    async def forget(self, peers: Sequence[str]) -> None:
        """Stop looking for these peers, spelled as when they were asked for."""
        ...

    def default_subnet(self) -> Cidr | None:
        """Return where addresses come from if nobody says otherwise; None while address allocation is off."""
        ...

    async def allocate(self, ident: str, subnet: Cidr | None, *, check_alive: bool) -> Outcome:
        """Give an identifier an address."""
        ...

    async def claim(self, ident: str, address: Cidr, *, check_alive: bool, no_error_on_unknown: bool) -> Outcome:
        """Give an identifier this very address."""
        ...

    async def lookup(self, ident: str, subnet: Cidr | None) -> Sequence[Cidr]:
        """Return the addresses of an identifier in a subnet."""
        ...

    async def owned(self) -> Mapping[str, Sequence[Cidr]]:
        """Return all addresses that identifiers hold here."""
        ...

    async def release(self, ident: str) -> Outcome:
        """Free all addresses of an identifier."""
        ...

    async def release_address(self, ident: str, address: Address) -> Outcome:
        """Free one address of an identifier."""
        ...

    async def await_consensus(self) -> Outcome:
        """Wait until the peers have agreed on the first ring."""
        ...

    async def take_over(self, ident: str) -> Outcome:
        """Make a dead peer's addresses ours; it is named by peer name or nickname."""
        ...

    async def shut_down(self) -> Outcome:
        """Hand our addresses to another peer: this node will not come back."""
        ...


def make_control_application(
    control: Control, log: logging.Logger, more: Sequence[web.RouteDef] = ()
) -> web.Application:
    """Return the application that can do everything, and `more`."""
    handlers = _ControlHandlers(control)
    return _application(log, [*_StatusHandlers(control).routes(), *handlers.routes(), *more])


def make_status_application(control: Control, log: logging.Logger) -> web.Application:
    """Return the application that only shows."""
    return _application(log, _StatusHandlers(control).routes())


def _application(log: logging.Logger, routes: Sequence[web.RouteDef]) -> web.Application:
    @web.middleware
    async def guard(request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPNotFound:
            return _text("404 page not found\n", _NOT_FOUND)
        except web.HTTPMethodNotAllowed:
            return _empty(_NOT_ALLOWED)
        except web.HTTPException as error:
            return _text(f"{error.reason}\n", error.status)
        except (AddressError, IpamError) as error:
            return _text(f"{error}\n", _BAD_REQUEST)
        except Exception:  # the one place around a request: it must not take the agent down
            log.exception("request failed: %s %s", request.method, request.path)
            return _text("internal error; the agent's log says more\n", _FAILED)

    application = web.Application(middlewares=[guard], client_max_size=BODY_MAX_BYTES)
    application.add_routes(routes)
    return application


class _StatusHandlers:
    """What anybody on this host may see."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/status", self.status, allow_head=False),
            web.get("/status/{part}", self.status, allow_head=False),
            web.get("/report", self.report, allow_head=False),
            web.get("/metrics", self.metrics, allow_head=False),
        ]

    async def status(self, request: web.Request) -> web.Response:
        part = request.match_info.get("part", "")
        if part not in STATUS_TEXTS or (part == "ipam" and self._control.default_subnet() is None):
            raise web.HTTPNotFound
        report = await self._control.report()
        return _text(STATUS_TEXTS[part](report), _OK if report.ready else _NOT_READY)

    async def report(self, request: web.Request) -> web.Response:
        if request.headers.get("Accept") == JSON:
            return web.Response(body=encode_report(await self._control.report()), content_type=JSON)
        formats = request.query.getall("format", [])
        if len(formats) != 1:
            return _text("error: must supply one format parameter\n", _BAD_REQUEST)
        try:
            template = Template(formats[0])
        except TemplateError as error:
            line = "" if "\n" in formats[0] else "1:"
            return _text(f"template: format:{line} {error}\n", _BAD_REQUEST)
        data = dict.fromkeys(_PARTS) | msgspec.to_builtins(await self._control.report())
        try:
            return _text(template.execute(data))
        except TemplateExecutionError as error:
            return _text(f"error during template execution: {error}\n", _FAILED)

    async def metrics(self, _: web.Request) -> web.Response:
        body = metrics_text(await self._control.report())
        return web.Response(body=body, headers={"Content-Type": METRICS_CONTENT_TYPE})


class _ControlHandlers:
    """What only root may do."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/connect", self.connect),
            web.post("/forget", self.forget),
            web.get("/ps", self.ps, allow_head=False),
            web.get("/ip", self.owned, allow_head=False),
            web.post("/ip/{ident}", self.allocate),
            web.post("/ip/{ident}/{ip}/{length}", self.allocate),
            web.get("/ip/{ident}", self.lookup, allow_head=False),
            web.get("/ip/{ident}/{ip}/{length}", self.lookup, allow_head=False),
            web.put("/ip/{ident}/{ip}/{length}", self.claim),
            web.delete("/ip/{ident}", self.release),
            web.delete("/ip/{ident}/{ip}", self.release_address),
            web.get("/ring", self.ring, allow_head=False),
            web.get("/ipinfo/defaultsubnet", self.default_subnet, allow_head=False),
            web.get("/ipinfo/tracker", self.tracker, allow_head=False),
            web.delete("/peer", self.shut_down),
            web.delete("/peer/{ident}", self.take_over),
        ]

    # --- peers --------------------------------------------------------------------------------------------------------

    async def connect(self, request: web.Request) -> web.Response:
        form = await _parameters(request)
        problems = await self._control.connect(form.get("peer", []), replace=_flag(form, "replace"))
        return _text("\n".join(problems) + "\n", _BAD_REQUEST) if problems else _empty(_OK)

    async def forget(self, request: web.Request) -> web.Response:
        form = await _parameters(request)
        await self._control.forget(form.get("peer", []))
        return _empty(_OK)

    async def ps(self, request: web.Request) -> web.Response:
        report = await self._control.report()
        wanted = request.query.getall("container", [])
        if request.headers.get("Accept") == JSON:
            return web.Response(body=encode_attachments(attachments(report, wanted)), content_type=JSON)
        return _text(ps_text(report, wanted))

    # --- addresses ----------------------------------------------------------------------------------------------------

    async def owned(self, _: web.Request) -> web.Response:
        self._subnet_or_404()
        return web.Response(body=encode_owned(await self._control.owned()), content_type=JSON)

    async def allocate(self, request: web.Request) -> web.Response:
        self._subnet_or_404()
        subnet = _subnet(request)
        form = await _parameters(request)
        ident = request.match_info["ident"]
        return _answer(await self._control.allocate(ident, subnet, check_alive=_flag(form, "check-alive")))

    async def lookup(self, request: web.Request) -> web.Response:
        self._subnet_or_404()
        found = await self._control.lookup(request.match_info["ident"], _subnet(request))
        return _text(" ".join(str(cidr) for cidr in found))

    async def claim(self, request: web.Request) -> web.Response:
        self._subnet_or_404()
        text = _cidr_text(request)
        try:
            address = Cidr.parse(text)
        except AddressError:
            return _text(f"invalid CIDR address: {text}\n", _BAD_REQUEST)
        form = await _parameters(request)
        outcome = await self._control.claim(
            request.match_info["ident"],
            address,
            check_alive=_flag(form, "check-alive"),
            no_error_on_unknown=_flag(form, "noErrorOnUnknown"),
        )
        # The address is the caller's own and needs no repeating.
        return _answer(Done() if isinstance(outcome, Granted) else outcome, refused="Unable to claim: ")

    async def release(self, request: web.Request) -> web.Response:
        self._subnet_or_404()
        return _answer(await self._control.release(request.match_info["ident"]))

    async def release_address(self, request: web.Request) -> web.Response:
        self._subnet_or_404()
        text = request.match_info["ip"]
        try:
            address = parse_address(text)
        except AddressError:
            return _text(f"invalid IP Address: {text}\n", _BAD_REQUEST)
        outcome = await self._control.release_address(request.match_info["ident"], address)
        return _answer(outcome, refused="Unable to free: ")

    async def ring(self, _: web.Request) -> web.Response:
        self._subnet_or_404()
        outcome = await self._control.await_consensus()
        return _empty(_OK) if isinstance(outcome, Done) else _answer(outcome)

    async def default_subnet(self, _: web.Request) -> web.Response:
        return _text(str(self._subnet_or_404()))

    async def tracker(self, _: web.Request) -> web.Response:
        self._subnet_or_404()
        return _text("\n")

    async def shut_down(self, _: web.Request) -> web.Response:
        return _answer(await self._control.shut_down())

    async def take_over(self, request: web.Request) -> web.Response:
        ident = request.match_info["ident"]
        if self._control.default_subnet() is None:
            return _empty(_OK)
        return _answer(await self._control.take_over(ident), ident)

    def _subnet_or_404(self) -> Cidr:
        subnet = self._control.default_subnet()
        if subnet is None:
            raise web.HTTPNotFound
        return subnet


# --- requests ---------------------------------------------------------------------------------------------------------


async def _parameters(request: web.Request) -> Mapping[str, list[str]]:
    """Return the parameters of query and form body together, as Go's Request.Form has them: the body's first."""
    found: dict[str, list[str]] = {}
    form = await request.post()
    for key, value in [*form.items(), *request.query.items()]:
        if isinstance(value, str):
            found.setdefault(key, []).append(value)
    return found


def _flag(form: Mapping[str, Sequence[str]], name: str) -> bool:
    return list(form.get(name, ()))[:1] == ["true"]


def _cidr_text(request: web.Request) -> str:
    return f"{request.match_info['ip']}/{request.match_info['length']}"


def _subnet(request: web.Request) -> Cidr | None:
    return parse_subnet(_cidr_text(request)) if "ip" in request.match_info else None


# --- answers ----------------------------------------------------------------------------------------------------------


def _answer(outcome: Outcome, ident: str = "", *, refused: str = "") -> web.Response:
    match outcome:
        case Granted(addresses):
            return _text(" ".join(str(cidr) for cidr in addresses))
        case Done():
            return _empty(_NO_CONTENT)
        case TookOver(count):
            return _text(f"{count} IPs taken over from {ident}\n")
        case Cancelled():
            return _text("cancelled")
        case Refused(reason):
            return _text(f"{refused}{reason}\n", _BAD_REQUEST)
        case _:
            assert_never(outcome)


def _text(body: str, status: int = _OK) -> web.Response:
    if not body:
        return _empty(status)
    return web.Response(body=body.encode(), status=status, headers={"Content-Type": PLAIN_TEXT})


def _empty(status: int) -> web.Response:
    response = web.Response(status=status)
    response.headers.pop("Content-Type", None)
    return response
