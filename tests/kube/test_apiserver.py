"""The API server of the tests does what Kubernetes documents, so that what passes against it means something."""

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import apiserver
import pytest
from apiserver import ApiServer, Json

NODES = "/api/v1/nodes"
JSON = "application/json"
MAPS = "/api/v1/namespaces/kube-system/configmaps"


async def ask(
    server: ApiServer, method: str, target: str, body: object = None, *, kind: str = JSON, token: str = ""
) -> tuple[int, Json]:
    """Ask by hand: what a client of ours would get wrong on both sides does not show with that client."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    raw = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(raw)}\r\n"
    writer.write(f"{head}Authorization: Bearer {token}\r\n\r\n".encode() + raw)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    status, _, rest = answer.partition(b"\r\n\r\n")
    return int(status.split()[1]), json.loads(rest)


@contextlib.asynccontextmanager
async def watch(server: ApiServer, target: str) -> AsyncIterator[Callable[[], Awaitable[Json | None]]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")

    async def next_event() -> Json | None:
        size = int(await reader.readuntil(b"\r\n"), 16)
        chunk = await reader.readexactly(size + 2)
        return json.loads(chunk) if size else None

    try:
        yield next_event
    finally:
        writer.transport.abort()


def run(scenario: Callable[[ApiServer], Awaitable[None]]) -> None:
    async def play() -> None:
        server = ApiServer()
        await server.start()
        try:
            async with asyncio.timeout(20):
                await scenario(server)
        finally:
            await server.stop()

    asyncio.run(play())


def named(name: str, **more: object) -> Json:
    return {"metadata": {"name": name}, **more}


def version(object_: Json) -> str:
    return object_["metadata"]["resourceVersion"]  # type: ignore[index,return-value]


def test_a_list_comes_in_pages_that_belong_to_one_moment() -> None:
    async def scenario(server: ApiServer) -> None:
        for name in "abc":
            server.put(NODES, named(name))
        _, first = await ask(server, "GET", f"{NODES}?limit=2")
        server.put(NODES, named("d"))
        token = first["metadata"]["continue"].replace("=", "%3D").replace("+", "%2B")  # type: ignore[index]
        _, second = await ask(server, "GET", f"{NODES}?limit=2&continue={token}")
        assert [each["metadata"]["name"] for each in [*first["items"], *second["items"]]] == ["a", "b", "c"]  # type: ignore[misc]
        assert version(first) == version(second)
        assert "continue" not in second["metadata"]  # type: ignore[operator]

    run(scenario)


def test_a_continue_token_that_is_too_old_is_gone() -> None:
    async def scenario(server: ApiServer) -> None:
        for name in "abc":
            server.put(NODES, named(name))
        _, first = await ask(server, "GET", f"{NODES}?limit=2")
        server.compact()
        token = first["metadata"]["continue"].replace("=", "%3D").replace("+", "%2B")  # type: ignore[index]
        status, answer = await ask(server, "GET", f"{NODES}?limit=2&continue={token}")
        assert (status, answer["reason"]) == (410, "Expired")

    run(scenario)


def test_a_watch_tells_everything_after_its_version_and_then_what_happens() -> None:
    async def scenario(server: ApiServer) -> None:
        since = version(server.put(NODES, named("a")))
        server.put(NODES, named("b"))
        async with watch(server, f"{NODES}?watch=true&resourceVersion={since}") as next_event:
            server.put(NODES, named("b", spec={}))
            server.drop(NODES, "a")
            events = [await next_event() for _ in range(3)]
        told = [(each["type"], each["object"]["metadata"]["name"]) for each in events]  # type: ignore[index]
        assert told == [("ADDED", "b"), ("MODIFIED", "b"), ("DELETED", "a")]
        versions = [int(version(each["object"])) for each in events]  # type: ignore[index,arg-type]
        assert versions == sorted(versions)

    run(scenario)


def test_a_watch_from_before_the_history_gets_an_error_event_and_ends() -> None:
    async def scenario(server: ApiServer) -> None:
        since = version(server.put(NODES, named("a")))
        server.put(NODES, named("b"))
        server.compact()
        async with watch(server, f"{NODES}?watch=true&resourceVersion={since}") as next_event:
            event = await next_event()
            assert event is not None
            assert (event["type"], event["object"]["code"]) == ("ERROR", 410)  # type: ignore[index]
            assert await next_event() is None

    run(scenario)


def test_a_watch_from_a_version_still_to_come_stays_silent() -> None:
    async def scenario(server: ApiServer) -> None:
        async with watch(server, f"{NODES}?watch=true&resourceVersion=9999&timeoutSeconds=1") as next_event:
            server.put(NODES, named("a"))
            assert await next_event() is None

    run(scenario)


def test_a_watch_ends_after_the_time_it_was_given() -> None:
    async def scenario(server: ApiServer) -> None:
        async with watch(server, f"{NODES}?watch=true&resourceVersion=100&timeoutSeconds=0") as next_event:
            assert await next_event() is None

    run(scenario)


def test_bookmarks_come_only_to_who_allows_them() -> None:
    async def scenario(server: ApiServer) -> None:
        target = f"{NODES}?watch=true&resourceVersion=100"
        async with watch(server, f"{target}&allowWatchBookmarks=true") as with_them, watch(server, target) as without:
            await server.wait_for_watches(2)
            server.bookmark()
            server.put(NODES, named("a"))
            first, other = await with_them(), await without()
            assert first is not None
            assert other is not None
            assert (first["type"], other["type"]) == ("BOOKMARK", "ADDED")

    run(scenario)


def test_an_object_that_leaves_a_selection_is_told_as_deleted() -> None:
    async def scenario(server: ApiServer) -> None:
        server.put(NODES, {"metadata": {"name": "a", "labels": {"zone": "x"}}})
        since = server.revision
        async with watch(server, f"{NODES}?watch=true&resourceVersion={since}&labelSelector=zone%3Dx") as next_event:
            server.put(NODES, {"metadata": {"name": "a", "labels": {"zone": "y"}}})
            event = await next_event()
        assert event is not None
        assert event["type"] == "DELETED"

    run(scenario)


def test_an_update_of_an_older_version_is_a_conflict_and_changes_nothing() -> None:
    async def scenario(server: ApiServer) -> None:
        _, first = await ask(server, "POST", MAPS, named("m", data={"n": "1"}))
        status, second = await ask(server, "PUT", f"{MAPS}/m", {**first, "data": {"n": "2"}})
        assert status == 200
        assert version(second) != version(first)
        assert (await ask(server, "PUT", f"{MAPS}/m", {**first, "data": {"n": "3"}}))[0] == 409
        assert (await ask(server, "GET", f"{MAPS}/m"))[1]["data"] == {"n": "2"}

    run(scenario)


def test_what_exists_cannot_be_created_and_what_does_not_cannot_be_changed() -> None:
    async def scenario(server: ApiServer) -> None:
        assert (await ask(server, "PUT", f"{MAPS}/m", named("m")))[0] == 404
        assert (await ask(server, "POST", MAPS, named("m")))[0] == 201
        status, answer = await ask(server, "POST", MAPS, named("m"))
        assert (status, answer["reason"]) == (409, "AlreadyExists")

    run(scenario)


def test_a_strategic_merge_patch_of_a_status_merges_conditions_by_type_and_touches_nothing_else() -> None:
    async def scenario(server: ApiServer) -> None:
        conditions = [{"type": "Ready", "status": "True"}, {"type": "NetworkUnavailable", "status": "True"}]
        server.put(NODES, named("a", spec={"x": 1}, status={"conditions": conditions}))
        patch = {
            "spec": {"x": 2},
            "status": {"conditions": [{"type": "NetworkUnavailable", "status": "False", "reason": "R"}]},
        }
        kind = "application/strategic-merge-patch+json"
        _, patched = await ask(server, "PATCH", f"{NODES}/a/status", patch, kind=kind)
        assert patched["spec"] == {"x": 1}
        assert patched["status"]["conditions"] == [  # type: ignore[index]
            {"type": "Ready", "status": "True"},
            {"type": "NetworkUnavailable", "status": "False", "reason": "R"},
        ]
        assert (await ask(server, "PATCH", f"{NODES}/a/status", patch))[0] == 415

    run(scenario)


def test_a_role_may_name_the_objects_it_is_for() -> None:
    async def scenario(server: ApiServer) -> None:
        server.put(MAPS, named("m"))
        server.put(MAPS, named("n"))
        server.rules = [{"verbs": ["get", "watch", "list"], "resource": "configmaps", "names": ["m"]}]
        assert (await ask(server, "GET", f"{MAPS}/m"))[0] == 200
        assert (await ask(server, "GET", f"{MAPS}/n"))[0] == 403
        assert (await ask(server, "GET", MAPS))[0] == 403
        assert (await ask(server, "GET", f"{MAPS}?fieldSelector=metadata.name%3Dm"))[0] == 200

    run(scenario)


def test_who_has_no_token_is_nobody() -> None:
    async def scenario(server: ApiServer) -> None:
        server.use_token("secret")
        assert (await ask(server, "GET", NODES))[0] == 401
        assert (await ask(server, "GET", NODES, token="secret"))[0] == 200

    run(scenario)


@pytest.mark.parametrize(("kind", "status"), [("status", 429), ("status", 503)])
def test_a_fault_comes_as_often_as_it_was_asked_for(kind: str, status: int) -> None:
    async def scenario(server: ApiServer) -> None:
        server.fail("list", kind, status=status, count=2)
        answers = [(await ask(server, "GET", NODES))[0] for _ in range(3)]
        assert answers == [status, status, 200]

    run(scenario)


def test_requests_that_are_held_go_on_together_when_they_are_released() -> None:
    async def scenario(server: ApiServer) -> None:
        server.put(MAPS, named("m"))
        server.fail("get", "hold", count=None)
        first, second = (asyncio.create_task(ask(server, "GET", f"{MAPS}/m")) for _ in range(2))
        while len(server.asked("get")) < 2:  # noqa: ASYNC110  # nothing tells of a request that has come
            await asyncio.sleep(0.01)
        assert (await ask(server, "GET", MAPS))[0] == 200, "another verb is not held"
        assert not first.done()
        assert not second.done()
        server.put(MAPS, named("m", data={"new": "yes"}))
        server.release()
        for _, body in (await first, await second):
            assert body["data"] == {"new": "yes"}, "what is read is what is there when it goes on"

    run(scenario)


def test_it_runs_as_a_process_of_its_own_and_takes_commands(tmp_path: Path) -> None:
    control = tmp_path / "api.sock"
    program = [sys.executable, apiserver.__file__, "--control", str(control)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline().rpartition(":")[2])

            async def play() -> Json:
                reader, writer = await asyncio.open_unix_connection(control)
                command = {"do": "put", "path": NODES, "object": named("a")}
                writer.write(json.dumps(command).encode() + b"\n")
                assert "result" in json.loads(await reader.readline())
                writer.close()
                await writer.wait_closed()
                remote = ApiServer()
                remote.port = port
                return (await ask(remote, "GET", f"{NODES}/a"))[1]

            assert asyncio.run(play())["metadata"]["name"] == "a"  # type: ignore[index]
        finally:
            process.terminate()
    assert process.returncode == 0
    assert not control.exists()
