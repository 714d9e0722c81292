"""A cluster for tests: a client of the API server of the tests, and objects to put in it."""

import logging

from apiserver import ApiServer, Json

from weavenet.effects import Now
from weavenet.kube.access import ApiAccess, TokenFile
from weavenet.kube.client import KubeClient

NODES = "/api/v1/nodes"
LOG = logging.getLogger("test.kube")


class Halves:
    """Entropy without surprises."""

    def bits(self, count: int) -> int:
        return 1 << (count - 1)

    def octets(self, count: int) -> bytes:
        return bytes(count)

    def fraction(self) -> float:
        return 0.5


def node(name: str, *addresses: str, **condition: str) -> Json:
    conditions = [{"type": kind, "status": status} for kind, status in condition.items()]
    listed = [{"type": "InternalIP", "address": address} for address in addresses]
    return {"metadata": {"name": name}, "status": {"addresses": listed, "conditions": conditions}}


def client_of(server: ApiServer, token: TokenFile | None = None) -> KubeClient:
    access = ApiAccess("127.0.0.1", server.port, None, token)
    return KubeClient(access, Halves(), lambda: Now(0.0, 1_700_000_000.0), LOG)
