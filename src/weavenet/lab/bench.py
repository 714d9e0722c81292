"""The benchmarks: everything in one run, and what is compared in turns (`make bench`).

The machine's other work, its heat and its neighbours change from minute to minute by more than what is to be seen here.
So nothing is compared with an earlier run: each round measures every path once, the next round starts with another one,
and ratios are taken within a round.
"""

import os
import platform
import time
from contextlib import ExitStack
from pathlib import Path

import click
import msgspec

from weavenet.lab import bench_agents, bench_cni, bench_paths, real_weave, traffic
from weavenet.lab.bench_report import report
from weavenet.lab.bench_results import PathResult, Results
from weavenet.lab.demo import bring_up
from weavenet.lab.hosts import Lab
from weavenet.lab.process import this_process
from weavenet.lab.record import Paths
from weavenet.sim.scale_report import replace_section, section_of

HOSTS = 3
TRANSFER_S = 2
PINGPONG_S = 1
PACKETS_S = 1
CNI_CALLS_PER_ROUND = 20


def bench(*, rounds: int, into: Path, baselines_only: bool) -> None:
    """Measure, and write benchmarks.md and benchmarks.json into a directory. Raises LabError."""
    results = Results(
        date=time.strftime("%Y-%m-%d", time.gmtime()), machine=_machine(), rounds=rounds, transfer_s=TRANSFER_S
    )
    paths = Paths("bench")
    if not baselines_only:
        click.echo("Three hosts, from nothing to fully connected")
        results.connected_s = bench_agents.connect(paths, rounds)
    lab = Lab.create(paths, owner=this_process())
    try:
        if baselines_only:
            for _ in range(HOSTS):
                lab.add_host()
        else:
            bring_up(lab, HOSTS)
            lab.wait_until_connected()
            results.memory = bench_agents.memory(lab)
        with ExitStack() as stack:
            _measure_paths(lab, results, stack, with_weavenet=not baselines_only)
        click.echo("CNI")
        results.cni = bench_cni.measure(lab, rounds * CNI_CALLS_PER_ROUND, with_weavenet=not baselines_only)
    finally:
        lab.down()
    into.mkdir(parents=True, exist_ok=True)
    page, file = report(results), into / "benchmarks.md"
    # Of scale there is a section that takes longer, and is written by itself.
    scale = section_of(file.read_text()) if file.exists() else ""
    file.write_text(replace_section(page, scale) if scale else page)
    (into / "benchmarks.json").write_bytes(msgspec.json.format(msgspec.json.encode(results)) + b"\n")
    click.echo()
    click.echo(page)


def _measure_paths(lab: Lab, results: Results, stack: ExitStack, *, with_weavenet: bool) -> None:
    click.echo("TCP throughput and round trips, small UDP packets")
    contenders = [bench_paths.bare(lab), bench_paths.vxlan_bridge(lab), bench_paths.vxlan_routed(lab)]
    if with_weavenet:
        contenders += [bench_paths.weavenet(lab), *bench_paths.sleeves(stack)]
        weaver = real_weave.program()
        if weaver is not None:
            contenders += bench_paths.with_weave(stack, weaver)
    results.paths = [PathResult(one.name, one.title) for one in contenders]
    for one in contenders:
        traffic.ping(one.lab, one.route)
        traffic.throughput(one.lab, one.route, 1)  # the first transfer fills caches and learns addresses
    turns = list(zip(contenders, results.paths, strict=True))
    for number in range(results.rounds):
        first = number % len(turns)
        for one, result in turns[first:] + turns[:first]:
            moved = traffic.throughput(one.lab, one.route, TRANSFER_S)
            back = traffic.round_trips(one.lab, one.route, PINGPONG_S)
            small = traffic.packet_rate(one.lab, one.route, PACKETS_S)
            result.throughputs.append(moved)
            result.latencies.append(back)
            result.packets.append(small)
            click.echo(
                f"  round {number + 1}  {one.title:36} {moved.mbit_s:8,.0f} Mbit/s"
                f" {moved.cpu_s_per_gbit:7.3f} CPU s/Gbit"
                f"   p50 {back.p50_us:6.1f} µs   p99 {back.p99_us:6.1f} µs   {small.received:9,.0f} packets/s"
            )


def _machine() -> str:
    """Name the processors and the kernel: what a reader needs to judge the numbers."""
    lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
    model = next((value.strip() for key, _, value in lines if key.strip() == "model name"), platform.machine())
    return f"{os.cpu_count()} processors ({model}), Linux {platform.release()}"
