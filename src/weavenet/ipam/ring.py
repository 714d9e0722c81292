"""The ring: which peer owns which addresses, as data that peers exchange until all of them have the same.

    universe   start                                                     end
               |------ p1 ------|-- p2 --|------------ p1 ---------------|
    entries    token            token    token

An entry says who owns the addresses from its token up to the next entry's token; the last range wraps around to the
first token where that is not the universe's start. Every entry has a version, raised by its owner with each change, and
with a few exceptions merging is "the greater version wins". What makes the ring more than a map of versions is that an
entry may be changed by its *owner* only (giving a range away is the last thing an owner does to it), and that an owner
with addresses in use never lets go: a ring that says otherwise is refused, and with it the peer that sent it.

A ring is always sent whole, never as a difference, so a lost message heals with the next one. The number of free
addresses in an entry is advice for others that look for space, and is nobody's promise.

Nothing here knows which addresses are in use; who merges is asked for that. Source: docs/protocol.md, "Ring"; the idea
is Weave's (ipam/ring), the defences at the end of `Ring.merge` are ours.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from itertools import pairwise

import msgspec
from msgspec.structs import replace

from weavenet.address import Address, Range, format_address
from weavenet.effects import Entropy
from weavenet.errors import DifferentRangeError, DifferentSeedsError, RingError
from weavenet.identity import PeerName, format_peer_name

# Taking over a peer's ranges must win against whatever that peer still said.
TRANSFER_VERSION_JUMP = 100
# Versions are 32 bits on the wire. One near the end could not be raised any more, and then two peers might both believe
# that a range is theirs; half of the numbers stay free for our own counting. Honest rings count operations.
RECEIVED_VERSION_MAX = 1 << 31
# 5,000 peers with two dozen ranges each; a ring costs memory and time at every merge.
ENTRIES_MAX = 1 << 17
# Of the hash that peers compare before they tell (docs/protocol/compact-gossip.md).
DIGEST_BYTES = 8


class Entry(msgspec.Struct, frozen=True):
    """Who owns the addresses from `token` on, and about how many of them are free."""

    token: Address
    peer: PeerName
    version: int
    free: int


class RingState(msgspec.Struct, frozen=True):
    """A ring as it travels and is stored: the universe's bounds, whose copy it is, entries, and the first peers."""

    start: Address
    end: Address
    peer: PeerName
    entries: Sequence[Entry]
    seeds: Sequence[PeerName]

    @property
    def universe(self) -> Range:
        """The addresses that are shared out."""
        return Range(self.start, self.end)


class OwnedRange(msgspec.Struct, frozen=True):
    """A part of the universe and what its entry says; a range that wraps around is two of these."""

    range: Range
    peer: PeerName
    version: int


def normalise_peers(names: Sequence[PeerName]) -> tuple[PeerName, ...]:
    """Put the peers of a new ring into the order and number that every peer must arrive at by itself."""
    return tuple(sorted(set(names)))


