"""Traffic between two places of a lab: that it passes, how much of it, and how fast it comes back.

Throughput is iperf3's, one TCP flow, congestion control cubic: a machine's default may be bbr, which moves half as much
over a veth pair and would hide what is to be measured. With it goes the processor time of the whole machine, taken from
/proc/stat: everything runs on one machine, so seconds of processor per gigabit compare better than gigabits per second.
Round trips are TCP, too, one octet there and back (pingpong.py).

The two ends are kept on two processors, as the two hosts they stand for would. Left alone, the scheduler moves them
together in one run and apart in the next, and a round trip takes 26 or 80 microseconds accordingly.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from weavenet.errors import LabError
from weavenet.lab.hosts import Lab
from weavenet.lab.process import Deadline, execute, run

_T = TypeVar("_T")

IPERF_PORT = 5201
PINGPONG_PORT = 5202
CONGESTION_CONTROL = "cubic"
SMALL_BYTES = 64
TICKS_PER_S = 100  # USER_HZ, the unit of /proc/stat: the same on every machine Debian runs on


@dataclass(frozen=True, slots=True)
class Route:
    """From where to where: names of hosts or pods, and the address by which the source reaches the target."""

    source: str
    target: str
    address: str


@dataclass(frozen=True, slots=True)
class Throughput:
    """What one transfer moved, and what it cost."""

    mbit_s: float
    retransmits: int
    cpu_s_per_gbit: float


@dataclass(frozen=True, slots=True)
class PacketRate:
    """Small UDP packets per second: sent as fast as the sender can, and received."""

    sent: float
    received: float


class RoundTrips(msgspec.Struct, frozen=True):
    """Round trips of one octet over TCP, in microseconds."""

    count: int
    p50_us: float
    p99_us: float


def ping_command(address: str) -> list[str]:
    """Return the command that `ping` runs."""
    return ["ping", "-c", "3", "-i", "0.2", "-W", "2", address]


def ping(lab: Lab, route: Route) -> str:
    """Ping and return ping's summary. Raises LabError if any packet is lost."""
    outcome = execute(ping_command(route.address), namespace=lab.namespace(route.source))
    summary = ", ".join(
        line for line in outcome.output.splitlines() if "packets transmitted" in line or line.startswith("rtt")
    )
    if outcome.status != 0 or ", 0% packet loss" not in summary:
        why = summary or outcome.errors.strip()
        raise LabError(f"{route.source} cannot reach {route.target} at {route.address}: {why}")
    return summary


def throughput_command(address: str, duration_s: int) -> list[str]:
    """Return the client's command that `throughput` runs, but for the form of its output."""
    return ["iperf3", "-c", address, "-C", CONGESTION_CONTROL, "-t", str(duration_s)]


class _Sum(msgspec.Struct):
    packets: int
    lost_packets: int
    seconds: float


class _PacketEnd(msgspec.Struct):
    sum: _Sum


class _PacketReport(msgspec.Struct):
    end: _PacketEnd


class _Sent(msgspec.Struct):
    retransmits: int


class _Received(msgspec.Struct):
    bits_per_second: float
    bytes: int


class _End(msgspec.Struct):
    sum_sent: _Sent
    sum_received: _Received


class _Report(msgspec.Struct):
    """The part we read of what `iperf3 --json` prints."""

    end: _End


def throughput(lab: Lab, route: Route, duration_s: int) -> Throughput:
    """Move data over one TCP flow for that long. Raises LabError."""
    server = lab.start("iperf3 server", ["iperf3", "-s", "-p", str(IPERF_PORT)], where=route.target)
    try:
        _wait_for_listener(lab, route.target, IPERF_PORT)
        before_s = cpu_s()
        source_cpu, target_cpu = processors()
        argv = [*throughput_command(route.address, duration_s), "-p", str(IPERF_PORT), "--json"]
        argv += ["-A", f"{source_cpu},{target_cpu}"]
        text = run(argv, namespace=lab.namespace(route.source), timeout_s=duration_s + 20)
        spent_s = cpu_s() - before_s
    finally:
        lab.finish(server)
    end = _read(text, _Report).end
    if end.sum_received.bytes == 0:
        raise LabError(f"nothing arrived from {route.source} at {route.target} in {duration_s} s")
    return Throughput(
        mbit_s=end.sum_received.bits_per_second / 1e6,
        retransmits=end.sum_sent.retransmits,
        cpu_s_per_gbit=spent_s / (end.sum_received.bytes * 8 / 1e9),
    )


def _read(text: str, kind: type[_T]) -> _T:
    """Read what iperf3 printed. Raises LabError with its own words where a transfer came to nothing."""
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError as error:
        raise LabError(f"iperf3 did not report what it has measured: {error}; it printed {text[-300:]}") from None


def packet_rate(lab: Lab, route: Route, duration_s: int) -> PacketRate:
    """Send UDP packets of 64 octets for that long, as fast as it goes. Raises LabError."""
    server = lab.start("iperf3 server", ["iperf3", "-s", "-p", str(IPERF_PORT)], where=route.target)
    try:
        _wait_for_listener(lab, route.target, IPERF_PORT)
        source_cpu, target_cpu = processors()
        argv = ["iperf3", "-c", route.address, "-p", str(IPERF_PORT), "-u", "-l", str(SMALL_BYTES), "-b", "0"]
        argv += ["-t", str(duration_s), "--json", "-A", f"{source_cpu},{target_cpu}"]
        text = run(argv, namespace=lab.namespace(route.source), timeout_s=duration_s + 20)
    finally:
        lab.finish(server)
    found = _read(text, _PacketReport).end.sum
    return PacketRate(found.packets / found.seconds, (found.packets - found.lost_packets) / found.seconds)


def round_trips(lab: Lab, route: Route, duration_s: int) -> RoundTrips:
    """Send one octet there and back for that long. Raises LabError."""
    source_cpu, target_cpu = processors()
    server = lab.start("pingpong server", _pingpong(target_cpu, "serve", str(PINGPONG_PORT)), where=route.target)
    try:
        _wait_for_listener(lab, route.target, PINGPONG_PORT)
        argv = _pingpong(source_cpu, "ask", route.address, str(PINGPONG_PORT), str(duration_s))
        text = run(argv, namespace=lab.namespace(route.source), timeout_s=duration_s + 20)
    finally:
        lab.finish(server)
    return msgspec.json.decode(text, type=RoundTrips)


def cpu_s() -> float:
    """Return the processor time that the whole machine has spent working since boot, in seconds."""
    # user, nice, system, idle, iowait, irq, softirq: proc(5). Time of guests is within user already.
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS_PER_S


def processors() -> tuple[int, int]:
    """Return the processors for the source and for the target; the same twice if there is only one."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[0], allowed[1 % len(allowed)]


def _pingpong(processor: int, *words: str) -> Sequence[str]:
    return [sys.executable, str(Path(__file__).with_name("pingpong.py")), str(processor), *words]


def _wait_for_listener(lab: Lab, where: str, port: int) -> None:
    deadline = Deadline.after(5.0, f"nothing listens on TCP port {port} in {where}")
    while not run(["ss", "-Hltn", f"sport = :{port}"], namespace=lab.namespace(where)):
        deadline.pause()
