"""Log lines in Weave's shape, `INFO: 2026/11/23 20:58:27.106444 text`, on standard error.

Nothing secret comes near the log: passwords stay in `Password` (mesh/keyring.py), which prints as `<redacted>`.
"""

import logging
from datetime import UTC, datetime

from weavenet.api.visible import visible

_LEVEL_TEXTS = {
    logging.DEBUG: "DEBU",
    logging.INFO: "INFO",
    logging.WARNING: "WARN",
    logging.ERROR: "ERRO",
    logging.CRITICAL: "FATA",
}
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
LEVEL_NAMES = tuple(_LEVELS)


class WeaveFormatter(logging.Formatter):
    """Level in four letters, UTC with microseconds, text; control characters of remote origin are made visible."""

    def format(self, record: logging.LogRecord) -> str:
        """Write one record as one line, plus the traceback of an unexpected error."""
        stamp = datetime.fromtimestamp(record.created, UTC).strftime("%Y/%m/%d %H:%M:%S.%f")
        # A peer chooses its own nickname; a newline or an escape sequence in it must not write log lines of its own.
        text = visible(record.getMessage())
        line = f"{_LEVEL_TEXTS.get(record.levelno, 'INFO')}: {stamp} {text}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def open_log(level: str) -> logging.Logger:
    """Return the agent's logger, writing to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(WeaveFormatter())
    log = logging.getLogger("weavenet")
    log.setLevel(_LEVELS[level])
    log.handlers[:] = [handler]
    log.propagate = False
    return log
