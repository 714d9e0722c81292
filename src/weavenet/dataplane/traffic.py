"""How this host handles pods' traffic, as a value: our nftables table, rules in iptables' FORWARD, and three switches.

    actual ──┐
             ├─▶ plan_traffic() ─▶ one nft transaction, then the switches
    desired ─┘

iptables' FORWARD: a packet goes on only if every table accepts it, so nothing in ours can overrule a FORWARD chain that
drops by default, as Docker leaves it. Where the chain is iptables-nft's, two rules at its top accept what comes from
the bridge and what goes to it, as Weave Net did; they use only what iptables itself can read and delete. They are
wanted where the chain is, and the chain is never made. docs/adr/0014 has the alternatives.

Switches: forwarding, and, where br_netfilter is there, iptables and nftables for what is bridged, without which a pod
that asks for a Service would get its answer untranslated. Both are the namespace's, and are switched on for a bridge
that has an address and never off again, since others may have come to rely on them. `route_localnet` is the bridge's,
and on only while there are host ports, so that 127.0.0.1 has them, too.
"""

from collections.abc import Sequence
from enum import Enum

import msgspec
from msgspec.structs import replace

from weavenet.address import Cidr, Range
from weavenet.dataplane.nft import (
    Command,
    DeleteForward,
    InsertForward,
    PortMapping,
    Protocol,
    Rule,
    Table,
    make_rule,
    make_table,
    plan_table,
)

FORWARD_MARK = "weavenet: "  # how the comments of our rules in a chain that is not ours begin


class TrafficSettings(msgspec.Struct, frozen=True):
    """What is wanted of the host."""

    bridge: str
    subnets: tuple[Cidr, ...] = ()  # of the bridge's addresses, but for those that are exposed without masquerading
    ours: tuple[Range, ...] | None = None  # the ring's ranges of this peer, with --no-masq-local; None without
    mappings: tuple[PortMapping, ...] = ()
    routes: bool = False  # the bridge has an address, so pods send through this host
    heartbeats: int | None = None  # UDP port at which heartbeats come; None for nobody who would read their log


class Switches(msgspec.Struct, frozen=True):
    """Sysctls; None for what is not there."""

    forwarding: bool
    bridge_netfilter: bool | None
    route_localnet: bool | None


class HostTraffic(msgspec.Struct, frozen=True):
    """All of it. `forward` is what is ours in iptables' FORWARD, in order; None where there is no such chain."""

    table: Table | None
    forward: tuple[Rule, ...] | None
    switches: Switches


# --- changes ----------------------------------------------------------------------------------------------------------


class Transaction(msgspec.Struct, frozen=True):
    """Commands that nftables carries out together, or not at all."""

    commands: tuple[Command, ...]

    def __str__(self) -> str:
        return "nft " + "; ".join(line for command in self.commands for line in str(command).split("\n"))


class Switch(Enum):
    """A sysctl; the values are its path, with the bridge's name for a star."""

    FORWARDING = "net/ipv4/ip_forward"
    BRIDGE_NETFILTER = "net/bridge/bridge-nf-call-iptables"
    ROUTE_LOCALNET = "net/ipv4/conf/*/route_localnet"

    def path(self, bridge: str) -> tuple[str, ...]:
        """Return the path in parts: a bridge's name may have dots."""
        return tuple(bridge if part == "*" else part for part in self.value.split("/"))


class SetSwitch(msgspec.Struct, frozen=True):
    """Turn a sysctl on or off."""

    switch: Switch
    on: bool

    def __str__(self) -> str:
        return f"sysctl {self.switch.value}={int(self.on)}"


class ForgetUdpFlows(msgspec.Struct, frozen=True):
    """Forget connections of UDP to these host ports: as long as packets come they would go where they used to go."""

    ports: tuple[int, ...]

    def __str__(self) -> str:
        return "; ".join(f"conntrack -D -p udp --orig-port-dst {port}" for port in self.ports)


TrafficChange = Transaction | SetSwitch | ForgetUdpFlows


# --- what should be ---------------------------------------------------------------------------------------------------


def desired_traffic(settings: TrafficSettings, actual: HostTraffic) -> HostTraffic:
    """Return what should be, given what there is."""
    bridge = settings.bridge
    table = make_table(
        bridge,
        subnets=settings.subnets,
        ours=settings.ours,
        mappings=settings.mappings,
        heartbeats=settings.heartbeats,
    )
    switches = replace(
        actual.switches,
        route_localnet=None if actual.switches.route_localnet is None else bool(settings.mappings),
    )
    if settings.routes:
        seen = switches.bridge_netfilter
        switches = replace(switches, forwarding=True, bridge_netfilter=None if seen is None else True)
    return HostTraffic(table, None if actual.forward is None else forward_rules(bridge), switches)


def no_traffic(actual: HostTraffic) -> HostTraffic:
    """Return the host without anything of ours."""
    localnet = None if actual.switches.route_localnet is None else False
    return HostTraffic(None, actual.forward and (), replace(actual.switches, route_localnet=localnet))


def forward_rules(bridge: str) -> tuple[Rule, ...]:
    """Return what we want in iptables' FORWARD. The counter is what makes it look like a rule of iptables."""
    return (
        make_rule(f"{FORWARD_MARK}from pods", f'iifname "{bridge}" counter accept'),
        make_rule(f"{FORWARD_MARK}to pods", f'oifname "{bridge}" counter accept'),
    )


# --- the plan ---------------------------------------------------------------------------------------------------------


def plan_traffic(actual: HostTraffic, desired: HostTraffic) -> list[TrafficChange]:
    """Return what to do, in order, to make `actual` into `desired`; nothing if they are equal."""
    switches = _plan_switches(actual.switches, desired.switches)
    # Our rules keep pods from this host's loopback, so they are there whenever `route_localnet` is on.
    changes: list[TrafficChange] = [change for change in switches if not change.on]
    commands = plan_table(actual.table, desired.table)
    if actual.forward is not None and desired.forward is not None and actual.forward != desired.forward:
        commands += [DeleteForward(rule) for rule in actual.forward]
        commands += [InsertForward(rule) for rule in reversed(desired.forward)]
    if commands:
        changes.append(Transaction(tuple(commands)))
    ports = _udp_ports_that_differ(_mappings(actual), _mappings(desired))
    if ports:
        changes.append(ForgetUdpFlows(ports))
    changes += [change for change in switches if change.on]
    return changes


def _plan_switches(actual: Switches, desired: Switches) -> list[SetSwitch]:
    pairs = (
        (Switch.FORWARDING, actual.forwarding, desired.forwarding),
        (Switch.BRIDGE_NETFILTER, actual.bridge_netfilter, desired.bridge_netfilter),
        (Switch.ROUTE_LOCALNET, actual.route_localnet, desired.route_localnet),
    )
    return [
        SetSwitch(switch, wanted)
        for switch, is_on, wanted in pairs
        if is_on is not None and wanted is not None and wanted != is_on
    ]


def _mappings(traffic: HostTraffic) -> tuple[PortMapping, ...]:
    return () if traffic.table is None else traffic.table.mappings


def _udp_ports_that_differ(actual: Sequence[PortMapping], desired: Sequence[PortMapping]) -> tuple[int, ...]:
    changed = set(actual) ^ set(desired)
    return tuple(sorted({mapping.host_port for mapping in changed if mapping.protocol is Protocol.UDP}))
