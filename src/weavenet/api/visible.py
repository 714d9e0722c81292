r"""Texts made safe to print: what would move a cursor, change a colour, or turn the writing round is written out.

Peers choose their nicknames and containers their names, and an operator's terminal would do as they say: control
characters (C0 and C1; ECMA-48) may clear the screen or answer in the operator's place, a newline writes a line of its
own, and the bidirectional and invisible characters of Unicode make one name look like another (Unicode TR 36). What
counts as printable is decided by `str.isprintable`, so letters of all scripts stay as they are.

What is not is written as JSON writes it, `\u001b`. So JSON that was treated is still the same JSON: between its strings
it has nothing but ASCII.
"""

import re

_SUSPECT = re.compile(r"[^ -~]")


def visible(text: str, *, keep: str = "") -> str:
    """Return the text with all that does not print written out, but for the characters to keep."""
    if text.isprintable():
        return text
    return _SUSPECT.sub(lambda found: _visible_character(found[0], keep), text)


def _visible_character(character: str, keep: str) -> str:
    return character if character.isprintable() or character in keep else _escape(character)


def _escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
