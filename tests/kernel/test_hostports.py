"""Host ports on the real kernel, by CNI: from outside, the host, its loopback, the pod itself, another pod."""

import os
import sys
from collections.abc import Iterator

import pytest
import sctp
from nat_host import CLIENT, HOST, NatHost, nat_host

from weavenet.errors import LabError
from weavenet.lab.process import execute

pytestmark = pytest.mark.kernel

WEB = {"hostPort": 8000, "containerPort": 80, "protocol": "tcp"}
WEB_UDP = {"hostPort": 8000, "containerPort": 80, "protocol": "udp"}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatHost]:
    with nat_host(f"ports-{os.getpid()}", tmp_path_factory.mktemp("ports")) as made:
        made.start_agent("--expose-ip", "auto", "--no-masq-local")
        yield made


@pytest.fixture
def names() -> Iterator[str]:
    return iter([f"p{number}-{os.urandom(3).hex()}" for number in range(9)])


def leave(node: NatHost, *pods) -> None:
    for pod in pods:
        node.stop_servers(pod.name)
        node.remove(pod)


def test_a_host_port_leads_to_the_pod_from_wherever_it_is_asked(node: NatHost, names) -> None:
    one = node.pod(next(names), serve=80, portMappings=[WEB, WEB_UDP])
    other = node.pod(next(names))
    for kind in ("tcp", "udp"):
        assert node.ask("host2", HOST, 8000, kind) == f"{one.name} {CLIENT}"
        assert node.ask("host1", HOST, 8000, kind).startswith(f"{one.name} ")
        assert node.ask("host1", "127.0.0.1", 8000, kind) == f"{one.name} 10.32.0.1"
        assert node.ask(one.name, HOST, 8000, kind) == f"{one.name} 10.32.0.1", "itself"
        assert node.ask(other.name, HOST, 8000, kind) == f"{one.name} 10.32.0.1", "another"
        assert node.ask(other.name, "10.32.0.1", 8000, kind) == f"{one.name} 10.32.0.1", "by the gateway's address"
    node.check(one, portMappings=[WEB, WEB_UDP])
    leave(node, one, other)
    assert node.ask("host2", HOST, 8000) == ""
    assert node.run("nft", "list", "map", "ip", "weavenet", "ports").count("elements") == 0


def test_a_host_port_of_sctp_leads_to_the_pod_and_its_answer_back(node: NatHost, names) -> None:
    mapping = WEB | {"protocol": "sctp"}
    one = node.pod(next(names), portMappings=[mapping])
    node.lab.start(f"server {one.name} sctp", [sys.executable, sctp.__file__, "serve", "80"], where=one.name)
    node.wait(lambda: sctp_answer(node, "host1", one.address, 80), "the server does not answer")
    assert sctp_answer(node, "host2", HOST, 8000) == f"{HOST} 8000"
    assert sctp_answer(node, "host1", HOST, 8000) == f"{HOST} 8000"
    node.check(one, portMappings=[mapping])
    leave(node, one)
    assert sctp_answer(node, "host2", HOST, 8000) == ""


def sctp_answer(node: NatHost, where: str, address: str, port: int) -> str:
    """Return from where an SCTP port answers; blank if it does not."""
    argv = [sys.executable, sctp.__file__, "ask", address, str(port)]
    outcome = execute(argv, namespace=node.lab.namespace(where), timeout_s=10)
    return outcome.output.strip() if outcome.status == 0 else ""


def test_a_port_of_one_address_leads_nowhere_from_another(node: NatHost, names) -> None:
    one = node.pod(next(names), serve=80, portMappings=[WEB | {"hostIP": HOST}])
    two = node.pod(next(names), serve=80, portMappings=[WEB | {"hostIP": "127.0.0.1"}])
    assert node.ask("host2", HOST, 8000).startswith(one.name)
    assert node.ask("host1", "127.0.0.1", 8000).startswith(two.name)
    assert node.ask("host1", "10.32.0.1", 8000) == ""
    leave(node, one, two)


