import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from weavenet.errors import LabError
from weavenet.lab import process
from weavenet.lab.process import Process

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"


@pytest.fixture
def sleeper() -> Iterator[Process]:
    with subprocess.Popen(["sleep", "60"]) as child:
        ticks = process._start_ticks(child.pid)
        assert ticks is not None
        yield Process(child.pid, ticks, "a sleeper")
        child.kill()


def test_a_program_is_given_its_input_and_its_output_is_returned() -> None:
    assert process.run(["tr", "a-z", "A-Z"], text="weave") == "WEAVE"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["sh", "-c", "echo no such peer >&2; exit 3"], "status 3: no such peer"),
        (["sh", "-c", "echo only on stdout; exit 1"], "status 1: only on stdout"),
        (["false"], "it printed nothing"),
        (["weavenet-no-such-program"], "not there; run scripts/setup.sh"),
    ],
    ids=["stderr", "stdout", "silent", "missing"],
)
def test_a_program_that_fails_is_reported_with_its_own_words(argv: list[str], words: str) -> None:
    with pytest.raises(LabError, match=words):
        process.run(argv)


def test_a_program_that_takes_too_long_is_given_up() -> None:
    with pytest.raises(LabError, match=r"did not end within 0\.05 s"):
        process.run(["sleep", "60"], timeout_s=0.05)


def test_a_process_is_ended(sleeper: Process) -> None:
    assert sleeper.is_alive()
    assert process.stop(sleeper)
    assert not sleeper.is_alive()


def test_another_process_that_has_the_same_id_is_left_alone(sleeper: Process) -> None:
    earlier = replace(sleeper, start_ticks=sleeper.start_ticks - 1)
    assert not earlier.is_alive()
    assert process.stop(earlier)
    assert sleeper.is_alive()


def test_a_process_that_ignores_the_request_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        ticks = process._start_ticks(child.pid)
        assert ticks is not None
        assert not process.stop(Process(child.pid, ticks, "a stubborn one"), grace_s=0.05)


def test_ending_a_process_that_is_gone_is_fine(sleeper: Process) -> None:
    process.stop(sleeper)
    assert process.stop(sleeper)
    assert process.wait(sleeper, 0)


def test_waiting_ends_with_what_was_waited_for() -> None:
    deadline = process.Deadline.after(0, "the ring is not agreed on")
    with pytest.raises(LabError, match="gave up waiting: the ring is not agreed on"):
        deadline.pause()


def test_this_process_is_alive() -> None:
    assert process.this_process().is_alive()
