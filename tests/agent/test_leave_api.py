"""`weave stop` and `weave reset` at the agent's end."""

import asyncio
import json
import logging

import pytest
from weaver_flags import config_of

from weavenet.agent.dispatch import make_application
from weavenet.agent.leave_api import leave_routes
from weavenet.agent.reset import reset_arguments
from weavenet.drivers.http import Request, Response


def ask(method: str, target: str, *flags: str) -> tuple[Response, bool]:
    async def asked() -> tuple[Response, bool]:
        ended = asyncio.Event()
        application = make_application(logging.getLogger("test"), leave_routes(config_of(*flags), ended))
        return await application(Request(method, target, {}, b"")), ended.is_set()

    return asyncio.run(asked())


@pytest.mark.parametrize("flags", [(), ("--kube-node=one", "--kube-api=https://192.0.2.1:6443")])
def test_a_stop_ends_the_agent_and_is_answered(flags: tuple[str, ...]) -> None:
    assert ask("POST", "/stop", *flags) == (Response(204), True)


def test_how_to_remove_all_is_told_and_ends_nothing() -> None:
    reply, has_ended = ask("GET", "/reset", "--port=7000")
    assert (json.loads(reply.body), has_ended) == (reset_arguments(config_of("--port=7000")), False)


def test_an_agent_of_kubernetes_is_not_reset_as_it_would_be_back_at_once() -> None:
    reply, has_ended = ask("GET", "/reset", "--kube-node=one", "--kube-api=https://192.0.2.1:6443")
    assert (reply.status, has_ended) == (400, False)
    assert b"delete the DaemonSet" in reply.body
