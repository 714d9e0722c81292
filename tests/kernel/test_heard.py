"""Special frames as nftables logs them: those that the firewall lets in, and no others."""

import os
import select
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from weavenet.dataplane.nft import make_table, plan_table
from weavenet.errors import KernelError
from weavenet.lab import process
from weavenet.lab.namespace import Namespace
from weavenet.linux.heard import PassedReceiver
from weavenet.linux.netns import run_in_namespace
from weavenet.linux.special import HEAD_BYTES, SpecialFrame
from weavenet.overlay.heartbeat import encode_heartbeat

pytestmark = pytest.mark.kernel

T = TypeVar("T")
PORT, MTU = 6784, 1376
UID = 0x1122334455667788
HEARTBEAT = encode_heartbeat(UID, MTU)  # type: ignore[arg-type]
VXLAN = bytes((8, 0, 0, 0)) + (0x222111).to_bytes(3, "big") + b"\0"


class Host:
    """A namespace with our table in it, and a reader of its log."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        self.descriptor = os.open(namespace.path, os.O_RDONLY)
        process.run(["ip", "link", "set", "lo", "up"], namespace=namespace)
        table = make_table("weave", subnets=(), ours=None, mappings=(), heartbeats=PORT)
        self.nft("\n".join(map(str, plan_table(None, table))))
        self.receiver = self.inside(lambda: PassedReceiver(PORT))

    def inside(self, function: Callable[[], T]) -> T:
        return run_in_namespace(self.descriptor, function)

    def nft(self, text: str) -> None:
        with self.namespace.entered():
            subprocess.run(["nft", "-f", "-"], input=text, check=True, text=True)

    def send(self, frame: bytes, port: int = PORT) -> None:
        def send() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(VXLAN + frame, ("127.0.0.1", port))

        self.inside(send)

    def heard(self) -> list[SpecialFrame]:
        select.select([self.receiver.fileno()], [], [], 0.2)
        return self.receiver.receive()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    namespace = Namespace(tmp_path / "ns")
    namespace.create()
    try:
        made = Host(namespace)
        try:
            yield made
        finally:
            made.receiver.close()
            os.close(made.descriptor)
    finally:
        namespace.delete()


def test_a_heartbeat_is_heard_whole_in_length_and_at_once(host: Host) -> None:
    host.send(HEARTBEAT)
    (frame,) = host.heard()
    assert (frame.vni, frame.length) == (0x222111, len(HEARTBEAT))
    assert frame.head == HEARTBEAT[:HEAD_BYTES]
    assert host.heard() == []


def test_what_is_no_heartbeat_is_not_heard(host: Host) -> None:
    host.send(bytes(5) + b"\1" + HEARTBEAT[6:])
    host.send(HEARTBEAT, port=PORT + 1)
    host.send(b"")
    assert host.heard() == []


def test_what_the_firewall_drops_is_not_heard_until_it_lets_it_in(host: Host) -> None:
    host.nft(
        "table inet firewall { chain input { type filter hook input priority filter; policy accept; "
        f"udp dport {PORT} drop; }}; }}"
    )
    host.send(HEARTBEAT)
    assert host.heard() == []
    host.nft("delete table inet firewall")
    host.send(HEARTBEAT)
    assert len(host.heard()) == 1


def test_a_group_has_one_reader(host: Host) -> None:
    with pytest.raises(KernelError, match=f"cannot read nftables' log group {PORT}"):
        host.inside(lambda: PassedReceiver(PORT))
