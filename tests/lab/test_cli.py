from pathlib import Path

import pytest
from click.testing import CliRunner

from weavenet.lab import cli, record


@pytest.fixture(autouse=True)
def no_labs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(record.Paths.__init__, "__defaults__", (tmp_path / "run", tmp_path / "state"))


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["status"], 1, "there is no lab called default"),
        (["--lab", "x", "exec", "host1", "--", "true"], 1, "there is no lab called x; bring it up: lab --lab x up"),
        (["--lab", "../x", "status"], 1, "cannot be called '../x'"),
        (["down"], 0, "there was nothing to take down"),
        (["up", "--hosts", "0"], 2, "0 is not in the range"),
    ],
    ids=["status", "exec", "name", "down", "hosts"],
)
def test_what_is_impossible_is_said_in_one_line(words: list[str], status: int, said: str) -> None:
    result = CliRunner().invoke(cli.main, words)
    assert result.exit_code == status
    assert said in result.output
