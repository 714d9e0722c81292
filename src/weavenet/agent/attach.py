"""The CNI verbs as flows that read top to bottom. What one attachment takes is in connect.py; here is which, and when.

A call is for one attachment. The pod that it is of may have asked, by annotation, for more networks (networks.py):
those are made by the ADD of its first interface, after it, and go with its DEL, before it. All are made, or none.

One attachment is worked on by one call at a time. Runtimes promise that, but a killed call may still be undoing when
the DEL that follows it comes. Retried calls are answered as the first time: an ADD whose answer was lost finds its
address and its interface and returns them, as Weave did; a DEL of what is gone succeeds.
"""

import asyncio
import logging
import weakref
from typing import assert_never

from msgspec.structs import replace

from weavenet.agent.checks import reservation_problems
from weavenet.agent.connect import FIRST_INTERFACE, Attached, Connector, Place, owner_of, result_of
from weavenet.agent.hostports import NoHostPorts, PortService
from weavenet.agent.networks import NoNetworks, PodNetworks
from weavenet.agent.pod_addresses import PodAddresses
from weavenet.agent.pod_services import PodNetwork, to_the_end
from weavenet.cni.codes import Code
from weavenet.cni.config import NetworkConfig
from weavenet.cni.request import (
    Add,
    Attachment,
    Check,
    CniCall,
    Del,
    Gc,
    Plugin,
    Status,
    Version,
)
from weavenet.cni.result import AssignedAddress, Result, encode_result, encode_versions
from weavenet.errors import CniError, IpamError, KernelError


