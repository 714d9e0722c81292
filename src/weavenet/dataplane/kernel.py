"""The seam between what is decided and the kernel: two Protocols, and the loop that brings a host to its wanted state.

All calls block, and are made from threads. There are two kernels: the real one in linux/kernel.py, and one in
sim/kernel.py that refuses what the real one would; both pass the same tests. All of them raise KernelError.

Reconciling is: observe, plan, apply, observe again. The kernel is compared with, never memory, so it does not matter
who changed what, or how often this is called; and the last observation is what says that a change really took. Nothing
is undone when the agent ends: pods keep their network while it restarts, and the next agent finds everything in place.
Removing it all is a plan, too, with NOTHING wanted.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar

from weavenet.dataplane.desired import HostSettings, desired_network
from weavenet.dataplane.model import (
    NOTHING,
    HostNetwork,
    HostRoute,
    OtherBridge,
    PodInterface,
    PodLink,
    PodPort,
    Programs,
)
from weavenet.dataplane.plan import Change, plan
from weavenet.dataplane.traffic import (
    HostTraffic,
    TrafficChange,
    TrafficSettings,
    desired_traffic,
    no_traffic,
    plan_traffic,
)
from weavenet.errors import KernelError
from weavenet.overlay.forwarding import Forwarding

# Each pass observes first, so the last one only verifies. A pod that goes away between observing and applying fails a
# pass without being wrong, and hardly ever two in a row.
_PASSES_MAX = 4

_C = TypeVar("_C")


class Datapath(Protocol):
    """The tc programs on the VXLAN device and their tables; the device holds both, so they outlive the agent."""

    @property
    def programs(self) -> Programs:
        """The identity of the programs that `attach` puts in place."""
        ...

    def attached(self, ifindex: int) -> Programs:
        """Return the identity of the programs that are in place on a device, NO_PROGRAMS for none."""
        ...

    def attach(self, ifindex: int) -> None:
        """Put our programs on a device, in place of older ones of ours; doing so twice is fine."""
        ...

    def observe_forwarding(self) -> Forwarding:
        """Return what the tables hold."""
        ...

    def apply_forwarding(self, forwarding: Forwarding) -> None:
        """Make the tables hold this; entries that stay are not disturbed."""
        ...


class Watch(Protocol):
    """Hints that the kernel may have changed. A hint says only "look again"."""

    def fileno(self) -> int:
        """Return a descriptor that is readable while there are hints."""
        ...

    def drain(self) -> bool:
        """Forget the hints up to now, without blocking; say whether there were any."""
        ...

    def close(self) -> None:
        """Stop watching."""
        ...


class Kernel(Protocol):
    """The network of one host: the namespace in which this object was made."""

    def observe(self, *, with_macs: bool = False) -> HostNetwork:
        """Return all that is ours, or in our way; `with_macs`, which takes twice as long, what MAC addresses pods have.

        They are asked for each time: whoever is in a pod can change its own, and so can plugins behind us.
        """
        ...

    def apply(self, change: Change) -> None:
        """Make one change of a plan."""
        ...

    def attach_pod(self, link: PodLink) -> PodInterface:
        """Connect a pod to its bridge; it can send when this returns. On failure nothing of it is left."""
        ...

    def detach_pod(self, container_id: str, ifname: str, netns: int | None) -> bool:
        """Disconnect a pod; False if it was not connected. Both ends are gone when this returns.

        The namespace serves to find interfaces that an earlier Weave Net made, and can be left out.
        """
        ...

    def inspect_pod(self, netns: int, ifname: str) -> PodInterface | None:
        """Return an interface of a pod as it is; None if there is none by this name."""
        ...

    def has_default_route(self, netns: int, *, besides: str) -> bool:
        """Say whether a pod has a default route by another interface than this one."""
        ...

    def find_bridge(self, name: str) -> OtherBridge | None:
        """Return a bridge of the host's; None if there is none of this name."""
        ...

    def list_pods(self) -> tuple[PodPort, ...]:
        """Return the pods that are connected."""
        ...

    def observe_traffic(self) -> HostTraffic:
        """Return how the host handles pods' traffic."""
        ...

    def apply_traffic(self, change: TrafficChange) -> None:
        """Make one change of a plan."""
        ...

    def host_routes(self) -> tuple[HostRoute, ...]:
        """Return the IPv4 routes of the main table."""
        ...

    def changes(self) -> Watch:
        """Start watching devices and addresses."""
        ...

    def legacy_forward_drops(self) -> bool:
        """Say whether rules that nftables does not see drop what pods send through this host."""
        ...

    def traffic_changes(self) -> Watch:
        """Start watching nftables."""
        ...


def reconcile(kernel: Kernel, settings: HostSettings) -> tuple[Change, ...]:
    """Make the host look as it should, and return what was done. Raises KernelError if it will not."""
    return _settle_devices(kernel, lambda actual: desired_network(settings, actual))


def reconcile_traffic(kernel: Kernel, settings: TrafficSettings) -> tuple[TrafficChange, ...]:
    """Have the host handle pods' traffic as it should, and return what was done. Raises KernelError if it will not."""
    return _settle_traffic(kernel, lambda actual: desired_traffic(settings, actual))


def teardown(kernel: Kernel) -> tuple[Change | TrafficChange, ...]:
    """Remove everything of ours, pods' interfaces included, and return what was done. Raises KernelError.

    The programs and their tables go with the device that they are on. Devices go even where the rules cannot be had,
    for lack of libnftables say; that is then what it raises.
    """
    refusal: KernelError | None = None
    traffic: tuple[TrafficChange, ...] = ()
    try:
        traffic = _settle_traffic(kernel, no_traffic)
    except KernelError as error:
        refusal = error
    done = _settle_devices(kernel, lambda _: NOTHING)
    if refusal is not None:
        raise refusal
    return (*traffic, *done)


def _settle_devices(kernel: Kernel, desire: Callable[[HostNetwork], HostNetwork]) -> tuple[Change, ...]:
    def look() -> list[Change]:
        actual = kernel.observe()
        return plan(actual, desire(actual))

    return _settle(look, kernel.apply)


def _settle_traffic(kernel: Kernel, desire: Callable[[HostTraffic], HostTraffic]) -> tuple[TrafficChange, ...]:
    def look() -> list[TrafficChange]:
        actual = kernel.observe_traffic()
        return plan_traffic(actual, desire(actual))

    return _settle(look, kernel.apply_traffic)


def _settle(look: Callable[[], list[_C]], apply: Callable[[_C], None]) -> tuple[_C, ...]:
    done: list[_C] = []
    refusal: KernelError | None = None
    changes: list[_C] = []
    for _ in range(_PASSES_MAX):
        changes = look()
        if not changes:
            return tuple(done)
        refusal = None
        try:
            for change in changes:
                apply(change)
                done.append(change)
        except KernelError as error:
            refusal = error
    if refusal is not None:
        raise refusal
    raise KernelError(f"the kernel does not keep what was set: {'; '.join(map(str, changes))}")
