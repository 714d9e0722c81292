"""What an agent needs: how long three hosts take to find each other, and how much memory one takes while it idles."""

import time
from pathlib import Path

import click

from weavenet.errors import LabError
from weavenet.lab.bench_results import Memory
from weavenet.lab.hosts import Lab
from weavenet.lab.process import Process, this_process
from weavenet.lab.record import Paths

HOSTS = 3
POLL_S = 0.01
SETTLE_S = 2.0


def connect(paths: Paths, times: int) -> list[float]:
    """Time fresh labs of three hosts from the start of the first agent until all are connected. Raises LabError."""
    elapsed = []
    for _ in range(times):
        lab = Lab.create(paths, owner=this_process())
        try:
            hosts = [lab.add_host() for _ in range(HOSTS)]
            begin_s = time.monotonic()
            for before, host in zip([None, *hosts], hosts, strict=False):
                lab.start_agent(host, peers=[before.address] if before else [], consensus=HOSTS)
            lab.wait_until_connected(poll_s=POLL_S)
            elapsed.append(time.monotonic() - begin_s)
        finally:
            lab.down()
        click.echo(f"  connected after {elapsed[-1]:.2f} s")
    return elapsed


def memory(lab: Lab) -> list[Memory]:
    """Measure each agent, idle. Raises LabError."""
    time.sleep(SETTLE_S)
    return [_memory_of(host.agent) for host in lab.record.hosts if host.agent is not None]


def _memory_of(agent: Process) -> Memory:
    try:
        children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
        family = [_rollup(int(pid)) for pid in (str(agent.pid), *children)]
    except OSError as error:
        raise LabError(f"cannot read the memory of {agent.what}: {error}") from None
    return Memory(pss_mb=sum(one["Pss"] for one in family), rss_mb=sum(one["Rss"] for one in family))


def _rollup(pid: int) -> dict[str, float]:
    """Return the sums over a process's memory map, in MB: the fields of smaps_rollup are in units of 1,024."""
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return {words[0].rstrip(":"): int(words[1]) * 1024 / 1e6 for words in lines}
