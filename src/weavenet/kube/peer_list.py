"""The shared record of which peer lives on which node, and who is removing whom: Weave's, in its own words.

A ConfigMap holds it in annotations. One lists the peers; for each peer that is being removed there is another with the
name of the peer that does it: a lock. All changes are made to the version that was read, so of two peers that try at
once one gets a conflict, reads again, and sees what the other did.

    kube-peers.weave.works/peers             {"Peers":[{"PeerName":"7a:..","NodeName":"node-1"}, ...]}
    kube-peers.weave.works/7a_.._01          the peer that removes 7a:..:01

`next_step` decides, from one reading, what to do next; whoever performs it reads again and asks again, until `Settled`.
For a peer whose node is gone, each step is written before the next, so that any peer can go on from any point:

    is its node really gone? ─▶ lock ─▶ is it still gone? ─▶ take its addresses over ─▶ remove it and its locks

Weave asks once, before the lock. A node that comes back right then goes on with addresses that are being taken over.
With a second look behind the lock, and an agent that looks for a lock on itself before it starts (agent/reclaim.py),
one of the two sees the other: the node is there before its agent looks, the lock before the second look. Weave also
takes over from a peer that is alive and has merely lost its node object; we wait until the mesh no longer reaches it.

What is not of this form is left alone: an annotation that does not decode is never overwritten.
Source: Weave prog/kube-utils/peerlist.go, main.go.
"""

import re
from collections.abc import Callable, Collection, Mapping

import msgspec

from weavenet.errors import KubeAnswerError, KubeStatusError, PeerNameError
from weavenet.identity import format_peer_name, parse_peer_name
from weavenet.kube.client import KubeClient
from weavenet.kube.http import Request
from weavenet.resources import ConfigMap

CONFIG_MAP = "weave-net"
PREFIX = "kube-peers.weave.works/"
PEERS_KEY = f"{PREFIX}peers"

Annotations = Mapping[str, str]


class ListedPeer(msgspec.Struct, frozen=True, rename="pascal", order=True):
    """A peer and the node it lives on."""

    peer_name: str
    node_name: str


class _PeerList(msgspec.Struct, rename="pascal"):
    peers: list[ListedPeer] | None = None


class Record(msgspec.Struct, frozen=True):
    """One reading of the record."""

    peers: tuple[ListedPeer, ...]
    annotations: Annotations

    def lists(self, peer_name: str) -> bool:
        """Say whether a peer is listed, on whatever node."""
        return any(each.peer_name == peer_name for each in self.peers)

    def remover_of(self, peer_name: str) -> str | None:
        """Return who is removing a peer."""
        return self.annotations.get(lock_key(peer_name))


class Facts(msgspec.Struct, frozen=True):
    """What else the decision needs. The nodes may be a little out of date; what is confirmed is not."""

    us: ListedPeer
    nodes: Collection[str]
    confirmed_gone: Collection[str]  # nodes that the API has just said do not exist
    locked_and_gone: Collection[str]  # the same, asked again while we had the lock of this peer
    taken_over: Collection[str]  # peers whose addresses we have taken over already
    has_ring: bool  # without one nothing can be taken over, and a peer that is removed then is never taken over
    is_alive: Callable[[str], bool]  # whether the mesh reaches a peer


class Write(msgspec.Struct, frozen=True):
    """Replace the annotations, if nobody else has written meanwhile."""

    annotations: Annotations
    why: str


class Confirm(msgspec.Struct, frozen=True):
    """Ask the API whether a node exists; behind the lock if we have it."""

    peer: ListedPeer
    has_lock: bool


class TakeOver(msgspec.Struct, frozen=True):
    """Make the addresses of a peer ours."""

    peer: ListedPeer


class Settled(msgspec.Struct, frozen=True):
    """Nothing to do now. Those that wait are to be looked at again: peer name, and why."""

    waiting: tuple[tuple[str, str], ...]


Step = Write | Confirm | TakeOver | Settled


def lock_key(peer_name: str) -> str:
    """Return the annotation that locks a peer: its name with what an annotation's may not hold replaced."""
    return PREFIX + re.sub(r"[^A-Za-z0-9\-_./]", "_", peer_name)


def read_record(annotations: Annotations) -> Record:
    """Read the record; no annotation is an empty list. Raises KubeAnswerError if there is one that does not decode."""
    text = annotations.get(PEERS_KEY)
    if not text:
        return Record((), annotations)
    try:
        peers = msgspec.json.decode(text, type=_PeerList).peers or []
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise KubeAnswerError(
            f"annotation {PEERS_KEY} of ConfigMap {CONFIG_MAP} does not decode: {error}; it stays as it is, and no "
            "departed peer's addresses are reclaimed until somebody mends or removes it"
        ) from error
    return Record(tuple(peers), annotations)


def next_step(record: Record, facts: Facts) -> Step:
    """Decide what to do next about the peers of this reading."""
    us = facts.us
    if us not in record.peers:
        others = [each for each in record.peers if each.peer_name != us.peer_name]
        return Write(_with_peers(record, [*others, us]), f"register {us.peer_name} of node {us.node_name}")
    present = {each.peer_name for each in record.peers if each.node_name in facts.nodes} | {us.peer_name}
    waiting: list[tuple[str, str]] = []
    for peer in sorted(record.peers):
        # Our node has one peer, and that is us: another name is what we were called before.
        is_former_self = peer.node_name == us.node_name and peer.peer_name != us.peer_name
        if peer.peer_name in present and not is_former_self:
            if record.remover_of(peer.peer_name) == us.peer_name and peer != us:
                return Write(_without_lock(record, peer), f"leave {peer.peer_name} alone: its node is back")
            continue
        step = _next_for(peer, record, facts, is_confirmed=is_former_self)
        if not isinstance(step, str):
            return step
        waiting.append((peer.peer_name, step))
    return Settled(tuple(waiting))


