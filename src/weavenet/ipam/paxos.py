"""Paxos: how the first peers agree on who they are, once, before there is a ring.

Sharing out the address range among "all peers" needs one answer to the question who they all are, although messages get
lost and peers do not know each other yet. That is single-decree Paxos, and the value decided is a list of peer names.

There are no prepare and accept messages. Every peer keeps what it knows of everybody's state, sends all of it with each
gossip, and merges what it hears; a promise or an acceptance counts wherever it is seen. So all that is left of the
protocol is to look at the table and see what one may do next:

    propose   a number above all known, promised by ourselves: asks the others for their promise
    update    take over what is newer in somebody else's table
    think     promise the highest proposal; if ours has a quorum of promises, accept it with the value of the highest
              acceptance among them, or if there is none with the names of all we know; accept what was proposed so
    consensus the value that a quorum accepted from one origin

A promise must not be forgotten. Weave changes identity at each start instead (the name goes with the process' UID),
which lets a restarted peer count twice; our allocator stores the table and goes on under the old pair: `restore`.
Source: docs/protocol.md, "Paxos"; Weave's ipam/paxos has the reasons for every step.
"""

from collections.abc import Mapping, Sequence

import msgspec
from msgspec.structs import replace

from weavenet.errors import GossipError
from weavenet.identity import UNKNOWN_PEER, UNKNOWN_UID, PeerName, PeerUID

# Rounds are 64 bits on the wire, and every election starts one above all known.
ROUND_MAX = 1 << 62
NODES_MAX = 1 << 16


class NodeID(msgspec.Struct, frozen=True, order=True):
    """A participant: a peer, and which memory of its promises it has."""

    name: PeerName
    uid: PeerUID


class ProposalID(msgspec.Struct, frozen=True, order=True):
    """A proposal's place in the order of all: round, then proposer. Round 0 is no proposal."""

    round: int
    proposer: NodeID


NOBODY = NodeID(UNKNOWN_PEER, UNKNOWN_UID)
NO_PROPOSAL = ProposalID(0, NOBODY)


class AcceptedValue(msgspec.Struct, frozen=True):
    """What was accepted, and the proposal in which these names first stood."""

    value: Sequence[PeerName]
    origin: ProposalID


NO_VALUE = AcceptedValue((), NO_PROPOSAL)


class NodeClaims(msgspec.Struct, frozen=True):
    """What one participant has promised and accepted."""

    promise: ProposalID
    accepted: ProposalID
    accepted_value: AcceptedValue


NO_CLAIMS = NodeClaims(NO_PROPOSAL, NO_PROPOSAL, NO_VALUE)


class Elector:
    """A participant with a vote."""

    def __init__(self, us: NodeID) -> None:
        """Begin knowing nothing, not even how many make a quorum."""
        self.us = us
        self.quorum = 0  # 0: not known; then we promise and accept, but never conclude
        self._claims: dict[NodeID, NodeClaims] = {}

    @classmethod
    def restore(cls, us: NodeID, claims: Mapping[NodeID, NodeClaims]) -> "Elector":
        """Go on where an earlier process stopped, as the same participant."""
        elector = cls(us)
        elector._claims = dict(claims)
        return elector

    def claims(self) -> dict[NodeID, NodeClaims]:
        """Return what is known of everybody, ourselves included, by node."""
        return {node: self._claims[node] for node in sorted(self._claims)}

    def propose(self) -> None:
        """Start an election, or start it again above whatever stopped the last one."""
        highest = max((max(c.promise.round, c.accepted.round) for c in self._claims.values()), default=0)
        ours = self._claims.get(self.us, NO_CLAIMS)
        self._claims[self.us] = replace(ours, promise=ProposalID(highest + 1, self.us))
        if self.quorum == 1:
            self.think()

    def update(self, received: Mapping[NodeID, NodeClaims]) -> bool:
        """Take over what is newer. Return whether anything was. Raises GossipError and then takes nothing."""
        check_received(received)
        changed = False
        for node, theirs in received.items():
            known = merged = self._claims.get(node)
            if known is None:
                merged = theirs
            else:
                if known.promise < theirs.promise:
                    merged = replace(known, promise=theirs.promise)
                if known.accepted < theirs.accepted:
                    merged = NodeClaims((merged or known).promise, theirs.accepted, theirs.accepted_value)
            if merged is not None and merged is not known:
                self._claims[node] = merged
                changed = True
        return changed

    def think(self) -> bool:
        """Do what the rules allow with what is known. Return whether that changed our own claims."""
        before = self._claims.get(self.us, NO_CLAIMS)
        promise = max((claims.promise for claims in self._claims.values()), default=NO_PROPOSAL)
        ours = replace(before, promise=promise)
        if promise.proposer == self.us and self.quorum:
            promised = [c for c in self._claims.values() if c.promise == promise]
            if before.promise != promise:
                promised.append(ours)
            if len(promised) >= self.quorum:
                ours = self._accept(ours, promised)
        for node in sorted(self._claims):
            claims = self._claims[node]
            if claims.accepted == promise and promise != NO_PROPOSAL:
                ours = NodeClaims(promise, claims.accepted, claims.accepted_value)
                break
        self._claims[self.us] = ours
        return (ours.promise, ours.accepted, ours.accepted_value.origin) != (
            before.promise,
            before.accepted,
            before.accepted_value.origin,
        )

    def consensus(self) -> AcceptedValue | None:
        """Return the value that was decided, if we can tell. Its names may repeat and are in no order."""
        accepted = [c.accepted_value for c in self._claims.values() if c.accepted_value.origin != NO_PROPOSAL]
        for candidate in sorted(accepted, key=lambda value: value.origin):
            if self.quorum and sum(v.origin == candidate.origin for v in accepted) >= self.quorum:
                return candidate
        return None

    def _accept(self, ours: NodeClaims, promised: Sequence[NodeClaims]) -> NodeClaims:
        # What some of the promisers accepted may have been decided already, so it must be proposed again.
        latest = max(promised, key=lambda claims: claims.accepted)
        value = latest.accepted_value
        if latest.accepted == NO_PROPOSAL:
            value = AcceptedValue(tuple(node.name for node in sorted({*self._claims, self.us})), ours.promise)
        return NodeClaims(ours.promise, ours.promise, value)


def check_received(received: Mapping[NodeID, NodeClaims]) -> None:
    """Check claims that came from outside. Raises GossipError.

    Weave does not. A round at the end of its range could never be outbid, and a decision for nobody makes no ring.
    """
    if len(received) > NODES_MAX:
        raise GossipError(f"Election of {len(received)} nodes, more than the {NODES_MAX} that are accepted")
    for node, claims in received.items():
        for proposal in (claims.promise, claims.accepted, claims.accepted_value.origin):
            if proposal.round > ROUND_MAX:
                raise GossipError(f"Election round {proposal.round} of {node} is more than {ROUND_MAX}")
        if claims.accepted_value.origin.round and not claims.accepted_value.value:
            raise GossipError(f"Election with an accepted value of no peers, from {node}")
