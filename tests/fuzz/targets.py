"""Everything that bytes from outside reach, each as a function that takes some: it returns, or what it raises is a bug.

Outside are peers (mesh, gossip, both overlays), the container runtime, users of the control API and of the manifest
service, the Kubernetes API, the kernel, and files. Only the errors that a docstring names may leave what is called
here. What decodes is encoded again and must decode to the same where there is an encoder.

`node` and `introduction` are state machines: the bytes are a script of what happens to them.
"""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import cast

import msgspec

from weavenet.address import Address, Cidr, Endpoint, parse_subnet
from weavenet.agent.dispatch import Call, Route, make_application
from weavenet.agent.hostports import decode_host_ports, encode_host_ports
from weavenet.agent.install import is_ours
from weavenet.agent.local_addresses import decode_local_addresses, encode_local_addresses
from weavenet.agent.networks import parse_annotation, parse_definition
from weavenet.api.template import Template, TemplateError, TemplateExecutionError
from weavenet.cni.request import Sandbox, parse_call
from weavenet.codec.gob import Decoder
from weavenet.codec.ip import fragment, ipv4_header_bytes
from weavenet.codec.vxlan import decode_header
from weavenet.drivers.cni import parse_strings
from weavenet.drivers.http import Response, _Connection
from weavenet.effects import CloseTcp, ConnectionNumber, GossipKind, Now, Output
from weavenet.errors import (
    AddressError,
    CniError,
    CodecError,
    GossipError,
    KernelError,
    KeyringError,
    KubeAnswerError,
    PeerNameError,
    ProtocolError,
    RemoteError,
    StoreError,
)
from weavenet.identity import ConnectionUID, PeerName, PeerUID, ShortID, parse_peer_name
from weavenet.ipam import wire as ipam_wire
from weavenet.ipam.allocator import IpamConfig, StoredState
from weavenet.ipam.modes import Seed
from weavenet.kube.lines import Lines
from weavenet.linux.netlink import parse_attributes, parse_messages
from weavenet.linux.nft import read_table
from weavenet.linux.special import decode_special
from weavenet.manifest.options import ImageSource
from weavenet.manifest.service import answer
from weavenet.mesh import wire
from weavenet.mesh.connection import Connection, ConnectionOptions, Introduced, LocalPeer
from weavenet.mesh.keyring import Keyring, decode_keyring, encode_keyring
from weavenet.mesh.records import decode_update, encode_update
from weavenet.mesh.router import MeshConfig
from weavenet.node import inputs as i
from weavenet.node.node import Node, NodeConfig
from weavenet.node.targets import decode_targets, encode_targets
from weavenet.overlay.heartbeat import heartbeat_uid
from weavenet.overlay.sleeve import messages
from weavenet.overlay.sleeve.fast_pipe import FastPipe
from weavenet.overlay.sleeve.fast_wire import VIRTIO
from weavenet.overlay.sleeve.join import join
from weavenet.overlay.sleeve.pipe import Counters, SleevePipe
from weavenet.overlay.sleeve.table import SleeveConnection, SleeveTable
from weavenet.overlay.sleeve.wire import split_frames
from weavenet.resources import Node as KubeNode
from weavenet.sim.host import SeededEntropy

CORPUS = Path(__file__).with_name("corpus")
REGRESSIONS = Path(__file__).with_name("regressions")
OUTPUT_BYTES_MAX = 16 << 20  # of one input to a node, in messages to peers

Target = Callable[[bytes], None]
TARGETS: dict[str, Target] = {}

NAME, OTHER = PeerName(0x7A00_0000_0001), PeerName(0x7A00_0000_0002)
HERE, THERE = Endpoint(Address(0xC0000201), 6783), Endpoint(Address(0xC0000202), 6783)
RANGE = Cidr(Address(0x0A20_0000), 24)
KEY = bytes(range(32))


def target(function: Target) -> Target:
    """Register a target by its name."""
    TARGETS[function.__name__] = function
    return function


def _text(data: bytes) -> str:
    return data.decode("latin-1")


# --- the mesh ---------------------------------------------------------------------------------------------------------


@target
def gossip_message(data: bytes) -> None:
    for tag in (wire.Tag.GOSSIP, wire.Tag.GOSSIP_UNICAST, wire.Tag.GOSSIP_BROADCAST):
        with contextlib.suppress(CodecError):
            parsed = wire.parse_gossip(tag, data)
            assert wire.parse_gossip(tag, wire.build_gossip(tag, parsed)[1:]) == parsed


@target
def topology(data: bytes) -> None:
    with contextlib.suppress(RemoteError):
        peers = decode_update(data)
        assert decode_update(b"".join(encode_update(peers))) == peers


