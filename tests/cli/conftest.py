"""What tests of all commands share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from stub_agent import Stub, serving


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    monkeypatch.setenv("WEAVENET_SOCKET", str(tmp_path / "weave.sock"))
    with serving(Stub(str(tmp_path / "weave.sock"))) as stub:
        yield stub
