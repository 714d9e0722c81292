"""Measure what following many pods costs: run by hand, `python tests/kube/measure_memory.py [--pods N]`.

The server is a process of its own. Its pods look like real ones (about 5 KB of JSON each); the client keeps name,
namespace, UID, labels, phase and addresses. Printed: resident memory before, at its peak, and after, and user CPU time.
"""

import argparse
import asyncio
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import aclosing
from pathlib import Path

import apiserver
import msgspec

from weavenet.drivers.clock import SystemEntropy, read_clock
from weavenet.kube.access import ApiAccess
from weavenet.kube.client import KubeClient
from weavenet.kube.follow import Listed, Resource
from weavenet.resources import KubeObject, ObjectMeta

PATH = "/api/v1/pods"


class LabelledMeta(ObjectMeta, frozen=True, rename="camel", gc=False):
    labels: Mapping[str, str] | None = None


class PodStatus(msgspec.Struct, frozen=True, rename="camel", gc=False):
    phase: str = ""
    pod_ip: str = msgspec.field(default="", name="podIP")


class Pod(KubeObject, frozen=True, gc=False):
    metadata: LabelledMeta
    status: PodStatus = PodStatus()


def make_pod(number: int) -> apiserver.Json:
    """Return a pod as large as they are: most of it is spec and managedFields."""
    container = {
        "name": "app",
        "image": f"registry.example/app@sha256:{number:064x}",
        "env": [{"name": f"VARIABLE_{each}", "value": f"value-{number}-{each}" * 3} for each in range(25)],
        "volumeMounts": [{"name": f"volume-{each}", "mountPath": f"/mnt/{each}"} for each in range(10)],
    }
    fields = {f"f:field-{each}": {"f:nested": {}, "f:other": {}} for each in range(40)}
    labels = {"app": f"app-{number % 200}", "pod-template-hash": f"{number % 500:010x}", "tier": "web"}
    return {
        "metadata": {
            "name": f"app-{number % 200}-{number:010x}",
            "namespace": f"team-{number % 50}",
            "labels": labels,
            "managedFields": [{"manager": "kubelet", "fieldsV1": fields}],
        },
        "spec": {"nodeName": f"node-{number % 1000}", "containers": [container]},
        "status": {"phase": "Running", "podIP": f"10.32.{number >> 8}.{number & 255}"},
    }


def resident_kb() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Rss")).split()[1])


async def follow(port: int, count: int) -> None:
    client = KubeClient(
        ApiAccess("127.0.0.1", port, None, None), SystemEntropy(), read_clock, logging.getLogger("measure")
    )
    before_kb, began_s = resident_kb(), time.process_time()
    async with aclosing(client.follow(Resource(PATH, Pod))) as stream:
        async for told in stream:
            assert isinstance(told, Listed)
            assert len(told.objects) == count
            break
        peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        after_kb = resident_kb()
        print(f"{count} pods: {before_kb} KB before, {peak_kb} KB at the peak, {after_kb} KB after,")  # noqa: T201
        each = (after_kb - before_kb) * 1024 // count
        print(f"{each} bytes a pod, {time.process_time() - began_s:.2f} s of CPU")  # noqa: T201


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        control = Path(directory) / "api.sock"
        program = [sys.executable, apiserver.__file__, "--control", str(control)]
        with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                port = int(server.stdout.readline().rpartition(":")[2])
                asyncio.run(fill(control, count))
                asyncio.run(follow(port, count))
            finally:
                server.terminate()


async def fill(control: Path, count: int) -> None:
    reader, writer = await asyncio.open_unix_connection(control)
    size = 0
    for number in range(count):
        line = json.dumps({"do": "put", "path": PATH, "object": make_pod(number)}).encode() + b"\n"
        size += len(line)
        writer.write(line)
        await reader.readline()
    writer.close()
    print(f"{size // count} bytes of JSON a pod")  # noqa: T201


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=10_000)
    main(parser.parse_args().pods)