@target
def gob_values(data: bytes) -> None:
    decoder = Decoder(message_bytes_max=1 << 16)
    with contextlib.suppress(CodecError):
        for at in range(0, len(data), 7):
            decoder.feed(data[at : at + 7])
            while decoder.try_decode(wire.FEATURES) is not None:
                pass


@target
def features(data: bytes) -> None:
    pairs = [pair.partition("=") for pair in _text(data).split("\n")]
    with contextlib.suppress(RemoteError):
        wire.parse_features({key: value for key, _, value in pairs})


@target
def inbox(data: bytes) -> None:
    box = wire.Inbox()
    with contextlib.suppress(ProtocolError):
        for at in range(0, len(data), 5):
            box.feed(data[at : at + 5])
            while box.take_frame(1 << 16) is not None:
                pass
            assert len(box) < (1 << 16) + 16


@target
def introduction(data: bytes) -> None:
    """The first byte says who dials, which versions there are and whether there is a password; then pieces and time."""
    if not data:
        return
    how, rest = data[0], data[1:]
    options = ConnectionOptions(
        Keyring.of(b"fuzz") if how & 1 else None,
        min_version=1,
        max_version=1 if how & 2 else 2,
        overlays="fastdp sleeve",
    )
    now = Now(0.0, 0.0)
    connection = Connection(
        LocalPeer(NAME, PeerUID(1), "n"),
        options,
        outbound=bool(how & 4),
        short_id=ShortID(1),
        trusted=False,
        entropy=SeededEntropy("fuzz"),
        now=now,
    )
    connection.start()
    with contextlib.suppress(RemoteError):
        while rest:
            size, rest = rest[0] + 1, rest[1:]
            _, events = connection.receive(rest[:size], now)
            rest = rest[size:]
            if any(isinstance(event, Introduced) for event in events):
                connection.proceed(now)
            if size & 1:
                now = Now(now.monotonic_s + size / 8, 0.0)
                if connection.next_deadline() <= now.monotonic_s:
                    connection.handle_timer(now)


@target
def node(data: bytes) -> None:
    """A whole node, to which two strangers connect: each step is a byte for what happens, a length, and its bytes."""
    uid = PeerUID(7)
    ipam = IpamConfig(NAME, uid, "host1", RANGE, RANGE, Seed((NAME,)))
    mesh = MeshConfig(NAME, uid, "host1", overlays="fastdp sleeve")
    now = Now(100.0, 1.7e9)
    one = Node(NodeConfig(mesh, ipam, 1376, 6784), SeededEntropy("fuzz"), now)
    one.start(StoredState({}, ()), (), now)
    open_connections: set[int] = set()
    while len(data) >= 2:
        step, size, data = data[0], data[1], data[2:]
        piece, data = data[:size], data[size:]
        number = ConnectionNumber(2 + 2 * (step >> 7))
        for happened in _happening(step & 0x0F, number, piece, is_open=number in open_connections):
            outputs: list[Output] = one.handle(happened, now)
            if isinstance(happened, i.TcpAccepted):
                open_connections.add(number)
            if isinstance(happened, i.TcpClosed):
                open_connections.discard(number)
            for output in outputs:
                if isinstance(output, CloseTcp):
                    open_connections.discard(output.connection)
            assert sum(len(getattr(each, "data", b"")) for each in outputs) < OUTPUT_BYTES_MAX
        if step & 0x10:
            now = Now(now.monotonic_s + 0.25 * (1 + size), now.wall_s)
            one.handle(i.TimerFired(), now)
    one.forwarding()
    one.sleeve_table()


def _happening(kind: int, number: ConnectionNumber, piece: bytes, *, is_open: bool) -> list[object]:
    if not is_open:
        return [i.TcpAccepted(number, HERE, Endpoint(THERE.address, 40_000 + number))]
    head = piece.ljust(32, b"\0")
    match kind:
        case 0:
            return [i.TcpClosed(number, "")]
        case 1:
            return [i.TcpWritable(number, bool(piece[:1] > b"\x7f"))]
        case 2:
            return [i.SpecialFrameArrived(int.from_bytes(piece[:3], "big"), THERE.address, 1390, head)]
        case 3:
            return [i.SleeveFrameArrived(number, THERE, 14 + len(piece), head, not any(piece))]
        case 4:
            return [i.SleeveTooBig(number, int.from_bytes(piece[:2], "big"))]
        case 5:
            return [i.FloodMissed(ShortID(int.from_bytes(piece[:2], "big") & 0xFFF))]
        case _:
            return [i.TcpReceived(number, piece)]


# --- addresses --------------------------------------------------------------------------------------------------------


@target
def ring(data: bytes) -> None:
    with contextlib.suppress(RemoteError):
        state = ipam_wire.decode_state(data)
        assert ipam_wire.decode_state(ipam_wire.encode_state(state)) == state


