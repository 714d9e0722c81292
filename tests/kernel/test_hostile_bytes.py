"""Whatever arrives on the agent's ports: its sender loses the connection, and nobody else loses anything."""

import contextlib
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import mesh_lab
import pytest

from weavenet.codec.gob import encode_one
from weavenet.lab import agents
from weavenet.lab.hosts import Lab
from weavenet.lab.record import HostRecord
from weavenet.mesh.wire import FEATURES, HEADER_BYTES, build_header

pytestmark = pytest.mark.kernel

HEADER = build_header(1, 2)
GOOD = {
    "PeerNameFlavour": "mac",
    "Name": "7a:00:00:00:00:77",
    "NickName": "stranger",
    "ShortID": "77",
    "UID": "7",
    "ConnID": "7",
    "Trusted": "false",
    "Overlays": "fastdp",
}
GROWTH_MAX_BYTES = 30_000_000


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two hosts with agents and a pod each, and a third from which strangers knock."""
    with mesh_lab.running_lab(tmp_path_factory.mktemp("l"), "hostile", 2) as lab:
        for host in lab.record.hosts:
            lab.add_pod(host)
        lab.add_host()
        yield lab


@pytest.fixture(scope="module", autouse=True)
def silent(lab: Lab) -> Iterator[list[socket.socket]]:
    """Hold connections that say nothing while the other tests run: they take ten seconds to be given up."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(knock(lab)) for _ in range(60)]


@pytest.fixture
def victim(lab: Lab) -> Iterator[HostRecord]:
    """Have pods talk meanwhile; afterwards, the same process has the same connection and knows no stranger."""
    host = lab.record.hosts[0]
    assert host.agent is not None
    lost = losses(lab, host)
    before = connections(lab, host)
    assert len(before) == 1
    with mesh_lab.streams(lab, *lab.record.pods):
        yield host
    assert host.agent.is_alive()
    mesh_lab.until(lambda: connections(lab, host) == before, "the connection is the only one, and the same", lab, host)
    assert losses(lab, host) == lost
    assert "Traceback" not in mesh_lab.logged(lab, host)


def connections(lab: Lab, host: HostRecord) -> list[str]:
    """Return the established connections, by both ends' addresses and ports."""
    text = agents.query(lab.paths, host, "/status/connections")
    return [line for line in text.splitlines() if line.split()[2:3] == ["established"]]


def losses(lab: Lab, host: HostRecord) -> int:
    """Return how often the connection between the two hosts was lost."""
    lines = mesh_lab.logged(lab, host).splitlines()
    return sum("connection deleted" in line and "(host2)" in line for line in lines)


def knock(lab: Lab) -> socket.socket:
    """Connect from the third host to the first one's agent."""
    with lab.namespace("host3").entered():
        return socket.create_connection((lab.record.hosts[0].address, 6783), timeout=mesh_lab.LIMIT_S)


def frame(content: bytes) -> bytes:
    return struct.pack("!I", len(content)) + content


def introduction(**features: str | None) -> bytes:
    """Return an introduction without a password, changed or shortened by some features."""
    given = {key: text for key, text in {**GOOD, **features}.items() if text is not None}
    return HEADER + b"\0" + frame(encode_one(FEATURES, given))


