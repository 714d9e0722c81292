"""What one peer knows for IPAM, and the outbox of the action under way; shared by the parts of the allocator.

The outbox turns the order in which things come up into the order in which they must happen: everything to be stored, as
one transaction, and then everything to be said.
"""

from collections.abc import Mapping
from typing import Protocol

import msgspec

from weavenet.address import Cidr
from weavenet.effects import (
    Entropy,
    Level,
    Note,
    Outcome,
    Output,
    Persist,
    Reply,
    RequestNumber,
    SendBroadcast,
    SendUnicast,
    StoreChange,
)
from weavenet.identity import PeerName, format_peer_name
from weavenet.ipam.holdings import Holdings
from weavenet.ipam.ring import Ring
from weavenet.ipam.space import Space
from weavenet.ipam.wire import Unicast, encode_unicast

CHANNEL = "IPallocation"
# The peers of a large mesh and some that are gone; what is learnt beyond this is dropped.
NICKNAMES_MAX = 20_000
NICKNAME_CHARACTERS_MAX = 1024  # as in the topology (mesh/records.py)


class PeerDirectory(Protocol):
    """What IPAM needs to know of the mesh."""

    def can_reach(self, peer: PeerName) -> bool:
        """Say whether a unicast can be sent."""
        ...

    def is_known(self, peer: PeerName) -> bool:
        """Say whether the router has heard of a peer and not yet forgotten it."""
        ...

    def nickname(self, peer: PeerName) -> str | None:
        """Return what the mesh calls a peer."""
        ...

    def active_targets(self) -> int:
        """Count the peers that we were told to connect to, for guessing a quorum."""
        ...


class Outbox:
    """What an action stores and says."""

    def __init__(self) -> None:
        """Begin empty."""
        self._changes: list[StoreChange] = []
        self._outputs: list[Output] = []

    def store(self, change: StoreChange) -> None:
        """Store a change before anything is said."""
        self._changes.append(change)

    def reply(self, request: RequestNumber, outcome: Outcome) -> None:
        """Answer a request."""
        self._outputs.append(Reply(request, outcome))

    def note(self, level: Level, text: str) -> None:
        """Tell the operator."""
        self._outputs.append(Note(level, text))

    def unicast(self, destination: PeerName, message: Unicast) -> None:
        """Tell one peer."""
        self._outputs.append(SendUnicast(CHANNEL, destination, encode_unicast(message)))

    def broadcast(self) -> None:
        """Tell all peers our state as it will be when this is sent."""
        self._outputs.append(SendBroadcast(CHANNEL))

    def take(self) -> list[Output]:
        """Return everything, in the order in which it must be done, and begin anew."""
        persist: list[Output] = [Persist(tuple(self._changes))] if self._changes else []
        outputs = persist + self._outputs
        self._changes, self._outputs = [], []
        return outputs


class Books(msgspec.Struct):
    """The state that requests, gossip and elections share."""

    name: PeerName
    ring: Ring
    directory: PeerDirectory
    entropy: Entropy
    nicknames: dict[PeerName, str]  # ours included
    space: Space = msgspec.field(default_factory=Space)
    holdings: Holdings = msgspec.field(default_factory=Holdings)
    outbox: Outbox = msgspec.field(default_factory=Outbox)

    def manages(self, address: Cidr) -> bool:
        """Say whether an address is of the universe; others are only written down."""
        return address.address in self.ring.universe

    def record(self, ident: str, address: Cidr, *, is_container: bool) -> None:
        """Write down that an identifier holds an address, which is out of the free space already if we manage it."""
        self.outbox.store(self.holdings.record(ident, address, is_container=is_container))

    def release(self, ident: str, address: Cidr) -> None:
        """Write down that an identifier no longer holds an address, and make that free."""
        self.outbox.store(self.holdings.forget(ident, address))
        # After shutting down the space is empty, although containers may still hold what was in it.
        if self.space.is_used(address.address):
            self.space.release(address.address)

    def learn_nicknames(self, nicknames: Mapping[PeerName, str]) -> None:
        """Take over what others call peers; our own name we know best."""
        for peer in sorted(nicknames):
            if peer != self.name and (peer in self.nicknames or len(self.nicknames) < NICKNAMES_MAX):
                self.nicknames[peer] = nicknames[peer][:NICKNAME_CHARACTERS_MAX]

    def forget_nickname(self, peer: PeerName) -> None:
        """Forget what a peer is called, unless it owns something."""
        if peer != self.name and not self.ring.mentions(peer):
            self.nicknames.pop(peer, None)

    def forget_strangers(self) -> None:
        """Forget the nicknames of peers that neither own anything nor are known to the router."""
        owners = {entry.peer for entry in self.ring.entries}
        for peer in sorted(self.nicknames):
            if peer != self.name and peer not in owners and not self.directory.is_known(peer):
                del self.nicknames[peer]

    def told_nicknames(self) -> dict[PeerName, str]:
        """Return what others are told: what we have heard, and, of owners we have not heard of, what the mesh says."""
        owners = {entry.peer for entry in self.ring.entries} - self.nicknames.keys()
        known = {peer: nickname for peer in owners if (nickname := self.directory.nickname(peer))}
        return dict(sorted((self.nicknames | known).items()))

    def nickname(self, peer: PeerName) -> str:
        """Return what a peer calls itself, as far as IPAM or the mesh have heard; else nothing."""
        return self.nicknames.get(peer) or self.directory.nickname(peer) or ""

    def describe(self, peer: PeerName) -> str:
        """Return name and nickname, as in `7a:00:00:00:00:01(host1)`."""
        nickname = self.nickname(peer)
        return f"{format_peer_name(peer)}({nickname})" if nickname else format_peer_name(peer)
