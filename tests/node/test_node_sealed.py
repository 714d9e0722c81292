"""Two nodes with a password: what is sealed must leave in the order in which it was sealed, or nobody can open it.

Bytes are handed over as late as possible and all at once, as a busy host reads them, so that one input brings several
messages, and each of them may cause others.
"""

from collections.abc import Iterator

import pytest

from weavenet.address import Address, Cidr, Endpoint
from weavenet.effects import CloseTcp, ConnectionNumber, Dial, Effect, Now, SendSpecialFrame, SendTcp
from weavenet.identity import PeerName, PeerUID
from weavenet.ipam.allocator import IpamConfig, StoredState
from weavenet.ipam.modes import Consensus
from weavenet.mesh.connector import Target
from weavenet.mesh.keyring import Keyring
from weavenet.mesh.router import MeshConfig
from weavenet.node import inputs as i
from weavenet.node.node import Node, NodeConfig
from weavenet.sim.host import SeededEntropy

RANGE = Cidr(Address(0x0A20_0000), 12)
NAMES = PeerName(0x7A00_0000_0001), PeerName(0x7A00_0000_0002)
PLACES = Endpoint(Address(0xC000_0201), 6783), Endpoint(Address(0xC000_0202), 6783)
NUMBERS = ConnectionNumber(1), ConnectionNumber(2)  # the first dials


class Pair:
    """Two nodes, and what is on its way from each to the other."""

    def __init__(self, seed: int, *, compact: bool) -> None:
        self.now = Now(100.0, 1.7e9)
        self.under_way: tuple[list[bytes], list[bytes]] = ([], [])
        self.frames: tuple[list[SendSpecialFrame], list[SendSpecialFrame]] = ([], [])
        self.nodes = tuple(self._node(index, f"{seed}", compact=compact) for index in range(2))
        for index, targets in ((1, ()), (0, (Target("192.0.2.2", PLACES[1]),))):
            self.take(index, self.nodes[index].start(StoredState({}, ()), targets, self.now))

    def _node(self, index: int, seed: str, *, compact: bool) -> Node:
        uid = PeerUID(index + 7)
        anywhere = (Cidr(Address(0), 0),)
        mesh = MeshConfig(
            NAMES[index],
            uid,
            f"host{index + 1}",
            keyring=Keyring.of(b"secret"),
            trusted_subnets=anywhere,
            overlays="fastdp",
            compact=compact,
        )
        ipam = IpamConfig(NAMES[index], uid, f"host{index + 1}", RANGE, RANGE, Consensus(2))
        return Node(NodeConfig(mesh, ipam, 1376, 6784), SeededEntropy(f"{seed} {index}"), self.now)

    def feed(self, index: int, happened: i.Input) -> None:
        self.take(index, self.nodes[index].handle(happened, self.now))

    def take(self, index: int, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Dial(connection):
                    assert connection == NUMBERS[0]
                    self.feed(1, i.TcpAccepted(NUMBERS[1], PLACES[1], Endpoint(PLACES[0].address, 40_000)))
                    self.feed(0, i.TcpDialled(NUMBERS[0], Endpoint(PLACES[0].address, 40_000)))
                case SendTcp(_, data):
                    self.under_way[index].append(data)
                case SendSpecialFrame():
                    self.frames[index].append(effect)
                case CloseTcp():
                    pytest.fail(f"{self.nodes[index].config.mesh.nickname} hung up: {effects}")

    def deliver(self) -> bool:
        """Hand over all that is under way, each end's in one piece; say whether there was anything."""
        moved = False
        for index in range(2):
            other = 1 - index
            data = b"".join(self.under_way[index])
            self.under_way[index].clear()
            frames = self.frames[index][:]
            self.frames[index].clear()
            if data:
                self.feed(other, i.TcpReceived(NUMBERS[other], data))
            for each in frames:
                head = each.frame[:32]
                self.feed(other, i.SpecialFrameArrived(each.vni, PLACES[index].address, len(each.frame), head))
            moved |= bool(data or frames)
        return moved

    def ticks(self) -> Iterator[None]:
        """Let time pass in steps of a tenth of a second; nothing is handed over meanwhile."""
        for _ in range(10):
            self.now = Now(self.now.monotonic_s + 0.1, self.now.wall_s + 0.1)
            for index, node in enumerate(self.nodes):
                due_s = node.next_deadline()
                if due_s is not None and due_s <= self.now.monotonic_s:
                    self.feed(index, i.TimerFired())
            yield


@pytest.mark.parametrize("compact", [True, False], ids=["compact gossip", "Weave's"])
@pytest.mark.parametrize("seed", range(8))
def test_what_is_sealed_can_be_opened_however_much_comes_at_once(seed: int, *, compact: bool) -> None:
    pair = Pair(seed, compact=compact)
    for _ in range(40):
        for _ in pair.ticks():
            if seed % 2:
                pair.deliver()
        pair.deliver()
        for number, node in enumerate(pair.nodes):
            ipam = node.ipam
            assert ipam is not None
            pair.feed(number, i.AwaitConsensus(1))  # type: ignore[arg-type]
    for node in pair.nodes:
        assert [each.established for each in node.mesh.connections()] == [True]
        assert node.ipam is not None
        assert not node.ipam.ring.is_empty
