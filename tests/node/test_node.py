"""The node: which core hears of what, in which order what they want is done, and what it says when IPAM is off.

Routing is shown with cores that write down what they are told and answer as scripted; what whole nodes do to each
other, with production nodes in the simulator's world.
"""

from collections.abc import Iterable

import pytest

from weavenet.address import Address, Cidr, Endpoint, parse_address
from weavenet.effects import (
    CloseTcp,
    ConnectionAdded,
    ConnectionGone,
    ConnectionNumber,
    Done,
    GossipArrived,
    GossipKind,
    Granted,
    LinksChanged,
    Note,
    Now,
    Output,
    OverlayControlArrived,
    OverlayEstablished,
    OverlayFailed,
    PeersRemoved,
    Persist,
    PutAllocation,
    PutValue,
    Reconcile,
    Refused,
    Reply,
    RequestNumber,
    RoutesChanged,
    SendBroadcast,
    SendOverlayControl,
    SendTcp,
    SendUnicast,
)
from weavenet.errors import GossipError, IpamError, StoreError
from weavenet.identity import ConnectionUID, PeerName, PeerUID, ShortID
from weavenet.ipam.allocator import IpamConfig, StoredState
from weavenet.ipam.modes import Consensus, InitMode, Seed
from weavenet.mesh.connector import Target
from weavenet.mesh.router import MeshConfig
from weavenet.node import inputs as i
from weavenet.node.node import EAGER_FLOOD_ROWS_MAX, IPAM_CHANNEL, Node, NodeConfig
from weavenet.node.targets import decode_targets
from weavenet.sim.disk import Disk
from weavenet.sim.host import Host, SeededEntropy
from weavenet.sim.world import World, host_address

NAME, OTHER = PeerName(0x7A00_0000_0001), PeerName(0x7A00_0000_0002)
RANGE = Cidr.parse("10.32.0.0/24")
NOW = Now(100.0, 1_795_000_000.0)
CONNECTION = ConnectionNumber(2)
HERE, THERE = Endpoint(Address(1), 6783), Endpoint(Address(2), 40000)
ASKED = RequestNumber(5)
TARGET = Target("192.0.2.2", Endpoint(parse_address("192.0.2.2"), 0))


def make_node(mode: InitMode | None = None, *, has_ipam: bool = True) -> Node:
    uid = PeerUID(7)
    ipam = IpamConfig(NAME, uid, "host1", RANGE, RANGE, mode or Seed((NAME,))) if has_ipam else None
    return Node(NodeConfig(MeshConfig(NAME, uid, "host1"), ipam, 1376, 6784), SeededEntropy("test"), NOW)


def started(mode: InitMode | None = None, *, has_ipam: bool = True) -> Node:
    node = make_node(mode, has_ipam=has_ipam)
    node.start(StoredState({}, ()), (), NOW)
    return node


# --- routing ----------------------------------------------------------------------------------------------------------


class Core:
    """A core that writes down what it is told, and answers as `script` says, once per entry."""

    def __init__(self, name: str, told: list[str]) -> None:
        self.name = name
        self.told = told
        self.script: dict[str, list[list[Output] | Exception]] = {}
        self.due_s: float | None = None

    def next_deadline(self) -> float | None:
        return self.due_s

    def __getattr__(self, method: str):
        def answer(*arguments: object, **_: object) -> list[Output]:
            shown = [repr(argument) for argument in arguments if isinstance(argument, int | str | bytes | tuple)]
            self.told.append(f"{self.name}.{method}({', '.join(shown)})")
            answers = self.script.get(method)
            outcome = answers.pop(0) if answers else []
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        return answer