class Ring:
    """Our copy of the ring."""

    def __init__(self, universe: Range, peer: PeerName) -> None:
        """Begin without entries: nobody owns anything yet."""
        assert universe.size, f"an empty universe {universe} cannot be shared out"
        self.universe = universe
        self.peer = peer
        self.seeds: tuple[PeerName, ...] = ()
        self._entries: list[Entry] = []
        self._tokens: list[Address] = []
        self._revision = 0
        self._owned: list[Range] | None = None
        self._digest = -1, b""  # and the revision that it was made of

    def restore(self, state: RingState) -> None:
        """Take up a stored ring of the same universe. Raises RingError if it is not one."""
        assert not self._entries, "there is a ring already"
        assert state.universe == self.universe, f"{state.universe} is not {self.universe}"
        check_invariants(state.universe, state.entries)
        self.seeds = tuple(state.seeds)
        self._change(list(state.entries))

    @property
    def entries(self) -> Sequence[Entry]:
        """All entries by token."""
        return self._entries

    @property
    def is_empty(self) -> bool:
        """Whether there is no ring yet."""
        return not self._entries

    @property
    def revision(self) -> int:
        """A number that grows with every change, however small: what was stored at this number is still right."""
        return self._revision

    def digest(self) -> bytes | None:
        """Return a hash that is equal wherever merging would change nothing; None while there is no ring.

        Between entries that have equal versions and name the same peer, merging does not care about the free addresses.
        """
        if self._entries and self._digest[0] != self._revision:
            numbers = [(each.token, each.peer, each.version) for each in self._entries]
            text = repr((self.universe.start, self.universe.end, numbers, self.seeds)).encode()
            self._digest = self._revision, blake2b(text, digest_size=DIGEST_BYTES).digest()
        return self._digest[1] if self._entries else None

    def state(self) -> RingState:
        """Return the ring as it travels."""
        return RingState(self.universe.start, self.universe.end, self.peer, tuple(self._entries), self.seeds)

    # --- who owns what ------------------------------------------------------------------------------------------------

    def owner(self, address: Address) -> PeerName | None:
        """Return who owns an address of the universe; None while the ring is empty."""
        assert address in self.universe, f"{format_address(address)} is not in {self.universe}"
        return self._entries[self._index_of(address)].peer if self._entries else None

    def owned_ranges(self) -> Sequence[Range]:
        """Return our ranges in address order, one per entry, a wrapping one in its two parts."""
        if self._owned is None:
            self._owned = self.ranges_of(self.peer)
        return self._owned

    def ranges_of(self, peer: PeerName) -> list[Range]:
        """Return a peer's ranges in address order."""
        return sorted(owned.range for owned in self.all_ranges() if owned.peer == peer)

    def all_ranges(self) -> list[OwnedRange]:
        """Return every range in the order of entries."""
        return [
            OwnedRange(part, entry.peer, entry.version)
            for index, entry in enumerate(self._entries)
            for part in _parts(self.universe, self._entries, index)
        ]

    def mentions(self, peer: PeerName) -> bool:
        """Say whether a peer owns anything."""
        return any(entry.peer == peer for entry in self._entries)

    def heir(self, is_valid: Callable[[PeerName], bool]) -> PeerName | None:
        """Return the first owner, in address order, that is not us and fulfils a condition."""
        return next((e.peer for e in self._entries if e.peer != self.peer and is_valid(e.peer)), None)

    def peers_to_ask(self, wanted: Range, entropy: Entropy) -> list[PeerName]:
        """Return who may have free addresses in a range, in a random order that favours those with many.

        As Weave does, an entry counts with all its free addresses even if only a part of it is wanted, and the part of
        the last entry that wraps around is overlooked.
        """
        weights = self._free_elsewhere(wanted)
        drawn = [(weights[peer] * entropy.fraction(), peer) for peer in sorted(weights)]
        return [peer for _, peer in sorted(drawn, key=lambda pair: pair[0], reverse=True)]

    def count_free_elsewhere(self, wanted: Range, without: Sequence[Address]) -> int:
        """Estimate how many addresses of a range others have free, not counting some single ones.

        Those are taken to be free where they are others', which is not known: an entry counts and does not name.
        """
        strangers = [a for a in without if a in self.universe and self._entries and self.owner(a) != self.peer]
        return sum(self._free_elsewhere(wanted).values()) - len(strangers)

    # --- changing what is ours ----------------------------------------------------------------------------------------

    def create(self, peers: Sequence[PeerName]) -> None:
        """Share the whole universe out among the first peers."""
        assert not self._entries, "there is a ring already"
        assert peers, "a ring needs at least one peer"
        self.seeds = tuple(peers)
        self._change(_share_out(self.universe, list(peers)))

    def grant(self, granted: Range, to: PeerName) -> None:
        """Give a range that is wholly ours to another peer."""
        entries, start, end = self._entries, granted.start, granted.end
        assert granted.size, "an empty range cannot be given"
        assert start >= self.universe.start, f"{granted} is not in {self.universe}"
        assert end <= self.universe.end, f"{granted} is not in {self.universe}"
        inside = range(bisect_right(self._tokens, start), bisect_left(self._tokens, end))
        before = self._index_of(start)
        assert all(entries[i].peer == self.peer for i in (before, *inside)), f"{granted} is not all ours to give"
        free = min(self._distance(start, self._token_after(before)), end - start)
        changed = {entry.token: entry for entry in entries}
        split = entries[before]
        if split.token == start:
            changed[start] = Entry(start, to, split.version + 1, free)
        else:
            kept = self._distance(split.token, start)
            changed[split.token] = replace(split, version=split.version + 1, free=kept)
            changed[start] = Entry(start, to, 0, free)
        for entry in (entries[i] for i in inside):
            free = min(entry.free, end - entry.token)
            changed[entry.token] = Entry(entry.token, to, entry.version + 1, free)
        rest = self.universe.start if end == self.universe.end else end
        if rest not in changed:
            tokens = sorted(changed)  # with the new token at `start`, which may be the next one around the ring
            following = tokens[bisect_right(tokens, rest) % len(tokens)]
            changed[rest] = Entry(rest, self.peer, 0, self._distance(rest, following))
        self._change([changed[token] for token in sorted(changed)])

    def transfer(self, source: PeerName, to: PeerName) -> list[Range]:
        """Make all of one peer's ranges another's, above any version the one may still send. Return the ranges."""
        moved = self.ranges_of(source)
        if moved:
            self._change(
                [
                    replace(e, peer=to, version=e.version + TRANSFER_VERSION_JUMP) if e.peer == source else e
                    for e in self._entries
                ],
            )
        return moved

    def report_free(self, free: Mapping[Address, int]) -> bool:
        """Note how many addresses of our ranges are free, by each range's start. Return whether that is news."""
        totals: dict[int, int] = {}
        for start, count in free.items():
            index = self._index_of(start)
            totals[index] = totals.get(index, 0) + count
        entries = list(self._entries)
        for index, count in totals.items():
            entry, size = entries[index], _size(self.universe, entries, index)
            assert entry.peer == self.peer, f"{format_address(entry.token)} is not ours to report on"
            assert 0 <= count <= size, f"{count} addresses free of {size} at {format_address(entry.token)}"
            if entry.free != count:
                entries[index] = replace(entry, version=entry.version + 1, free=count)
        if entries == self._entries:
            return False
        owned = self._owned
        self._change(entries)
        self._owned = owned  # counting moves no border
        return True

    # --- merging ------------------------------------------------------------------------------------------------------

    def merge(self, received: RingState, has_allocations: Callable[[Sequence[Range]], bool]) -> bool:
        """Take in what another peer's ring has that ours lacks. Return whether anything of theirs was taken.

        `has_allocations` says whether any address of some ranges of ours is in use. Raises RingError, and then our ring
        is as it was. (Weave would keep a version that was raised before the error was found.)
        """
        check_received(received)
        if self.seeds and received.seeds and tuple(received.seeds) != self.seeds:
            raise DifferentSeedsError
        if received.universe != self.universe:
            raise DifferentRangeError
        entries, taken = self._walk(received.entries, has_allocations)
        if taken:
            entries = self._clip(entries)
            try:
                check_invariants(self.universe, entries)
            except RingError as error:
                raise RingError(f"Merge of incoming data causes: {error}") from error
            self._check_losses(entries, has_allocations)
        if not self.seeds and received.seeds:
            self.seeds = tuple(received.seeds)
            self._revision += 1
        if entries != self._entries:
            self._change(entries)
        return taken

    def _walk(
        self,
        theirs: Sequence[Entry],
        has_allocations: Callable[[Sequence[Range]], bool],
    ) -> tuple[list[Entry], bool]:
        # `inside` says whether the walk is in a range that we own by our own entries: Weave's "previous owner is us".
        ours, us = self._entries, self.peer
        merged: list[Entry] = []
        i = j = 0
        inside = taken = False
        while i < len(ours) or j < len(theirs):
            if j == len(theirs) or (i < len(ours) and ours[i].token < theirs[j].token):
                merged.append(ours[i])
                inside = ours[i].peer == us
                i += 1
                continue
            their = theirs[j]
            j += 1
            if i < len(ours) and ours[i].token == their.token:
                kept = self._keep(i, their, has_allocations)
                merged.append(kept or their)
                i += 1
            else:
                # Behind our last token Weave does not ask about allocations: a token there that is news to its owner
                # means that two peers go by one name, or that we forgot.
                past_the_end = i == len(ours)
                if (
                    inside
                    and their.peer != us
                    and (past_the_end or has_allocations([Range(their.token, ours[i].token)]))
                ):
                    raise _owned_by_both(their.peer, their.token)
                kept = None
                merged.append(their)
            inside = kept is not None and kept.peer == us
            taken = taken or kept is None
        return merged, taken

    def _keep(
        self,
        index: int,
        their: Entry,
        has_allocations: Callable[[Sequence[Range]], bool],
    ) -> Entry | None:
        """Choose between two entries of one token: return ours, perhaps with a new version, or None to take theirs."""
        our = self._entries[index]
        if our.version > their.version:
            return our
        if our.version == their.version and our.peer == their.peer:
            return our
        if our.version < their.version and our.peer == their.peer == self.peer:
            # Somebody remembers a later version of us than we do: our disk is older than our last message.
            return replace(our, version=their.version + 1)
        if our.peer == self.peer and has_allocations(_parts(self.universe, self._entries, index)):
            raise _conflict(our, their)
        if our.version == their.version and our.free >= their.free:
            return our
        return None

    def _clip(self, entries: list[Entry]) -> list[Entry]:
        """Lower our own counts of free addresses to the size of ranges that became shorter."""
        return [
            replace(entry, free=size)
            if entry.peer == self.peer and entry.free > (size := _size(self.universe, entries, index))
            else entry
            for index, entry in enumerate(entries)
        ]

    def _check_losses(self, merged: Sequence[Entry], has_allocations: Callable[[Sequence[Range]], bool]) -> None:
        """Refuse a merge that would take addresses in use from us in a way that the walk did not see.

        The walk stops looking once it took an entry of theirs, also one that names us: `[0 us]` merged with `[0 us]
        [32 us][64 other]` would pass. Weave then ends on an assertion.
        """
        kept = [
            part
            for index, entry in enumerate(merged)
            if entry.peer == self.peer
            for part in _parts(self.universe, merged, index)
        ]
        for lost in _subtract(self.owned_ranges(), sorted(kept)):
            if has_allocations([lost]):
                new = merged[(bisect_right([entry.token for entry in merged], lost.start) or len(merged)) - 1]
                raise _owned_by_both(new.peer, lost.start)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _change(self, entries: list[Entry]) -> None:
        self._entries = entries
        self._tokens = [entry.token for entry in entries]
        self._owned = None
        self._revision += 1

    def _free_elsewhere(self, wanted: Range) -> dict[PeerName, int]:
        weights: dict[PeerName, int] = {}
        first = max(0, bisect_right(self._tokens, wanted.start) - 1)
        for entry in self._entries[first : bisect_left(self._tokens, wanted.end)]:
            if entry.free and entry.peer != self.peer:
                weights[entry.peer] = weights.get(entry.peer, 0) + entry.free
        return weights

    def _index_of(self, address: Address) -> int:
        """Return the entry that an address belongs to: before the first token that is the last one."""
        return (bisect_right(self._tokens, address) or len(self._tokens)) - 1

    def _token_after(self, index: int) -> Address:
        return self._tokens[(index + 1) % len(self._tokens)]

    def _distance(self, start: Address, end: Address) -> int:
        """Count the addresses from one token up to another, around the ring; all of them from a token to itself."""
        return end - start if end > start else end - start + self.universe.size


