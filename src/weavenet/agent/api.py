"""The control API: HTTP requests to calls of `Control`, and its answers back to what Weave's router would have said.

    control   everything                                   Unix socket; with --http-addr over TCP, too
    status    /status..., /report, /metrics: reading only  --status-addr
    metrics   /metrics                                     --metrics-addr

Bodies are Weave's to the byte where scripts compare them: no newline after an address, one after an error, nothing at
all with 204. Nothing is decided here. Weave shows parts that are off as 404, which its script relies on, and so do we.
Not there yet: names (DNS). Passwords, exposing and the agent's end have modules of their own (keys_api.py,
expose_api.py, leave_api.py). Sources: docs/protocol.md, "HTTP interfaces" and "IPAM HTTP API".
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Protocol, assert_never

import msgspec

from weavenet.address import Address, Cidr, parse_address, parse_subnet
from weavenet.agent.dispatch import (
    BAD_REQUEST,
    FAILED,
    NO_CONTENT,
    NOT_READY,
    OK,
    Call,
    NotThereError,
    Route,
    make_application,
    text,
)
from weavenet.api.schema import JSON, encode_attachments, encode_owned, encode_report
from weavenet.api.template import Template, TemplateError, TemplateExecutionError
from weavenet.api.text import STATUS_TEXTS, attachments, ps_text
from weavenet.drivers.http import Application, Response
from weavenet.effects import Cancelled, Done, Granted, Outcome, Refused, TookOver
from weavenet.errors import AddressError
from weavenet.node.report import Report

# Keys that are missing from a report while their part is off; a template sees them as nil.
_PARTS = ("IPAM", "DNS", "Proxy", "Plugin", "Weavenet")


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


def make_control_application(control: Control, log: logging.Logger, more: Sequence[Route] = ()) -> Application:
    """Return the application that can do everything, and `more`."""
    return make_application(log, [*_StatusHandlers(control).routes(), *_ControlHandlers(control).routes(), *more])


def make_status_application(control: Control, log: logging.Logger) -> Application:
    """Return the application that only shows."""
    return make_application(log, _StatusHandlers(control).routes())


def make_metrics_application(control: Control, log: logging.Logger) -> Application:
    """Return the application that only counts."""
    return make_application(log, [Route("GET", "/metrics", _StatusHandlers(control).metrics)])


class _StatusHandlers:
    """What anybody on this host may see."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/status", self.status),
            Route("GET", "/status/{part}", self.status),
            Route("GET", "/report", self.report),
            Route("GET", "/metrics", self.metrics),
        ]

    async def status(self, call: Call) -> Response:
        part = call.parts.get("part", "")
        if part not in STATUS_TEXTS or (part == "ipam" and self._control.default_subnet() is None):
            raise NotThereError
        report = await self._control.report()
        return text(STATUS_TEXTS[part](report), OK if report.ready else NOT_READY)

    async def report(self, call: Call) -> Response:
        if call.accept == JSON:
            return Response(OK, encode_report(await self._control.report()), JSON)
        formats = call.query.get("format", [])
        if len(formats) != 1:
            return text("error: must supply one format parameter\n", BAD_REQUEST)
        try:
            template = Template(formats[0])
        except TemplateError as error:
            line = "" if "\n" in formats[0] else "1:"
            return text(f"template: format:{line} {error}\n", BAD_REQUEST)
        data = dict.fromkeys(_PARTS) | msgspec.to_builtins(await self._control.report())
        try:
            return text(template.execute(data))
        except TemplateExecutionError as error:
            return text(f"error during template execution: {error}\n", FAILED)

    async def metrics(self, _: Call) -> Response:
        # Imported here: only a scraper wants it, and an agent starts faster and smaller without.
        from weavenet.agent.metrics import CONTENT_TYPE, metrics_text  # noqa: PLC0415

        return Response(OK, metrics_text(await self._control.report()), CONTENT_TYPE)


