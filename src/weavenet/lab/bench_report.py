"""The results of the benchmarks as a page of tables."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median

from weavenet.lab.bench_results import CniResult, PathResult, Results, median_ratio, percentile
from weavenet.lab.traffic import SMALL_BYTES

# Of the real Weave Net (its last source, November 2022) on a machine like the one these benchmarks were first run on,
# two processors. Its fast datapath needs Open vSwitch, which that kernel lacks, so there is no throughput to compare.
WEAVE_CNI = "| Weave Net, measured elsewhere | 71.0 | | 35.0 | | 13.0 |"
WEAVE_SLEEVE = """
Weave Net's sleeve, measured elsewhere, not in this run: 130 Mbit/s, 104 to 119 with a password; p50 633 and 658 µs;
16,800 and 15,400 small packets/s received.
"""
AGAINST_WEAVE = {
    "weave": ["sleeve", "sleeve-weave", "mixed-to", "mixed-from"],
    "weave-sealed": ["sleeve-sealed", "mixed-sealed-to", "mixed-sealed-from"],
}
WEAVE_CONNECTED = "0.43 to 0.92"
WEAVE_MEMORY = "53"

_INTRODUCTION = """# Benchmarks

Written by `make bench`; do not edit. Hosts are network namespaces on one machine, so sender, both hosts and receiver
share its processors. Everything here is of one run, and what is compared took turns. Numbers are medians over the
rounds, and a ratio is the median of the ratios within each round.
"""


def report(results: Results) -> str:
    """Return the page, as Markdown."""
    parts = [
        _INTRODUCTION,
        f"{results.date}, {results.machine}; {results.rounds} rounds.\n",
        _paths(results),
        _cni(results.cni),
        _agents(results),
    ]
    return "\n".join(part for part in parts if part)


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first are numbers and stand to the right."""
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _paths(results: Results) -> str:
    by_name = {path.name: path for path in results.paths}
    heading = ["path", "Mbit/s", "of bare", "of VXLAN bridge", "of VXLAN routed", "CPU s/Gbit", "retransmits"]
    bandwidth = [
        [
            path.title,
            f"{median(one.mbit_s for one in path.throughputs):,.0f}",
            *(_ratio(path, by_name[base], _mbit_s) for base in ("bare", "vxlan-bridge", "vxlan-routed")),
            f"{median(one.cpu_s_per_gbit for one in path.throughputs):.3f}",
            f"{median(one.retransmits for one in path.throughputs):.0f}",
        ]
        for path in results.paths
    ]
    latency_heading = ["path", "p50 µs", "p99 µs", "p50 of bare", "p50 of VXLAN bridge", "p50 of VXLAN routed"]
    latency = [
        [
            path.title,
            f"{median(_p50(path)):.1f}",
            f"{median(one.p99_us for one in path.latencies):.1f}",
            *(_ratio(path, by_name[base], _p50) for base in ("bare", "vxlan-bridge", "vxlan-routed")),
        ]
        for path in results.paths
    ]
    return (
        f"## TCP throughput\n\nOne flow, iperf3, congestion control cubic, {results.transfer_s} s each. The processor"
        " time is the whole machine's, per gigabit\nreceived.\n\n"
        + table(heading, bandwidth)
        + "\n## TCP round trips\n\nOne octet there and back, Python at both ends.\n\n"
        + table(latency_heading, latency)
        + _small(results)
        + _beside_weave(by_name)
    )


def _small(results: Results) -> str:
    rows = [
        [
            path.title,
            f"{median(one.sent for one in path.packets):,.0f}",
            f"{median(one.received for one in path.packets):,.0f}",
        ]
        for path in results.paths
        if path.packets
    ]
    return (
        f"\n## Small packets\n\nUDP with {SMALL_BYTES} octets, as fast as iperf3 sends them; it shares the"
        " processors with all the rest.\n\n" + table(["path", "sent/s", "received/s"], rows)
    )


def _beside_weave(by_name: Mapping[str, PathResult]) -> str:
    """Compare each path by sleeve with Weave Net's own of the same kind, if that was measured."""
    if "weave" not in by_name:
        return WEAVE_SLEEVE
    rows = [
        [
            by_name[name].title,
            _ratio(by_name[name], by_name[base], _mbit_s),
            _ratio(by_name[name], by_name[base], _p50),
            _ratio(by_name[name], by_name[base], _received),
        ]
        for base, names in AGAINST_WEAVE.items()
        for name in names
    ]
    return (
        "\n## Sleeve beside Weave Net's\n\nWeave Net 2.8.1's sleeve between two of its own routers is 1, with a"
        " password where the path has one. A throughput and\na rate are better above 1, a round trip below.\n\n"
        + table(["path", "Mbit/s", "p50 of a round trip", "small packets/s received"], rows)
    )


def _received(path: PathResult) -> list[float]:
    return [one.received for one in path.packets]


def _mbit_s(path: PathResult) -> list[float]:
    return [one.mbit_s for one in path.throughputs]


def _p50(path: PathResult) -> list[float]:
    return [one.p50_us for one in path.latencies]


def _ratio(path: PathResult, base: PathResult, values: Callable[[PathResult], list[float]]) -> str:
    return f"{median_ratio(values(path), values(base)):.2f}"


def _cni(results: Sequence[CniResult]) -> str:
    rows = [
        [
            one.title,
            f"{median(one.add_ms):.1f}",
            f"{percentile(one.add_ms, 0.99):.1f}",
            f"{median(one.del_ms):.1f}",
            f"{percentile(one.del_ms, 0.99):.1f}",
            f"{median(one.version_ms):.1f}",
        ]
        for one in results
    ]
    heading = ["plugin", "ADD p50 ms", "ADD p99", "DEL p50 ms", "DEL p99", "VERSION p50 ms"]
    return (
        f"## CNI\n\n{len(results[0].add_ms)} calls of each, one after the other, from before the executable starts to"
        " after it has ended. VERSION does nothing,\nso it is the cost of starting the program.\n\n"
        + table(heading, rows)
        + f"{WEAVE_CNI}\n"
    )


def _agents(results: Results) -> str:
    if not results.memory:
        return ""
    connected = [
        "weavenet",
        f"{median(results.connected_s):.2f}",
        f"{min(results.connected_s):.2f}",
        f"{max(results.connected_s):.2f}",
    ]
    memory = [
        "weavenet",
        f"{median(one.pss_mb for one in results.memory):.1f}",
        f"{median(one.rss_mb for one in results.memory):.1f}",
    ]
    return (
        f"## Three hosts, from nothing to fully connected\n\nFrom before the first agent is started until each has an"
        f" established connection to both others,\n{len(results.connected_s)} times.\n\n"
        + table(
            ["", "median s", "fastest", "slowest"],
            [connected, ["Weave Net, measured elsewhere", WEAVE_CONNECTED, "", ""]],
        )
        + "\n## Memory of an idle agent\n\nBefore any pod is attached; a page that agents share counts by its share in"
        " PSS, whole in RSS.\n\n"
        + table(["", "PSS MB", "RSS MB"], [memory, ["Weave Net, measured elsewhere", "", WEAVE_MEMORY]])
    )
