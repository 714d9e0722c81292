"""The configuration that `weaver` makes of its flags."""

from weavenet.agent.config import AgentConfig, Flags, build_config
from weavenet.agent.main import main


def config_of(*flags: str) -> AgentConfig:
    """Return what `weaver` would make of flags."""
    given = main.make_context("weaver", list(flags)).params
    return build_config(Flags(**{name: value for name, value in given.items() if name != "reset"}))
