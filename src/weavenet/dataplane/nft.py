"""Our nftables table as a value, and changes to it as values that print as the nft commands they are.

    table ip weavenet
      chain loopback      before conntrack: nobody on the bridge may speak to 127.0.0.0/8
      chain prerouting ┐  to an address of this host:
      chain output     ┴─▶ chain hostports: by (address, protocol, port), else by (protocol, port), to a pod
      chain heartbeats    behind all firewalls: what has passed them is logged to us (linux/heard.py)
      chain postrouting   what leaves or enters the pods' subnets goes by this host's address, with exceptions

Everything is looked up in sets and maps, so a rule never changes while the agent runs, and a mapping or a range that
comes or goes costs one element. nft(8) gives back rules in other words than it was given, and different versions in
different ones, so rules are not compared by their words: each carries, as its comment, what it is for and a fingerprint
of the words it was made from. A table that is not exactly as it should be is replaced as a whole, in one transaction;
connections do not notice, since the kernel keeps for each what was once decided about it.

Priorities: five behind the places where iptables and kube-proxy sit (-100, 100), in either of its modes. The first that
translates a connection wins, so a Service that is meant for an address of this host comes before a host port, as it
does with the usual CNI plugins, and what kube-proxy marked (0x4000) it masquerades itself. Sources: nft(8),
<linux/netfilter_ipv4.h>, nf_nat_inet_fn in net/netfilter/nf_nat_core.c; docs/adr/0014.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

import msgspec

from weavenet.address import Address, Cidr, Endpoint, Range, format_address

TABLE = "weavenet"
MULTICAST = Cidr(Address(224 << 24), 4)
LOOPBACK = Cidr(Address(127 << 24), 8)
# A packet bit of ours: "was sent to a host port by a pod or by this host's loopback". Taken elsewhere: 0x2000 the
# portmap plugin, 0x4000 and 0x8000 kube-proxy, 0x20000 and 0x40000 Weave Net.
MASQUERADE_MARK = 0x80000
_BEHIND = 5
_PRIORITY_LAST = 2_000_000_000  # whoever filters at this hook has done so
HEARTBEAT_BYTES = 128  # of a heartbeat that we want to see, from its IPv4 header on
_PRIORITY_RAW, _PRIORITY_DSTNAT, _PRIORITY_SRCNAT = -300, -100 + _BEHIND, 100 + _BEHIND

SUBNETS, OURS = "subnets", "ours"  # sets
PORTS, ADDRESS_PORTS = "ports", "address_ports"  # maps
COMMENT_BYTES_MAX = 128  # NFTNL_UDATA_COMMENT_MAXLEN
_ELEMENTS_PER_COMMAND = 256


class Protocol(Enum):
    """What a host port can be of; the values are nft's words."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"


class PortMapping(msgspec.Struct, frozen=True):
    """What is sent to a port of this host goes to a pod."""

    protocol: Protocol
    host_port: int
    container: Endpoint
    host_address: Address | None = None  # None: any address of this host

    @property
    def key(self) -> tuple[str, int, int]:
        """By what it is ordered, and told from others."""
        return self.protocol.value, self.host_port, -1 if self.host_address is None else self.host_address

    def conflicts(self, other: "PortMapping") -> bool:
        """Say whether some packet would be meant for both."""
        if (self.protocol, self.host_port) != (other.protocol, other.host_port):
            return False
        return self.host_address is None or other.host_address is None or self.host_address == other.host_address

    @property
    def host(self) -> str:
        """The host's side, for people."""
        where = "" if self.host_address is None else f"{format_address(self.host_address)}:"
        return f"{where}{self.host_port}/{self.protocol.value}"

    def __str__(self) -> str:
        return f"{self.host} -> {self.container}"


# --- what is in the table ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule. Known again by its comment; only one that is to be made needs its expression."""

    comment: str
    expression: str = field(default="", compare=False)
    handle: int = field(default=0, compare=False)  # of one that is there


class Hook(msgspec.Struct, frozen=True):
    """Where in the kernel a chain is called."""

    kind: str
    hook: str
    priority: int


class Chain(msgspec.Struct, frozen=True):
    """A chain and its rules, in order."""

    name: str
    rules: tuple[Rule, ...]
    hook: Hook | None = None


class AddressSet(msgspec.Struct, frozen=True):
    """A set of addresses: ascending ranges that do not touch."""

    name: str
    ranges: tuple[Range, ...]


class PortMap(msgspec.Struct, frozen=True):
    """Host ports to pods' ports, by the host's address, too, or without it."""

    name: str
    by_address: bool
    mappings: tuple[PortMapping, ...]


