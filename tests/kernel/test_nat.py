"""Exposing and masquerading on the real kernel: a host with an agent and pods, and a client beside it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from nat_host import CLIENT, HOST, NatHost, nat_host

pytestmark = pytest.mark.kernel

BRIDGE = "10.32.0.1"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NatHost]:
    with nat_host(f"nat-{os.getpid()}", tmp_path) as made:
        # The client knows the way to pods, so that a missing translation shows as an address and not as silence.
        made.run("ip", "route", "add", "10.32.0.0/12", "via", HOST, where="host2")
        yield made


def test_a_host_that_is_not_exposed_has_no_address_and_its_bridge_gets_one_with_the_first_pod(node: NatHost) -> None:
    node.start_agent()
    assert node.bridge_addresses() == []
    node.pod("one")
    assert len(node.bridge_addresses()) == 1


def test_traffic_out_of_the_range_and_into_it_goes_by_the_hosts_address_and_other_traffic_does_not(
    node: NatHost,
) -> None:
    node.start_agent("--expose-ip", "auto")
    node.wait(lambda: node.bridge_addresses() == [f"{BRIDGE}/12"], "the bridge got no address")
    one, two = node.pod("one", serve=80), node.pod("two", serve=80)
    node.serve("host2", 80)
    assert node.ask("one", CLIENT, 80) == f"host2 {HOST}"
    assert node.ask("one", CLIENT, 80, "udp") == f"host2 {HOST}"
    assert node.ask("host2", one.address, 80) == f"one {BRIDGE}"
    assert node.ask("one", two.address, 80) == f"two {one.address}"
    assert node.ask("host1", one.address, 80) == f"one {BRIDGE}"
    node.serve("host1", 81)
    assert node.ask("one", HOST, 81) == f"host1 {one.address}"


def test_with_no_masq_local_pods_of_this_host_see_the_clients_own_address(node: NatHost) -> None:
    node.start_agent("--expose-ip", "auto", "--no-masq-local")
    one = node.pod("one", serve=80)
    node.serve("host2", 80)
    node.wait(lambda: node.ask("host2", one.address, 80) == f"one {CLIENT}", "the client is masqueraded")
    assert node.ask("one", CLIENT, 80) == f"host2 {HOST}"


def test_what_is_ours_follows_the_ring(node: NatHost) -> None:
    node.start_agent("--expose-ip", "auto", "--no-masq-local")
    node.wait(
        lambda: "elements = { 10.32.0.0/12 }" in node.run("nft", "list", "set", "ip", "weavenet", "ours"),
        "the whole range is not ours",
    )
    node.run("ip", "route", "delete", "10.32.0.0/12", where="host2")
    node.lab.start_agent(node.client, peers=[HOST], consensus=2, options=["--expose-ip", "auto"])
    node.wait(
        lambda: "10.32.0.0/12" not in node.run("nft", "list", "set", "ip", "weavenet", "ours"), "ours stayed the whole"
    )
    assert "10.32.0.0/13" in node.run("nft", "list", "set", "ip", "weavenet", "ours")


def test_the_rules_are_there_again_after_somebody_flushed_them_all(node: NatHost) -> None:
    node.start_agent("--expose-ip", "auto")
    node.run("iptables-nft", "-P", "FORWARD", "DROP")
    node.pod("one")
    node.serve("host2", 80)
    node.wait(lambda: node.ask("one", CLIENT, 80), "FORWARD drops")
    node.run("iptables-nft", "-F")
    node.wait(lambda: node.ask("one", CLIENT, 80), "FORWARD drops again")
    node.run("nft", "flush", "ruleset")
    node.run("iptables-nft", "-P", "FORWARD", "DROP")
    node.wait(lambda: node.ask("one", CLIENT, 80) == f"host2 {HOST}", "the rules did not come back")


def test_a_bridge_deleted_by_hand_gets_its_address_back(node: NatHost) -> None:
    node.start_agent("--expose-ip", "auto")
    node.wait(lambda: node.bridge_addresses() == [f"{BRIDGE}/12"], "the bridge got no address")
    node.run("ip", "link", "delete", "weave")
    node.wait(lambda: f"inet {BRIDGE}/12" in node.run("ip", "address"), "it has no address")


def test_named_addresses_are_exposed_and_stay_so_over_a_restart_without_the_flag(node: NatHost) -> None:
    node.start_agent("--expose-ip", "10.32.7.7/12,192.168.99.1/24")
    node.wait(lambda: len(node.bridge_addresses()) == 2, "the bridge got no addresses")
    node.run("ip", "link", "delete", "weave")
    node.restart_agent()
    assert sorted(node.bridge_addresses()) == ["10.32.7.7/12", "192.168.99.1/24"]
    assert "192.168.99.0/24" in node.run("nft", "list", "set", "ip", "weavenet", "subnets")


def test_a_host_that_drops_what_it_should_forward_forwards_for_pods(node: NatHost) -> None:
    node.run("sysctl", "-qw", "net.ipv4.ip_forward=0")
    node.run("iptables-nft", "-P", "FORWARD", "DROP")
    node.start_agent("--expose-ip", "auto")
    node.pod("one")
    node.serve("host2", 80)
    node.wait(lambda: node.ask("one", CLIENT, 80) == f"host2 {HOST}", "the host does not forward")


def test_a_reset_removes_the_rules_everywhere(node: NatHost) -> None:
    node.run("iptables-nft", "-P", "FORWARD", "DROP")
    node.start_agent("--expose-ip", "auto")
    node.wait(lambda: "weavenet: to pods" in node.rules(), "there is no rule in FORWARD")
    node.pod(
        "one",
        portMappings=[{"hostPort": 80, "containerPort": 80, "protocol": "tcp"}],
        bandwidth={"egressRate": 10**6, "egressBurst": 10**6},
    )
    assert "tcp . 80" in node.rules()
    assert "wlimit" in node.run("ip", "link")
    node.lab.stop_agent(node.host)
    node.weaver("--reset")
    assert "weave" not in node.rules()
    assert "weave" not in node.run("ip", "-details", "link")
    assert "wlimit" not in node.run("ip", "link")