@target
def ring_gossip(data: bytes) -> None:
    """A ring from a peer, merged into one that is in use."""
    one = _member()
    assert one.ipam is not None
    for kind in GossipKind:
        with contextlib.suppress(RemoteError):
            one.ipam.gossip_arrived(kind, OTHER, data, Now(100.0, 1.7e9))


def _member() -> Node:
    uid, now = PeerUID(7), Now(100.0, 1.7e9)
    ipam = IpamConfig(NAME, uid, "host1", RANGE, RANGE, Seed((NAME,)))
    one = Node(NodeConfig(MeshConfig(NAME, uid, "host1"), ipam, 1376, 6784), SeededEntropy("fuzz"), now)
    one.start(StoredState({}, ()), (), now)
    return one


@target
def ipam_unicast(data: bytes) -> None:
    with contextlib.suppress(RemoteError):
        ipam_wire.decode_unicast(data)


@target
def stored_values(data: bytes) -> None:
    """What an earlier agent, or somebody else, left on the disk."""
    for decode in (ipam_wire.decode_stored_name, ipam_wire.decode_stored_ring, ipam_wire.decode_stored_election):
        with contextlib.suppress(CodecError, GossipError):
            decode(data)
    with contextlib.suppress(StoreError):
        texts = decode_targets(data)
        assert decode_targets(encode_targets(texts)) == texts
    with contextlib.suppress(KeyringError, StoreError):
        keys = decode_keyring(data)
        if keys is not None:
            assert decode_keyring(encode_keyring(keys)) is not None
    with contextlib.suppress(msgspec.DecodeError, ValueError):
        ports = decode_host_ports(data)
        assert decode_host_ports(encode_host_ports(ports)) == ports
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, AddressError):
        held = decode_local_addresses(data)
        assert decode_local_addresses(encode_local_addresses(held)) == held
    is_ours(data)


@target
def texts(data: bytes) -> None:
    text = _text(data)
    for parse in (Cidr.parse, parse_subnet, Endpoint.parse, parse_peer_name):
        with contextlib.suppress(AddressError, PeerNameError):
            parse(text)


# --- the overlays -----------------------------------------------------------------------------------------------------


def _table(*, sealed: bool) -> SleeveTable:
    key = KEY if sealed else None
    connection = SleeveConnection(
        number=ConnectionNumber(1),
        peer=OTHER,
        remote=THERE,
        key=key,
        opening=(KEY,) if sealed else (),
        dialled=True,
        mtu_bytes=1438,
        payload_bytes_max=1472,
        fragments_pass=True,
        fast_label=b"\1abcde",
    )
    names = {ShortID(1): NAME, ShortID(2): OTHER}
    return SleeveTable(NAME, names, (connection,), {ShortID(2): ConnectionNumber(1)}, 1376, frozenset({ShortID(1)}))


@functools.cache
def _pipes() -> tuple[tuple[SleevePipe, FastPipe], ...]:
    made = []
    for sealed in (False, True):
        slow = SleevePipe()
        fast = FastPipe(Counters())
        slow.apply(_table(sealed=sealed))
        fast.apply(_table(sealed=sealed))
        made.append((slow, fast))
    return tuple(made)


@target
def sleeve_datagram(data: bytes) -> None:
    split_frames(data)
    own, other = NAME.to_bytes(6, "big"), OTHER.to_bytes(6, "big")
    for slow, _ in _pipes():
        for datagram in (data, other + data, other + other + own + len(data).to_bytes(2, "big") + data):
            arrived = slow.incoming([(datagram, THERE)])
            assert sum(map(len, arrived.frames)) < 4 * len(datagram) + 4096


@target
def fast_datagram(data: bytes) -> None:
    for _, fast in _pipes():
        for datagram in (data, b"\1abcde" + data):
            buffer = bytearray(datagram)
            arrived = fast.incoming([(buffer, len(buffer), max(1, len(buffer)), THERE)])
            for parts in arrived.frames:
                assert sum(map(len, parts)) < len(datagram) + 4096


@target
def sleeve_join(data: bytes) -> None:
    frames = []
    while data:  # each after its length
        end = 2 + int.from_bytes(data[:2], "big")
        frames.append(data[2:end])
        data = data[end:]
    joined = join(frames)
    assert len(joined) <= len(frames)
    whole = sum(len(one) if isinstance(one, bytes) else sum(map(len, one)) for one in joined)
    assert whole <= sum(map(len, frames)) + VIRTIO.size * len(joined)


