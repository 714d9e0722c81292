"""What must always be true, and what must become true; judged from outside the nodes.

Always: no address belongs to two containers anywhere; an address that was promised is on the disk of the host that
promised it, and is still its owner's after any restart; no connection ends for a reason that is the nodes' own, such
as a message that nobody can read. At last, when everything has healed: all nodes see the same mesh, fully connected
and established; all hold the same ring; and the data plane's tables carry a unicast between every pair of nodes, and a
broadcast from any node to every other exactly once.
"""

import re
from collections import deque
from collections.abc import Sequence

from weavenet.address import Address, Cidr, Range, format_address
from weavenet.identity import PeerName, ShortID, format_peer_name
from weavenet.overlay.forwarding import Forwarding
from weavenet.sim.host import Host

_ENDING = re.compile(r"connection shutting down due to error( during handshake)?: (.*)")
# All that may end a connection here, where networks fail and operators err, but nobody lies.
_ENDS = (
    "Multiple connections to ",
    "connection reset by peer",
    "i/o timeout",
    "no working forwarders to ",
)
_ENDS_OF_HANDSHAKES = (
    "Found unknown remote name: ",
    "Unable to decrypt TCP msg; is the password the same on both peers?",
    "connection reset by peer",
    "i/o timeout",
    "the peer uses key ",
)
# Once an operator has given ranges to two peers, their rings contradict each other.
_ENDS_OF_DISPUTES = ("Received update for IP range I own at ", "Inconsistent entries for ")


class InvariantError(AssertionError):
    """Something that must always be true was not."""


class Ledger:
    """Who was promised which address: the truth that the nodes are held to."""

    def __init__(self) -> None:
        """Start with no containers."""
        self._owners: dict[Address, tuple[PeerName, str]] = {}
        self._asked: dict[PeerName, dict[str, None]] = {}
        self._disputed: list[Range] = []

    def dispute(self, ranges: Sequence[Range]) -> None:
        """An operator has given these ranges to two peers: what becomes of them is nobody's promise any more."""
        self._disputed += ranges
        for address in [address for address in self._owners if self.is_disputed(address)]:
            del self._owners[address]

    def is_disputed(self, address: Address) -> bool:
        """Say whether an operator has given an address to two peers."""
        return any(address in part for part in self._disputed)

    def check_ending(self, name: PeerName, note: str) -> None:
        """Hold what a node says of the end of a connection against what may end one."""
        found = _ENDING.search(note)
        if found is None:
            return
        allowed = _ENDS_OF_HANDSHAKES if found[1] else _ENDS
        if not found[2].startswith(allowed + (_ENDS_OF_DISPUTES if self._disputed else ())):
            raise InvariantError(f"{format_peer_name(name)} ended a connection: {note}")

    def ask(self, name: PeerName, ident: str) -> None:
        """A container asks for an address, perhaps again; it may never hear of it."""
        self._asked.setdefault(name, {})[ident] = None

    def grant(self, host: Host, ident: str, cidr: Cidr) -> None:
        """Note that a container was told its address, and hold that against what others were told."""
        owner = (host.name, ident)
        others = [address for address, other in self._owners.items() if other == owner and address != cidr.address]
        if others:
            raise InvariantError(f"{ident} was given {cidr}, and holds {format_address(others[0])} already")
        if not host.disk.holds(ident, cidr):
            raise InvariantError(
                f"{cidr} was promised to {ident} on {format_peer_name(host.name)} before it was on disk"
            )
        if self.is_disputed(cidr.address):
            return
        known = self._owners.setdefault(cidr.address, owner)
        if known != owner:
            raise InvariantError(
                f"{format_address(cidr.address)} was given to {ident} on {format_peer_name(host.name)}, "
                f"and belongs to {known[1]} on {format_peer_name(known[0])}",
            )

    def forget(self, name: PeerName, ident: str) -> None:
        """A container is gone."""
        self._asked.get(name, {}).pop(ident, None)
        for address in [address for address, owner in self._owners.items() if owner == (name, ident)]:
            del self._owners[address]

    def forget_host(self, name: PeerName) -> None:
        """A machine is gone, and every container on it."""
        self._asked.pop(name, None)
        for address in [address for address, owner in self._owners.items() if owner[0] == name]:
            del self._owners[address]

    def containers(self, name: PeerName) -> list[str]:
        """Return the containers of a host that hold an address."""
        return sorted({ident for owner, ident in self._owners.values() if owner == name})

    def asked(self, name: PeerName) -> list[str]:
        """Return the containers of a host that have asked and are not gone, with or without an answer."""
        return list(self._asked.get(name, {}))

    def check_restored(self, host: Host) -> None:
        """After a restart every container still has its address."""
        assert host.node is not None
        assert host.node.ipam is not None
        for address, (name, ident) in sorted(self._owners.items()):
            if name != host.name:
                continue
            held = [cidr.address for cidr in host.node.ipam.lookup(ident, None)]
            if address not in held:
                raise InvariantError(
                    f"{format_peer_name(name)} restarted and has forgotten that {ident} has {format_address(address)}",
                )


