"""Whom to dial, and when to try again.

There are two reasons to dial an address. Somebody told us to (a *direct* target), or a peer we know says that another
peer, one we have no connection to, is there (*discovery*). Both go through the same set of targets, by address:

    waiting    -> attempting   its time has come
    attempting -> connected    the introduction succeeded and the connection was added
    attempting -> waiting      the dial or the introduction failed
    connected  -> waiting      the connection ended
    waiting   <-> suspended    a direct target is not needed for now: we have a connection to it, one way or the other

A target that there is no reason for any more is forgotten, except that one being attempted or connected is left alone
until that is over. Failures wait a random time around an interval that grows by half each time; a connection that
lasted a minute starts afresh. Where a user has named an address and nobody answers, the first few tries come quickly,
which Weave's do not: hosts that start together dial each other a moment before they listen. Who turns out to be
ourself, or to have our name, is not tried again until a user says so.

The whole set is looked at again after each event: `attempts` is idempotent and says what to dial now. The number of
attempts at a time is limited, which Weave's is not; what is due beyond that waits for one to end. Source:
docs/protocol.md, "Connection maker", and Weave's mesh connection_maker.go.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import Enum
from functools import lru_cache

import msgspec
from msgspec.structs import replace

from weavenet.address import Endpoint
from weavenet.effects import Entropy, Now
from weavenet.errors import AddressError
from weavenet.identity import PeerName
from weavenet.mesh.records import Peer

INTERVAL_FIRST_S = 2.0
INTERVAL_GROWTH = 1.5
# Eight tries in the first five seconds, for a direct target that does not answer; from there on as everybody else.
INTERVAL_QUICK_S = 0.1
INTERVAL_MAX_S = 360.0
# A connection that ended this long after the time it was due at was a good one.
RESET_AFTER_S = 60.0
ATTEMPTS_MAX = 100
# Addresses learnt by discovery. A mesh that needs more has more peers than connections, and then any of them will do.
DISCOVERED_MAX = 20_000


class TargetState(Enum):
    """Where a target is between two attempts."""

    WAITING = "waiting"
    ATTEMPTING = "attempting"
    CONNECTED = "connected"
    SUSPENDED = "suspended"


class Target(msgspec.Struct, frozen=True):
    """A direct target: the text as the user gave it, and where it is. Port 0: they gave none."""

    text: str
    endpoint: Endpoint


class TargetStatus(msgspec.Struct, frozen=True):
    """What a user sees of a target."""

    endpoint: Endpoint
    state: TargetState
    error: str  # why the last attempt or connection ended; empty before that
    retry_wall_s: float | None  # when the next attempt is due; None: never, until a user asks for it


class Attempt(msgspec.Struct, frozen=True):
    """An address to dial now, and whether somebody who introduces himself there may be unknown so far."""

    endpoint: Endpoint
    direct: bool


class Connected(msgspec.Struct, frozen=True):
    """A connection that has been added, as far as it matters here."""

    name: PeerName
    endpoint: Endpoint
    outbound: bool


class _Target(msgspec.Struct, frozen=True):
    state: TargetState
    due: Now | None
    interval_s: float
    error: str = ""


def discovered_targets(
    peers: Mapping[PeerName, Peer], ourself: PeerName, connected: Collection[PeerName], *, port: int
) -> list[Endpoint]:
    """Return where the peers are that somebody is connected to and we are not, in order.

    A connection's address is that of a listening socket only for the end that dialled it. The other end saw an
    ephemeral port, so there we hope that the port is the same as ours.
    """
    skip = {ourself, *connected}
    found: set[Endpoint] = set()
    for peer in peers.values():
        if peer.name == ourself:
            continue
        for remote, link in peer.connections.items():
            if remote in skip:
                continue
            endpoint = _parse_endpoint(link.address)
            if endpoint is None:
                continue
            if not link.outbound:
                endpoint = replace(endpoint, port=port)
            if endpoint.port:
                found.add(endpoint)
    return sorted(found)[:DISCOVERED_MAX]


@lru_cache(maxsize=8192)
def _parse_endpoint(text: str) -> Endpoint | None:
    try:
        return Endpoint.parse(text)
    except AddressError:
        # A peer that listens on IPv6 may say so; we cannot go there.
        return None


class Connector:
    """The targets of one peer."""

    def __init__(self, ourself: PeerName, *, port: int, discovery: bool, entropy: Entropy) -> None:
        """Know no targets. `port` is where peers listen that do not say where."""
        self._ourself = ourself
        self._port = port
        self._discovery = discovery
        self._entropy = entropy
        self._direct: dict[str, Endpoint] = {}
        self._targets: dict[Endpoint, _Target] = {}
        # What next_deadline answers, until a target changes: it is asked after every input.
        self._deadline_s: float | None = None
        self._deadline_is_known = True

    # --- the user -----------------------------------------------------------------------------------------------------

    def connect(self, targets: Sequence[Target], *, replace_all: bool, now: Now) -> None:
        """Add direct targets, due now; with `replace_all` they are the only ones from here on."""
        if replace_all:
            self._direct = {}
        for target in targets:
            self._direct[target.text] = target.endpoint
            endpoint = self._complete(target.endpoint)
            known = self._targets.get(endpoint)
            if known is not None:
                self._set(endpoint, replace(known, due=now, interval_s=INTERVAL_QUICK_S))

    def forget(self, texts: Iterable[str]) -> None:
        """Drop direct targets; each text must be spelled as it was when it was added."""
        for text in texts:
            self._direct.pop(text, None)

    # --- what became of attempts --------------------------------------------------------------------------------------

    def failed(self, endpoint: Endpoint, error: str, now: Now) -> None:
        """Note that a dial did not lead to a connection."""
        target = self._targets.get(endpoint)
        if target is not None:
            self._set(endpoint, self._later(replace(target, state=TargetState.WAITING, error=error), now))

    def connected(self, endpoint: Endpoint) -> None:
        """Note that a connection that was dialled has been added."""
        target = self._targets.get(endpoint)
        if target is not None:
            self._set(endpoint, replace(target, state=TargetState.CONNECTED))

    def ended(self, endpoint: Endpoint, error: str, now: Now, *, hopeless: bool, at_once: bool = False) -> None:
        """Note that a connection that was dialled is over.

        Hopeless: whoever is there is not to be tried again. At once: there is something else to try there.
        """
        target = self._targets.get(endpoint)
        if target is None:
            return
        target = replace(target, state=TargetState.WAITING, error=error)
        if hopeless:
            target = replace(target, due=None, interval_s=INTERVAL_MAX_S)
        elif at_once:
            target = replace(target, due=now)
        elif target.due is not None and now.monotonic_s > target.due.monotonic_s + RESET_AFTER_S:
            target = replace(target, due=now, interval_s=self._first_interval_s(endpoint))
        else:
            # Somebody did answer, and there will be a reason why that led to nothing.
            target = self._later(replace(target, interval_s=max(target.interval_s, INTERVAL_FIRST_S)), now)
        self._set(endpoint, target)

    def _later(self, target: _Target, now: Now) -> _Target:
        delay_s = target.interval_s / 2 + self._entropy.fraction() * target.interval_s
        due = Now(now.monotonic_s + delay_s, now.wall_s + delay_s)
        limit_s = INTERVAL_FIRST_S if target.interval_s < INTERVAL_FIRST_S else INTERVAL_MAX_S
        return replace(target, due=due, interval_s=min(target.interval_s * INTERVAL_GROWTH, limit_s))

    def _first_interval_s(self, endpoint: Endpoint) -> float:
        is_direct = any(endpoint == self._complete(direct) for direct in self._direct.values())
        return INTERVAL_QUICK_S if is_direct else INTERVAL_FIRST_S

    # --- what to do ---------------------------------------------------------------------------------------------------

    def attempts(self, connections: Sequence[Connected], peers: Mapping[PeerName, Peer], now: Now) -> list[Attempt]:
        """Look at all targets again and return those to dial now, which count as being attempted from here on."""
        direct = {self._complete(endpoint) for endpoint in self._direct.values()}
        valid = self._valid(connections, peers)
        for endpoint in sorted(valid - self._targets.keys()):
            interval_s = INTERVAL_QUICK_S if endpoint in direct else INTERVAL_FIRST_S
            self._set(endpoint, _Target(TargetState.WAITING, now, interval_s))
        free = ATTEMPTS_MAX - self._attempting_count()
        attempts: list[Attempt] = []
        for endpoint, target in sorted(self._targets.items(), key=lambda item: item[0]):
            if target.state not in {TargetState.WAITING, TargetState.SUSPENDED}:
                continue
            if endpoint not in valid:
                self._put_away(endpoint, target, keep=endpoint in direct or self._rests(endpoint, connections, now))
                continue
            state = TargetState.WAITING
            if target.due is not None and target.due.monotonic_s <= now.monotonic_s and len(attempts) < free:
                state = TargetState.ATTEMPTING
                attempts.append(Attempt(endpoint, endpoint in direct))
            if state is not target.state:
                self._set(endpoint, replace(target, state=state))
        return attempts

    def _rests(self, endpoint: Endpoint, connections: Sequence[Connected], now: Now) -> bool:
        """Say whether a target is not needed only as its peer has connected to us, and would not be due yet.

        Forgotten, it would be new, and due at once, when that connection ends for the same reason as ours before: two
        peers that refuse each other would then take turns without a pause.
        """
        due = self._targets[endpoint].due
        is_early = due is not None and due.monotonic_s > now.monotonic_s
        return is_early and any(each.endpoint.address == endpoint.address for each in connections)

    def _put_away(self, endpoint: Endpoint, target: _Target, *, keep: bool) -> None:
        if keep:
            self._set(endpoint, replace(target, state=TargetState.SUSPENDED))
        else:
            del self._targets[endpoint]
            self._deadline_is_known = False

    def _set(self, endpoint: Endpoint, target: _Target) -> None:
        self._targets[endpoint] = target
        self._deadline_is_known = False

    def _valid(self, connections: Sequence[Connected], peers: Mapping[PeerName, Peer]) -> set[Endpoint]:
        inbound = {each.endpoint.address for each in connections if not each.outbound}
        valid = {
            self._complete(endpoint)
            for endpoint in self._direct.values()
            # Who was named without a port may have dialled us first, from a port that tells nothing.
            if endpoint.port or endpoint.address not in inbound
        }
        if self._discovery:
            names = {each.name for each in connections}
            valid.update(discovered_targets(peers, self._ourself, names, port=self._port))
        return valid - {each.endpoint for each in connections}

    def _complete(self, endpoint: Endpoint) -> Endpoint:
        return endpoint if endpoint.port else replace(endpoint, port=self._port)

    def next_deadline(self) -> float | None:
        """When the next target is due, in monotonic seconds; None if it must wait for an attempt or a user first."""
        if not self._deadline_is_known:
            due = [
                target.due.monotonic_s
                for target in self._targets.values()
                if target.state is TargetState.WAITING and target.due is not None
            ]
            self._deadline_s = min(due) if due and self._attempting_count() < ATTEMPTS_MAX else None
            self._deadline_is_known = True
        return self._deadline_s

    def _attempting_count(self) -> int:
        return sum(target.state is TargetState.ATTEMPTING for target in self._targets.values())

    # --- views --------------------------------------------------------------------------------------------------------

    def direct_texts(self) -> list[str]:
        """Return the direct targets as the user gave them, in order."""
        return sorted(self._direct)

    def active_texts(self) -> list[str]:
        """Return the direct targets without those that were given up for good."""
        targets = {text: self._targets.get(self._complete(endpoint)) for text, endpoint in self._direct.items()}
        return sorted(text for text, target in targets.items() if target is None or target.due is not None)

    def status(self) -> list[TargetStatus]:
        """Return what there is to say about each target, by address."""
        return [
            TargetStatus(endpoint, target.state, target.error, None if target.due is None else target.due.wall_s)
            for endpoint, target in sorted(self._targets.items(), key=lambda item: item[0])
        ]
