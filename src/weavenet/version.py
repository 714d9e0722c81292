"""Which weavenet this is: the one place that says so (pyproject.toml reads it here).

Asking the installed package's metadata instead costs forty milliseconds, most of them in the parser for e-mail.
"""

VERSION = "0.1.0"
