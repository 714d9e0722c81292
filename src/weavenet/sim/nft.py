"""nftables in memory, as far as we use it, and the three switches: refuses what the real one refuses.

A transaction happens to a copy, which takes the original's place when all of it has worked.
"""

import copy
import itertools
from collections.abc import Callable
from typing import assert_never

import msgspec

from weavenet.dataplane.nft import (
    AddChain,
    AddMap,
    AddressSet,
    AddRule,
    AddSet,
    AddTable,
    Chain,
    Command,
    DeleteForward,
    DeleteTable,
    FillMap,
    FillSet,
    Hook,
    InsertForward,
    PortMap,
    Rule,
    Table,
    merge,
)
from weavenet.dataplane.traffic import (
    FORWARD_MARK,
    ForgetUdpFlows,
    HostTraffic,
    SetSwitch,
    Switch,
    Switches,
    TrafficChange,
    Transaction,
)
from weavenet.errors import KernelError


class _FakeTable(msgspec.Struct):
    chains: dict[str, tuple[Hook | None, list[Rule]]] = msgspec.field(default_factory=dict)
    sets: dict[str, AddressSet] = msgspec.field(default_factory=dict)
    maps: dict[str, PortMap] = msgspec.field(default_factory=dict)


class _Ruleset(msgspec.Struct):
    table: _FakeTable | None = None
    forward: list[Rule] | None = None  # of iptables; None while there is no such chain


class FakeTraffic:
    """How one simulated host handles pods' traffic."""

    def __init__(
        self, *, has_bridge: Callable[[], bool], refuse: Callable[[str], None], hint: Callable[[], None]
    ) -> None:
        """Start with a host without any rules."""
        self._has_bridge = has_bridge
        self._refuse_traffic = refuse
        self._hint_traffic = hint
        self._ruleset = _Ruleset()
        self._handles = itertools.count(1)
        self._on = {Switch.FORWARDING: False, Switch.BRIDGE_NETFILTER: False, Switch.ROUTE_LOCALNET: False}
        self.forgotten_udp_ports: list[int] = []
        self.legacy_drops = False
        self.nftables_problem = ""  # why nothing of nftables works; blank where it does

    # --- what others do on a host ---

    def flush_rules(self) -> None:
        """Do as `nft flush ruleset` does."""
        self._ruleset = _Ruleset()
        self._hint_traffic()

    def flush_chain(self, name: str) -> None:
        """Take all rules out of a chain of ours."""
        assert self._ruleset.table is not None
        self._ruleset.table.chains[name][1].clear()
        self._hint_traffic()

    def use_iptables(self) -> None:
        """Make iptables' FORWARD chain, which drops by default and has a rule of somebody else's, or make it anew."""
        self._ruleset.forward = [Rule("")]
        self._hint_traffic()

    # --- what the agent does ---

    def legacy_forward_drops(self) -> bool:
        """Say no: there is no iptables-legacy here, unless a test says so."""
        return self.legacy_drops

    def observe_traffic(self) -> HostTraffic:
        """Return how the host handles pods' traffic."""
        self._refuse_traffic("read nftables")
        if self.nftables_problem:
            raise KernelError(self.nftables_problem)
        ruleset = self._ruleset
        return HostTraffic(
            table=None if ruleset.table is None else _read(ruleset.table),
            forward=None
            if ruleset.forward is None
            else tuple(rule for rule in ruleset.forward if rule.comment.startswith(FORWARD_MARK)),
            switches=Switches(
                forwarding=self._on[Switch.FORWARDING],
                bridge_netfilter=self._on[Switch.BRIDGE_NETFILTER],
                route_localnet=self._on[Switch.ROUTE_LOCALNET] if self._has_bridge() else None,
            ),
        )

    def apply_traffic(self, change: TrafficChange) -> None:
        """Make one change of a plan."""
        self._refuse_traffic(str(change))
        match change:
            case Transaction(commands):
                ruleset = copy.deepcopy(self._ruleset)
                for command in commands:
                    self._perform(ruleset, command)
                self._ruleset = ruleset
            case SetSwitch(switch, on):
                self._on[switch] = on
            case ForgetUdpFlows(ports):
                self.forgotten_udp_ports += ports
            case _:
                assert_never(change)
        self._hint_traffic()

    def _perform(self, ruleset: _Ruleset, command: Command) -> None:
        match command:
            case AddTable():
                ruleset.table = ruleset.table or _FakeTable()
            case InsertForward(rule):
                if ruleset.forward is None:
                    raise _refused(command, "No such file or directory")
                ruleset.forward.insert(0, Rule(rule.comment, handle=next(self._handles)))
            case DeleteForward(rule):
                there = [other for other in ruleset.forward or () if other.handle == rule.handle]
                if ruleset.forward is None or not there:
                    raise _refused(command, "No such file or directory")
                ruleset.forward.remove(there[0])
            case _ if ruleset.table is None:
                raise _refused(command, "No such file or directory")
            case DeleteTable():
                ruleset.table = None
            case AddSet() | AddMap() | AddChain() | AddRule() | FillSet() | FillMap():
                _change(ruleset.table, command)
            case _:
                assert_never(command)


def _change(table: _FakeTable, command: AddSet | AddMap | AddChain | AddRule | FillSet | FillMap) -> None:
    match command:
        case AddSet(name):
            if name in table.maps:
                raise _refused(command, "File exists")
            table.sets.setdefault(name, AddressSet(name, ()))
        case AddMap(name, by_address):
            if name in table.sets:
                raise _refused(command, "File exists")
            table.maps.setdefault(name, PortMap(name, by_address, ()))
        case AddChain(name, hook):
            table.chains.setdefault(name, (hook, []))
        case AddRule(chain, rule):
            if chain not in table.chains:
                raise _refused(command, "No such file or directory")
            table.chains[chain][1].append(Rule(rule.comment))
        case FillSet(content):
            if content.name not in table.sets:
                raise _refused(command, "No such file or directory")
            if len(merge(content.ranges)) != len(content.ranges):
                raise _refused(command, "conflicting intervals specified")
            table.sets[content.name] = content
        case FillMap(content):
            if content.name not in table.maps:
                raise _refused(command, "No such file or directory")
            if len({mapping.key for mapping in content.mappings}) != len(content.mappings):
                raise _refused(command, "File exists")
            table.maps[content.name] = content
        case _:
            assert_never(command)


def _read(table: _FakeTable) -> Table:
    return Table(
        tuple(Chain(name, tuple(rules), hook) for name, (hook, rules) in sorted(table.chains.items())),
        tuple(part for _, part in sorted(table.sets.items())),
        tuple(part for _, part in sorted(table.maps.items())),
    )


def _refused(command: Command, why: str) -> KernelError:
    return KernelError(f"cannot change the nftables rules: {why}: {command}")
