"""Peers as users write them, `host[:port]`, to addresses. A name is resolved once, when it is given."""

import asyncio
import re
import socket
from collections.abc import Sequence

from weavenet.address import Endpoint, parse_address
from weavenet.errors import InputError, WeavenetError
from weavenet.mesh.connector import Target

RESOLVE_TIMEOUT_S = 10.0
PORT_UNSPECIFIED = 0

_SHAPE = re.compile(r"(?P<host>[^:\s]+)(:(?P<port>[0-9A-Za-z]+))?")


async def resolve_target(text: str) -> Target:
    """Resolve one peer. Raises InputError, with Weave's words for a malformed one."""
    shape = _SHAPE.fullmatch(text)
    if shape is None:
        raise InputError(f'invalid peer name "{text}", should be host[:port]')
    host, port = shape["host"], _parse_port(text, shape["port"])
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(RESOLVE_TIMEOUT_S):
            found = await loop.getaddrinfo(host, None, family=socket.AF_INET, type=socket.SOCK_STREAM)
    except TimeoutError as error:
        raise InputError(f"lookup {host}: no answer within {RESOLVE_TIMEOUT_S:.0f} s") from error
    except OSError as error:
        raise InputError(f"lookup {host}: {error.strerror or 'no such host'}") from error
    return Target(text=text, endpoint=Endpoint(parse_address(str(found[0][4][0])), port))


async def resolve_targets(texts: Sequence[str]) -> tuple[list[Target], list[WeavenetError]]:
    """Resolve all; those that fail do not keep the others from being used."""
    outcomes = await asyncio.gather(*(resolve_target(text) for text in texts), return_exceptions=True)
    targets: list[Target] = []
    failures: list[WeavenetError] = []
    for outcome in outcomes:
        if isinstance(outcome, Target):
            targets.append(outcome)
        elif isinstance(outcome, WeavenetError):
            failures.append(outcome)
        else:
            raise outcome
    return targets, failures


def _parse_port(text: str, port: str | None) -> int:
    if port is None:
        return PORT_UNSPECIFIED
    if port.isdigit():
        number = int(port)
        if not 0 <= number <= 0xFFFF:
            raise InputError(f'invalid peer name "{text}", the port must be from 0 to 65535')
        return number
    try:
        return socket.getservbyname(port, "tcp")
    except OSError as error:
        raise InputError(f'invalid peer name "{text}", unknown service {port!r}') from error
