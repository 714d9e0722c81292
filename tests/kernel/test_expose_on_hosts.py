"""`weave expose` and `hide` of real agents on lab hosts: what pods notice."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import mesh_lab
import pytest
from mesh_lab import weave
from nat_host import CLIENT, HOST, NatHost, nat_host

from weavenet.lab import agents, process

pytestmark = pytest.mark.kernel


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NatHost]:
    with nat_host(f"expose-{os.getpid()}", tmp_path) as made:
        made.run("ip", "route", "add", "10.32.0.0/12", "via", HOST, where="host2")
        made.run("ip", "route", "add", "192.168.99.0/24", "via", HOST, where="host2")
        yield made


def told(node: NatHost, *words: str) -> process.Outcome:
    return mesh_lab.told(node.lab, node.host, *words)


def test_what_is_exposed_is_printed_masqueraded_and_kept_over_a_restart_until_it_is_hidden(node: NatHost) -> None:
    node.start_agent()
    assert weave(node.lab, node.host, "expose") == "10.32.0.1\n"
    assert weave(node.lab, node.host, "expose", "net:default", "ip:192.168.99.1/24") == "10.32.0.1 192.168.99.1\n"
    one = node.pod("one", serve=80)
    node.serve("host2", 80)
    assert node.ask("one", CLIENT, 80) == f"host2 {HOST}"
    assert node.ask("host2", one.address, 80) == "one 10.32.0.1"
    node.run("ip", "link", "delete", "weave")
    node.restart_agent()
    assert sorted(node.bridge_addresses()) == ["10.32.0.1/12", "192.168.99.1/24"]
    assert weave(node.lab, node.host, "hide", "192.168.99.1/24") == "192.168.99.1\n"
    assert node.bridge_addresses() == ["10.32.0.1/12"]
    assert "192.168.99.0/24" not in node.rules()
    node.restart_agent()
    assert node.bridge_addresses() == ["10.32.0.1/12"]


def test_without_masquerading_clients_and_pods_see_each_other_also_after_a_restart_and_more_pods(node: NatHost) -> None:
    node.start_agent()
    weave(node.lab, node.host, "expose", "--without-masquerade")
    one = node.pod("one", serve=80)
    assert node.ask("host2", one.address, 80) == f"one {CLIENT}"
    node.restart_agent()
    node.pod("two")
    assert node.ask("host2", one.address, 80) == f"one {CLIENT}"
    weave(node.lab, node.host, "expose")
    assert node.ask("host2", one.address, 80) == "one 10.32.0.1"


def test_hiding_pods_gateway_frees_it_says_whom_it_cuts_off_and_exposing_it_again_brings_them_back(
    node: NatHost,
) -> None:
    node.start_agent()
    one, two = node.pod("one"), node.pod("two", serve=80)
    (gateway,) = node.bridge_addresses()
    node.serve("host2", 80)
    assert node.ask("one", CLIENT, 80) == f"host2 {HOST}"
    hidden = told(node, "hide")
    assert (hidden.status, hidden.output) == (0, gateway.partition("/")[0] + "\n"), hidden.errors
    assert f"2 pods of this host may have {gateway.partition('/')[0]} as gateway" in hidden.errors
    assert node.bridge_addresses() == []
    assert gateway not in agents.query(node.lab.paths, node.host, "/ip")
    assert node.ask("one", CLIENT, 80) == ""
    assert node.ask("one", two.address, 80) == f"two {one.address}"
    assert told(node, "hide") == process.Outcome(0, "", "")
    weave(node.lab, node.host, "expose", f"ip:{gateway}")
    node.wait(lambda: node.ask("one", CLIENT, 80) == f"host2 {HOST}", "the gateway is not back")


def test_what_cannot_be_exposed_is_refused_and_leaves_nothing(node: NatHost) -> None:
    node.start_agent()
    pod = node.pod("one")
    before = (node.bridge_addresses(), agents.query(node.lab.paths, node.host, "/ip"))
    taken = told(node, "expose", f"{pod.address}/12")
    assert taken.status == 1
    assert f"unable to expose: address {pod.address}/12 is already owned by" in taken.errors
    assert "broadcast address" in told(node, "expose", "10.47.255.255/12").errors
    assert "hide that first" in told(node, "expose", before[0][0].replace("/12", "/16")).errors
    assert (node.bridge_addresses(), agents.query(node.lab.paths, node.host, "/ip")) == before


def test_without_address_allocation_given_addresses_are_exposed_and_kept_over_a_restart(node: NatHost) -> None:
    options = ["--ipalloc-range=", "--ipalloc-init="]
    node.start_agent(*options)
    assert "IP address allocation must be enabled to use 'net:'" in told(node, "expose").errors
    assert weave(node.lab, node.host, "expose", "--without-masquerade", "192.168.99.1/24") == "192.168.99.1\n"
    node.run("ip", "link", "delete", "weave")
    node.restart_agent(*options)
    assert node.bridge_addresses() == ["192.168.99.1/24"]
    assert json.loads(weave(node.lab, node.host, "hide", "--json", "192.168.99.1/24")) == ["192.168.99.1/24"]
    assert node.bridge_addresses() == []
    node.restart_agent(*options)
    assert node.bridge_addresses() == []


def test_an_address_on_a_subnet_that_the_host_reaches_otherwise_is_exposed_with_a_warning(node: NatHost) -> None:
    node.start_agent()
    exposed = told(node, "expose", "10.99.0.77/28")
    assert exposed == process.Outcome(
        0, "10.99.0.77\n", "Address 10.99.0.77/28 overlaps with existing route 10.99.0.0/24 dev eth0 on host\n"
    )
