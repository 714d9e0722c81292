"""The fast data path of one host as dataplane/kernel.py wants it: programs on a device, and the tables they work by.

Opened on first use, so that a reset can remove what there is without loading anything.
"""

import socket
from contextlib import suppress
from pathlib import Path

from weavenet.dataplane.model import Programs
from weavenet.linux.fastdp import FastdpMaps, attached
from weavenet.overlay.forwarding import Forwarding


class FastDatapath:
    """A `Datapath` over the eBPF programs on one VXLAN device, and their maps."""

    def __init__(self, device: str, compiled: Path) -> None:
        """Name the device whose maps are to be used if it is there already, and the compiled programs."""
        self._device = device
        self._compiled = compiled
        self._opened: FastdpMaps | None = None

    @property
    def maps(self) -> FastdpMaps:
        """The loaded programs and their maps. Raises KernelError."""
        if self._opened is None:
            ifindex = None
            with suppress(OSError):  # there is no such device, and so nothing to go on with
                ifindex = socket.if_nametoindex(self._device)
            self._opened = FastdpMaps.open(ifindex, self._compiled)
        return self._opened

    @property
    def programs(self) -> Programs:
        """The identity of the programs that `attach` puts in place. Raises KernelError."""
        return self.maps.programs

    def attached(self, ifindex: int) -> Programs:
        """Return the identity of the programs that are in place on a device."""
        return attached(ifindex)

    def attach(self, ifindex: int) -> None:
        """Put our programs on a device, in place of older ones of ours."""
        self.maps.attach(ifindex)

    def observe_forwarding(self) -> Forwarding:
        """Return what the tables hold."""
        return self.maps.observe()

    def apply_forwarding(self, forwarding: Forwarding) -> None:
        """Make the tables hold this; entries that stay are not disturbed.

        Where a short ID is gone or its way has changed, it may stand for another peer by now, so the MAC addresses
        learnt behind it are forgotten: the next frame to one of them floods, and its answer teaches the place anew.
        """
        before = self.maps.observe()
        self.maps.apply(forwarding, before)
        moved = [short_id for short_id, remote in before.peers.items() if forwarding.peers.get(short_id) != remote]
        if moved:
            self.maps.forget_peers(moved)
        gone = before.peers.keys() - forwarding.peers.keys()
        if gone:
            self.maps.forget_traffic(gone)

    def close(self) -> None:
        """Let go of programs and maps; what is attached works on."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None
