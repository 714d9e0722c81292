"""The allocator: gives out addresses of this peer's ranges, and gets ranges from others when its own are used up.

    requests ──▶ allocator ──▶ Persist, then replies and messages
                   ├─ desk       serves requests, keeps those that must wait
                   ├─ election   how there came to be a ring       ◀── gossip
                   └─ books ─┬─ ring       whose ranges are whose  ◀── gossip
                             ├─ space      what of ours is free
                             └─ holdings   who has what on this host

It is Weave's allocator without its actor: every method is one action, from an input to the outputs it has. An action's
changes are collected and stored as one transaction, which stands before all that the action says, so no address is
granted, and no range given away, that the disk does not know of. What may be said early is never wrong: a peer that is
told of a ring sees changes of ours that we may then forget in a crash, but those are counts of free addresses only.

Hostile input: a message is decoded and its ring checked before anything of it is used, a ring that contradicts ours
is refused as a whole, and both cost the sender its connection (GossipError). Only nicknames stay; the error needs them.

Source: docs/protocol.md, "Allocator"; Weave's ipam/allocator.go, claim.go, allocate.go. Docker's part, watching for
containers that die, is not here: Kubernetes says so itself.
"""

from collections.abc import Mapping, Sequence
from hashlib import blake2b

import msgspec

from weavenet.address import Address, Cidr, Range, format_address
from weavenet.effects import (
    DropAllocation,
    Entropy,
    GossipKind,
    Level,
    Now,
    Output,
    PutAllocation,
    PutValue,
    Refused,
    RequestNumber,
    TookOver,
)
from weavenet.errors import ConfigError, DifferentRangeError, DifferentSeedsError, GossipError, IpamError, PeerNameError
from weavenet.identity import PeerName, PeerUID, format_peer_name, parse_peer_name
from weavenet.ipam import wire
from weavenet.ipam.books import CHANNEL, Books, PeerDirectory
from weavenet.ipam.desk import Desk
from weavenet.ipam.election import Election
from weavenet.ipam.modes import InitMode, Seed
from weavenet.ipam.paxos import NodeID
from weavenet.ipam.requests import Allocate, Claim, Prime
from weavenet.ipam.restore import KEY_ELECTION, KEY_PEER_NAME, KEY_RING, StoredState, restore
from weavenet.ipam.ring import DIGEST_BYTES, Ring, RingState, normalise_peers
from weavenet.ipam.status import IpamStatus, Phase, RangeStatus

__all__ = ["CHANNEL", "Allocator", "IpamConfig", "PeerDirectory", "StoredState"]

RETRY_S = 5.0
_NOT_STORED = -1


class IpamConfig(msgspec.Struct, frozen=True):
    """Who we are, and what is to be shared out. Raises ConfigError if that cannot be done."""

    name: PeerName
    uid: PeerUID
    nickname: str
    universe: Cidr
    default_subnet: Cidr
    mode: InitMode

    def __post_init__(self) -> None:
        """Check what no single flag can be blamed for."""
        if self.universe.range.end >> 32:
            # The ring's end is a 32-bit number on the wire. Weave's wraps to 0, and its ring breaks.
            raise ConfigError(f"IP address allocation range {self.universe} must end before 255.255.255.255")
        if not self.universe.is_subnet or not self.default_subnet.is_subnet:
            raise ConfigError(f"{self.universe} or {self.default_subnet} has bits after the network prefix")
        if not self.default_subnet.range.overlaps(self.universe.range):
            raise ConfigError(
                f"IP address allocation default subnet {self.default_subnet} does not overlap with "
                f"allocation range {self.universe}",
            )


