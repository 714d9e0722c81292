"""`weave key`: the passwords of the mesh. One never is an argument, as arguments show in process lists."""

import sys

import click

from weavenet.api.client import path_of
from weavenet.cli.session import JSON, AgentCommand, Session, print_ended

STDIN_FD = 0
_PASSWORD_BYTES_MAX = 1024


@click.group()
def key() -> None:
    """Change the password of the mesh without a restart: add it everywhere, use it everywhere, retire the old one."""


@key.command("list", cls=AgentCommand)
@click.pass_obj
def list_keys(session: Session) -> None:
    """Show which passwords are valid here, by name, and how many connections use each."""
    print_ended(session.client.get("/key", accept=JSON if session.as_json else ""))


@key.command(cls=AgentCommand)
@click.argument("name")
@click.option("--file", "path", type=click.Path(), default=None, help="File that holds the password.")
@click.option("--fd", type=click.IntRange(0), default=None, help="Open descriptor to read the password from.")
@click.pass_obj
def add(session: Session, name: str, path: str | None, fd: int | None) -> None:
    """Accept another password, to be called NAME; read from standard input unless told otherwise."""
    if path is not None and fd is not None:
        raise click.UsageError("--file and --fd both name a password; give one of them")
    password = _read_password(path, fd)
    session.client.call("POST", path_of("key", name), form=[("password", password)])
    _show_as_json(session)


@key.command(cls=AgentCommand)
@click.argument("name")
@click.pass_obj
def use(session: Session, name: str) -> None:
    """Use this password for new connections, and move existing ones to it where the peer accepts it."""
    session.client.call("PUT", path_of("key", name))
    _show_as_json(session)


@key.command(cls=AgentCommand)
@click.argument("name")
@click.pass_obj
def retire(session: Session, name: str) -> None:
    """Accept this password no more; connections with peers that have no other end."""
    session.client.call("DELETE", path_of("key", name))
    _show_as_json(session)


def _read_password(path: str | None, fd: int | None) -> str:
    if path is None and fd is None and sys.stdin.isatty():
        return str(click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))
    where = path if path is not None else STDIN_FD if fd is None else fd
    try:
        with open(where, "rb", closefd=where != STDIN_FD) as file:
            return file.read(_PASSWORD_BYTES_MAX + 2).rstrip(b"\n").decode()
    except OSError as error:
        raise click.ClickException(f"cannot read the password from {where}: {error.strerror}") from error
    except UnicodeDecodeError:
        raise click.ClickException("the password is not text in UTF-8") from None  # whose error would show it


def _show_as_json(session: Session) -> None:
    if session.as_json:
        print_ended(session.client.get("/key", accept=JSON))
