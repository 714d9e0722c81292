"""Reclaiming the addresses of peers whose nodes have left the cluster, and the same seen from the node that left.

`Reclaimer` performs the steps that kube/peer_list.py decides on, reading the shared record anew before each. It may
stop anywhere: whoever goes on, this agent after a restart or another one, finds the state in the record.

The other side is a node that was removed, and comes back with its old ring on disk. If its addresses were reclaimed
they are others' by now. Weave deletes the ring of a peer that had registered and is no longer listed. We want more
evidence: a list may have been lost by hand, and deleting the ring of a node with running pods gives their addresses to
others. So our node object must also be another one than when we registered. Pods of a removed node object do not
outlive it, so then nothing is lost, and it is also what tells a cluster that was made anew. A lock on ourselves says
that somebody is taking our addresses over right now; that is waited for. An API that does not answer is no evidence.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from enum import Enum
from typing import Protocol

import msgspec

from weavenet.effects import Entropy
from weavenet.errors import KubeAnswerError, KubeStatusError, ReclaimedError
from weavenet.kube.client import KubeClient
from weavenet.kube.node_status import get_node
from weavenet.kube.peer_list import (
    Annotations,
    Confirm,
    Facts,
    ListedPeer,
    PeerRecord,
    Reading,
    Record,
    Settled,
    TakeOver,
    Write,
    next_step,
    read_record,
)

KEY_REGISTERED = "kube-registered"
STEPS_MAX = 10_000  # a few per departed node; more is going in circles
CONFLICT_PAUSE_S = 2.0  # and up to as long again
CONFLICT = 409


class Registered(msgspec.Struct, frozen=True, rename="pascal"):
    """What is stored once the record lists us: who we were then."""

    peer_name: str
    node_name: str
    node_uid: str

    def encode(self) -> bytes:
        """Write it for the store."""
        return msgspec.json.encode(self)


def decode_registered(raw: bytes | None) -> Registered | None:
    """Read what was stored; what does not decode is no evidence either."""
    try:
        return None if raw is None else msgspec.json.decode(raw, type=Registered)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


class Verdict(Enum):
    """What to do with a ring from before."""

    KEEP = "keep"
    DROP = "drop"
    WAIT = "wait"  # it is being decided


def judge(registered: Registered | None, record: Record, node_uid: str | None, peer_name: str) -> Verdict:
    """Say whether our addresses are still ours, from the record and our node as they are now (None: there is none)."""
    if registered is None or registered.peer_name != peer_name:
        return Verdict.KEEP  # never listed under this name, so never reclaimed
    if record.lists(peer_name):
        remover = record.remover_of(peer_name)
        being_removed = remover is not None and remover != peer_name and record.lists(remover)
        return Verdict.WAIT if being_removed else Verdict.KEEP
    return Verdict.DROP if node_uid is not None and node_uid != registered.node_uid else Verdict.KEEP


class PeerMesh(Protocol):
    """What reclaiming needs of the node: the mesh and the ring."""

    def has_ring(self) -> bool:
        """Say whether there is a ring."""
        ...

    def is_alive(self, peer_name: str) -> bool:
        """Say whether the mesh reaches a peer."""
        ...

    async def take_over(self, peer_name: str) -> int:
        """Make the addresses of a peer ours; return how many became free. Raises IpamError."""
        ...


class Reclaimer:
    """Performs rounds of reclaiming for one peer."""

    def __init__(  # noqa: PLR0917  # its surroundings, each named where it is made
        self,
        client: KubeClient,
        record: PeerRecord,
        us: ListedPeer,
        mesh: PeerMesh,
        entropy: Entropy,
        log: logging.Logger,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Do nothing yet."""
        self._client = client
        self._record = record
        self._us = us
        self._mesh = mesh
        self._entropy = entropy
        self._log = log
        self._pause = pause
        self.reclaimed = 0  # peers, since the start

    async def round(self, nodes: Collection[str], registered: Registered | None, node_uid: str | None) -> Settled:
        """Register, and reclaim whoever is gone. Raises KubeError, IpamError, and ReclaimedError if it was us."""
        present, gone, behind_lock, taken = set(nodes), set[str](), set[str](), set[str]()
        for _ in range(STEPS_MAX):
            reading = await self._record.read_or_create()
            record = read_record(reading.annotations)
            if judge(registered, record, node_uid, self._us.peer_name) is Verdict.DROP:
                raise ReclaimedError(
                    f"node {self._us.node_name} was removed from the cluster and has come back; its addresses have "
                    "been taken over by other peers: starting afresh"
                )
            facts = Facts(
                self._us,
                present,
                gone,
                behind_lock,
                taken,
                has_ring=self._mesh.has_ring(),
                is_alive=self._mesh.is_alive,
            )
            match next_step(record, facts):
                case Settled() as settled:
                    return settled
                case Write(annotations, why):
                    await self._write(reading, annotations, why)
                case Confirm(peer, has_lock):
                    if not await self._is_absent(peer.node_name):
                        present.add(peer.node_name)
                    elif has_lock:
                        behind_lock.add(peer.peer_name)
                    else:
                        gone.add(peer.node_name)
                case TakeOver(peer):
                    count = await self._mesh.take_over(peer.peer_name)
                    taken.add(peer.peer_name)
                    self.reclaimed += 1
                    self._log.info(
                        "Reclaimed %d addresses of %s: node %s is gone", count, peer.peer_name, peer.node_name
                    )
        raise KubeAnswerError(f"reclaiming is not done after {STEPS_MAX} steps; trying again later")

    async def _write(self, reading: Reading, annotations: Annotations, why: str) -> None:
        try:
            await self._record.write(reading, annotations)
            self._log.info("Peer list: %s", why)
        except KubeStatusError as error:
            if error.code != CONFLICT:
                raise
            # Somebody else was faster; perhaps with the same. Read again, but not all in step.
            await self._pause(CONFLICT_PAUSE_S * (1 + self._entropy.fraction()))

    async def _is_absent(self, node_name: str) -> bool:
        try:
            await get_node(self._client, node_name)
        except KubeStatusError as error:
            if error.says_absent:
                return True
            raise
        return False


async def current_verdict(client: KubeClient, peers: PeerRecord, registered: Registered, us: ListedPeer) -> Verdict:
    """Ask the API what has become of us. Raises KubeError."""
    try:
        record = read_record((await peers.read()).annotations)
    except KubeStatusError as error:
        if not error.says_absent:
            raise
        record = Record((), {})
    try:
        node_uid: str | None = (await get_node(client, us.node_name)).metadata.uid
    except KubeStatusError as error:
        if not error.says_absent:
            raise
        node_uid = None
    return judge(registered, record, node_uid, us.peer_name)
