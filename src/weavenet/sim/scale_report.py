"""The measurements of `weavenet.sim.scale` as a section of docs/benchmarks.md."""

from collections.abc import Callable, Sequence

import msgspec

MARK = "<!-- What follows is written by `make scale`. -->\n"
_INTRODUCTION = """
## Scale: meshes of up to a thousand nodes

Written by `make scale`: the production node in virtual time (`src/weavenet/sim/scale.py` says what happens in each
phase). A node has about 12 connections. Everything is per node; bytes are what a node writes to TCP. *Compact* is the
gossip between our own peers ([ADR 18](adr/0018-compact-gossip.md)); *Weave's* is the same node with that turned off.
Virtual seconds, messages and bytes are the same at each run; processor time is the machine's, was taken beside other
work, and includes the simulator's own. What is blank was not measured, as it takes hours of processor time.
"""


class Measured(msgspec.Struct, frozen=True):
    """One phase of one mesh, per node."""

    hosts: int
    compact: bool
    phase: str
    duration_s: float
    messages: float
    sent_bytes: float
    cpu_s: float
    known_s: float | None = None  # until a newcomer was known to all
    agreed_s: float | None = None  # until all had the same table, for good
    held_bytes: int | None = None  # memory of a node, everything that it refers to

    @property
    def key(self) -> tuple[int, bool, str]:
        """What this is a measurement of."""
        return self.hosts, self.compact, self.phase

    @property
    def way(self) -> str:
        """How these peers gossip."""
        return "compact" if self.compact else "Weave's"


def line(measured: Measured) -> str:
    """Return a measurement as a line for whoever waits for the next."""
    return (
        f"{measured.hosts:5} {measured.way:8} {measured.phase:22} {measured.duration_s:6.1f} s"
        f" {measured.messages:10,.0f} messages {measured.sent_bytes:14,.0f} bytes {measured.cpu_s * 1000:10,.1f} ms CPU"
        f"  known {_seconds(measured.known_s):>5}  agreed {_seconds(measured.agreed_s):>6}"
        f"  held {_megabytes(measured.held_bytes):>5}\n"
    )


def section(results: Sequence[Measured]) -> str:
    """Return the section, with its mark, as Markdown."""
    rest = [each for each in results if each.phase == "rest"]
    parts = [
        MARK + _INTRODUCTION,
        "### At rest\n",
        _across(rest, "bytes per node and second", lambda each: f"{each.sent_bytes / each.duration_s:,.0f}"),
        _across(rest, "messages per node and second", lambda each: f"{each.messages / each.duration_s:.1f}"),
        _across(rest, "CPU per node, ms in a second", lambda each: f"{each.cpu_s * 1000 / each.duration_s:.2f}"),
        _across(rest, "memory of a node, MB", lambda each: _megabytes(each.held_bytes)),
    ]
    for phase in dict.fromkeys(each.phase for each in results if each.phase != "rest"):
        found = [each for each in results if each.phase == phase]
        parts += [
            f"### {phase.capitalize()}\n",
            _across(found, "kilobytes per node", lambda each: f"{each.sent_bytes / 1000:,.1f}"),
            _across(found, "messages per node", lambda each: f"{each.messages:,.0f}"),
            _across(found, "CPU per node, ms", lambda each: f"{each.cpu_s * 1000:,.0f}"),
        ]
        if any(each.known_s is not None for each in found):
            parts.append(_across(found, "seconds until all know", lambda each: _seconds(each.known_s)))
        if any(each.agreed_s is not None for each in found):
            parts.append(_across(found, "seconds until all agree", lambda each: _seconds(each.agreed_s)))
    return "\n".join(parts)


def replace_section(page: str, written: str) -> str:
    """Put the section where a page has it, or at its end."""
    return page.partition(MARK)[0].rstrip("\n") + "\n\n" + written


def section_of(page: str) -> str:
    """Return the section as a page has it, with its mark; nothing if it has none."""
    return "".join(page.partition(MARK)[1:])


def _across(results: Sequence[Measured], what: str, text: Callable[[Measured], str]) -> str:
    """Return a row per way and a column per size."""
    sizes = sorted({each.hosts for each in results})
    found = {(each.way, each.hosts): text(each) for each in results}
    rows = [[what, *(f"{size:,}" for size in sizes)], ["---", *["---:"] * len(sizes)]]
    ways = ("compact", "Weave's")
    rows += [[way, *(found.get((way, size), "") for size in sizes)] for way in ways]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _megabytes(value: int | None) -> str:
    return "" if value is None else f"{value / 1e6:.2f}"
