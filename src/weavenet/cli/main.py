"""The `weave` command: the door to the agent of this host.

Commands are thin: each makes one request to the control API and prints the answer, so that what people see and what
the agent says can never differ. (`weave manifest` asks no agent, and is a package of its own.) Exit statuses and texts
on standard error are those of Weave's script: 1 for misuse, refusals and an agent that was never started, 2 for one
that has ended; results go to standard output and nothing else does.

Nothing is imported that a command does not need: `weave status` should feel like `ls`. Source: docs/protocol.md,
"weave script".
"""

import sys
from collections.abc import Sequence

import click

from weavenet.cli import commands
from weavenet.errors import AgentAwayError, ApiError
from weavenet.manifest.command import manifest

EXIT_FAILED = 1
EXIT_ENDED = 2
EXIT_INTERRUPTED = 130

# Weave Net 2.0 removed them, and its script says so.
_REMOVED = (
    "run",
    "start",
    "restart",
    "launch-router",
    "launch-proxy",
    "launch-plugin",
    "stop-router",
    "stop-proxy",
    "stop-plugin",
)


class _WeaveGroup(click.Group):
    """A group that says what Weave says about a command it does not know."""

    def resolve_command(
        self,
        ctx: click.Context,
        args: list[str],
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name in _REMOVED:
            raise click.ClickException(f"The 'weave {name}' command has been removed as of Weave Net version 2.0")
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            raise click.UsageError(f"Unknown weave command '{name}'", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=_WeaveGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--socket", "socket_path", metavar="PATH", help="The agent's control socket.", envvar="WEAVENET_SOCKET")
@click.pass_context
def weave(context: click.Context, socket_path: str | None) -> None:
    """Talk to the weave agent of this host."""
    context.obj = socket_path


for _command in (*commands.ALL, manifest):
    weave.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given:
        with weave.make_context("weave", [], resilient_parsing=True) as context:
            click.echo(weave.get_help(context), err=True)
        return EXIT_FAILED
    if given == ["help"]:
        given = ["--help"]
    try:
        weave.main(given, prog_name="weave", standalone_mode=False)
    except AgentAwayError as error:
        click.echo(str(error), err=True)
        return EXIT_ENDED if error.was_there else EXIT_FAILED
    except ApiError as error:
        click.echo(str(error), err=True)
        return EXIT_FAILED
    except click.UsageError as error:
        click.echo(error.format_message(), err=True)
        if error.ctx is not None:
            click.echo(error.ctx.get_help(), err=True)
        return EXIT_FAILED
    except click.ClickException as error:
        click.echo(error.format_message(), err=True)
        return EXIT_FAILED
    except click.Abort:
        return EXIT_INTERRUPTED
    return 0
