"""From HTTP requests to handlers, by method and path, and from whatever goes wrong there to an answer.

A pattern is a path of which segments in braces stand for anything, as in `/ip/{ident}`. A path that no pattern fits is
404, one that only fits with another method is 405 without a word, as in Weave.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from urllib.parse import parse_qs, unquote

import msgspec

from weavenet.api.schema import PLAIN_TEXT
from weavenet.drivers.http import Application, Request, Response
from weavenet.errors import AddressError, IpamError

OK, NO_CONTENT, BAD_REQUEST, NOT_FOUND, NOT_ALLOWED, FAILED, NOT_READY = 200, 204, 400, 404, 405, 500, 503
PARAMETERS_MAX = 1000

_FORM = "application/x-www-form-urlencoded"


class NotThereError(Exception):
    """What a path stands for is off, which is shown as if there were no such path."""


class Call(msgspec.Struct, frozen=True):
    """A request, taken apart."""

    parts: Mapping[str, str]  # what stood where a pattern has braces
    query: Mapping[str, Sequence[str]]
    form: Mapping[str, Sequence[str]]  # of body and query together, as Go's Request.Form has them: the body's first
    accept: str


Handler = Callable[[Call], Awaitable[Response]]


class Route(msgspec.Struct, frozen=True):
    """Who answers what."""

    method: str
    pattern: str
    handler: Handler

    def fit(self, segments: Sequence[str]) -> dict[str, str] | None:
        """Return what stands in the places of the braces; None if the path is another one."""
        wanted = self.pattern.split("/")
        if len(wanted) != len(segments):
            return None
        parts: dict[str, str] = {}
        for want, segment in zip(wanted, segments, strict=True):
            if want.startswith("{"):
                if not segment:
                    return None
                parts[want[1:-1]] = segment
            elif want != segment:
                return None
        return parts


def make_application(log: logging.Logger, routes: Sequence[Route]) -> Application:
    """Return what answers requests along these routes."""

    async def answer(request: Request) -> Response:
        path, _, query = request.target.partition("?")
        segments = [unquote(segment) for segment in path.split("/")]
        fitting = [(route, parts) for route in routes if (parts := route.fit(segments)) is not None]
        try:
            for route, parts in fitting:
                if route.method == request.method:
                    return await route.handler(_call(request, parts, query))
        except NotThereError:
            fitting = []
        except (AddressError, IpamError) as error:
            return text(f"{error}\n", BAD_REQUEST)
        except Exception:  # the one place around a request: it must not take the agent down
            log.exception("request failed: %s %s", request.method, path)
            return text("internal error; the agent's log says more\n", FAILED)
        return Response(NOT_ALLOWED) if fitting else text("404 page not found\n", NOT_FOUND)

    return answer


def _call(request: Request, parts: Mapping[str, str], query_text: str) -> Call:
    query = _parse(query_text)
    form = {key: list(values) for key, values in query.items()}
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == _FORM:
        for key, values in _parse(request.body.decode(errors="replace")).items():
            form[key] = [*values, *form.get(key, ())]
    return Call(parts, query, form, request.headers.get("accept", ""))


def _parse(encoded: str) -> dict[str, list[str]]:
    try:
        return parse_qs(encoded, keep_blank_values=True, max_num_fields=PARAMETERS_MAX)
    except ValueError as error:
        raise IpamError(f"too many parameters: at most {PARAMETERS_MAX}") from error


def text(body: str, status: int = OK) -> Response:
    """Return a text, or nothing at all if it is empty."""
    return Response(status, body.encode(), PLAIN_TEXT) if body else Response(status)
