"""Log lines are Weave's in shape, and one line each."""

import logging
import re

from weavenet.agent.config import Password
from weavenet.agent.log import WeaveFormatter


def _format(level: int, text: str, *args: object) -> str:
    return WeaveFormatter().format(logging.LogRecord("weavenet", level, "", 0, text, args, None))


def test_a_line_has_level_time_in_microseconds_and_text() -> None:
    line = _format(logging.INFO, "->[%s] connection accepted", "192.0.2.1:6783")
    assert re.fullmatch(
        r"INFO: \d{4}/\d\d/\d\d \d\d:\d\d:\d\d\.\d{6} ->\[192\.0\.2\.1:6783\] connection accepted",
        line,
    )


def test_a_remote_nickname_cannot_write_lines_of_its_own() -> None:
    assert "\n" not in _format(logging.WARNING, "peer %s", "evil\nINFO: all is well\x1b[2J")


def test_a_password_prints_as_redacted() -> None:
    assert "secret" not in _format(logging.INFO, "%s %r", Password("secret"), Password("secret"))
