"""The DaemonSet that runs us: one object, followed by its name, which is all that our role allows."""

from urllib.parse import quote

import msgspec

from weavenet.errors import KubeAnswerError
from weavenet.kube.client import KubeClient
from weavenet.kube.follow import Resource
from weavenet.kube.http import Request
from weavenet.resources import DaemonSet

_NAME = "metadata.name="


def daemonset_resource(namespace: str, name: str) -> Resource[DaemonSet]:
    """Return the collection that has this one in it, or nothing."""
    return Resource(f"/apis/apps/v1/namespaces/{namespace}/daemonsets", DaemonSet, field_selector=f"{_NAME}{name}")


async def get_daemonset(client: KubeClient, resource: Resource[DaemonSet]) -> DaemonSet:
    """Return it as it is now. Raises KubeError; one that `says_absent` if there is none."""
    name = resource.field_selector.removeprefix(_NAME)
    body = await client.send(Request("GET", f"{resource.path}/{quote(name, safe='')}"))
    try:
        return msgspec.json.decode(body, type=DaemonSet)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise KubeAnswerError(f"DaemonSet {name} does not decode: {error}") from error
