"""nftables of this host, through libnftables: what `nft` itself is made of, without a process for each question.

    nft_ctx_new ─▶ nft_run_cmd_from_buffer(commands) ─▶ nft_ctx_get_output_buffer (JSON), nft_ctx_get_error_buffer

All commands of one call are one transaction: the kernel carries out all of them or none (libnftables(3)). What is asked
for comes as JSON (libnftables-json(5)), of which rules' comments are read, and elements, but not rules' expressions
(dataplane/nft.py says why). The library is loaded on first use, and belongs to the network namespace of the thread
that does so; only the kernel thread calls.
"""

import ctypes
import errno
import os
import threading
from functools import cache

import msgspec

from weavenet.address import Address, Cidr, Endpoint, Range, parse_address
from weavenet.dataplane.nft import (
    ADDRESS_PORTS,
    TABLE,
    AddressSet,
    Chain,
    Hook,
    PortMap,
    PortMapping,
    Protocol,
    Rule,
    Table,
    merge,
)
from weavenet.dataplane.traffic import FORWARD_MARK, Transaction
from weavenet.errors import AddressError, KernelError
from weavenet.linux.netlink import Family, Group, Listener, Message, parse_attributes, read_text

_LIBRARY = "libnftables.so.1"
_OUTPUT_JSON, _OUTPUT_HANDLE = 1 << 4, 1 << 3  # NFT_CTX_OUTPUT_*, <nftables/libnftables.h>
_ERROR_LENGTH_MAX = 500
_FILTER, _FORWARD = "filter", "FORWARD"
_PROTOCOLS = {6: Protocol.TCP, 17: Protocol.UDP, 132: Protocol.SCTP}  # some versions print numbers

_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES, <linux/netfilter/nfnetlink.h>
_NEWGEN = 15  # the first message type that does not begin with a table's name, <linux/netfilter/nf_tables.h>
_NFGENMSG_BYTES = 4
_TABLE_NAME = 1  # NFTA_TABLE_NAME, NFTA_CHAIN_TABLE, NFTA_RULE_TABLE, NFTA_SET_TABLE, NFTA_SET_ELEM_LIST_TABLE


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise KernelError(
            f"cannot load {_LIBRARY} ({error}); install libnftables1, or the package nftables: without it pods "
            "are not masqueraded and host ports do not work"
        ) from error
    library.nft_ctx_new.restype = ctypes.c_void_p
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(library, name).restype = ctypes.c_char_p
    return library


class Nftables:
    """The nftables of the network namespace in which it is first used."""

    def __init__(self) -> None:
        """Load nothing yet."""
        self._lock = threading.Lock()
        self._context: ctypes.c_void_p | None = None

    def close(self) -> None:
        """Let go of the library's context; all rules stay."""
        if self._context is not None:
            _library().nft_ctx_free(self._context)
            self._context = None

    def run(self, transaction: Transaction) -> None:
        """Have commands carried out, all or none. Raises KernelError with nft's words."""
        self._run("\n".join(str(command) for command in transaction.commands), "change the nftables rules")

    def observe(self) -> tuple[Table | None, tuple[Rule, ...] | None]:
        """Return our table, and what is ours in iptables' FORWARD; None for what is not there. Raises KernelError."""
        _library()  # that it is missing is another matter than that a table is
        ours = self._ask(f"list table ip {TABLE}")
        # Only this chain of that table, and not first a look at what there is: kube-proxy can have ten thousand chains.
        theirs = self._ask(f"list chain ip {_FILTER} {_FORWARD}")
        return None if ours is None else read_table(ours), None if theirs is None else read_forward(theirs)

    def _ask(self, command: str) -> str | None:
        """Return what there is as JSON; None if there is no such thing."""
        try:
            return self._run(command, command.replace("list", "read nftables,", 1), _OUTPUT_JSON | _OUTPUT_HANDLE)
        except KernelError as error:
            if os.strerror(errno.ENOENT) in str(error):
                return None
            raise

    def _run(self, commands: str, purpose: str, flags: int = 0) -> str:
        library = _library()
        with self._lock:
            context = self._open()
            library.nft_ctx_output_set_flags(context, flags)
            failed = library.nft_run_cmd_from_buffer(context, commands.encode())
            output, errors = library.nft_ctx_get_output_buffer(context), library.nft_ctx_get_error_buffer(context)
        if failed:
            said = (errors or b"").decode(errors="replace").strip() or "nftables gave no reason"
            raise KernelError(f"cannot {purpose}: {said[:_ERROR_LENGTH_MAX]}")
        return (output or b"").decode(errors="replace")

    def _open(self) -> ctypes.c_void_p:
        if self._context is None:
            made = _library().nft_ctx_new(0)
            if not made:
                raise KernelError("cannot open nftables: nft_ctx_new failed; is this kernel built with nf_tables?")
            context = ctypes.c_void_p(made)
            _library().nft_ctx_buffer_output(context)
            _library().nft_ctx_buffer_error(context)
            self._context = context
        return self._context