def _next_for(peer: ListedPeer, record: Record, facts: Facts, *, is_confirmed: bool) -> Step | str:
    """Return the next step for a peer that seems gone, or why there is none now."""
    remover = record.remover_of(peer.peer_name)
    is_ours = remover == facts.us.peer_name
    if is_ours and peer.peer_name in facts.taken_over:
        return Write(_without_peer(record, peer), f"remove {peer.peer_name} of node {peer.node_name}")
    if not _is_peer_name(peer.peer_name):
        return "is no peer name"
    if facts.is_alive(peer.peer_name):
        why = f"node {peer.node_name} is gone, but the peer is alive"
        return Write(_without_lock(record, peer), f"leave {peer.peer_name} alone: {why}") if is_ours else why
    if not facts.has_ring:
        return "there is no ring yet to take its addresses over in"
    if is_ours:
        if is_confirmed or peer.peer_name in facts.locked_and_gone:
            return TakeOver(peer)
        return Confirm(peer, has_lock=True)
    if remover is not None and record.lists(remover):
        return f"being reclaimed by {remover}"
    if not is_confirmed and peer.node_name not in facts.confirmed_gone:
        return Confirm(peer, has_lock=False)
    locked = {**record.annotations, lock_key(peer.peer_name): facts.us.peer_name}
    return Write(locked, f"lock {peer.peer_name} of node {peer.node_name}")


def _is_peer_name(text: str) -> bool:
    try:
        return format_peer_name(parse_peer_name(text)) == text.lower()
    except PeerNameError:
        return False


def _with_peers(record: Record, peers: list[ListedPeer]) -> dict[str, str]:
    text = msgspec.json.encode(_PeerList(peers)).decode()
    return {**record.annotations, PEERS_KEY: text}


def _without_lock(record: Record, peer: ListedPeer) -> dict[str, str]:
    key = lock_key(peer.peer_name)
    return {name: value for name, value in record.annotations.items() if name != key}


def _without_peer(record: Record, peer: ListedPeer) -> dict[str, str]:
    """Remove a peer, its lock, and the locks it held: whoever it was removing, another may now do that."""
    key, left = lock_key(peer.peer_name), [each for each in record.peers if each.peer_name != peer.peer_name]
    kept = {
        name: value
        for name, value in _with_peers(record, left).items()
        if name != key and not (name.startswith(PREFIX) and value == peer.peer_name)
    }
    kept[PEERS_KEY] = _with_peers(record, left)[PEERS_KEY]
    return kept


# --- the calls --------------------------------------------------------------------------------------------------------


class Reading(msgspec.Struct, frozen=True):
    """The ConfigMap as it was read: what of it we understand, and all of it for writing it back."""

    uid: str
    annotations: Annotations
    raw: Mapping[str, msgspec.Raw]
    raw_metadata: Mapping[str, msgspec.Raw]


class PeerRecord:
    """The ConfigMap in the API."""

    def __init__(self, client: KubeClient, namespace: str) -> None:
        """Say where it is."""
        self._client = client
        self._path = f"/api/v1/namespaces/{namespace}/configmaps"

    async def read(self) -> Reading:
        """Read it. Raises KubeError; KubeStatusError with 404 if there is none."""
        return _decode(await self._client.send(Request("GET", f"{self._path}/{CONFIG_MAP}")))

    async def read_or_create(self) -> Reading:
        """Read it, and make an empty one if there is none. Raises KubeError."""
        try:
            return await self.read()
        except KubeStatusError as error:
            if not error.says_absent:
                raise
        new = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": CONFIG_MAP}}
        try:
            return _decode(await self._client.send(Request("POST", self._path, msgspec.json.encode(new))))
        except KubeStatusError as error:
            if error.reason != "AlreadyExists":
                raise
        return await self.read()

    async def write(self, reading: Reading, annotations: Annotations) -> None:
        """Write it back with other annotations, if it is still as it was read. Raises KubeError; 409 if it is not."""
        body = encode_update(reading, annotations)
        await self._client.send(Request("PUT", f"{self._path}/{CONFIG_MAP}", body))


def encode_update(reading: Reading, annotations: Annotations) -> bytes:
    """Write all that was read, fields that we know nothing of included, with other annotations.

    The resourceVersion among them is what makes the server refuse it if somebody else wrote meanwhile.
    """
    metadata = {
        **reading.raw_metadata,
        "annotations": msgspec.Raw(msgspec.json.encode(dict(sorted(annotations.items())))),
    }
    return msgspec.json.encode({**reading.raw, "metadata": msgspec.Raw(msgspec.json.encode(metadata))})


def _decode(body: bytes) -> Reading:
    try:
        understood = msgspec.json.decode(body, type=ConfigMap)
        raw = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(raw["metadata"], type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise KubeAnswerError(f"ConfigMap {CONFIG_MAP} does not decode: {error}") from error
    if not understood.metadata.resource_version:
        raise KubeAnswerError(
            f"ConfigMap {CONFIG_MAP} has no resourceVersion; without it nothing can be written safely"
        )
    return Reading(understood.metadata.uid, understood.metadata.annotations or {}, raw, metadata)