HOSTILE = {
    "no weave": (b"GET / HTTP/1.1\r\n\r\n", "remote protocol header not recognised"),
    "zeros": (bytes(4096), "remote protocol header not recognised"),
    "a version from the future": (b"weave\x09\x09", "incompatible"),
    "an unknown flag": (HEADER + b"\x07", "Bad encryption flag 7"),
    "encryption that nobody asked for": (HEADER + b"\x01" + bytes(32), "requested an encrypted connection"),
    "an oversized frame": (HEADER + b"\0" + b"\xff\xff\xff\xff", "exceeds maximum size: 4294967295"),
    "an oversized introduction": (HEADER + b"\0" + struct.pack("!I", 9 << 20), "exceeds maximum size"),
    "no gob": (HEADER + b"\0" + frame(b"\xff" * 64), "during handshake"),
    "an empty introduction": (HEADER + b"\0" + frame(b""), "during handshake"),
    "no name": (introduction(Name=None), "field Name is missing"),
    "a name that is none": (introduction(Name="../../etc"), "during handshake"),
    "the name of nobody": (introduction(Name="00:00:00:00:00:00"), "is not a name a peer can have"),
    "a number that is none": (introduction(UID="-1"), "strconv.ParseUint"),
    "a short ID that is too large": (introduction(ShortID="4096"), "value out of range"),
    "a boolean that is none": (introduction(Trusted="perhaps"), "strconv.ParseBool"),
    "the victim's own name": (introduction(Name="7a:00:00:00:00:01"), "peer names collision"),
    "no common overlay": (introduction(Overlays="pigeon"), "no overlay"),
    "gossip that is none": (introduction() + frame(b"\x05" + b"\xff" * 30), "connection shutting down"),
    "a huge frame after a good introduction": (introduction() + b"\x7f\xff\xff\xff", "exceeds maximum size"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_bytes_cost_their_connection_and_a_line_in_the_log(lab: Lab, victim: HostRecord, what: str) -> None:
    data, words = HOSTILE[what]
    with knock(lab) as knocking:
        port = knocking.getsockname()[1]
        knocking.sendall(data)
        with contextlib.suppress(ConnectionResetError):
            while knocking.recv(65536):
                pass
    line = mesh_lab.until_logged(lab, victim, f"10.99.0.3:{port}", "shutting down", words)
    assert len(line) < 500


def test_a_truncated_header_is_reported_with_its_bytes(lab: Lab, victim: HostRecord) -> None:
    with knock(lab) as knocking:
        assert knocking.recv(HEADER_BYTES) == HEADER
        knocking.sendall(b"wea")
        knocking.shutdown(socket.SHUT_WR)
        mesh_lab.until_logged(lab, victim, "received incomplete remote protocol header (3 octets instead of 7)")


@pytest.mark.usefixtures("victim")
def test_silent_connections_keep_nobody_out_and_end_by_themselves(lab: Lab, silent: list[socket.socket]) -> None:
    victim = lab.record.hosts[0]
    for connection in silent:
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(64):
                pass
        port = connection.getsockname()[1]
        mesh_lab.until_logged(lab, victim, f"10.99.0.3:{port}", "failed to receive remote protocol header: i/o timeout")


def resident_bytes(host: HostRecord) -> int:
    assert host.agent is not None
    return int(Path(f"/proc/{host.agent.pid}/statm").read_text().split()[1]) * 4096


def vxlan(vni: int, inner: bytes, flags: int = 0x08) -> bytes:
    return bytes([flags, 0, 0, 0]) + vni.to_bytes(3, "big") + b"\0" + inner


DATAGRAMS = {
    "zero length": b"",
    "garbage": b"\xa5" * 700,
    "a truncated header": vxlan(5, b"")[:5],
    "a header and nothing": vxlan(5, b""),
    "a truncated frame": vxlan(5, b"\xff" * 9),
    "an unknown peer": vxlan(0x123 | 0x456 << 12, bytes(60)),
    "flags from the future": vxlan(5, bytes(60), flags=0xFF),
    "both addresses zero, too short": vxlan(0x123 | 0x456 << 12, bytes(20)),
    "a heartbeat of nobody's": vxlan(0x123 | 0x456 << 12, bytes(14) + b"\xee" * 8 + bytes(1300)),
    "the largest there is, in fragments": vxlan(0x123 | 0x456 << 12, b"\xff" * 65000),
}


def test_hostile_datagrams_on_the_vxlan_port_disturb_nobody(lab: Lab, victim: HostRecord) -> None:
    before = resident_bytes(victim)
    with lab.namespace("host3").entered():
        sending = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    with sending, raw:
        for _ in range(200):
            for data in DATAGRAMS.values():
                sending.sendto(data, (victim.address, 6784))
        for number in range(2000):  # first fragments whose rest never comes
            raw.sendto(lone_fragment(number, lab.record.hosts[2].address, victim.address), (victim.address, 0))
    assert mesh_lab.weave(lab, victim, "status")
    assert resident_bytes(victim) - before < GROWTH_MAX_BYTES


def lone_fragment(number: int, source: str, target: str) -> bytes:
    udp = struct.pack("!HHHH", 4444, 6784, 2000, 0) + vxlan(5, bytes(64))
    more_fragments = 0x2000
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), number, more_fragments, 64, socket.IPPROTO_UDP, 0)
    return header + socket.inet_aton(source) + socket.inet_aton(target) + udp
