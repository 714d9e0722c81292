"""A pod, as far as it says what networks it wants: asked for once, when its network is made."""

from urllib.parse import quote

import msgspec

from weavenet.errors import KubeAnswerError
from weavenet.kube.client import KubeClient
from weavenet.kube.http import Request
from weavenet.resources import AnnotatedMeta

ANSWER_S = 5.0  # of the time that a runtime gives a pod's network; it comes again


class _Pod(msgspec.Struct, frozen=True):
    metadata: AnnotatedMeta


async def get_pod_metadata(client: KubeClient, namespace: str, name: str) -> AnnotatedMeta:
    """Return a pod's metadata as they are now. Raises KubeError; one that `says_absent` if there is none."""
    path = f"/api/v1/namespaces/{quote(namespace, safe='')}/pods/{quote(name, safe='')}"
    body = await client.send(Request("GET", path), timeout_s=ANSWER_S)
    try:
        return msgspec.json.decode(body, type=_Pod).metadata
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise KubeAnswerError(f"pod {namespace}/{name} does not decode: {error}") from error
