"""The commands, one function each: a request, and what is printed of the answer."""

import click

from weavenet.api.client import Client, path_of
from weavenet.cli.expose import expose, hide
from weavenet.cli.keys import key
from weavenet.cli.leave import reset, stop
from weavenet.cli.session import JSON
from weavenet.cli.session import AgentCommand as _AgentCommand
from weavenet.cli.session import Session as _Session
from weavenet.cli.session import print_ended as _print_ended
from weavenet.errors import AgentAwayError, ApiError, ApiStatusError
from weavenet.version import VERSION

_NOT_FOUND = 404
_JSON_INDENT = 4

# Where a sub-command's data are in the report.
_STATUS_PARTS: dict[str, tuple[str, ...]] = {
    "connections": ("Router", "Connections"),
    "peers": ("Router", "Peers"),
    "ipam": ("IPAM",),
    "targets": ("Router", "Targets"),
}


@click.command(cls=_AgentCommand)
@click.argument("part", required=False)
@click.pass_obj
def status(session: _Session, part: str | None) -> None:
    """Show how things are; PART is connections, peers, ipam or targets."""
    if part is not None and part not in _STATUS_PARTS:
        raise click.UsageError(f"Invalid 'weave status' sub-command: {part}")
    if session.as_json:
        _print_json_part(session.client, () if part is None else _STATUS_PARTS[part])
        return
    try:
        text = session.client.get("/status" if part is None else path_of("status", part))
    except ApiStatusError as error:
        if part == "ipam" and error.status == _NOT_FOUND:
            raise ApiError("the agent of this host runs without IP address allocation") from error
        raise
    click.echo(text if part is not None else f"\n{text}\n", nl=False)


@click.command(cls=_AgentCommand)
@click.option("--replace", is_flag=True, help="Forget all other peers that were asked for before.")
@click.argument("peers", metavar="PEER...", nargs=-1)
@click.pass_obj
def connect(session: _Session, *, replace: bool, peers: tuple[str, ...]) -> None:
    """Look for these peers, HOST[:PORT] each, from now on; established connections stay in any case."""
    if not peers and not replace:
        raise click.UsageError("Missing argument 'PEER...'.")
    form = [("peer", peer) for peer in peers]
    session.client.call("POST", "/connect", form=[("replace", "true"), *form] if replace else form)
    _print_targets_as_json(session)


@click.command(cls=_AgentCommand)
@click.argument("peers", metavar="PEER...", nargs=-1, required=True)
@click.pass_obj
def forget(session: _Session, peers: tuple[str, ...]) -> None:
    """Stop looking for these peers, spelled as when they were asked for; established connections stay."""
    session.client.call("POST", "/forget", form=[("peer", peer) for peer in peers])
    _print_targets_as_json(session)


@click.command(cls=_AgentCommand)
@click.option("-f", "--format", "template", metavar="TEMPLATE", help="A Go template, as in '{{json .Router.Peers}}'.")
@click.pass_obj
def report(session: _Session, template: str | None) -> None:
    """Show everything there is to know about this host's agent, as JSON."""
    if template is None:
        _print_ended(session.client.get("/report", accept=JSON))
    else:
        _print_ended(session.client.get("/report", query={"format": template}))


@click.command(cls=_AgentCommand)
@click.argument("containers", metavar="[CONTAINER...]", nargs=-1)
@click.pass_obj
def ps(session: _Session, containers: tuple[str, ...]) -> None:
    """List what is attached to the network: container ID, MAC, addresses."""
    from urllib.parse import urlencode  # noqa: PLC0415 - see main.py about imports

    path = "/ps?" + urlencode([("container", one) for one in containers]) if containers else "/ps"
    _print_ended(session.client.get(path, accept=JSON if session.as_json else ""))


@click.command(cls=_AgentCommand)
@click.pass_obj
def version(session: _Session) -> None:
    """Show the version of this command, and of the agent if it runs."""
    import json  # noqa: PLC0415

    ours, agents = VERSION, None
    try:
        agents = session.client.get("/report", query={"format": "{{.Version}}"})
    except AgentAwayError as error:
        away = str(error)
    if session.as_json:
        click.echo(json.dumps({"script": ours, "agent": agents}, indent=_JSON_INDENT))
        return
    click.echo(f"weave script {ours}")
    click.echo(f"weave {agents}" if agents is not None else away, err=agents is None)


@click.command(cls=_AgentCommand)
@click.pass_obj
def prime(session: _Session) -> None:
    """Wait until the peers have agreed who may give out which addresses."""
    session.client.call("GET", "/ring", timeout_s=None)
    if session.as_json:
        click.echo('{"primed": true}')


@click.command(cls=_AgentCommand)
@click.argument("peers", metavar="PEER...", nargs=-1, required=True)
@click.pass_obj
def rmpeer(session: _Session, peers: tuple[str, ...]) -> None:
    """Take over the addresses of peers that are gone for good, by name or nickname.

    Of a peer that is still alive this makes two that give out the same addresses.
    """
    import json  # noqa: PLC0415

    replies: dict[str, str] = {}
    failed = False
    for peer in peers:
        try:
            replies[peer] = session.client.call("DELETE", path_of("peer", peer)).strip()
        except ApiStatusError as error:
            failed = True
            click.echo(f"{peer}: {error}", err=True)
        else:
            if not session.as_json:
                click.echo(replies[peer])
    if session.as_json:
        click.echo(json.dumps(replies, indent=_JSON_INDENT))
    if failed:
        raise ApiError("not all peers could be removed")


ALL = (status, connect, forget, report, ps, version, prime, rmpeer, key, expose, hide, stop, reset)


def _print_json_part(client: Client, keys: tuple[str, ...]) -> None:
    import json  # noqa: PLC0415

    value: object = json.loads(client.get("/report", accept=JSON))
    for step in keys:
        value = value.get(step) if isinstance(value, dict) else None
    click.echo(json.dumps(value, indent=_JSON_INDENT))


def _print_targets_as_json(session: _Session) -> None:
    if session.as_json:
        _print_json_part(session.client, _STATUS_PARTS["targets"])
