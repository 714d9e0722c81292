"""The `weave` command against a stub of the agent: what it asks, what it prints where, and how it exits."""

import json
import os
import socketserver
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from importlib.metadata import version
from pathlib import Path

import pytest
from stub_agent import Result, Stub, weave

RECORDED = Path(__file__).parents[1] / "recorded"
REPORT = (RECORDED / "host1-report.json").read_text()
TEXT = "text/plain; charset=utf-8"


# --- status -----------------------------------------------------------------------------------------------------------


def test_plain_status_stands_between_two_empty_lines(agent: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    agent.replies["GET", "/status"] = (200, "        Version: 1\n")

    assert weave(capsys, "status") == Result(0, "\n        Version: 1\n\n", "")


@pytest.mark.parametrize("part", ["connections", "peers", "ipam", "targets"])
def test_a_part_of_status_is_printed_as_it_is(agent: Stub, capsys: pytest.CaptureFixture[str], part: str) -> None:
    agent.replies["GET", f"/status/{part}"] = (200, "line\n")

    assert weave(capsys, "status", part) == Result(0, "line\n", "")


@pytest.mark.parametrize(
    ("part", "keys"),
    [
        ("", ()),
        ("connections", ("Router", "Connections")),
        ("peers", ("Router", "Peers")),
        ("ipam", ("IPAM",)),
        ("targets", ("Router", "Targets")),
    ],
)
def test_status_as_json_is_the_reports_part(
    agent: Stub, capsys: pytest.CaptureFixture[str], part: str, keys: tuple[str, ...]
) -> None:
    agent.replies["GET", "/report"] = (200, REPORT)
    expected = json.loads(REPORT)
    for key in keys:
        expected = expected[key]

    result = weave(capsys, "status", *([part] if part else []), "--json")

    assert json.loads(result.out) == expected
    assert agent.asked == [("GET", "/report", [], "application/json")]


@pytest.mark.parametrize(
    ("part", "router", "shown"),
    [
        pytest.param("connections", {"Connections": None}, "null\n", id="no connections"),
        pytest.param("targets", {"Targets": None}, "null\n", id="no targets"),
        pytest.param("targets", {"Targets": ["192.0.2.1"]}, '[\n    "192.0.2.1"\n]\n', id="a target"),
        pytest.param("ipam", {}, "null\n", id="no address allocation"),
    ],
)
def test_status_as_json_of_what_is_not_there_is_null(
    agent: Stub, capsys: pytest.CaptureFixture[str], part: str, router: dict[str, object], shown: str
) -> None:
    agent.replies["GET", "/report"] = (200, json.dumps({"Router": router}))

    assert weave(capsys, "status", part, "--json") == Result(0, shown, "")


def test_what_peers_call_themselves_does_nothing_to_the_terminal(
    agent: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    nasty, shown = "ho\x1b[2Jst\x9b31m\u202e", "ho\\u001b[2Jst\\u009b31m\\u202e"
    agent.replies["GET", "/report?format=%7B%7B.Router%7D%7D"] = (200, f"{nasty}\n\tend")
    agent.replies["DELETE", "/peer/host9"] = (400, f"owned by {nasty}\n")

    assert weave(capsys, "report", "-f", "{{.Router}}") == Result(0, f"{shown}\n\tend\n", "")
    assert weave(capsys, "rmpeer", "host9").err.startswith(f"host9: owned by {shown}\n")


def test_status_that_is_not_ready_is_a_failure(agent: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    agent.replies["GET", "/status"] = (503, "        Version: 1\n")

    assert weave(capsys, "status") == Result(1, "", "        Version: 1\n")


def test_status_of_addresses_says_when_there_is_no_such_part(agent: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    assert agent.replies == {}

    assert weave(capsys, "status", "ipam") == Result(
        1, "", "the agent of this host runs without IP address allocation\n"
    )


def test_an_unknown_part_of_status_is_misuse(agent: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    result = weave(capsys, "status", "nonsense")

    assert result.status == 1
    assert result.err.startswith("Invalid 'weave status' sub-command: nonsense\nUsage: weave status ")
    assert agent.asked == []


# --- peers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "form"),
    [
        (["connect", "a", "b:1"], [("peer", "a"), ("peer", "b:1")]),
        (["connect", "--replace", "a"], [("replace", "true"), ("peer", "a")]),
        (["connect", "--replace"], [("replace", "true")]),
        (["forget", "a", "b"], [("peer", "a"), ("peer", "b")]),
    ],
    ids=str,
)
def test_peers_are_wanted_and_forgotten_without_a_word(
    agent: Stub, capsys: pytest.CaptureFixture[str], arguments: list[str], form: list[tuple[str, str]]
) -> None:
    agent.replies["POST", f"/{arguments[0]}"] = (200, "")

    assert weave(capsys, *arguments) == Result(0, "", "")
    assert agent.asked == [("POST", f"/{arguments[0]}", form, "")]


def test_a_peer_that_cannot_be_one_is_reported(agent: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    agent.replies["POST", "/connect"] = (400, 'invalid peer name ":1", should be host[:port]\n')

    assert weave(capsys, "connect", ":1") == Result(1, "", 'invalid peer name ":1", should be host[:port]\n')


def test_connect_as_json_shows_what_is_wanted_then(agent: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    agent.replies["POST", "/connect"] = (200, "")
    agent.replies["GET", "/report"] = (200, REPORT)

    assert json.loads(weave(capsys, "connect", "--json", "a").out) == ["192.168.77.2", "192.168.77.3"]


@pytest.mark.parametrize("arguments", [["connect"], ["forget"], ["rmpeer"]], ids=str)
def test_peers_must_be_named(agent: Stub, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    result = weave(capsys, *arguments)

    assert (result.status, result.out) == (1, "")
    assert "Missing argument 'PEER...'" in result.err
    assert f"Usage: weave {arguments[0]} " in result.err
    assert agent.asked == []


def test_peers_are_removed_one_by_one_and_one_that_cannot_be_is_a_failure(
    agent: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    agent.replies["DELETE", "/peer/host3"] = (200, "131073 IPs taken over from host3\n")
    agent.replies["DELETE", "/peer/7a:00:00:00:00:04"] = (200, "0 IPs taken over from 7a:00:00:00:00:04\n")
    agent.replies["DELETE", "/peer/a%2Fb"] = (400, "no\n")

    result = weave(capsys, "rmpeer", "host3", "a/b", "7a:00:00:00:00:04")

    assert result == Result(
        1,
        "131073 IPs taken over from host3\n0 IPs taken over from 7a:00:00:00:00:04\n",
        "a/b: no\nnot all peers could be removed\n",
    )


def test_removed_peers_as_json(agent: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    agent.replies["DELETE", "/peer/host3"] = (200, "7 IPs taken over from host3\n")

    assert json.loads(weave(capsys, "rmpeer", "--json", "host3").out) == {"host3": "7 IPs taken over from host3"}


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_a_report_is_json_and_ends_its_last_line(agent: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    agent.replies["GET", "/report"] = (200, '{\n    "Ready": true\n}')

    assert weave(capsys, "report") == Result(0, '{\n    "Ready": true\n}\n', "")
    assert agent.asked[0][3] == "application/json"


def test_a_report_in_a_format_is_made_by_the_agent(agent: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    agent.replies["GET", "/report?format=%7B%7Bjson+.DNS%7D%7D"] = (200, "null")

    assert weave(capsys, "report", "-f", "{{json .DNS}}") == Result(0, "null\n", "")


def test_attachments_are_listed(agent: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    agent.replies["GET", "/ps"] = (200, "weave:expose 7a:00:00:00:00:01 10.32.0.1/12\n")
    agent.replies["GET", "/ps?container=c0&container=weave%3Aexpose"] = (200, "[]")

    assert weave(capsys, "ps").out == "weave:expose 7a:00:00:00:00:01 10.32.0.1/12\n"
    assert weave(capsys, "ps", "--json", "c0", "weave:expose").out == "[]\n"


def test_versions_are_ours_and_the_agents(agent: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    agent.replies["GET", "/report?format=%7B%7B.Version%7D%7D"] = (200, "9.9")

    assert weave(capsys, "version") == Result(0, f"weave script {version('weavenet')}\nweave 9.9\n", "")
    assert json.loads(weave(capsys, "version", "--json").out) == {"script": version("weavenet"), "agent": "9.9"}


def test_without_an_agent_there_is_one_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = weave(capsys, "version", "--socket", str(tmp_path / "none"))

    assert (result.status, result.out) == (0, f"weave script {version('weavenet')}\n")
    assert "weave is not running on this host" in result.err


def test_prime_waits_for_the_ring(agent: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    agent.replies["GET", "/ring"] = (200, "")

    assert weave(capsys, "prime") == Result(0, "", "")
    assert weave(capsys, "prime", "--json").out == '{"primed": true}\n'


# --- misuse and absence -----------------------------------------------------------------------------------------------


def test_no_arguments_is_misuse(capsys: pytest.CaptureFixture[str]) -> None:
    result = weave(capsys)

    assert (result.status, result.out) == (1, "")
    assert result.err.startswith("Usage: weave ")


@pytest.mark.parametrize("arguments", [["help"], ["--help"], ["status", "--help"], ["connect", "-h"]], ids=str)
def test_help_is_no_misuse(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    result = weave(capsys, *arguments)

    assert (result.status, result.err) == (0, "")
    assert result.out.startswith("Usage: weave ")


def test_an_unknown_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    result = weave(capsys, "nonsense")

    assert (result.status, result.out) == (1, "")
    assert result.err.startswith("Unknown weave command 'nonsense'\nUsage: weave ")


def test_a_command_that_weave_removed_is_named_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    assert weave(capsys, "launch-router") == Result(
        1, "", "The 'weave launch-router' command has been removed as of Weave Net version 2.0\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["connect", "a"],
        ["forget", "a"],
        ["report"],
        ["ps"],
        ["prime"],
        ["rmpeer", "a"],
        ["expose"],
        ["hide"],
    ],
    ids=str,
)
def test_without_an_agent_every_command_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    path = tmp_path / "none.sock"

    result = weave(capsys, "--socket", str(path), *arguments)

    assert (result.status, result.out) == (1, "")
    assert result.err.startswith(f"weave is not running on this host (no socket at {path}): start it with ")


def test_an_agent_that_has_ended_has_an_exit_status_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "left.sock"
    with socketserver.UnixStreamServer(str(path), BaseHTTPRequestHandler):
        pass

    result = weave(capsys, "status", "--socket", str(path))

    assert result.status == 2
    assert f"nobody answers at {path}" in result.err


def test_the_socket_can_be_given_before_and_after_the_command(
    agent: Stub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEAVENET_SOCKET", "/nonexistent")
    agent.replies["GET", "/status/peers"] = (200, "line\n")

    assert weave(capsys, "--socket", agent.path, "status", "peers").out == "line\n"
    assert weave(capsys, "status", "peers", "--socket", agent.path).out == "line\n"


def test_the_command_line_imports_nothing_heavy() -> None:
    program = "import sys, weavenet.cli.main; print(*sorted(sys.modules))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    heavy = {"asyncio", "msgspec", "email.parser", "pyroute2", "prometheus_client", "nacl", "importlib.metadata"}
    assert heavy & set(run.stdout.split()) == set()


# --- passwords --------------------------------------------------------------------------------------------------------


def test_keys_are_listed_as_the_agent_says(agent: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    agent.replies["GET", "/key"] = (200, "initial  in use\n")

    assert weave(capsys, "key", "list") == Result(0, "initial  in use\n", "")
    assert weave(capsys, "key", "list", "--json") == Result(0, "initial  in use\n", "")
    assert [accept for *_, accept in agent.asked] == ["", "application/json"]


def test_a_password_is_read_from_standard_input_a_file_or_a_descriptor(
    agent: Stub, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.replies["POST", "/key/spring"] = (204, "")
    (tmp_path / "secret").write_text("from a file\n")
    descriptor = os.open(tmp_path / "secret", os.O_RDONLY)
    with (tmp_path / "secret").open() as file:
        monkeypatch.setattr("sys.stdin", file)
        monkeypatch.setattr("weavenet.cli.keys.STDIN_FD", file.fileno())
        assert weave(capsys, "key", "add", "spring") == Result(0, "", "")
    assert weave(capsys, "key", "add", "spring", "--file", str(tmp_path / "secret")) == Result(0, "", "")
    assert weave(capsys, "key", "add", "spring", "--fd", str(descriptor)) == Result(0, "", "")
    assert [form for _, _, form, _ in agent.asked] == [[("password", "from a file")]] * 3


def test_a_password_is_no_argument(agent: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    result = weave(capsys, "key", "add", "spring", "secret")

    assert result.status == 1
    assert agent.asked == []


def test_a_key_is_used_and_retired_and_refusals_are_shown(agent: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    agent.replies["PUT", "/key/spring"] = (204, "")
    agent.replies["DELETE", "/key/spring"] = (400, "spring is in use\n")

    assert weave(capsys, "key", "use", "spring") == Result(0, "", "")
    refused = weave(capsys, "key", "retire", "spring")
    assert (refused.status, refused.out) == (1, "")
    assert "spring is in use" in refused.err


def test_a_password_that_cannot_be_read_is_not_shown(
    agent: Stub, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes(b"secret \xff")

    assert weave(capsys, "key", "add", "spring", "--file", str(tmp_path / "secret")).err == (
        "the password is not text in UTF-8\n"
    )
    missing = weave(capsys, "key", "add", "spring", "--file", str(tmp_path / "missing"))
    assert "No such file or directory" in missing.err
    assert agent.asked == []
