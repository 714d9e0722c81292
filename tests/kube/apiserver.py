"""A small Kubernetes API server for tests: lists, watches and writes as the real one does, and faults on request.

It holds any collection of any kind; nothing is validated but what matters to a client: versions, conflicts, selectors,
pages, watches from a version, bookmarks, a history that ends (410), authentication and roles. It runs in a test's own
event loop, or as a process of its own in a network namespace, steered through a Unix socket, a line of JSON a command:

    python tests/kube/apiserver.py --listen 10.0.0.1:6443 --control api.sock
    {"do": "put", "path": "/api/v1/nodes", "object": {"metadata": {"name": "a"}}}

Every public method of `ApiServer` that takes plain values is a command. Source: kubernetes.io, "API Concepts".
"""

import argparse
import asyncio
import base64
import contextlib
import copy
import json
import signal
import ssl
import uuid
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import h11

Json = dict[str, object]
HISTORY_MAX = 1000
MERGE_KEYS = {"conditions": "type", "addresses": "type"}  # of strategic merge patch, for node status
PATCH_TYPES = {"application/strategic-merge-patch+json", "application/merge-patch+json"}
REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    410: "Expired",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


class RefusedError(Exception):
    """An answer that is a Status and not a success."""

    def __init__(self, code: int, message: str = "", reason: str = "", retry_after: int | None = None) -> None:
        super().__init__(message)
        self.code, self.retry_after = code, retry_after
        self.status = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "code": code,
            "reason": reason or REASONS.get(code, "Unknown"),
            "message": message,
        }


@dataclass
class Event:
    revision: int
    path: str
    before: Json | None
    after: Json | None


@dataclass
class Fault:
    """What happens to the next requests of a verb: a status, or what a broken server or network does."""

    verb: str  # get list watch create update patch, or * for all
    kind: str  # status, close, hang, garbage, slow, hold
    status: int = 500
    retry_after: int | None = None
    count: int | None = 1  # None: until cleared
    seconds: float = 0.0


@dataclass
class Asked:
    verb: str
    path: str
    name: str
    query: dict[str, str]
    subresource: str = ""
    body: bytes = b""
    content_type: str = ""
    token: str = ""
    namespace: str = ""
    refused: int = 0  # the code it was refused with

    @property
    def resource(self) -> str:
        return self.path.rpartition("/")[2] + (f"/{self.subresource}" if self.subresource else "")

    @property
    def role_name(self) -> str:
        """The name a role is checked against: a list or watch of one name counts as asking for that one."""
        return self.name or self.query.get("fieldSelector", "").removeprefix("metadata.name=")


@dataclass
class _Watcher:
    asked: Asked
    since: int
    queue: "asyncio.Queue[bytes | None]" = field(default_factory=asyncio.Queue)