class RuleWatch:
    """Hints that somebody changed our table, or iptables' filter table."""

    def __init__(self) -> None:
        """Listen in the calling thread's network namespace. Raises KernelError."""
        self._listener = Listener(Group.NFTABLES, family=Family.NETFILTER)

    def fileno(self) -> int:
        """Return a descriptor that is readable while there are hints."""
        return self._listener.fileno()

    def drain(self) -> bool:
        """Forget the hints up to now; say whether one was about what concerns us."""
        hinted = False
        while True:
            heard = self._listener.receive()
            if heard is None:
                hinted = True
            elif not heard:
                return hinted
            else:
                hinted |= any(map(_concerns_us, heard))

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()


def _concerns_us(message: Message) -> bool:
    subsystem, kind = divmod(message.kind, 1 << 8)
    if subsystem != _SUBSYSTEM or kind >= _NEWGEN:
        return False
    name = read_text(parse_attributes(message.body[_NFGENMSG_BYTES:]), _TABLE_NAME)
    return name in {TABLE, _FILTER}


# --- reading JSON -----------------------------------------------------------------------------------------------------


def read_table(text: str) -> Table:
    """Read what `nft --json list table` says of our table; what we would never have put there reads as strange."""
    rules: dict[str, list[Rule]] = {}
    for rule in _of_kind(text, "rule"):
        rules.setdefault(_word(rule, "chain"), []).append(Rule(_word(rule, "comment"), handle=_number(rule, "handle")))
    chains = [
        Chain(_word(chain, "name"), tuple(rules.get(_word(chain, "name"), ())), _read_hook(chain))
        for chain in _of_kind(text, "chain")
    ]
    sets = [AddressSet(_word(item, "name"), _read_ranges(item.get("elem"))) for item in _of_kind(text, "set")]
    maps = [
        PortMap(_word(item, "name"), _word(item, "name") == ADDRESS_PORTS, _read_mappings(item.get("elem")))
        for item in _of_kind(text, "map")
    ]
    return Table(
        tuple(sorted(chains, key=lambda chain: chain.name)),
        tuple(sorted(sets, key=lambda part: part.name)),
        tuple(sorted(maps, key=lambda part: part.name)),
    )


def read_forward(text: str) -> tuple[Rule, ...]:
    """Read what `nft --json list chain` says of iptables' FORWARD, as far as it is ours."""
    rules = (Rule(_word(rule, "comment"), handle=_number(rule, "handle")) for rule in _of_kind(text, "rule"))
    return tuple(rule for rule in rules if rule.comment.startswith(FORWARD_MARK))


def _of_kind(text: str, kind: str) -> list[dict[object, object]]:
    try:
        document: object = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise KernelError(f"nftables answered what is not JSON: {error}") from error
    items = document.get("nftables") if isinstance(document, dict) else None
    found: list[dict[object, object]] = []
    for item in items if isinstance(items, list) else []:
        content = item.get(kind) if isinstance(item, dict) else None
        if isinstance(content, dict):
            found.append(content)
    return found


def _word(item: dict[object, object], key: str) -> str:
    value = item.get(key)
    return value if isinstance(value, str) else ""


def _number(item: dict[object, object], key: str) -> int:
    value = item.get(key)
    return value if isinstance(value, int) else 0


def _read_hook(chain: dict[object, object]) -> Hook | None:
    if "hook" not in chain:
        return None
    return Hook(_word(chain, "type"), _word(chain, "hook"), _number(chain, "prio"))


def _read_ranges(elements: object) -> tuple[Range, ...]:
    return merge(filter(None, map(_read_range, elements if isinstance(elements, list) else [])))


def _read_range(element: object) -> Range | None:
    try:
        match element:
            case str():
                address = parse_address(element)
                return Range(address, Address(address + 1))
            case {"prefix": {"addr": str() as text, "len": int() as length}}:
                return Cidr(parse_address(text), length).range
            case {"range": [str() as first, str() as last]}:
                return Range(parse_address(first), Address(parse_address(last) + 1))
            case _:
                return None
    except AddressError:
        return None


def _read_mappings(elements: object) -> tuple[PortMapping, ...]:
    read = map(_read_mapping, elements if isinstance(elements, list) else [])
    return tuple(sorted(filter(None, read), key=lambda mapping: mapping.key))


def _read_mapping(element: object) -> PortMapping | None:
    try:
        match element:
            case [{"concat": [*where, protocol, int() as port]}, {"concat": [str() as address, int() as to]}]:
                kind = _PROTOCOLS[protocol] if isinstance(protocol, int) else Protocol(protocol)
                host = parse_address(str(where[0])) if where else None
                return PortMapping(kind, port, Endpoint(parse_address(address), to), host)
            case _:
                return None
    except (AddressError, KeyError, ValueError):
        return None
