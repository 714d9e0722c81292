"""What an agent says of its connections: the overlay, why not the better one, how far away, how much went by."""

import json
from pathlib import Path
from typing import Any

import mesh_lab
import pytest
from mesh_lab import until

from weavenet.lab import agents, process, traffic
from weavenet.lab.hosts import Lab
from weavenet.lab.record import HostRecord

pytestmark = pytest.mark.kernel

BLOCK = "table inet block { chain in { type filter hook prerouting priority -400; udp dport 6784 drop; }; }"


def connections(lab: Lab, host: HostRecord) -> str:
    return mesh_lab.weave(lab, host, "status", "connections")


def line_of(lab: Lab, host: HostRecord, other: HostRecord) -> str:
    return next((line for line in connections(lab, host).splitlines() if f"({other.name})" in line), "")


def link_to(lab: Lab, host: HostRecord, other: HostRecord) -> dict[str, Any]:
    report = json.loads(mesh_lab.weave(lab, host, "report"))
    return next(link for link in report["Weavenet"]["Links"] if link["NickName"] == other.name)


def test_a_blocked_port_and_a_switched_off_overlay_are_named_and_traffic_is_counted(tmp_path: Path) -> None:
    with mesh_lab.empty_lab(tmp_path, "why") as lab:
        one, two, three = (lab.add_host() for _ in range(3))
        process.run(["nft", BLOCK], namespace=lab.namespace(one.name))
        for host, options in ((one, ()), (two, ()), (three, ("--no-fastdp",))):
            mesh_lab.start(lab, host, options)
        # Each end chooses for what it sends: what host2 sends does not arrive, so it takes the other way.
        until(lambda: "established sleeve" in line_of(lab, two, one), "by sleeve towards host1", lab, two)
        blocked = line_of(lab, two, one)
        assert "(fastdp trying: " in blocked
        assert "is UDP port 6784 open" in blocked
        assert "rtt=" in blocked
        here, there = lab.add_pod(one), lab.add_pod(two)
        traffic.ping(lab, traffic.Route(here.name, there.name, there.address))
        traffic.ping(lab, traffic.Route(there.name, here.name, here.address))
        until(lambda: "established" in line_of(lab, one, three), "host3 is connected", lab, three)
        assert "(fastdp not offered: the peer does not offer it)" in line_of(lab, one, three)
        assert "(fastdp not offered: it is switched off here)" in line_of(lab, three, one)

        process.run(["nft", "delete", "table", "inet", "block"], namespace=lab.namespace(one.name))
        until(lambda: "established fastdp" in line_of(lab, two, one), "fastdp takes over", lab, two)
        traffic.ping(lab, traffic.Route(here.name, there.name, there.address))
        link = link_to(lab, one, two)
        assert [each["State"] for each in link["Overlays"]] == ["in use", "stands by"]
        assert link["Traffic"]["SentPackets"] > 0
        assert link["Traffic"]["ReceivedBytes"] > 0
        assert 0 < link["RTTMicroseconds"] < 10_000_000
        metrics = agents.query(lab.paths, one, "/metrics")
        who = f'nickname="{two.name}",overlay="fastdp",peer="{two.peer_name}",state="in use"'
        assert f"weavenet_peer_overlay{{{who}}} 1.0" in metrics
        assert "weavenet_peer_sent_packets_total{" in metrics
        assert 'weavenet_sleeve_events_total{event="sent"}' in metrics
