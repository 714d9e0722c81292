"""The kept inputs, and some made of them by chance: none crashes, or takes memory out of proportion.

With FUZZ_SEED=… the same inputs are made again; a failure says which.
"""

import os
import tracemalloc
from pathlib import Path
from random import Random

import pytest
from mutate import mutate
from targets import CORPUS, REGRESSIONS, TARGETS

INPUTS_PER_TARGET = 150
SEED = os.environ.get("FUZZ_SEED") or os.urandom(4).hex()
PEAK_BYTES_MAX, PEAK_PER_BYTE_MAX = 24 << 20, 4096


def kept(name: str) -> list[bytes]:
    """Return what is kept for a target, regressions first."""
    found: list[Path] = []
    for base in (REGRESSIONS, CORPUS):
        found += sorted(path for path in (base / name).glob("*") if path.is_file())
    return [path.read_bytes() for path in found]


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_every_kept_input_does_no_harm(name: str) -> None:
    inputs = kept(name)
    assert inputs, f"nothing is kept for {name}: run make fuzz"
    for data in inputs:
        tracemalloc.start()
        try:
            TARGETS[name](data)
            _, peak_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak_bytes < PEAK_BYTES_MAX + PEAK_PER_BYTE_MAX * len(data), data.hex()


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_inputs_made_of_them_do_no_harm(name: str) -> None:
    random, inputs = Random(f"{SEED} {name}"), kept(name)
    for number in range(INPUTS_PER_TARGET):
        data = mutate(random, inputs)
        try:
            TARGETS[name](data)
        except Exception as error:
            raise AssertionError(f"FUZZ_SEED={SEED}, input {number}: {data.hex()}") from error
