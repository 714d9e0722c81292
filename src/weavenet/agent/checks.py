"""What CHECK compares: an attachment as it is with what ADD, and the whole chain behind it, has answered."""

from weavenet.address import Address, Cidr
from weavenet.cni.request import Check
from weavenet.dataplane.model import PodInterface, PodPort, format_mac

DEFAULT_ROUTE = Cidr(Address(0), 0)


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
    wanted = [route.destination for route in call.config.ipam.routes] or [DEFAULT_ROUTE]
    problems += [
        f"interface {name} lacks the route to {destination}"
        for destination in wanted
        if destination not in there and call.previous.lists_route(destination)
    ]
    return problems


def port_problems(interface: PodInterface, ports: tuple[PodPort, ...], bridge: str) -> list[str]:
    """Say what is wrong with the host's end."""
    port = next((port for port in ports if port.name == interface.host_end), None)
    if port is None:
        return [f"the host's end of {interface.ifname} is missing"]
    if port.master != bridge:
        return [f"the host's end of {interface.ifname}, {port.name}, is not on the bridge {bridge}"]
    return [] if port.up else [f"the host's end of {interface.ifname}, {port.name}, is down"]
