"""Bringing a host to its wanted state, and out of it again, on the real kernel and on the fake."""

import msgspec
import pytest

from weavenet.address import Cidr, Range, parse_address
from weavenet.dataplane.desired import HostSettings, desired_network
from weavenet.dataplane.kernel import reconcile, teardown
from weavenet.dataplane.model import (
    KERNEL_NEIGHBOUR_TIMES,
    NOTHING,
    Bridge,
    HostRoute,
    MacAddress,
    Programs,
    Vxlan,
    bridge_mac,
    overlapping_routes,
)
from weavenet.dataplane.plan import (
    AddAddress,
    Change,
    CreateBridge,
    CreateVxlan,
    DeleteDevice,
    RemoveAddress,
    SetAcceptRa,
    SetHairpin,
    SetIpv6LinkLocal,
    SetLearning,
    SetMac,
    SetMaster,
    SetMtu,
    SetNeighbourTimes,
    SetPromoteSecondaries,
    SetStp,
    SetUp,
    plan,
)
from weavenet.errors import IncompatibleDeviceError, KernelError, RefusedError
from weavenet.identity import parse_peer_name

NAME = parse_peer_name("7a:00:00:00:00:01")
SETTINGS = HostSettings(mac=bridge_mac(NAME), programs=Programs("ingress-1", "egress-1"))
EXPOSED = Cidr.parse("10.32.0.1/12")


def test_a_bare_host_gets_a_bridge_and_a_vxlan_device(host):
    assert [str(change) for change in reconcile(host.kernel, SETTINGS)] == [
        "ip link add weave address 7a:00:00:00:00:01 mtu 1376 type bridge stp_state 0",
        "sysctl net.ipv6.conf.weave.accept_ra=0",
        "sysctl net.ipv4.conf.weave.promote_secondaries=1",
        "sysctl net.ipv4.neigh.weave: base_reachable_time_ms=5000 delay_first_probe_time=2 ucast_solicit=1",
        "ip link set weave up",
        "ip link add vxlan-6784 mtu 1376 type vxlan external dstport 6784 nolearning",
        "tc filter replace dev vxlan-6784: ingress ingress-1 egress egress-1",
        "ip link set vxlan-6784 master weave",
        "ip link set vxlan-6784 up",
    ]
    actual = host.kernel.observe()
    assert actual == desired_network(SETTINGS, actual)


def test_reconciling_again_changes_nothing(host):
    reconcile(host.kernel, SETTINGS)
    assert reconcile(host.kernel, SETTINGS) == ()


def test_another_agent_finds_everything_in_place(host):
    reconcile(host.kernel, SETTINGS)
    successor = host.new_kernel()
    assert reconcile(successor, SETTINGS) == ()
    if host.real:
        successor.close()


@pytest.mark.parametrize(
    "disturbance",
    [
        pytest.param(SetUp("weave", up=False), id="the bridge is down"),
        pytest.param(SetMac("weave", MacAddress(0x02_00_00_00_00_09)), id="the bridge has another MAC address"),
        pytest.param(SetMtu("weave", 1000), id="the bridge has another MTU"),
        pytest.param(SetStp("weave", stp=True), id="the bridge speaks STP"),
        pytest.param(SetAcceptRa("weave", accept=True), id="the bridge accepts router advertisements"),
        pytest.param(SetPromoteSecondaries("weave", promote=False), id="the bridge drops secondary addresses"),
        pytest.param(SetNeighbourTimes("weave", KERNEL_NEIGHBOUR_TIMES), id="ARP has the kernel's pace"),
        pytest.param(AddAddress("weave", EXPOSED), id="the bridge has an address"),
        pytest.param(DeleteDevice("weave"), id="the bridge is gone"),
        pytest.param(SetUp("vxlan-6784", up=False), id="the VXLAN device is down"),
        pytest.param(SetMtu("vxlan-6784", 1400), id="the VXLAN device has another MTU"),
        pytest.param(SetMaster("vxlan-6784", ""), id="the VXLAN device is not a port"),
        pytest.param(SetLearning("vxlan-6784", learning=True), id="the VXLAN device learns"),
        pytest.param(SetIpv6LinkLocal("vxlan-6784", enabled=True), id="the VXLAN device has an IPv6 address"),
        pytest.param(DeleteDevice("vxlan-6784"), id="the VXLAN device is gone"),
    ],
)
def test_what_was_changed_by_hand_is_put_right(host, disturbance: Change):
    settings = msgspec.structs.replace(SETTINGS, addresses=())
    reconcile(host.kernel, settings)
    wanted = host.kernel.observe()
    host.kernel.apply(disturbance)
    assert host.kernel.observe() != wanted
    assert reconcile(host.kernel, settings)
    assert host.kernel.observe() == wanted


def test_missing_programs_are_attached_again(host):
    reconcile(host.kernel, SETTINGS)
    host.datapath.devices.clear()
    assert [str(change) for change in reconcile(host.kernel, SETTINGS)] == [
        "tc filter replace dev vxlan-6784: ingress ingress-1 egress egress-1"
    ]


