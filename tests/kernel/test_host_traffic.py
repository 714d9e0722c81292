"""How a host handles pods' traffic, on the real nftables and on the fake."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from weavenet.address import Address, Cidr, Endpoint, Range, parse_address
from weavenet.dataplane.desired import HostSettings
from weavenet.dataplane.kernel import reconcile, reconcile_traffic, teardown
from weavenet.dataplane.model import NOTHING, MacAddress, Programs
from weavenet.dataplane.nft import AddRule, DeleteTable, FillMap, PortMap, PortMapping, Protocol, make_rule
from weavenet.dataplane.traffic import (
    ForgetUdpFlows,
    HostTraffic,
    SetSwitch,
    Switch,
    Switches,
    TrafficSettings,
    Transaction,
    desired_traffic,
    no_traffic,
    plan_traffic,
)
from weavenet.errors import KernelError
from weavenet.sim.devices import FakeDatapath
from weavenet.sim.kernel import FakeKernel

DEVICES = HostSettings(mac=MacAddress(0x7A_00_00_00_00_01), programs=Programs("ingress-1", "egress-1"))
RANGE = Cidr.parse("10.32.0.0/12")
WEB = PortMapping(Protocol.TCP, 80, Endpoint(parse_address("10.32.0.5"), 8080))
DNS = PortMapping(Protocol.UDP, 53, Endpoint(parse_address("10.32.0.6"), 53))
ONE = PortMapping(Protocol.SCTP, 80, Endpoint(parse_address("10.32.0.7"), 80), parse_address("192.0.2.1"))
SETTINGS = TrafficSettings("weave", (RANGE,), routes=True)
OURS = (Range(Address(0x0A200000), Address(0x0A200300)),)
FULL = replace(SETTINGS, heartbeats=6784, ours=OURS, mappings=(WEB, DNS, ONE))


@pytest.fixture
def ready(host):
    """Return a host with a bridge."""
    reconcile(host.kernel, DEVICES)
    return host


def test_a_bare_host_gets_the_table_and_forwards(ready):
    done = reconcile_traffic(ready.kernel, SETTINGS)
    assert isinstance(done[0], Transaction)
    assert SetSwitch(Switch.ROUTE_LOCALNET, on=True) not in done
    actual = ready.kernel.observe_traffic()
    assert actual == desired_traffic(SETTINGS, actual)
    assert actual.switches.forwarding
    assert actual.switches.route_localnet is False
    assert reconcile_traffic(ready.kernel, SETTINGS) == ()


def test_a_host_whose_bridge_has_no_address_does_not_forward_for_it(ready):
    before = ready.kernel.observe_traffic().switches
    reconcile_traffic(ready.kernel, TrafficSettings("weave"))
    assert ready.kernel.observe_traffic().switches == before


def test_ranges_and_mappings_are_read_back_as_they_were_set(ready):
    reconcile_traffic(ready.kernel, FULL)
    actual = ready.kernel.observe_traffic()
    assert actual == desired_traffic(FULL, actual)
    assert actual.table is not None
    assert set(actual.table.mappings) == {WEB, DNS, ONE}
    assert actual.table.sets[0].ranges == FULL.ours


def test_a_mapping_more_or_less_changes_one_map_and_nothing_else(ready):
    reconcile_traffic(ready.kernel, SETTINGS)
    more = reconcile_traffic(ready.kernel, replace(SETTINGS, mappings=(WEB,)))
    assert more == (
        Transaction((FillMap(PortMap("ports", by_address=False, mappings=(WEB,))),)),
        SetSwitch(Switch.ROUTE_LOCALNET, on=True),
    )
    less = reconcile_traffic(ready.kernel, SETTINGS)
    assert less == (
        SetSwitch(Switch.ROUTE_LOCALNET, on=False),
        Transaction((FillMap(PortMap("ports", by_address=False, mappings=())),)),
    )


def test_udp_flows_of_a_mapping_that_comes_or_goes_are_forgotten(ready):
    settings = replace(SETTINGS, mappings=(DNS,))
    assert ForgetUdpFlows((53,)) in reconcile_traffic(ready.kernel, settings)
    moved = replace(DNS, container=Endpoint(parse_address("10.32.0.9"), 53))
    assert ForgetUdpFlows((53,)) in reconcile_traffic(ready.kernel, replace(SETTINGS, mappings=(moved,)))
    assert ForgetUdpFlows((53,)) in reconcile_traffic(ready.kernel, SETTINGS)


@pytest.mark.parametrize("chain", ["hostports", "loopback", "output", "postrouting", "prerouting"])
def test_a_chain_that_somebody_emptied_is_filled_again(ready, chain: str):
    reconcile_traffic(ready.kernel, FULL)
    wanted = ready.kernel.observe_traffic()
    if ready.real:
        ready.run("nft", "flush", "chain", "ip", "weavenet", chain)
    else:
        ready.kernel.flush_chain(chain)
    assert ready.kernel.observe_traffic() != wanted
    assert reconcile_traffic(ready.kernel, FULL)
    assert ready.kernel.observe_traffic() == wanted


def test_a_rule_that_somebody_added_to_our_table_goes(ready):
    reconcile_traffic(ready.kernel, FULL)
    wanted = ready.kernel.observe_traffic()
    ready.kernel.apply_traffic(Transaction((AddRule("postrouting", make_rule("a guest", "ip ttl 1 drop")),)))
    assert ready.kernel.observe_traffic() != wanted
    reconcile_traffic(ready.kernel, FULL)
    assert ready.kernel.observe_traffic() == wanted


def test_all_of_it_is_made_again_after_a_flush_of_everything(ready):
    use_iptables(ready)
    reconcile_traffic(ready.kernel, FULL)
    if ready.real:
        ready.run("nft", "flush", "ruleset")
    else:
        ready.kernel.flush_rules()
    assert ready.kernel.observe_traffic().table is None
    reconcile_traffic(ready.kernel, FULL)
    actual = ready.kernel.observe_traffic()
    assert actual == desired_traffic(FULL, actual)


def test_iptables_forward_chain_lets_pods_traffic_through_where_it_exists(ready):
    reconcile_traffic(ready.kernel, SETTINGS)
    assert ready.kernel.observe_traffic().forward is None
    use_iptables(ready)
    assert ready.kernel.observe_traffic().forward == ()
    reconcile_traffic(ready.kernel, SETTINGS)
    forward = ready.kernel.observe_traffic().forward
    assert forward is not None
    assert [rule.comment.split(" #")[0] for rule in forward] == ["weavenet: from pods", "weavenet: to pods"]
    assert reconcile_traffic(ready.kernel, SETTINGS) == ()


@pytest.mark.kernel
def test_iptables_reads_the_rules_that_we_put_into_its_chain(real_host):
    real_host.kernel.apply_traffic(Transaction(()))
    reconcile(real_host.kernel, DEVICES)
    use_iptables(real_host)
    reconcile_traffic(real_host.kernel, SETTINGS)
    shown = real_host.run("iptables-nft", "-S", "FORWARD").splitlines()
    assert [line.partition(" -m comment ")[0] for line in shown[1:3]] == ["-A FORWARD -i weave", "-A FORWARD -o weave"]
    assert shown[3] == "-A FORWARD -m conntrack --ctstate INVALID -j DROP"
    real_host.run("iptables-nft", "-F", "FORWARD")
    assert real_host.kernel.observe_traffic().forward == ()


def use_iptables(host) -> None:
    if host.real:
        host.run("iptables-nft", "-P", "FORWARD", "DROP")
        host.run("iptables-nft", "-A", "FORWARD", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP")
    else:
        host.kernel.use_iptables()


def test_nothing_is_left_after_a_teardown_but_what_others_may_rely_on(ready):
    use_iptables(ready)
    reconcile_traffic(ready.kernel, FULL)
    done = teardown(ready.kernel)
    assert any(isinstance(change, Transaction) and DeleteTable() in change.commands for change in done)
    actual = ready.kernel.observe_traffic()
    assert (actual.table, actual.forward) == (None, ())
    assert actual.switches.forwarding
    assert actual.switches.route_localnet is None
    assert teardown(ready.kernel) == ()


def test_a_teardown_without_nftables_still_removes_the_devices() -> None:
    datapath = FakeDatapath(DEVICES.programs)
    kernel = FakeKernel("weave", "vxlan-6784", datapath)
    reconcile(kernel, DEVICES)
    kernel.nftables_problem = "cannot load libnftables.so.1"
    with pytest.raises(KernelError, match="cannot load"):
        teardown(kernel)
    assert kernel.observe() == NOTHING


def test_a_watch_hears_of_changes_to_the_rules(ready):
    watch = ready.kernel.traffic_changes()
    watch.drain()
    assert not watch.drain()
    reconcile_traffic(ready.kernel, SETTINGS)
    assert watch.drain()
    watch.close()


@pytest.mark.kernel
def test_a_watch_does_not_hear_of_other_tables(real_host):
    watch = real_host.kernel.traffic_changes()
    real_host.run("nft", "add table ip kube-proxy; add chain ip kube-proxy services")
    assert not watch.drain()
    watch.close()


def test_a_transaction_of_which_one_command_fails_does_nothing(ready):
    reconcile_traffic(ready.kernel, SETTINGS)
    before = ready.kernel.observe_traffic()
    rule = make_rule("never", "drop")
    with pytest.raises(KernelError, match="No such file or directory"):
        ready.kernel.apply_traffic(Transaction((AddRule("postrouting", rule), AddRule("nosuch", rule))))
    assert ready.kernel.observe_traffic() == before


# --- the plan as a function -------------------------------------------------------------------------------------------

MAPPINGS = st.builds(
    PortMapping,
    st.sampled_from(Protocol),
    st.integers(1, 5),
    st.builds(Endpoint, st.integers(1, 9).map(Address), st.integers(1, 9)),
    st.none() | st.integers(1, 3).map(Address),
)
RANGES = st.lists(
    st.builds(lambda start, size: Range(Address(start), Address(start + size)), *[st.integers(0, 99)] * 2)
)
BOOLS = st.booleans()
TRAFFIC_SETTINGS = st.builds(
    TrafficSettings,
    st.just("weave"),
    st.lists(st.builds(lambda a, n: Cidr(Address(a), n).network, st.integers(0, 1 << 31), st.integers(8, 32))).map(
        tuple
    ),
    st.none() | RANGES.map(tuple),
    st.lists(MAPPINGS, unique_by=lambda mapping: mapping.key).map(tuple),
    BOOLS,
)
BARE = st.builds(
    HostTraffic,
    st.none(),
    st.sampled_from([None, ()]),
    st.builds(Switches, BOOLS, st.none() | BOOLS, st.none() | BOOLS),
)


@given(BARE, TRAFFIC_SETTINGS)
def test_nothing_is_to_be_done_where_all_is_as_it_should_be(bare: HostTraffic, settings: TrafficSettings):
    wanted = desired_traffic(settings, bare)
    assert plan_traffic(wanted, wanted) == []
    assert desired_traffic(settings, wanted) == wanted
    assert plan_traffic(no_traffic(wanted), no_traffic(wanted)) == []


@given(BARE, TRAFFIC_SETTINGS, TRAFFIC_SETTINGS)
def test_a_plan_leads_from_any_state_to_any_other_in_one_transaction(
    bare: HostTraffic, first: TrafficSettings, second: TrafficSettings
):
    changes = plan_traffic(desired_traffic(first, bare), desired_traffic(second, bare))
    assert sum(isinstance(change, Transaction) for change in changes) <= 1


@given(st.booleans(), st.lists(TRAFFIC_SETTINGS, min_size=1, max_size=3))
def test_whatever_was_wanted_before_a_host_becomes_what_is_wanted_now(
    has_iptables: bool, wanted: list[TrafficSettings]
):
    kernel = FakeKernel("weave", "vxlan-6784", FakeDatapath(DEVICES.programs))
    reconcile(kernel, DEVICES)
    if has_iptables:
        kernel.use_iptables()
    for settings in wanted:
        # Mappings that conflict never come this far; for the table only the same key twice is a conflict.
        reconcile_traffic(kernel, settings)
        actual = kernel.observe_traffic()
        assert actual == desired_traffic(settings, actual)
    teardown(kernel)
    assert kernel.observe_traffic().table is None


@pytest.mark.parametrize(
    ("one", "other", "conflict"),
    [
        (WEB, replace(WEB, container=Endpoint(Address(9), 9)), True),
        (WEB, replace(WEB, host_address=Address(9)), True),
        (replace(WEB, host_address=Address(8)), replace(WEB, host_address=Address(9)), False),
        (WEB, replace(WEB, protocol=Protocol.UDP), False),
        (WEB, replace(WEB, host_port=81), False),
    ],
    ids=["the same", "any and one address", "two addresses", "two protocols", "two ports"],
)
def test_two_mappings_conflict_if_a_packet_could_be_for_both(one: PortMapping, other: PortMapping, conflict: bool):
    assert one.conflicts(other) is conflict
    assert other.conflicts(one) is conflict


def test_changes_print_as_the_commands_a_person_would_type():
    change = Transaction((FillMap(PortMap("ports", by_address=False, mappings=(WEB,))),))
    assert str(change) == (
        "nft flush map ip weavenet ports; add element ip weavenet ports { tcp . 80 : 10.32.0.5 . 8080 }"
    )


@pytest.mark.kernel
def test_a_legacy_forward_chain_that_drops_is_noticed_and_none_is_made_by_looking(real_host):
    assert not real_host.kernel.legacy_forward_drops()
    names = real_host.run("cat", "/proc/thread-self/net/ip_tables_names")
    assert "filter" not in names
    real_host.run("iptables-legacy", "-P", "FORWARD", "DROP")
    real_host.run("iptables-legacy", "-A", "FORWARD", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP")
    assert real_host.kernel.legacy_forward_drops()
    real_host.run("iptables-legacy", "-I", "FORWARD", "-i", "weave", "-j", "ACCEPT")
    real_host.run("iptables-legacy", "-I", "FORWARD", "-o", "weave", "-j", "ACCEPT")
    assert not real_host.kernel.legacy_forward_drops()
