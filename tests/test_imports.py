"""The layers hold: who may import whom, as pyproject.toml states it and import-linter checks it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_imports_go_down_the_layers() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_importing_the_command_line_brings_in_neither_the_agent_nor_a_protocol() -> None:
    # `weave status` is run by hand and by probes; what it imports is what it costs.
    heavy = (
        "http.client",
        "nacl",
        "pyroute2",
        "uvloop",
        "weavenet.agent",
        "weavenet.mesh",
        "weavenet.ipam",
        "weavenet.lab",
    )
    program = f"import sys, weavenet.cli.main; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_init_container_imports_nothing_of_the_agent() -> None:
    heavy = (
        "asyncio",
        "h11",
        "nacl",
        "uvloop",
        "weavenet.agent.main",
        "weavenet.ipam",
        "weavenet.mesh",
        "weavenet.node",
    )
    program = f"import sys, weavenet.agent.kube_main; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_agent_outside_of_kubernetes_does_not_pay_for_it() -> None:
    program = (
        "import sys, weavenet.agent.main; print([name for name in sys.modules if name.startswith('weavenet.kube')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
