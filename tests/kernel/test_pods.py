"""Connecting pods to the bridge and taking them off again, on the real kernel and on the fake."""

import os
import socket
import struct
import threading

import msgspec
import pytest

from weavenet.address import Cidr, parse_address
from weavenet.dataplane.desired import HostSettings
from weavenet.dataplane.kernel import reconcile, teardown
from weavenet.dataplane.model import (
    MacAddress,
    PodInterface,
    PodLink,
    PodPort,
    PodRoute,
    Programs,
    bridge_mac,
    host_end_names,
    mac_to_bytes,
)
from weavenet.dataplane.plan import AddAddress, DeleteDevice, SetHairpin, SetMaster, SetUp
from weavenet.errors import KernelError, NamespaceError
from weavenet.identity import parse_peer_name
from weavenet.linux.netns import run_in_namespace

SETTINGS = HostSettings(
    mac=bridge_mac(parse_peer_name("7a:00:00:00:00:01")), programs=Programs("ingress-1", "egress-1")
)
CONTAINER = "0123456789abcdef" * 4
HOST_END = "vethwepl0123456"
GATEWAY = parse_address("10.32.0.1")
DEFAULT = Cidr.parse("0.0.0.0/0")
SUBNET = Cidr.parse("10.32.0.0/12")


def link_for(netns: int, container_id: str = CONTAINER, **changes) -> PodLink:
    link = PodLink(
        container_id=container_id,
        ifname="eth0",
        netns=netns,
        address=Cidr.parse("10.32.0.2/12"),
        gateway=GATEWAY,
        routes=(),
        mtu=1376,
        hairpin=True,
    )
    return msgspec.structs.replace(link, **changes)


@pytest.fixture
def ready(host):
    reconcile(host.kernel, SETTINGS)
    return host


@pytest.fixture
def real_ready(real_host):
    reconcile(real_host.kernel, SETTINGS)
    return real_host


# --- attaching --------------------------------------------------------------------------------------------------------


def test_an_attached_pod_has_its_address_and_a_default_route(ready):
    netns = ready.make_namespace()
    interface = ready.kernel.attach_pod(link_for(netns, mac=MacAddress(0x02_00_00_00_00_02)))
    assert interface == PodInterface(
        ifname="eth0",
        mac=MacAddress(0x02_00_00_00_00_02),
        mtu=1376,
        up=True,
        addresses=(Cidr.parse("10.32.0.2/12"),),
        routes=(PodRoute(DEFAULT, GATEWAY),),
        host_end=HOST_END,
        host_mac=interface.host_mac,
    )
    assert ready.kernel.inspect_pod(netns, "eth0") == interface


def test_an_attached_pod_is_listed_and_as_it_should_be(ready):
    ready.kernel.attach_pod(link_for(ready.make_namespace()))
    assert ready.kernel.list_pods() == (
        PodPort(HOST_END, CONTAINER, "eth0", up=True, master="weave", hairpin=True, hairpin_wanted=True),
    )
    assert reconcile(ready.kernel, SETTINGS) == ()


def test_the_mac_addresses_that_pods_have_are_there_for_whoever_asks(ready):
    macs = {
        ready.kernel.attach_pod(link_for(ready.make_namespace(), container_id=container_id * 12)).mac
        for container_id in "abc"
    }
    pods = ready.kernel.observe(with_macs=True).pods
    assert {pod.mac for pod in pods} == macs
    assert [pod.mac for pod in ready.kernel.observe().pods] == [None] * 3
    assert reconcile(ready.kernel, SETTINGS) == ()