def test_a_pod_cannot_reach_what_listens_at_the_hosts_loopback(node: NatHost, names) -> None:
    one = node.pod(next(names), serve=80, portMappings=[WEB])
    node.serve("host1", 82)
    node.run("ip", "route", "add", "127.0.0.53/32", "via", "10.32.0.1", "dev", "eth0", where=one.name)
    node.run("ip", "rule", "add", "pref", "1", "to", "127.0.0.53", "lookup", "main", where=one.name)
    node.run("ip", "rule", "add", "pref", "2", "lookup", "local", where=one.name)
    node.run("sysctl", "-qw", "net.ipv4.conf.eth0.route_localnet=1", where=one.name)
    assert node.run("sysctl", "-n", "net.ipv4.conf.weave.route_localnet").strip() == "1"
    node.run("ip", "rule", "delete", "pref", "0", "lookup", "local", where=one.name)
    assert node.ask("host1", "127.0.0.53", 82) != ""
    assert node.ask(one.name, "127.0.0.53", 82) == ""
    node.lab.stop_agent(node.host)
    node.run("nft", "flush", "chain", "ip", "weavenet", "loopback")
    assert node.ask(one.name, "127.0.0.53", 82) == f"host1 {one.address}", "it is this rule that keeps the pod out"
    node.start_agent("--expose-ip", "auto", "--no-masq-local")
    assert node.ask(one.name, "127.0.0.53", 82) == ""
    node.stop_servers("host1")
    leave(node, one)
    assert node.run("sysctl", "-n", "net.ipv4.conf.weave.route_localnet").strip() == "0"


def test_host_ports_survive_a_restart_of_the_agent_and_a_flush_meanwhile(node: NatHost, names) -> None:
    one = node.pod(next(names), serve=80, portMappings=[WEB])
    node.lab.stop_agent(node.host)
    assert node.ask("host2", HOST, 8000).startswith(one.name)
    node.run("nft", "flush", "ruleset")
    assert node.ask("host2", HOST, 8000) == ""
    node.start_agent("--expose-ip", "auto", "--no-masq-local")
    assert node.ask("host2", HOST, 8000).startswith(one.name)
    node.run("nft", "flush", "ruleset")
    node.wait(lambda: node.ask("host2", HOST, 8000).startswith(one.name), "the host port did not come back")
    leave(node, one)


def test_a_port_that_another_pod_has_is_refused_and_nothing_is_left_of_the_pod(node: NatHost, names) -> None:
    one = node.pod(next(names), serve=80, portMappings=[WEB])
    second = node.lab.make_pod(next(names), node.host)
    before = node.run("ip", "-brief", "link")
    with pytest.raises(LabError, match=r"host port 8000/tcp is taken: .* code 106"):
        node.add(second, portMappings=[WEB | {"hostPort": 8001}, WEB])
    assert node.run("ip", "-brief", "link") == before
    assert node.ask("host2", HOST, 8001) == ""
    node.remove(one)
    node.add(second, portMappings=[WEB])
    node.serve(second.name, 80)
    assert node.ask("host2", HOST, 8000).startswith(second.name)
    node.stop_servers(one.name)
    leave(node, second)


def test_a_pod_that_vanished_without_a_del_does_not_keep_its_port(node: NatHost, names) -> None:
    one = node.pod(next(names), portMappings=[WEB])
    node.lab.namespace(one.name).delete()
    node.wait(lambda: f"{one.container[:7]}" not in node.run("ip", "-brief", "link"), "the interface is still there")
    two = node.pod(next(names), serve=80, portMappings=[WEB])
    assert node.ask("host2", HOST, 8000).startswith(two.name)
    leave(node, two)


def test_a_udp_flow_follows_its_port_to_the_next_pod(node: NatHost, names) -> None:
    one = node.pod(next(names), serve=80, portMappings=[WEB_UDP])
    assert node.ask("host2", HOST, 8000, "udp", source=4444).startswith(one.name)
    leave(node, one)
    two = node.pod(next(names), serve=80, portMappings=[WEB_UDP])
    assert node.ask("host2", HOST, 8000, "udp", source=4444).startswith(two.name)
    leave(node, two)


