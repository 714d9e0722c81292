"""What operators do with machines that are lost: `weave rmpeer`, in the right way and in two wrong ones.

A ring can say only once who owns a range, and a take-over is one peer's word for another that cannot speak. So
docs/protocol/ipam.md, 5.9, has two conditions, that the peer is gone for good, and that one peer takes it over. What
follows when they hold is checked like everything else: all ranges belong to peers that live, and no address has two
owners. When they do not hold, no protocol of this kind can keep both heirs from giving out the same address, because
neither has heard of the other yet. Then the ranges in question leave the check for double ownership, the mesh need not
converge, and what is left to ask is that nothing crashes, that all other addresses stay safe, and that a mesh which
does not converge has a conflict in some node's log (errors A, B, C) or differs about these ranges and no others.
"""

import random
from enum import Enum

from weavenet.identity import PeerName
from weavenet.sim.host import Host
from weavenet.sim.world import World


class Conduct(Enum):
    """How the operator of a run goes about it."""

    AWAY = "never runs rmpeer"
    CAREFUL = "waits until the mesh is at rest, then has one peer take over each machine that is lost for good"
    HASTY = "has two peers take over the same lost machine at the same time"
    RASH = "has a peer take over a machine that then comes back"

    @property
    def is_right(self) -> bool:
        """Whether everything that is promised must hold."""
        return self in {Conduct.AWAY, Conduct.CAREFUL}


def draw_conduct(rng: random.Random) -> Conduct:
    """Draw an operator; the careless are few, as their runs can check less."""
    return rng.choices(list(Conduct), weights=[45, 35, 10, 10])[0]


def take_over_wrongly(world: World, dead: PeerName, heirs: list[Host]) -> None:
    """Have peers take over what somebody else owns, or will say he owns."""
    for heir in heirs:
        assert heir.node is not None
        assert heir.node.ipam is not None
        world.ledger.dispute(heir.node.ipam.ring.ranges_of(dead))
        world.take_over(heir, dead)


def take_over_rightly(world: World, rng: random.Random, dead: list[PeerName]) -> None:
    """Have some peer take over each machine that is lost for good, one after the other."""
    for name in dead:
        world.take_over(rng.choice(world.running()), name)


def still_owns(world: World, dead: list[PeerName]) -> str | None:
    """Say which machine that has been taken over still owns something, in somebody's eyes; or None."""
    for host in world.running():
        assert host.node is not None
        assert host.node.ipam is not None
        for name in dead:
            if host.node.ipam.ring.mentions(name):
                return f"{name:012x} was taken over, and {host.name:012x} still knows ranges of it"
    return None