@pytest.mark.parametrize(
    ("changes", "routes"),
    [
        pytest.param({"gateway": None}, (), id="no gateway, no route"),
        pytest.param(
            {"gateway": parse_address("10.99.0.1")},
            (PodRoute(DEFAULT, parse_address("10.99.0.1")), PodRoute(Cidr.parse("10.99.0.1/32"))),
            id="a gateway outside the subnet is on-link",
        ),
        pytest.param(
            {"address": Cidr.parse("10.32.0.2/32")},
            (PodRoute(DEFAULT, GATEWAY), PodRoute(Cidr.parse("10.32.0.1/32"))),
            id="a lone address",
        ),
        pytest.param({"address": Cidr.parse("10.32.0.0/31")}, (PodRoute(DEFAULT, GATEWAY),), id="point to point"),
        pytest.param(
            {
                "routes": (
                    PodRoute(Cidr.parse("10.0.0.0/8")),
                    PodRoute(Cidr.parse("192.168.0.0/16"), parse_address("10.32.0.7")),
                )
            },
            (
                PodRoute(Cidr.parse("10.0.0.0/8"), GATEWAY),
                PodRoute(Cidr.parse("192.168.0.0/16"), parse_address("10.32.0.7")),
            ),
            id="asked for, with the default gateway or their own",
        ),
        pytest.param(
            {"gateway": None, "routes": (PodRoute(SUBNET), PodRoute(Cidr.parse("10.64.0.0/12")))},
            (PodRoute(Cidr.parse("10.64.0.0/12")),),
            id="on-link; the subnet has its route already",
        ),
    ],
)
def test_a_pod_gets_the_routes_that_were_asked_for(ready, changes, routes):
    netns = ready.make_namespace()
    interface = ready.kernel.attach_pod(link_for(netns, **changes))
    assert interface.routes == routes
    assert ready.kernel.inspect_pod(netns, "eth0") == interface


def test_hairpin_is_as_asked_for(ready):
    ready.kernel.attach_pod(link_for(ready.make_namespace(), hairpin=False))
    (pod,) = ready.kernel.list_pods()
    assert (pod.hairpin, pod.hairpin_wanted) == (False, False)
    assert reconcile(ready.kernel, SETTINGS) == ()


def test_a_container_can_have_two_interfaces(ready):
    netns = ready.make_namespace()
    first = ready.kernel.attach_pod(link_for(netns))
    second = ready.kernel.attach_pod(link_for(netns, ifname="net1", address=Cidr.parse("10.2.0.2/16"), gateway=None))
    assert ready.kernel.inspect_pod(netns, "eth0") == first
    assert ready.kernel.inspect_pod(netns, "net1") == second
    assert {(pod.container_id, pod.ifname) for pod in ready.kernel.list_pods()} == {
        (CONTAINER, "eth0"),
        (CONTAINER, "net1"),
    }


def test_containers_whose_ids_begin_alike_can_both_be_attached_and_told_apart(ready):
    other = "0123456fffff"
    first, second = ready.make_namespace(), ready.make_namespace()
    ready.kernel.attach_pod(link_for(first))
    interface = ready.kernel.attach_pod(link_for(second, other, address=Cidr.parse("10.32.0.3/12")))
    assert interface.host_end == host_end_names(other, "eth0")[1]
    assert ready.kernel.detach_pod(other, "eth0", second)
    assert [pod.container_id for pod in ready.kernel.list_pods()] == [CONTAINER]


def test_a_pod_without_a_namespace_of_its_own_is_refused_in_the_words_of_weave(ready):
    with pytest.raises(NamespaceError, match="can not specify host network namespace as network namespace to which"):
        ready.kernel.attach_pod(link_for(ready.own_namespace))


def test_a_descriptor_of_something_else_is_refused(ready):
    with open(os.devnull) as file, pytest.raises(KernelError):  # noqa: PTH123 - a descriptor
        ready.kernel.attach_pod(link_for(file.fileno()))
    assert ready.kernel.list_pods() == ()


def test_without_a_bridge_nothing_can_be_attached(host):
    with pytest.raises(KernelError, match="there is no device 'weave'"):
        host.kernel.attach_pod(link_for(host.make_namespace()))


def test_attaching_a_container_twice_is_refused(ready):
    netns, another = ready.make_namespace(), ready.make_namespace()
    ready.kernel.attach_pod(link_for(netns))
    for namespace in (netns, another):
        with pytest.raises(KernelError, match=f"container {CONTAINER} is already connected, by {HOST_END}"):
            ready.kernel.attach_pod(link_for(namespace))
    assert len(ready.kernel.list_pods()) == 1


