"""How an agent's run begins and ends: one per host, and all of its tasks or none."""

import asyncio
import os
import signal
import stat
from pathlib import Path

import pytest
from virtual_time import run, settle

from weavenet.agent.run import _until_signal
from weavenet.agent.run_dir import locked
from weavenet.errors import ConfigError, StoreError


def test_a_run_directory_serves_one_agent_at_a_time(tmp_path: Path) -> None:
    run_dir = tmp_path / "deep" / "run"
    with locked(run_dir):
        assert stat.S_IMODE(run_dir.stat().st_mode) == 0o700
        with (
            pytest.raises(ConfigError, match=rf"already running with --run-dir {run_dir}; stop it first"),
            locked(run_dir),
        ):
            pass
    with locked(run_dir):
        pass


def test_a_run_directory_that_cannot_be_made_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match=rf"cannot use --run-dir {tmp_path}/file/run: Not a directory"),
        locked(tmp_path / "file" / "run"),
    ):
        pass


class Works:
    """Tasks that run for ever and write down how they ended."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    async def endless(self, name: str) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.ended.append(f"{name} cancelled")
            raise

    async def undoing(self, name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await settle()
            self.ended.append(f"{name} undone")

    async def failing(self, error: Exception) -> None:
        await settle()
        raise error


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_tasks_and_the_run_in_order(number: signal.Signals) -> None:
    async def scenario() -> None:
        works = Works()
        ending = asyncio.create_task(_until_signal([works.endless("a"), works.endless("b")], [], asyncio.Event()))
        await settle()
        os.kill(os.getpid(), number)
        await ending
        assert works.ended == ["a cancelled", "b cancelled"]

    before = signal.getsignal(number)
    run(scenario())
    assert signal.getsignal(number) == before, "and signals are handled as before"


def test_who_asks_for_the_end_gets_it_in_the_same_order() -> None:
    async def scenario() -> None:
        works, ended = Works(), asyncio.Event()
        ending = asyncio.create_task(
            _until_signal([works.endless("a"), works.endless("b")], [works.undoing("c")], ended)
        )
        await settle()
        ended.set()
        await ending
        assert works.ended == ["c undone", "a cancelled", "b cancelled"], "who needs the others ends before them"

    run(scenario())


def test_a_task_that_fails_ends_all_and_its_error_is_the_runs() -> None:
    async def scenario() -> None:
        works = Works()
        failing = works.failing(StoreError("no space left"))
        with pytest.raises(StoreError, match="no space left"):
            await _until_signal([works.endless("a"), failing], [works.endless("b")], asyncio.Event())
        assert sorted(works.ended) == ["a cancelled", "b cancelled"]

    run(scenario())
