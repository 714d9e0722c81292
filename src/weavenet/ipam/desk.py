"""The desk: serves requests for addresses, at once if it can, and keeps those that must wait.

An attempt at a request either ends with its reply or leaves it waiting, with a message on its way to somebody who may
help. What comes back is not an answer but a change of the ring, upon which everything is tried again; should it not
come, the next try asks the next peer. Source: docs/protocol.md, "Allocate", "Claim", "Release".
"""

from collections import Counter
from collections.abc import Callable
from typing import assert_never

from weavenet.address import Address, Cidr, Range, format_address
from weavenet.effects import Cancelled, Done, Granted, Level, Outcome, Refused, RequestNumber
from weavenet.identity import PeerName, format_peer_name
from weavenet.ipam.books import Books
from weavenet.ipam.holdings import ANONYMOUS
from weavenet.ipam.requests import Allocate, Claim, Prime, Queue
from weavenet.ipam.wire import SpaceRequest

# How often a claim is tried whose owner cannot be reached: at once, and then with each retry.
UNREACHABLE_TRIES_MAX = 5
# How often others are asked for the same range from one retry to the next. Once all hosts of a subnet are in use, the
# network and the broadcast address are still free, and two peers that wait would hand these to and fro as fast as the
# network carries it: each gift changes the ring, upon which the other asks for it. Weave's do.
ASKS_MAX = 16


