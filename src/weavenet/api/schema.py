"""Paths and bodies of the control API, written once for the agent, the `weave` command, and tests.

The report's values are defined where they are gathered, in node/report.py; here is how they become bytes and come back.
Source: docs/protocol.md, "HTTP interfaces" and "IPAM HTTP API".
"""

from collections.abc import Mapping, Sequence

import msgspec

from weavenet.address import Cidr
from weavenet.api.visible import visible
from weavenet.errors import ApiError
from weavenet.node.report import Attachment, Connection, Ipam, Peer, Report, Router

__all__ = [
    "JSON",
    "PLAIN_TEXT",
    "Attachment",
    "Connection",
    "Ipam",
    "Peer",
    "Report",
    "Router",
    "decode_report",
    "encode_attachments",
    "encode_owned",
    "encode_report",
]

PLAIN_TEXT = "text/plain; charset=utf-8"
JSON = "application/json"

_INDENT = 4


class _Owned(msgspec.Struct, frozen=True):
    containerid: str
    addrs: list[str]


class _OwnedList(msgspec.Struct, frozen=True):
    owned: list[_Owned] | None


def encode_report(report: Report) -> bytes:
    """Write a report as Weave does: indented, without a newline at the end."""
    return _shown(msgspec.json.encode(report))


def decode_report(raw: bytes) -> Report:
    """Read a report, Weave's or ours. Raises ApiError, naming what is wrong and where."""
    try:
        return msgspec.json.decode(raw, type=Report)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(f"this is not a report: {error}") from error


def encode_owned(owned: Mapping[str, Sequence[Cidr]]) -> bytes:
    """Write who holds which addresses, the body of `GET /ip`."""
    rows = [_Owned(ident, [str(cidr) for cidr in owned[ident]]) for ident in sorted(owned)]
    return msgspec.json.encode(_OwnedList(rows or None)) + b"\n"


def encode_attachments(attachments: Sequence[Attachment]) -> bytes:
    """Write attachments as JSON, the body of `GET /ps`."""
    return _shown(msgspec.json.encode(list(attachments)))


def _shown(compact: bytes) -> bytes:
    """Indent JSON, and keep its strings from a terminal: of control characters JSON escapes only the first 32."""
    return visible(msgspec.json.format(compact, indent=_INDENT).decode(), keep="\n").encode()