def test_a_pod_reaches_itself_through_an_address_that_is_translated_to_it(node: NatHost, names) -> None:
    one = node.pod(next(names), serve=80)
    # As a Service does it: kube-proxy masquerades what comes from the pod that it goes to.
    for line in (
        f"PREROUTING -d 10.96.0.1 -p tcp --dport 443 -j DNAT --to {one.address}:80",
        f"POSTROUTING -s {one.address} -d {one.address} -j MASQUERADE",
    ):
        node.run("iptables-nft", "-t", "nat", "-A", *line.split())
    assert node.ask(one.name, "10.96.0.1", 443) == f"{one.name} 10.32.0.1"
    node.run("iptables-nft", "-t", "nat", "-F")
    leave(node, one)


# What kube-proxy leaves in the kernel, in its two modes, as far as it concerns one Service with a node port. At
# 10.96.0.1 and 30080 it masquerades (policy Cluster), at 10.96.0.2 and 30081 it does not.
IPTABLES_MODE = """
*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp --dport 443 -j KUBE-MARK-MASQ
-A KUBE-SERVICES -d 10.96.0.2/32 -p tcp --dport 443 -j DNAT --to-destination {service}:80
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp --dport 443 -j DNAT --to-destination {service}:80
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp --dport 30080 -j KUBE-MARK-MASQ
-A KUBE-NODEPORTS -p tcp --dport 30080 -j DNAT --to-destination {service}:80
-A KUBE-NODEPORTS -p tcp --dport 30081 -j DNAT --to-destination {service}:80
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
COMMIT
*filter
:FORWARD DROP [0:0]
:KUBE-FORWARD - [0:0]
-A FORWARD -j KUBE-FORWARD
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
"""


NFTABLES_MODE = """
table ip kube-proxy {{
    chain nat-prerouting {{ type nat hook prerouting priority -100; jump services; }}
    chain nat-output {{ type nat hook output priority -100; jump services; }}
    chain nat-postrouting {{ type nat hook postrouting priority 100; jump masquerading; }}
    chain filter-forward {{ type filter hook forward priority -110; ct state invalid drop; }}
    chain masquerading {{
        meta mark & 0x4000 == 0 return
        meta mark set meta mark ^ 0x4000
        masquerade fully-random
    }}
    chain cluster {{ meta mark set meta mark | 0x4000; meta l4proto tcp dnat to {service}:80; }}
    chain local {{ meta l4proto tcp dnat to {service}:80; }}
    map services-by-address {{
        type ipv4_addr . inet_proto . inet_service : verdict
        elements = {{ 10.96.0.1 . tcp . 443 : goto cluster, 10.96.0.2 . tcp . 443 : goto local }}
    }}
    map services-by-port {{
        type inet_proto . inet_service : verdict
        elements = {{ tcp . 30080 : goto cluster, tcp . 30081 : goto local }}
    }}
    chain services {{
        ip daddr . meta l4proto . th dport vmap @services-by-address
        fib daddr type local meta l4proto . th dport vmap @services-by-port
    }}
}}
"""


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_services_of_kube_proxy_work_beside_our_rules_and_come_first(node: NatHost, names, mode: str) -> None:
    service, other = node.pod(next(names), serve=80), node.pod(next(names))
    taken = node.pod(next(names), serve=80, portMappings=[WEB, WEB | {"hostPort": 30080}])
    if mode == "iptables":
        node.run("iptables-nft-restore", text=IPTABLES_MODE.format(service=service.address))
        node.wait(lambda: "weavenet: to pods" in node.rules(), "FORWARD has no rule of ours")
    else:
        node.run("nft", "-f", "-", text=NFTABLES_MODE.format(service=service.address))
    assert node.ask("host2", HOST, 30080) == f"{service.name} 10.32.0.1", "masqueraded; a Service comes first"
    assert node.ask("host2", HOST, 30081) == f"{service.name} {CLIENT}", "policy Local keeps the client"
    assert node.ask(other.name, "10.96.0.1", 443) == f"{service.name} 10.32.0.1"
    assert node.ask(other.name, "10.96.0.2", 443) == f"{service.name} {other.address}", "pods see each other"
    assert node.ask("host2", HOST, 8000) == f"{taken.name} {CLIENT}"
    if mode == "iptables":
        assert "weavenet: from pods" in node.run("iptables-nft-save")
        node.run("iptables-nft-restore", text="*nat\nCOMMIT\n*filter\n:FORWARD ACCEPT [0:0]\nCOMMIT\n")
    else:
        node.run("nft", "delete", "table", "ip", "kube-proxy")
    leave(node, service, other, taken)
