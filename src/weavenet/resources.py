"""The fields of Kubernetes objects that we read, and no others.

A decoder drops what is not named here, so a watch of ten thousand pods keeps a few hundred bytes of each and not the
ten kilobytes that the API sends. The structs are values without cycles, which is why the garbage collector need not
look at them (`gc=False`). What the API may leave out has a default; what Go may write as `null` for an empty list or
map says so.

To change an object, do not encode one of these: what we do not read would be lost (kube/peer_list.py keeps the rest).
Source: the API reference, kubernetes.io/docs/reference/kubernetes-api.
"""

from collections.abc import Mapping

import msgspec

NETWORK_UNAVAILABLE = "NetworkUnavailable"
ORPHAN_FINALIZER = "orphan"  # a DaemonSet that goes and leaves its pods: `kubectl delete --cascade=orphan`


class ObjectMeta(msgspec.Struct, frozen=True, rename="camel", gc=False):
    """What every object has."""

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    deletion_timestamp: str | None = None
    finalizers: tuple[str, ...] | None = None


class KubeObject(msgspec.Struct, frozen=True, gc=False):
    """An object of any kind, as far as following a collection of them needs."""

    metadata: ObjectMeta

    @property
    def key(self) -> tuple[str, str]:
        """Where the object is: another may take its place, with another UID."""
        return (self.metadata.namespace, self.metadata.name)


# --- nodes ------------------------------------------------------------------------------------------------------------


class NodeAddress(msgspec.Struct, frozen=True, gc=False):
    """One address of a node: InternalIP, ExternalIP, Hostname, ..."""

    type: str
    address: str


class NodeCondition(msgspec.Struct, frozen=True, gc=False):
    """One condition of a node; the status is True, False or Unknown, as text."""

    type: str
    status: str


class NodeStatus(msgspec.Struct, frozen=True, gc=False):
    """Where a node can be reached, and how it is."""

    addresses: tuple[NodeAddress, ...] | None = None
    conditions: tuple[NodeCondition, ...] | None = None


class Node(KubeObject, frozen=True, gc=False):
    """A node of the cluster."""

    status: NodeStatus = NodeStatus()

    def condition(self, kind: str) -> str | None:
        """Return the status of a condition; None if the node has no such condition."""
        return next((each.status for each in self.status.conditions or () if each.type == kind), None)


# --- configuration ----------------------------------------------------------------------------------------------------


class AnnotatedMeta(ObjectMeta, frozen=True, rename="camel", gc=False):
    """Metadata of the one object whose annotations we read."""

    annotations: Mapping[str, str] | None = None


class ConfigMap(msgspec.Struct, frozen=True, gc=False):
    """A ConfigMap that carries annotations and no data that we would read."""

    metadata: AnnotatedMeta


# --- workloads --------------------------------------------------------------------------------------------------------


class DaemonSet(KubeObject, frozen=True, gc=False):
    """What runs us: only whether it is there, is going, and leaves its pods behind."""

    @property
    def is_going(self) -> bool:
        """Whether it has been deleted and what depends on it is being removed first."""
        return self.metadata.deletion_timestamp is not None

    @property
    def leaves_pods(self) -> bool:
        """Whether it is going without its pods, for another one to adopt them."""
        return ORPHAN_FINALIZER in (self.metadata.finalizers or ())