# --- convergence ------------------------------------------------------------------------------------------------------


def unconverged(hosts: Sequence[Host]) -> str | None:
    """Say what is not yet as it must become, or None."""
    names = sorted(host.name for host in hosts)
    for host in hosts:
        assert host.node is not None
        seen = sorted(host.node.mesh.peer_names())
        if seen != names:
            return f"{format_peer_name(host.name)} knows {len(seen)} peers, not the {len(names)} there are"
    return _mesh_gap(hosts) or _ring_gap(hosts) or _forwarding_gap(hosts)


def _mesh_gap(hosts: Sequence[Host]) -> str | None:
    for host in hosts:
        assert host.node is not None
        established = sorted(host.node.overlays.links())
        others = sorted(other.name for other in hosts if other is not host)
        working = [name for name in established if host.node.overlays.links()[name].established]
        if working != others:
            return f"{format_peer_name(host.name)} has {len(working)} working links, not {len(others)}"
        if sorted(host.node.mesh.routes.unicast) != sorted([host.name, *others]):
            return f"{format_peer_name(host.name)} has no route to some peer"
    return None


def is_only_disputed(hosts: Sequence[Host], ledger: Ledger) -> bool:
    """Say whether nodes differ about the owners of disputed ranges, and about those only.

    Two heirs with as many free addresses each keep what they have taken over, and say nothing: equal versions are
    decided by the greater number, and by "ours" if that is equal, too (docs/protocol/ipam.md, 2.5).
    """
    opinions: dict[Address, set[PeerName]] = {}
    for host in hosts:
        assert host.node is not None
        assert host.node.ipam is not None
        for entry in host.node.ipam.ring.entries:
            opinions.setdefault(entry.token, set()).add(entry.peer)
    differing = [token for token, peers in opinions.items() if len(peers) > 1]
    return bool(differing) and all(ledger.is_disputed(token) for token in differing)


def _ring_gap(hosts: Sequence[Host]) -> str | None:
    rings = []
    for host in hosts:
        assert host.node is not None
        assert host.node.ipam is not None
        ring = host.node.ipam.ring
        rings.append(tuple((entry.token, entry.peer, entry.version) for entry in ring.entries))
    if len(set(rings)) > 1:
        return f"there are {len(set(rings))} different rings"
    return None


def _forwarding_gap(hosts: Sequence[Host]) -> str | None:
    tables: dict[Address, Forwarding] = {}
    for host in hosts:
        assert host.node is not None
        tables[host.address] = host.node.forwarding()
    ours = {table.ours: address for address, table in tables.items()}
    if len(ours) != len(tables):
        return "two peers have one short ID"
    for source, address in sorted(ours.items()):
        for destination in sorted(ours):
            if destination != source and not _unicast_arrives(tables, address, destination):
                return f"a unicast from {source} to {destination} does not arrive"
        reached = _flood(tables, address, source)
        if sorted(reached) != sorted(other for other in ours if other != source):
            return f"a broadcast from {source} reaches {sorted(reached)}"
    return None


def _unicast_arrives(tables: dict[Address, Forwarding], at: Address, destination: ShortID) -> bool:
    for _ in range(len(tables)):
        table = tables[at]
        if table.ours == destination:
            return True
        following = table.peers.get(destination)
        if following is None or following not in tables:
            return False
        at = following
    return False


def _flood(tables: dict[Address, Forwarding], start: Address, origin: ShortID) -> list[ShortID]:
    """Return the short IDs a broadcast reaches, each as often as it does."""
    reached: list[ShortID] = []
    waiting = deque([start])
    while waiting and len(reached) <= len(tables) * 2:
        table = tables[waiting.popleft()]
        for short_id, address in table.floods.get(origin, ()):
            reached.append(short_id)
            if address in tables:
                waiting.append(address)
    return reached