class _ControlHandlers:
    """What only root may do."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def routes(self) -> list[Route]:
        return [
            Route("POST", "/connect", self.connect),
            Route("POST", "/forget", self.forget),
            Route("GET", "/ps", self.ps),
            Route("GET", "/ip", self.owned),
            Route("POST", "/ip/{ident}", self.allocate),
            Route("POST", "/ip/{ident}/{ip}/{length}", self.allocate),
            Route("GET", "/ip/{ident}", self.lookup),
            Route("GET", "/ip/{ident}/{ip}/{length}", self.lookup),
            Route("PUT", "/ip/{ident}/{ip}/{length}", self.claim),
            Route("DELETE", "/ip/{ident}", self.release),
            Route("DELETE", "/ip/{ident}/{ip}", self.release_address),
            Route("GET", "/ring", self.ring),
            Route("GET", "/ipinfo/defaultsubnet", self.default_subnet),
            Route("GET", "/ipinfo/tracker", self.tracker),
            Route("DELETE", "/peer", self.shut_down),
            Route("DELETE", "/peer/{ident}", self.take_over),
        ]

    # --- peers --------------------------------------------------------------------------------------------------------

    async def connect(self, call: Call) -> Response:
        problems = await self._control.connect(call.form.get("peer", []), replace=_flag(call, "replace"))
        return text("\n".join(problems) + "\n", BAD_REQUEST) if problems else Response(OK)

    async def forget(self, call: Call) -> Response:
        await self._control.forget(call.form.get("peer", []))
        return Response(OK)

    async def ps(self, call: Call) -> Response:
        report = await self._control.report()
        wanted = call.query.get("container", [])
        if call.accept == JSON:
            return Response(OK, encode_attachments(attachments(report, wanted)), JSON)
        return text(ps_text(report, wanted))

    # --- addresses ----------------------------------------------------------------------------------------------------

    async def owned(self, _: Call) -> Response:
        self._subnet_or_404()
        return Response(OK, encode_owned(await self._control.owned()), JSON)

    async def allocate(self, call: Call) -> Response:
        self._subnet_or_404()
        subnet = _subnet(call)
        ident = call.parts["ident"]
        return _answer(await self._control.allocate(ident, subnet, check_alive=_flag(call, "check-alive")))

    async def lookup(self, call: Call) -> Response:
        self._subnet_or_404()
        found = await self._control.lookup(call.parts["ident"], _subnet(call))
        return text(" ".join(str(cidr) for cidr in found))

    async def claim(self, call: Call) -> Response:
        self._subnet_or_404()
        given = _cidr_text(call)
        try:
            address = Cidr.parse(given)
        except AddressError:
            return text(f"invalid CIDR address: {given}\n", BAD_REQUEST)
        outcome = await self._control.claim(
            call.parts["ident"],
            address,
            check_alive=_flag(call, "check-alive"),
            no_error_on_unknown=_flag(call, "noErrorOnUnknown"),
        )
        # The address is the caller's own and needs no repeating.
        return _answer(Done() if isinstance(outcome, Granted) else outcome, refused="Unable to claim: ")

    async def release(self, call: Call) -> Response:
        self._subnet_or_404()
        return _answer(await self._control.release(call.parts["ident"]))

    async def release_address(self, call: Call) -> Response:
        self._subnet_or_404()
        given = call.parts["ip"]
        try:
            address = parse_address(given)
        except AddressError:
            return text(f"invalid IP Address: {given}\n", BAD_REQUEST)
        outcome = await self._control.release_address(call.parts["ident"], address)
        return _answer(outcome, refused="Unable to free: ")

    async def ring(self, _: Call) -> Response:
        self._subnet_or_404()
        outcome = await self._control.await_consensus()
        return Response(OK) if isinstance(outcome, Done) else _answer(outcome)

    async def default_subnet(self, _: Call) -> Response:
        return text(str(self._subnet_or_404()))

    async def tracker(self, _: Call) -> Response:
        self._subnet_or_404()
        return text("\n")

    async def shut_down(self, _: Call) -> Response:
        return _answer(await self._control.shut_down())

    async def take_over(self, call: Call) -> Response:
        ident = call.parts["ident"]
        if self._control.default_subnet() is None:
            return Response(OK)
        return _answer(await self._control.take_over(ident), ident)

    def _subnet_or_404(self) -> Cidr:
        subnet = self._control.default_subnet()
        if subnet is None:
            raise NotThereError
        return subnet


# --- requests ---------------------------------------------------------------------------------------------------------


def _flag(call: Call, name: str) -> bool:
    return list(call.form.get(name, ()))[:1] == ["true"]


def _cidr_text(call: Call) -> str:
    return f"{call.parts['ip']}/{call.parts['length']}"


def _subnet(call: Call) -> Cidr | None:
    return parse_subnet(_cidr_text(call)) if "ip" in call.parts else None


# --- answers ----------------------------------------------------------------------------------------------------------


def _answer(outcome: Outcome, ident: str = "", *, refused: str = "") -> Response:
    match outcome:
        case Granted(addresses):
            return text(" ".join(str(cidr) for cidr in addresses))
        case Done():
            return Response(NO_CONTENT)
        case TookOver(count):
            return text(f"{count} IPs taken over from {ident}\n")
        case Cancelled():
            return text("cancelled")
        case Refused(reason):
            return text(f"{refused}{reason}\n", BAD_REQUEST)
        case _:
            assert_never(outcome)
