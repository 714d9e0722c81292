"""What every command has: the agent of this host, `--json` and `--socket`."""

from dataclasses import dataclass

import click

from weavenet.api.client import Client

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Session:
    """What every command has: the agent, and whether to speak JSON."""

    client: Client
    as_json: bool


class AgentCommand(click.Command):
    """A command with `--json` and `--socket`, which finds a session as the context's object."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the command's own, and the common ones."""
        return [*super().get_params(ctx), *_COMMON_OPTIONS]

    def invoke(self, ctx: click.Context) -> object:
        """Run with a session."""
        own_socket = ctx.params.pop("socket_path")
        group_socket = ctx.obj if isinstance(ctx.obj, str) else None
        ctx.obj = Session(Client(own_socket or group_socket), as_json=bool(ctx.params.pop("as_json")))
        return super().invoke(ctx)


_COMMON_OPTIONS = (
    click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
    click.Option(["--socket", "socket_path"], metavar="PATH", help="The agent's control socket."),
)


def print_ended(text: str) -> None:
    """Print with exactly one line end at the end, and nothing for nothing."""
    if text:
        click.echo(text, nl=not text.endswith("\n"))