def test_an_interface_that_is_there_already_is_left_alone(ready):
    netns = ready.make_namespace()
    ready.add_pod("foreign", netns, "eth0")
    before = ready.kernel.inspect_pod(netns, "eth0")
    with pytest.raises(KernelError, match="it already has an interface eth0"):
        ready.kernel.attach_pod(link_for(netns))
    assert ready.kernel.list_pods() == ()
    assert ready.kernel.inspect_pod(netns, "eth0") == before


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"mtu": 20}, "cannot create veth pair", id="too small an MTU"),
        pytest.param({"mtu": 70000}, "cannot create veth pair", id="too large an MTU"),
        pytest.param(
            {"gateway": parse_address("10.47.255.255")},
            r"cannot add route to 0.0.0.0/0.*Invalid",
            id="a gateway that is nobody",
        ),
    ],
)
def test_what_cannot_be_attached_leaves_nothing_behind(ready, changes, words):
    netns = ready.make_namespace()
    with pytest.raises(KernelError, match=words):
        ready.kernel.attach_pod(link_for(netns, **changes))
    assert ready.kernel.list_pods() == ()
    assert ready.kernel.inspect_pod(netns, "eth0") is None
    ready.kernel.attach_pod(link_for(netns))


# --- detaching --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_namespace", [True, False], ids=["with its namespace", "without"])
def test_detaching_removes_both_ends_and_doing_it_again_finds_nothing(ready, with_namespace):
    netns = ready.make_namespace()
    ready.kernel.attach_pod(link_for(netns))
    given = netns if with_namespace else None
    assert ready.kernel.detach_pod(CONTAINER, "eth0", given)
    assert ready.kernel.list_pods() == ()
    assert ready.kernel.inspect_pod(netns, "eth0") is None
    assert not ready.kernel.detach_pod(CONTAINER, "eth0", given)


def test_names_and_addresses_can_be_used_again_at_once(ready):
    netns = ready.make_namespace()
    for _ in range(5):
        ready.kernel.attach_pod(link_for(netns))
        assert ready.kernel.detach_pod(CONTAINER, "eth0", netns)


def test_detaching_what_never_was_is_fine(ready):
    assert not ready.kernel.detach_pod(CONTAINER, "eth0", ready.make_namespace())
    assert not ready.kernel.detach_pod("x", "net1", None)
    assert not ready.kernel.detach_pod(CONTAINER, "eth0", ready.own_namespace)


@pytest.mark.parametrize("name", [HOST_END, "vethwepl0a0b0c0"], ids=["by its name", "by following its interface"])
def test_a_pod_that_weave_net_attached_can_be_detached(ready, name):
    netns = ready.make_namespace()
    ready.add_pod(name, netns, "eth0", master="weave")
    assert ready.kernel.detach_pod(CONTAINER, "eth0", netns)
    assert ready.kernel.inspect_pod(netns, "eth0") is None


def test_a_pod_of_another_network_is_not_detached(ready):
    netns = ready.make_namespace()
    ready.add_device("other", "bridge")
    ready.add_pod(HOST_END, netns, "eth0", master="other")
    assert not ready.kernel.detach_pod(CONTAINER, "eth0", netns)
    assert ready.kernel.inspect_pod(netns, "eth0") is not None


def test_the_interface_of_another_container_is_not_detached_by_its_namespace(ready):
    netns = ready.make_namespace()
    ready.kernel.attach_pod(link_for(netns))
    assert not ready.kernel.detach_pod("fedcba9876543210", "eth0", netns)
    assert len(ready.kernel.list_pods()) == 1


# --- staying attached -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("disturbances", "cure"),
    [
        pytest.param([SetUp(HOST_END, up=False)], [f"ip link set {HOST_END} up"], id="down"),
        pytest.param(
            [SetHairpin(HOST_END, hairpin=False)],
            [f"ip link set {HOST_END} type bridge_slave hairpin on"],
            id="without hairpin",
        ),
        pytest.param(
            [SetMaster(HOST_END, "")],
            [f"ip link set {HOST_END} master weave", f"ip link set {HOST_END} type bridge_slave hairpin on"],
            id="unplugged",
        ),
    ],
)
def test_a_port_that_was_changed_by_hand_is_put_right(ready, disturbances, cure):
    ready.kernel.attach_pod(link_for(ready.make_namespace()))
    wanted = ready.kernel.observe()
    for disturbance in disturbances:
        ready.kernel.apply(disturbance)
    assert [str(change) for change in reconcile(ready.kernel, SETTINGS)] == cure
    assert ready.kernel.observe() == wanted


def test_pods_are_plugged_into_a_new_bridge_when_the_old_one_was_deleted(ready):
    ready.kernel.attach_pod(link_for(ready.make_namespace()))
    wanted = ready.kernel.observe()
    ready.kernel.apply(DeleteDevice("weave"))
    reconcile(ready.kernel, SETTINGS)
    assert ready.kernel.observe() == wanted


