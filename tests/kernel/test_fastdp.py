"""The fast data path in the kernel: three hosts as namespaces, with the real programs and maps."""

import importlib.util
import itertools
import json
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from weavenet.address import Address
from weavenet.dataplane.model import NO_PROGRAMS, MacAddress, mac_from_bytes
from weavenet.errors import KernelError
from weavenet.identity import ShortID
from weavenet.linux import tc
from weavenet.linux.fastdp import HOPS_MAX, Counter, FastdpMaps, Traffic, attached
from weavenet.linux.special import SpecialReceiver, SpecialSender
from weavenet.overlay.forwarding import Forwarding

pytestmark = pytest.mark.kernel


def _load_hosts() -> ModuleType:
    # tests/ is not a package, so a neighbour is loaded by its path.
    spec = importlib.util.spec_from_file_location("fastdp_hosts", Path(__file__).with_name("fastdp_hosts.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


hosts = _load_hosts()
VNIS = json.loads((Path(__file__).parents[1] / "vectors/fastdp.json").read_text())["vectors"]["vni"]
_NUMBERS = itertools.count(1)


def fresh_mac() -> bytes:
    """Return an address that no bridge and no map has seen before."""
    return b"\x02\xfd" + next(_NUMBERS).to_bytes(4, "big")


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hosts.compile_programs(tmp_path_factory.mktemp("bpf"))


@pytest.fixture(scope="module")
def whole_lab(programs: Path) -> Iterator["hosts.Lab"]:
    with hosts.fastdp_lab(3, programs) as lab:
        yield lab


@pytest.fixture
def lab(whole_lab: "hosts.Lab") -> "hosts.Lab":
    whole_lab.mesh()
    return whole_lab


def introduce(host: "hosts.Host", mac: bytes, *others: "hosts.Host") -> None:
    """Let a pod's MAC be seen by all others."""
    host.pod.frames.send(mac, hosts.BROADCAST, b"here I am")
    for other in others:
        assert other.pod.frames.receive() == (mac, hosts.BROADCAST, b"here I am")


# --- switching --------------------------------------------------------------------------------------------------------


def test_pods_on_different_hosts_reach_each_other(lab: "hosts.Lab") -> None:
    one, two, three = lab.hosts
    for other in (two, three):
        assert " 0% packet loss" in one.pod.ping(other.pod, "-c", "3", "-i", "0.01")


def test_once_addresses_are_learnt_nothing_is_flooded(lab: "hosts.Lab") -> None:
    one, two, three = lab.hosts
    one.pod.ping(two.pod, "-c", "1")
    grown = [host.counted() for host in lab.hosts]
    one.pod.ping(two.pod, "-c", "5", "-i", "0.01")
    assert [count(Counter.FLOODED) for count in grown] == [0, 0, 0]
    assert grown[0](Counter.UNICAST) >= 5
    assert grown[2](Counter.RECEIVED) == 0
    places = {entry.mac: entry.place for entry in one.maps.macs()}
    assert sorted(places.values(), key=str) == [ShortID(2), None]
    assert three.maps.macs()[0].place == one.short_id  # from the broadcast that asked for the address


def test_a_broadcast_reaches_every_other_host_once_and_does_not_come_back(lab: "hosts.Lab") -> None:
    one, two, three = lab.hosts
    mac, last = fresh_mac(), fresh_mac()
    sent = one.counted()
    introduce(one, mac, two, three)
    assert sent(Counter.FLOODED) == 1
    assert sent(Counter.FLOOD_COPIES) == 2
    assert sent(Counter.RECEIVED) == 0
    introduce(one, last, two, three)  # nothing came in between
    assert all(host.pod.frames.is_silent() for host in lab.hosts)


def test_a_frame_goes_only_to_the_host_that_has_its_address(lab: "hosts.Lab") -> None:
    one, two, three = lab.hosts
    here, there = fresh_mac(), fresh_mac()
    introduce(two, there, one, three)
    seen = three.counted()
    one.pod.frames.send(here, there, b"for you")
    assert two.pod.frames.receive() == (here, there, b"for you")
    assert seen(Counter.RECEIVED) == 0


def test_an_address_whose_peer_is_gone_is_flooded(lab: "hosts.Lab") -> None:
    one, two, three = lab.hosts
    here, there = fresh_mac(), fresh_mac()
    introduce(two, there, one, three)
    one.route({3: 3}, {1: [3], 2: [], 3: []})
    seen = three.counted()
    one.pod.frames.send(here, there, b"where?")
    # There it ends: the bridge knows the address as one behind the port that the frame came from.
    hosts.until(lambda: seen(Counter.RECEIVED) == 1)


def test_an_address_not_seen_for_ten_minutes_is_flooded_and_not_listed(lab: "hosts.Lab") -> None:
    one, two, three = lab.hosts
    here, there = fresh_mac(), fresh_mac()
    introduce(two, there, one, three)
    macs = one.maps._map("macs")
    key = there + bytes(2)
    value = macs.lookup(key)
    assert value is not None
    seen_ns = int.from_bytes(value[:8], sys.byteorder)
    macs.update(key, (seen_ns - 601 * 10**9).to_bytes(8, sys.byteorder) + value[8:])
    assert mac_from_bytes(there) not in {entry.mac for entry in one.maps.macs()}
    sent = one.counted()
    one.pod.frames.send(here, there, b"still there?")
    assert two.pod.frames.receive() == (here, there, b"still there?")
    assert (sent(Counter.UNICAST), sent(Counter.FLOODED)) == (0, 1)
    assert one.maps.expire_macs() == 1
    assert macs.lookup(key) is None


def test_a_pod_that_moves_is_found_at_its_new_host(lab: "hosts.Lab") -> None:
    one, two, three = lab.hosts
    mac = fresh_mac()
    introduce(two, mac, one, three)
    introduce(three, mac, one, two)
    places = [{entry.mac: entry.place for entry in host.maps.macs()}[mac_from_bytes(mac)] for host in lab.hosts]
    assert places == [ShortID(3), ShortID(3), None]
    introduce(one, mac, two, three)
    places = [{entry.mac: entry.place for entry in host.maps.macs()}[mac_from_bytes(mac)] for host in lab.hosts]
    assert places == [None, ShortID(1), ShortID(1)]


def test_spanning_tree_and_group_sources_go_nowhere(lab: "hosts.Lab") -> None:
    one, two, three = lab.hosts
    grown = one.counted()
    one.pod.frames.send(fresh_mac(), bytes.fromhex("0180c2000000"), b"bpdu")
    introduce(one, fresh_mac(), two, three)
    assert grown(Counter.DROP_LINK_LOCAL) == 1
    # The bridge refuses a group source by itself, so this one comes over the wire.
    lab.wire.send(one, 1 << 12 | 2, hosts.frame_of(b"\x03" + fresh_mac()[1:], hosts.BROADCAST, b"odd"))
    hosts.until(lambda: grown(Counter.RECEIVED) == 1)
    assert all(not entry.mac >> 40 & 1 for entry in one.maps.macs())


# --- several hops -----------------------------------------------------------------------------------------------------


@pytest.fixture
def line(lab: "hosts.Lab") -> "hosts.Lab":
    """One and three reach each other by way of two."""
    one, two, three = lab.hosts
    one.route({2: 2, 3: 2}, {1: [2], 2: [], 3: []})
    two.route({1: 1, 3: 3}, {1: [3], 2: [1, 3], 3: [1]})
    three.route({1: 2, 2: 2}, {1: [], 2: [], 3: [2]})
    return lab


def test_pods_talk_by_way_of_a_host_between_theirs(line: "hosts.Lab") -> None:
    one, two, three = line.hosts
    relayed = two.counted()
    assert " 0% packet loss" in one.pod.ping(three.pod, "-c", "5", "-i", "0.01")
    assert relayed(Counter.RELAYED) >= 9  # the first may be a broadcast yet
    assert {entry.place for entry in one.maps.macs()} == {None, ShortID(3)}


def test_a_broadcast_is_passed_on_with_its_origin(line: "hosts.Lab") -> None:
    one, two, three = line.hosts
    mac = fresh_mac()
    passed = two.counted()
    introduce(one, mac, two, three)
    assert passed(Counter.FLOODED_ON) == 1
    assert {entry.mac: entry.place for entry in three.maps.macs()}[mac_from_bytes(mac)] == one.short_id
    assert one.pod.frames.is_silent()


def test_a_unicast_for_an_unknown_address_is_passed_on_like_a_broadcast(line: "hosts.Lab") -> None:
    one, two, three = line.hosts
    here, there = fresh_mac(), fresh_mac()
    one.pod.frames.send(here, there, b"anyone?")
    assert two.pod.frames.receive() == (here, there, b"anyone?")
    assert three.pod.frames.receive() == (here, there, b"anyone?")


def test_a_unicast_for_a_local_address_is_not_passed_on(line: "hosts.Lab") -> None:
    one, two, three = line.hosts
    here, there = fresh_mac(), fresh_mac()
    introduce(two, there, one, three)
    passed = two.counted()
    one.pod.frames.send(here, there, b"just you")
    assert two.pod.frames.receive() == (here, there, b"just you")
    assert passed(Counter.FLOODED_ON) == 0


def test_a_relayed_packet_keeps_its_vni_and_has_one_ttl_less(lab: "hosts.Lab") -> None:
    one = lab.hosts[0]
    one.route({2: 2, 9: 254}, {1: [2]})
    lab.wire.drain()
    frame = hosts.frame_of(fresh_mac(), fresh_mac(), b"passing by")
    # From host two's pod would be the same; by hand, the time to live can be chosen.
    two = lab.hosts[1]
    two.inside(lambda: send_vxlan(hosts.underlay(1), 9 << 12 | 2, frame, ttl=17))
    packet = lab.wire.receive()
    assert packet[28:36].hex() == "0800000000900200"
    assert packet[36:] == frame
    assert packet[8] == 16


@pytest.mark.parametrize(
    ("vni", "ttl", "counter"),
    [
        pytest.param(1 << 12 | 77, 64, Counter.DROP_UNKNOWN_SOURCE, id="an origin that is unknown"),
        pytest.param(77 << 12 | 2, 64, Counter.DROP_UNKNOWN_PEER, id="for a peer that is unknown"),
        pytest.param(9 << 12 | 2, 64, Counter.DROP_HAIRPIN, id="back to where it came from"),
        pytest.param(3 << 12 | 2, 1, Counter.DROP_TTL, id="relayed too often"),
        pytest.param(1 << 12 | 1, 64, Counter.DROP_UNKNOWN_SOURCE, id="an origin that is ourselves"),
    ],
)
def test_a_packet_is_dropped_and_counted(lab: "hosts.Lab", vni: int, ttl: int, counter: Counter) -> None:
    one, two, three = lab.hosts
    one.route({2: 2, 3: 3, 9: 254}, {1: [2, 3], 2: [], 3: []})
    grown, other = one.counted(), three.counted()
    lab.wire.send(one, vni, hosts.frame_of(fresh_mac(), hosts.BROADCAST, b"no"), ttl)
    hosts.until(lambda: grown(counter) == 1)
    introduce(two, fresh_mac(), one, three)
    assert grown(Counter.RELAYED) == 0
    assert other(Counter.RECEIVED) == 1


def send_vxlan(remote: Address, vni: int, frame: bytes, ttl: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
        header = bytes.fromhex("08000000") + vni.to_bytes(3, "big") + b"\0"
        udp.sendto(header + frame, (f"192.0.2.{remote & 255}", hosts.PORT))


# --- the packet on the wire -------------------------------------------------------------------------------------------


def test_a_packet_on_the_wire_is_as_weave_sends_it(lab: "hosts.Lab") -> None:
    one = lab.hosts[0]
    one.route({2: 254}, {1: [2]})
    one.maps.apply(Forwarding(ShortID(1), {ShortID(2): hosts.WIRE}, {ShortID(1): ((ShortID(2), hosts.WIRE),)}))
    lab.wire.drain()
    mac = fresh_mac()
    one.pod.frames.send(mac, hosts.BROADCAST, b"x")
    packet = lab.wire.receive()
    assert packet[0] == 0x45
    assert packet[1] == 0  # type of service
    assert packet[6] & 0x40, "do not fragment"
    assert packet[8] == 64
    assert packet[12:16] == bytes([192, 0, 2, 1])
    assert packet[26:28] == b"\0\0", "no UDP checksum"
    assert packet[28:36].hex() == "0800000000200100"  # from 1 to 2
    assert packet[36:] == hosts.frame_of(mac, hosts.BROADCAST, b"x")


@pytest.mark.parametrize("vector", VNIS, ids=lambda vector: vector["vxlan_header"])
def test_the_vni_has_both_short_ids_as_weave_writes_them(lab: "hosts.Lab", vector: dict[str, int]) -> None:
    one = lab.hosts[0]
    source, destination = ShortID(vector["src_short_id"]), ShortID(vector["dst_short_id"])
    one.maps.apply(Forwarding(source, {}, {source: ((destination, hosts.WIRE),)}))
    lab.wire.drain()
    one.pod.frames.send(fresh_mac(), hosts.BROADCAST)
    assert lab.wire.receive()[28:36].hex() == vector["vxlan_header"]


# --- special frames ---------------------------------------------------------------------------------------------------


def heartbeat(length: int) -> bytes:
    uid = 0x1122334455667788
    return (bytes(14) + uid.to_bytes(8, "big") + (length & 0xFFFF).to_bytes(2, "big")).ljust(length, b"\0")


@pytest.fixture
def sender(lab: "hosts.Lab") -> Iterator[SpecialSender]:
    one = lab.hosts[0]
    opened = one.inside(lambda: SpecialSender(one.maps, hosts.DEVICE))
    yield opened
    opened.close()


@pytest.fixture
def receiver(lab: "hosts.Lab") -> Iterator[SpecialReceiver]:
    opened = lab.hosts[1].inside(lambda: SpecialReceiver(hosts.PORT))
    yield opened
    opened.close()


def test_a_heartbeat_of_full_size_arrives_with_its_vni_source_and_length(
    sender: SpecialSender, receiver: SpecialReceiver
) -> None:
    frame = heartbeat(14 + hosts.MTU)
    for vni in (2 << 12 | 1, 2 << 12 | 5):
        sender.send(hosts.underlay(2), vni, frame)
        assert select.select([receiver], [], [], hosts.LIMIT_S)[0]
        (got,) = receiver.receive()
        assert (got.vni, got.remote, got.length, got.head) == (vni, hosts.underlay(1), 14 + hosts.MTU, frame[:32])
    assert receiver.receive() == []


def test_a_heartbeat_is_not_fragmented_and_not_marked(lab: "hosts.Lab", sender: SpecialSender) -> None:
    one = lab.hosts[0]
    lab.wire.drain()
    try:
        hosts.batch(one.netns, "link set uplink mtu 1400")
        sender.send(hosts.WIRE, 2 << 12 | 1, heartbeat(14 + hosts.MTU))  # 1440 bytes with its headers: too long
        sender.send(hosts.WIRE, 2 << 12 | 1, heartbeat(14 + 1350))
    finally:
        hosts.batch(one.netns, "link set uplink mtu 1500")
    packet = lab.wire.receive()
    assert len(packet) == 1400
    assert packet[6] & 0x40
    # The socket's mark must not stay: host firewalls read it. A rule that drops marked packets lets ours pass.
    nft = ["ip", "netns", "exec", one.netns, "nft"]
    hosts.run(
        *nft,
        "add table ip t; add chain ip t o { type filter hook output priority 0; }; add rule ip t o meta mark != 0 drop",
    )
    try:
        sender.send(hosts.WIRE, 2 << 12 | 1, heartbeat(100))
        assert len(lab.wire.receive()) == 136
    finally:
        hosts.run(*nft, "delete table ip t")


def test_a_frame_longer_than_the_device_allows_is_refused_in_words(sender: SpecialSender) -> None:
    with pytest.raises(KernelError, match=r"cannot send 1391 bytes through vxlan-6784: the frame is longer"):
        sender.send(hosts.underlay(2), 2 << 12 | 1, heartbeat(15 + hosts.MTU))


def test_pods_traffic_and_other_ports_do_not_reach_the_special_receiver(
    lab: "hosts.Lab", receiver: SpecialReceiver
) -> None:
    one, two, three = lab.hosts
    receiver.receive()  # what came before the filter was on
    introduce(one, fresh_mac(), two, three)
    one.pod.ping(two.pod, "-c", "2", "-i", "0.01")
    assert not select.select([receiver], [], [], 0)[0]


def test_a_pod_cannot_send_special_frames(lab: "hosts.Lab", receiver: SpecialReceiver) -> None:
    one, two, three = lab.hosts
    one.maps.set_special(1, hosts.underlay(2), 2 << 12 | 1)
    one.pod.frames.socket.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 1)
    try:
        one.pod.frames.socket.send(heartbeat(100))
        introduce(one, fresh_mac(), two, three)
    finally:
        one.pod.frames.socket.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0)
    assert receiver.receive() == []


# --- what is asked of the agent ---------------------------------------------------------------------------------------


def test_a_missing_flood_row_is_asked_for_once_and_the_frame_still_delivered(lab: "hosts.Lab") -> None:
    one, two, three = lab.hosts
    two.route({1: 1, 3: 3}, {2: [1, 3]})
    for _ in range(3):
        introduce(one, fresh_mac(), two, three)
    assert select.select([two.maps.events_fileno()], [], [], hosts.LIMIT_S)[0]
    assert two.maps.misses() == [one.short_id]
    assert two.maps.misses() == []


# --- maps and programs outlive the agent ------------------------------------------------------------------------------


def test_traffic_goes_on_without_an_agent_and_a_new_one_finds_everything(lab: "hosts.Lab", programs: Path) -> None:
    one, two, _three = lab.hosts
    before, there = one.maps.observe(), one.maps.programs
    assert one.inside(lambda: attached(one.ifindex)) == there
    one.maps.close()
    try:
        assert " 0% packet loss" in one.pod.ping(two.pod, "-c", "3", "-i", "0.01")
    finally:
        one.maps = one.inside(lambda: FastdpMaps.open(one.ifindex, programs))
    assert one.maps.observe() == before
    assert one.maps.programs == there, "same instructions on the same maps: nothing to replace"
    assert one.maps.apply(before) == 0
    assert one.maps.counters()[Counter.UNICAST] > 0


def test_replacing_the_programs_loses_no_packet(lab: "hosts.Lab", programs: Path) -> None:
    one, two, _three = lab.hosts
    one.pod.ping(two.pod, "-c", "1")
    command = ["ip", "netns", "exec", one.pod.netns, "ping", "-n", "-q", "-f", "-c", "20000", two.pod.address]
    replaced = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as ping:
        while ping.poll() is None:
            for host in (one, two):
                newer = host.inside(lambda host=host: FastdpMaps.open(host.ifindex, programs))
                host.inside(lambda host=host, newer=newer: newer.attach(host.ifindex))
                host.maps.close()
                host.maps = newer
                replaced += 1
        assert ping.stdout is not None
        assert " 20000 received, 0% packet loss" in ping.stdout.read()
    assert replaced > 2


def test_programs_of_another_version_go_on_with_what_the_former_had_learnt(
    lab: "hosts.Lab", programs: Path, tmp_path: Path
) -> None:
    """As an upgrade does: one map has another size, so it is a new one, with the entries of the old."""
    one, two, _three = lab.hosts
    one.pod.ping(two.pod, "-c", "1")
    source = tmp_path / "other.c"
    source.write_text(hosts.SOURCE.read_text().replace("#define MACS_MAX 65536", "#define MACS_MAX 1024"))
    other = hosts.compile_programs(tmp_path, source)
    one.pod.frames.drain()
    before, macs = one.maps.observe(), [(entry.mac, entry.place) for entry in one.maps.macs()]
    one.maps.close()
    one.maps = one.inside(lambda: FastdpMaps.open(one.ifindex, other))
    try:
        assert one.inside(lambda: attached(one.ifindex)) != one.maps.programs
        assert one.maps.observe() == before
        assert [(entry.mac, entry.place) for entry in one.maps.macs()] == macs
        one.inside(lambda: one.maps.attach(one.ifindex))
        sent = one.counted()
        assert " 0% packet loss" in one.pod.ping(two.pod, "-c", "3", "-i", "0.01")
        assert sent(Counter.UNICAST) >= 3
    finally:
        former, one.maps = one.maps, one.inside(lambda: FastdpMaps.open(one.ifindex, programs))
        one.inside(lambda: one.maps.attach(one.ifindex))
        former.close()


def test_attached_says_nothing_where_nothing_is_and_detach_takes_both(lab: "hosts.Lab") -> None:
    three = lab.hosts[2]
    assert three.inside(lambda: attached(999_999)) == NO_PROGRAMS
    three.inside(lambda: tc.detach(three.ifindex))
    assert three.inside(lambda: attached(three.ifindex)) == NO_PROGRAMS
    three.inside(lambda: tc.detach(three.ifindex))
    for _ in range(2):
        three.inside(lambda: three.maps.attach(three.ifindex))
    assert three.inside(lambda: attached(three.ifindex)) == three.maps.programs


def test_programs_on_other_maps_are_not_taken_for_ours(lab: "hosts.Lab", programs: Path) -> None:
    others = FastdpMaps.open(path=programs)
    try:
        assert others.programs != lab.hosts[0].maps.programs
    finally:
        others.close()


def test_large_segments_pass_whole(lab: "hosts.Lab") -> None:
    one, two, _three = lab.hosts
    size = 16 << 20
    server = two.pod.inside(lambda: socket.create_server(("10.32.0.2", 5001)))
    received = 0

    def serve() -> None:
        nonlocal received
        accepted, _ = server.accept()
        with accepted:
            while data := accepted.recv(1 << 20):
                received += len(data)

    thread = threading.Thread(target=serve)
    thread.start()
    sent = one.counted()
    client = one.pod.inside(lambda: socket.create_connection(("10.32.0.2", 5001), hosts.LIMIT_S))
    with server, client:
        client.sendall(bytes(size))
        client.shutdown(socket.SHUT_WR)
        thread.join()
    assert received == size
    assert size / sent(Counter.UNICAST) > 8 * hosts.MTU, "the segments were cut before the VXLAN device"


# --- maps alone -------------------------------------------------------------------------------------------------------


@pytest.fixture
def maps(programs: Path) -> Iterator[FastdpMaps]:
    opened = FastdpMaps.open(path=programs)
    yield opened
    opened.close()


def test_applying_is_observed_and_twice_is_once(maps: FastdpMaps) -> None:
    full = Forwarding(
        ours=ShortID(4095),
        peers={ShortID(n): Address(n + 1) for n in range(4095)},
        floods={ShortID(n): ((ShortID(n ^ 1), Address(n)),) * (n % 3) for n in range(4096)},
    )
    assert maps.observe() == Forwarding(ShortID(0), {}, {})
    assert maps.apply(full) == 4095 + 4096 + 1
    assert maps.observe() == full
    assert maps.apply(full) == 0
    small = Forwarding(ShortID(7), {ShortID(1): Address(9)}, {ShortID(7): ((ShortID(1), Address(9)),)})
    maps.apply(small)
    assert maps.observe() == small


def test_a_row_with_as_many_hops_as_fit_is_kept_and_one_with_more_refused(maps: FastdpMaps) -> None:
    hops = tuple((ShortID(n), Address(n + 1)) for n in range(HOPS_MAX + 1))
    largest = Forwarding(ShortID(1), {}, {ShortID(1): hops[:-1]})
    maps.apply(largest)
    assert maps.observe() == largest
    with pytest.raises(KernelError, match="cannot flood frames of short ID 1 to 513 next hops: there is room for 512"):
        maps.apply(Forwarding(ShortID(2), {ShortID(3): Address(4)}, {ShortID(1): hops}))
    assert maps.observe() == largest, "nothing was changed"


def test_addresses_at_a_peer_and_single_ones_are_forgotten(maps: FastdpMaps) -> None:
    now = (10**18).to_bytes(8, sys.byteorder)
    for number, where in ((1, 5), (2, 6), (3, 4096), (4, 5)):
        value = now + where.to_bytes(4, sys.byteorder) + bytes(4)
        maps._map("macs").update(number.to_bytes(6, "big") + bytes(2), value)
    assert maps.forget_peers([ShortID(5)]) == 2
    assert [(entry.mac, entry.place) for entry in maps.macs()] == [(2, ShortID(6)), (3, None)]
    assert maps.forget_mac(MacAddress(3))
    assert not maps.forget_mac(MacAddress(3))


def test_a_file_that_is_no_object_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"cannot open eBPF object .*/nowhere.o: No such file"):
        FastdpMaps.open(path=tmp_path / "nowhere.o")


def test_what_goes_to_and_comes_from_a_peer_is_counted_for_it(lab: "hosts.Lab") -> None:
    one, two, three = lab.hosts
    one.pod.ping(two.pod, "-c", "1")  # who is where is known from here on
    ids = [two.short_id, three.short_id]
    before = one.maps.traffic(ids)
    one.pod.ping(two.pod, "-c", "10", "-i", "0.01", "-s", "100")
    after = one.maps.traffic(ids)
    frame = 14 + 20 + 8 + 100
    sent = after[two.short_id].sent_packets - before[two.short_id].sent_packets
    assert sent >= 10
    assert after[two.short_id].sent_bytes - before[two.short_id].sent_bytes >= 10 * frame
    assert after[two.short_id].received_packets - before[two.short_id].received_packets >= 10
    assert after[two.short_id].received_bytes - before[two.short_id].received_bytes >= 10 * frame
    assert after[three.short_id].sent_bytes - before[three.short_id].sent_bytes < 10 * frame
    one.maps.forget_traffic([two.short_id])
    assert one.maps.traffic([two.short_id]) == {two.short_id: Traffic()}