def test_a_bridge_of_weave_net_is_adopted_with_its_addresses_and_ports(host):
    host.add_device("weave", "bridge")
    host.kernel.apply(AddAddress("weave", EXPOSED))
    namespace = host.make_namespace()
    host.add_pod("vethwepl1234567", namespace, "eth0", master="weave")
    before = host.kernel.inspect_pod(namespace, "eth0")
    assert "ip link set weave alias weavenet" in map(str, reconcile(host.kernel, SETTINGS))
    bridge = host.kernel.observe().bridge
    assert isinstance(bridge, Bridge)
    assert (bridge.ours, bridge.mac, bridge.addresses) == (True, bridge_mac(NAME), (EXPOSED,))
    assert host.kernel.inspect_pod(namespace, "eth0") == before


@pytest.mark.parametrize(
    ("device", "attribute", "words"),
    [
        pytest.param({"name": "weave", "kind": "vcan"}, "link type", "vcan vs bridge", id="a bridge's name"),
        pytest.param({"name": "vxlan-6784", "kind": "bridge"}, "link type", "bridge vs vxlan", id="a VXLAN's name"),
        pytest.param(
            {"name": "vxlan-6784", "kind": "vxlan", "port": 6784}, "external", "off vs on", id="a VXLAN with a VNI"
        ),
        pytest.param(
            {"name": "vxlan-6784", "kind": "vxlan", "port": 4789, "external": True},
            "dstport",
            "4789 vs 6784",
            id="another port",
        ),
        pytest.param(
            {"name": "vxlan-6784", "kind": "vxlan", "port": 6784, "external": True, "master": "other"},
            "master",
            "other vs weave",
            id="a port of another bridge",
        ),
    ],
)
def test_a_device_in_the_way_is_refused_by_what_differs_and_nothing_is_changed(host, device, attribute, words):
    if host.real and device["kind"] == "vcan":
        device = {**device, "kind": "veth"}
        words = "veth vs bridge"
    host.add_device("other", "bridge")
    host.add_device(**device)
    before = host.kernel.observe()
    with pytest.raises(IncompatibleDeviceError) as caught:
        reconcile(host.kernel, SETTINGS)
    assert caught.value.attribute == attribute
    assert f"{attribute}: {words}" in str(caught.value)
    assert host.kernel.observe() == before


def test_a_compatible_vxlan_device_is_adopted(host):
    host.add_device("vxlan-6784", "vxlan", port=6784, external=True)
    changes = [str(change) for change in reconcile(host.kernel, SETTINGS)]
    assert "ip link set vxlan-6784 alias weavenet" in changes
    assert not any("type vxlan external" in change for change in changes)


def test_our_own_vxlan_device_with_another_port_is_made_anew(host):
    host.add_device("vxlan-6784", "vxlan", port=4789, external=True, alias="weavenet")
    changes = [str(change) for change in reconcile(host.kernel, SETTINGS)]
    assert changes.index("ip link delete vxlan-6784") < changes.index(
        "ip link add vxlan-6784 mtu 1376 type vxlan external dstport 6784 nolearning"
    )
    vxlan = host.kernel.observe().vxlan
    assert isinstance(vxlan, Vxlan)
    assert vxlan.port == 6784


def test_a_foreign_device_on_our_port_makes_the_kernel_refuse_ours(host):
    host.add_device("vxlan_sys_6784", "vxlan", port=6784, external=True)
    with pytest.raises(RefusedError, match="File exists"):
        reconcile(host.kernel, SETTINGS)


def test_the_bridge_has_exactly_the_addresses_that_were_asked_for(host):
    reconcile(host.kernel, SETTINGS)
    host.kernel.apply(AddAddress("weave", Cidr.parse("10.32.0.9/12")))
    asked = msgspec.structs.replace(SETTINGS, addresses=(EXPOSED, Cidr.parse("10.2.0.1/16")))
    assert [str(change) for change in reconcile(host.kernel, asked)] == [
        "ip address add 10.2.0.1/16 dev weave",
        "ip address add 10.32.0.1/12 dev weave",
        "ip address delete 10.32.0.9/12 dev weave",
    ]


def test_without_the_sysctl_the_first_address_of_a_subnet_takes_the_others_with_it(host):
    reconcile(host.kernel, msgspec.structs.replace(SETTINGS, addresses=(EXPOSED,)))
    host.kernel.apply(SetPromoteSecondaries("weave", promote=False))
    host.kernel.apply(AddAddress("weave", Cidr.parse("10.32.0.9/12")))
    host.kernel.apply(AddAddress("weave", Cidr.parse("10.32.0.7/16")))
    host.kernel.apply(RemoveAddress("weave", EXPOSED))
    bridge = host.kernel.observe().bridge
    assert isinstance(bridge, Bridge)
    assert bridge.addresses == (Cidr.parse("10.32.0.7/16"),)


