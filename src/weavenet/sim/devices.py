"""What the kernel for tests is made of: devices, the data path's tables, and hints that something changed."""

import msgspec

from weavenet.address import Cidr
from weavenet.dataplane.model import KERNEL_NEIGHBOUR_TIMES, NO_PROGRAMS, MacAddress, NeighbourTimes, Programs
from weavenet.identity import ShortID
from weavenet.overlay.forwarding import Forwarding


class FakeDatapath:
    """Programs and tables in memory."""

    def __init__(self, programs: Programs) -> None:
        """Have programs to attach; no device has them yet."""
        self.programs = programs
        self.devices: dict[int, Programs] = {}
        self.forwarding = Forwarding(ShortID(0), {}, {})

    def attached(self, ifindex: int) -> Programs:
        """Return what a device has."""
        return self.devices.get(ifindex, NO_PROGRAMS)

    def attach(self, ifindex: int) -> None:
        """Put our programs on a device."""
        self.devices[ifindex] = self.programs

    def observe_forwarding(self) -> Forwarding:
        """Return what the tables hold."""
        return self.forwarding

    def apply_forwarding(self, forwarding: Forwarding) -> None:
        """Make the tables hold this."""
        self.forwarding = forwarding


class Device(msgspec.Struct):
    """A device of the host."""

    name: str
    kind: str
    index: int
    mac: MacAddress
    mtu: int
    alias: str = ""
    up: bool = False
    master: str = ""
    hairpin: bool = False
    stp: bool = False
    accept_ra: bool = True
    promote_secondaries: bool = False
    neighbours: NeighbourTimes = KERNEL_NEIGHBOUR_TIMES
    addresses: list[Cidr] = msgspec.field(default_factory=list)  # as they were added
    port: int = 0
    external: bool = False
    learning: bool = True
    ipv6_link_local: bool = True
    inside: tuple[int, str] | None = None  # of a veth: namespace and name of the other end


class FakeWatch:
    """Hints, counted."""

    def __init__(self) -> None:
        """There are none yet."""
        self.hints = 0

    def fileno(self) -> int:
        """Return no descriptor: in virtual time nobody waits for one."""
        return -1

    def drain(self) -> bool:
        """Forget the hints; say whether there were any."""
        hinted, self.hints = self.hints > 0, 0
        return hinted

    def close(self) -> None:
        """Do nothing: a watch costs nothing here."""