@target
def kernel_frames(data: bytes) -> None:
    """What a pod sends, as the packet sockets bring it."""
    for slow, fast in _pipes():
        tags = b"\x88\xa8\0\2\x81\0\0\1"
        slow.outgoing([data, data[:12] + tags + data[12:]])
        fast.outgoing([(memoryview(data), 2), (memoryview(data[:22] + b"\x81\0\0\1" + data[22:]), 2)])
    if ipv4_header_bytes(data):
        with contextlib.suppress(ValueError):
            for piece in fragment(data, 576):
                assert len(piece) <= 576 + 14


@target
def special_packet(data: bytes) -> None:
    decode_special(data, len(data), 6784)
    heartbeat_uid(len(data), data[:32])
    with contextlib.suppress(CodecError):
        decode_header(data)
    assert ConnectionUID(0) == 0


@target
def forwarder_message(data: bytes) -> None:
    """What the process that reads datagrams says to the agent, which does not trust it."""
    with contextlib.suppress(msgspec.MsgspecError):
        messages.decode_from_forwarder(data)


# --- the node's own neighbours ----------------------------------------------------------------------------------------


@target
def cni_call(data: bytes) -> None:
    """A verb by the first byte; then CNI_ARGS up to a zero byte, and stdin."""
    verb = ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "")[data[0] % 7 if data else 6]
    arguments, _, stdin = data[1:].partition(b"\0")
    environment = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": "c0ffee",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": _text(arguments),
    }
    for plugin in ("weave-net", "weave-ipam"):
        with contextlib.suppress(CniError):
            parse_call(plugin, environment, stdin, Sandbox("/run/netns/x", 3))
    with contextlib.suppress(CniError):
        parse_definition(stdin)
    with contextlib.suppress(ProtocolError):
        parse_strings(data)


@target
def network_annotation(data: bytes) -> None:
    with contextlib.suppress(CniError):
        parse_annotation(_text(data), "pod")


@target
def http_request(data: bytes) -> None:
    loop = _loop()
    written = loop.run_until_complete(_serve(data))
    assert len(written) < 4 * len(data) + 4096
    if written:
        status = int(written[9:12])
        assert written.startswith(b"HTTP/1.1 "), written
        assert status in {100, 200, 400, 404, 405, 408, 413, 431, 501}, written


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


async def _serve(data: bytes) -> bytes:
    """Serve one client, who sends all this, and hangs up once nothing more happens; return what it was sent."""
    reader, writer = asyncio.StreamReader(), _Writer()
    serving = asyncio.ensure_future(_Connection(_APPLICATION, reader, cast("asyncio.StreamWriter", writer)).serve())
    reader.feed_data(data)
    for _ in range(20):
        await asyncio.sleep(0)
    reader.feed_eof()
    await serving
    return bytes(writer.written)


class _Writer:
    """As much of a StreamWriter, and of its transport, as is used; nothing is behind it."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.write = self.written.extend
        self.transport = self

    async def drain(self) -> None:
        await asyncio.sleep(0)

    def set_write_buffer_limits(self, high: int) -> None:
        del high

    def is_closing(self) -> bool:
        return False

    def write_eof(self) -> None:
        return

    close = abort = write_eof


async def _reflect(call: Call) -> Response:
    subnet = parse_subnet(f"{call.parts.get('ip', '')}/{call.parts.get('length', '')}")
    return Response(200, f"{subnet} {sorted(call.query)} {sorted(call.form)} {call.accept}".encode())


_APPLICATION = make_application(
    logging.getLogger("fuzz"),
    [Route(method, "/ip/{ident}/{ip}/{length}", _reflect) for method in ("GET", "PUT", "POST")],
)


@target
def manifest_query(data: bytes) -> None:
    found = answer("/k8s/net?" + _text(data), ImageSource("registry.example/weavenet", "0.1.0"), "0.1.0")
    assert found.status in {200, 400}
    answer("/" + _text(data), ImageSource("registry.example/weavenet", "0.1.0"), "0.1.0")


@target
def report_template(data: bytes) -> None:
    with contextlib.suppress(TemplateError, TemplateExecutionError):
        Template(_text(data)).execute({"Router": {"Name": "x", "Peers": [{"Name": "y"}]}, "Ready": True})


@target
def kube_watch(data: bytes) -> None:
    lines = Lines(1 << 12)
    decoder = msgspec.json.Decoder(KubeNode)
    with contextlib.suppress(KubeAnswerError):
        for at in range(0, len(data), 9):
            for line in lines.feed(data[at : at + 9]):
                with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                    decoder.decode(line)


@target
def kernel_answers(data: bytes) -> None:
    with contextlib.suppress(KernelError):
        for message in parse_messages(data):
            parse_attributes(message.body)
    with contextlib.suppress(KernelError):
        read_table(data.decode(errors="replace"))


if __name__ == "__main__":
    print(*TARGETS)  # noqa: T201 - for the Makefile
