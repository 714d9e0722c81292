"""The DaemonSet: one pod per node, with no more rights than its work needs.

The pod is on the host's network and in none of its other namespaces. No container is privileged; every capability is
dropped, and those that come back have their reason below. Root file systems are read-only; the runtime's default
seccomp profile applies, which opens setns(2) and bpf(2) to who has CAP_SYS_ADMIN (containerd and CRI-O, default
profile), and its AppArmor profile, which gets in the way of none of this.

What an unprivileged container is denied and a network agent needs:

* /proc/sys is mounted read-only. The node's /proc/sys/net is mounted beside it; below it every thread sees the network
  namespace it is in, so it serves the node and the pods (linux/sysctl.py finds it by itself).
* SELinux, where it is on, keeps containers from the node's files and settings. The type `spc_t` is what privileged
  containers run as; where SELinux is off, the runtime does not look at it.
* No mount(2), hence no mount propagation: the eBPF programs are held by the device they are attached to.

There is no surge in an update: two agents cannot share a node's ports. maxUnavailable 1 is the control plane of one
node at a time; pods' traffic flows on meanwhile.
"""

from typing import Final, TypeAlias

from weavenet.manifest.options import ManifestOptions, parse_listener

Value: TypeAlias = str | int | bool | list["Value"] | dict[str, "Value"]

SELECTOR: Final[dict[str, Value]] = {"name": "weave-net"}
STATUS_ADDRESS: Final = "127.0.0.1:6784"
_ANY_ADDRESS = ("", "0.0.0.0")  # noqa: S104 - recognised, not listened at

_AGENT_CAPABILITIES: Final[list[Value]] = [
    # Directories for plugins and their configuration belong to other users on some nodes (Kubespray: `kube`), and to
    # write in them takes more than being root.
    "DAC_OVERRIDE",
    # Devices, addresses, routes, traffic control and nftables, here and in pods; sysctls below net/.
    "NET_ADMIN",
    # Packet sockets: heartbeats that the VXLAN device drops, gratuitous ARP.
    "NET_RAW",
    # setns(2) into pods' network namespaces, which CAP_NET_ADMIN does not give (setns(2), "Network namespaces"); and
    # bpf(2), to load programs and to find those that a device runs already. The narrower CAP_BPF and CAP_PERFMON give
    # neither the first nor the last (BPF_PROG_GET_FD_BY_ID; tried), they add nothing to SYS_ADMIN, and runtimes from
    # before they existed refuse to start a container that asks for them (moby issue 41562).
    "SYS_ADMIN",
]
_INIT_CAPABILITIES: Final[list[Value]] = [
    # As above.
    "DAC_OVERRIDE",
    # The sysctls of br_netfilter are below net/.
    "NET_ADMIN",
    # br_netfilter itself: it is not loaded by use.
    "SYS_MODULE",
]


def daemon_set(options: ManifestOptions) -> dict[str, Value]:
    """Return the spec of the DaemonSet."""
    return {
        "minReadySeconds": 5,
        "selector": {"matchLabels": {**SELECTOR}},
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
        "template": {"metadata": {"labels": {**SELECTOR}}, "spec": _pod(options)},
    }


