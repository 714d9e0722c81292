"""Nothing that a peer calls itself does anything to a terminal."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weavenet.api.visible import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("host1", "host1", id="ASCII stays"),
        pytest.param('a b (c) \\ "d"', 'a b (c) \\ "d"', id="blanks, brackets, quotes stay"),
        pytest.param("Jülich 東京 ☃ 🐙", "Jülich 東京 ☃ 🐙", id="letters and signs of all scripts stay"),
        pytest.param("\x1b[2J", "\\u001b[2J", id="an escape sequence"),
        pytest.param("a\nb\r\tc\0", "a\\u000ab\\u000d\\u0009c\\u0000", id="line ends, tabs, zeros"),
        pytest.param("\x7f\x9b31m\x85", "\\u007f\\u009b31m\\u0085", id="delete, and control characters of eight bits"),
        pytest.param("\u202egnp.exe\u2066", "\\u202egnp.exe\\u2066", id="writing turned round"),
        pytest.param("ho\u200bst\u00a01\u2028", "ho\\u200bst\\u00a01\\u2028", id="what is not seen"),
        pytest.param("\U000e0041\ud800", "\\udb40\\udc41\\ud800", id="tags, and half a pair"),
    ],
)
def test_what_would_not_print_is_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_a_caller_can_keep_what_it_means_itself() -> None:
    assert visible("a\tb\nc\x1b", keep="\n\t") == "a\tb\nc\\u001b"


@given(st.text())
def test_what_is_shown_is_printable_and_showing_it_again_changes_nothing(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable()
    assert visible(shown) == shown


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_json_that_was_made_visible_is_the_same_json(text: str) -> None:
    raw = json.dumps({text: [text]}, ensure_ascii=False, indent=4)
    assert json.loads(visible(raw, keep="\n")) == {text: [text]}
