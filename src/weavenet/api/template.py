"""The part of Go's text/template that people write after `weave report -f`.

    text        = { literal | "{{" action "}}" }              "{{-" and "-}}" eat the blanks before and after
    action      = pipeline | comment
                | "range" pipeline | "if" pipeline | "with" pipeline | "else" | "end"
    pipeline    = command { "|" command }                     the value so far becomes the last argument
    command     = function { operand } | operand
    operand     = "." | "$" | path | literal string | number | true | false | nil | "(" pipeline ")"
    path        = ["$"] "." name { "." name }
    function    = json | len | index | not | and | or | eq | ne | print

Variables, nested templates and printf are left out. A name that the data do not have is an error, as it is for Go's
structs. Values print as fmt.Print prints them. Sources: the documentation of Go's text/template; Weave
prog/weaver/http.go.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import assert_never

import msgspec

from weavenet.errors import InputError

# What JSON can say. Recursive types and mypy's ban on Any leave `object` for what is inside.
Value = object

TEMPLATE_CHARACTERS_MAX = 64 << 10
DEPTH_MAX = 32
OUTPUT_CHARACTERS_MAX = 64 << 20
STEPS_MAX = 1_000_000  # ranges within ranges over a large mesh must not hold up the agent

_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)
        |(?P<number>-?\d+)
        |(?P<path>\$?(?:\.\w+)+|\$|\.)
        |(?P<word>\w+)
        |(?P<mark>[|()]))""",
    re.VERBOSE,
)
_BLANKS = " \t\r\n"


class TemplateError(InputError):
    """A template that cannot be read."""


class TemplateExecutionError(InputError):
    """A template that the data do not fit."""


class _Literal(msgspec.Struct, frozen=True):
    value: Value


class _Path(msgspec.Struct, frozen=True):
    from_root: bool
    names: tuple[str, ...]
    text: str


class _Call(msgspec.Struct, frozen=True):
    function: str
    arguments: tuple["_Expression", ...]


_Expression = _Literal | _Path | _Call


class _Text(msgspec.Struct, frozen=True):
    text: str


class _Print(msgspec.Struct, frozen=True):
    expression: _Expression


class _Block(msgspec.Struct, frozen=True):
    keyword: str  # range, if, with
    expression: _Expression
    body: tuple["_Node", ...]
    otherwise: tuple["_Node", ...]


_Node = _Text | _Print | _Block


class Template:
    """A template, read once."""

    def __init__(self, text: str) -> None:
        """Read it. Raises TemplateError."""
        if len(text) > TEMPLATE_CHARACTERS_MAX:
            raise TemplateError(f"a template has at most {TEMPLATE_CHARACTERS_MAX} characters, this one {len(text)}")
        reader = _Reader(text)
        self._nodes = reader.nodes(depth=0)

    def execute(self, data: Value) -> str:
        """Fill it in with what msgspec.to_builtins made. Raises TemplateExecutionError."""
        run = _Run(data)
        run.nodes(self._nodes, data)
        return "".join(run.parts)


# --- reading ----------------------------------------------------------------------------------------------------------


class _Reader:
    """Recursive descent over literals and actions."""

    def __init__(self, text: str) -> None:
        self._pieces = _pieces(text)
        self._closing = ""  # what ended the last call of `nodes`: "", "else" or "end"

    def nodes(self, depth: int) -> tuple[_Node, ...]:
        if depth > DEPTH_MAX:
            raise TemplateError(f"blocks are nested more than {DEPTH_MAX} deep")
        found: list[_Node] = []
        for literal, action in self._pieces:
            if literal:
                found.append(_Text(literal))
            if action is None or action.startswith("/*"):
                continue
            keyword, _, rest = action.partition(" ")
            if action in {"else", "end"}:
                if depth == 0:
                    raise TemplateError(f"unexpected {{{{{action}}}}}")
                self._closing = action
                return tuple(found)
            if keyword in {"range", "if", "with"}:
                found.append(self._block(keyword, rest, depth))
            elif keyword in {"else", "define", "template", "block", "break", "continue"} or ":=" in action:
                raise TemplateError(f"{{{{{action}}}}} is more of Go's template language than is supported here")
            else:
                found.append(_Print(_Actions(action).pipeline()))
        if depth:
            raise TemplateError("unexpected EOF: a block has no {{end}}")
        return tuple(found)

    def _block(self, keyword: str, rest: str, depth: int) -> _Block:
        expression = _Actions(rest).pipeline()
        body = self.nodes(depth + 1)
        otherwise: tuple[_Node, ...] = ()
        if self._closing == "else":
            otherwise = self.nodes(depth + 1)
            if self._closing == "else":
                raise TemplateError("expected end; found {{else}}")
        return _Block(keyword, expression, body, otherwise)