class Scripted:
    """A node around three such cores."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.node = make_node()
        self.mesh, self.ipam, self.overlays = (Core(name, self.told) for name in ("mesh", "ipam", "overlays"))
        self.node.mesh, self.node.ipam, self.node.overlays = self.mesh, self.ipam, self.overlays

    def settle(self, *outputs: Output):
        """Have the mesh say this, upon an input."""
        self.mesh.script["tcp_received"] = [list(outputs)]
        effects = self.node.handle(i.TcpReceived(CONNECTION, b""), NOW)
        self.told.pop(0)
        return effects


def sent(text: str) -> SendTcp:
    return SendTcp(CONNECTION, text.encode())


ADDED = ConnectionAdded(CONNECTION, OTHER, HERE, THERE, False, ConnectionUID(1), None, None)

ROUTES = [
    pytest.param(ADDED, "overlays.connection_added()", id="an added connection, to the overlays"),
    pytest.param(ConnectionGone(CONNECTION, OTHER), "overlays.connection_gone()", id="a connection that is gone, too"),
    pytest.param(OverlayControlArrived(CONNECTION, b"x"), "overlays.control_arrived()", id="overlay control, too"),
    pytest.param(
        PeersRemoved((OTHER,), ("b",)), f"ipam.peers_removed({(OTHER,)}, ('b',))", id="removed peers, to IPAM"
    ),
    pytest.param(
        OverlayEstablished(CONNECTION), "mesh.overlay_established(2)", id="an overlay that works, to the mesh"
    ),
    pytest.param(OverlayFailed(CONNECTION, "why"), "mesh.close(2, 'why')", id="one that does not ends its connection"),
    pytest.param(SendOverlayControl(CONNECTION, b"x"), "mesh.send_overlay_control(2, b'x')", id="control, by the mesh"),
    pytest.param(
        SendUnicast(IPAM_CHANNEL, OTHER, b"x"),
        f"mesh.send_unicast('IPallocation', {OTHER}, b'x')",
        id="unicasts, by the mesh",
    ),
    pytest.param(SendBroadcast(IPAM_CHANNEL), "mesh.broadcast('IPallocation')", id="broadcasts, by the mesh"),
    pytest.param(
        GossipArrived(CONNECTION, IPAM_CHANNEL, GossipKind.UNICAST, OTHER, b"x"),
        f"ipam.gossip_arrived({OTHER}, b'x')",
        id="gossip, to IPAM",
    ),
]


@pytest.mark.parametrize(("signal", "told"), ROUTES)
def test_a_signal_goes_to_the_one_core_it_is_for_and_never_to_the_shell(signal: Output, told: str) -> None:
    scripted = Scripted()

    assert scripted.settle(signal) == []
    assert scripted.told == [told]


def test_effects_stay_in_the_order_of_their_making_as_what_is_sent_was_numbered_then() -> None:
    scripted = Scripted()
    scripted.ipam.script["peers_removed"] = [[sent("c"), SendUnicast(IPAM_CHANNEL, OTHER, b""), sent("d")]]
    scripted.mesh.script["send_unicast"] = [[sent("e")]]

    assert scripted.settle(sent("a"), PeersRemoved((OTHER,), ("b",)), sent("b")) == [sent(letter) for letter in "abcde"]


def test_what_a_signal_causes_is_routed_before_the_signals_behind_it() -> None:
    scripted = Scripted()
    scripted.ipam.script["peers_removed"] = [[SendUnicast(IPAM_CHANNEL, OTHER, b"")]]
    scripted.settle(PeersRemoved((OTHER,), ("b",)), OverlayEstablished(CONNECTION))

    assert [each.partition("(")[0] for each in scripted.told] == [
        "ipam.peers_removed",
        "mesh.send_unicast",
        "mesh.overlay_established",
    ]


def test_what_must_be_stored_stays_before_what_tells_of_it() -> None:
    scripted = Scripted()
    stored = Persist((PutValue("ring", b""),))
    scripted.ipam.script["gossip_arrived"] = [[stored, SendBroadcast(IPAM_CHANNEL)]]
    scripted.mesh.script["broadcast"] = [[sent("news")]]

    gossip = GossipArrived(CONNECTION, IPAM_CHANNEL, GossipKind.NEIGHBOUR, OTHER, b"")
    assert scripted.settle(gossip) == [stored, sent("news")]


def test_broadcast_gossip_is_passed_on_behind_what_ipam_stored_and_other_gossip_is_not() -> None:
    scripted = Scripted()
    stored = Persist((PutValue("ring", b""),))
    for kind, passed_on in ((GossipKind.BROADCAST, [sent("on")]), (GossipKind.NEIGHBOUR, []), (GossipKind.UNICAST, [])):
        scripted.ipam.script["gossip_arrived"] = [[stored]]
        scripted.mesh.script["broadcast"] = [[sent("on")]]
        gossip = GossipArrived(CONNECTION, IPAM_CHANNEL, kind, OTHER, b"")
        assert scripted.settle(gossip) == [stored, *passed_on], kind


def test_gossip_that_ipam_refuses_ends_its_connection_and_is_not_passed_on() -> None:
    scripted = Scripted()
    scripted.ipam.script["gossip_arrived"] = [GossipError("different ranges")]
    scripted.mesh.script["close"] = [[CloseTcp(CONNECTION)]]

    gossip = GossipArrived(CONNECTION, IPAM_CHANNEL, GossipKind.BROADCAST, OTHER, b"")
    assert scripted.settle(gossip, sent("other")) == [sent("other"), CloseTcp(CONNECTION)]
    assert scripted.told == [f"ipam.gossip_arrived({OTHER}, b'')", "mesh.close(2, 'different ranges')"]


@pytest.mark.parametrize("hint", [RoutesChanged(), LinksChanged(), Reconcile()])
def test_all_hints_for_the_kernel_in_one_input_are_one_at_the_end(hint: Output) -> None:
    assert Scripted().settle(hint, sent("a"), hint, RoutesChanged(), sent("b")) == [sent("a"), sent("b"), Reconcile()]


def test_signals_that_go_in_circles_are_a_bug_and_end_the_process() -> None:
    scripted = Scripted()
    scripted.mesh.overlay_established = lambda *_: [OverlayEstablished(CONNECTION)]

    with pytest.raises(AssertionError, match="signals go in circles"):
        scripted.settle(OverlayEstablished(CONNECTION))


INPUTS = [
    (i.TcpAccepted(CONNECTION, HERE, THERE), "mesh.tcp_accepted(2)"),
    (i.TcpDialled(ConnectionNumber(1), HERE), "mesh.tcp_dialled(1)"),
    (i.DialFailed(ConnectionNumber(1), "why"), "mesh.dial_failed(1, 'why')"),
    (i.TcpReceived(CONNECTION, b"x"), "mesh.tcp_received(2, b'x')"),
    (i.TcpClosed(CONNECTION, "why"), "mesh.tcp_closed(2, 'why')"),
    (i.TcpWritable(CONNECTION, False), "mesh.tcp_writable(2, False)"),
    (i.SpecialFrameArrived(7, Address(9), 60, b"x"), "overlays.special_frame(7, 9, 60, b'x')"),
    (i.Allocate(ASKED, "c1", None, is_container=True), "ipam.allocate(5, 'c1')"),
    (i.Claim(ASKED, "c1", RANGE, is_container=True, no_error_on_unknown=False), "ipam.claim(5, 'c1')"),
    (i.AwaitConsensus(ASKED), "ipam.await_consensus(5)"),
    (i.TakeOver(ASKED, "host2"), "ipam.take_over(5, 'host2')"),
    (i.Cancel(ASKED), "ipam.cancel(5)"),
    (i.ShutDown(), "ipam.shut_down()"),
    (i.Release(ASKED, "c1"), "ipam.release('c1')"),
    (i.ReleaseAddress(ASKED, "c1", Address(9)), "ipam.release_address('c1', 9)"),
]


@pytest.mark.parametrize(("happened", "told"), INPUTS, ids=lambda value: type(value).__name__)
def test_an_input_goes_to_the_core_it_concerns(happened: i.Input, told: str) -> None:
    scripted = Scripted()
    scripted.node.handle(happened, NOW)
    assert scripted.told == [told]


def test_a_timer_wakes_all_cores() -> None:
    scripted = Scripted()
    scripted.node.handle(i.TimerFired(), NOW)
    assert scripted.told == ["mesh.handle_timer()", "overlays.handle_timer()", "ipam.handle_timer()"]


@pytest.mark.parametrize(
    ("mesh", "overlays", "ipam", "earliest"),
    [
        (3.0, 2.0, 1.0, 1.0),
        (1.0, None, 2.0, 1.0),
        (None, 5.0, None, 5.0),
        (None, None, None, None),
        (0.0, 1.0, 1.0, 0.0),
    ],
)
def test_the_next_deadline_is_the_earliest_of_all(
    mesh: float | None, overlays: float | None, ipam: float | None, earliest: float | None
) -> None:
    scripted = Scripted()
    scripted.mesh.due_s, scripted.overlays.due_s, scripted.ipam.due_s = mesh, overlays, ipam
    assert scripted.node.next_deadline() == earliest
    scripted.node.ipam = None
    assert scripted.node.next_deadline() == min((due for due in (mesh, overlays) if due is not None), default=None)


def test_a_request_that_ipam_cannot_serve_is_refused_in_its_words() -> None:
    scripted = Scripted()
    scripted.ipam.script["release"] = [IpamError("Delete: no addresses for c1")]
    assert scripted.node.handle(i.Release(ASKED, "c1"), NOW) == [Reply(ASKED, Refused("Delete: no addresses for c1"))]


# --- the start --------------------------------------------------------------------------------------------------------


def performed(node: Node, happened: i.Input, disk: Disk):
    """Have a node handle an input with its disk, and return what it answered."""
    effects = node.handle(happened, NOW)
    for effect in effects:
        if isinstance(effect, Persist):
            disk.apply(effect.changes)
    return [effect.outcome for effect in effects if isinstance(effect, Reply)]


def test_what_was_stored_is_there_again_after_a_restart() -> None:
    disk = Disk()
    node = make_node()
    for effect in node.start(disk.load(), [TARGET], NOW):
        if isinstance(effect, Persist):
            disk.apply(effect.changes)
    (granted,) = performed(node, i.Allocate(ASKED, "c1", None, is_container=True), disk)
    assert isinstance(granted, Granted)
    assert decode_targets(disk.load().values["targets"]) == ["192.0.2.2"]

    restarted = make_node()
    effects = restarted.start(disk.load(), [TARGET], NOW)
    assert restarted.ipam.owned() == {"c1": granted.addresses}
    notes = [effect.text for effect in effects if isinstance(effect, Note)]
    assert "Found persisted IPAM data, ignoring supplied IPAM seed" in notes
    assert restarted.mesh.direct_targets() == ["192.0.2.2"]


def test_peers_to_join_are_stored_before_they_are_dialled() -> None:
    effects = make_node().start(StoredState({}, ()), [TARGET], NOW)
    stored = next(
        number for number, effect in enumerate(effects) if effect == Persist((PutValue("targets", b'["192.0.2.2"]'),))
    )
    dialled = next(number for number, effect in enumerate(effects) if type(effect).__name__ == "Dial")
    assert stored < dialled


def test_a_start_without_peers_forgets_those_of_the_last_one() -> None:
    effects = make_node().start(StoredState({"targets": b'["192.0.2.2"]'}, ()), [], NOW)
    assert Persist((PutValue("targets", b"[]"),)) in effects


def test_data_of_another_peer_are_cleared_and_the_peers_to_join_stored_behind_that() -> None:
    disk = Disk()
    other = make_node()
    for effect in other.start(disk.load(), [TARGET], NOW):
        if isinstance(effect, Persist):
            disk.apply(effect.changes)
    performed(other, i.Allocate(ASKED, "c1", None, is_container=True), disk)

    uid = PeerUID(8)
    ipam = IpamConfig(OTHER, uid, "host2", RANGE, RANGE, Seed((OTHER,)))
    node = Node(NodeConfig(MeshConfig(OTHER, uid, "host2"), ipam, 1376, 6784), SeededEntropy("test"), NOW)
    for effect in node.start(disk.load(), [TARGET], NOW):
        if isinstance(effect, Persist):
            disk.apply(effect.changes)
    assert node.ipam.owned() == {}
    assert disk.load().allocations == ()
    assert decode_targets(disk.load().values["targets"]) == ["192.0.2.2"]


def test_stored_data_that_cannot_be_read_stop_the_start() -> None:
    with pytest.raises(StoreError, match="cannot be read"):
        make_node().start(StoredState({"peername": b"\x01", "ring": b"\xff"}, ()), [], NOW)


def test_connecting_and_forgetting_are_stored_as_the_texts_that_were_given() -> None:
    node = started()
    by_name = Target("host2.example:7000", Endpoint(Address(9), 7000))
    assert Persist((PutValue("targets", b'["192.0.2.2","host2.example:7000"]'),)) in [
        *node.handle(i.Connect((TARGET,), replace=False), NOW),
        *node.handle(i.Connect((by_name,), replace=False), NOW),
    ]
    assert Persist((PutValue("targets", b'["host2.example:7000"]'),)) in node.handle(i.Forget(("192.0.2.2",)), NOW)
    assert Persist((PutValue("targets", b'["192.0.2.2"]'),)) in node.handle(i.Connect((TARGET,), replace=True), NOW)


# --- requests ---------------------------------------------------------------------------------------------------------

REQUESTS = [happened for happened, _ in INPUTS if isinstance(happened, i.IpamInput)]
OFF = "IP address allocation is off: the agent was started without a range"


@pytest.mark.parametrize("happened", REQUESTS, ids=lambda value: type(value).__name__)
def test_without_ipam_what_waits_for_an_answer_is_refused_with_a_clear_text(happened: i.IpamInput) -> None:
    effects = started(has_ipam=False).handle(happened, NOW)
    waits = not isinstance(happened, i.Cancel | i.ShutDown)
    assert effects == ([Reply(ASKED, Refused(OFF))] if waits else [])


def test_an_address_is_stored_before_it_is_answered_with() -> None:
    effects = started().handle(i.Allocate(ASKED, "c1", None, is_container=True), NOW)
    kinds = [type(effect) for effect in effects if isinstance(effect, Persist | Reply)]
    assert kinds == [Persist, Reply]
    assert "c1" in [change.ident for change in effects[0].changes if isinstance(change, PutAllocation)]


def test_a_cancelled_request_is_answered_no_more_once_there_is_a_ring() -> None:
    node = started(Consensus(1))
    waiting = started(Consensus(3))
    waiting.handle(i.Allocate(ASKED, "c1", None, is_container=True), NOW)
    waiting.handle(i.Cancel(ASKED), NOW)
    assert waiting.ipam.status().pending_allocates == ()
    assert waiting.ipam.owned() == {}
    assert node.handle(i.Cancel(RequestNumber(99)), NOW) == [], "of a request that nobody knows nothing follows"


def test_releasing_is_done_when_it_is_stored() -> None:
    node = started()
    node.handle(i.Allocate(ASKED, "c1", None, is_container=True), NOW)
    effects = node.handle(i.Release(RequestNumber(6), "c1"), NOW)
    assert [type(effect) for effect in effects] == [Persist, Reply]
    assert effects[-1] == Reply(RequestNumber(6), Done())


def test_a_timer_that_fires_early_changes_nothing_and_the_deadline_stays() -> None:
    for mode in (Seed((NAME,)), Consensus(3)):
        node = started(mode)
        node.handle(i.Allocate(ASKED, "c1", None, is_container=True), NOW)
        due_s = node.next_deadline()
        assert due_s is not None
        for early_s in (NOW.monotonic_s, (NOW.monotonic_s + due_s) / 2, due_s - 1e-6):
            assert node.handle(i.TimerFired(), Now(early_s, NOW.wall_s)) == []
            assert node.next_deadline() == due_s
        node.handle(i.TimerFired(), Now(due_s, NOW.wall_s))
        assert node.next_deadline() > due_s


# --- whole nodes ------------------------------------------------------------------------------------------------------


def mesh_of(count: int, mode: InitMode | None = None) -> tuple[World, list[Host]]:
    """Boot hosts that all know the first, and wait until they know each other and have a ring."""
    world = World(1, Cidr.parse("10.32.0.0/16"), mode or Consensus(count))
    hosts = [
        world.add_host(host_address(number), PeerName(0x7A00_0000_0000 + number), (host_address(1),) * (number > 1))
        for number in range(1, count + 1)
    ]
    for host in hosts:
        world.boot(host)
    world.run_until(30.0)
    assert all(len(host.node.mesh.connections()) == count - 1 for host in hosts)
    return world, hosts


def perform(world: World, host: Host, outputs: Iterable[Output]) -> None:
    """Have a host do what its core wants, outside of any input."""
    world._performer.perform(host, list(outputs))


def ends(host: Host) -> set[PeerName]:
    return {status.name for status in host.node.mesh.connections()}


@pytest.mark.parametrize(
    "garbage", [b"", b"\x00", b"\x01garbage", b"\xff" * 40], ids=["nothing", "a zero", "letters", "ones"]
)
def test_malformed_gossip_ends_the_connection_it_came_by_and_costs_nobody_else_anything(garbage: bytes) -> None:
    world, (first, second, third) = mesh_of(3)
    world.allocate(second, "c1")
    world.run_until(world.now_s + 5.0)
    before = second.node.ipam.owned()
    number = next(s.connection for s in second.node.mesh.connections() if s.name == first.name)

    perform(world, first, first.node.mesh.send_unicast(IPAM_CHANNEL, second.name, b"\x01" + garbage, world.now(first)))
    world.run_until(world.now_s + 0.01)

    assert number not in {status.connection for status in second.node.mesh.connections()}
    assert third.name in ends(second)
    assert second.node.ipam.owned() == before
    world.run_until(world.now_s + 60.0)
    assert ends(second) == {first.name, third.name}, "and its sender may come again"


def test_a_unicast_of_a_type_that_nobody_knows_is_no_crime() -> None:
    world, (first, second) = mesh_of(2)
    number = second.node.mesh.connections()[0].connection
    perform(world, first, first.node.mesh.send_unicast(IPAM_CHANNEL, second.name, b"\x77later", world.now(first)))
    world.run_until(world.now_s + 1.0)
    assert second.node.mesh.connections()[0].connection == number


def test_peers_that_are_removed_reach_ipam_which_keeps_what_they_own() -> None:
    world, (first, second) = mesh_of(2)
    world.allocate(first, "c1")
    world.run_until(world.now_s + 5.0)
    assert {part.nickname for part in first.node.ipam.status().ranges} == {"host1", "host2"}
    world.lose_power(second)
    world.run_until(world.now_s + 120.0)
    assert first.node.mesh.peer_names() == {first.name}
    theirs = [part for part in first.node.ipam.status().ranges if part.peer == second.name]
    assert theirs
    assert all(not part.is_known_peer for part in theirs)


def test_a_node_without_ipam_passes_on_the_gossip_of_those_that_have_it() -> None:
    world = World(1, Cidr.parse("10.32.0.0/16"), Consensus(2))
    relay, ends_ = host_address(1), (host_address(2), host_address(3))
    hosts = {relay: world.add_host(relay, PeerName(0x7A00_0000_0001), ())}
    for number, address in enumerate(ends_, 2):
        hosts[address] = world.add_host(address, PeerName(0x7A00_0000_0000 + number), (relay,))
    world.network.block(*ends_)
    world.network.block(*reversed(ends_))
    mesh_only = MeshConfig(hosts[relay].name, PeerUID(9), "host1")
    effects = hosts[relay].boot(NodeConfig(mesh_only, None, 1376, 6784), "relay", world.now(hosts[relay]))
    perform(world, hosts[relay], effects)
    for address in ends_:
        world.boot(hosts[address])
        world.allocate(hosts[address], "c1")
    world.run_until(60.0)
    assert all(hosts[address].node.ipam.owned() for address in ends_)
    assert hosts[relay].node.ipam is None


# --- what the data plane is told --------------------------------------------------------------------------------------


def test_a_small_mesh_has_a_flood_row_for_every_origin_and_an_unknown_origin_asks_for_nothing() -> None:
    _, (first, second, third) = mesh_of(3)
    forwarding = first.node.forwarding()
    ours = first.node.mesh.short_id
    assert forwarding.ours == ours
    assert len(forwarding.peers) == 2
    assert set(forwarding.floods) >= {ours}
    assert first.node.handle(i.FloodMissed(ShortID(0xFFF)), NOW) == []
    for other in (second, third):
        assert first.node.mesh.topology.short_id(other.name) in forwarding.floods


def test_an_origin_that_the_data_plane_asks_for_is_a_reason_to_look_again_once() -> None:
    _, (first, second) = mesh_of(2)
    origin = first.node.mesh.topology.short_id(second.name)
    assert first.node.handle(i.FloodMissed(origin), NOW) == [Reconcile()]
    assert first.node.handle(i.FloodMissed(origin), NOW) == []
    assert EAGER_FLOOD_ROWS_MAX > 2
