"""The Helm chart gives the very objects that `weave manifest` prints.

There is no Helm in Python that is small and well kept, so the chart uses little of its language, and this reads just
that: `if`/`else`, `range` over a mapping, `not`, `or`, `default`, `join`, `quote`, `toYaml`, `nindent`, comments.
Whatever else a template might come to use fails here, by name. As in Helm, a mapping is gone through in order of its
keys, and `-` takes blanks and line ends away on its side.
"""

import json
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from weavenet.manifest.objects import objects
from weavenet.manifest.options import ImageSource, parse_options
from weavenet.version import VERSION

CHART = Path(__file__).parents[2] / "deploy/helm/weavenet"
DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())
ABOUT = yaml.safe_load((CHART / "Chart.yaml").read_text())
IMAGE = ImageSource(DEFAULTS["image"]["repository"], ABOUT["appVersion"])

FUNCTIONS: dict[str, Callable] = {
    "not": lambda value: not value,
    "or": lambda *values: next((value for value in values if value), values[-1]),
    "default": lambda fallback, value: value or fallback,
    "join": lambda separator, values: separator.join(values),
    "quote": json.dumps,
    "toYaml": lambda value: yaml.safe_dump(value, default_flow_style=False).rstrip("\n"),
    "nindent": lambda width, text: "\n" + "\n".join(" " * width + line for line in text.split("\n")),
}


@dataclass
class Action:
    """One `{{ ... }}`."""

    text: str


def tokens(template: str) -> list[str | Action]:
    found: list[str | Action] = []
    at, eat = 0, False
    for match in re.finditer(r"\{\{(-?)\s*(.*?)\s*(-?)\}\}", template, re.DOTALL):
        text = template[at : match.start()]
        text = text.lstrip() if eat else text
        found.append(text.rstrip() if match[1] else text)
        if not match[2].startswith("/*"):
            found.append(Action(match[2]))
        at, eat = match.end(), bool(match[3])
    found.append(template[at:].lstrip() if eat else template[at:])
    return found


def evaluate(expression: str, scope: dict) -> object:
    value: list[object] = []
    for command in re.split(r"\s\|\s", expression):
        words = re.findall(r'"[^"]*"|\([^()]*\)|[^\s()]+', command)
        arguments = [operand(word, scope) for word in words if word not in FUNCTIONS] + value
        value = [FUNCTIONS[words[0]](*arguments) if words[0] in FUNCTIONS else arguments[0]]
        assert all(word not in FUNCTIONS for word in words[1:]), f"beyond this test: {command}"
    return value[0]


def operand(word: str, scope: dict) -> object:
    if word.startswith("("):
        return evaluate(word[1:-1], scope)
    if word.startswith('"') or word.isdigit():
        return json.loads(word)
    if word.startswith("$"):
        return scope[word]
    assert re.fullmatch(r"(\.\w+)+", word), f"beyond this test: {word}"
    value: object = scope
    for name in word[1:].split("."):
        assert isinstance(value, dict)
        value = value[name]
    return value


def render_template(template: str, scope: dict) -> str:
    stream = iter(tokens(template))
    text, ended_by = block(stream, scope)
    assert ended_by == ""
    return text


def block(stream: Iterator[str | Action], scope: dict) -> tuple[str, str]:
    """Render up to the end of the block, and return what ended it."""
    text = ""
    for token in stream:
        if isinstance(token, str):
            text += token
            continue
        keyword, _, rest = token.text.partition(" ")
        if keyword in {"end", "else"}:
            return text, keyword
        if keyword == "if":
            text += conditional(stream, scope, holds=bool(evaluate(rest, scope)))
        elif keyword == "range":
            text += loop(stream, scope, rest)
        else:
            text += str(evaluate(token.text, scope))
    return text, ""


def conditional(stream: Iterator[str | Action], scope: dict, *, holds: bool) -> str:
    first, ended_by = block(stream, scope)
    second, ended_by = block(stream, scope) if ended_by == "else" else ("", ended_by)
    assert ended_by == "end"
    return first if holds else second


