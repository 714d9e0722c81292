"""The objects of a manifest, as plain values, in the order they are applied and deleted in.

The DaemonSet comes first. `kubectl delete -f` goes through a file from the top, and an agent learns from the API that
its DaemonSet is gone, whereupon it takes down what it has built on its node; so what grants it that view goes last. At
`kubectl apply` the order costs nothing: pods wait for their service account, and are tried again.

Names and labels are Weave's, so that this replaces Weave Net in place: `kubectl apply` over its manifest turns one
rolling update into the change from one to the other. The selector `name=weave-net` is what the API forbids to change.
"""

from typing import Final

from weavenet.manifest.daemonset import Value, daemon_set
from weavenet.manifest.options import ManifestOptions

NAME: Final = "weave-net"
NAMESPACE: Final = "kube-system"

_RBAC = "rbac.authorization.k8s.io"
_READ = ["get", "list", "watch"]


def manifest(options: ManifestOptions) -> dict[str, Value]:
    """Return the one List of everything."""
    return {"apiVersion": "v1", "kind": "List", "items": [*objects(options)]}


def objects(options: ManifestOptions) -> list[dict[str, Value]]:
    """Return all objects, in order."""
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": _metadata(namespaced=True),
            "spec": daemon_set(options),
        },
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _metadata(namespaced=True)},
        {
            "apiVersion": f"{_RBAC}/v1",
            "kind": "ClusterRole",
            "metadata": _metadata(namespaced=False),
            "rules": [*cluster_rules(network_policy=options.network_policy)],
        },
        _binding("ClusterRole", namespaced=False),
        {
            "apiVersion": f"{_RBAC}/v1",
            "kind": "Role",
            "metadata": _metadata(namespaced=True),
            "rules": [*namespace_rules()],
        },
        _binding("Role", namespaced=True),
    ]


def cluster_rules(*, network_policy: bool) -> list[dict[str, Value]]:
    """Return what an agent may do everywhere: see nodes, say that a network is up, see pods, and what policies need."""
    rules: list[dict[str, Value]] = [
        # Who the peers are, and which of them are gone for good.
        {"apiGroups": [""], "resources": ["nodes"], "verbs": [*_READ]},
        # The condition NetworkUnavailable, which cloud providers set and leave to the network to clear. RBAC cannot say
        # "the node that this pod is on"; admission (the NodeRestriction of kubelets) does not know service accounts.
        {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
    ]
    if not network_policy:
        # What a pod's annotations ask for; asked only where the administrator has defined networks.
        rules.append({"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]})
    else:
        rules += [
            {"apiGroups": [""], "resources": ["pods", "namespaces"], "verbs": [*_READ]},
            {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": [*_READ]},
        ]
    return rules


def namespace_rules() -> list[dict[str, Value]]:
    """Return what an agent may do in kube-system: keep the list of peers, and see whether it is still wanted."""
    return [
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [NAME], "verbs": ["get", "update"]},
        # A name cannot be asked for before the object has one (Kubernetes, "Using RBAC", "Referring to resources").
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create"]},
        # List and watch pass with a field selector metadata.name=weave-net (same section).
        {"apiGroups": ["apps"], "resources": ["daemonsets"], "resourceNames": [NAME], "verbs": [*_READ]},
    ]


def _metadata(*, namespaced: bool) -> dict[str, Value]:
    metadata: dict[str, Value] = {"name": NAME, "labels": {"name": NAME}}
    return {**metadata, "namespace": NAMESPACE} if namespaced else metadata


def _binding(role: str, *, namespaced: bool) -> dict[str, Value]:
    return {
        "apiVersion": f"{_RBAC}/v1",
        "kind": f"{role}Binding",
        "metadata": _metadata(namespaced=namespaced),
        "roleRef": {"apiGroup": _RBAC, "kind": role, "name": NAME},
        "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}],
    }
