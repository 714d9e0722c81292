"""Following a collection against a server that does everything a server may do: each fault is a sentence."""

import asyncio
import json
import logging
import shutil
import ssl
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Self

import pytest
from apiserver import ApiServer
from certificates import make_certificate
from cluster import LOG, NODES, Halves, client_of, node

from weavenet.effects import Now
from weavenet.errors import KubeAnswerError, KubeStatusError, KubeUnreachableError
from weavenet.kube import client as client_module
from weavenet.kube.access import ApiAccess, Authority, TokenFile
from weavenet.kube.client import KubeClient
from weavenet.kube.follow import Changed, Gone, Listed, Resource, Told
from weavenet.kube.http import Request
from weavenet.resources import Node

RESOURCE = Resource(NODES, Node)


class _Tells(logging.Handler):
    def __init__(self, event: asyncio.Event) -> None:
        super().__init__()
        self._event = event

    def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002
        self._event.set()


class Following:
    """Follows nodes in a task, and keeps what it was told and the view that a consumer would have from it."""

    def __init__(self, client: KubeClient, resource: Resource[Node] = RESOURCE) -> None:
        self.client = client
        self.resource = resource
        self.told: list[Told[Node]] = []
        self.view: dict[str, str] = {}
        self._news = asyncio.Event()
        self._handler = _Tells(self._news)  # what is said in the log is news, too

    async def __aenter__(self) -> Self:
        LOG.addHandler(self._handler)
        self._task = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        LOG.removeHandler(self._handler)

    async def _follow(self) -> None:
        async with aclosing(self.client.follow(self.resource)) as stream:
            async for told in stream:
                self.told.append(told)
                match told:
                    case Listed(objects):
                        assert set(self.view) <= {each.metadata.name for each in objects}, "the vanished come first"
                        self.view = {each.metadata.name: each.metadata.uid for each in objects}
                    case Changed(new):
                        self.view[new.metadata.name] = new.metadata.uid
                    case Gone(old):
                        assert self.view.pop(old.metadata.name) == old.metadata.uid
                self._news.set()

    async def until(self, *names: str) -> None:
        """Wait until exactly these nodes are known."""
        await self.until_true(lambda: sorted(self.view) == sorted(names))

    async def until_true(self, true: Callable[[], bool]) -> None:
        """Wait until this is so, looking again at any news and every now and then."""
        while not true():
            self._news.clear()
            await asyncio.wait([asyncio.ensure_future(self._news.wait())], timeout=0.02)

    @property
    def lists(self) -> int:
        return sum(isinstance(told, Listed) for told in self.told)


def run(scenario: Callable[[ApiServer, Following], Awaitable[None]]) -> None:
    async def play() -> None:
        server = ApiServer()
        await server.start()
        server.put(NODES, node("a", "10.0.0.1"))
        server.put(NODES, node("b", "10.0.0.2"))
        try:
            async with asyncio.timeout(6), Following(client_of(server)) as following:
                await following.until("a", "b")
                await server.wait_for_watches(1)
                await scenario(server, following)
        finally:
            await server.stop()

    asyncio.run(play())


def test_one_list_at_the_start_and_then_only_a_watch() -> None:
    async def scenario(server: ApiServer, following: Following) -> None:
        server.put(NODES, node("c"))
        await following.until("a", "b", "c")
        server.drop(NODES, "a")
        await following.until("b", "c")
        server.end_watches()
        await server.wait_for_watches(0)
        await server.wait_for_watches(1)
        server.put(NODES, node("d"))
        await following.until("b", "c", "d")
        assert len(server.asked("list")) == 1
        assert server.asked("list")[0].query == {"limit": "500"}
        watched = [each.query for each in server.asked("watch")]
        assert [each["allowWatchBookmarks"] for each in watched] == ["true", "true"]
        assert all(300 <= int(each["timeoutSeconds"]) <= 600 for each in watched)

    run(scenario)


