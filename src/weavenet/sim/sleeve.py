"""Sleeve between simulated hosts: the production pipe on each, fed late, as the real one is by another process.

A real forwarder learns of a changed table some time after the agent has decided on it. Here that takes a random part of
LAG_S, so that a key which is used before both ends can have it shows as a lost datagram.
"""

import random
from collections.abc import Callable

import msgspec

from weavenet.address import Address, Endpoint
from weavenet.effects import SendSleeveFrame
from weavenet.node import inputs as i
from weavenet.overlay.sleeve.pipe import Datagram, SleevePipe
from weavenet.sim.host import Host
from weavenet.sim.network import MESH_PORT, Network

LAG_S = 0.5
PMTU_BYTES = 1500
_UDP_OVERHEAD_BYTES = 28


class _Forwarder(msgspec.Struct):
    pipe: SleevePipe = msgspec.field(default_factory=SleevePipe)
    received: list[bytes] = msgspec.field(default_factory=list)


class Sleeves:
    """The forwarders of all hosts."""

    def __init__(
        self,
        rng: random.Random,
        network: Network,
        hosts: dict[Address, Host],
        after: Callable[[float, Callable[[], None]], None],
        feed: Callable[[Host, i.Input], None],
    ) -> None:
        """Live in a world, given by its parts."""
        self._rng, self._network, self._hosts = rng, network, hosts
        self._after, self._feed = after, feed
        self._forwarders: dict[tuple[Address, int], _Forwarder] = {}  # by host and its life

    def reconcile(self, host: Host) -> None:
        """Tell a host's forwarder its table, a little later."""
        life = host.life

        def tell() -> None:
            if host.life == life and host.node is not None:
                self._of(host).pipe.apply(host.node.sleeve_table())

        self._after(self._rng.random() * LAG_S, tell)

    def send_special(self, host: Host, effect: SendSleeveFrame) -> None:
        """Send a frame of the overlay's own."""
        assert host.node is not None
        pipe = self._of(host).pipe
        pipe.apply(host.node.sleeve_table())  # as the agent does before each of these
        datagram = pipe.special(effect.connection, effect.frame, dont_fragment=effect.dont_fragment)
        if datagram is not None:
            self._send(host, datagram)

    def send(self, host: Host, tagged: bytes) -> None:
        """Send a frame of a pod's, as the kernel hands it to the forwarder."""
        datagrams, _ = self._of(host).pipe.outgoing([tagged])
        for datagram in datagrams:
            self._send(host, datagram)

    def received(self, host: Host) -> list[bytes]:
        """Return the frames that a host's forwarder has given to its kernel."""
        return self._of(host).received

    def undecipherable(self, host: Host) -> int:
        """Return how many datagrams a host could not open."""
        return self._of(host).pipe.counters.drop_sealed

    def _of(self, host: Host) -> _Forwarder:
        return self._forwarders.setdefault((host.address, host.life), _Forwarder())

    def _send(self, host: Host, datagram: Datagram) -> None:
        target = self._hosts.get(datagram.remote.address)
        if target is None:
            return
        if datagram.dont_fragment and len(datagram.payload) + _UDP_OVERHEAD_BYTES > PMTU_BYTES:
            self._after(0.0, lambda: self._feed(host, i.SleeveTooBig(datagram.connection, PMTU_BYTES)))
            return
        self._network.send_datagram(host.address, target.address, lambda: self._arrive(target, host, datagram))

    def _arrive(self, target: Host, source: Host, datagram: Datagram) -> None:
        if target.node is None:
            return
        forwarder = self._of(target)
        arrived = forwarder.pipe.incoming([(datagram.payload, Endpoint(source.address, MESH_PORT))])
        forwarder.received += arrived.frames
        for one in arrived.specials:
            self._feed(target, i.SleeveFrameArrived(one.connection, one.remote, one.length, one.head, one.intact))
