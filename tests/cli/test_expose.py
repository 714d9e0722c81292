"""`weave expose` and `weave hide`: what they ask, in which order, and what they print where."""

import json

import pytest
from stub_agent import Result, Stub, weave

IPAM = "/ip/weave:expose"


def asked(agent: Stub) -> list[str]:
    return [f"{method} {path}" for method, path, *_ in agent.asked]


@pytest.fixture
def exposing(agent: Stub) -> Stub:
    agent.replies["POST", IPAM] = agent.replies["GET", IPAM] = (200, "10.32.0.1/12")
    agent.replies["POST", f"{IPAM}/10.33.0.0/16"] = agent.replies["GET", f"{IPAM}/10.33.0.0/16"] = (200, "10.33.0.1/16")
    for address in ("10.32.0.1/12", "10.33.0.1/16", "192.0.2.1/24"):
        agent.replies["POST", f"/expose/{address}"] = agent.replies["DELETE", f"/expose/{address}"] = (204, "")
    return agent


@pytest.mark.parametrize("words", [[], ["net:default"], ["net:default", "10.32.0.1/12"]], ids=str)
def test_an_address_is_had_from_ipam_and_then_given_to_the_bridge(
    exposing: Stub, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert weave(capsys, "expose", *words) == Result(0, "10.32.0.1\n", "")
    assert asked(exposing) == [f"POST {IPAM}", "POST /expose/10.32.0.1/12"]


def test_all_forms_of_addresses_are_exposed_in_order(exposing: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["192.0.2.1/24", "net:10.33.0.0/16", "net:default", "ip:192.0.2.1/24"]
    assert weave(capsys, "expose", *words) == Result(0, "192.0.2.1 10.33.0.1 10.32.0.1\n", "")
    assert asked(exposing)[-3:] == [f"POST /expose/{each}" for each in ("192.0.2.1/24", "10.33.0.1/16", "10.32.0.1/12")]
    shown = weave(capsys, "expose", "--json", *words)
    assert json.loads(shown.out) == ["192.0.2.1/24", "10.33.0.1/16", "10.32.0.1/12"]


def test_masquerading_can_be_left_out(agent: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    agent.replies["POST", "/expose/192.0.2.1/24?skipNAT=true"] = (204, "")
    assert weave(capsys, "expose", "--without-masquerade", "192.0.2.1/24") == Result(0, "192.0.2.1\n", "")


def test_a_name_is_refused_until_there_is_dns_and_nothing_is_exposed(
    agent: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    result = weave(capsys, "expose", "-h", "gate.weave.local")
    assert (result.status, result.out, agent.asked) == (1, "", [])
    assert result.err.startswith("-h gate.weave.local: there is no DNS yet; leave it out")


@pytest.mark.parametrize("word", ["banana", "10.32.0.1", "net:", "net:10.33.0.0", "ip:x", "10.32.0.1/", "/12", "a/b"])
@pytest.mark.parametrize("command", ["expose", "hide"])
def test_what_is_no_address_is_misuse_and_nothing_is_asked(
    agent: Stub, capsys: pytest.CaptureFixture[str], command: str, word: str
) -> None:
    result = weave(capsys, command, "net:default", word)
    assert (result.status, result.out, agent.asked) == (1, "", [])
    assert result.err.startswith(f"{word!r} is none of net:default, net:SUBNET and [ip:]IP/LENGTH")


def test_what_the_agent_remarks_goes_to_standard_error(agent: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    agent.replies["POST", "/expose/192.0.2.1/24"] = agent.replies["DELETE", "/expose/192.0.2.1/24"] = (200, "mind\n")
    assert weave(capsys, "expose", "192.0.2.1/24") == Result(0, "192.0.2.1\n", "mind\n")
    assert weave(capsys, "hide", "192.0.2.1/24") == Result(0, "192.0.2.1\n", "mind\n")


def test_a_refusal_is_shown_and_fails(agent: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    agent.replies["POST", "/expose/192.0.2.1/24"] = (500, "unable to expose: no\n")
    assert weave(capsys, "expose", "192.0.2.1/24") == Result(1, "", "unable to expose: no\n")


@pytest.mark.parametrize("command", ["expose", "hide"])
def test_without_address_allocation_net_is_refused_in_weaves_words(
    agent: Stub, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    said = "IP address allocation must be enabled to use 'net:'\n"
    assert weave(capsys, command) == Result(1, "", said)
    assert len(agent.asked) == 1


def test_an_agent_that_is_leaving_is_not_taken_for_an_address(agent: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    agent.replies["POST", IPAM] = (200, "cancelled")
    result = weave(capsys, "expose")
    assert (result.status, result.out) == (1, "")
    assert "has left the mesh" in result.err


def test_hiding_is_of_what_is_exposed_in_the_default_subnet_unless_told_otherwise(
    exposing: Stub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert weave(capsys, "hide") == Result(0, "10.32.0.1\n", "")
    assert weave(capsys, "hide", "net:10.33.0.0/16", "ip:192.0.2.1/24") == Result(0, "10.33.0.1 192.0.2.1\n", "")
    assert asked(exposing) == [
        f"GET {IPAM}",
        "DELETE /expose/10.32.0.1/12",
        f"GET {IPAM}/10.33.0.0/16",
        "DELETE /expose/10.33.0.1/16",
        "DELETE /expose/192.0.2.1/24",
    ]


def test_hiding_where_nothing_is_exposed_is_fine(agent: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    agent.replies["GET", IPAM] = (200, "")
    assert weave(capsys, "hide") == Result(0, "", "")
    assert weave(capsys, "hide", "--json") == Result(0, "[]\n", "")
