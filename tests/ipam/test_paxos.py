"""Elections against real ones (vectors), and under every order of messages that hypothesis can think of."""

import json
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from weavenet.errors import GossipError
from weavenet.identity import PeerName, PeerUID, format_peer_name, parse_peer_name
from weavenet.ipam.paxos import (
    NO_CLAIMS,
    NO_PROPOSAL,
    NODES_MAX,
    ROUND_MAX,
    AcceptedValue,
    Elector,
    NodeClaims,
    NodeID,
    ProposalID,
)

RUNS = json.loads((Path(__file__).parent.parent / "vectors" / "paxos.json").read_text())["vectors"]


def write_node(node: NodeID) -> dict:
    return {"name": format_peer_name(node.name), "uid": node.uid}


def write_proposal(proposal: ProposalID) -> dict | None:
    if proposal == NO_PROPOSAL:
        return None
    return {"proposer": write_node(proposal.proposer), "round": proposal.round}


def write_state(elector: Elector) -> list[dict]:
    return [
        {
            "accepted": write_proposal(claims.accepted),
            "accepted_origin": write_proposal(claims.accepted_value.origin),
            "accepted_value_sorted": sorted(format_peer_name(name) for name in claims.accepted_value.value),
            "node": write_node(node),
            "promise": write_proposal(claims.promise),
        }
        for node, claims in elector.claims().items()
    ]


def run_step(electors: list[Elector], step: dict) -> None:
    elector = electors[step["node"]]
    match step["op"]:
        case "set_quorum":
            elector.quorum = step["quorum"]
        case "propose":
            elector.propose()
        case "gossip":
            learnt = elector.update(electors[step["from"]].claims())
            assert learnt == step["learnt"]
            if learnt:
                assert elector.think() == step["think_changed"]
        case "update_only":
            assert elector.update(electors[step["from"]].claims()) == step["learnt"]
        case "think":
            assert elector.think() == step["think_changed"]
        case unknown:
            pytest.fail(f"unknown operation {unknown}")


@pytest.mark.parametrize("run", RUNS, ids=[run["name"] for run in RUNS])
def test_a_run_goes_as_the_real_one(run: dict) -> None:
    nodes = [NodeID(parse_peer_name(node["name"]), PeerUID(node["uid"])) for node in run["nodes"]]
    electors = [Elector(node) for node in nodes]
    for elector in electors:
        elector.quorum = run["quorum"]
    for step in run["steps"]:
        run_step(electors, step)
        elector = electors[step["node"]]
        assert write_state(elector) == step["state_after"]
        decided = elector.consensus()
        assert (decided is not None) == step["consensus"]
        if decided is not None:
            assert write_proposal(decided.origin) == step["consensus_origin"]
            assert sorted(format_peer_name(name) for name in decided.value) == step["consensus_value_sorted"]


def node(number: int) -> NodeID:
    return NodeID(PeerName(number), PeerUID(100 + number))


HIGH = ProposalID(ROUND_MAX + 1, node(9))


@pytest.mark.parametrize(
    ("claims", "text"),
    [
        pytest.param(replace(NO_CLAIMS, promise=HIGH), "Election round", id="promise"),
        pytest.param(replace(NO_CLAIMS, accepted=HIGH), "Election round", id="accepted"),
        pytest.param(
            replace(NO_CLAIMS, accepted_value=AcceptedValue((PeerName(1),), HIGH)), "Election round", id="origin"
        ),
        pytest.param(
            replace(NO_CLAIMS, accepted_value=AcceptedValue((), ProposalID(1, node(9)))), "no peers", id="for nobody"
        ),
    ],
)
def test_claims_that_would_end_all_elections_are_refused_and_change_nothing(claims: NodeClaims, text: str) -> None:
    elector = Elector(node(1))
    elector.quorum = 2
    elector.propose()
    before = elector.claims()
    with pytest.raises(GossipError, match=text):
        elector.update({node(2): replace(NO_CLAIMS, promise=ProposalID(5, node(2))), node(9): claims})
    assert elector.claims() == before


def test_an_election_of_too_many_nodes_is_refused() -> None:
    with pytest.raises(GossipError, match=f"{NODES_MAX + 1} nodes"):
        Elector(node(1)).update({NodeID(PeerName(1), PeerUID(uid)): NO_CLAIMS for uid in range(NODES_MAX + 1)})


def test_a_restored_elector_keeps_the_promise_of_its_earlier_self() -> None:
    first, second, third = (Elector(node(number)) for number in (1, 2, 3))
    for elector in (first, second, third):
        elector.quorum = 2
    first.propose()
    second.update(first.claims())
    second.think()
    first.update(second.claims())
    first.think()
    second.update(first.claims())
    second.think()
    decided = second.consensus()
    assert decided is not None

    second = Elector.restore(second.us, second.claims())
    second.quorum = 2
    third.propose()
    third.update(second.claims())
    third.think()
    third.propose()
    second.update(third.claims())
    second.think()
    third.update(second.claims())
    third.think()
    again = third.consensus()
    assert again is not None
    assert (again.value, again.origin) == (decided.value, decided.origin)


class OneValueIsDecided(RuleBasedStateMachine):
    """Messages come late, twice or never, and nodes restart with what they stored: nobody decides anything else."""

    def __init__(self) -> None:
        super().__init__()
        self.electors: list[Elector] = []
        self.on_the_way: list[dict[NodeID, NodeClaims]] = []
        self.decided: AcceptedValue | None = None

    @initialize(count=st.integers(1, 5))
    def boot(self, count: int) -> None:
        self.electors = [Elector(node(number + 1)) for number in range(count)]
        for elector in self.electors:
            elector.quorum = count // 2 + 1

    def pick(self, index: int) -> Elector:
        return self.electors[index % len(self.electors)]

    @rule(index=st.integers(0, 4))
    def propose(self, index: int) -> None:
        self.pick(index).propose()

    @rule(index=st.integers(0, 4))
    def send(self, index: int) -> None:
        self.on_the_way.append(self.pick(index).claims())

    @precondition(lambda self: self.on_the_way)
    @rule(index=st.integers(0, 4), which=st.integers(0, 1000))
    def receive(self, index: int, which: int) -> None:
        # Mostly the latest: elections get nowhere on old news.
        message = self.on_the_way[-1 - which % len(self.on_the_way) if which % 3 == 0 else -1]
        if self.pick(index).update(message):
            self.pick(index).think()

    @rule(index=st.integers(0, 4), other=st.integers(0, 4))
    def talk(self, index: int, other: int) -> None:
        if self.pick(index).update(self.pick(other).claims()):
            self.pick(index).think()

    @rule(index=st.integers(0, 4))
    def restart(self, index: int) -> None:
        old = self.pick(index)
        new = Elector.restore(old.us, old.claims())
        new.quorum = old.quorum
        self.electors[self.electors.index(old)] = new

    @invariant()
    def all_who_know_a_decision_know_the_same(self) -> None:
        for elector in self.electors:
            value = elector.consensus()
            if value is None:
                continue
            if self.decided is None:
                self.decided = value
            assert (value.value, value.origin) == (self.decided.value, self.decided.origin)


OneValueIsDecided.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestOneValueIsDecided = OneValueIsDecided.TestCase
