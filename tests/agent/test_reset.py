"""What a reset is told, and when it refuses; what it removes is in tests/kernel/test_reset_on_hosts.py."""

import logging
import socket
from pathlib import Path

import pytest
from weaver_flags import config_of

from weavenet.agent.reset import reset_arguments, reset_host
from weavenet.agent.run_dir import locked
from weavenet.errors import ConfigError

LOG = logging.getLogger("test")


def test_a_reset_is_told_what_its_agent_was_told(tmp_path: Path) -> None:
    agents = config_of(
        f"--state-dir={tmp_path}/state of one",
        f"--run-dir={tmp_path}/run",
        "--port=7000",
        "--weave-bridge=br7",
        "--bpf-object=other.o",
        "--keep-state",
        "--ipalloc-range=10.32.0.0/12",
    )
    resets = config_of(*reset_arguments(agents))
    for name in ("run_dir", "state_dir", "database", "port", "vxlan_port", "bridge", "bpf_object", "keep_state"):
        assert getattr(resets, name) == getattr(agents, name)


def test_while_the_agent_of_a_run_directory_runs_nothing_is_removed(tmp_path: Path) -> None:
    config = config_of(f"--run-dir={tmp_path}/run", f"--state-dir={tmp_path}")
    config.database.write_text("ring")
    with locked(config.run_dir), pytest.raises(ConfigError, match="stop it first"):
        reset_host(config, LOG)
    assert config.database.exists()


def test_while_anybody_listens_for_peers_nothing_is_removed(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        config = config_of(f"--run-dir={tmp_path}/run", f"--state-dir={tmp_path}", f"--port={port}")
        config.database.write_text("ring")
        with pytest.raises(ConfigError, match=rf"something listens on TCP port {port}; stop it first"):
            reset_host(config, LOG)
    assert config.database.exists()
