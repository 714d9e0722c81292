"""How long CNI takes: weavenet's executable beside Debian's `bridge` and `host-local` plugins, on the same host.

Both attach a pod to a bridge, give it an address and a default route. Namespaces are made beforehand and used again, so
that what is timed is the plugin: its start, its work, its end. They take turns, call by call.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from weavenet.lab.bench_results import CniResult
from weavenet.lab.hosts import Lab
from weavenet.lab.record import HostRecord
from weavenet.lab.runtime import Network, Sandbox

DEBIAN_PLUGINS = Path("/usr/lib/cni")
WARM_UP = 3
T = TypeVar("T")


def debian(lab: Lab, host: HostRecord) -> Network:
    """Return Debian's bridge and host-local plugins as a runtime would be configured for them."""
    configuration = {
        "cniVersion": "1.0.0",
        "name": "debian",
        "type": "bridge",
        "bridge": "brdebian",
        "isGateway": True,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "10.246.0.0/16"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(lab.paths.state / "host-local"),
        },
    }
    return Network(DEBIAN_PLUGINS, lab.namespace(host.name), configuration, dict(os.environ))


def measure(lab: Lab, calls: int, *, with_weavenet: bool) -> list[CniResult]:
    """Time ADD, DEL and VERSION. Raises LabError."""
    host = lab.record.hosts[0]
    contenders = [("bridge and host-local (Debian)", debian(lab, host))]
    if with_weavenet:
        contenders.append(("weavenet", lab.network(host)))
    pods = [lab.make_pod(f"cni-{number}", host) for number in range(len(contenders))]
    timed = [
        (CniResult(title), network, lab.sandbox(pod)) for (title, network), pod in zip(contenders, pods, strict=True)
    ]
    for count in range(WARM_UP + calls):
        for result, network, sandbox in timed:
            _once(result if count >= WARM_UP else CniResult(""), network, sandbox)
    for pod in pods:
        lab.remove_pod(pod)
    click.echo(f"  {calls} rounds of ADD, DEL and VERSION of {' and '.join(title for title, _ in contenders)}")
    return [result for result, _, _ in timed]


def _once(result: CniResult, network: Network, sandbox: Sandbox) -> None:
    version_ms, _ = _timed(network.version)
    add_ms, answer = _timed(lambda: network.add(sandbox))
    del_ms, _ = _timed(lambda: network.delete(sandbox, answer))
    result.version_ms.append(version_ms)
    result.add_ms.append(add_ms)
    result.del_ms.append(del_ms)


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    begin_ns = time.perf_counter_ns()
    answer = work()
    return (time.perf_counter_ns() - begin_ns) / 1e6, answer