def _pod(options: ManifestOptions) -> dict[str, Value]:
    return {
        "serviceAccountName": "weave-net",
        "priorityClassName": "system-node-critical",
        # Before there is a network, nodes are tainted not-ready; and a node that is drained still needs one.
        "tolerations": [
            {"effect": "NoSchedule", "operator": "Exists"},
            {"effect": "NoExecute", "operator": "Exists"},
        ],
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "hostNetwork": True,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "securityContext": {
            "seLinuxOptions": {"type": "spc_t", **dict(options.selinux)},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "initContainers": [_init_container(options)],
        "containers": [_agent_container(options)],
        "volumes": _volumes(),
    }


def _init_container(options: ManifestOptions) -> dict[str, Value]:
    variables = _variables(_given(options))
    environment: dict[str, Value] = {"env": variables} if variables else {}
    return {
        "name": "weave-init",
        "image": options.image,
        "command": ["weave-kube", "init"],
        **environment,
        "securityContext": _rights(_INIT_CAPABILITIES),
        "volumeMounts": [
            {"name": "cni-bin", "mountPath": "/host/opt"},
            {"name": "cni-bin2", "mountPath": "/host/home"},
            {"name": "proc-sys-net", "mountPath": "/host/proc/sys/net"},
            {"name": "lib-modules", "mountPath": "/lib/modules", "readOnly": True},
        ],
    }


def _agent_container(options: ManifestOptions) -> dict[str, Value]:
    subnets = ",".join(str(subnet) for subnet in options.trusted_subnets)
    return {
        "name": "weave",
        "image": options.image,
        "command": ["weave-kube", "launch", *([f"--trusted-subnets={subnets}"] if subnets else [])],
        "env": [
            {"name": "HOSTNAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "spec.nodeName"}}},
            {"name": "INIT_CONTAINER", "value": "true"},
            *_variables(_given(options)),
            *_variables(_of_agent(options)),
            *_password(options.password_secret),
        ],
        **_probes(options),
        # An agent takes 52 MB in a cluster of two nodes, and would take 10 more for ten thousand pods
        # (docs/kubernetes.md, "What it costs"); the rest is for large meshes. Nothing limits the CPU: a throttled
        # network is worse than a busy one.
        "resources": {"requests": {"cpu": "50m", "memory": "100Mi"}},
        "securityContext": _rights(_AGENT_CAPABILITIES),
        "volumeMounts": [
            {"name": "weavedb", "mountPath": "/weavedb"},
            {"name": "run-weavenet", "mountPath": "/run/weavenet"},
            {"name": "cni-bin", "mountPath": "/host/opt"},
            {"name": "cni-bin2", "mountPath": "/host/home"},
            {"name": "cni-conf", "mountPath": "/host/etc/cni/net.d"},
            {"name": "proc-sys-net", "mountPath": "/host/proc/sys/net"},
            {"name": "cni-machine-id", "mountPath": "/host/etc/machine-id", "readOnly": True},
            {"name": "dbus", "mountPath": "/host/var/lib/dbus", "readOnly": True},
            {"name": "networks", "mountPath": "/etc/weavenet/networks", "readOnly": True},
        ],
    }


def _given(options: ManifestOptions) -> list[tuple[str, str]]:
    """Return the user's variables, and what the init container has to know as well."""
    policy = () if options.network_policy else (("EXPECT_NPC", "0"),)
    return list(dict([*options.environment, *policy]).items())


def _of_agent(options: ManifestOptions) -> list[tuple[str, str]]:
    peers = [("KUBE_PEERS", " ".join(options.known_peers))] if options.known_peers else []
    keep = [("WEAVE_KEEP_STATE", "1")] if options.keep_state else []
    return [*peers, *keep]


def _variables(pairs: list[tuple[str, str]]) -> list[Value]:
    return [{"name": name, "value": value} for name, value in pairs]


def _password(secret: str) -> list[Value]:
    # The key is the secret's own name, as `kubectl create secret generic NAME --from-file=NAME` makes it.
    source: Value = {"secretKeyRef": {"name": secret, "key": secret}}
    return [{"name": "WEAVE_PASSWORD", "valueFrom": source}] if secret else []


def _rights(capabilities: list[Value]) -> dict[str, Value]:
    rights: dict[str, Value] = {
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"], "add": [*capabilities]},
    }
    # The API takes this to be true for whoever has SYS_ADMIN, and may refuse to be told otherwise.
    return rights if "SYS_ADMIN" in capabilities else {"allowPrivilegeEscalation": False, **rights}


def _probes(options: ManifestOptions) -> dict[str, Value]:
    """Ask the agent's loop: /status is 503 until a pod can get its network; /metrics answers as long as the loop turns.

    So readiness goes by the one. The others go by the other, with patience: an agent that waits for its peers to agree
    on a range must not be ended for it, nor one on a node that is busy.
    """
    host, port = parse_listener("env.WEAVE_STATUS_ADDR", options.variable("WEAVE_STATUS_ADDR") or STATUS_ADDRESS)
    where: dict[str, Value] = {"host": "127.0.0.1" if host in _ANY_ADDRESS else host, "port": port}
    ready: Value = {"path": "/status", **where}
    alive: Value = {"path": "/metrics", **where}
    return {
        "startupProbe": {"httpGet": alive, "periodSeconds": 2, "timeoutSeconds": 5, "failureThreshold": 150},
        "readinessProbe": {"httpGet": ready, "periodSeconds": 10, "timeoutSeconds": 5},
        "livenessProbe": {"httpGet": alive, "periodSeconds": 30, "timeoutSeconds": 10, "failureThreshold": 4},
    }


def _volumes() -> list[Value]:
    paths = (
        ("weavedb", "/var/lib/weave", "DirectoryOrCreate"),
        ("run-weavenet", "/run/weavenet", "DirectoryOrCreate"),
        # Whole directories, as in Weave's manifest: where plugins live below them differs from distribution to
        # distribution, and WEAVE_CNI_PLUGIN_DIR says where.
        ("cni-bin", "/opt", ""),
        ("cni-bin2", "/home", ""),
        ("cni-conf", "/etc/cni/net.d", "DirectoryOrCreate"),
        ("cni-machine-id", "/etc/machine-id", ""),
        ("dbus", "/var/lib/dbus", ""),
        ("lib-modules", "/lib/modules", ""),
        ("proc-sys-net", "/proc/sys/net", "Directory"),
    )
    # What networks pods may ask for beside their first one (docs/several-networks.md); most clusters define none.
    networks: Value = {"name": "networks", "configMap": {"name": "weave-networks", "optional": True}}
    return [*(_host_path(*path) for path in paths), networks]


def _host_path(name: str, path: str, kind: str) -> Value:
    checked: dict[str, Value] = {"type": kind} if kind else {}
    return {"name": name, "hostPath": {"path": path, **checked}}