def check_invariants(universe: Range, entries: Sequence[Entry]) -> None:
    """Check what holds for every ring. Raises RingError with Weave's words, for the first rule in its order."""
    tokens = [entry.token for entry in entries]
    if any(a > b for a, b in pairwise(tokens)):
        raise RingError("Ring not sorted")
    if any(a == b for a, b in pairwise(tokens)):
        raise RingError("Token appears twice in ring")
    if tokens and not (tokens[0] in universe and tokens[-1] in universe):
        raise RingError("Token is out of range")
    for index, entry in enumerate(entries):
        size = _size(universe, entries, index)
        if entry.free > size:
            token, following = format_address(entry.token), format_address(tokens[(index + 1) % len(tokens)])
            raise RingError(f"Entry {token}-{following} reporting too much free space: {entry.free} > {size}")


def check_received(received: RingState) -> None:
    """Check a ring that came from outside, before anything of it is believed. Raises RingError."""
    if len(received.entries) > ENTRIES_MAX:
        raise RingError(f"Ring of {len(received.entries)} entries, more than the {ENTRIES_MAX} that are accepted")
    check_invariants(received.universe, received.entries)
    for entry in received.entries:
        if entry.version > RECEIVED_VERSION_MAX:
            token = format_address(entry.token)
            raise RingError(f"Entry {token} has version {entry.version}, more than {RECEIVED_VERSION_MAX}")


