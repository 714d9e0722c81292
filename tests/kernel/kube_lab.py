"""A Kubernetes cluster as far as weavenet can see it: an API server for tests, lab hosts as nodes, the manifest's pods.

The API server is on the first lab host, with TLS, and grants what the manifest's roles grant. On each other host runs
what the manifest's DaemonSet says (kubelet.py), and pods are added as a runtime adds them, by what that has installed.
"""

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apiserver
import mesh_lab
from certificates import Certificate, make_certificate
from kubelet import Pod, ServiceAccount
from mesh_lab import until

from weavenet.lab import process, runtime
from weavenet.lab.hosts import Lab
from weavenet.lab.record import HostRecord, PodRecord
from weavenet.manifest.objects import NAME, NAMESPACE, objects
from weavenet.manifest.options import ImageSource, parse_options

NODES, DAEMONSETS = "/api/v1/nodes", "/apis/apps/v1/namespaces/kube-system/daemonsets"
CONFIG_MAPS = "/api/v1/namespaces/kube-system/configmaps"
CONDITION = {"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"}
PORT = 6443
IMAGE = ImageSource("registry.example/weavenet", "test")


@dataclass
class Cluster:
    """Hosts, of which the first has the API server and no agent."""

    lab: Lab
    base: Path
    api: HostRecord
    certificate: Certificate
    nodes: list[HostRecord] = field(default_factory=list)
    accounts: dict[str, ServiceAccount] = field(default_factory=dict)

    # --- the API server

    def tell(self, do: str, **words: object) -> Any:
        """Give the API server a command, and return what it answers."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
            control.settimeout(mesh_lab.LIMIT_S)
            control.connect(str(self.base / "api.sock"))
            control.sendall(json.dumps({"do": do, **words}).encode() + b"\n")
            answer = control.makefile().readline()
        assert answer, f"the API server refused {do} {words}"
        return json.loads(answer)["result"]

    def put_node(self, name: str, address: str) -> None:
        addresses = [{"type": "InternalIP", "address": address}]
        status = {"addresses": addresses, "conditions": [CONDITION, {"type": "Ready", "status": "True"}]}
        self.tell("put", path=NODES, object={"metadata": {"name": name}, "status": status})

    def put_daemonset(self) -> None:
        self.tell("put", path=DAEMONSETS, object={"metadata": {"name": NAME}})

    def uninstall(self, *nodes: HostRecord) -> None:
        """Do what `kubectl delete -f` of the manifest does, and then what kubelet does on these nodes."""
        self.tell("drop", path=DAEMONSETS, name=NAME)
        for node in nodes:
            mesh_lab.until_logged(self.lab, node, "Our DaemonSet has been deleted")
        self.tell("deny_all")
        for node in nodes:
            self.end(node)

    # --- nodes and the agents on them

    def root(self, node: HostRecord) -> Path:
        """Return what stands for a node's file system."""
        return self.base / node.name

    def conflist(self, node: HostRecord) -> Path:
        return self.root(node) / "etc/cni/net.d/10-weave.conflist"

    def plugins(self, node: HostRecord) -> Path:
        return self.root(node) / "opt/cni/bin"

    def add_node(self) -> HostRecord:
        """Make a node: a host, with what any node has on its disk, and an object of the API."""
        node = self.lab.add_host()
        self.nodes.append(node)
        for directory in ("opt/cni/bin", "home", "etc/cni/net.d", "var/lib/dbus", "run"):
            (self.root(node) / directory).mkdir(parents=True)
        (self.root(node) / "opt/cni/bin/loopback").write_text("somebody else's plugin")
        (self.root(node) / "etc/machine-id").write_text(f"{node.number:032x}\n")
        self.accounts[node.name] = ServiceAccount(self.base / f"{node.name}.account")
        self.write_account(node)
        self.put_node(node.name, node.address)
        return node

    def write_account(self, node: HostRecord, token: str = "first", certificate: Path | None = None) -> None:
        """Write, or write anew, what a pod on a node shows to the API, and believes of it."""
        authority = (certificate or self.certificate.certificate).read_text()
        self.accounts[node.name].write(**{"token": token, "ca.crt": authority, "namespace": NAMESPACE})

    def start(self, node: HostRecord, **parameters: str) -> None:
        """Run the DaemonSet's pod: the init container, then the agent. Parameters are the manifest's."""
        pod = self._pod(node, parameters)
        inside = self.lab.namespace(node.name)
        process.run(pod.init_command(), namespace=inside)
        node.agent = process.start(
            pod.command(), what=f"the agent of {node.name}", namespace=inside, log=self.lab.paths.log(node)
        )
        self.lab.paths.save(self.lab.record)
        until(lambda: mesh_lab.answers(self.lab, node), f"{node.name} answers", self.lab, node)
        until(self.conflist(node).exists, f"{node.name} has a network", self.lab, node)

    def _pod(self, node: HostRecord, parameters: Mapping[str, str]) -> Pod:
        # Peer names are made from what hosts of a lab share; so they are given here, and by them the lab knows hosts.
        given = {"env.EXTRA_ARGS": f"--name={node.peer_name}", **parameters}
        (daemonset,) = (each for each in objects(parse_options(given.items(), IMAGE)) if each["kind"] == "DaemonSet")
        return Pod(
            spec=daemonset["spec"],  # type: ignore[arg-type]
            node=self.root(node),
            node_name=node.name,
            stage=self.base / f"{node.name}.pod",
            account=self.accounts[node.name],
            environment={"KUBERNETES_SERVICE_HOST": self.api.address, "KUBERNETES_SERVICE_PORT": str(PORT)},
            elsewhere={"/run/weavenet": self.lab.paths.host(node)},
        )

    def end(self, node: HostRecord) -> None:
        """End a node's pod as kubelet does, and wait."""
        assert node.agent is not None
        agent = node.agent
        os.kill(agent.pid, signal.SIGTERM)
        until(lambda: not agent.is_alive(), f"the agent of {node.name} ends", self.lab, node)
        node.agent = None
        self.lab.paths.save(self.lab.record)

    # --- pods

    def add_pod(self, node: HostRecord, name: str, **runtime_config: object) -> tuple[PodRecord, str]:
        """Add a pod as a runtime does: by the conflist and the executables on the node."""
        pod = self.lab.make_pod(name, node)
        result = self.network(node, **runtime_config).add(self.lab.sandbox(pod))
        pod.address, _, _ = runtime.address_of(result).partition("/")
        return pod, result

    def network(self, node: HostRecord, **runtime_config: object) -> runtime.Network:
        """Return the network as a runtime on a node reads it from the conflist."""
        written = json.loads(self.conflist(node).read_text())
        (plugin,) = written["plugins"]
        configuration = {**plugin, "name": written["name"], "cniVersion": written["cniVersion"]}
        configuration["runtimeConfig"] = runtime_config
        return runtime.Network(
            self.plugins(node), self.lab.namespace(node.name), configuration, self.lab.environment(node)
        )


