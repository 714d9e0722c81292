"""What Weave's environment variables say of the node itself: all that the init container wants to know of them.

Apart from kube_env.py, as nothing of the agent is needed for it: the init container is there for a moment, on each node
at the same time as all others of the cluster, and nothing else happens until it has ended.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from weavenet.agent.install import Place
from weavenet.errors import ConfigError

DEFAULT_HOST_ROOT: Final = "/host"
_NUMBER_DIGITS_MAX = 9


class Environment:
    """Variables, where a blank one is as good as none: that is how `${NAME:-default}` sees it."""

    def __init__(self, given: Mapping[str, str]) -> None:
        """Take what was given."""
        self._given = given

    def text(self, name: str, default: str = "") -> str:
        """Return a variable without blanks around it."""
        return self._given.get(name, "").strip() or default

    def words(self, name: str) -> list[str]:
        """Return one as a shell would split it. Raises ConfigError."""
        try:
            return shlex.split(self.text(name))
        except ValueError as error:
            raise ConfigError(f"{name}: {error}") from error

    def number(self, name: str, default: int, least: int, most: int) -> int:
        """Return one that is a number within bounds. Raises ConfigError."""
        text = self.text(name, str(default))
        if not (text.isascii() and text.isdigit()) or len(text) > _NUMBER_DIGITS_MAX or not least <= int(text) <= most:
            raise ConfigError(f"{name}={text}: must be a number from {least} to {most}")
        return int(text)

    def switch(self, name: str, *, default: bool = True) -> bool:
        """Return one that is 0 or 1. Raises ConfigError."""
        text = self.text(name, "1" if default else "0")
        if text not in {"0", "1"}:
            raise ConfigError(f"{name}={text}: must be 0 or 1")
        return text == "1"


def install_place(environment: Mapping[str, str], executable: Path) -> Place:
    """Return where on the node CNI files go. Raises ConfigError."""
    env = Environment(environment)
    hairpin = env.text("HAIRPIN_MODE", "true")
    if hairpin not in {"true", "false"}:
        raise ConfigError(f"HAIRPIN_MODE={hairpin}: must be true or false")
    directory = env.text("WEAVE_CNI_PLUGIN_DIR")
    if directory and not directory.startswith("/"):
        raise ConfigError(f"WEAVE_CNI_PLUGIN_DIR={directory}: must be an absolute path, below HOST_ROOT")
    return Place(
        host_root=Path(env.text("HOST_ROOT", DEFAULT_HOST_ROOT)),
        executable=executable,
        plugin_directory=Path(directory) if directory else None,
        hairpin=hairpin == "true",
    )


def wants_policy(environment: Mapping[str, str]) -> bool:
    """Say whether network policies are to be enforced. Raises ConfigError."""
    return Environment(environment).switch("EXPECT_NPC")


def init_container_ran(environment: Mapping[str, str]) -> bool:
    """Say whether `weave-kube init` has run in a container of its own, as manifests have it since Weave Net 2.8."""
    return environment.get("INIT_CONTAINER", "") == "true"
