"""What a run of the benchmarks found, and the statistics over it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from weavenet.lab.traffic import PacketRate, RoundTrips, Throughput


@dataclass(slots=True)
class PathResult:
    """One path: a throughput and a latency per round, in the order of the rounds."""

    name: str
    title: str
    throughputs: list[Throughput] = field(default_factory=list)
    latencies: list[RoundTrips] = field(default_factory=list)
    packets: list[PacketRate] = field(default_factory=list)


@dataclass(slots=True)
class CniResult:
    """One CNI plugin: how long each call took, in milliseconds, from before the executable started to after its end."""

    title: str
    add_ms: list[float] = field(default_factory=list)
    del_ms: list[float] = field(default_factory=list)
    version_ms: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory of one agent and its children: PSS counts a shared page by its share, RSS counts it whole."""

    pss_mb: float
    rss_mb: float


@dataclass(slots=True)
class Results:
    """All of one run."""

    date: str
    machine: str
    rounds: int
    transfer_s: int
    paths: list[PathResult] = field(default_factory=list)
    cni: list[CniResult] = field(default_factory=list)
    connected_s: list[float] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)


def percentile(values: Sequence[float], fraction: float) -> float:
    """Return the smallest value that is at least as large as that fraction of them all. Source: nearest rank."""
    ordered = sorted(values)
    rank = -int(-fraction * len(ordered) // 1)  # rounded up
    return ordered[max(rank, 1) - 1]


def median_ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """Return the median of the ratios round by round: a slow minute of the machine then slows both sides of a ratio."""
    return median(value / of for value, of in zip(values, base, strict=True))
