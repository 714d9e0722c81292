"""`weave stop` and `weave reset`: the end of an agent, and of all that it has made.

    weave reset ─▶ hand over the ring ─▶ a moment, for others to hear it ─▶ stop ─▶ its process ends ─▶ weaver --reset

The last is done by the same program that does it without an agent, which says what it does, and refuses while an agent
runs. Whether the rest can follow is asked before the agent is told of anything. Source: docs/protocol.md, "weave
script".
"""

import os
import sys
import time

import click

from weavenet.api.client import DATABASE_NAME, DEFAULT_STATE_DIR, AgentProcess, Client
from weavenet.cli.session import JSON, AgentCommand, Session
from weavenet.errors import AgentAwayError, ApiError

_TELL_S = 0.5  # Weave's
_END_S = 30.0
_REMOVER = ("-P", "-m", "weavenet.agent.main", "--reset")  # never from the working directory, which may be anybody's


@click.command(cls=AgentCommand)
@click.pass_obj
def stop(session: Session) -> None:
    """End the agent of this host; pods keep their network, and the next agent goes on with it."""
    was_running = True
    try:
        with session.client.process() as process:
            _stop(session.client, process)
    except AgentAwayError:
        was_running = False
        click.echo("Weave is not running (ignore on Kubernetes).", err=True)
    if session.as_json:
        click.echo(f'{{"stopped": {str(was_running).lower()}}}')


@click.command(cls=AgentCommand)
@click.option("--force", is_flag=True, help="Also if no agent runs, which could hand over its addresses.")
@click.option("--state-dir", default=DEFAULT_STATE_DIR, show_default=True, help="The agent's, if none runs.")
@click.option("--port", type=click.IntRange(1, 65534), help="The agent's, if none runs and it was not the default.")
@click.option("--weave-bridge", help="The agent's, if none runs and it was not the default.")
@click.pass_obj
def reset(session: Session, *, force: bool, state_dir: str, port: int | None, weave_bridge: str | None) -> None:
    """Leave the mesh for good, and remove all of weave from this host: also pods' interfaces."""
    client = session.client
    try:
        with client.process() as process:
            if not process.shares_our_network():
                there = f"nsenter --target {process.number} --net weave reset"
                raise ApiError(f"the agent has another network namespace, where this is to be done: {there}")
            flags = _reset_flags(client)
            _leave(client)
            _stop(client, process)
    except AgentAwayError:
        if not force and os.path.exists(os.path.join(state_dir, DATABASE_NAME)):  # noqa: PTH110, PTH118 - imports less
            raise ApiError(
                "ERROR: weave is not running; unable to remove from cluster.\n"
                "Re-launch weave before reset or use --force to override."
            ) from None
        flags = [f"--run-dir={os.path.dirname(client.path)}", f"--state-dir={state_dir}"]  # noqa: PTH120
        flags += [] if port is None else [f"--port={port}"]
        flags += [] if weave_bridge is None else [f"--weave-bridge={weave_bridge}"]
    _remove(flags)
    click.echo("weave is removed from this host", err=session.as_json)
    if session.as_json:
        click.echo('{"reset": true}')


def _remove(flags: list[str]) -> None:
    import subprocess  # noqa: PLC0415 - see main.py about imports

    if subprocess.run([sys.executable, *_REMOVER, *flags], check=False).returncode:  # noqa: S603 - our own
        raise ApiError("weave could not be removed from this host; when that is put right: weave reset --force")


def _reset_flags(client: Client) -> list[str]:
    import json  # noqa: PLC0415 - see main.py about imports

    flags = json.loads(client.get("/reset"))
    if not (isinstance(flags, list) and all(isinstance(flag, str) for flag in flags)):
        raise ApiError("the agent of this host is of another version: stop it, and use the `weave` that came with it")
    return flags


def _leave(client: Client) -> None:
    import json  # noqa: PLC0415

    report = json.loads(client.get("/report", accept=JSON))
    router, ipam = report["Router"], report.get("IPAM") or {}
    name = router["Name"]
    owners = {entry["Peer"] for entry in ipam.get("Entries") or ()}
    hears = any(each["State"] == "established" for each in router["Connections"] or ())
    client.call("DELETE", "/peer")
    if name not in owners:
        return
    if hears:
        click.echo("this host's share of the addresses goes to another peer", err=True)
    elif owners != {name} or router["Targets"]:
        click.echo(
            f"no peer hears us, so this host's share of the addresses is lost until one of the others takes it over: "
            f"weave rmpeer {name}",
            err=True,
        )
    time.sleep(_TELL_S)


def _stop(client: Client, process: AgentProcess) -> None:
    client.call("POST", "/stop")
    if not process.has_ended(_END_S):
        raise ApiError(f"the agent was told to stop, and has not within {_END_S:.0f} s; its log may say why")
    click.echo("the agent has ended", err=True)
