"""Ways to peers that went away are kept for a while: pods do not end with the agent beside them.

When an agent ends, its connections end, and with them, for all others, the routes to its host. But its data plane works
on by what the kernel holds, and so can ours towards it, as long as we leave the rows where they are. The agent
that starts again, for its part, finds the rows that the former one wrote, and knows no peer yet. So for both the rule
is the same: what the tables have, and the mesh no longer or not yet does, stays.

    what the tables hold ──┐
                           ├─▶ what they should hold: what the mesh wants, but ...
    what the mesh wants ───┘

    no word about a peer               the former row stays, for LINGER_S
    a neighbour, by way of another     the former way stays, for DETOUR_S; after that the mesh is right
    a neighbour's address is another's the former row goes at once: who was rebooted does not answer to the former
                                       short ID any more

The second rule is for moments at which the mesh is of two minds: when an agent has ended, each of the others knows so
of its own connection and still believes what the others last said of theirs. Two of them that trust each other with a
third one's frames would have these drop, and what is dropped then is what this module is about.

Ten minutes are how long a MAC address is remembered that nobody uses (fastdp.c). Until then frames to a host that is
really dead are lost either way; what lingering costs is the copies of broadcasts that are sent to it.
"""

from collections.abc import Mapping

import msgspec

from weavenet.address import Address
from weavenet.identity import ShortID
from weavenet.overlay.forwarding import Forwarding

LINGER_S = 600.0
DETOUR_S = 10.0  # news of a lost connection is everywhere after two or three seconds
# implementation: a row has room for 512 next hops (fastdp.c), of which those of connections are 200 by default
LINGERING_HOPS_MAX = 256

_Hops = tuple[tuple[ShortID, Address], ...]


class _Difference(msgspec.Struct, frozen=True):
    """A peer whose row the mesh has not, or wants to lead by way of another peer."""

    short_id: ShortID
    is_wanted: bool


class Lingering:
    """Remembers until when each row is kept, and nothing else: what rows there are, the kernel knows."""

    def __init__(self) -> None:
        """Start with nothing that lingers."""
        self._until_s: dict[_Difference, float] = {}

    def next_deadline(self) -> float | None:
        """Monotonic seconds at which the first row has been kept long enough."""
        return min(self._until_s.values(), default=None)

    def keep(self, held: Forwarding, wanted: Forwarding, now_s: float) -> Forwarding:
        """Return what the tables should hold, given what they do and what the mesh wants."""
        until_s: dict[_Difference, float] = {}
        for difference in _differences(held, wanted):
            time_s = DETOUR_S if difference.is_wanted else LINGER_S
            due_s = self._until_s.get(difference, now_s + time_s)
            if now_s < due_s:
                until_s[difference] = due_s
        self._until_s = until_s
        kept = {difference.short_id: held.peers[difference.short_id] for difference in until_s}
        origins = wanted.floods.keys() | (held.floods.keys() & kept.keys())
        floods = {origin: _row(origin, held, wanted, kept) for origin in sorted(origins)}
        return Forwarding(ours=wanted.ours, peers={**wanted.peers, **kept}, floods=floods)


def _differences(held: Forwarding, wanted: Forwarding) -> list[_Difference]:
    now_neighbours = dict(wanted.floods.get(wanted.ours, ()))
    by_address = {remote: short_id for short_id, remote in now_neighbours.items()}
    were_neighbours = set(held.floods.get(held.ours, ()))
    found = []
    for short_id, remote in sorted(held.peers.items()):
        was_neighbour = (short_id, remote) in were_neighbours
        if short_id == wanted.ours or short_id in now_neighbours:
            continue
        if was_neighbour and by_address.get(remote, short_id) != short_id:
            continue
        if short_id not in wanted.peers:
            found.append(_Difference(short_id, is_wanted=False))
        elif was_neighbour:
            found.append(_Difference(short_id, is_wanted=True))
    return found


def _row(origin: ShortID, held: Forwarding, wanted: Forwarding, kept: Mapping[ShortID, Address]) -> _Hops:
    before = held.floods.get(held.ours if origin == wanted.ours else origin, ())
    if origin not in wanted.floods:
        return tuple(hop for hop in before if hop[0] in kept or hop[0] in wanted.peers)
    row = wanted.floods[origin]
    lingering = [hop for hop in before if kept.get(hop[0]) == hop[1] and hop not in row]
    return (*row, *lingering[:LINGERING_HOPS_MAX])
