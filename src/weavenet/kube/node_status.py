"""Telling Kubernetes that this node has a network.

Some cloud providers put NetworkUnavailable=True on a new node, since they would make routes for it, and pods are not
scheduled there until somebody says otherwise. Reason and message are Weave's, from its prog/kube-utils.
"""

from datetime import UTC, datetime
from urllib.parse import quote

import msgspec

from weavenet.errors import KubeAnswerError
from weavenet.kube.client import KubeClient
from weavenet.kube.http import Request
from weavenet.resources import NETWORK_UNAVAILABLE, Node

STRATEGIC_MERGE = "application/strategic-merge-patch+json"
NODES_PATH = "/api/v1/nodes"


def is_said(node: Node) -> bool:
    """Say whether the node already says that its network is there."""
    return node.condition(NETWORK_UNAVAILABLE) == "False"


def encode_patch(wall_s: float) -> bytes:
    """Write the patch that says so, merged into the other conditions by its type."""
    now = datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    condition = {
        "type": NETWORK_UNAVAILABLE,
        "status": "False",
        "reason": "WeaveIsUp",
        "message": "Weave pod has set this",
        "lastHeartbeatTime": now,
        "lastTransitionTime": now,
    }
    return msgspec.json.encode({"status": {"conditions": [condition]}})


def node_path(name: str) -> str:
    """Return where a node is."""
    return f"{NODES_PATH}/{quote(name, safe='')}"


async def get_node(client: KubeClient, name: str) -> Node:
    """Return a node as it is now. Raises KubeError; KubeStatusError with 404 is the word that there is none."""
    body = await client.send(Request("GET", node_path(name)))
    try:
        return msgspec.json.decode(body, type=Node)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise KubeAnswerError(f"the node {name} does not decode: {error}") from error


async def say_network_is_there(client: KubeClient, name: str, wall_s: float) -> bool:
    """Make the node say that its network is there. Return whether it had to be told. Raises KubeError."""
    if is_said(await get_node(client, name)):
        return False
    target = f"{node_path(name)}/status"
    await client.send(Request("PATCH", target, encode_patch(wall_s), STRATEGIC_MERGE))
    return True
