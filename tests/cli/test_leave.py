"""`weave stop` and `weave reset`: in which order an agent is told, and what happens where there is none."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from stub_agent import Result, Stub, serving, weave

from weavenet.api.client import AgentProcess

NAME = "7a:00:00:00:00:01"
OTHER = "7a:00:00:00:00:02"
SHARED = {"Entries": [{"Peer": NAME}, {"Peer": OTHER}]}
TOLD = ["GET /reset", "GET /report", "DELETE /peer", "POST /stop"]
GONE = "weave is removed from this host\n"


def report(*, state: str = "established", ipam: object = SHARED, targets: object = None) -> Mapping[str, object]:
    router = {"Name": NAME, "Connections": [{"State": state}] if state else None, "Targets": targets}
    return {"Router": router, "IPAM": ipam}


@contextmanager
def agent_process(path: Path, shown: Mapping[str, object]) -> Iterator["subprocess.Popen[str]"]:
    """Run a stub as a process of its own, as its end is waited for."""
    program = [sys.executable, str(Path(__file__).with_name("stub_agent.py")), str(path), json.dumps(shown)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def asked(process: "subprocess.Popen[str]") -> list[str]:
    assert process.stdout is not None
    return process.stdout.read().splitlines()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weavenet.cli.leave._TELL_S", 0.0)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WEAVENET_SOCKET", str(tmp_path / "weave.sock"))
    return tmp_path / "weave.sock"


@pytest.fixture
def removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have a program in the place of `weaver --reset`, which writes down its flags and can be told to fail."""
    written = tmp_path / "removed"
    program = "import json, pathlib, sys; pathlib.Path(sys.argv[1]).write_text(json.dumps(sys.argv[2:])); "
    program += "sys.exit('--port=666' in sys.argv)"
    monkeypatch.setattr("weavenet.cli.leave._REMOVER", ("-c", program, str(written)))
    return written


# --- stop -------------------------------------------------------------------------------------------------------------


def test_stop_ends_the_agent_and_returns_when_it_has(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with agent_process(path, {}) as process:
        assert weave(capsys, "stop") == Result(0, "", "the agent has ended\n")
        assert asked(process) == ["POST /stop"]


@pytest.mark.usefixtures("path")
def test_stop_without_an_agent_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert weave(capsys, "stop") == Result(0, "", "Weave is not running (ignore on Kubernetes).\n")
    assert weave(capsys, "stop", "--json").out == '{"stopped": false}\n'


def test_an_agent_that_does_not_stop_is_not_waited_for_for_ever(
    agent: Stub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weavenet.cli.leave._END_S", 0.0)
    agent.replies["POST", "/stop"] = (204, "")
    result = weave(capsys, "stop")
    assert (result.status, result.out) == (1, "")
    assert "was told to stop, and has not within 0 s" in result.err


# --- reset ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        pytest.param(report(), "this host's share of the addresses goes to another peer\n", id="heard"),
        pytest.param(
            report(state="failed"),
            "no peer hears us, so this host's share of the addresses is lost until one of the others takes it over: "
            f"weave rmpeer {NAME}\n",
            id="not heard",
        ),
        pytest.param(report(state="", ipam={"Entries": [{"Peer": NAME}]}), "", id="alone"),
        pytest.param(report(state="", ipam={"Entries": None}), "", id="no ring"),
        pytest.param(report(ipam=None), "", id="no IPAM"),
    ],
)
def test_a_reset_tells_the_agent_to_leave_then_to_stop_and_removes_what_it_made(
    path: Path, removed: Path, capsys: pytest.CaptureFixture[str], shown: Mapping[str, object], said: str
) -> None:
    flags = ["--run-dir=/run/one", "--port=7000"]
    with agent_process(path, {"/reset": flags, "/report": shown}) as process:
        assert weave(capsys, "reset") == Result(0, GONE, f"{said}the agent has ended\n")
        assert asked(process) == TOLD
    assert json.loads(removed.read_text()) == flags


def test_an_agent_that_must_not_be_reset_is_told_nothing_else(
    agent: Stub, removed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    agent.replies["GET", "/reset"] = (400, "this agent belongs to Kubernetes\n")
    assert weave(capsys, "reset", "--force") == Result(1, "", "this agent belongs to Kubernetes\n")
    assert [path for _, path, *_ in agent.asked] == ["/reset"]
    assert not removed.exists()


def test_without_an_agent_a_host_that_owns_addresses_is_reset_only_by_force(
    path: Path, removed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "weavenet.db").write_text("")
    state = f"--state-dir={tmp_path}"
    assert weave(capsys, "reset", state) == Result(
        1,
        "",
        "ERROR: weave is not running; unable to remove from cluster.\n"
        "Re-launch weave before reset or use --force to override.\n",
    )
    assert not removed.exists()
    assert weave(capsys, "reset", state, "--force", "--port=7000", "--weave-bridge=br7") == Result(0, GONE, "")
    run = f"--run-dir={path.parent}"
    assert json.loads(removed.read_text()) == [run, state, "--port=7000", "--weave-bridge=br7"]


def test_a_host_without_anything_can_be_reset_again(
    path: Path, removed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = weave(capsys, "reset", "--json", f"--state-dir={tmp_path}")
    assert result == Result(0, '{"reset": true}\n', GONE)
    assert json.loads(removed.read_text())[0] == f"--run-dir={path.parent}"


@pytest.mark.usefixtures("path", "removed")
def test_a_removal_that_fails_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = weave(capsys, "reset", f"--state-dir={tmp_path}", "--port=666")
    assert (result.status, result.out) == (1, "")
    assert "could not be removed from this host" in result.err


def test_an_agent_in_another_network_namespace_is_told_nothing(
    agent: Stub, removed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AgentProcess, "shares_our_network", lambda _: False)
    result = weave(capsys, "reset")
    assert (result.status, result.out, agent.asked) == (1, "", [])
    assert result.err.endswith(f"nsenter --target {os.getpid()} --net weave reset\n")
    assert not removed.exists()


def test_an_agent_of_another_version_is_told_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], removed: Path
) -> None:
    with serving(Stub(str(tmp_path / "other.sock"))) as stub:
        stub.replies["GET", "/reset"] = (200, '{"not": "flags"}')
        result = weave(capsys, "reset", "--socket", stub.path)
    assert (result.status, result.out) == (1, "")
    assert "of another version" in result.err
    assert not removed.exists()