class Allocator:
    """IPAM of one peer."""

    def __init__(self, config: IpamConfig, directory: PeerDirectory, entropy: Entropy) -> None:
        """Compose the parts; `start` must come first."""
        self.config = config
        self.ring = Ring(config.universe.range, config.name)
        self._books = Books(config.name, self.ring, directory, entropy, {config.name: config.nickname})
        self._election = Election(NodeID(config.name, config.uid), config.mode)
        self._desk = Desk(self._books, self._establish_ring)
        self._outbox = self._books.outbox
        self._retry_due: float | None = None
        self._stored_revision = self.ring.revision
        self._stored_election = self._election.stored()

    def start(self, stored: StoredState, now: Now) -> list[Output]:
        """Take up what is on disk, or start afresh. Raises StoreError if it cannot be read."""
        restored = restore(stored, self.config.name, self.ring.universe)
        seed = self.config.mode.names if isinstance(self.config.mode, Seed) else ()
        if restored.ring is not None:
            self.ring.restore(restored.ring)
            self._books.space.extend(self.ring.owned_ranges())
            self._stored_revision = self.ring.revision
            ignoring = "Found persisted IPAM data, ignoring supplied IPAM seed"
            self._outbox.note(Level.INFO, ignoring if seed else "Initialising with persisted data")
        else:
            self._outbox.note(Level.INFO, restored.reason)
            self._stored_revision = _NOT_STORED
            if restored.election is not None:
                self._election.resume(restored.election)
                self._stored_election = self._election.stored()
        for put in stored.allocations:
            if put not in restored.allocations or not self._take_up(put):
                self._outbox.store(DropAllocation(put.ident, put.address))
        if self.ring.is_empty:
            self._start_afresh(seed)
        return self._finish(now)

    # --- requests -----------------------------------------------------------------------------------------------------

    def allocate(
        self,
        request: RequestNumber,
        ident: str,
        subnet: Cidr | None,
        *,
        is_container: bool,
        now: Now,
    ) -> list[Output]:
        """Give an identifier an address of a subnet, or the one it has; answered by Granted, now or later."""
        self._desk.submit(Allocate(request, ident, subnet or self.config.default_subnet, is_container))
        return self._finish(now)

    def claim(
        self,
        request: RequestNumber,
        ident: str,
        cidr: Cidr,
        *,
        is_container: bool,
        no_error_on_unknown: bool,
        now: Now,
    ) -> list[Output]:
        """Give an identifier this very address; answered by Done, now or later.

        With `no_error_on_unknown` the answer waits neither for a ring nor for an owner that cannot be reached.
        """
        self._desk.submit(Claim(request, ident, cidr, is_container, no_error_on_unknown))
        return self._finish(now)

    def await_consensus(self, request: RequestNumber, now: Now) -> list[Output]:
        """Answer Done when there is a ring, and see to it that there will be one."""
        self._desk.submit(Prime(request))
        return self._finish(now)

    def count_peers(self, peer_count: int, now: Now) -> list[Output]:
        """Learn how many peers there are, in the mode that waits for it; go on with an election that did."""
        if self._election.count(peer_count):
            self._establish_ring()
        return self._finish(now)

    def cancel(self, request: RequestNumber, now: Now) -> list[Output]:
        """Forget a request whose caller is gone. One that is answered stays answered."""
        self._desk.cancel(request)
        return self._finish(now)

    def release(self, ident: str, now: Now) -> list[Output]:
        """Free all addresses of an identifier. Raises IpamError if it has none, and waits for none."""
        held = self._books.holdings.of(ident)
        if not self._desk.cancel_for(ident) and not held:
            raise IpamError(f"Delete: no addresses for {ident}")
        for cidr in held:
            self._books.release(ident, cidr)
        return self._finish(now)

    def release_address(self, ident: str, address: Address, now: Now) -> list[Output]:
        """Free one address of an identifier. Raises IpamError if it does not have it."""
        for cidr in self._books.holdings.of(ident):
            if cidr.address == address:
                self._books.release(ident, cidr)
                return self._finish(now)
        raise IpamError(f"Free: address {format_address(address)} not found for {ident}")

    def shut_down(self, now: Now) -> list[Output]:
        """Leave for good: turn requests away from now on, and hand our ranges to another peer."""
        self._election.close()
        self._desk.close()
        heir = self._heir()
        if heir is not None:
            self.ring.transfer(self.config.name, heir)
            self._books.space.clear()
            self._outbox.broadcast()
        return self._finish(now)

    def take_over(self, request: RequestNumber, ident: str, now: Now) -> list[Output]:
        """Make the ranges of a dead peer ours, named by nickname or peer name; answered by TookOver, or Refused.

        Whoever does this to a live peer, or on two peers at once, breaks the ring for good.
        """
        found = self._find_peers(ident)
        peer = found[0] if len(found) == 1 else None
        before = self._books.space.free_count
        if len(found) > 1:
            names = ", ".join(map(format_peer_name, found))
            self._outbox.reply(request, Refused(f"{ident} may be any of {names}; give the name, not the nickname"))
            return self._finish(now)
        if self._desk.is_closed or peer is None or peer == self.config.name:
            self._outbox.note(Level.WARNING, f"Cannot take over the ranges of {ident}: that is no other peer of ours")
        elif self.ring.transfer(peer, self.config.name):
            self._ring_updated()
            self._outbox.broadcast()
        self._outbox.reply(request, TookOver(self._books.space.free_count - before))
        return self._finish(now)

    # --- views --------------------------------------------------------------------------------------------------------

    def lookup(self, ident: str, subnet: Cidr | None) -> tuple[Cidr, ...]:
        """Return what an identifier holds among the host addresses of a subnet."""
        return self._books.holdings.of_within(ident, (subnet or self.config.default_subnet).host_range)

    def owned(self) -> Mapping[str, tuple[Cidr, ...]]:
        """Return who holds what, by identifier in order."""
        return self._books.holdings.all()

    def can_allocate(self, subnet: Cidr | None = None) -> bool:
        """Say whether a request has a chance: an address is free here or known free elsewhere, or there is no ring."""
        wanted = subnet or self.config.default_subnet
        if self._desk.is_closed or not wanted.range.overlaps(self.ring.universe):
            return False
        if self.ring.is_empty or self._books.space.count_free(wanted.host_range):
            return True
        # What else is free may be the network and the broadcast address, which no container gets.
        return self.ring.count_free_elsewhere(wanted.range, without=(wanted.network.address, wanted.broadcast)) > 0

    def encode_state(self, wall_s: float) -> bytes:
        """Return what other peers are told, at this moment."""
        return wire.encode_state(self._state(wall_s))

    def digest(self) -> bytes | None:
        """Return a hash of what other peers are told, equal where they have nothing to learn of each other.

        None while there is no ring: elections are short, and everybody's word in them matters. Of nicknames, those of
        owners matter that are gone, and whether there is one; the mesh tells those of the others.
        """
        ring = self.ring.digest()
        if ring is None:
            return None
        owners = {entry.peer for entry in self.ring.entries} & self._books.nicknames.keys()
        named = sorted(owner for owner in owners if not self._books.directory.is_known(owner))
        return blake2b(repr((ring, named)).encode(), digest_size=DIGEST_BYTES).digest()

    def status(self) -> IpamStatus:
        """Describe all of it."""
        ours = self.config.name
        ranges = tuple(
            RangeStatus(
                token=owned.range.start,
                size=owned.range.size,
                peer=owned.peer,
                nickname=self._books.nickname(owned.peer),
                is_known_peer=owned.peer == ours or self._books.directory.is_known(owned.peer),
                version=owned.version,
            )
            for owned in sorted(self.ring.all_ranges(), key=lambda owned: (owned.peer != ours, owned.range))
        )
        return IpamStatus(
            phase=self._phase(ranges),
            election=self._election.status(),
            universe=self.config.universe,
            universe_size=self.config.universe.size,
            default_subnet=self.config.default_subnet,
            active_count=self._books.space.used_count,
            ranges=ranges,
            pending_claims=tuple((asked.ident, asked.address) for asked in self._desk.claims),
            pending_allocates=tuple((asked.ident, asked.subnet) for asked in self._desk.allocates),
        )

    # --- the mesh and the clock ---------------------------------------------------------------------------------------

    def gossip_arrived(self, kind: GossipKind, source: PeerName, data: bytes, now: Now) -> list[Output]:
        """Take in a message. Raises GossipError, and then nothing of it counts; the sender's connection should end."""
        if kind is not GossipKind.UNICAST:
            # Neighbour gossip gets no answer: its sender hears our state on the same connection in its turn.
            self._hear(wire.decode_state(data), source if kind is GossipKind.BROADCAST else None, now)
            return self._finish(now)
        match wire.decode_unicast(data):
            case wire.SpaceRequest(wanted):
                self._donate(source, wanted, now)
            case wire.RingUpdate(state):
                self._hear(state, source, now)
            case wire.SpaceRequestDenied(wanted):
                self._desk.denied(source, wanted)
            case None:
                who = self._books.describe(source)
                self._outbox.note(Level.DEBUG, f"Ignoring an IP allocation message of unknown type from {who}")
        return self._finish(now)

    def peers_removed(self, names: Sequence[PeerName], nicknames: Sequence[str], now: Now) -> list[Output]:
        """Forget the nicknames of peers that are gone, but for owners: what they own stays theirs."""
        for name, nickname in zip(names, nicknames, strict=True):
            self._books.forget_nickname(name)
            if self.ring.mentions(name) and nickname:
                self._books.nicknames.setdefault(name, nickname)
        return self._finish(now)

    def next_deadline(self) -> float | None:
        """Monotonic seconds at which `handle_timer` is due; None if nothing waits."""
        return self._retry_due

    def handle_timer(self, now: Now) -> list[Output]:
        """Try again what waits, if that is due."""
        if self._retry_due is None or now.monotonic_s < self._retry_due:
            return []
        self._retry_due = None
        if self._election.is_awaited:
            self._election.propose_again()
            self._outbox.broadcast()
        elif self.ring.is_empty:
            self._establish_ring()
        else:
            self._desk.retry_by_clock()
        return self._finish(now)

    # --- what others say ----------------------------------------------------------------------------------------------

    def _hear(self, state: wire.GossipState, sender: PeerName | None, now: Now) -> None:
        """Take in a state; from nobody in particular if it is the periodic gossip."""
        self._books.learn_nicknames(state.nicknames)
        if state.ring is not None and state.ring.entries:
            if self._merge(state.ring):
                self._books.forget_strangers()
                self._ring_updated()
        elif not self.ring.is_empty:
            if sender is not None:
                self._outbox.unicast(sender, wire.RingUpdate(self._state(now.wall_s)))
        elif state.paxos is not None:
            if self._election.hear(state.paxos):
                self._outbox.broadcast()
            self._conclude()
        elif sender is not None and self._election.is_elector:
            # An observer wants a ring, and cannot have one elected by itself.
            self._establish_ring()

    def _merge(self, received: RingState) -> bool:
        try:
            return self.ring.merge(received, self._books.space.has_allocations)
        except DifferentSeedsError as error:
            theirs, ours = self._describe_all(received.seeds), self._describe_all(self.ring.seeds)
            text = f"IP allocation was seeded by different peers (received: {theirs}, ours: {ours})"
            raise GossipError(text) from error
        except DifferentRangeError as error:
            theirs, ours = received.universe.as_cidr_text(), self.ring.universe.as_cidr_text()
            raise GossipError(f"Incompatible IP allocation ranges (received: {theirs}, ours: {ours})") from error

    def _donate(self, to: PeerName, wanted: Range, now: Now) -> None:
        if self.ring.is_empty or to == self.config.name:
            return
        donated = self._books.space.donate(wanted)
        if donated is not None:
            self.ring.grant(donated, to)
            self._outbox.note(Level.DEBUG, f"Giving {donated} to {self._books.describe(to)}")
            self._outbox.broadcast()
        else:
            self._outbox.unicast(to, wire.SpaceRequestDenied(wanted))
        # In any case: whoever asked us for what we have not had better know our ring.
        self._outbox.unicast(to, wire.RingUpdate(self._state(now.wall_s)))

    def _state(self, wall_s: float) -> wire.GossipState:
        has_ring = not self.ring.is_empty
        return wire.GossipState(
            now_s=int(wall_s),
            nicknames=self._books.told_nicknames(),
            paxos=None if has_ring else self._election.claims(),
            ring=self.ring.state() if has_ring else None,
        )

    def _describe_all(self, peers: Sequence[PeerName]) -> str:
        return f"[{' '.join(self._books.describe(peer) for peer in peers)}]"

    # --- the first ring -----------------------------------------------------------------------------------------------

    def _start_afresh(self, seed: Sequence[PeerName]) -> None:
        if seed:
            self._outbox.note(Level.INFO, "Initialising with supplied IPAM seed")
            self._create_ring(normalise_peers(seed))
        elif self._election.is_elector:
            self._outbox.note(Level.INFO, "Initialising via deferred consensus")
        else:
            self._outbox.note(Level.INFO, "Initialising as observer - awaiting IPAM data from another peer")

    def _take_up(self, put: PutAllocation) -> bool:
        """Restore one stored allocation. Return whether it was possible."""
        space, address = self._books.space, put.address.address
        if self._books.manages(put.address):
            if space.count_free(Range(address, Address(address + 1))) == 0:
                # Only after shutting down, when the range became another peer's.
                text = f"Dropping {put.address} of {put.ident}: it is no longer ours to give"
                self._outbox.note(Level.WARNING, text)
                return False
            space.claim(address)
        self._books.holdings.record(put.ident, put.address, is_container=put.is_container)
        return True

    def _establish_ring(self) -> None:
        """See to it that there will be a ring. A quorum of one has it at once."""
        if not self.ring.is_empty or self._election.is_awaited or self._desk.is_closed:
            return
        guessed = self._election.open(self._books.directory.active_targets())
        if guessed is not None:
            self._outbox.note(Level.INFO, f"Assuming quorum size of {guessed}")
        self._outbox.broadcast()
        self._conclude()

    def _conclude(self) -> None:
        decided = self._election.decided()
        if decided and not self._desk.is_closed:
            self._create_ring(decided)

    def _create_ring(self, peers: Sequence[PeerName]) -> None:
        self.ring.create(peers)
        self._ring_updated()
        self._outbox.broadcast()

    def _ring_updated(self) -> None:
        """Follow a change of the ring that others made, or that made it."""
        self._election.close()
        ours = self.ring.owned_ranges()
        self._books.space.extend(ours)
        # Weave does not, and dies of it. A range that we lose has no address in use, or it would not have been lost.
        self._books.space.restrict(ours)
        self._desk.retry()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _finish(self, now: Now) -> list[Output]:
        """End an action: bring the ring's advice up to date, see what has to be stored, and wind the clock."""
        space, ours = self._books.space, self.ring.owned_ranges()
        assert sum(part.size for part in ours) == space.free_count + space.used_count, "ring and space differ"
        self.ring.report_free({part.start: space.count_free(part) for part in ours})
        if self.ring.revision != self._stored_revision:
            self._stored_revision = self.ring.revision
            self._outbox.store(PutValue(KEY_PEER_NAME, wire.encode_stored_name(self.config.name)))
            self._outbox.store(PutValue(KEY_RING, wire.encode_stored_ring(self.ring.state())))
        if self.ring.is_empty:
            self._store_election()
        self._desk.end_action()
        if self._desk.is_empty and not self._election.is_awaited:
            self._retry_due = None
        elif self._retry_due is None:
            self._retry_due = now.monotonic_s + RETRY_S
        return self._outbox.take()

    def _store_election(self) -> None:
        election = self._election.stored()
        if election is not None and election != self._stored_election:
            self._stored_election = election
            self._outbox.store(PutValue(KEY_ELECTION, wire.encode_stored_election(election)))

    def _heir(self) -> PeerName | None:
        """Choose who gets our ranges: somebody with ranges rather than without, but first of all somebody alive."""
        can_reach = self._books.directory.can_reach
        named = [peer for peer in sorted(self._books.nicknames) if peer != self.config.name]
        return (
            self.ring.heir(can_reach)
            or next((peer for peer in named if can_reach(peer)), None)
            or self.ring.heir(lambda _: True)
            or next(iter(named), None)
        )

    def _find_peers(self, text: str) -> list[PeerName]:
        """Return whom an operator may mean: a name is that peer's, whatever other peers may call themselves."""
        try:
            return [parse_peer_name(text)]
        except PeerNameError:
            return [peer for peer, nickname in sorted(self._books.nicknames.items()) if text and nickname == text]

    def _phase(self, ranges: Sequence[RangeStatus]) -> Phase:
        if ranges:
            if not any(part.is_known_peer for part in ranges):
                return Phase.UNREACHABLE
            return Phase.WAITING_FOR_SPACE if len(self._desk.allocates) else Phase.READY
        if not self._election.is_awaited:
            return Phase.IDLE
        return Phase.AWAITING_CONSENSUS if self._election.is_elector else Phase.PRIMING