class ApiServer:
    """The objects, their history, and everything that can go wrong."""

    def __init__(self) -> None:
        self.revision = 100
        self.objects: dict[str, dict[str, Json]] = {}
        self.history: deque[Event] = deque(maxlen=HISTORY_MAX)
        self.compacted = 0  # versions up to this one are forgotten
        self.faults: list[Fault] = []
        self.requests: list[Asked] = []
        self.tokens: set[str] | None = None  # None: anybody may ask
        self.rules: list[Json] | None = None  # None: everything is allowed
        self.port = 0
        self._host = "127.0.0.1"
        self._tls: ssl.SSLContext | None = None
        self._listener: asyncio.Server | None = None
        self._continues: dict[str, tuple[list[Json], int]] = {}
        self._watchers: list[_Watcher] = []
        self._watchers_changed = asyncio.Event()
        self._open: set[asyncio.StreamWriter] = set()
        self._released = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    # --- objects ------------------------------------------------------------------------------------------------------

    def put(self, path: str, object: Json) -> Json:  # noqa: A002  # a command's word
        """Create or replace an object, as somebody else would."""
        name = str(_meta(object)["name"])
        before = self.objects.get(path, {}).get(name)
        after = copy.deepcopy(object)
        if before is not None:
            _meta(after).setdefault("uid", _meta(before)["uid"])
        return self._store(path, before, after)

    def drop(self, path: str, name: str) -> None:
        """Delete an object, as somebody else would."""
        before = self.objects[path].pop(name)
        self.revision += 1
        last = copy.deepcopy(before)
        _meta(last)["resourceVersion"] = str(self.revision)
        self._happened(Event(self.revision, path, last, None))

    def get(self, path: str, name: str) -> Json:
        if name not in self.objects.get(path, {}):
            raise RefusedError(404, f"{path.rpartition('/')[2]} {name!r} not found")
        return self.objects[path][name]

    def _store(self, path: str, before: Json | None, after: Json) -> Json:
        self.revision += 1
        meta = _meta(after)
        meta.setdefault("uid", str(uuid.uuid4()))
        if "/namespaces/" in path:
            meta.setdefault("namespace", path.partition("/namespaces/")[2].partition("/")[0])
        meta["resourceVersion"] = str(self.revision)
        self.objects.setdefault(path, {})[str(meta["name"])] = after
        self._happened(Event(self.revision, path, before, after))
        return after

    def _happened(self, event: Event) -> None:
        if len(self.history) == self.history.maxlen:
            self.compacted = self.history[0].revision
        self.history.append(event)
        for watcher in self._watchers:
            if event.revision > watcher.since:
                for line in _lines_for(watcher.asked, event):
                    watcher.queue.put_nowait(line)

    # --- what goes wrong ----------------------------------------------------------------------------------------------

    def fail(
        self,
        verb: str,
        kind: str = "status",
        *,
        status: int = 500,
        retry_after: int | None = None,
        count: int | None = 1,
        seconds: float = 0.0,
    ) -> None:
        """Let the next requests of a verb end like this."""
        self.faults.append(Fault(verb, kind, status, retry_after, count, seconds))

    def clear_faults(self) -> None:
        self.faults.clear()

    def release(self) -> None:
        """Let all requests that are held go on, at once."""
        self._released.set()
        self._released = asyncio.Event()

    def compact(self) -> None:
        """Forget the history, as etcd does every five minutes: what is older than now cannot be watched from."""
        self.compacted = self.revision
        self.history.clear()
        self._continues.clear()

    def bookmark(self) -> None:
        """Tell every watch the version we are at, although nothing has changed for it."""
        self.revision += 1
        for watcher in self._watchers:
            if watcher.asked.query.get("allowWatchBookmarks") == "true":
                body = {"metadata": {"resourceVersion": str(self.revision)}}
                watcher.queue.put_nowait(_line("BOOKMARK", body))

    def say(self, text: str) -> None:
        """Send whatever text in every watch."""
        for watcher in self._watchers:
            watcher.queue.put_nowait(text.encode())

    def end_watches(self) -> None:
        """End every watch as after its time."""
        for watcher in self._watchers:
            watcher.queue.put_nowait(None)

    def expire_watches(self) -> None:
        """End every watch with the event for a history that is gone."""
        self.compact()
        self.say(_line("ERROR", RefusedError(410, "too old resource version").status).decode())
        self.end_watches()

    def cut(self) -> None:
        """Cut every connection, without a word."""
        for writer in list(self._open):
            writer.transport.abort()

    def deny_all(self) -> None:
        self.rules = []

    def allow_all(self) -> None:
        self.rules = None

    def allow_only(self, rules: list[Json]) -> None:
        self.rules = rules

    def use_certificate(self, certificate: str, key: str) -> None:
        """Speak TLS, with these files, from the next start on."""
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(certificate, key)

    def use_token(self, token: str) -> None:
        """Know nobody but the bearer of this token; a blank one knows everybody."""
        self.tokens = {token} if token else None

    async def stop(self) -> None:
        """Refuse connections, and cut those there are."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self.cut()
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def start(self, address: str = "", tls: ssl.SSLContext | None = None) -> int:
        """Listen, at the former port if there was one; return the port."""
        if address:
            self._host, _, port = address.rpartition(":")
            self.port = int(port)
        self._tls = tls or self._tls
        self._listener = await asyncio.start_server(self._accept, self._host, self.port, ssl=self._tls)
        self.port = int(self._listener.sockets[0].getsockname()[1])
        return self.port

    def new_history(self) -> None:
        """Number everything anew from 1, as a cluster restored from a backup does; call while stopped."""
        self.revision = 0
        self.history.clear()
        self._continues.clear()
        for path, many in self.objects.items():
            for name in sorted(many):
                self.revision += 1
                _meta(self.objects[path][name])["resourceVersion"] = str(self.revision)
        self.compacted = 0

    # --- answering ----------------------------------------------------------------------------------------------------

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._open.add(writer)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, h11.ProtocolError, asyncio.CancelledError):
            pass  # the client went away, or we have cut it off
        finally:
            self._open.discard(writer)
            writer.transport.abort()
            self._tasks.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER)
        asked = await _read_request(connection, reader)
        if asked is None:
            return
        self.requests.append(asked)

        async def send(event: h11.Event) -> None:
            writer.write(connection.send(event) or b"")
            await writer.drain()

        async def answer(status: int, body: bytes, *headers: tuple[str, str]) -> None:
            head = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]
            await send(h11.Response(status_code=status, headers=[*head, *headers]))
            await send(h11.Data(data=body))
            await send(h11.EndOfMessage())
            writer.close()
            await writer.wait_closed()

        try:
            if await self._suffer(asked, answer):
                return
            self._authorize(asked)
            if asked.verb == "watch":
                await self._watch(asked, send, reader)
            else:
                status, body = self._answer(asked)
                await answer(status, json.dumps(body).encode())
        except RefusedError as refused:
            asked.refused = refused.code
            retry = [("Retry-After", str(refused.retry_after))] if refused.retry_after is not None else []
            await answer(refused.code, json.dumps(refused.status).encode(), *retry)

    async def _suffer(self, asked: Asked, answer: object) -> bool:
        """Play a fault that was asked for; return whether that was the answer."""
        fault = next((each for each in self.faults if each.verb in {"*", asked.verb}), None)
        if fault is None:
            return False
        if fault.count is not None:
            fault.count -= 1
            if fault.count <= 0:
                self.faults.remove(fault)
        match fault.kind:
            case "status":
                raise RefusedError(fault.status, "as the test wants it", retry_after=fault.retry_after)
            case "slow":
                await asyncio.sleep(fault.seconds)
                return False
            case "garbage":
                await answer(200, b"<html>not what you asked for</html>")  # type: ignore[operator]
                return True
            case "hold":
                await self._released.wait()
                return False
            case "hang":
                await asyncio.Event().wait()
        return True  # close

    def _authorize(self, asked: Asked) -> None:
        if self.tokens is not None and asked.token not in self.tokens:
            raise RefusedError(401, "Unauthorized")
        if self.rules is None or any(_allows(rule, asked) for rule in self.rules):
            return
        raise RefusedError(403, f"cannot {asked.verb} resource {asked.resource!r} named {asked.role_name!r}")

    def _answer(self, asked: Asked) -> tuple[int, Json]:
        match asked.verb:
            case "get":
                return 200, self.get(asked.path, asked.name)
            case "list":
                return 200, self._list(asked)
            case "create":
                return 201, self._create(asked)
            case "update":
                return 200, self._update(asked)
            case "patch":
                return 200, self._patch(asked)
        raise RefusedError(405, f"cannot {asked.verb}")

    def _list(self, asked: Asked) -> Json:
        token = asked.query.get("continue", "")
        if token:
            if token not in self._continues:
                raise RefusedError(410, "The provided continue parameter is too old")
            rest, revision = self._continues.pop(token)
        else:
            found = [self.objects.get(asked.path, {})[name] for name in sorted(self.objects.get(asked.path, {}))]
            rest, revision = [copy.deepcopy(each) for each in found if _matches(asked, each)], self.revision
        limit = int(asked.query.get("limit", "0")) or len(rest)
        page, rest = rest[:limit], rest[limit:]
        meta: Json = {"resourceVersion": str(revision)}
        if rest:
            meta["continue"] = base64.b64encode(uuid.uuid4().bytes).decode()
            meta["remainingItemCount"] = len(rest)
            self._continues[str(meta["continue"])] = (rest, revision)
        return {"kind": "List", "apiVersion": "v1", "metadata": meta, "items": page}

    def _create(self, asked: Asked) -> Json:
        new = _body(asked)
        name = str(_meta(new).get("name", ""))
        if not name:
            raise RefusedError(422, "metadata.name: Required value")
        if name in self.objects.get(asked.path, {}):
            raise RefusedError(409, f"{name!r} already exists", reason="AlreadyExists")
        if _meta(new).get("resourceVersion"):
            raise RefusedError(400, "resourceVersion should not be set on objects to be created")
        _meta(new).pop("uid", None)
        return self._store(asked.path, None, new)

    def _update(self, asked: Asked) -> Json:
        before, new = self.get(asked.path, asked.name), _body(asked)
        meta = _meta(new)
        if meta.get("name") != asked.name:
            raise RefusedError(400, "the name of the object does not match the name on the URL")
        if meta.get("uid", _meta(before)["uid"]) != _meta(before)["uid"]:
            raise RefusedError(409, "Precondition failed: UID in precondition does not match")
        if meta.get("resourceVersion", _meta(before)["resourceVersion"]) != _meta(before)["resourceVersion"]:
            raise RefusedError(409, "the object has been modified; please apply your changes to the latest version")
        meta["uid"] = _meta(before)["uid"]
        return self._store(asked.path, before, new)

    def _patch(self, asked: Asked) -> Json:
        before = self.get(asked.path, asked.name)
        if asked.content_type not in PATCH_TYPES:
            raise RefusedError(415, f"the body of the request was in an unknown format: {asked.content_type}")
        patch = _body(asked)
        if asked.subresource:  # of a patch to a subresource nothing else counts
            patch = {key: patch[key] for key in (asked.subresource,) if key in patch}
        return self._store(asked.path, before, _merge(before, patch))

    async def _watch(self, asked: Asked, send: object, reader: asyncio.StreamReader) -> None:
        since = asked.query.get("resourceVersion", "") or "0"
        watcher = _Watcher(asked, int(since))
        if since == "0":
            for each in self.objects.get(asked.path, {}).values():
                if _matches(asked, each):
                    watcher.queue.put_nowait(_line("ADDED", each))
        elif int(since) < self.compacted:
            gone = RefusedError(410, f"too old resource version: {since} ({self.compacted})")
            watcher.queue.put_nowait(_line("ERROR", gone.status))
            watcher.queue.put_nowait(None)
        else:
            for event in self.history:
                if event.revision > int(since):
                    for line in _lines_for(asked, event):
                        watcher.queue.put_nowait(line)
        self._watchers.append(watcher)
        self._watchers_changed.set()
        left = asyncio.create_task(reader.read(1))
        left.add_done_callback(lambda _: watcher.queue.put_nowait(None))
        try:
            await send(h11.Response(status_code=200, headers=[("Content-Type", "application/json")]))  # type: ignore[operator]
            async for line in _until_end(watcher, float(asked.query.get("timeoutSeconds", "1800"))):
                await send(h11.Data(data=line))  # type: ignore[operator]
            await send(h11.EndOfMessage())  # type: ignore[operator]
        finally:
            self._watchers.remove(watcher)
            self._watchers_changed.set()
            left.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await left

    async def wait_for_watches(self, count: int) -> None:
        """Wait until there are exactly so many watches."""
        while len(self._watchers) != count:
            self._watchers_changed.clear()
            await self._watchers_changed.wait()

    def asked(self, verb: str = "") -> list[Asked]:
        return [each for each in self.requests if verb in {"", each.verb}]


async def _until_end(watcher: _Watcher, timeout_s: float) -> AsyncIterator[bytes]:
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                line = await watcher.queue.get()
        except TimeoutError:
            return
        if line is None:
            return
        yield line


async def _read_request(connection: h11.Connection, reader: asyncio.StreamReader) -> Asked | None:
    head, body = None, b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(65536))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            return _parse(head, body)
        else:
            return None


def _parse(head: h11.Request, body: bytes) -> Asked:
    url = urlsplit(head.target.decode())
    query = dict(parse_qsl(url.query))
    headers = {name.decode(): value.decode() for name, value in head.headers}
    # /api/v1/[namespaces/NS/]RESOURCE[/NAME[/SUB]], or the same below /apis/GROUP/VERSION
    parts = url.path.strip("/").split("/")
    at = 2 if parts[0] == "api" else 3
    namespaced = len(parts) > at + 2 and parts[at] == "namespaces"
    namespace = parts[at + 1] if namespaced else ""
    at += 2 if namespaced else 0
    path = "/" + "/".join(parts[: at + 1])
    name = parts[at + 1] if len(parts) > at + 1 else ""
    verbs = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
    reading = "get" if name else "watch" if query.get("watch") in {"true", "1"} else "list"
    return Asked(
        verb=verbs.get(head.method.decode(), reading),
        path=path,
        name=name,
        query=query,
        subresource=parts[at + 2] if len(parts) > at + 2 else "",
        body=body,
        content_type=headers.get("content-type", ""),
        token=headers.get("authorization", "").removeprefix("Bearer "),
        namespace=namespace,
    )


def _allows(rule: Json, asked: Asked) -> bool:
    """Say whether a role's rule grants this: verbs, resource, and perhaps a namespace and names."""
    names = rule.get("names")
    return (
        asked.verb in rule["verbs"]  # type: ignore[operator]
        and asked.resource == rule["resource"]
        and rule.get("namespace") in {None, asked.namespace}
        and (names is None or asked.role_name in names)  # type: ignore[operator]
    )


