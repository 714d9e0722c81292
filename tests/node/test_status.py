"""What a node says of itself in all of its states: in the shapes of recorded reports, and as an operator reads it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from weavenet.address import Cidr, Endpoint, parse_address
from weavenet.api.schema import decode_report, encode_report
from weavenet.api.text import STATUS_TEXTS, connections_text, ipam_state, ipam_text, peers_text, status_text
from weavenet.dataplane.model import HostNetwork, Stranger
from weavenet.effects import ConnectionNumber, Now, RequestNumber
from weavenet.identity import PeerName, PeerUID
from weavenet.ipam.allocator import IpamConfig, StoredState
from weavenet.ipam.modes import Consensus, InitMode, Observer, Seed
from weavenet.mesh.connector import Target
from weavenet.mesh.router import MeshConfig
from weavenet.node import inputs as i
from weavenet.node import report as r
from weavenet.node.node import Node, NodeConfig
from weavenet.node.status import attachment_reports, ipam_report, link_reports, router_report
from weavenet.sim.host import SeededEntropy
from weavenet.sim.world import World, host_address

RECORDED = Path(__file__).parents[1] / "recorded"
NAME = PeerName(0x7A00_0000_0001)
RANGE = Cidr.parse("10.32.0.0/12")
NOW = Now(100.0, 1_795_467_560.0)  # 2026-11-23 20:59:20 UTC
NASTY = "\x1b[2J\x07 all\nis\u202e well\x9b31m"


def make_node(mode: InitMode | None = None, *, has_ipam: bool = True, nickname: str = "host1", peers: int = 0) -> Node:
    uid = PeerUID(7)
    ipam = IpamConfig(NAME, uid, nickname, RANGE, RANGE, mode or Seed((NAME,))) if has_ipam else None
    node = Node(NodeConfig(MeshConfig(NAME, uid, nickname), ipam, 1376, 6784), SeededEntropy("test"), NOW)
    addresses = [f"192.0.2.{number}" for number in range(2, 2 + peers)]
    targets = [Target(address, Endpoint(parse_address(address), 0)) for address in addresses]
    node.start(StoredState({}, ()), targets, NOW)
    return node


def make_awaiting_consensus() -> Node:
    """Have a node want a ring that two others must agree to, and fail to reach them."""
    node = make_node(Consensus(3), peers=2)
    node.handle(i.Allocate(RequestNumber(1), "c1", None, is_container=True), NOW)
    for number in (1, 3):
        node.handle(i.DialFailed(ConnectionNumber(number), "dial tcp 192.0.2.2:6783: connect: connection refused"), NOW)
    return node


def make_priming() -> Node:
    node = make_node(Observer())
    node.handle(i.AwaitConsensus(RequestNumber(1)), NOW)
    return node


def make_full() -> Node:
    node = make_node()
    subnet = Cidr.parse("10.32.0.0/30")
    for number in range(4):
        node.handle(i.Allocate(RequestNumber(number), f"c{number}", subnet, is_container=True), NOW)
    return node


def report_of(node: Node, network: HostNetwork | None = None) -> r.Report:
    return r.Report(
        ready=True,
        version="0.1.0",
        version_check=r.VersionCheck(),
        router=router_report(node, ()),
        ipam=None if node.ipam is None else ipam_report(node.ipam.status()),
        weavenet=r.Weavenet(
            r.listed(link_reports(node, {}, {})), r.listed(attachment_reports(node, network or HostNetwork(), {}))
        ),
    )


def in_world(count: int = 3, *, nickname: str = "") -> World:
    """Return a world of hosts that know each other; the second may have a nickname of its own choice."""
    world = World(1, RANGE, Consensus(count))
    for number in range(1, count + 1):
        host = world.add_host(
            host_address(number), PeerName(0x7A00_0000_0000 + number), (host_address(1),) * (number > 1)
        )
        if number == 2 and nickname:
            uid = PeerUID(99)
            ipam = IpamConfig(host.name, uid, nickname, RANGE, RANGE, Consensus(count))
            config = NodeConfig(MeshConfig(host.name, uid, nickname), ipam, 1376, 6784)
            world._performer.perform(host, host.boot(config, "nick", world.now(host)))
            world._rearm(host)
        else:
            world.boot(host)
    world.run_until(30.0)
    for host in world.running():
        world.allocate(host, "c1")
    world.run_until(60.0)
    return world


def first_node(world: World) -> Node:
    node = world.hosts[host_address(1)].node
    assert node is not None
    return node


# --- shapes -----------------------------------------------------------------------------------------------------------


def differences(ours: object, recorded: object, where: str = "") -> list[str]:
    """Compare keys, their order, and kinds; where a list is empty there is nothing to compare."""
    if ours is None or recorded is None:
        return []
    if type(ours) is not type(recorded):
        return [f"{where}: {type(ours).__name__}, not {type(recorded).__name__}"]
    if isinstance(ours, dict) and where not in {".Router.OverlayDiagnostics", ".Router.CaptureStats"}:
        keys, expected = list(ours), [key for key in recorded if key not in {"DNS", "Proxy", "Plugin"}]
        if where == "":
            keys = [key for key in keys if key != "Weavenet"]
        found = [] if keys == expected else [f"{where}: {keys}, not {expected}"]
        for key in keys:
            found += differences(ours[key], recorded.get(key), f"{where}.{key}")
        return found
    if isinstance(ours, list) and ours and recorded:
        return differences(ours[0], recorded[0], f"{where}[0]")
    return []


@pytest.mark.parametrize(
    ("recorded", "make"),
    [
        pytest.param("host1-report.json", lambda: first_node(in_world()), id="three peers that know each other"),
        pytest.param("host1-awaiting-consensus-report.json", make_awaiting_consensus, id="alone, awaiting consensus"),
    ],
)
def test_a_report_has_the_keys_of_a_recorded_one_in_its_order_and_kinds(
    recorded: str, make: Callable[[], Node]
) -> None:
    raw = encode_report(report_of(make()))
    assert differences(json.loads(raw), json.loads((RECORDED / recorded).read_bytes())) == []


# --- states -----------------------------------------------------------------------------------------------------------


def test_a_node_that_awaits_consensus_reads_as_a_recorded_one() -> None:
    recorded = (RECORDED / "host1-awaiting-consensus-status.txt").read_text().partition("\n        Service: dns\n")[0]
    ours = status_text(report_of(make_awaiting_consensus()))
    assert ours.splitlines()[1:] == recorded.splitlines()[1:], "but for the version"


def test_a_failed_connection_says_why_and_when_it_is_tried_again() -> None:
    text = connections_text(report_of(make_awaiting_consensus()))
    assert [line.partition(", retry: ")[0] for line in text.splitlines()] == [
        f"-> 192.0.2.{number}:6783        failed      dial tcp 192.0.2.2:6783: connect: connection refused"
        for number in (2, 3)
    ]
    assert all(line.endswith(" UTC") for line in text.splitlines())


def test_a_node_without_peers_has_no_connections_and_one_peer_itself() -> None:
    report = report_of(make_node())
    assert connections_text(report) == ""
    assert peers_text(report) == "7a:00:00:00:00:01(host1)\n"
    assert STATUS_TEXTS["targets"](report) == ""
    assert "    Connections: 0\n          Peers: 1\n" in status_text(report)
    raw = json.loads(encode_report(report))
    assert raw["Router"]["Connections"] is None, "as Go writes it"
    assert raw["Router"]["TrustedSubnets"] == []


def test_a_node_that_is_connecting_says_so() -> None:
    text = connections_text(report_of(make_node(peers=1)))
    assert text == "-> 192.0.2.2:6783        connecting\n"
    assert "Connections: 1 (1 connecting)\n" in status_text(report_of(make_node(peers=1)))


def test_a_node_without_address_allocation_leaves_its_part_out() -> None:
    report = report_of(make_node(has_ipam=False))
    assert "ipam" not in status_text(report)
    assert ipam_text(report) == ""
    assert "IPAM" not in json.loads(encode_report(report))


STATES = [
    pytest.param(make_node, "ready", id="a ring of our own"),
    pytest.param(lambda: make_node(Consensus(3)), "idle", id="nobody has asked for anything"),
    pytest.param(make_awaiting_consensus, "awaiting consensus (quorum: 2, known: 1)", id="an election under way"),
    pytest.param(make_priming, "priming", id="an observer that wants a ring"),
    pytest.param(make_full, "waiting for IP(s) to become available", id="no address left"),
    pytest.param(lambda: first_node(in_world()), "ready", id="a shared ring"),
]


@pytest.mark.parametrize(("make", "words"), STATES)
def test_the_state_of_address_allocation_is_the_same_in_status_and_in_errors(
    make: Callable[[], Node], words: str
) -> None:
    status = make().ipam.status()
    assert ipam_state(ipam_report(status)) == words
    assert status.summary == words


def test_requests_that_wait_are_reported_with_what_they_wait_for() -> None:
    report = report_of(make_full())
    assert report.ipam.pending_allocates == ("c2 10.32.0.0/30", "c3 10.32.0.0/30")
    node = make_node(Consensus(3))
    claim = i.Claim(RequestNumber(1), "c9", Cidr.parse("10.32.0.9/12"), is_container=True, no_error_on_unknown=False)
    node.handle(claim, NOW)
    assert ipam_report(node.ipam.status()).pending_claims == (r.PendingClaim("c9", r.ReportedCidr("10.32.0.9", 12)),)


def test_a_dead_peer_is_unreachable_in_the_ring_and_no_peer_any_more() -> None:
    world = in_world()
    dead = world.hosts[host_address(3)]
    world.lose_power(dead)
    world.run_until(world.now_s + 120.0)
    report = report_of(first_node(world))
    (line,) = [line for line in ipam_text(report).splitlines() if line.startswith("7a:00:00:00:00:03")]
    assert line.endswith("% of total) - unreachable!")
    assert "7a:00:00:00:00:03" not in peers_text(report)
    assert "          Peers: 2 (with 2 established connections)\n" in status_text(report)


# --- order, and what peers say ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", STATUS_TEXTS)
def test_the_same_state_reads_the_same_each_time(part: str) -> None:
    world = in_world(5)
    texts = {STATUS_TEXTS[part](report_of(first_node(world))) for _ in range(3)}
    assert len(texts) == 1
    assert STATUS_TEXTS[part](decode_report(encode_report(report_of(first_node(world))))) in texts


NICKNAMES = [
    pytest.param("host-2.example.org", id="a name"),
    pytest.param("my host (2)", id="blanks and brackets"),
    pytest.param("Jülich-東京-🐙", id="letters of other scripts"),
    pytest.param("h" * 1024, id="a long one"),
    pytest.param(NASTY, id="what a terminal would obey"),
]


@pytest.mark.parametrize("nickname", NICKNAMES)
def test_a_peers_nickname_is_in_its_place_and_does_nothing_to_a_terminal(nickname: str) -> None:
    report = report_of(first_node(in_world(nickname=nickname)))
    shown = nickname if nickname != NASTY else "\\u001b[2J\\u0007 all\\u000ais\\u202e well\\u009b31m"
    title = f"7a:00:00:00:00:02({shown})"
    for part, lines in (("connections", 2), ("peers", 9), ("ipam", 3)):
        text = STATUS_TEXTS[part](report)
        assert len(text.splitlines()) == lines, part
        assert all(line.isprintable() for line in text.splitlines())
        assert title in text
        assert not [line for line in text.splitlines() if line.endswith(" ")]
    assert f"{title} mtu=1376\n" in STATUS_TEXTS["connections"](report)
    assert f"{title:37} established\n" in STATUS_TEXTS["peers"](report)
    (owner,) = [line for line in ipam_text(report).splitlines() if line.startswith(title)]
    assert " IPs (" in owner.removeprefix(f"{title:37} ")


@pytest.mark.parametrize("nickname", NICKNAMES)
def test_json_has_a_nickname_as_the_peer_wrote_it_and_nothing_that_a_terminal_would_obey(nickname: str) -> None:
    raw = encode_report(report_of(first_node(in_world(nickname=nickname)))).decode()
    assert all(line.isprintable() for line in raw.splitlines())
    assert nickname in {peer["NickName"] for peer in json.loads(raw)["Router"]["Peers"]}


# --- the bridge -------------------------------------------------------------------------------------------------------


def test_a_host_without_its_bridge_has_nothing_attached() -> None:
    assert attachment_reports(make_node(), HostNetwork(), {}) == ()
    assert attachment_reports(make_node(), HostNetwork(bridge=Stranger("weave", "dummy")), {}) == ()
