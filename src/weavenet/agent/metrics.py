"""Prometheus metrics, made from a report at each scrape: the names are Weave's, and what it lacks begins `weavenet_`.

`weave_flows` and `weave_dns_entries` are missing, as there are no flows and no DNS to count. The metrics about
addresses are there only while address allocation is on. Source: docs/protocol.md, "Prometheus metrics"; Weave
prog/weaver/metrics.go.
"""

from collections import Counter
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from weavenet.node.report import Connection, Ipam, OverlayLink, Report, Weavenet

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


def metrics_text(report: Report) -> bytes:
    """Return the metrics of a report, and of this process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_ReportCollector(report))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _ReportCollector(Collector):
    def __init__(self, report: Report) -> None:
        self._report = report

    def collect(self) -> Iterator[Metric]:
        router = self._report.router
        yield _connections(router.connections or ())
        yield CounterMetricFamily(
            "weave_connection_terminations",
            "Number of peer-to-peer connections terminated.",
            value=router.termination_count,
        )
        if self._report.ipam is not None:
            yield from _ipam(self._report.ipam)
        if self._report.weavenet is not None:
            yield from _weavenet(self._report.weavenet)


def _connections(connections: tuple[Connection, ...]) -> Metric:
    counts: Counter[tuple[str, str, bool]] = Counter()
    for one in connections:
        attributes = one.attrs or {}
        overlay = str(attributes.get("name") or "unknown")
        encrypted = bool(attributes.get("encrypted"))
        counts[one.state, overlay, encrypted] += 1
        counts[one.state, overlay, not encrypted] += 0  # both are shown, so that a graph falls to 0 and does not end
    metric = GaugeMetricFamily(
        "weave_connections",
        "Number of peer-to-peer connections.",
        labels=["state", "type", "encryption"],
    )
    for state, overlay, encrypted in sorted(counts):
        metric.add_metric([state, overlay, "yes" if encrypted else ""], counts[state, overlay, encrypted])
    return metric


def _ipam(ipam: Ipam) -> Iterator[Metric]:
    used = GaugeMetricFamily("weave_ips", "Number of IP addresses.", labels=["state"])
    used.add_metric(["local-used"], ipam.active_ips)
    yield used
    yield _gauge("weave_max_ips", "Size of IP address space used by allocator.", ipam.range_num_ips)
    unreachable = [entry for entry in ipam.entries or () if not entry.is_known_peer]
    share = 100 * sum(entry.size for entry in unreachable) / ipam.range_num_ips
    yield _gauge(
        "weave_ipam_unreachable_count",
        "Number of unreachable peers.",
        len({entry.peer for entry in unreachable}),
    )
    yield _gauge(
        "weave_ipam_unreachable_percentage",
        "Percentage of IP addresses owned  by unreachable peers.",  # the two blanks are Weave's
        share,
    )
    yield _gauge("weave_ipam_pending_allocates", "Number of pending allocates.", len(ipam.pending_allocates or ()))
    yield _gauge("weave_ipam_pending_claims", "Number of pending claims.", len(ipam.pending_claims or ()))


def _weavenet(ours: Weavenet) -> Iterator[Metric]:
    packets = CounterMetricFamily(
        "weavenet_dataplane_events",
        "Events of the data plane, by kind: packets dropped and why, floods that had to be asked for.",
        labels=["event"],
    )
    for event in sorted(ours.counters):
        packets.add_metric([event], ours.counters[event])
    yield packets
    sleeve = CounterMetricFamily(
        "weavenet_sleeve_events",
        "Frames of the process that forwards by sleeve, since it started: sent, received, dropped and why.",
        labels=["event"],
    )
    for event in sorted(ours.sleeve_counters):
        sleeve.add_metric([event], ours.sleeve_counters[event])
    yield sleeve
    yield from _peers(ours.links or ())
    yield _gauge("weavenet_attachments", "Number of interfaces on the bridge.", len(ours.attachments or ()))
    yield _gauge(
        "weavenet_dataplane_problems",
        "Number of things that stand between the kernel and what it should be.",
        len(ours.problems or ()),
    )


def _peers(links: tuple[OverlayLink, ...]) -> Iterator[Metric]:
    """Return what is known of the peers that we have a connection with, which the connection limit bounds."""
    labels = ["peer", "nickname"]
    rtt = GaugeMetricFamily(
        "weavenet_peer_rtt_seconds", "Shortest round trip to a peer in the last minutes, by TCP.", labels=labels
    )
    state = GaugeMetricFamily(
        "weavenet_peer_overlay",
        "How each overlay stands towards a peer: 1 for the state that it is in.",
        labels=[*labels, "overlay", "state"],
    )
    counters = {
        name: CounterMetricFamily(f"weavenet_peer_{name}", text, labels=labels)
        for name, text in (
            ("sent_packets", "Packets sent to pods of a peer; one of many TCP segments counts once."),
            ("sent_bytes", "Bytes of frames sent to pods of a peer."),
            ("received_packets", "Packets received from pods of a peer; one of many TCP segments counts once."),
            ("received_bytes", "Bytes of frames received from pods of a peer."),
        )
    }
    for link in links:
        peer = [link.peer, link.nick_name]
        if link.rtt_us is not None:
            rtt.add_metric(peer, link.rtt_us / 1e6)
        for one in link.overlays or ():
            state.add_metric([*peer, one.overlay, one.state], 1)
        if link.traffic is not None:
            for name, counter in counters.items():
                counter.add_metric(peer, getattr(link.traffic, name))
    yield from (rtt, state, *counters.values())


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)
