"""`weave key` at the agent's end: answers without secrets, and on disk before they are given."""

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
from fake_agent import Agent, running
from virtual_time import run

from weavenet.agent.dispatch import make_application
from weavenet.agent.keys_api import AgentKeys, Answer, KeyHandlers, key_routes
from weavenet.api.client import Client
from weavenet.api.schema import JSON
from weavenet.drivers.http import HttpListener
from weavenet.effects import Cancelled, Done, Outcome, Refused
from weavenet.mesh.keyring import Keyring, KeyStatus, Password

LOG = logging.getLogger("test")
SECRET = "correct horse"
STATUS = [KeyStatus("initial", False, 1_700_000_000.0, 2), KeyStatus("spring", True, 1_700_000_100.5, 0)]


class FakeKeys:
    def __init__(self, outcome: Outcome = Done(), status: Sequence[KeyStatus] = STATUS) -> None:  # noqa: B008
        self.outcome, self._status = outcome, status
        self.asked: list[tuple[str, str, bytes]] = []

    def status(self) -> Sequence[KeyStatus]:
        return self._status

    async def add(self, name: str, password: Password) -> Outcome:
        self.asked.append(("add", name, password.reveal()))
        return self.outcome

    async def use(self, name: str) -> Outcome:
        self.asked.append(("use", name, b""))
        return self.outcome

    async def retire(self, name: str) -> Outcome:
        self.asked.append(("retire", name, b""))
        return self.outcome


# --- answers ----------------------------------------------------------------------------------------------------------


def test_the_list_shows_names_and_nothing_of_passwords() -> None:
    assert KeyHandlers(FakeKeys()).show(as_json=False).body == (
        f"{'initial':<32} accepted 2023-11-14 22:13:20 UTC  2 connections\n"
        f"{'spring':<32} in use   2023-11-14 22:15:00 UTC  0 connections\n"
    )


def test_the_list_as_json() -> None:
    assert KeyHandlers(FakeKeys(status=STATUS[:1])).show(as_json=True) == Answer(
        200,
        '[\n    {\n        "name": "initial",\n        "state": "accepted",\n'
        '        "added": "2023-11-14 22:13:20 UTC",\n        "connections": 2\n    }\n]\n',
        JSON,
    )


def test_a_mesh_without_passwords_says_so() -> None:
    assert KeyHandlers(FakeKeys(status=())).show(as_json=False).body == "no passwords: this mesh is not encrypted\n"
    assert KeyHandlers(FakeKeys(status=())).show(as_json=True).body == "[]\n"


@pytest.mark.parametrize(
    ("outcome", "answer"),
    [
        (Done(), Answer(204)),
        (Refused("because"), Answer(400, "because\n")),
        (Cancelled(), Answer(503, "the disk did not take it within 30 s; see `weave key list`\n")),
    ],
)
def test_outcomes_become_answers(outcome: Outcome, answer: Answer) -> None:
    keys = FakeKeys(outcome)
    handlers = KeyHandlers(keys)
    assert asyncio.run(handlers.add("spring", {"password": [SECRET]})) == answer
    assert asyncio.run(handlers.use("spring")) == answer
    assert asyncio.run(handlers.retire("spring")) == answer
    assert keys.asked == [("add", "spring", SECRET.encode()), ("use", "spring", b""), ("retire", "spring", b"")]


@pytest.mark.parametrize("given", [[], ["one", "two"]])
def test_a_form_must_hold_one_password(given: list[str]) -> None:
    answer = asyncio.run(KeyHandlers(FakeKeys()).add("spring", {"password": given}))
    assert answer == Answer(400, "expected one password in the form\n")


# --- requests ---------------------------------------------------------------------------------------------------------


def test_requests_find_their_handlers(tmp_path: Path) -> None:
    keys = FakeKeys()

    async def ask() -> list[tuple[int, str]]:
        listener = HttpListener(make_application(LOG, key_routes(KeyHandlers(keys))))
        await listener.listen_unix(tmp_path / "socket")
        client = Client(str(tmp_path / "socket"))
        try:
            answers = [
                await asyncio.to_thread(client.exchange, method, path, form=form)
                for method, path, form in (
                    ("POST", "/key/spring", [("password", SECRET)]),
                    ("PUT", "/key/spring", []),
                    ("DELETE", "/key/a%2Fb", []),
                    ("GET", "/key", []),
                    ("GET", "/key/spring", []),
                )
            ]
        finally:
            await listener.close()
        return [(answer.status, answer.body) for answer in answers]

    answers = asyncio.run(ask())
    assert [status for status, _ in answers] == [204, 204, 204, 200, 405]
    assert [(verb, name) for verb, name, _ in keys.asked] == [("add", "spring"), ("use", "spring"), ("retire", "a/b")]
    assert not any("correct" in body for _, body in answers)


# --- the agent --------------------------------------------------------------------------------------------------------


async def _change(agent: Agent) -> list[Outcome]:
    keys = AgentKeys(agent.loop)
    outcomes = [
        await keys.add("spring", Password(SECRET.encode())),
        await keys.add("spring", Password(b"x")),
        await keys.use("spring"),
        await keys.retire("spring"),
        await keys.retire("initial"),
    ]
    assert [(one.name, one.in_use) for one in keys.status()] == [("spring", True)]
    return outcomes


def test_an_agent_changes_its_keys_writes_them_down_and_says_nothing_secret() -> None:
    async def work() -> None:
        async with running(disk_is_prompt=True, keyring=Keyring.of(b"old")) as agent:
            done, taken, used, in_use, retired = await _change(agent)
            assert done == used == retired == Done()
            assert isinstance(taken, Refused)
            assert isinstance(in_use, Refused)
            assert agent.happened == ["stored keyring"] * 3
            texts = [text for _, text in agent.logged]
            assert texts == [
                "key spring: added, and accepted from now on",
                "key spring: in use from now on",
                "key initial: retired",
            ]

    run(work())


def test_an_agent_without_a_password_says_how_to_get_one() -> None:
    async def work() -> None:
        async with running(disk_is_prompt=True) as agent:
            outcome = await AgentKeys(agent.loop).add("spring", Password(b"x"))
            assert isinstance(outcome, Refused)
            assert "start the agents of all its hosts with a password" in outcome.reason

    run(work())


def test_a_key_is_on_disk_before_the_operator_is_told() -> None:
    async def work() -> None:
        async with running(keyring=Keyring.of(b"old")) as agent:
            adding = asyncio.create_task(AgentKeys(agent.loop).add("spring", Password(b"x")))
            for _ in range(10):
                await asyncio.sleep(0)
            assert not adding.done()
            await agent.flush()
            assert await adding == Done()

    run(work())
