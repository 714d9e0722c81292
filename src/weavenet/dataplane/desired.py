"""What the host's kernel should hold, from a few settings and from what is there.

Two things only the kernel knows, so they are taken over from what was observed: which pods there are (an attachment is
made once, by a CNI ADD, and the alias of its veth says how and on which bridge it should be ever after), and, unless
told otherwise, which addresses our bridge has (`weave expose` put them there, and they outlive the agent). A port whose
bridge is somebody else's, and gone for now, stays as it is until the bridge is back.
"""

import msgspec
from msgspec.structs import replace

from weavenet.address import Cidr
from weavenet.dataplane.model import (
    OUR_NEIGHBOUR_TIMES,
    Bridge,
    HostNetwork,
    MacAddress,
    PodPort,
    Programs,
    Vxlan,
)

DEFAULT_BRIDGE = "weave"
DEFAULT_VXLAN_PORT = 6784
DEFAULT_MTU = 1376  # Weave's: 1460, the smallest known cloud underlay, less 50 for VXLAN and 34 for ESP


class HostSettings(msgspec.Struct, frozen=True):
    """What can be chosen about the host's network."""

    mac: MacAddress  # of the bridge; bridge_mac() makes it from the peer name
    programs: Programs  # what the data path would attach now
    bridge: str = DEFAULT_BRIDGE
    mtu: int = DEFAULT_MTU
    vxlan_port: int = DEFAULT_VXLAN_PORT
    addresses: tuple[Cidr, ...] | None = None  # of the bridge; None: those it has

    @property
    def vxlan(self) -> str:
        """Name of the VXLAN device: Weave's, with the port in it, so that another port is another device."""
        return vxlan_name(self.vxlan_port)


def vxlan_name(port: int) -> str:
    """Return the name of the VXLAN device for a UDP port."""
    return f"vxlan-{port}"


def desired_network(settings: HostSettings, actual: HostNetwork) -> HostNetwork:
    """Return what the host should look like, given what it looks like."""
    if settings.addresses is not None:
        addresses = tuple(sorted(set(settings.addresses)))
    else:
        addresses = actual.bridge.addresses if isinstance(actual.bridge, Bridge) else ()
    connected = {(pod.container_id, pod.ifname) for pod in actual.pods}
    return HostNetwork(
        bridge=Bridge(
            name=settings.bridge,
            ours=True,
            mac=settings.mac,
            mtu=settings.mtu,
            up=True,
            stp=False,
            accept_ra=False,
            promote_secondaries=True,
            neighbours=OUR_NEIGHBOUR_TIMES,
            addresses=addresses,
        ),
        vxlan=Vxlan(
            name=settings.vxlan,
            ours=True,
            port=settings.vxlan_port,
            external=True,
            learning=False,
            mtu=settings.mtu,
            up=True,
            master=settings.bridge,
            ipv6_link_local=False,
            programs=settings.programs,
        ),
        pods=tuple(_desired_port(pod, settings, actual.others) for pod in actual.pods),
        limiters=tuple(limiter for limiter in actual.limiters if (limiter.container_id, limiter.ifname) in connected),
        others=actual.others,
    )


def _desired_port(pod: PodPort, settings: HostSettings, others: frozenset[str]) -> PodPort:
    if not pod.bridge:
        master, hairpin = settings.bridge, pod.hairpin_wanted
    elif pod.bridge in others:
        master, hairpin = pod.bridge, pod.hairpin_wanted
    else:
        master, hairpin = pod.master, pod.hairpin  # on no bridge the flag cannot be set
    return replace(pod, up=True, master=master, hairpin=hairpin)
