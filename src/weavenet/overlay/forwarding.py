"""What the data plane should do with frames, as plain tables: the one thing the eBPF maps are filled from.

    routes (who is next on the way to whom) ─┐
    links  (at which outer address, if any) ─┼─▶ Forwarding
    short IDs (what a VNI can name)         ─┘

A route is only as good as its parts: a destination without a short ID of its own cannot be named in a VNI, and a next
hop without an established link cannot be sent to. Such rows are left out, and frames that would need them are dropped
by the data plane. "Of its own" means that the peer is the *principal* of its short ID: after a collision the other side
would take frames to be from, or for, the peer with the lower name (docs/protocol.md, "Short IDs").

A broadcast row may be empty, and that is not the same as a missing one. In a full mesh nobody passes on anybody's
broadcasts, so all rows but our own are empty; a missing row means that nobody has computed it yet.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec

from weavenet.address import Address, Endpoint
from weavenet.identity import PeerName, ShortID

FASTDP, SLEEVE = "fastdp", "sleeve"
# In place of an outer address: the next hop is reached by sleeve. No peer can have the limited broadcast address.
BY_SLEEVE = Address(0xFFFF_FFFF)
# The same, in the fast format: another device, to which the kernel hands large packets whole.
BY_FAST_SLEEVE = Address(0xFFFF_FFFE)


class ShortIDs(Protocol):
    """What there is to know of short IDs."""

    def ours(self) -> ShortID:
        """Return the local peer's short ID."""
        ...

    def of(self, name: PeerName) -> ShortID | None:
        """Return a peer's short ID; None if the peer is unknown or never said."""
        ...

    def principal(self, short_id: ShortID) -> PeerName | None:
        """Return the peer that a short ID stands for; None if nobody has it."""
        ...


class Link(msgspec.Struct, frozen=True):
    """How frames reach a peer that we have a connection with."""

    remote: Endpoint  # outer address and UDP port
    overlay: str  # the one in use
    established: bool
    mtu: int  # bytes of payload of the largest inner frame
    is_fast: bool = False  # by sleeve: in the fast format


class Forwarding(msgspec.Struct, frozen=True):
    """What the kernel's maps should hold."""

    ours: ShortID
    peers: Mapping[ShortID, Address]  # destination -> outer IPv4 of the next hop towards it, or one of the above
    floods: Mapping[ShortID, tuple[tuple[ShortID, Address], ...]]  # origin -> next hops, each with the same


def compute_forwarding(
    *,
    short_ids: ShortIDs,
    unicast: Mapping[PeerName, PeerName],
    floods: Mapping[PeerName, Iterable[PeerName]],
    links: Mapping[PeerName, Link],
) -> Forwarding:
    """Turn routes, links and short IDs into tables.

    `unicast` is the strict table, destination to next hop, where our own row is of no interest; `floods` has the strict
    broadcast rows of the origins of interest. Rows come out in the order of peer names.
    """
    ours = short_ids.ours()
    peers: dict[ShortID, Address] = {}
    for destination in sorted(unicast):
        link = _usable(links, unicast[destination])
        short_id = _own_short_id(short_ids, destination)
        if link is not None and short_id is not None and short_id != ours:
            peers[short_id] = _outer(link)
    rows: dict[ShortID, tuple[tuple[ShortID, Address], ...]] = {}
    for origin in sorted(floods):
        short_id = _own_short_id(short_ids, origin)
        if short_id is not None:
            rows[short_id] = _next_hops(short_ids, floods[origin], links)
    return Forwarding(ours=ours, peers=peers, floods=rows)


def _next_hops(
    short_ids: ShortIDs,
    names: Iterable[PeerName],
    links: Mapping[PeerName, Link],
) -> tuple[tuple[ShortID, Address], ...]:
    hops: list[tuple[ShortID, Address]] = []
    for name in sorted(names):
        link = _usable(links, name)
        short_id = _own_short_id(short_ids, name)
        if link is not None and short_id is not None:
            hops.append((short_id, _outer(link)))
    return tuple(hops)


def _own_short_id(short_ids: ShortIDs, name: PeerName) -> ShortID | None:
    short_id = short_ids.of(name)
    if short_id is None or short_ids.principal(short_id) != name:
        return None
    return short_id


def _usable(links: Mapping[PeerName, Link], next_hop: PeerName) -> Link | None:
    link = links.get(next_hop)
    return link if link is not None and link.established else None


def _outer(link: Link) -> Address:
    if link.overlay == FASTDP:
        return link.remote.address
    return BY_FAST_SLEEVE if link.is_fast else BY_SLEEVE