def test_taking_down_removes_pods_of_ours_and_no_others(ready):
    ours, foreign = ready.make_namespace(), ready.make_namespace()
    ready.kernel.attach_pod(link_for(ours))
    ready.add_pod("foreign", foreign, "eth0")
    assert [str(change) for change in teardown(ready.kernel)] == [
        f"ip link delete {HOST_END}",
        "ip link delete vxlan-6784",
        "ip link delete weave",
    ]
    assert ready.kernel.inspect_pod(ours, "eth0") is None
    assert ready.kernel.inspect_pod(foreign, "eth0") is not None


def test_a_host_end_that_cannot_be_seen_is_not_named(ready):
    netns = ready.make_namespace()
    assert ready.kernel.inspect_pod(netns, "eth0") is None


# --- what only a real kernel can show ---------------------------------------------------------------------------------


@pytest.mark.kernel
def test_a_pod_obeys_no_router_advertisements_and_has_our_arp_times(real_ready):
    netns = real_ready.make_namespace()
    real_ready.kernel.attach_pod(link_for(netns))
    settings = ("ipv6/conf/eth0/accept_ra", *(f"ipv4/neigh/eth0/{name}" for name in (
        "base_reachable_time_ms", "delay_first_probe_time", "ucast_solicit")))  # fmt: skip
    shown = real_ready.run_inside(netns, "cat", *(f"/proc/sys/net/{name}" for name in settings))
    assert shown.split() == ["0", "5000", "2", "1"]


@pytest.mark.kernel
def test_the_first_packet_of_a_pod_arrives_although_it_is_sent_at_once(real_ready):
    first, second = real_ready.make_namespace(), real_ready.make_namespace()
    real_ready.kernel.attach_pod(link_for(first))
    receiver = run_in_namespace(first, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    receiver.bind(("10.32.0.2", 7000))
    receiver.settimeout(0.9)  # an ARP request that was lost would be repeated after a second
    real_ready.kernel.attach_pod(link_for(second, "b" * 64, address=Cidr.parse("10.32.0.3/12")))
    sender = run_in_namespace(second, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with sender, receiver:
        sender.sendto(b"hello", ("10.32.0.2", 7000))
        assert receiver.recv(100) == b"hello"


@pytest.mark.kernel
def test_a_new_pod_makes_itself_known_to_the_others(real_ready):
    first, second = real_ready.make_namespace(), real_ready.make_namespace()
    real_ready.kernel.attach_pod(link_for(first))
    listener = run_in_namespace(first, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)))
    with listener:
        listener.settimeout(5)
        interface = real_ready.kernel.attach_pod(link_for(second, "b" * 64, address=Cidr.parse("10.32.0.3/12")))
        frame = listener.recv(100)
    address = bytes([10, 32, 0, 3])
    mac = mac_to_bytes(interface.mac)
    assert frame[:14] == b"\xff" * 6 + mac + struct.pack("!H", 0x0806)
    assert frame[14:42] == struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + address + bytes(6) + address


@pytest.mark.kernel
def test_a_new_address_of_the_bridge_makes_itself_known_to_pods(real_ready):
    pod = real_ready.make_namespace()
    real_ready.kernel.attach_pod(link_for(pod))
    listener = run_in_namespace(pod, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)))
    with listener:
        listener.settimeout(5)
        real_ready.kernel.apply(AddAddress("weave", Cidr.parse("10.32.0.1/12")))
        frame = listener.recv(100)
    address, mac = bytes([10, 32, 0, 1]), mac_to_bytes(SETTINGS.mac)
    assert frame[14:42] == struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + address + bytes(6) + address


@pytest.mark.kernel
def test_a_stale_address_elsewhere_is_corrected_by_the_new_owner(real_ready):
    asking, old, new = (real_ready.make_namespace() for _ in range(3))
    real_ready.kernel.attach_pod(link_for(asking, "a" * 64, address=Cidr.parse("10.32.0.9/12")))
    before = real_ready.kernel.attach_pod(link_for(old, "b" * 64))
    real_ready.run_inside(asking, "ping", "-c1", "-W2", "10.32.0.2")
    real_ready.kernel.detach_pod("b" * 64, "eth0", old)
    after = real_ready.kernel.attach_pod(link_for(new, "c" * 64))
    assert before.mac != after.mac
    real_ready.run_inside(asking, "ping", "-c1", "-W2", "10.32.0.2")