def test_a_large_collection_comes_in_pages() -> None:
    async def scenario() -> None:
        server = ApiServer()
        await server.start()
        names = [f"node-{number:04}" for number in range(1201)]
        for name in names:
            server.put(NODES, node(name))
        try:
            async with asyncio.timeout(6), Following(client_of(server)) as following:
                await following.until(*names)
            assert len(server.asked("list")) == 3
            assert following.lists == 1
        finally:
            await server.stop()

    asyncio.run(scenario())


def test_a_page_token_that_is_gone_begins_the_list_anew() -> None:
    async def scenario() -> None:
        server = ApiServer()
        await server.start()
        for number in range(501):
            server.put(NODES, node(f"node-{number:04}"))
        try:
            server.fail("list", "slow", seconds=0.0)
            server.fail("list", status=410)
            async with asyncio.timeout(6), Following(client_of(server)) as following:
                await following.until_true(lambda: len(following.view) == 501)
            assert [("continue" in each.query) for each in server.asked("list")] == [False, True, False, True]
        finally:
            await server.stop()

    asyncio.run(scenario())


def test_bookmarks_move_the_version_on_so_that_nothing_is_told_twice() -> None:
    async def scenario(server: ApiServer, following: Following) -> None:
        server.bookmark()
        server.put(NODES, node("c"))
        await following.until("a", "b", "c")
        server.bookmark()
        server.end_watches()
        await server.wait_for_watches(0)
        await server.wait_for_watches(1)
        assert server.asked("watch")[-1].query["resourceVersion"] in {str(server.revision), str(server.revision - 1)}
        assert len(server.asked("list")) == 1

    run(scenario)


def test_a_history_that_is_gone_is_listed_again_and_what_vanished_meanwhile_is_told() -> None:
    async def scenario(server: ApiServer, following: Following) -> None:
        server.fail("watch", status=503, count=None)
        server.end_watches()
        await server.wait_for_watches(0)
        server.drop(NODES, "a")
        server.put(NODES, node("c"))
        server.compact()
        server.clear_faults()
        await following.until("b", "c")
        assert following.lists == 2
        assert [told.object.metadata.name for told in following.told if isinstance(told, Gone)] == ["a"]

    run(scenario)


def test_gone_as_an_http_status_is_the_same_as_gone_as_an_event() -> None:
    async def scenario(server: ApiServer, following: Following) -> None:
        server.fail("watch", status=410)
        server.end_watches()
        await following.until_true(lambda: following.lists == 2)
        await server.wait_for_watches(1)
        server.expire_watches()
        await following.until_true(lambda: following.lists == 3)

    run(scenario)


def test_an_object_that_was_replaced_unseen_is_told_as_gone_and_as_there() -> None:
    async def scenario(server: ApiServer, following: Following) -> None:
        old = following.view["a"]
        server.fail("watch", status=410)
        server.end_watches()
        server.drop(NODES, "a")
        server.put(NODES, node("a"))
        await following.until_true(lambda: following.lists == 2 or following.view.get("a", old) != old)
        await following.until("a", "b")
        assert following.view["a"] != old

    run(scenario)


@pytest.mark.parametrize("status", [429, 500, 503, 504, 401, 403])
def test_a_refused_watch_is_asked_for_again_from_where_it_was(status: int) -> None:
    async def scenario(server: ApiServer, following: Following) -> None:
        server.fail("watch", status=status, count=2)
        server.end_watches()
        server.put(NODES, node("c"))
        await following.until("a", "b", "c")
        assert following.lists == 1

    run(scenario)


def test_too_many_requests_is_answered_with_the_wait_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    sleep = asyncio.sleep

    async def note(delay_s: float) -> None:
        waits.append(delay_s)
        await sleep(0)

    async def scenario(server: ApiServer, following: Following) -> None:
        monkeypatch.setattr(client_module.asyncio, "sleep", note)
        server.fail("watch", status=429, retry_after=7)
        server.end_watches()
        server.put(NODES, node("c"))
        await following.until("a", "b", "c")
        assert 7 < max(waits) < 8

    run(scenario)


