"""The node is told that it has a network, once, in Weave's words."""

import asyncio

from apiserver import ApiServer
from cluster import NODES, client_of, node

from weavenet.kube.node_status import say_network_is_there


def test_a_node_without_network_is_told_once_and_keeps_its_other_conditions() -> None:
    async def scenario() -> None:
        server = ApiServer()
        await server.start()
        server.put(NODES, node("a", "10.0.0.1", Ready="True", NetworkUnavailable="True"))
        # What the manifest grants, and nothing more.
        server.rules = [
            {"verbs": ["get", "list", "watch"], "resource": "nodes"},
            {"verbs": ["patch"], "resource": "nodes/status"},
        ]
        client = client_of(server)
        try:
            assert await say_network_is_there(client, "a", 1_700_000_000.0)
            assert not await say_network_is_there(client, "a", 1_700_000_001.0)
            assert len(server.asked("patch")) == 1
            assert server.get(NODES, "a")["status"]["conditions"] == [  # type: ignore[index]
                {"type": "Ready", "status": "True"},
                {
                    "type": "NetworkUnavailable",
                    "status": "False",
                    "reason": "WeaveIsUp",
                    "message": "Weave pod has set this",
                    "lastHeartbeatTime": "2023-11-14T22:13:20Z",
                    "lastTransitionTime": "2023-11-14T22:13:20Z",
                },
            ]
        finally:
            await server.stop()

    asyncio.run(scenario())