def _size(universe: Range, entries: Sequence[Entry], index: int) -> int:
    if index + 1 < len(entries):
        return entries[index + 1].token - entries[index].token
    return universe.end - entries[index].token + entries[0].token - universe.start


def _parts(universe: Range, entries: Sequence[Entry], index: int) -> list[Range]:
    """Return the range of an entry, in two parts if it wraps around; the part at the universe's start comes first."""
    token = entries[index].token
    if index + 1 < len(entries):
        return [Range(token, entries[index + 1].token)]
    wrapped = Range(universe.start, entries[0].token)
    return [wrapped, Range(token, universe.end)] if wrapped.size else [Range(token, universe.end)]


def _share_out(whole: Range, peers: list[PeerName]) -> list[Entry]:
    """Halve a range among peers until each has a part: three peers get a half, a quarter, a quarter."""
    if not whole.size:
        return []
    if whole.size == 1 or len(peers) == 1:
        return [Entry(whole.start, peers[0], 0, whole.size)]
    middle = Address(whole.start + whole.size // 2)
    half = len(peers) // 2
    return _share_out(Range(whole.start, middle), peers[:half]) + _share_out(Range(middle, whole.end), peers[half:])


def _subtract(minuend: Sequence[Range], subtrahend: Sequence[Range]) -> list[Range]:
    """Return what of some sorted disjoint ranges is not in others."""
    rest: list[Range] = []
    j = 0
    for whole in minuend:
        start = whole.start
        while j < len(subtrahend) and subtrahend[j].end <= start:
            j += 1
        k = j
        while k < len(subtrahend) and subtrahend[k].start < whole.end:
            if start < subtrahend[k].start:
                rest.append(Range(start, subtrahend[k].start))
            start = max(start, subtrahend[k].end)
            k += 1
        if start < whole.end:
            rest.append(Range(start, whole.end))
    return rest


def _owned_by_both(peer: PeerName, token: Address) -> RingError:
    return RingError(
        f"Peer {format_peer_name(peer)} says it owns the IP range from {format_address(token)}, which I think I own",
    )


def _conflict(our: Entry, their: Entry) -> RingError:
    token, owner = format_address(our.token), format_peer_name(their.peer)
    if our.version == their.version:
        ours = format_peer_name(our.peer)
        return RingError(
            f"Inconsistent entries for {token}: owned by {ours} but incoming message says {owner}",
        )
    return RingError(
        f"Received update for IP range I own at {token} v{our.version}: "
        f"incoming message says owner {owner} v{their.version}",
    )