def _lines_for(asked: Asked, event: Event) -> Iterator[bytes]:
    if event.path != asked.path:
        return
    before = event.before is not None and _matches(asked, event.before)
    after = event.after is not None and _matches(asked, event.after)
    if after:
        yield _line("MODIFIED" if before else "ADDED", event.after)
    elif before:
        last = copy.deepcopy(event.before)
        assert last is not None
        _meta(last)["resourceVersion"] = str(event.revision)
        yield _line("DELETED", last)


def _line(kind: str, object_: Json | None) -> bytes:
    return json.dumps({"type": kind, "object": object_}).encode() + b"\n"


def _matches(asked: Asked, object_: Json) -> bool:
    for part in filter(None, asked.query.get("fieldSelector", "").split(",")):
        where, _, wanted = part.partition("=")
        found: object = object_
        for key in where.split("."):
            found = found.get(key, "") if isinstance(found, dict) else ""
        if found != wanted.removeprefix("="):
            return False
    labels = _meta(object_).get("labels") or {}
    wanted_labels = (part.split("=", 1) for part in filter(None, asked.query.get("labelSelector", "").split(",")))
    return all(labels.get(key) == value for key, value in wanted_labels)  # type: ignore[attr-defined]


def _merge(old: object, patch: object, key: str = "") -> object:
    if isinstance(old, dict) and isinstance(patch, dict):
        merged = copy.deepcopy(old)
        for name, value in patch.items():
            if value is None:
                merged.pop(name, None)
            else:
                merged[name] = _merge(merged.get(name), value, name)
        return merged
    if isinstance(old, list) and isinstance(patch, list) and key in MERGE_KEYS:
        by = MERGE_KEYS[key]
        rows = {row[by]: row for row in copy.deepcopy(old)}
        for row in patch:
            rows[row[by]] = _merge(rows.get(row[by]), row)
        return list(rows.values())
    return copy.deepcopy(patch)