@pytest.mark.kernel
def test_a_pod_whose_namespace_ends_is_gone_from_the_host(real_host):
    reconcile(real_host.kernel, SETTINGS)
    netns = real_host.make_namespace()
    watch = real_host.kernel.changes()
    real_host.kernel.attach_pod(link_for(netns))
    real_host.namespaces.remove(netns)
    os.close(netns)
    while real_host.kernel.list_pods():  # the kernel cleans up in its own time, and says so
        socket_poll(watch.fileno())
        watch.drain()
    watch.close()
    assert not real_host.kernel.detach_pod(CONTAINER, "eth0", None)


def socket_poll(descriptor: int) -> None:
    import select

    assert select.select([descriptor], [], [], 10)[0], "the kernel said nothing"


@pytest.mark.kernel
def test_many_pods_can_be_attached_and_detached_at_once(real_ready):
    namespaces = [real_ready.make_namespace() for _ in range(24)]
    failures: list[BaseException] = []

    def one(number: int) -> None:
        try:
            container = f"{number:064x}"[::-1]
            link = link_for(namespaces[number], container, address=Cidr.parse(f"10.32.1.{number}/12"))
            interface = real_ready.kernel.attach_pod(link)
            assert real_ready.kernel.inspect_pod(namespaces[number], "eth0") == interface
            assert real_ready.kernel.detach_pod(container, "eth0", None)
        except BaseException as error:  # noqa: BLE001 - shown below
            failures.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(namespaces))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert real_ready.kernel.list_pods() == ()


@pytest.mark.kernel
def test_attaching_and_detaching_leaks_no_descriptor(real_ready):
    def leftovers_done() -> int:
        for thread in threading.enumerate():
            if thread.name == "weavenet-leftover":
                thread.join()
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counted, not used

    netns = real_ready.make_namespace()
    before = leftovers_done()
    for _ in range(3):
        real_ready.kernel.attach_pod(link_for(netns))
        real_ready.kernel.detach_pod(CONTAINER, "eth0", netns)
        with pytest.raises(KernelError):
            real_ready.kernel.attach_pod(link_for(netns, gateway=parse_address("10.47.255.255")))
    assert leftovers_done() == before


@pytest.mark.kernel
def test_a_link_deleted_by_hand_is_not_an_error_to_detach(real_ready):
    netns = real_ready.make_namespace()
    real_ready.kernel.attach_pod(link_for(netns))
    real_ready.delete_device(HOST_END)
    assert not real_ready.kernel.detach_pod(CONTAINER, "eth0", netns)


@pytest.mark.kernel
def test_the_bridge_and_its_pods_can_reach_each_other(real_ready):
    netns = real_ready.make_namespace()
    real_ready.kernel.attach_pod(link_for(netns))
    real_ready.kernel.apply(AddAddress("weave", Cidr.parse("10.32.0.1/12")))
    real_ready.run("ping", "-c1", "-W2", "10.32.0.2")
    real_ready.run_inside(netns, "ping", "-c1", "-W2", "10.32.0.1")


def test_a_mac_address_that_was_changed_in_a_pod_is_shown_as_it_is_also_to_a_new_agent(real_ready):
    netns = real_ready.make_namespace()
    real_ready.kernel.attach_pod(link_for(netns))
    real_ready.run_inside(netns, "ip", "link", "set", "eth0", "address", "02:00:00:00:00:77")
    restarted = real_ready.new_kernel()
    try:
        (pod,) = restarted.observe(with_macs=True).pods
    finally:
        restarted.close()
    assert pod.mac == MacAddress(0x0200_0000_0077)


def test_the_far_end_of_a_pair_that_never_left_this_namespace_has_a_mac_address_too(real_ready):
    real_ready.run("ip", "link", "add", "vethwepl-near", "type", "veth", "peer", "far0", "address", "02:00:00:00:00:78")
    real_ready.run("ip", "link", "set", "vethwepl-near", "alias", f"weavenet:{CONTAINER}/far0")
    (pod,) = real_ready.kernel.observe(with_macs=True).pods
    assert pod.mac == MacAddress(0x0200_0000_0078)
