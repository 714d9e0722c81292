"""Which ports of this host lead to which pods: asked for at ADD, kept on disk, given up at DEL.

The rules themselves are in the kernel and outlive the agent; the disk is for the day on which somebody flushes them
while no agent runs. One value holds them all, written anew at each change: a node has a few dozen. What is stored for a
pod whose interface is gone, after a reboot say, or when a namespace vanished without a DEL, counts for nothing: it is
dropped at start, and when a new pod wants that port.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Protocol as Interface

import msgspec

from weavenet.address import Address, Cidr, Endpoint
from weavenet.cni.codes import Code
from weavenet.cni.runtime import HostPort
from weavenet.dataplane.nft import PortMapping, Protocol
from weavenet.effects import PutValue
from weavenet.errors import CniError

KEY_HOST_PORTS = "hostports"

Owner = tuple[str, str]  # container id and interface


class PortService(Interface):
    """Who leads ports of the host to pods."""

    async def publish(self, owner: Owner, mappings: tuple[PortMapping, ...]) -> None:
        """Have these and no others. Raises CniError for a port that another pod has, KernelError."""
        ...

    async def withdraw(self, owner: Owner) -> bool:
        """Give up what an owner has; False for nothing. Raises KernelError."""
        ...

    async def missing(self, owner: Owner, mappings: tuple[PortMapping, ...]) -> tuple[PortMapping, ...]:
        """Return those that do not lead there. Raises KernelError."""
        ...


class NoHostPorts:
    """Leads none."""

    async def publish(self, owner: Owner, mappings: tuple[PortMapping, ...]) -> None:
        """Refuse."""
        raise CniError(Code.UNSUPPORTED_FIELD, f"no host ports are served here: {mappings[0].host} for {owner[0]}")

    async def withdraw(self, owner: Owner) -> bool:
        """Find nothing."""
        del owner
        return False

    async def missing(self, owner: Owner, mappings: tuple[PortMapping, ...]) -> tuple[PortMapping, ...]:
        """Miss them all."""
        del owner
        return mappings


def port_mappings(ports: Iterable[HostPort], address: Cidr) -> tuple[PortMapping, ...]:
    """Return what leads to a pod at this address. Raises CniError if two want the same port."""
    found: list[PortMapping] = []
    for port in ports:
        target = Endpoint(address.address, port.container_port)
        mapping = PortMapping(Protocol(port.protocol), port.host_port, target, port.host_address)
        other = next((other for other in found if other.conflicts(mapping)), None)
        if other is not None:
            raise CniError(Code.INVALID_CONFIG, f"host port {mapping.host} is asked for twice: {other} and {mapping}")
        found.append(mapping)
    return tuple(found)


class HostPorts:
    """The host ports of one node."""

    def __init__(
        self,
        settle: Callable[[], Awaitable[None]],
        store: Callable[[PutValue], Awaitable[None]],
        connected: Callable[[], Awaitable[Collection[Owner]]],
        log: logging.Logger,
    ) -> None:
        """`settle` has the kernel do as `mappings` says, `connected` tells which pods are there."""
        self._settle = settle
        self._store = store
        self._connected = connected
        self._log = log
        self._published: dict[Owner, tuple[PortMapping, ...]] = {}
        self._lock = asyncio.Lock()

    async def restore(self, stored: bytes) -> None:
        """Take up what an earlier agent stored, as far as the pods are still there."""
        try:
            self._published = decode_host_ports(stored)
        except (msgspec.DecodeError, ValueError) as error:
            self._log.warning("the stored host ports cannot be read, and are forgotten: %s", error)
        await self._drop_departed()

    def mappings(self) -> tuple[PortMapping, ...]:
        """Return all of them."""
        return tuple(mapping for owner in sorted(self._published) for mapping in self._published[owner])

    async def publish(self, owner: Owner, mappings: tuple[PortMapping, ...]) -> None:
        """Have these and no others; on failure the caller withdraws. Raises CniError, KernelError and StoreError."""
        async with self._lock:
            if self._conflict(owner, mappings) is not None:
                await self._drop_departed()
            conflict = self._conflict(owner, mappings)
            if conflict is not None:
                wanted, (container_id, _), there = conflict
                message = f"host port {wanted.host} is taken: {there} is of container {container_id}"
                raise CniError(Code.HOST_PORT_TAKEN, message, "Remove that pod, or choose another port or node.")
            if self._published.get(owner, ()) != mappings:
                self._published[owner] = mappings
                await self._save()
            await self._settle()

    async def withdraw(self, owner: Owner) -> bool:
        """Give up what an owner has; False for nothing. Raises KernelError and StoreError."""
        async with self._lock:
            if not self._published.pop(owner, ()):
                return False
            await self._save()
            await self._settle()
            return True

    async def missing(self, owner: Owner, mappings: tuple[PortMapping, ...]) -> tuple[PortMapping, ...]:
        """Return those that do not lead there, once what somebody changed in the kernel is put right."""
        published = self._published.get(owner, ())
        await self._settle()
        return tuple(mapping for mapping in mappings if mapping not in published)

    def _conflict(
        self, owner: Owner, mappings: tuple[PortMapping, ...]
    ) -> tuple[PortMapping, Owner, PortMapping] | None:
        for other, theirs in sorted(self._published.items()):
            for mapping in mappings if other != owner else ():
                for there in theirs:
                    if mapping.conflicts(there):
                        return mapping, other, there
        return None

    async def _drop_departed(self) -> None:
        connected = await self._connected()
        departed = [owner for owner in self._published if owner not in connected]
        for owner in departed:
            self._log.info("host ports of container %s are free: it is gone", owner[0])
            del self._published[owner]
        if departed:
            await self._save()

    async def _save(self) -> None:
        await self._store(PutValue(KEY_HOST_PORTS, encode_host_ports(self._published)))


# --- on disk ----------------------------------------------------------------------------------------------------------


class _StoredMapping(msgspec.Struct):
    protocol: Protocol
    host_port: int
    address: int
    port: int
    host_address: int | None = None


class _StoredOwner(msgspec.Struct):
    container_id: str
    interface: str
    mappings: list[_StoredMapping]


def encode_host_ports(published: dict[Owner, tuple[PortMapping, ...]]) -> bytes:
    """Write them as JSON."""
    owners = [
        _StoredOwner(
            container_id,
            interface,
            [
                _StoredMapping(m.protocol, m.host_port, m.container.address, m.container.port, m.host_address)
                for m in mappings
            ],
        )
        for (container_id, interface), mappings in sorted(published.items())
    ]
    return msgspec.json.encode(owners)


def decode_host_ports(raw: bytes) -> dict[Owner, tuple[PortMapping, ...]]:
    """Read them back. Raises msgspec.DecodeError."""
    return {
        (owner.container_id, owner.interface): tuple(
            PortMapping(
                m.protocol,
                m.host_port,
                Endpoint(Address(m.address), m.port),
                None if m.host_address is None else Address(m.host_address),
            )
            for m in owner.mappings
        )
        for owner in msgspec.json.decode(raw, type=list[_StoredOwner])
    }
