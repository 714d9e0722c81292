"""All that there is to see of a host, as texts, to compare before and after: whatever differs was left behind.

Not compared is what changes by being used, by anybody: counters, ARP entries, timers. Otherwise nothing is left out for
being unlikely: all settings below net/ are read, all routing tables, all that nftables and iptables have.
"""

import difflib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path

from weavenet.lab import process
from weavenet.lab.namespace import Namespace

State = Mapping[str, str]

COMMANDS = (
    "ip -details -oneline link",
    "ip -oneline address",
    "ip rule",
    "ip -6 rule",
    "ip route show table all",
    "ip -6 route show table all",
    "tc qdisc",
    "bridge fdb",
    "nft --stateless list ruleset",
    "iptables-save",
    "iptables-legacy-save",
    "ip6tables-save",
    "ip6tables-legacy-save",
    "ss --no-header --listening --tcp --udp --raw --packet --numeric",
)
# Numbers of what is there, or of what is random; not settings.
COUNTERS = ("nf_conntrack_count", "nf_conntrack_expect_count", "flush", "route/gc", "netdev_rss_key")


def state_of(namespace: Namespace, directories: Iterable[Path] = (), ignored: Iterable[Path] = ()) -> State:
    """Look at a host, and at the directories that are its disk but for some files."""
    state = {command: process.run(command.split(), namespace=namespace) for command in COMMANDS}
    state |= {command: _without_comments(text) for command, text in state.items() if command.endswith("-save")}
    with namespace.entered():
        state["settings"] = "\n".join(_settings())
        state["unix sockets"] = "\n".join(_unix_sockets())
    state["processes"] = "\n".join(_processes(namespace))
    state["files"] = "\n".join(line for directory in directories for line in _files(directory, set(ignored)))
    return state


def is_settled(namespace: Namespace) -> bool:
    """Say whether IPv6 has made sure of its addresses, after which they do not change by themselves."""
    return "tentative" not in process.run(["ip", "address"], namespace=namespace)


def differences(before: State, after: State) -> list[str]:
    """Return the lines that have come, with a plus, or gone, with a minus."""
    found = []
    for what, text in before.items():
        lines = difflib.ndiff(text.splitlines(), after[what].splitlines())
        found += [f"{what}: {line[0]} {line[2:].strip()}" for line in lines if line[0] in "+-"]
    return found


def _without_comments(text: str) -> str:
    """Leave out what iptables-save says of the time, and its counters."""
    return "\n".join(line.partition(" [")[0] for line in text.splitlines() if not line.startswith("#"))


def _settings() -> Iterator[str]:
    root = Path("/proc/sys/net")
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_file() and path.stat().st_mode & stat.S_IRUSR and not any(part in name for part in COUNTERS):
            try:
                yield f"{name} = {path.read_text().strip()}"
            except OSError as error:  # some are there, and have no value
                yield f"{name}: {error.strerror}"


def _unix_sockets() -> list[str]:
    """Return the sockets that have a name: type, state and name."""
    lines = [line.split(maxsplit=7) for line in Path("/proc/thread-self/net/unix").read_text().splitlines()[1:]]
    return sorted(" ".join((fields[4], fields[5], fields[7])) for fields in lines if len(fields) > 7)


def _processes(namespace: Namespace) -> list[str]:
    inside, found = namespace.inode(), []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and (entry / "ns/net").stat().st_ino == inside and int(entry.name) != os.getpid():
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip())
        except OSError:  # it has ended
            continue
    return sorted(found)


def _files(directory: Path, ignored: set[Path]) -> Iterator[str]:
    for path in sorted(directory.rglob("*")):
        if path in ignored:
            continue
        status = path.lstat()
        content = str(path.readlink()) if path.is_symlink() else ""
        if path.is_file() and not path.is_symlink():
            content = sha256(path.read_bytes()).hexdigest()
        yield f"{stat.filemode(status.st_mode)} {status.st_uid}:{status.st_gid} {path} {content}"