def test_a_server_that_went_away_and_came_back_costs_no_list_but_a_look_at_its_version() -> None:
    async def scenario(server: ApiServer, following: Following) -> None:
        await server.stop()
        await following.until_true(lambda: following.client.health.is_reachable is False)
        server.put(NODES, node("c"))
        await server.start()
        await following.until("a", "b", "c")
        assert following.lists == 1
        assert server.asked("list")[-1].query == {"limit": "1"}

    run(scenario)


def test_a_server_with_a_new_history_is_listed_again() -> None:
    # Versions below ours: a watch from ours would stay silent for good.
    async def scenario(server: ApiServer, following: Following) -> None:
        await server.stop()
        del server.objects[NODES]["a"]
        server.new_history()
        await server.start()
        await following.until("b")
        server.put(NODES, node("c"))
        await following.until("b", "c")

    run(scenario)


def test_an_event_with_a_version_below_ours_means_a_new_history() -> None:
    async def scenario(server: ApiServer, following: Following) -> None:
        event = {"type": "ADDED", "object": {"metadata": {"name": "x", "uid": "x", "resourceVersion": "7"}}}
        server.say(json.dumps(event) + "\n")
        await following.until_true(lambda: following.lists == 2)
        await following.until("a", "b")
        assert "went backwards" in following.client.health.last_error

    run(scenario)


def test_a_connection_cut_within_a_line_is_taken_up_where_it_was() -> None:
    async def scenario(server: ApiServer, following: Following) -> None:
        server.say('{"type": "ADDED", "object": {"meta')
        server.end_watches()
        await following.until_true(lambda: "within a line" in following.client.health.last_error)
        server.put(NODES, node("c"))
        await following.until("a", "b", "c")
        server.cut()
        server.put(NODES, node("d"))
        await following.until("a", "b", "c", "d")
        assert following.lists == 1

    run(scenario)


@pytest.mark.parametrize(
    "nonsense",
    [
        pytest.param("nonsense\n", id="no JSON"),
        pytest.param('{"type": "NONSENSE", "object": {}}\n', id="unknown type"),
        pytest.param('{"type": "ADDED", "object": {"metadata": {"name": 7}}}\n', id="wrong type of a field"),
        pytest.param('{"type": "ADDED"}\n', id="no object"),
        pytest.param('{"type": "BOOKMARK", "object": {}}\n', id="bookmark of nothing"),
        pytest.param('{"type": "ERROR", "object": {"code": 500, "message": "etcd is unwell"}}\n', id="error event"),
        pytest.param('"' + "x" * 2000 + '"\n', id="line too long"),
        pytest.param("\xff\xfe\n", id="no UTF-8"),
    ],
)
def test_nonsense_in_a_watch_is_said_and_listed_again(nonsense: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "LINE_BYTES_MAX", 1000)

    async def scenario(server: ApiServer, following: Following) -> None:
        server.say(nonsense)
        await following.until_true(lambda: following.lists == 2)
        assert NODES in following.client.health.last_error or "line" in following.client.health.last_error

    run(scenario)


def test_nonsense_instead_of_a_list_is_said_and_asked_again() -> None:
    async def scenario() -> None:
        server = ApiServer()
        await server.start()
        server.put(NODES, node("a"))
        server.fail("list", "garbage", count=2)
        try:
            async with asyncio.timeout(6), Following(client_of(server)) as following:
                await following.until("a")
                assert "does not decode" in following.client.health.last_error
        finally:
            await server.stop()

    asyncio.run(scenario())


def test_a_server_that_says_nothing_is_given_up_after_the_watch_should_have_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "WATCH_SLACK_S", -300.0 - 150.0 + 0.1)  # a tenth of a second in all

    async def scenario() -> None:
        server = ApiServer()
        await server.start()
        server.put(NODES, node("a"))
        server.fail("watch", "slow", seconds=0.0)
        try:
            async with asyncio.timeout(6), Following(client_of(server)) as following:
                await following.until("a")
                await server.wait_for_watches(1)
                await server.wait_for_watches(0)
                server.put(NODES, node("b"))
                await following.until("a", "b")
                assert "neither says anything nor ends" in following.client.health.last_error
        finally:
            await server.stop()

    asyncio.run(scenario())


