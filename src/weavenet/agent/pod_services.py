"""What the CNI verbs work with: who gives addresses, and who makes interfaces."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Executor
from typing import Protocol, TypeVar

from weavenet.address import Address, Cidr
from weavenet.dataplane.kernel import Kernel
from weavenet.dataplane.model import OtherBridge, PodInterface, PodLink, PodPort
from weavenet.effects import Refused

_T = TypeVar("_T")


class AddressService(Protocol):
    """Who gives addresses. Those that change something raise IpamError."""

    async def allocate(self, ident: str, subnet: Cidr | None) -> Cidr:
        """Return the identifier's address in a subnet, or in the default one, reserving one if it has none.

        May wait for as long as it takes; being cancelled cancels the request everywhere.
        """
        ...

    async def assign(self, ident: str, wanted: Address, subnet: Cidr | None) -> Cidr:
        """Reserve this very address of a subnet, or of the default one, for an identifier, and return it."""
        ...

    async def release(self, ident: str) -> None:
        """Free all that an identifier holds."""
        ...

    async def lookup(self, ident: str) -> tuple[Cidr, ...]:
        """Return what an identifier holds, which may be nothing."""
        ...

    async def owned(self) -> Mapping[str, tuple[Cidr, ...]]:
        """Return all that identifiers hold on this node."""
        ...

    async def refusal(self) -> Refused | None:
        """Return why no address could be given now; None if one could be."""
        ...

    async def gateway(self, subnet: Cidr) -> Address | None:
        """Return what pods of a subnet should use as their gateway; None for no default route.

        Weave's rule: an address of the bridge in that subnet, or else its first one; a bridge without any gets one.
        """
        ...


class PodNetwork(Protocol):
    """Who makes interfaces; `Kernel` without blocking. All raise KernelError."""

    async def attach(self, link: PodLink) -> PodInterface:
        """Connect a pod. On failure nothing of it is left."""
        ...

    async def detach(self, container_id: str, ifname: str, netns: int | None) -> bool:
        """Disconnect a pod; False if it was not connected."""
        ...

    async def inspect(self, netns: int, ifname: str) -> PodInterface | None:
        """Return an interface of a pod as it is; None if there is none by this name."""
        ...

    async def has_default_route(self, netns: int, besides: str) -> bool:
        """Say whether a pod has a default route by another interface than this one."""
        ...

    async def find_bridge(self, name: str) -> OtherBridge | None:
        """Return a bridge of the host's; None if there is none of this name."""
        ...

    async def list_ports(self) -> tuple[PodPort, ...]:
        """Return the pods that are connected."""
        ...


class KernelPods:
    """The pods of a `Kernel`, whose calls block, in the threads of an executor."""

    def __init__(self, kernel: Kernel, threads: Executor) -> None:
        """Call `kernel` in `threads`."""
        self._kernel = kernel
        self._threads = threads

    async def attach(self, link: PodLink) -> PodInterface:
        """As `Kernel.attach_pod`."""
        return await self._run(lambda: self._kernel.attach_pod(link))

    async def detach(self, container_id: str, ifname: str, netns: int | None) -> bool:
        """As `Kernel.detach_pod`."""
        return await self._run(lambda: self._kernel.detach_pod(container_id, ifname, netns))

    async def inspect(self, netns: int, ifname: str) -> PodInterface | None:
        """As `Kernel.inspect_pod`."""
        return await self._run(lambda: self._kernel.inspect_pod(netns, ifname))

    async def has_default_route(self, netns: int, besides: str) -> bool:
        """As `Kernel.has_default_route`."""
        return await self._run(lambda: self._kernel.has_default_route(netns, besides=besides))

    async def find_bridge(self, name: str) -> OtherBridge | None:
        """As `Kernel.find_bridge`."""
        return await self._run(lambda: self._kernel.find_bridge(name))

    async def list_ports(self) -> tuple[PodPort, ...]:
        """As `Kernel.list_pods`."""
        return await self._run(self._kernel.list_pods)

    async def _run(self, call: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


async def to_the_end(work: Coroutine[None, None, _T]) -> _T:
    """Await work that must not stop half-way: a cancellation that comes meanwhile is raised when it is done."""
    task = asyncio.ensure_future(work)
    cancellation: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancellation = error
    if cancellation is not None:
        raise cancellation from task.exception()
    return task.result()
