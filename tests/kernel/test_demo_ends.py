"""The demonstration cleans up whenever it is ended, and after a demonstration that could not."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import mesh_lab
import pytest

from weavenet.lab import hosts
from weavenet.lab.record import Paths

pytestmark = pytest.mark.kernel

NAME = f"ends-{os.getpid()}"


class Demo:
    """A demonstration as `weavenet-lab demo` runs it, but in a lab of another name and place."""

    def __init__(self, base: Path) -> None:
        """Start it."""
        self.paths = Paths(NAME, base / "r", base / "s")
        program = f"""
            from pathlib import Path
            from weavenet.lab import demo, record
            record.Paths.__init__.__defaults__ = (Path({str(base / "r")!r}), Path({str(base / "s")!r}))
            demonstrate = demo.demonstrate
            demo.demonstrate = lambda paths: demonstrate(record.Paths({NAME!r}))
            from weavenet.lab.cli import main
            main(["demo"])
        """
        self._output = base / "output"
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-c", textwrap.dedent(program)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,  # as a terminal does: Ctrl-C goes to all that the demonstration has not put aside
            )

    @property
    def said(self) -> str:
        """What it has printed."""
        return self._output.read_text()

    def until(self, text: str) -> None:
        """Wait until it has printed something."""
        mesh_lab.until(lambda: text in self.said or self.process.poll() is not None, f"the demonstration says {text}")
        assert self.process.poll() is None, self.said

    def interrupt(self, number: signal.Signals) -> int:
        """Send a signal to its process group, and return its exit status."""
        os.killpg(self.process.pid, number)
        return self.process.wait(mesh_lab.LIMIT_S)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    demo = Demo(tmp_path)
    try:
        yield demo
    finally:
        demo.process.kill()
        demo.process.wait()
        hosts.down(demo.paths)


def traces(paths: Paths) -> list[str]:
    """Return what is left of a lab: files, mounts, and processes that name it."""
    left = [str(path) for path in (paths.run, paths.state) if path.exists()]
    left += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(paths.run) in line]
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if str(paths.run).encode() in words:
                left.append(f"process {entry.name}: {words[:200]!r}")
    return left


@pytest.mark.parametrize(
    ("text", "number"),
    [("[1/", signal.SIGTERM), ("host2# weaver", signal.SIGINT), ("pod1-1 on host1", signal.SIGTERM)],
    ids=["making hosts", "starting agents", "attaching pods"],
)
def test_a_demonstration_that_is_interrupted_takes_everything_down_and_says_so(
    demo: Demo, text: str, number: signal.Signals
) -> None:
    demo.until(text)
    assert demo.interrupt(number) == 128 + number, demo.said
    assert "Interrupted; taking everything down" in demo.said
    assert "Traceback" not in demo.said
    assert traces(demo.paths) == []


def test_what_a_killed_demonstration_left_is_taken_down_by_the_next_one(tmp_path: Path, demo: Demo) -> None:
    demo.until("pod1-1# ping")
    demo.process.kill()  # alone, so that what it was waiting for goes on
    assert demo.process.wait() == -signal.SIGKILL
    assert traces(demo.paths)
    following = Demo(tmp_path)
    try:
        following.until("pod1-1# iperf3")
        assert following.interrupt(signal.SIGINT) == 128 + signal.SIGINT, following.said
    finally:
        following.process.kill()
        following.process.wait()
    assert traces(demo.paths) == []