def test_addresses_are_kept_unless_others_are_asked_for(host):
    reconcile(host.kernel, msgspec.structs.replace(SETTINGS, addresses=(EXPOSED,)))
    assert reconcile(host.kernel, SETTINGS) == ()
    assert [str(change) for change in reconcile(host.kernel, msgspec.structs.replace(SETTINGS, addresses=()))] == [
        "ip address delete 10.32.0.1/12 dev weave"
    ]


def test_taking_down_leaves_nothing_of_ours_and_all_that_is_not(host):
    host.add_device("other", "bridge")
    reconcile(host.kernel, SETTINGS)
    assert [str(change) for change in teardown(host.kernel)] == [
        "ip link delete vxlan-6784",
        "ip link delete weave",
    ]
    assert host.kernel.observe() == NOTHING
    host.delete_device("other")  # which fails if it is not there


def test_taking_down_spares_devices_that_only_have_our_names(host):
    host.add_device("weave", "bridge")
    host.add_device("vxlan-6784", "vxlan", port=6784, external=True)
    assert teardown(host.kernel) == ()
    host.delete_device("weave")
    host.delete_device("vxlan-6784")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(CreateBridge("weave", MacAddress(0x02_00_00_00_00_01), 1376), "File exists", id="name taken"),
        pytest.param(CreateVxlan("vxlan-2", 6784, 1376), "File exists", id="port taken"),
        pytest.param(CreateBridge("weave2", MacAddress(0x02_00_00_00_00_01), 10), "Invalid argument", id="tiny MTU"),
        pytest.param(SetUp("nothing", up=True), "there is no device 'nothing'", id="no such device"),
        pytest.param(SetAcceptRa("nothing", accept=True), "there is no device 'nothing'", id="no such sysctl"),
        pytest.param(SetMaster("vxlan-6784", "nothing"), "there is no device 'nothing'", id="no such bridge"),
        pytest.param(SetMaster("vxlan-6784", "other"), "cannot make vxlan-6784 a port of other", id="not a bridge"),
        pytest.param(SetHairpin("weave", hairpin=True), "cannot set hairpin mode of weave", id="not a port"),
        pytest.param(SetMac("weave", MacAddress(0x01_00_00_00_00_01)), "MAC address of weave", id="a group's MAC"),
        pytest.param(SetMtu("weave", 70000), "cannot set the MTU of weave to 70000", id="MTU too large"),
        pytest.param(DeleteDevice("other"), "will not delete other: it is not ours", id="not ours"),
    ],
)
def test_what_the_kernel_refuses_is_an_error_that_says_what(host, change: Change, words: str):
    reconcile(host.kernel, SETTINGS)
    host.add_device("other", "veth")
    with pytest.raises(KernelError, match=words.replace("(", r"\(")):
        host.kernel.apply(change)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(DeleteDevice("nothing"), id="delete"),
        pytest.param(AddAddress("weave", EXPOSED), id="add an address"),
        pytest.param(RemoveAddress("weave", Cidr.parse("10.99.0.1/24")), id="remove an address"),
        pytest.param(SetUp("weave", up=True), id="switch on"),
        pytest.param(SetMaster("vxlan-6784", "weave"), id="make a port"),
    ],
)
def test_what_is_so_already_is_not_an_error(host, change: Change):
    reconcile(host.kernel, msgspec.structs.replace(SETTINGS, addresses=(EXPOSED,)))
    before = host.kernel.observe()
    host.kernel.apply(change)
    assert host.kernel.observe() == before


def test_every_change_is_hinted_at(host):
    watch = host.kernel.changes()
    assert not watch.drain()
    reconcile(host.kernel, SETTINGS)
    assert watch.drain()
    assert not watch.drain()
    host.kernel.apply(AddAddress("weave", EXPOSED))
    assert watch.drain()
    watch.close()


def test_routes_that_lead_elsewhere_are_found(host):
    reconcile(host.kernel, msgspec.structs.replace(SETTINGS, addresses=(EXPOSED,)))
    host.add_device("other", "bridge")
    host.kernel.apply(AddAddress("other", Cidr.parse("10.40.0.1/16")))
    host.kernel.apply(SetUp("other", up=True))
    routes = host.kernel.host_routes()
    assert HostRoute(Cidr.parse("10.32.0.0/12"), "weave") in routes
    wanted = Cidr.parse("10.32.0.0/12").range
    assert overlapping_routes(routes, wanted, "weave") == (HostRoute(Cidr.parse("10.40.0.0/16"), "other"),)
    assert overlapping_routes(routes, Range(parse_address("10.0.0.0"), parse_address("10.1.0.0")), "weave") == ()


def test_the_plan_after_a_plan_is_empty_without_reconciling(host):
    settings = msgspec.structs.replace(SETTINGS, addresses=(EXPOSED,))
    actual = host.kernel.observe()
    for change in plan(actual, desired_network(settings, actual)):
        host.kernel.apply(change)
    actual = host.kernel.observe()
    assert plan(actual, desired_network(settings, actual)) == []