class CniVerbs:
    """Answers CNI calls: the handler of drivers/cni.py."""

    def __init__(
        self,
        addresses: PodAddresses,
        pods: PodNetwork,
        log: logging.Logger,
        *,
        bridge: str,
        mtu_bytes: int,
        ports: PortService | None = None,
        networks: PodNetworks | None = None,
    ) -> None:
        """Serve one bridge, and others that are there; `mtu_bytes` is what pods get on it unless told otherwise."""
        self._addresses = addresses
        self._pods = pods
        self._log = log
        self._bridge = bridge
        self._networks = networks or NoNetworks()
        place = Place(bridge, is_ours=True, mtu_bytes=mtu_bytes)
        self._connector = Connector(addresses, pods, ports or NoHostPorts(), log, place)
        # One lock per attachment that is being worked on; it is forgotten with the last call that holds on to it.
        self._locks: weakref.WeakValueDictionary[tuple[str, str], asyncio.Lock] = weakref.WeakValueDictionary()

    async def handle(self, call: CniCall) -> bytes:
        """Do what is asked and return what goes to stdout. Raises CniError."""
        try:
            if isinstance(call, Status | Gc | Version):
                return await self._handle_for_network(call)
            async with self._lock_of(call.attachment):
                return await self._handle_for_attachment(call)
        except IpamError as error:
            raise CniError(Code.NO_ADDRESS, str(error)) from error
        except KernelError as error:
            raise CniError(Code.KERNEL_REFUSED, str(error)) from error

    async def _handle_for_attachment(self, call: Add | Del | Check) -> bytes:
        match call:
            case Add(plugin=Plugin.NET):
                return await self._add(call)
            case Add():
                return await self._add_address(call)
            case Del():
                await self._del(call)
            case Check():
                await self._check(call)
            case _:
                assert_never(call)
        return b""

    async def _handle_for_network(self, call: Status | Gc | Version) -> bytes:
        match call:
            case Status():
                await self._status(call)
            case Gc():
                await self._collect(call)
            case Version():
                return encode_versions()
            case _:
                assert_never(call)
        return b""

    def _lock_of(self, attachment: Attachment) -> asyncio.Lock:
        # A container has one interface of a name, whatever network it is in.
        return self._locks.setdefault((attachment.container_id, attachment.interface), asyncio.Lock())

    # --- ADD ----------------------------------------------------------------------------------------------------------

    async def _add(self, call: Add) -> bytes:
        wanted = [call, *await self._asked_for(call)]
        attached: list[Attached] = []
        try:
            for one in wanted:
                attached.append(await self._connector.connect(one))  # noqa: PERF401 - what is done is to be undone
        except BaseException:
            for done in reversed(attached):
                await self._connector.undo(done.call.attachment, detach=done.is_new, release=done.is_reserved)
            raise
        return encode_result(result_of(attached), call.version, call.previous)

    async def _asked_for(self, call: Add) -> list[Add]:
        """Return the ADDs of networks that the pod asks for beside its first. Raises CniError."""
        if not self._is_first(call.attachment, call.config):
            return []
        return [
            replace(call, attachment=_beside(call.attachment, one.interface, one.config.network), config=one.config)
            for one in await self._networks.asked_for(call.pod)
        ]

    def _is_first(self, attachment: Attachment, config: NetworkConfig) -> bool:
        # A second network, such as Multus asks for, comes with the same pod's name.
        return attachment.interface == FIRST_INTERFACE and config.bridge == self._bridge

    async def _add_address(self, call: Add) -> bytes:
        address = await self._connector.reserve(call)
        self._log.info("ADD %s for %s: %s, for another plugin to use", call.attachment.ident, call.pod, address)
        ipam = call.config.ipam
        return encode_result(Result((AssignedAddress(address, ipam.gateway),), routes=ipam.routes), call.version)

    # --- DEL ----------------------------------------------------------------------------------------------------------

    async def _del(self, call: Del) -> None:
        attachment = call.attachment
        if call.complaint:
            self._log.warning("DEL %s with a bad configuration: %s", attachment.ident, call.complaint)
        # Never into the host's own namespace, where CNI_IFNAME may well be the host's uplink.
        netns = None if call.sandbox.is_hosts_own else call.sandbox.descriptor
        if call.plugin is Plugin.NET:
            for beside in reversed(await self._made_with(attachment)):
                await self._connector.disconnect(beside, None)  # only what carries our alias
                self._log.info("DEL %s", beside.ident)
            freed = await self._connector.disconnect(attachment, netns)
        else:
            freed = await to_the_end(self._addresses.release(attachment.ident))
        # An earlier Weave Net on this node has reserved under the bare container ID, and freed at any DEL.
        freed = freed or await to_the_end(self._addresses.release(attachment.container_id))
        self._log.info("DEL %s%s", attachment.ident, "" if freed else ": no addresses")

    async def _made_with(self, attachment: Attachment) -> list[Attachment]:
        """Return what the ADD of this attachment made beside it."""
        owned = [Attachment.from_ident(ident) for ident in await self._addresses.owned()]
        return sorted(
            one
            for one in owned
            if one is not None and (one.container_id, one.main) == (attachment.container_id, attachment.interface)
        )

    # --- CHECK, STATUS ------------------------------------------------------------------------------------------------

    async def _check(self, call: Check) -> None:
        problems = await self._check_one(call)
        if call.plugin is Plugin.NET:
            for beside in await self._made_with(call.attachment):
                config = self._networks.find(beside.network)
                if config is not None:  # else nobody knows any more how it should be
                    problems += await self._check_one(replace(call, attachment=beside, config=config))
        if problems:
            raise CniError(Code.NOT_AS_ADDED, problems[0], "; ".join(problems[1:]))

    async def _check_one(self, call: Check) -> list[str]:
        held = await self._addresses.lookup(call.attachment.ident)
        problems = reservation_problems(call, held)
        if call.plugin is Plugin.NET:
            problems += await self._connector.problems(call, held)
        return problems

    async def _status(self, call: Status) -> None:
        if call.plugin is Plugin.NET:
            await self._connector.find_place(call.config)
        refusal = await self._addresses.refusal(call.config.ipam)
        if refusal is not None:
            raise CniError(Code.NOT_AVAILABLE, f"unable to allocate IP address: {refusal.reason}")

    # --- GC -----------------------------------------------------------------------------------------------------------

    async def _collect(self, call: Gc) -> None:
        """Free what the network's attachments hold that are neither valid nor being worked on; go on at failures."""
        held = [Attachment.from_ident(ident) for ident in await self._addresses.owned()]
        reserved = {attachment for attachment in held if attachment is not None}
        # What was made beside a pod's first interface is not in the runtime's books; it goes with that one.
        beside = {attachment for attachment in reserved if attachment.main}
        found = {attachment for attachment in reserved - beside if attachment.network == call.network}
        if call.plugin is Plugin.NET:
            # A port does not say which network it is in, so what is reserved in another one is that one's.
            elsewhere = {owner_of(other) for other in reserved - found}
            ports = {(port.container_id, port.ifname) for port in await self._pods.list_ports()}
            found |= {Attachment(*port, call.network) for port in ports - elsewhere}
            mains = {owner_of(attachment) for attachment in (reserved - beside) | call.valid}
            found |= {one for one in beside if (one.container_id, one.main) not in mains}
        failures: list[str] = []
        for attachment in sorted(found - call.valid):
            if owner_of(attachment) in self._locks:
                continue
            try:
                async with self._lock_of(attachment):
                    await to_the_end(self._free(attachment, call.plugin))
            except (IpamError, KernelError) as error:
                failures.append(f"cannot free {attachment.ident}: {error}")
        if failures:
            raise CniError(Code.CLEAN_UP_INCOMPLETE, failures[0], "; ".join(failures[1:]))

    async def _free(self, attachment: Attachment, plugin: Plugin) -> None:
        if plugin is Plugin.NET:
            for beside in reversed(await self._made_with(attachment)):
                await self._connector.disconnect(beside, None)
            await self._connector.disconnect(attachment, None)
        else:
            await self._addresses.release(attachment.ident)
        self._log.info("GC freed %s", attachment.ident)


def _beside(main: Attachment, interface: str, network: str) -> Attachment:
    return Attachment(main.container_id, interface, network, main.interface)