def loop(stream: Iterator[str | Action], scope: dict, rest: str) -> str:
    match = re.fullmatch(r"(\$\w+), (\$\w+) := (\S+)", rest)
    assert match, f"beyond this test: {rest}"
    body: list[str | Action] = []
    depth = 1
    for token in stream:
        word = token.text.split(" ")[0] if isinstance(token, Action) else ""
        depth += (word in {"if", "range"}) - (word == "end")
        if not depth:
            break
        body.append(token)
    members = evaluate(match[3], scope)
    assert isinstance(members, dict)
    return "".join(block(iter(body), scope | {match[1]: name, match[2]: members[name]})[0] for name in sorted(members))


def chart_objects(values: dict) -> dict[str, dict]:
    merged = deepcopy(DEFAULTS) | values
    scope = {"Values": merged, "Chart": {"AppVersion": ABOUT["appVersion"]}}
    found: dict[str, dict] = {}
    for path in sorted((CHART / "templates").glob("*.yaml")):
        for one in yaml.safe_load_all(render_template(path.read_text(), scope)):
            assert one["kind"] not in found
            found[one["kind"]] = one
    return found


CASES: dict[str, tuple[dict, list[tuple[str, str]]]] = {
    "as it comes": ({}, []),
    "without policy": ({"networkPolicy": False}, [("disable-npc", "true")]),
    "with variables": (
        {"env": {"WEAVE_MTU": "8916", "EXTRA_ARGS": '--log-level=debug --nickname="a b"'}},
        [("env.WEAVE_MTU", "8916"), ("env.EXTRA_ARGS", '--log-level=debug --nickname="a b"')],
    ),
    "with everything": (
        {
            "image": {"repository": DEFAULTS["image"]["repository"], "tag": "7"},
            "env": {"IPALLOC_RANGE": "10.40.0.0/16", "WEAVE_STATUS_ADDR": "10.0.0.5:6790"},
            "passwordSecret": "weave-passwd",
            "networkPolicy": False,
            "knownPeers": ["10.0.0.1", "10.0.0.2"],
            "trustedSubnets": ["10.0.0.0/8", "192.168.0.0/16"],
            "seLinuxOptions": {"type": "my_t", "level": "s0:c1"},
            "keepState": True,
            "probe": {"host": "10.0.0.5", "port": 6790},
        },
        [
            ("version", "7"),
            ("env.IPALLOC_RANGE", "10.40.0.0/16"),
            ("env.WEAVE_STATUS_ADDR", "10.0.0.5:6790"),
            ("password-secret", "weave-passwd"),
            ("disable-npc", "true"),
            ("known-peers", "10.0.0.1,10.0.0.2"),
            ("trusted-subnets", "10.0.0.0/8,192.168.0.0/16"),
            ("seLinuxOptions.type", "my_t"),
            ("seLinuxOptions.level", "s0:c1"),
            ("keep-state", "true"),
        ],
    ),
}


def in_any_order(found: dict) -> dict:
    """Variables of a container are a set: give them one order."""
    found = deepcopy(found)
    if found["kind"] == "DaemonSet":
        spec = found["spec"]["template"]["spec"]
        for container in (*spec["initContainers"], *spec["containers"]):
            container.get("env", []).sort(key=lambda one: one["name"])
    return found


@pytest.mark.parametrize("name", CASES)
def test_the_chart_gives_what_the_command_prints(name: str) -> None:
    values, parameters = CASES[name]
    rendered = chart_objects(values)
    wanted = {one["kind"]: one for one in objects(parse_options([("k8s-version", "1.36"), *parameters], IMAGE))}
    assert set(rendered) == set(wanted)
    for kind, one in wanted.items():
        assert in_any_order(rendered[kind]) == in_any_order(one)


def test_the_chart_is_of_this_release() -> None:
    assert ABOUT["version"] == ABOUT["appVersion"] == VERSION
