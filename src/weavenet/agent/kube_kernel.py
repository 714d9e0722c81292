"""What a Kubernetes node's kernel must have, looked at once before the agent starts, with words for who has to act.

br_netfilter is why this exists. Pods of one node talk through a bridge, and without that module neither network policy
nor kube-proxy's rules see what passes it; and unlike the rest, it is not loaded by being used.
"""

import logging
import re
import subprocess
from collections.abc import Callable

from weavenet.errors import ConfigError, RefusedError
from weavenet.linux.sysctl import read_sysctl, write_sysctl

LINUX_OLDEST = (5, 8)  # the eBPF ring buffer
LINUX_MEMORY_COUNTED = (5, 11)  # eBPF memory is the cgroup's since then; before, it is counted against RLIMIT_MEMLOCK
_MODPROBE_LIMIT_S = 30
_BRIDGE_CALLS = ("net", "bridge", "bridge-nf-call-iptables")
_RELEASE = re.compile(r"(\d+)\.(\d+)")


def check_release(release: str, log: logging.Logger) -> None:
    """Look at what `uname -r` says. Raises ConfigError for a kernel that is too old."""
    found = _RELEASE.match(release)
    if found is None:
        return
    version = int(found[1]), int(found[2])
    if version < LINUX_OLDEST:
        raise ConfigError(
            f"Linux {release} is too old: the data path needs {LINUX_OLDEST[0]}.{LINUX_OLDEST[1]} or later"
        )
    if version < LINUX_MEMORY_COUNTED:
        log.warning(
            "Linux %s counts eBPF memory as locked: if the agent cannot create its maps, raise the container runtime's "
            "limit (LimitMEMLOCK=infinity)",
            release,
        )


def prepare_bridge_calls(log: logging.Logger, load_module: Callable[[str], str], *, policy: bool) -> None:
    """Have bridged packets pass the host's rules. Raises ConfigError where that cannot be had and policy needs it."""
    failure = ""
    if read_sysctl(*_BRIDGE_CALLS) is None:
        failure = load_module("br_netfilter")
    try:
        done = write_sysctl("1", *_BRIDGE_CALLS)
    except RefusedError as error:
        raise ConfigError(f"{error}; mount the node's /proc/sys/net, as the manifest does") from error
    if done:
        return
    why = f" ({failure})" if failure else ""
    if policy:
        raise ConfigError(
            f"the kernel module br_netfilter is missing{why}, and network policy cannot be enforced without it: "
            "load it on the node (modprobe br_netfilter; a file in /etc/modules-load.d for every boot), "
            "or set EXPECT_NPC=0"
        )
    log.warning(
        "Cannot detect bridge-nf support%s - network policy and iptables mode kubeproxy may not work reliably", why
    )


def load_module(name: str) -> str:
    """Have the kernel load a module; returns why that was not possible, or nothing."""
    try:
        done = subprocess.run(  # noqa: S603 - a name of ours
            ["modprobe", "--", name],  # noqa: S607 - where it is differs from image to image
            capture_output=True,
            text=True,
            timeout=_MODPROBE_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"modprobe: {error}"
    if done.returncode == 0:
        return ""
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"modprobe ended with status {done.returncode}"
