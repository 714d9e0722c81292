"""Profiles of hypothesis, and what is left out where it cannot run."""

import os

import pytest
from hypothesis import settings

# No deadlines: a shared machine is slow at times, and slow is not wrong.
settings.register_profile("weavenet", deadline=None)
settings.register_profile("fuzz", deadline=None, max_examples=5000)
settings.load_profile("weavenet")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("kernel"):
            item.add_marker(pytest.mark.skip(reason="needs root"))
