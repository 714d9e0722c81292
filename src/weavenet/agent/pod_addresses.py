"""Pods' addresses, from wherever their network has them: the mesh's IPAM, or this node's own ranges."""

from collections.abc import Mapping

from weavenet.address import Address, Cidr
from weavenet.agent.local_addresses import LocalAddresses
from weavenet.agent.pod_services import AddressService
from weavenet.cni.codes import Code
from weavenet.cni.config import IpamConfig
from weavenet.effects import Refused
from weavenet.errors import CniError, IpamError, IpamWaitError


class PodAddresses:
    """Both at once."""

    def __init__(self, mesh: AddressService, local: LocalAddresses) -> None:
        """Ask these two."""
        self._mesh = mesh
        self._local = local

    async def allocate(self, ident: str, ipam: IpamConfig, taken: frozenset[Address]) -> Cidr:
        """Return the identifier's address, reserving one if it has none; `taken` are nobody's. Raises CniError."""
        try:
            if ipam.local is not None:
                return await self._local.allocate(ident, ipam.local, taken, ipam.wanted)
            if ipam.wanted is not None:
                return await self._mesh.assign(ident, ipam.wanted, ipam.subnet)
            return await self._mesh.allocate(ident, ipam.subnet)
        except IpamError as error:
            code = Code.TRY_AGAIN_LATER if isinstance(error, IpamWaitError) else Code.NO_ADDRESS
            raise CniError(code, f"unable to allocate IP address: {error}") from error

    async def release(self, ident: str) -> bool:
        """Free all that an identifier holds; False for nothing. Raises IpamError."""
        freed = await self._local.release(ident)
        if await self._mesh.lookup(ident):
            await self._mesh.release(ident)
            freed = True
        return freed

    async def lookup(self, ident: str) -> tuple[Cidr, ...]:
        """Return what an identifier holds, which may be nothing."""
        return (*await self._mesh.lookup(ident), *self._local.owned().get(ident, ()))

    async def owned(self) -> Mapping[str, tuple[Cidr, ...]]:
        """Return all that identifiers hold on this node."""
        return {**await self._mesh.owned(), **self._local.owned()}

    async def refusal(self, ipam: IpamConfig) -> Refused | None:
        """Return why no address could be given now; None if one could be."""
        return None if ipam.local is not None else await self._mesh.refusal()

    async def gateway(self, subnet: Cidr) -> Address | None:
        """Return what pods of a subnet should use as their gateway; None for no default route. Raises CniError."""
        try:
            return await self._mesh.gateway(subnet)
        except IpamError as error:
            raise CniError(Code.NO_ADDRESS, f"unable to choose a gateway: {error}") from error
