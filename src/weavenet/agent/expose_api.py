"""The control API's part about exposing: `weave expose` and `weave hide`.

    GET     /expose            what is exposed, separated by blanks; as JSON with how
    POST    /expose/IP/LENGTH  expose this address; `skipNAT=true`: without masquerading
    DELETE  /expose/IP/LENGTH  hide it, and free it

The POST is Weave's, with its answers: 204, and texts for what is wrong. Ours also holds the address in IPAM, which
costs those nothing who have done so themselves (Weave's script and CNI plugin do). What went well and is worth a word
is 200, with it. Weave has no DELETE: its script does that to the kernel itself.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from weavenet.address import Cidr
from weavenet.agent.dispatch import BAD_REQUEST, FAILED, NO_CONTENT, OK, Call, Route, text
from weavenet.agent.expose import Exposed
from weavenet.api.schema import JSON
from weavenet.drivers.http import Response
from weavenet.errors import AddressError, IpamError, KernelError, StoreError

# What Go's strconv.ParseBool takes.
_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_INDENT = 4


class Exposes(Protocol):
    """What the agent can be asked about the bridge's addresses."""

    async def exposed(self) -> Sequence[Exposed]:
        """Return what the bridge has."""
        ...

    async def claim_and_expose(self, address: Cidr, *, masquerade: bool) -> str:
        """Expose an address; return what is to be said about it."""
        ...

    async def hide_and_release(self, address: Cidr) -> str:
        """Hide an address; return what is to be said about it."""
        ...


class _Row(msgspec.Struct, frozen=True):
    address: str
    masquerade: bool


def expose_routes(exposure: Exposes) -> list[Route]:
    """Return the routes for `make_control_application`."""

    async def show(call: Call) -> Response:
        found = await exposure.exposed()
        if call.accept == JSON:
            rows = [_Row(str(each.address), each.masquerade) for each in found]
            return Response(OK, msgspec.json.format(msgspec.json.encode(rows), indent=_INDENT), JSON)
        return text(" ".join(str(each.address) for each in found))

    async def expose(call: Call) -> Response:
        try:
            address = _address(call)
        except AddressError:
            return text(f"unable to parse ip addr: invalid CIDR address: {_given(call)}\n", BAD_REQUEST)
        skip = (list(call.form.get("skipNAT", ())) or [""])[0]
        if skip and skip not in _TRUE | _FALSE:
            why = f'strconv.ParseBool: parsing "{skip}": invalid syntax'
            return text(f"unable to parse skipNAT option: {why}\n", BAD_REQUEST)
        try:
            return _said(await exposure.claim_and_expose(address, masquerade=skip not in _TRUE))
        except AddressError as error:
            return text(f"unable to expose: {error}\n", BAD_REQUEST)
        except (IpamError, KernelError, StoreError) as error:
            return text(f"unable to expose: {error}\n", FAILED)

    async def hide(call: Call) -> Response:
        try:
            address = _address(call)
        except AddressError:
            return text(f"unable to parse ip addr: invalid CIDR address: {_given(call)}\n", BAD_REQUEST)
        try:
            return _said(await exposure.hide_and_release(address))
        except (IpamError, KernelError, StoreError) as error:
            return text(f"unable to hide: {error}\n", FAILED)

    return [
        Route("GET", "/expose", show),
        Route("POST", "/expose/{ip}/{length}", expose),
        Route("DELETE", "/expose/{ip}/{length}", hide),
    ]


def _given(call: Call) -> str:
    return f"{call.parts['ip']}/{call.parts['length']}"


def _address(call: Call) -> Cidr:
    return Cidr.parse(_given(call))


def _said(remark: str) -> Response:
    return text(remark) if remark else Response(NO_CONTENT)
