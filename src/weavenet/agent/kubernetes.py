"""The agent's part in a Kubernetes cluster, as tasks beside the rest: none of them can stop the mesh or the addresses.

    nodes       the other nodes are our peers; how many there are tells what a majority is
    reclaim     departed nodes' addresses are taken over, by one of us
    condition   the node is told that it has a network
    daemonset   what runs us: deleted means uninstall

With no API the agent goes on with what it knows. Two things are worth waiting for: the number of peers, before the
first ring is elected (everything else runs meanwhile, and a ring that others have is learnt); and, for a moment, the
word whether a ring from before is still ours. This module is imported only where there is a cluster.
"""

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from contextlib import aclosing
from datetime import UTC, datetime

import msgspec

from weavenet.address import Endpoint, parse_address
from weavenet.agent.config import AgentConfig, KubeOptions
from weavenet.agent.loop import NodeLoop
from weavenet.agent.neighbours import ConnectTo, Departed, Neighbours
from weavenet.agent.reclaim import (
    KEY_REGISTERED,
    Reclaimer,
    Registered,
    Verdict,
    current_verdict,
    decode_registered,
)
from weavenet.agent.uninstall import NoAnswer, UninstallIntent
from weavenet.cni.codes import Code
from weavenet.cni.request import Pod
from weavenet.drivers.clock import SystemEntropy, read_clock
from weavenet.effects import Persist, PutValue, TookOver
from weavenet.errors import CniError, IpamError, KubeError, KubeStatusError
from weavenet.identity import PeerName, format_peer_name, parse_peer_name
from weavenet.ipam.modes import Consensus, InitMode, Uncounted
from weavenet.ipam.restore import KEY_RING, StoredState
from weavenet.kube.access import AccessFlags, find_access, in_pod_environment, pod_namespace
from weavenet.kube.backoff import Backoff
from weavenet.kube.client import KubeClient
from weavenet.kube.daemonset import daemonset_resource, get_daemonset
from weavenet.kube.follow import Resource
from weavenet.kube.node_status import NODES_PATH, say_network_is_there
from weavenet.kube.peer_list import ListedPeer, PeerRecord, Settled
from weavenet.kube.pods import get_pod_metadata
from weavenet.mesh.connector import Target
from weavenet.node import inputs as i
from weavenet.node import report as r
from weavenet.resources import Node

RECORD_NAMESPACE = "kube-system"  # Weave's, wherever the agents run
DEPARTURE_PAUSE_S = 5.0  # Weave's: up to this long, so that not all nodes do it at once
RECLAIM_AGAIN_S = 30.0  # while a departed peer waits for something; then less and less often
RECLAIM_AGAIN_MAX_S = 300.0
FIRST_ANSWER_S = 2.0  # for whether a ring from before is ours; pods are waiting, and the word may come later, too
BEING_REMOVED_S = 300.0
BEING_REMOVED_POLL_S = 2.0
LAST_QUESTION_S = 3.0  # a pod has 30 s to end
TAKE_OVER_S = 30.0


def init_mode(mode: InitMode, peers: tuple[str, ...]) -> InitMode:
    """Return how the first ring comes about in a cluster if nobody said: among the peers that were named, or counted.

    Weave (prog/weave-kube/launch.sh) does not count itself, so that of an even number of nodes two halves could each
    elect a ring. We do: a majority is then one of all. A larger quorum than another peer's is always safe.
    """
    if mode != Consensus(None):
        return mode
    return Consensus(len(peers) + 1) if peers else Uncounted()


def _try_again(pod: Pod, why: str) -> CniError:
    return CniError(Code.TRY_AGAIN_LATER, f"cannot find out which networks pod {pod} asks for: {why}")


class _NodeMesh(msgspec.Struct):
    """What reclaiming asks, answered by the node."""

    loop: NodeLoop

    def has_ring(self) -> bool:
        ipam = self.loop.node.ipam
        return ipam is not None and not ipam.ring.is_empty

    def is_alive(self, peer_name: str) -> bool:
        return self.loop.node.mesh.can_reach(parse_peer_name(peer_name))

    async def take_over(self, peer_name: str) -> int:
        outcome = await self.loop.request(lambda number: i.TakeOver(number, peer_name), TAKE_OVER_S)
        if not isinstance(outcome, TookOver):
            raise IpamError(f"cannot take over the addresses of {peer_name}: {outcome}")
        return outcome.count


