"""The control API's part about passwords: `weave key`. Served at the Unix socket alone, as passwords come this way.

    GET     /key          what there is: names, which one is in use, since when, on how many connections
    POST    /key/NAME     accept the password in the form's field `password`
    PUT     /key/NAME     have it in use
    DELETE  /key/NAME     accept it no more

No answer holds a password, or anything made from one. Weave has nothing of the kind.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from weavenet.agent.dispatch import Call, Route
from weavenet.agent.loop import NodeLoop
from weavenet.api.schema import JSON, PLAIN_TEXT
from weavenet.drivers.http import Response
from weavenet.effects import Cancelled, Done, Outcome, Refused
from weavenet.mesh.keyring import KeyStatus, Password
from weavenet.node import inputs as i
from weavenet.node.text import wall_clock

ANSWER_S = 30.0
_OK, _NO_CONTENT, _BAD_REQUEST, _TIMEOUT = 200, 204, 400, 503


class Keys(Protocol):
    """What the agent can be asked about passwords."""

    def status(self) -> Sequence[KeyStatus]:
        """Return what there is; nothing where the mesh is not encrypted."""
        ...

    async def add(self, name: str, password: Password) -> Outcome:
        """Accept another password."""
        ...

    async def use(self, name: str) -> Outcome:
        """Have one in use."""
        ...

    async def retire(self, name: str) -> Outcome:
        """Accept one no more."""
        ...


class AgentKeys:
    """The `Keys` of a running agent."""

    def __init__(self, loop: NodeLoop) -> None:
        """Ask this loop."""
        self._loop = loop

    def status(self) -> Sequence[KeyStatus]:
        """Return what there is."""
        return self._loop.node.mesh.key_status()

    async def add(self, name: str, password: Password) -> Outcome:
        """Accept another password; it is on disk when this returns."""
        return await self._loop.request(lambda number: i.AddKey(number, name, password), ANSWER_S)

    async def use(self, name: str) -> Outcome:
        """Have one in use."""
        return await self._loop.request(lambda number: i.UseKey(number, name), ANSWER_S)

    async def retire(self, name: str) -> Outcome:
        """Accept one no more."""
        return await self._loop.request(lambda number: i.RetireKey(number, name), ANSWER_S)


class _Row(msgspec.Struct, frozen=True):
    name: str
    state: str
    added: str
    connections: int


class Answer(msgspec.Struct, frozen=True):
    """A status and a body, whichever HTTP library sends them."""

    status: int
    body: str = ""
    content_type: str = PLAIN_TEXT


class KeyHandlers:
    """Requests about passwords, as parts of a URL and forms, to answers."""

    def __init__(self, keys: Keys) -> None:
        """Ask `keys`."""
        self._keys = keys

    def show(self, *, as_json: bool) -> Answer:
        """List them."""
        rows = [
            _Row(key.name, "in use" if key.in_use else "accepted", wall_clock(key.added_wall_s), key.connections)
            for key in self._keys.status()
        ]
        if as_json:
            return Answer(_OK, msgspec.json.format(msgspec.json.encode(rows), indent=4).decode() + "\n", JSON)
        lines = [f"{row.name:<32} {row.state:<8} {row.added}  {row.connections} connections\n" for row in rows]
        return Answer(_OK, "".join(lines) or "no passwords: this mesh is not encrypted\n")

    async def add(self, name: str, form: Mapping[str, Sequence[str]]) -> Answer:
        """Take one from a form."""
        given = list(form.get("password", ()))
        if len(given) != 1:
            return Answer(_BAD_REQUEST, "expected one password in the form\n")
        return _answer(await self._keys.add(name, Password(given[0].encode())))

    async def use(self, name: str) -> Answer:
        """Have one in use."""
        return _answer(await self._keys.use(name))

    async def retire(self, name: str) -> Answer:
        """Retire one."""
        return _answer(await self._keys.retire(name))


def _answer(outcome: Outcome) -> Answer:
    match outcome:
        case Done():
            return Answer(_NO_CONTENT)
        case Refused(reason):
            return Answer(_BAD_REQUEST, f"{reason}\n")
        case Cancelled():
            return Answer(_TIMEOUT, f"the disk did not take it within {ANSWER_S:.0f} s; see `weave key list`\n")
        case _:
            raise AssertionError(f"not an outcome of a request about keys: {outcome}")


# --- paths ------------------------------------------------------------------------------------------------------------


def key_routes(handlers: KeyHandlers) -> list[Route]:
    """Return the routes for `make_control_application`."""

    async def show(call: Call) -> Response:
        return _response(handlers.show(as_json=call.accept == JSON))

    async def add(call: Call) -> Response:
        return _response(await handlers.add(call.parts["name"], call.form))

    async def use(call: Call) -> Response:
        return _response(await handlers.use(call.parts["name"]))

    async def retire(call: Call) -> Response:
        return _response(await handlers.retire(call.parts["name"]))

    return [
        Route("GET", "/key", show),
        Route("POST", "/key/{name}", add),
        Route("PUT", "/key/{name}", use),
        Route("DELETE", "/key/{name}", retire),
    ]


def _response(answer: Answer) -> Response:
    return Response(answer.status, answer.body.encode(), answer.content_type)