def granted_rules() -> list[object]:
    """Return what the manifest's roles grant, in the words of the API server for tests."""
    rules: list[object] = []
    for each in objects(parse_options((), IMAGE)):
        namespace = {"namespace": NAMESPACE} if each["kind"] == "Role" else {}
        for rule in each.get("rules", ()):  # type: ignore[union-attr]
            names = {"names": rule["resourceNames"]} if "resourceNames" in rule else {}  # type: ignore[index,operator]
            rules += [
                {"verbs": rule["verbs"], "resource": resource, **names, **namespace}  # type: ignore[index]
                for resource in rule["resources"]  # type: ignore[index,union-attr]
            ]
    return rules


@contextlib.contextmanager
def running_cluster(base: Path) -> Iterator[Cluster]:
    """Have an API server, and a DaemonSet in it, but no nodes."""
    with mesh_lab.empty_lab(base, "kube") as lab, contextlib.ExitStack() as stack:
        api = lab.add_host()
        cluster = Cluster(lab, base, api, make_certificate(base, "api", api.address))
        listen, control = f"{api.address}:{PORT}", base / "api.sock"
        tls = map(str, cluster.certificate)
        program = [sys.executable, apiserver.__file__, "--listen", listen, "--control", str(control)]
        server = lab.start("api", [*program, "--token", "first", "--tls", *tls], where=api.name)
        stack.callback(lab.finish, server)
        until(control.exists, "the API server listens")
        cluster.tell("allow_only", rules=granted_rules())
        cluster.put_daemonset()
        yield cluster