def _pieces(text: str) -> Iterator[tuple[str, str | None]]:
    """Yield literal texts, each with the action that follows it; the last has none."""
    at, trim = 0, False
    while True:
        opening = text.find("{{", at)
        literal = text[at:] if opening < 0 else text[at:opening]
        literal = literal.lstrip(_BLANKS) if trim else literal
        if opening < 0:
            yield literal, None
            return
        closing = text.find("}}", opening)
        if closing < 0:
            raise TemplateError("unclosed action")
        action = text[opening + 2 : closing]
        if action.startswith("-") and action[1:2] in _BLANKS:
            literal, action = literal.rstrip(_BLANKS), action[1:]
        trim = action.endswith("-") and action[-2:-1] in _BLANKS
        yield literal, (action[:-1] if trim else action).strip()
        at = closing + 2


class _Actions:
    """The inside of one action."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens: list[tuple[str, str]] = []
        at = 0
        while text[at:].strip():
            match = _TOKEN.match(text, at)
            if match is None:
                raise TemplateError(f"unexpected {text[at:].strip()[:20]!r} in {{{{{text}}}}}")
            kind = match.lastgroup
            assert kind is not None, "every alternative has a name"
            self._tokens.append((kind, match[kind]))
            at = match.end()
        self._at = 0

    def pipeline(self) -> _Expression:
        value = self._pipeline(depth=0)
        if self._at < len(self._tokens):
            raise self._unexpected()
        return value

    def _pipeline(self, depth: int) -> _Expression:
        if depth > DEPTH_MAX:
            raise TemplateError(f"parentheses are nested more than {DEPTH_MAX} deep")
        value = self._command(None, depth)
        while self._peek() == ("mark", "|"):
            self._at += 1
            value = self._command(value, depth)
        return value

    def _command(self, piped: _Expression | None, depth: int) -> _Expression:
        kind, text = self._peek()
        if kind == "word" and text in _FUNCTIONS:
            self._at += 1
            arguments: list[_Expression] = []
            while self._peek()[0] and self._peek() not in {("mark", "|"), ("mark", ")")}:
                arguments.append(self._operand(depth))
            return _Call(text, (*arguments, piped) if piped is not None else tuple(arguments))
        if kind == "word" and text not in _CONSTANTS:
            raise TemplateError(f'function "{text}" not defined')
        if piped is not None:
            raise TemplateError(f"a value is piped into {text!r}, which is no function, in {{{{{self._text}}}}}")
        return self._operand(depth)

    def _operand(self, depth: int) -> _Expression:
        kind, text = self._peek()
        self._at += 1
        if kind == "path":
            root = text.startswith("$")
            return _Path(root, tuple(name for name in text.lstrip("$").split(".") if name), text)
        if kind == "number":
            return _Literal(int(text))
        if kind == "string":
            return _Literal(_unquote(text))
        if kind == "word" and text in _CONSTANTS:
            return _Literal(_CONSTANTS[text])
        if (kind, text) == ("mark", "("):
            value = self._pipeline(depth + 1)
            if self._peek() != ("mark", ")"):
                raise TemplateError(f"a parenthesis is not closed in {{{{{self._text}}}}}")
            self._at += 1
            return value
        self._at -= 1
        raise self._unexpected()

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("", "")

    def _unexpected(self) -> TemplateError:
        text = self._peek()[1]
        return TemplateError(f"unexpected {text!r} in {{{{{self._text}}}}}" if text else "missing value for command")


def _unquote(text: str) -> str:
    if text.startswith("`"):
        return text[1:-1]
    try:
        return msgspec.json.decode(text.encode(), type=str)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TemplateError(f"{text} is not a string: {error}") from error


# --- executing --------------------------------------------------------------------------------------------------------


class _Run:
    """One execution: where the output goes, and what `$` is."""

    def __init__(self, root: Value) -> None:
        self.parts: list[str] = []
        self._root = root
        self._length = 0
        self._steps = 0

    def nodes(self, nodes: Sequence[_Node], dot: Value) -> None:
        for node in nodes:
            self._steps += 1
            if self._steps > STEPS_MAX:
                raise TemplateExecutionError(f"the template takes more than {STEPS_MAX} steps")
            match node:
                case _Text(text):
                    self._write(text)
                case _Print(expression):
                    self._write(_shown(self._value(expression, dot)))
                case _Block():
                    self._block(node, dot)
                case _:
                    assert_never(node)

    def _block(self, block: _Block, dot: Value) -> None:
        value = self._value(block.expression, dot)
        if not _truth(value):
            self.nodes(block.otherwise, dot)
        elif block.keyword == "range":
            for item in _items(value):
                self.nodes(block.body, item)
        else:
            self.nodes(block.body, value if block.keyword == "with" else dot)

    def _value(self, expression: _Expression, dot: Value) -> Value:
        match expression:
            case _Literal(value):
                return value
            case _Path(from_root, names, text):
                return _follow(self._root if from_root else dot, names, text)
            case _Call(function, arguments):
                return _FUNCTIONS[function]([self._value(argument, dot) for argument in arguments])
            case _:
                assert_never(expression)

    def _write(self, text: str) -> None:
        self._length += len(text)
        if self._length > OUTPUT_CHARACTERS_MAX:
            raise TemplateExecutionError(f"the output is longer than {OUTPUT_CHARACTERS_MAX} characters")
        self.parts.append(text)


def _follow(value: Value, names: Sequence[str], text: str) -> Value:
    for name in names:
        if not isinstance(value, Mapping) or name not in value:
            raise TemplateExecutionError(f"{text}: there is no {name}")
        value = value[name]
    return value


def _items(value: Value) -> Iterator[Value]:
    if isinstance(value, Mapping):
        yield from (value[key] for key in sorted(value))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        yield from value
    else:
        raise TemplateExecutionError(f"range can't iterate over {_shown(value)}")


def _truth(value: Value) -> bool:
    return bool(value)


def _shown(value: Value) -> str:
    if value is None:
        return "<nil>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "map[" + " ".join(f"{key}:{_shown(value[key])}" for key in sorted(value)) + "]"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + " ".join(_shown(item) for item in value) + "]"
    return str(value)


def _json(arguments: Sequence[Value]) -> Value:
    (value,) = _exactly(arguments, 1, "json")
    return msgspec.json.encode(value).decode()


def _len(arguments: Sequence[Value]) -> Value:
    (value,) = _exactly(arguments, 1, "len")
    if value is None:
        return 0  # a list without elements
    if not isinstance(value, str | Sequence | Mapping):
        raise TemplateExecutionError(f"len of {_shown(value)}")
    return len(value.encode()) if isinstance(value, str) else len(value)


def _index(arguments: Sequence[Value]) -> Value:
    if not arguments:
        raise TemplateExecutionError("index of nothing")
    value, *keys = arguments
    for key in keys:
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, Sequence) and isinstance(key, int) and 0 <= key < len(value):
            value = value[key]
        else:
            raise TemplateExecutionError(f"index {_shown(key)} is out of range")
    return value


def _not(arguments: Sequence[Value]) -> Value:
    (value,) = _exactly(arguments, 1, "not")
    return not _truth(value)


def _and(arguments: Sequence[Value]) -> Value:
    return next((value for value in arguments if not _truth(value)), arguments[-1] if arguments else False)


def _or(arguments: Sequence[Value]) -> Value:
    return next((value for value in arguments if _truth(value)), arguments[-1] if arguments else False)


def _eq(arguments: Sequence[Value]) -> Value:
    first, *others = arguments if len(arguments) > 1 else _exactly(arguments, 2, "eq")
    return any(first == other for other in others)


def _ne(arguments: Sequence[Value]) -> Value:
    first, second = _exactly(arguments, 2, "ne")
    return first != second


def _print(arguments: Sequence[Value]) -> Value:
    return "".join(_shown(value) for value in arguments)


def _exactly(arguments: Sequence[Value], count: int, function: str) -> Sequence[Value]:
    if len(arguments) != count:
        message = f"wrong number of args for {function}: want {count} got {len(arguments)}"
        raise TemplateExecutionError(message)
    return arguments


_CONSTANTS: dict[str, Value] = {"true": True, "false": False, "nil": None}
_FUNCTIONS: dict[str, Callable[[Sequence[Value]], Value]] = {
    "json": _json,
    "len": _len,
    "index": _index,
    "not": _not,
    "and": _and,
    "or": _or,
    "eq": _eq,
    "ne": _ne,
    "print": _print,
}
