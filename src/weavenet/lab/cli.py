"""The `weavenet-lab` command: up, down, exec, status, demo, bench."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from weavenet.errors import LabError
from weavenet.lab import agents, demo, hosts
from weavenet.lab.record import HostRecord, Paths, Record

DEFAULT_LAB = "default"


@contextmanager
def _explained() -> Iterator[None]:
    """Turn our errors into one clear line and an exit status."""
    try:
        yield
    except LabError as error:
        click.echo(f"lab: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _end(number: int, _frame: FrameType | None) -> None:
    """Have SIGTERM and SIGHUP unwind as Ctrl-C does, through all that cleans up."""
    sys.exit(128 + number)


@click.group()
@click.option(
    "--lab", "name", default=DEFAULT_LAB, show_default=True, help="Name of the lab; several can be up at once."
)
@click.pass_context
def main(context: click.Context, name: str) -> None:
    """Hosts as network namespaces on this machine, an agent on each, pods attached through CNI. Needs root."""
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    with _explained():
        context.obj = Paths(name)


@main.command()
@click.option("--hosts", "host_count", type=click.IntRange(1, hosts.HOSTS_MAX), default=3, show_default=True)
@click.option("--pods", "pods_per_host", type=click.IntRange(0, 99), default=2, show_default=True, help="Per host.")
@click.pass_obj
def up(paths: Paths, host_count: int, pods_per_host: int) -> None:
    """Bring a lab up and leave it up; the first host's agent is told of nobody, each other of the one before."""
    with _explained():
        lab = hosts.Lab.create(paths)
        try:
            made = demo.bring_up(lab, host_count)
            click.echo(f"{host_count} hosts made, agents started")
            lab.wait_until_connected()
            click.echo("all connected")
            for host in made:
                for _ in range(pods_per_host):
                    lab.add_pod(host)
        except BaseException:
            lab.down()
            raise
        _show(paths, lab.record)
        option = "" if paths.name == DEFAULT_LAB else f" --lab {paths.name}"
        click.echo(f"Look around: weavenet-lab{option} exec host1 -- weave status    Take it down: make lab-down")


@main.command()
@click.pass_obj
def down(paths: Paths) -> None:
    """Take a lab down: agents, pods, namespaces, files; also what a crash left."""
    with _explained():
        click.echo("the lab is down" if hosts.down(paths) else "there was nothing to take down")


@main.command("exec", context_settings={"ignore_unknown_options": True})
@click.argument("where")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_obj
def execute(paths: Paths, where: str, command: tuple[str, ...]) -> None:
    """Run a command on a host or in a pod: exec host1 -- weave status."""
    with _explained():
        lab = hosts.Lab.open(paths)
        host = lab.host_of(where)
        lab.namespace(where).enter()
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and what we become would, too
        try:
            # `weave` and `weaver` are found beside our interpreter, everything else where it always is.
            os.execvpe(command[0], command, lab.environment(host))  # noqa: S606 - this is what exec is for
        except OSError as error:
            raise LabError(f"cannot run {command[0]}: {error.strerror}") from None


@main.command()
@click.pass_obj
def status(paths: Paths) -> None:
    """Show hosts, agents and pods."""
    with _explained():
        _show(paths, paths.load())


@main.command("demo")
@click.pass_obj
def demonstrate(paths: Paths) -> None:
    """Show what weavenet does, in a lab of its own (`demo` unless --lab names it) that is taken down at the end."""
    with _explained():
        demo.demonstrate(Paths("demo") if paths.name == DEFAULT_LAB else paths)


@main.command()
@click.option("--rounds", type=click.IntRange(1, 99), default=5, show_default=True, help="Of every measurement.")
@click.option("--baselines-only", is_flag=True, help="Leave weavenet out, and measure only what it is compared with.")
@click.option("--into", type=click.Path(path_type=Path), default=Path("docs"), show_default=True, help="A directory.")
def bench(rounds: int, into: Path, *, baselines_only: bool) -> None:
    """Measure weavenet beside the bare link, kernel VXLAN and Debian's plugins, all in one run."""
    # Imported here: nothing else wants it.
    from weavenet.lab.bench import bench as measure  # noqa: PLC0415

    with _explained():
        measure(rounds=rounds, into=into, baselines_only=baselines_only)


def _show(paths: Paths, record: Record) -> None:
    for host in record.hosts:
        click.echo(f"{host.name:9} {host.address:15} {_agent_line(paths, host)}")
        for pod in record.pods:
            if pod.host == host.number:
                click.echo(f"  {pod.name:9} {pod.address or '(not attached)'}")


def _agent_line(paths: Paths, host: HostRecord) -> str:
    if host.agent is None:
        return "no agent"
    if not host.agent.is_alive():
        return f"its agent has ended; the log is {paths.log(host)}"
    return f"agent {host.agent.pid}, {agents.established(paths, host)} connections established"