class Table(msgspec.Struct, frozen=True):
    """The table; each tuple in order of names."""

    chains: tuple[Chain, ...]
    sets: tuple[AddressSet, ...]
    maps: tuple[PortMap, ...]

    @property
    def structure(self) -> tuple[object, ...]:
        """What cannot be changed but by making the table anew."""
        return self.chains, tuple(part.name for part in self.sets), tuple((m.name, m.by_address) for m in self.maps)

    @property
    def mappings(self) -> tuple[PortMapping, ...]:
        """All mappings."""
        return tuple(mapping for part in self.maps for mapping in part.mappings)


def make_rule(purpose: str, expression: str) -> Rule:
    """Make a rule that can be known again."""
    comment = f"{purpose} #{hashlib.sha256(expression.encode()).hexdigest()[:8]}"
    assert len(comment.encode()) < COMMENT_BYTES_MAX
    return Rule(comment, expression)


def merge(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """Return the same addresses in as few ranges as possible, ascending."""
    merged: list[Range] = []
    for part in sorted(part for part in ranges if part.size):
        if merged and part.start <= merged[-1].end:
            merged[-1] = Range(merged[-1].start, max(merged[-1].end, part.end))
        else:
            merged.append(part)
    return tuple(merged)


def make_table(
    bridge: str,
    *,
    subnets: Iterable[Cidr],
    ours: Iterable[Range] | None,
    mappings: Iterable[PortMapping],
    heartbeats: int | None = None,
) -> Table:
    """Return the table for a bridge.

    `ours` is whom outside clients reach with their own address, None for nobody; `heartbeats` the UDP port at which
    they come, and the log group that they go to, None for nobody who would read it.
    """
    ordered = sorted(mappings, key=lambda mapping: mapping.key)
    return Table(
        chains=tuple(
            sorted(
                (*_chains(bridge, keep_clients=ours is not None), *_heartbeats(heartbeats)), key=lambda one: one.name
            )
        ),
        sets=(
            AddressSet(OURS, merge(ours or ())),
            AddressSet(SUBNETS, merge(subnet.range for subnet in subnets)),
        ),
        maps=(
            PortMap(ADDRESS_PORTS, True, tuple(m for m in ordered if m.host_address is not None)),  # noqa: FBT003
            PortMap(PORTS, False, tuple(m for m in ordered if m.host_address is None)),  # noqa: FBT003
        ),
    )


def _chains(bridge: str, *, keep_clients: bool) -> tuple[Chain, ...]:
    to_host_ports = make_rule("to this host", "fib daddr type local jump hostports")
    mark = f"meta mark set meta mark | {MASQUERADE_MARK:#x}"
    hostports = (
        # A pod on the bridge would get the answer directly, from an address it never spoke to; and what comes from
        # loopback could not be answered at all.
        make_rule("from a pod", f"ip saddr @{SUBNETS} {mark}"),
        make_rule("from loopback", f"ip saddr {LOOPBACK} {mark}"),
        make_rule("at one address", f"dnat ip to ip daddr . meta l4proto . th dport map @{ADDRESS_PORTS}"),
        make_rule("at any address", f"dnat ip to meta l4proto . th dport map @{PORTS}"),
    )
    marked = f"meta mark & {MASQUERADE_MARK:#x} == {MASQUERADE_MARK:#x}"
    postrouting = [
        make_rule("marked for it", f"{marked} ct status dnat masquerade fully-random"),
        make_rule("multicast stays as it is", f"ip saddr @{SUBNETS} ip daddr {MULTICAST} return"),
        make_rule("pods here see who asks", f"ip daddr @{OURS} return"),
        make_rule("into the pods' subnets", f"ip daddr @{SUBNETS} ip saddr != @{SUBNETS} masquerade fully-random"),
        make_rule("out of the pods' subnets", f"ip saddr @{SUBNETS} ip daddr != @{SUBNETS} masquerade fully-random"),
    ]
    if not keep_clients:
        del postrouting[2]
    # With route_localnet, which host ports at 127.0.0.1 need, the kernel would let this in (CVE-2020-8558).
    loopback = make_rule("loopback is this host's own", f'iifname "{bridge}" ip daddr {LOOPBACK} drop')
    return (
        Chain("hostports", hostports),
        Chain("loopback", (loopback,), Hook("filter", "prerouting", _PRIORITY_RAW)),
        Chain("output", (to_host_ports,), Hook("nat", "output", _PRIORITY_DSTNAT)),
        Chain("postrouting", tuple(postrouting), Hook("nat", "postrouting", _PRIORITY_SRCNAT)),
        Chain("prerouting", (to_host_ports,), Hook("nat", "prerouting", _PRIORITY_DSTNAT)),
    )


def _heartbeats(port: int | None) -> tuple[Chain, ...]:
    if port is None:
        return ()
    # Twelve zero bytes behind UDP's and VXLAN's headers: both MAC addresses of the frame inside.
    match = f"udp dport {port} @th,128,96 0"
    rule = make_rule("heartbeats", f"{match} log group {port} snaplen {HEARTBEAT_BYTES} queue-threshold 1")
    return (Chain("heartbeats", (rule,), Hook("filter", "input", _PRIORITY_LAST)),)


# --- changing it ------------------------------------------------------------------------------------------------------


class AddTable(msgspec.Struct, frozen=True):
    """Have our table; it may be there."""

    def __str__(self) -> str:
        return f"add table ip {TABLE}"


class DeleteTable(msgspec.Struct, frozen=True):
    """Remove our table, with all that is in it."""

    def __str__(self) -> str:
        return f"delete table ip {TABLE}"


class AddSet(msgspec.Struct, frozen=True):
    """Make a set, empty."""

    name: str

    def __str__(self) -> str:
        return f"add set ip {TABLE} {self.name} {{ type ipv4_addr; flags interval; }}"


class AddMap(msgspec.Struct, frozen=True):
    """Make a map, empty."""

    name: str
    by_address: bool

    def __str__(self) -> str:
        key = "ipv4_addr . inet_proto . inet_service" if self.by_address else "inet_proto . inet_service"
        return f"add map ip {TABLE} {self.name} {{ type {key} : ipv4_addr . inet_service; }}"


class AddChain(msgspec.Struct, frozen=True):
    """Make a chain, empty."""

    name: str
    hook: Hook | None

    def __str__(self) -> str:
        if self.hook is None:
            return f"add chain ip {TABLE} {self.name}"
        kind, hook, priority = self.hook.kind, self.hook.hook, self.hook.priority
        return f"add chain ip {TABLE} {self.name} {{ type {kind} hook {hook} priority {priority}; policy accept; }}"


class AddRule(msgspec.Struct, frozen=True):
    """Put a rule at the end of a chain."""

    chain: str
    rule: Rule

    def __str__(self) -> str:
        return f'add rule ip {TABLE} {self.chain} {self.rule.expression} comment "{self.rule.comment}"'


class FillSet(msgspec.Struct, frozen=True):
    """Have exactly these addresses in a set."""

    content: AddressSet

    def __str__(self) -> str:
        name = self.content.name
        elements = [str(cidr) for part in self.content.ranges for cidr in part.cidrs()]
        return "\n".join([f"flush set ip {TABLE} {name}", *_add_elements(name, elements)])


class FillMap(msgspec.Struct, frozen=True):
    """Have exactly these mappings in a map."""

    content: PortMap

    def __str__(self) -> str:
        name = self.content.name
        elements = [_element(mapping) for mapping in self.content.mappings]
        return "\n".join([f"flush map ip {TABLE} {name}", *_add_elements(name, elements)])


class InsertForward(msgspec.Struct, frozen=True):
    """Put a rule of ours at the top of iptables' FORWARD."""

    rule: Rule

    def __str__(self) -> str:
        return f'insert rule ip filter FORWARD {self.rule.expression} comment "{self.rule.comment}"'


class DeleteForward(msgspec.Struct, frozen=True):
    """Take a rule of ours out of iptables' FORWARD."""

    rule: Rule

    def __str__(self) -> str:
        return f"delete rule ip filter FORWARD handle {self.rule.handle}"


Command = (
    AddTable | DeleteTable | AddSet | AddMap | AddChain | AddRule | FillSet | FillMap | InsertForward | DeleteForward
)


def plan_table(actual: Table | None, desired: Table | None) -> list[Command]:
    """Return what leads from one to the other; nothing if they are equal."""
    if actual == desired:
        return []
    if desired is None:
        return [DeleteTable()]
    if actual is not None and actual.structure == desired.structure:
        commands: list[Command] = [
            FillSet(wanted) for there, wanted in zip(actual.sets, desired.sets, strict=True) if there != wanted
        ]
        commands += [
            FillMap(wanted) for there, wanted in zip(actual.maps, desired.maps, strict=True) if there != wanted
        ]
        return commands
    fresh: list[Command] = [AddTable(), DeleteTable(), AddTable()]
    fresh += [AddSet(part.name) for part in desired.sets]
    fresh += [AddMap(part.name, part.by_address) for part in desired.maps]
    fresh += [AddChain(chain.name, chain.hook) for chain in desired.chains]
    fresh += [AddRule(chain.name, rule) for chain in desired.chains for rule in chain.rules]
    fresh += [FillSet(part) for part in desired.sets if part.ranges]
    fresh += [FillMap(part) for part in desired.maps if part.mappings]
    return fresh


def _element(mapping: PortMapping) -> str:
    where = "" if mapping.host_address is None else f"{format_address(mapping.host_address)} . "
    to = f"{format_address(mapping.container.address)} . {mapping.container.port}"
    return f"{where}{mapping.protocol.value} . {mapping.host_port} : {to}"


def _add_elements(name: str, elements: Sequence[str]) -> list[str]:
    return [
        f"add element ip {TABLE} {name} {{ {', '.join(elements[at : at + _ELEMENTS_PER_COMMAND])} }}"
        for at in range(0, len(elements), _ELEMENTS_PER_COMMAND)
    ]