def _meta(object_: Json) -> Json:
    meta = object_.setdefault("metadata", {})
    assert isinstance(meta, dict)
    return meta


def _body(asked: Asked) -> Json:
    try:
        decoded = json.loads(asked.body)
    except ValueError as error:
        raise RefusedError(400, f"the body does not decode: {error}") from error
    if not isinstance(decoded, dict):
        raise RefusedError(400, "the body is no object")
    return decoded


# --- as a process of its own ------------------------------------------------------------------------------------------


async def _control(server: ApiServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        command = json.loads(line)
        done = getattr(server, command.pop("do"))(**command)
        result = await done if asyncio.iscoroutine(done) else done
        writer.write(json.dumps({"result": result}, default=lambda each: vars(each) | {"body": ""}).encode() + b"\n")
        await writer.drain()
    writer.close()


async def _main(listen: str, control: Path, token: str, tls: list[str]) -> None:
    server = ApiServer()
    server.use_token(token)
    if tls:
        server.use_certificate(*tls)
    await server.start(listen)
    commands = await asyncio.start_unix_server(lambda reader, writer: _control(server, reader, writer), control)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    print(f"listening at {listen.rpartition(':')[0]}:{server.port}", flush=True)  # noqa: T201
    await ended.wait()
    commands.close()
    await server.stop()
    control.unlink(missing_ok=True)  # noqa: ASYNC240  # the loop is at its end


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:0", help="address and port of the API")
    parser.add_argument("--control", type=Path, required=True, help="Unix socket that takes commands")
    parser.add_argument("--token", default="", help="know nobody but the bearer of this token")
    parser.add_argument("--tls", nargs=2, default=[], metavar=("CERTIFICATE", "KEY"), help="files to speak TLS with")
    given = parser.parse_args()
    asyncio.run(_main(given.listen, given.control, given.token, given.tls))