class KubernetesPart:
    """One agent's dealings with the API."""

    def __init__(self, config: AgentConfig, options: KubeOptions, name: PeerName, log: logging.Logger) -> None:
        """Find the API server. Raises ConfigError if none is named anywhere."""
        flags = AccessFlags(options.api_url, options.token_file, options.ca_file)
        self._log = log
        self._entropy = SystemEntropy()
        self._client = KubeClient(find_access(flags, in_pod_environment()), self._entropy, read_clock, log)
        self._us = ListedPeer(format_peer_name(name), options.node)
        self._record = PeerRecord(self._client, RECORD_NAMESPACE)
        self._daemonset = daemonset_resource(pod_namespace(RECORD_NAMESPACE), options.daemonset)
        self._peers = config.peers
        self._connects = not config.peers  # peers that were named are used, and the API's are not
        self._counts = config.ipam is not None and init_mode(config.ipam.mode, config.peers) == Uncounted()
        self._has_ipam = config.ipam is not None
        self._neighbours = Neighbours(options.node)
        self._departed = asyncio.Event()
        self._intent = UninstallIntent()
        self._registered: Registered | None = None
        self._reclaimer: Reclaimer | None = None
        self._settled: Settled | None = None
        self._condition = "not told yet"
        self._again_s = RECLAIM_AGAIN_S
        self._loop: NodeLoop | None = None

    async def read_annotations(self, pod: Pod) -> Mapping[str, str]:
        """Return a pod's annotations, from the API. Raises CniError."""
        try:
            found = await get_pod_metadata(self._client, pod.namespace, pod.name)
        except KubeStatusError as error:
            if not error.says_absent:
                raise _try_again(pod, str(error)) from error
            message = f"there is no pod {pod} any more"
            raise CniError(Code.UNKNOWN_CONTAINER, message, "It was deleted before its network was made.") from error
        except KubeError as error:
            raise _try_again(pod, str(error)) from error
        if pod.uid and found.uid != pod.uid:
            raise _try_again(pod, f"the API has another pod of that name, {found.uid}, and not {pod.uid}")
        return found.annotations or {}

    # --- before the node starts ---------------------------------------------------------------------------------------

    async def is_reclaimed(self, stored: StoredState) -> bool:
        """Say whether the addresses of this ring have become others': then it must not be used any more."""
        if KEY_RING not in stored.values:
            return False  # whatever was stored of us, there is nothing to lose
        self._registered = decode_registered(stored.values.get(KEY_REGISTERED))
        if self._registered is None:
            return False
        verdict, limit_s = Verdict.WAIT, FIRST_ANSWER_S
        started_s = asyncio.get_running_loop().time()
        while verdict is Verdict.WAIT and asyncio.get_running_loop().time() < started_s + limit_s:
            try:
                async with asyncio.timeout(FIRST_ANSWER_S):
                    verdict = await current_verdict(self._client, self._record, self._registered, self._us)
            except (TimeoutError, KubeError) as error:
                self._log.debug("Cannot ask yet whether our addresses are still ours: %s", error)
            else:
                if verdict is Verdict.WAIT and limit_s == FIRST_ANSWER_S:
                    self._log.info("Another peer is taking over our addresses; waiting until it is done")
                    limit_s = BEING_REMOVED_S
            if verdict is Verdict.WAIT:
                await asyncio.sleep(min(BEING_REMOVED_POLL_S, limit_s / 10))
        if verdict is Verdict.DROP:
            self._log.warning("Peer not in list; removing persisted data")
            self._registered = None
        elif verdict is Verdict.WAIT:
            self._log.warning("Going on with the stored ring, without the API's word that it is still ours")
        return verdict is Verdict.DROP

    def init_mode(self, mode: InitMode) -> InitMode:
        """Return how the first ring comes about."""
        return init_mode(mode, self._peers)

    # --- while the node runs ------------------------------------------------------------------------------------------

    def join(self, loop: NodeLoop) -> None:
        """Take the node that all this is for."""
        self._loop = loop
        self._reclaimer = Reclaimer(self._client, self._record, self._us, _NodeMesh(loop), self._entropy, self._log)
        if self._counts and not _NodeMesh(loop).has_ring():
            self._log.info(
                "Waiting for the Kubernetes API at %s to tell how many peers there are, before a first ring is elected",
                self._client.access.url,
            )

    def works(self) -> list[Coroutine[None, None, None]]:
        """Return the tasks, for when the node runs and CNI is served."""
        return [self._follow_nodes(), self._keep_reclaiming(), self._tell_condition(), self._follow_daemonset()]

    async def _follow_nodes(self) -> None:
        """Keep the mesh's peers those of the cluster."""
        async with aclosing(self._client.follow(Resource(NODES_PATH, Node))) as stream:
            async for told in stream:
                was_known = self._neighbours.is_known
                for action in self._neighbours.hear(told):
                    match action:
                        case ConnectTo():
                            self._connect(action)
                        case Departed():
                            self._departed.set()
                if self._neighbours.is_known and not was_known and self._counts:
                    count = len(self._neighbours.addresses)
                    self._log.info("The cluster has %d other nodes", count)
                    self._node_loop.feed(i.CountPeers(count + 1))

    async def _keep_reclaiming(self) -> None:
        """Take over what departed peers leave behind, and then tell the mesh who is left. Raises ReclaimedError."""
        backoff = Backoff(self._entropy)
        await self._departed.wait()  # the first list says so, too
        while True:
            self._departed.clear()
            wait_s: float | None = None
            if self._has_ipam:
                try:
                    wait_s = await self._reclaim()
                    backoff.reset()
                except (KubeError, IpamError, TimeoutError) as error:
                    wait_s = backoff.next_s()
                    self._log.warning("Cannot reclaim the addresses of departed peers: %s", error)
            left = self._neighbours.after_departure()
            if left is not None:
                self._connect(left)
            try:
                async with asyncio.timeout(wait_s):
                    await self._departed.wait()
                self._again_s = RECLAIM_AGAIN_S
                await asyncio.sleep(self._entropy.fraction() * DEPARTURE_PAUSE_S)
            except TimeoutError:
                continue

    async def _tell_condition(self) -> None:
        """Tell our node that it has a network, until it has been told."""
        backoff = Backoff(self._entropy)
        while True:
            try:
                was_needed = await say_network_is_there(self._client, self._us.node_name, read_clock().wall_s)
            except KubeError as error:
                self._condition = str(error)
                await asyncio.sleep(backoff.next_s(getattr(error, "retry_after_s", None)))
            else:
                self._condition = "told" if was_needed else "was so already"
                return

    async def _follow_daemonset(self) -> None:
        """Learn whether we are being uninstalled."""
        async with aclosing(self._client.follow(self._daemonset)) as stream:
            async for told in stream:
                before = self._intent.is_wanted
                self._intent.hear(told)
                if self._intent.is_wanted is not before:
                    self._log.info(
                        "Our DaemonSet %s",
                        "has been deleted: to be uninstalled" if self._intent.is_wanted else "is there again: to stay",
                    )

    # --- the end ------------------------------------------------------------------------------------------------------

    def uninstall_wanted(self) -> bool:
        """Say whether, as far as we have heard, we are being uninstalled."""
        return self._intent.is_wanted

    async def is_uninstalled(self) -> bool:
        """Ask once more, now that we are told to stop, and say whether to remove everything."""
        if not self._intent.was_seen:
            return False
        try:
            async with asyncio.timeout(LAST_QUESTION_S):
                answer = await get_daemonset(self._client, self._daemonset)
        except KubeStatusError as error:
            return self._intent.decide(NoAnswer.ABSENT if error.says_absent else NoAnswer.NONE)
        except (TimeoutError, KubeError):
            return self._intent.decide(NoAnswer.NONE)
        return self._intent.decide(answer)

    # --- what there is to say -----------------------------------------------------------------------------------------

    def report(self) -> r.Kubernetes:
        """Describe all of it."""
        health = self._client.health
        since = "" if health.is_reachable is None else datetime.fromtimestamp(health.since_wall_s, UTC).isoformat()
        waiting = () if self._settled is None else self._settled.waiting
        return r.Kubernetes(
            server=self._client.access.url,
            reachable=health.is_reachable,
            since=since.replace("+00:00", "Z"),
            last_error=health.last_error,
            nodes=len(self._neighbours.names),
            peers=r.listed(self._neighbours.addresses),
            awaiting_count=self._counts and not self._neighbours.is_known,
            registered=self._settled is not None,
            reclaimed=0 if self._reclaimer is None else self._reclaimer.reclaimed,
            reclaim=r.listed(f"{peer}: {why}" for peer, why in waiting),
            network_condition=self._condition,
            uninstall_wanted=self._intent.is_wanted,
        )

    # --- parts --------------------------------------------------------------------------------------------------------

    @property
    def _node_loop(self) -> NodeLoop:
        assert self._loop is not None, "join comes before the tasks"
        return self._loop

    def _connect(self, wanted: ConnectTo) -> None:
        if not self._connects:
            return
        self._log.info("Peers by the Kubernetes API%s: %s", "" if wanted.replace else ", new", list(wanted.addresses))
        targets = tuple(Target(text, Endpoint(parse_address(text), 0)) for text in wanted.addresses)
        self._node_loop.feed(i.Connect(targets, replace=wanted.replace))

    async def _reclaim(self) -> float | None:
        """Do one round; return after how many seconds to do another, None: when a node departs."""
        assert self._reclaimer is not None
        node_uid = self._neighbours.our_uid
        self._settled = await self._reclaimer.round(self._neighbours.names, self._registered, node_uid)
        again_s = self._again_s * (0.5 + self._entropy.fraction())
        self._again_s = min(self._again_s * 1.5, RECLAIM_AGAIN_MAX_S)
        if node_uid is None:
            return again_s  # our node is not there yet, or no longer: what we are registered as comes later
        registered = Registered(self._us.peer_name, self._us.node_name, node_uid)
        if registered != self._registered:
            self._registered = registered
            self._node_loop.take([Persist((PutValue(KEY_REGISTERED, registered.encode()),))])
        return again_s if self._settled.waiting else None
