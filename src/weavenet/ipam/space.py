"""Space: which addresses of our ranges are free and which are in use.

Each of the two sets is a sorted list of boundaries, `[start, end, start, end, ...]`: whoever stands on an odd number of
boundaries is inside. Since a set's ranges never touch (they would be one range), every change is a matter of *toggling*
two boundaries, and adjacent ranges join by themselves: giving 7 to `[0, 7)` moves its end from 7 to 8.

    free   0 ──────── 7          toggle 7, 8        free   0 ──────── 8
    used             7 ─ 8       in both            used

So a million addresses with a pod here and there are a short list, and taking one is two binary searches. Source:
docs/protocol.md, "Space"; Weave has the same lists (ipam/space).
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

from weavenet.address import Address, Range, format_address
from weavenet.errors import IpamError

_Boundaries = list[int]


class Space:
    """The addresses that are ours to give."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._free: _Boundaries = []
        self._used: _Boundaries = []

    # --- views --------------------------------------------------------------------------------------------------------

    def free_ranges(self) -> list[Range]:
        """Return the free addresses, in order, as few ranges as possible."""
        return _ranges(self._free)

    def used_ranges(self) -> list[Range]:
        """Return the addresses in use, in order, as few ranges as possible."""
        return _ranges(self._used)

    def owned_ranges(self) -> list[Range]:
        """Return all that is ours, in order, as few ranges as possible."""
        return _ranges(_sweep(self._free, self._used, lambda free, used: free or used))

    def is_used(self, address: Address) -> bool:
        """Say whether an address is in use here."""
        return _contains(self._used, address)

    def count_free(self, within: Range) -> int:
        """Count the free addresses in a range."""
        return _count(self._free, within)

    @property
    def free_count(self) -> int:
        """How many addresses are free."""
        return sum(self._free[1::2]) - sum(self._free[::2])

    @property
    def used_count(self) -> int:
        """How many addresses are in use."""
        return sum(self._used[1::2]) - sum(self._used[::2])

    def has_allocations(self, ranges: Sequence[Range]) -> bool:
        """Say whether some address of ranges that are ours is not free."""
        return any(self.count_free(part) != part.size for part in ranges)

    # --- single addresses ---------------------------------------------------------------------------------------------

    def allocate(self, within: Range) -> Address | None:
        """Take the lowest free address of a range, if there is one."""
        at = bisect_right(self._free, within.start)
        if at % 2:
            address = within.start
        elif at < len(self._free):
            address = Address(self._free[at])
        else:
            return None
        if address not in within:
            return None
        self._move(address)
        return address

    def claim(self, address: Address) -> None:
        """Take this address. Raises IpamError if it is in use, or not ours."""
        if not _contains(self._free, address):
            raise IpamError(f"Address {format_address(address)} is not free to claim")
        self._move(address)

    def release(self, address: Address) -> None:
        """Put an address back. Raises IpamError if it is not in use here."""
        if not _contains(self._used, address):
            # Weave has another text for an address that is free already, which it never comes to use.
            raise IpamError(f"Address {format_address(address)} is not ours")
        self._move(address)

    # --- ranges -------------------------------------------------------------------------------------------------------

    def extend(self, ranges: Sequence[Range]) -> None:
        """Make these ranges ours: what of them was not ours before becomes free. Nothing is lost."""
        wanted = _boundaries(ranges)
        owned = _sweep(self._free, self._used, lambda free, used: free or used)
        missing = _sweep(wanted, owned, lambda want, have: want and not have)
        self._free = _sweep(self._free, missing, lambda free, new: free or new)

    def restrict(self, ranges: Sequence[Range]) -> None:
        """Give up what is outside these ranges; nothing there may be in use."""
        kept = _boundaries(ranges)
        stranded = _sweep(self._used, kept, lambda used, keep: used and not keep)
        assert not stranded, f"addresses in use would be lost: {_ranges(stranded)}"
        self._free = _sweep(self._free, kept, lambda free, keep: free and keep)

    def clear(self) -> None:
        """Give up everything."""
        self._free = []
        self._used = []

    def donate(self, within: Range) -> Range | None:
        """Take out of our space what another peer may have of a range: an aligned block, about half of what is free."""
        block = self.biggest_free_block(within)
        if not block.size:
            return None
        if block.size > self.count_free(within) // 2:
            block = Range(Address(block.start + block.size // 2), block.end)
        _toggle(self._free, block.start)
        _toggle(self._free, block.end)
        return block

    def biggest_free_block(self, within: Range) -> Range:
        """Return the largest aligned free block of a range, the last of equals; an empty range if nothing is free."""
        best = Range(within.start, within.start)
        at = bisect_right(self._free, within.start) // 2 * 2
        while at < len(self._free) and self._free[at] < within.end:
            chunk = Range(Address(self._free[at]), Address(self._free[at + 1])).intersect(within)
            if chunk.size >= max(best.size, 1):
                block = chunk.biggest_cidr_block()
                if block.size >= best.size:
                    best = block
            at += 2
        return best

    def _move(self, address: Address) -> None:
        """Move one address from one set to the other."""
        for boundaries in (self._free, self._used):
            _toggle(boundaries, address)
            _toggle(boundaries, address + 1)


def _toggle(boundaries: _Boundaries, at: int) -> None:
    index = bisect_left(boundaries, at)
    if index < len(boundaries) and boundaries[index] == at:
        del boundaries[index]
    else:
        boundaries.insert(index, at)


def _contains(boundaries: _Boundaries, address: int) -> bool:
    return bisect_right(boundaries, address) % 2 == 1


def _count(boundaries: _Boundaries, within: Range) -> int:
    if not within.size:
        return 0
    first = bisect_right(boundaries, within.start)
    last = bisect_left(boundaries, within.end)
    inner = boundaries[first:last]
    if first % 2:
        inner.insert(0, within.start)
    if last % 2:
        inner.append(within.end)
    return sum(inner[1::2]) - sum(inner[::2])


def _ranges(boundaries: _Boundaries) -> list[Range]:
    return [Range(Address(start), Address(end)) for start, end in zip(boundaries[::2], boundaries[1::2], strict=True)]


def _boundaries(ranges: Sequence[Range]) -> _Boundaries:
    """Turn disjoint ranges into boundaries; ranges that touch become one."""
    boundaries: _Boundaries = []
    for part in sorted(ranges):
        if boundaries and boundaries[-1] == part.start:
            boundaries[-1] = part.end
        elif part.size:
            assert not boundaries or boundaries[-1] < part.start, f"{part} is in the ranges twice"
            boundaries += (part.start, part.end)
    return boundaries


def _sweep(a: _Boundaries, b: _Boundaries, wanted: Callable[[bool, bool], bool]) -> _Boundaries:
    """Combine two sets: walk over both, and be inside where `wanted` says so."""
    combined: _Boundaries = []
    i = j = 0
    inside = False
    while i < len(a) or j < len(b):
        at = min(a[i] if i < len(a) else b[j], b[j] if j < len(b) else a[i])
        i += i < len(a) and a[i] == at
        j += j < len(b) and b[j] == at
        if wanted(i % 2 == 1, j % 2 == 1) != inside:
            inside = not inside
            combined.append(at)
    return combined
