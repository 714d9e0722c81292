"""House rules that no linter knows, as failing tests: size, names, docstrings, what may be caught and named."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "weavenet"
TESTS = ROOT / "tests"

MODULE_LINES_MAX = 500
TEST_LINES_MAX = 1200  # the specification of one module belongs together
FUNCTION_LINES_MAX = 60
SAYS_NOTHING = re.compile(r"(^|_)(utils?|commons?|helpers?|managers?|misc)(_|$)")

# Around a request and around a task: there an error of any kind becomes an answer, or the end of it all.
BROAD_EXCEPT_ALLOWED = {
    "agent/main.py",
    "agent/dispatch.py",
    "drivers/cni.py",
    "linux/netns.py",  # carries the error to the thread that asked
    "sim/faults.py",  # a run that fails in any way is a seed to print, and the others are still to be played
}

# Put together here, so that this file passes its own test.
REGISTRY_HOSTS = [
    ".".join(parts) for parts in (("pypi", "org"), ("pythonhosted", "org"), ("test", "pypi"), ("npmjs", "com"))
]
INDEX_OPTIONS = [f"--{name}" for name in ("index-url", "extra-index-url", "find-links", "trusted-host")]

# Tests that are of no single module: of the real kernel, of whole hosts, of programs together.
NOT_MIRRORED = {"fuzz", "kernel", "scenarios", "interop", "e2e"}


def _python_files(*roots: Path) -> list[Path]:
    return sorted(path for root in roots for path in root.rglob("*.py"))


def _text_files() -> Iterator[tuple[Path, str]]:
    ours = [SOURCE, TESTS, ROOT / "docs", ROOT / "scripts", ROOT / "shim", ROOT / ".ci"]
    tops = [path for path in ROOT.iterdir() if path.is_file()]
    for path in sorted([*tops, *(found for root in ours for found in root.rglob("*") if found.is_file())]):
        try:
            yield path, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


EVERY_MODULE = pytest.mark.parametrize("path", _python_files(SOURCE, TESTS), ids=_name)
SOURCE_MODULES = pytest.mark.parametrize("path", _python_files(SOURCE), ids=_name)


@EVERY_MODULE
def test_a_module_is_not_long(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    allowed = MODULE_LINES_MAX if SOURCE in path.parents else TEST_LINES_MAX
    assert lines <= allowed, f"{_name(path)} has {lines} lines; what in it is a part of its own?"


@EVERY_MODULE
def test_a_function_fits_a_screen(path: Path) -> None:
    for function in _functions(ast.parse(path.read_text())):
        assert function.end_lineno is not None
        lines = function.end_lineno - function.lineno + 1
        assert lines <= FUNCTION_LINES_MAX, f"{_name(path)}:{function.lineno}: {function.name} has {lines} lines"


@EVERY_MODULE
def test_a_module_is_named_for_what_it_is_about(path: Path) -> None:
    for part in path.relative_to(ROOT).with_suffix("").parts:
        assert not SAYS_NOTHING.search(part), f"{_name(path)}: {part} says nothing about what is inside"


@SOURCE_MODULES
def test_a_module_opens_with_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), f"{_name(path)} has no docstring"


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("__init__.py")), ids=_name)
def test_a_package_does_nothing_when_imported(path: Path) -> None:
    body = ast.parse(path.read_text()).body
    assert len(body) == 1, f"{_name(path)} holds more than its docstring"
    assert isinstance(body[0], ast.Expr)


@SOURCE_MODULES
def test_errors_are_caught_by_kind(path: Path) -> None:
    if str(path.relative_to(SOURCE)) in BROAD_EXCEPT_ALLOWED:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler) and _is_broad(node.type):
            # Cleaning up and passing the error on hides nothing.
            last = node.body[-1]
            assert isinstance(last, ast.Raise), f"{_name(path)}:{node.lineno} catches everything and goes on"
            assert last.exc is None, f"{_name(path)}:{node.lineno} catches everything and raises another error"


def _is_broad(caught: ast.expr | None) -> bool:
    if caught is None:
        return True
    kinds = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(isinstance(kind, ast.Name) and kind.id in {"Exception", "BaseException"} for kind in kinds)


def test_a_gap_that_is_known_has_an_issue() -> None:
    marker = re.compile(r"(#|//|/\*)\s*(TODO|FIXME|XXX)\b(?!\(#\d+\))")
    found = [
        f"{_name(path)}:{number}: {line.strip()}"
        for path, text in _text_files()
        if path.suffix in {".py", ".c", ".h", ".sh", ".toml", ""}
        for number, line in enumerate(text.splitlines(), 1)
        if marker.search(line)
    ]
    assert not found, "write the issue's number behind it, in parentheses: " + "; ".join(found)


def test_no_file_names_a_package_registry() -> None:
    # Where packages come from is the machine's business; a name here would bind everyone to it.
    found = [
        f"{_name(path)}: {word}"
        for path, text in _text_files()
        for word in (*REGISTRY_HOSTS, *(INDEX_OPTIONS if path.name == "constraints.txt" else ()))
        if word in text
    ]
    assert not found


def test_every_pinned_package_has_a_hash() -> None:
    pins = (ROOT / "constraints.txt").read_text().replace("\\\n", " ").splitlines()
    for pin in filter(None, (pin.partition("#")[0].strip() for pin in pins)):
        assert re.fullmatch(r"[\w.-]+==\S+( +--hash=sha256:[0-9a-f]{64})+", pin), f"not pinned: {pin[:60]}"


@pytest.mark.parametrize("path", [path for path in _python_files(TESTS) if path.name.startswith("test_")], ids=_name)
def test_tests_lie_where_the_code_lies(path: Path) -> None:
    package = path.parent.relative_to(TESTS)
    if package.parts and package.parts[0] in NOT_MIRRORED:
        return
    subject = path.stem.removeprefix("test_")
    modules = [module.stem for module in (SOURCE / package).glob("*.py")]
    # A fake that stands in for something large has tests of its own, beside it.
    modules += [fake.stem for fake in path.parent.glob("*.py") if not fake.name.startswith(("test_", "conftest"))]
    of_the_tree = package == Path() and subject in {"tidy", "imports"}
    # A module may have several files of tests: test_router.py, test_router_gossip.py.
    assert of_the_tree or any(subject == module or subject.startswith(f"{module}_") for module in modules), (
        f"{_name(path)} tests no module of src/weavenet/{package}"
    )
