"""What CHECK compares: an attachment as it is with what ADD, and the whole chain behind it, has answered."""

from weavenet.address import Address, Cidr
from weavenet.cni.request import Check
from weavenet.cni.runtime import Bandwidth, Rate
from weavenet.dataplane.limits import RateLimit
from weavenet.dataplane.model import PodInterface, PodPort, format_mac

DEFAULT_ROUTE = Cidr(Address(0), 0)
_ETHERNET_HEADER_BYTES = 14


def reservation_problems(call: Check, held: tuple[Cidr, ...]) -> list[str]:
    """Say what is wrong with the addresses that are reserved."""
    if not held:
        return [f"no address is reserved for {call.attachment.ident}"]
    listed = call.previous.addresses_of(call.attachment.interface, call.sandbox.path)
    lost = [str(address) for address in held if address not in listed]
    return [f"prevResult does not list {', '.join(lost)}, reserved for {call.attachment.ident}"] if lost else []


def interface_problems(call: Check, held: tuple[Cidr, ...], interface: PodInterface) -> list[str]:
    """Say what is wrong with the interface in the pod."""
    name = interface.ifname
    problems: list[str] = []
    # Plugins behind us may have changed the MAC address or the routes, so what counts is what the chain returned.
    mac = call.previous.mac_of(name, call.sandbox.path)
    if mac is None:
        problems.append(f"prevResult does not list interface {name} in {call.sandbox.path}")
    elif mac and mac.lower() != format_mac(interface.mac):
        problems.append(f"interface {name} has MAC address {format_mac(interface.mac)}, not {mac}")
    if not interface.up:
        problems.append(f"interface {name} is down")
    missing = [str(address) for address in held if address not in interface.addresses]
    if missing:
        problems.append(f"interface {name} lacks address {', '.join(missing)}")
    there = {route.destination for route in interface.routes}
    wanted = [route.destination for route in call.config.ipam.routes]
    if not wanted and not call.attachment.main:  # what was asked for by annotation has no default route of its own
        wanted = [DEFAULT_ROUTE]
    problems += [
        f"interface {name} lacks the route to {destination}"
        for destination in wanted
        if destination not in there and call.previous.lists_route(destination)
    ]
    return problems


def rate_limit(rate: Rate | None, mtu_bytes: int) -> RateLimit | None:
    """Return a limit as the kernel is told it. A burst that a full frame does not fit in would stop the pod dead."""
    if rate is None:
        return None
    return RateLimit(rate.bits_per_s // 8, max(rate.burst_bits // 8, mtu_bytes + _ETHERNET_HEADER_BYTES))


def limit_problems(bandwidth: Bandwidth, interface: PodInterface, mtu_bytes: int) -> list[str]:
    """Say which limits are not as they should be."""
    return [
        f"the {direction} limit is {there or 'none'}, not {wanted}"
        for direction, there, wanted in (
            ("ingress", interface.ingress, rate_limit(bandwidth.ingress, mtu_bytes)),
            ("egress", interface.egress, rate_limit(bandwidth.egress, mtu_bytes)),
        )
        if wanted is not None and there != wanted
    ]


def port_problems(interface: PodInterface, ports: tuple[PodPort, ...], bridge: str) -> list[str]:
    """Say what is wrong with the host's end."""
    port = next((port for port in ports if port.name == interface.host_end), None)
    if port is None:
        return [f"the host's end of {interface.ifname} is missing"]
    if port.master != bridge:
        return [f"the host's end of {interface.ifname}, {port.name}, is not on the bridge {bridge}"]
    return [] if port.up else [f"the host's end of {interface.ifname}, {port.name}, is down"]