class Desk:
    """Requests, and how they are served."""

    def __init__(self, books: Books, establish_ring: Callable[[], None]) -> None:
        """Begin with nobody waiting. `establish_ring` sees to it that there is a ring, at once or in time."""
        self.allocates: Queue[Allocate] = Queue()
        self.claims: Queue[Claim] = Queue()
        self.primes: Queue[Prime] = Queue()
        self._books = books
        self._establish_ring = establish_ring
        self._is_closed = False
        # What others were asked for in the action under way: ten pods that wait need not ask ten times.
        self._asked: set[Range] = set()
        self._asks: Counter[Range] = Counter()  # since the last retry by the clock

    @property
    def is_closed(self) -> bool:
        """Whether all requests are turned away."""
        return self._is_closed

    @property
    def is_empty(self) -> bool:
        """Whether nobody waits."""
        return not (self.allocates or self.claims or self.primes)

    def submit(self, asked: Allocate | Claim | Prime) -> None:
        """Serve a request, or let it wait."""
        match asked:
            case Allocate():
                if not self._try_allocate(asked) and self._has_room(self.allocates, asked.request):
                    self.allocates.add(asked)
            case Claim():
                if not self._try_claim(asked) and self._has_room(self.claims, asked.request):
                    self._let_claim_wait(asked)
            case Prime():
                if not self._try_prime(asked) and self._has_room(self.primes, asked.request):
                    self.primes.add(asked)
            case _:
                assert_never(asked)

    def retry_by_clock(self) -> None:
        """Try everything again that waits, because time has passed."""
        self._asks.clear()
        self.retry()

    def retry(self) -> None:
        """Try everything again that waits, because the ring has changed."""
        self.primes.retry(self._try_prime)
        self.claims.retry(self._try_claim)
        self.allocates.retry(self._try_allocate)

    def end_action(self) -> None:
        """Forget what this action asked for: the next one may ask again."""
        self._asked.clear()
        if self.is_empty:
            self._asks.clear()

    def cancel(self, request: RequestNumber) -> None:
        """Let a request wait no longer whose caller is gone."""
        found = (
            self.allocates.remove(lambda asked: asked.request == request)
            or self.claims.remove(lambda asked: asked.request == request)
            or self.primes.remove(lambda asked: asked.request == request)
        )
        if found:
            self._answer(request, Cancelled())

    def cancel_for(self, ident: str) -> bool:
        """Let nothing wait for an identifier any more. Return whether anything did."""
        allocates = self.allocates.remove(lambda asked: asked.ident == ident)
        claims = self.claims.remove(lambda asked: asked.ident == ident)
        for request in (*(asked.request for asked in allocates), *(asked.request for asked in claims)):
            self._answer(request, Cancelled())
        return bool(allocates or claims)

    def close(self) -> None:
        """Turn away everybody who waits or comes."""
        self._is_closed = True
        self.retry()

    def denied(self, owner: PeerName, denied: Range) -> None:
        """Give up claims of addresses that their owner does not part with."""
        for claim in self.claims.remove(lambda claim: claim.address.address in denied):
            self._refuse_foreign(claim, owner, "")

    def _has_room(self, queue: Queue[Allocate] | Queue[Claim] | Queue[Prime], request: RequestNumber | None) -> bool:
        if queue.is_full:
            self._answer(
                request, Refused(f"{len(queue)} requests are waiting for IP addresses already; try again later")
            )
        return not queue.is_full

    def _let_claim_wait(self, asked: Claim) -> None:
        # Claims that have been answered are of no interest to anybody who could take them back, so one is enough.
        if asked.request is None:
            self.claims.remove(lambda c: (c.request, c.ident, c.address) == (None, asked.ident, asked.address))
        self.claims.add(asked)

    # --- attempts: True is done -------------------------------------------------------------------------------------

    def _try_prime(self, asked: Prime) -> bool:
        if self._is_closed:
            self._answer(asked.request, Cancelled())
            return True
        self._establish_ring()
        if self._books.ring.is_empty:
            return False
        self._answer(asked.request, Done())
        return True

    def _try_allocate(self, asked: Allocate) -> bool:
        books, subnet = self._books, asked.subnet
        if self._is_closed:
            self._answer(asked.request, Cancelled())
            return True
        held = books.holdings.of_within(asked.ident, subnet.range)
        if held:
            self._grant(asked, held[0].address)
            return True
        if not subnet.range.overlaps(books.ring.universe):
            universe = books.ring.universe.as_cidr_text()
            self._answer(asked.request, Refused(f"range {subnet} out of bounds: {universe}"))
            return True
        self._establish_ring()
        address = books.space.allocate(subnet.host_range)
        if address is None:
            self._ask_for_space(subnet.range)
            return False
        books.record(asked.ident, Cidr(address, subnet.prefix_length), is_container=asked.is_container)
        self._grant(asked, address)
        return True

    def _try_claim(self, asked: Claim) -> bool:
        if self._is_closed:
            self._answer(asked.request, Cancelled())
            return True
        asked.tries += 1
        if not self._books.manages(asked.address):
            return self._write_down(asked)
        self._establish_ring()
        owner = self._books.ring.owner(asked.address.address)
        if owner == self._books.name:
            return self._claim_ours(asked)
        if owner is not None and self._ask_owner(asked, owner):
            return False
        if asked.no_error_on_unknown:
            self._answer(asked.request, Done())
            asked.request = None
        elif owner is not None and asked.tries > UNREACHABLE_TRIES_MAX:
            self._refuse_foreign(asked, owner, f" - unknown relay destination: {format_peer_name(owner)}")
            return True
        return False

    def _write_down(self, asked: Claim) -> bool:
        holder = self._books.holdings.holder(asked.address.address)
        if holder is None:
            self._books.record(asked.ident, asked.address, is_container=asked.is_container)
        elif asked.ident not in (holder, ANONYMOUS):
            return self._refuse(asked, f"address {asked.address} already in use by {holder}")
        self._answer(asked.request, Done())
        return True

    def _claim_ours(self, asked: Claim) -> bool:
        books, address = self._books, asked.address.address
        holder = books.holdings.holder(address)
        if holder is None:
            books.space.claim(address)
            books.record(asked.ident, asked.address, is_container=asked.is_container)
        elif asked.ident not in (holder, ANONYMOUS):
            if holder == format_address(address):  # given to somebody anonymous
                return self._refuse(asked, f"address {asked.address} already in use")
            return self._refuse(asked, f"address {asked.address} is already owned by {holder}")
        self._answer(asked.request, Done())
        return True

    def _ask_for_space(self, wanted: Range) -> None:
        if not self._may_ask(wanted):
            return
        for peer in self._books.ring.peers_to_ask(wanted, self._books.entropy):
            if self._books.directory.can_reach(peer):
                self._ask(peer, wanted)
                return

    def _ask_owner(self, asked: Claim, owner: PeerName) -> bool:
        if not self._books.directory.can_reach(owner):
            return False
        wanted = Range(asked.address.address, Address(asked.address.address + 1))
        if self._may_ask(wanted):
            self._ask(owner, wanted)
        return True

    def _may_ask(self, wanted: Range) -> bool:
        return wanted not in self._asked and self._asks[wanted] < ASKS_MAX

    def _ask(self, peer: PeerName, wanted: Range) -> None:
        self._asked.add(wanted)
        self._asks[wanted] += 1
        self._books.outbox.unicast(peer, SpaceRequest(wanted))

    # --- answers ----------------------------------------------------------------------------------------------------

    def _grant(self, asked: Allocate, address: Address) -> None:
        self._answer(asked.request, Granted((Cidr(address, asked.subnet.prefix_length),)))

    def _refuse_foreign(self, asked: Claim, owner: PeerName, reason: str) -> None:
        nickname = self._books.nickname(owner)
        text = f"address {asked.address} is owned by other peer {format_peer_name(owner)} ({nickname}){reason}"
        self._refuse(asked, text)

    def _refuse(self, asked: Claim, reason: str) -> bool:
        if asked.request is None:
            # It was told that it has the address, and there is nobody left to tell otherwise.
            self._books.outbox.note(Level.WARNING, f"Unable to claim for {asked.ident}: {reason}")
        self._answer(asked.request, Refused(reason))
        return True

    def _answer(self, request: RequestNumber | None, outcome: Outcome) -> None:
        if request is not None:
            self._books.outbox.reply(request, outcome)
