"""The Kubernetes API as this agent uses it: single requests, and following a collection by list and watch.

    async for told in client.follow(resource):      Listed, Changed, Gone (kube/follow.py says which, when)

`follow` never ends by itself and never raises for what the API does: it says what is wrong once in the log, keeps it in
`health`, and asks again. Whoever follows keeps what was told last, and that is how the agent goes on without an API.

What comes in has limits: a page, a line of a watch, an answer. What is more is refused like any other nonsense.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Generic, TypeVar, assert_never
from urllib.parse import urlencode

import msgspec

from weavenet.effects import Entropy, Now
from weavenet.errors import KubeAnswerError, KubeError, KubeStatusError, KubeUnreachableError
from weavenet.kube import follow as f
from weavenet.kube.access import ApiAccess
from weavenet.kube.http import Request, Response, exchange
from weavenet.kube.lines import Lines
from weavenet.resources import KubeObject

REQUEST_TIMEOUT_S = 30.0
ANSWER_BYTES_MAX = 8 << 20
PAGE_BYTES_MAX = 128 << 20  # 500 objects; etcd's limit for one is 1.5 MB
LINE_BYTES_MAX = 8 << 20
# The server ends a watch after the time it was given; a watch that is silent for longer than that has no server.
WATCH_SLACK_S = 30.0
FAILING_MAX = 1000
CONFLICT = 409

T = TypeVar("T", bound=KubeObject)


class _ListMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    token: str = msgspec.field(default="", name="continue")


class _Page(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _VersionOnly(msgspec.Struct, rename="camel"):
    resource_version: str


class _Bookmark(msgspec.Struct):
    metadata: _VersionOnly


class _StatusDetails(msgspec.Struct, rename="camel"):
    retry_after_seconds: int = 0


class _Status(msgspec.Struct):
    code: int = 0
    reason: str = ""
    message: str = ""
    details: _StatusDetails | None = None


_PAGE = msgspec.json.Decoder(_Page)
_EVENT = msgspec.json.Decoder(_Event)
_BOOKMARK = msgspec.json.Decoder(_Bookmark)
_STATUS = msgspec.json.Decoder(_Status)


class Health(msgspec.Struct):
    """How asking goes: whether the server answers at all, since when that is so, and what does not work."""

    is_reachable: bool | None = None  # None: nothing was asked yet
    since_wall_s: float = 0.0
    last_error: str = ""
    failing: dict[str, str] = msgspec.field(default_factory=dict)  # by what was asked; blank: the server itself

    def succeeded(self, what: str, now: Now) -> list[str]:
        """Note a good answer. Return what works again with it."""
        self._reached(now, is_reachable=True)
        return [what for what in ("", what) if self.failing.pop(what, None) is not None]

    def failed(self, what: str, error: KubeError, now: Now) -> bool:
        """Note a failure. Return whether that is news: each error is told once, however often it is met."""
        is_away = isinstance(error, KubeUnreachableError)
        self._reached(now, is_reachable=not is_away)
        what, text = "" if is_away else what, str(error)
        is_news = self.failing.get(what) != text
        if len(self.failing) >= FAILING_MAX:
            self.failing.clear()
        self.failing[what] = self.last_error = text
        return is_news

    def _reached(self, now: Now, *, is_reachable: bool) -> None:
        if is_reachable is not self.is_reachable:
            self.is_reachable, self.since_wall_s = is_reachable, now.wall_s


class KubeClient:
    """One way to one API server."""

    def __init__(self, access: ApiAccess, entropy: Entropy, read_clock: Callable[[], Now], log: logging.Logger) -> None:
        """Ask nothing yet."""
        self.access = access
        self.health = Health()
        self._entropy = entropy
        self._read_clock = read_clock
        self._log = log

    async def send(self, request: Request, *, timeout_s: float = REQUEST_TIMEOUT_S) -> bytes:
        """Ask once, and return the body of the answer. Raises KubeError."""
        what = f"{request.method} {request.target}"
        try:
            async with asyncio.timeout(timeout_s), exchange(self.access, request) as response:
                body = await _read_all(response, what, ANSWER_BYTES_MAX)
        except TimeoutError as error:
            late = KubeUnreachableError(f"{what}: no answer within {timeout_s:.0f} s")
            self._note(what, late)
            raise late from error
        except KubeError as error:
            # That something is not there, or was changed meanwhile, is as good an answer as any.
            is_answer = isinstance(error, KubeStatusError) and (error.says_absent or error.code == CONFLICT)
            self._note(what, None if is_answer else error)
            raise
        self._note(what, None)
        return body

    async def follow(self, resource: f.Resource[T]) -> AsyncGenerator[f.Told[T], None]:
        """Tell a collection and what changes in it, for ever. To be closed by who iterates (contextlib.aclosing)."""
        follower: f.Follower[T] = f.Follower(self._entropy)
        asking = _Asking(resource, self.access)
        while True:
            step = follower.next_step()
            try:
                match step:
                    case f.Pause(delay_s):
                        await asyncio.sleep(delay_s)
                    case f.ListPage(token, limit):
                        objects, version, token = await asking.page(token, limit)
                        self._note(resource.path, None)
                        for told in follower.page_came(objects, version, token):
                            yield told
                    case f.CheckHistory():
                        follower.history_came((await asking.page("", 1))[1])
                        self._note(resource.path, None)
                    case f.Watch(version, timeout_s):
                        async with aclosing(self._watch(follower, asking, version, timeout_s)) as stream:
                            async for told in stream:
                                yield told
                    case _:
                        assert_never(step)
            except KubeError as error:
                follower.failed(error)
                self._note(resource.path, error)

    async def _watch(
        self, follower: f.Follower[T], asking: "_Asking[T]", version: str, timeout_s: int
    ) -> AsyncGenerator[f.Told[T], None]:
        began_s = time.monotonic()
        async with aclosing(asking.watch(version, timeout_s)) as events:
            async for event in events:
                self._note(asking.path, None)
                match event.type:
                    case "ADDED" | "MODIFIED":
                        many = follower.changed(asking.decode(event.object))
                    case "DELETED":
                        many = follower.deleted(asking.decode(event.object))
                    case "BOOKMARK":
                        follower.bookmark(
                            _decode(_BOOKMARK, event.object, f"a bookmark of {asking.path}").metadata.resource_version
                        )
                        continue
                    case "ERROR":
                        error = _status_error(f"watching {asking.path}", 0, bytes(event.object), None)
                        follower.watch_refused(error)
                        self._note(asking.path, error)
                        return
                    case other:
                        raise KubeAnswerError(f"watching {asking.path}: an event of unknown type {other[:40]!r}")
                for told in many:
                    yield told
        follower.watch_ended(time.monotonic() - began_s)

    def _note(self, what: str, error: KubeError | None) -> None:
        if error is not None:
            if self.health.failed(what, error, self._read_clock()):
                self._log.warning("Kubernetes API: %s", error)
            return
        for well in self.health.succeeded(what, self._read_clock()):
            self._log.info("Kubernetes API: %s answers again", well or self.access.url)


class _Asking(Generic[T]):
    """The requests that follow one collection, and what their answers say."""

    def __init__(self, resource: f.Resource[T], access: ApiAccess) -> None:
        self.path = resource.path
        self._access = access
        self._decoder = msgspec.json.Decoder(resource.kind)
        selectors = {"fieldSelector": resource.field_selector, "labelSelector": resource.label_selector}
        self._selectors = {name: text for name, text in selectors.items() if text}

    def decode(self, raw: msgspec.Raw) -> T:
        """Read one object. Raises KubeAnswerError."""
        return _decode(self._decoder, raw, f"an object of {self.path}")

    async def page(self, token: str, limit: int) -> tuple[list[T], str, str]:
        """Return the objects of one page, the collection's version, and the next page's token. Raises KubeError."""
        query = {**self._selectors, "limit": str(limit)} | ({"continue": token} if token else {})
        what = f"listing {self.path}"
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S), exchange(self._access, self._request(query)) as response:
                body = await _read_all(response, what, PAGE_BYTES_MAX)
        except TimeoutError as error:
            raise KubeUnreachableError(f"{what}: no answer within {REQUEST_TIMEOUT_S:.0f} s") from error
        page = _decode(_PAGE, body, f"the answer to {what}")
        if not page.metadata.resource_version:
            raise KubeAnswerError(f"{what}: the answer has no resourceVersion")
        return [self.decode(raw) for raw in page.items or ()], page.metadata.resource_version, page.metadata.token

    async def watch(self, version: str, timeout_s: int) -> AsyncGenerator[_Event, None]:
        """Yield events until the server ends the watch. Raises KubeError."""
        query = {
            **self._selectors,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(timeout_s),
        }
        what = f"watching {self.path}"
        deadline_s = asyncio.get_running_loop().time() + timeout_s + WATCH_SLACK_S
        lines = Lines(LINE_BYTES_MAX)
        async with exchange(self._access, self._request(query)) as response:
            if response.status != 200:
                raise await _refusal(response, what)
            async with aclosing(response.pieces()) as pieces:
                while (piece := await _next_piece(pieces, deadline_s, what)) is not None:
                    for line in lines.feed(piece):
                        yield _decode(_EVENT, line, f"a line of {what}")
        if lines.has_rest:
            raise KubeUnreachableError(f"{what}: the connection ended within a line")

    def _request(self, query: dict[str, str]) -> Request:
        return Request("GET", f"{self.path}?{urlencode(query)}")


async def _next_piece(pieces: AsyncGenerator[bytes, None], deadline_s: float, what: str) -> bytes | None:
    try:
        async with asyncio.timeout_at(deadline_s):
            return await anext(pieces, None)
    except TimeoutError as error:
        raise KubeUnreachableError(f"{what}: the server neither says anything nor ends the watch") from error


async def _read_all(response: Response, what: str, limit_bytes: int) -> bytes:
    """Return the body of a success. Raises KubeStatusError for anything else, and KubeAnswerError for too much."""
    if not 200 <= response.status < 300:
        raise await _refusal(response, what)
    return await _read_body(response, what, limit_bytes)


async def _refusal(response: Response, what: str) -> KubeStatusError:
    body = await _read_body(response, what, ANSWER_BYTES_MAX)
    return _status_error(what, response.status, body, response.headers.get("retry-after"))


async def _read_body(response: Response, what: str, limit_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async with aclosing(response.pieces()) as pieces:
        async for piece in pieces:
            size += len(piece)
            if size > limit_bytes:
                raise KubeAnswerError(f"{what}: the answer is longer than the {limit_bytes >> 20} MiB we take")
            parts.append(piece)
    return b"".join(parts)


def _status_error(what: str, code: int, body: bytes, retry_after: str | None) -> KubeStatusError:
    try:
        status = _STATUS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):  # a proxy's page, or nothing
        status = _Status()
    retry_after_s: float | None = None
    if retry_after is not None and retry_after.isdecimal():
        retry_after_s = float(retry_after[:9])
    elif status.details is not None and status.details.retry_after_seconds:
        retry_after_s = float(status.details.retry_after_seconds)
    return KubeStatusError(what, code or status.code, status.reason or "no reason given", status.message, retry_after_s)


_Decoded = TypeVar("_Decoded")


def _decode(decoder: msgspec.json.Decoder[_Decoded], raw: bytes | msgspec.Raw, what: str) -> _Decoded:
    try:
        return decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise KubeAnswerError(f"{what} does not decode: {error}") from error
