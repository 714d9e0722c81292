"""An agent's node loop over fakes: the production node, and a disk, a disk's thread and TCP that only write down.

Shared by the tests of the modules that stand around the loop.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import asynccontextmanager, suppress

from virtual_time import HeldExecutor, read_clock, settle

from weavenet.address import Cidr, Endpoint
from weavenet.agent.loop import NodeLoop
from weavenet.effects import ConnectionNumber, Now, StoreChange
from weavenet.errors import StoreError
from weavenet.identity import PeerName, PeerUID
from weavenet.ipam.allocator import IpamConfig, StoredState
from weavenet.ipam.modes import InitMode, Seed
from weavenet.mesh.keyring import Keyring
from weavenet.mesh.router import MeshConfig
from weavenet.node.node import Node, NodeConfig
from weavenet.sim.disk import Disk
from weavenet.sim.host import SeededEntropy

NAME = PeerName(0x7A00_0000_0001)
RANGE = Cidr.parse("10.32.0.0/24")


class _ListHandler(logging.Handler):
    def __init__(self, lines: list[tuple[int, str]]) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append((record.levelno, record.getMessage()))


def listed_log(lines: list[tuple[int, str]]) -> logging.Logger:
    """Return a logger that writes levels and texts into a list."""
    log = logging.getLogger("weavenet.test")
    log.setLevel(logging.DEBUG)
    log.propagate = False
    log.handlers[:] = [_ListHandler(lines)]
    return log


class FakeStore:
    """A disk that can fail."""

    def __init__(self, happened: list[str]) -> None:
        self.disk = Disk()
        self.happened = happened
        self.failure = ""

    def apply(self, changes: Sequence[StoreChange]) -> None:
        if self.failure:
            raise StoreError(self.failure)
        self.disk.apply(changes)
        self.happened.append(f"stored {' '.join(getattr(change, 'key', type(change).__name__) for change in changes)}")


class FakeTcp:
    """Sockets, as a list of what was asked of them."""

    def __init__(self, happened: list[str]) -> None:
        self.happened = happened

    def dial(self, connection: ConnectionNumber, remote: Endpoint) -> None:
        self.happened.append(f"dial {connection} {remote}")

    def send(self, connection: ConnectionNumber, data: bytes) -> None:
        self.happened.append(f"send {connection} {data.decode(errors='replace')}")

    def close(self, connection: ConnectionNumber) -> None:
        self.happened.append(f"close {connection}")


def make_node(now: Now, mode: InitMode | None = None, *, has_ipam: bool = True, keyring: Keyring | None = None) -> Node:
    uid = PeerUID(7)
    ipam = IpamConfig(NAME, uid, "host1", RANGE, RANGE, mode or Seed((NAME,))) if has_ipam else None
    config = NodeConfig(MeshConfig(NAME, uid, "host1", keyring=keyring), ipam, mtu_bytes=1376, vxlan_port=6784)
    return Node(config, SeededEntropy("test"), now)


class Agent:
    """A loop over its fakes. What happened is in `happened`; the disk answers only when `disk_thread` is run."""

    def __init__(self, mode: InitMode | None, *, has_ipam: bool, keyring: Keyring | None = None) -> None:
        self.happened: list[str] = []
        self.store = FakeStore(self.happened)
        self.disk_thread = HeldExecutor(is_open=True)
        self.node = make_node(read_clock(), mode, has_ipam=has_ipam, keyring=keyring)
        self.logged: list[tuple[int, str]] = []
        log = listed_log(self.logged)
        self.loop = NodeLoop(self.node, read_clock, self.store, self.disk_thread, log)
        self.loop.tcp = FakeTcp(self.happened)
        self.loop.send_special_frame = lambda effect: self.happened.append(f"frame to {effect.remote}")
        self.task: asyncio.Task[None] | None = None

    def held(self, ident: str) -> tuple[Cidr, ...]:
        assert self.node.ipam is not None
        return self.node.ipam.owned().get(ident, ())

    async def flush(self) -> None:
        """Let the disk catch up."""
        await settle()
        while len(self.disk_thread):
            self.disk_thread.run_next()
            await settle()


@asynccontextmanager
async def running(
    mode: InitMode | None = None,
    *,
    disk_is_prompt: bool = False,
    has_ipam: bool = True,
    keyring: Keyring | None = None,
):
    """Run an agent's loop, started on an empty disk; by default it is its range's only owner."""
    agent = Agent(mode, has_ipam=has_ipam, keyring=keyring)
    agent.task = asyncio.create_task(agent.loop.run())
    agent.loop.take(agent.node.start(StoredState({}, ()), [], read_clock()))
    await settle()
    agent.disk_thread.is_open = disk_is_prompt
    agent.happened.clear()
    agent.logged.clear()
    try:
        yield agent
    finally:
        agent.task.cancel()
        with suppress(asyncio.CancelledError, StoreError):
            await agent.task