def test_each_error_is_told_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(server: ApiServer, following: Following) -> None:
        server.rules = [{"verbs": ["get", "list", "watch"], "resource": "nodes"}]
        async with Following(following.client, Resource("/api/v1/pods", Node)) as forbidden:
            await forbidden.until_true(lambda: len(server.asked("list")) > 4)
            server.put(NODES, node("c"))  # what works does not hide what does not
            await following.until("a", "b", "c")
            await forbidden.until_true(lambda: len(server.asked("list")) > 8)
            assert following.client.health.is_reachable
            server.allow_all()
            await forbidden.until_true(lambda: forbidden.lists == 1)

    with caplog.at_level(logging.INFO):
        run(scenario)
    told = [record.getMessage() for record in caplog.records if "pods" in record.getMessage()]
    assert len(told) == 2, told
    assert "403 Forbidden" in told[0]
    assert told[1].endswith("/api/v1/pods answers again")


def test_only_what_is_selected_comes() -> None:
    async def scenario(server: ApiServer, _: Following) -> None:
        only_b = Resource(NODES, Node, field_selector="metadata.name=b")
        async with Following(client_of(server), only_b) as following:
            await following.until("b")
            await server.wait_for_watches(2)
            server.put(NODES, node("a", "10.0.0.9"))
            server.drop(NODES, "b")
            await following.until()
            assert len(following.told) == 2

    run(scenario)


def test_a_single_request_fails_with_what_went_wrong() -> None:
    async def scenario(server: ApiServer, following: Following) -> None:
        client = following.client
        with pytest.raises(KubeStatusError, match="404 NotFound") as absent:
            await client.send(Request("GET", f"{NODES}/nobody"))
        assert absent.value.code == 404
        server.fail("get", "hang")
        with pytest.raises(KubeUnreachableError, match="no answer within"):
            await client.send(Request("GET", f"{NODES}/a"), timeout_s=0.05)
        server.fail("get", "close")
        with pytest.raises(KubeUnreachableError):
            await client.send(Request("GET", f"{NODES}/a"))
        assert b'"name": "a"' in await client.send(Request("GET", f"{NODES}/a"))

    run(scenario)


def test_an_answer_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(_: ApiServer, following: Following) -> None:
        monkeypatch.setattr(client_module, "ANSWER_BYTES_MAX", 10)
        with pytest.raises(KubeAnswerError, match="longer than"):
            await following.client.send(Request("GET", f"{NODES}/a"))

    run(scenario)


def test_a_token_is_read_again_when_it_changes_and_shows_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "token"

    async def scenario() -> None:
        server = ApiServer()
        await server.start()
        server.put(NODES, node("a"))
        server.use_token("second-secret")
        file.write_text("first-secret\n")
        client = client_of(server, TokenFile(file))
        try:
            async with asyncio.timeout(6), Following(client) as following:
                await following.until_true(lambda: "401" in client.health.last_error)
                file.write_text("second-secret\n")
                await following.until("a")
        finally:
            await server.stop()
        shown = caplog.text + repr(client.access) + client.health.last_error
        assert "secret" not in shown.replace(str(file), "")

    with caplog.at_level(logging.DEBUG):
        asyncio.run(scenario())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificates with openssl")
def test_a_server_is_believed_only_with_a_certificate_of_its_authority(tmp_path: Path) -> None:
    ours = make_certificate(tmp_path, "ours", "127.0.0.1")
    make_certificate(tmp_path, "theirs", "127.0.0.1")

    async def scenario() -> None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(*ours)
        server = ApiServer()
        await server.start(tls=tls)
        server.put(NODES, node("a"))

        async def fetch(authority: str) -> bytes:
            access = ApiAccess("127.0.0.1", server.port, Authority(tmp_path / authority), None)
            client = KubeClient(access, Halves(), lambda: Now(0.0, 0.0), logging.getLogger("test"))
            return await client.send(Request("GET", f"{NODES}/a"))

        try:
            assert b'"name": "a"' in await fetch("ours.crt")
            with pytest.raises(KubeUnreachableError, match="certificate verify failed"):
                await fetch("theirs.crt")
        finally:
            await server.stop()

    asyncio.run(scenario())
