"""Every seed that has ever taught something is played again: tests/seeds.txt."""

from pathlib import Path

import pytest

from weavenet.sim.faults import play

HOSTS = 20


def _seeds() -> dict[int, str]:
    text = (Path(__file__).parents[1] / "seeds.txt").read_text(encoding="utf-8")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    return {int(seed): lesson for seed, lesson in lines}


SEEDS = _seeds()


@pytest.mark.parametrize("seed", SEEDS, ids=str)
def test_a_seed_that_has_taught_something_holds_and_converges(seed):
    _, result = play(seed, hosts=HOSTS)
    assert result.problem is None, SEEDS[seed]
