"""The CNI files are there as long as the agent is, whoever removes them."""

import asyncio
import logging
from pathlib import Path

import pytest

from weavenet.agent import cni_files as under_test
from weavenet.agent.cni_files import keep_cni_files
from weavenet.agent.install import Place

LOG = logging.getLogger("test.cni_files")


def test_an_agent_tells_the_runtime_at_once_and_repairs_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable = tmp_path / "weave-cni"
    executable.write_bytes(b"\x7fELF, as far as this test goes")
    place = Place(tmp_path / "host", executable)
    place.host_root.mkdir()
    monkeypatch.setattr(under_test, "CNI_FILES_INTERVAL_S", 0.001)

    async def appears(path: Path) -> None:
        while not path.exists():  # noqa: ASYNC110, ASYNC240 - files have no events
            await asyncio.sleep(0)

    async def run() -> None:
        keeping = asyncio.create_task(keep_cni_files(place, LOG))
        async with asyncio.timeout(10):
            await appears(place.conflist)
            await appears(place.host_root / "opt/cni/bin/weave-net")
            place.conflist.unlink()
            await appears(place.conflist)
        keeping.cancel()

    asyncio.run(run())
