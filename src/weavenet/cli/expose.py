"""`weave expose` and `weave hide`: this host's place in pods' network, and their way out of it.

As in Weave's script, an address is first had from IPAM, under `weave:expose`, and then given to the bridge; an agent
that ends in between exposes what is held at its next start. Source: docs/protocol.md, "weave script".
"""

from collections.abc import Sequence

import click

from weavenet.api.client import Client, path_of
from weavenet.cli.session import AgentCommand, Session
from weavenet.errors import ApiError, ApiStatusError

_HOLDER = "weave:expose"
_NET, _IP, _DEFAULT = "net:", "ip:", "default"
_CANCELLED = "cancelled"  # with status 200, as in Weave
_NOT_FOUND = 404

_SETTINGS = {"help_option_names": ["--help"]}  # Weave's -h is a name


@click.command(cls=AgentCommand, context_settings=_SETTINGS)
@click.option("-h", "name", metavar="FQDN", help="A name for the address; needs DNS, which is not there yet.")
@click.option("--without-masquerade", is_flag=True, help="Do not hide pods behind this host, nor others from pods.")
@click.argument("addresses", metavar="[ADDRESS...]", nargs=-1)
@click.pass_obj
def expose(session: Session, *, name: str | None, without_masquerade: bool, addresses: tuple[str, ...]) -> None:
    """Give this host addresses in the pods' network, and print them.

    ADDRESS is net:default (also if there is none), net:SUBNET for one of a subnet, or [ip:]IP/LENGTH. What is exposed
    stays so until it is hidden.
    """
    if name is not None:
        raise click.UsageError(f"-h {name}: there is no DNS yet; leave it out, and the address is exposed all the same")
    words = _parse(addresses)
    query = "?skipNAT=true" if without_masquerade else ""
    wanted = dict.fromkeys(each for word in words for each in _reserve(session.client, word))
    for address in wanted:
        _remark(session.client.call("POST", path_of("expose", *address.split("/")) + query, timeout_s=None))
    _print(session, list(wanted))


@click.command(cls=AgentCommand)
@click.argument("addresses", metavar="[ADDRESS...]", nargs=-1)
@click.pass_obj
def hide(session: Session, addresses: tuple[str, ...]) -> None:
    """Take addresses from this host that `weave expose` gave it, free them, and print them.

    ADDRESS is as there. Pods that have one as their gateway lose their way out of the pods' network.
    """
    words = _parse(addresses)
    found = dict.fromkeys(each for word in words for each in _look_up(session.client, word))
    for address in found:
        _remark(session.client.call("DELETE", path_of("expose", *address.split("/"))))
    _print(session, list(found))


def _parse(words: Sequence[str]) -> list[str]:
    """Check all of them before anything is done; the agent checks the numbers."""
    for word in words:
        if word == _NET + _DEFAULT:
            continue
        address, slash, length = word.removeprefix(_NET).removeprefix(_IP).partition("/")
        if not (address and slash and length.isdigit()):
            raise click.UsageError(f"{word!r} is none of net:default, net:SUBNET and [ip:]IP/LENGTH")
    return list(words) or [_NET + _DEFAULT]


def _reserve(client: Client, word: str) -> list[str]:
    """Return the address to expose: one of IPAM's choice, or the given one, which the agent claims itself."""
    return _ask_ipam(client, "POST", word) if word.startswith(_NET) else [word.removeprefix(_IP)]


def _look_up(client: Client, word: str) -> list[str]:
    return _ask_ipam(client, "GET", word) if word.startswith(_NET) else [word.removeprefix(_IP)]


def _ask_ipam(client: Client, method: str, word: str) -> list[str]:
    subnet = word.removeprefix(_NET)
    parts = [] if subnet == _DEFAULT else subnet.split("/")
    try:
        # Without a limit: where peers have to agree first, it takes as long as that.
        answer = client.call(method, path_of("ip", _HOLDER, *parts), timeout_s=None)
    except ApiStatusError as error:
        if error.status == _NOT_FOUND:
            raise ApiError("IP address allocation must be enabled to use 'net:'") from error
        raise
    if answer == _CANCELLED:
        raise ApiError("the agent gives out no addresses any more: it has left the mesh, and is to be reset or stopped")
    return answer.split()


def _remark(body: str) -> None:
    if body:
        click.echo(body, nl=False, err=True)


def _print(session: Session, addresses: list[str]) -> None:
    """Print addresses as Weave does, without the lengths; as JSON with them."""
    import json  # noqa: PLC0415 - see main.py about imports

    if session.as_json:
        click.echo(json.dumps(addresses))
    elif addresses:
        click.echo(" ".join(address.partition("/")[0] for address in addresses))
