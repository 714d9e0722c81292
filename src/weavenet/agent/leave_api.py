"""The control API's part about the end of this agent: `weave stop` and `weave reset`. At the Unix socket alone.

    POST  /stop    end the agent, as SIGTERM does; pods keep their network
    GET   /reset   how `weaver --reset` is to be called, so that it removes what this agent has made: a list, as JSON

The agent does not remove itself: the same program does that after its end which does it without an agent, and what it
did can be told to whoever asked.
"""

import asyncio

import msgspec

from weavenet.agent.config import AgentConfig
from weavenet.agent.dispatch import BAD_REQUEST, NO_CONTENT, OK, Call, Route, text
from weavenet.agent.reset import reset_arguments
from weavenet.api.schema import JSON
from weavenet.drivers.http import Response

_OF_KUBERNETES = (
    "this agent belongs to Kubernetes, which would start it again at once: delete the DaemonSet with the manifest that "
    "made it (kubectl delete -f ...), and every node is left as it was found\n"
)


def leave_routes(config: AgentConfig, ended: asyncio.Event) -> list[Route]:
    """Return the routes for `make_control_application`; `ended` is set when the agent is to end."""

    async def stop(_: Call) -> Response:
        ended.set()
        return Response(NO_CONTENT)

    async def reset(_: Call) -> Response:
        if config.kube is not None:
            return text(_OF_KUBERNETES, BAD_REQUEST)
        return Response(OK, msgspec.json.encode(reset_arguments(config)), JSON)

    return [Route("POST", "/stop", stop), Route("GET", "/reset", reset)]
