"""Metrics against those of a real router: the same names, kinds, labels, help, and values from the same report."""

import re
from pathlib import Path

import msgspec

from weavenet.agent.metrics import metrics_text
from weavenet.api.schema import decode_report
from weavenet.node.report import Attachment, Ipam, OverlayLink, OverlayState, RingEntry, Traffic, Weavenet

RECORDED = Path(__file__).parents[1] / "recorded"
REPORT = decode_report((RECORDED / "host1-report.json").read_bytes())
# No DNS and no flows here; Go's own metrics are of a Go process.
_NOT_OURS = ("go_", "process_", "promhttp_", "weave_dns_entries")


def lines_of(text: str) -> list[str]:
    found = []
    for line in text.splitlines():
        name = re.sub(r"^# \w+ ", "", line)
        if name.startswith(_NOT_OURS) or name.startswith("weavenet_"):
            continue
        labels = re.search(r"\{(.*)\}", line)
        if labels:
            line = line.replace(labels[1], ",".join(sorted(labels[1].split(","))))
        head, _, value = line.rpartition(" ")
        found.append(line if line.startswith("#") else f"{head} {float(value)}")
    return sorted(found)


def test_a_recorded_report_makes_the_recorded_metrics() -> None:
    assert lines_of(metrics_text(REPORT).decode()) == lines_of((RECORDED / "host1-metrics.txt").read_text())


def test_encrypted_connections_and_attempts_are_counted_apart() -> None:
    report = decode_report((RECORDED / "encrypted-2node-host1-report.txt").read_bytes())
    waiting = decode_report((RECORDED / "host1-awaiting-consensus-report.json").read_bytes())

    assert 'weave_connections{encryption="yes",state="established",type="sleeve"} 1.0' in lines_of(
        metrics_text(report).decode()
    )
    assert 'weave_connections{encryption="",state="failed",type="unknown"} 2.0' in lines_of(
        metrics_text(waiting).decode()
    )


def test_what_the_dead_own_is_counted_in_peers_and_percent() -> None:
    entries = (
        RingEntry("10.32.0.0", 1 << 18, "a", "a", is_known_peer=False, version=0),
        RingEntry("10.36.0.0", 1 << 18, "b", "b", is_known_peer=True, version=0),
        RingEntry("10.40.0.0", 1 << 18, "a", "a", is_known_peer=False, version=0),
    )
    ipam = Ipam(None, "10.32.0.0/12", 1 << 20, 0, "10.32.0.0/12", entries, None, None)

    text = metrics_text(msgspec.structs.replace(REPORT, ipam=ipam)).decode()

    assert "\nweave_ipam_unreachable_count 1.0\n" in text
    assert "\nweave_ipam_unreachable_percentage 50.0\n" in text


def test_without_address_allocation_there_are_no_metrics_about_it() -> None:
    assert "weave_ip" not in metrics_text(msgspec.structs.replace(REPORT, ipam=None)).decode()


def test_our_own_metrics_have_our_own_names() -> None:
    ours = Weavenet(
        counters={"unknown_peer": 7},
        attachments=(Attachment("c1", "vethwepl1", "3e:5c:41:ff:a0:12"),),
        problems=("no device",),
    )

    text = metrics_text(msgspec.structs.replace(REPORT, weavenet=ours)).decode()

    assert 'weavenet_dataplane_events_total{event="unknown_peer"} 7.0\n' in text
    assert "weavenet_attachments 1.0\n" in text
    assert "weavenet_dataplane_problems 1.0\n" in text


def test_each_peer_has_its_round_trip_its_overlays_and_its_traffic() -> None:
    states = (OverlayState("fastdp", "silent", "why"), OverlayState("sleeve", "in use", ""))
    traffic = Traffic(sent_packets=1, sent_bytes=2, received_packets=3, received_bytes=4)
    link = OverlayLink("p", "n", "192.0.2.2:6783", "sleeve", "192.0.2.2:6783", True, 1438, states, 250, traffic)
    bare = OverlayLink("q", "m", "192.0.2.3:6783", "fastdp", "192.0.2.3:6784", True, 1376)
    ours = Weavenet(links=(link, bare), sleeve_counters={"drop_no_route": 5})

    text = metrics_text(msgspec.structs.replace(REPORT, weavenet=ours)).decode()

    who = 'nickname="n",peer="p"'
    assert f"weavenet_peer_rtt_seconds{{{who}}} 0.00025\n" in text
    assert 'weavenet_peer_overlay{nickname="n",overlay="fastdp",peer="p",state="silent"} 1.0\n' in text
    assert f"weavenet_peer_sent_packets_total{{{who}}} 1.0\n" in text
    assert f"weavenet_peer_sent_bytes_total{{{who}}} 2.0\n" in text
    assert f"weavenet_peer_received_packets_total{{{who}}} 3.0\n" in text
    assert f"weavenet_peer_received_bytes_total{{{who}}} 4.0\n" in text
    assert 'weavenet_sleeve_events_total{event="drop_no_route"} 5.0\n' in text
    assert 'peer="q"' not in text, "what is not known is not shown"
