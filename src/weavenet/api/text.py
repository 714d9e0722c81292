"""The texts of `weave status`, made from a report: pure functions, one per sub-command.

The shapes are Weave's, since people and scripts read them, with three of its quirks left out: attributes are separated
(Weave prints `encrypted=truemtu=1414`), no line ends in blanks, and the order is the same each time (Weave's is that of
a Go map). What a peer or a container calls itself cannot do more to a terminal than be long (visible.py). Source:
docs/protocol.md, "Status texts".
"""

from collections.abc import Callable, Iterable, Sequence

from weavenet.address import Endpoint
from weavenet.api.visible import visible
from weavenet.errors import AddressError
from weavenet.node.report import (
    EXPOSED,
    IN_USE,
    Attachment,
    AttributeValue,
    Connection,
    Ipam,
    Kubernetes,
    OverlayLink,
    Peer,
    Report,
    Router,
    VersionCheck,
)

_LABEL_COLUMNS = 15
_ADDRESS_COLUMNS = 21
_STATE_COLUMNS = 11
_PEER_COLUMNS = 37
_CONTAINER_ID_LETTERS = 12
_STATES = ("established", "pending", "retrying", "failed", "connecting")


def status_text(report: Report) -> str:
    """Return what `weave status` shows."""
    router = report.router
    sections = [
        [("Version", f"{report.version} ({_version_check(report.version_check)})")],
        [
            ("Service", "router"),
            ("Protocol", _protocol(router)),
            ("Name", _peer(router.name, router.nick_name)),
            ("Encryption", "enabled" if router.encryption else "disabled"),
            ("PeerDiscovery", "enabled" if router.peer_discovery else "disabled"),
            ("Targets", str(len(router.targets or ()))),
            ("Connections", _connection_counts(router.connections or ())),
            ("Peers", _peer_counts(router.peers or ())),
            ("TrustedSubnets", ", ".join(router.trusted_subnets) or "none"),
        ],
    ]
    if report.ipam is not None:
        ipam = report.ipam
        sections.append(
            [
                ("Service", "ipam"),
                ("Status", ipam_state(ipam)),
                ("Range", ipam.range),
                ("DefaultSubnet", ipam.default_subnet),
            ]
        )
    if report.weavenet is not None and report.weavenet.problems:
        sections.append([("Service", "dataplane"), *(("Problem", problem) for problem in report.weavenet.problems)])
    if report.weavenet is not None and report.weavenet.kubernetes is not None:
        sections.append(_kubernetes(report.weavenet.kubernetes))
    return "\n".join(_lines(f"{label:>{_LABEL_COLUMNS}}: {value}" for label, value in rows) for rows in sections)


def _kubernetes(kubernetes: Kubernetes) -> list[tuple[str, str]]:
    """Say whether the API answers, and what is waited for."""
    if kubernetes.reachable is None:
        state = "not asked yet"
    else:
        state = f"{'answers' if kubernetes.reachable else 'does not answer'} since {kubernetes.since}"
    rows = [("Service", "kubernetes"), ("API", f"{kubernetes.server} ({state})")]
    if kubernetes.awaiting_count:
        rows.append(("Waiting", "for the API to tell how many peers there are, before a first ring is elected"))
    else:
        rows.append(("Nodes", str(kubernetes.nodes)))
    if kubernetes.last_error:
        rows.append(("LastError", kubernetes.last_error))
    rows += [("Reclaim", each) for each in kubernetes.reclaim or ()]
    if kubernetes.uninstall_wanted:
        rows.append(("Uninstall", "when the agent is stopped: its DaemonSet has been deleted"))
    return rows


def connections_text(report: Report) -> str:
    """Return what `weave status connections` shows: working ones first, then by address."""
    ours = report.weavenet.links if report.weavenet is not None else None
    links = {link.connection: link for link in ours or ()}
    connections = sorted(report.router.connections or (), key=_connection_order)
    return _lines(_connection(one, links.get(one.address)) for one in connections)


def peers_text(report: Report) -> str:
    """Return what `weave status peers` shows: ourselves, then the others by name."""
    lines: list[str] = []
    for peer in sorted(report.router.peers or (), key=lambda peer: (peer.name != report.router.name, peer.name)):
        lines.append(_peer(peer.name, peer.nick_name))
        for one in sorted(peer.connections or (), key=lambda one: (one.name, one.address)):
            remote = _peer(one.name, one.nick_name)
            state = "established" if one.established else "pending"
            arrow = _arrow(outbound=one.outbound)
            lines.append(f"   {arrow} {one.address:{_ADDRESS_COLUMNS}} {remote:{_PEER_COLUMNS}} {state}")
    return _lines(lines)


def ipam_text(report: Report) -> str:
    """Return what `weave status ipam` shows: the ring's owners, ourselves first. Empty without a ring."""
    ipam = report.ipam
    if ipam is None:
        return ""
    sizes: dict[str, int] = {}
    titles: dict[str, str] = {}
    unreachable: set[str] = set()
    for entry in ipam.entries or ():
        sizes[entry.peer] = sizes.get(entry.peer, 0) + entry.size
        titles[entry.peer] = _peer(entry.peer, entry.nickname)
        if not entry.is_known_peer:
            unreachable.add(entry.peer)
    ours = report.router.name
    lines: list[str] = []
    for owner in sorted(sizes, key=lambda owner: (owner != ours, owner)):
        percent = 100 * sizes[owner] / ipam.range_num_ips
        remark = "- unreachable!" if owner in unreachable else ""
        if owner == ours:
            remark = f"({ipam.active_ips} active)"
        lines.append(f"{titles[owner]:{_PEER_COLUMNS}} {sizes[owner]:8} IPs ({percent:04.1f}% of total) {remark}")
    return _lines(lines)


def targets_text(report: Report) -> str:
    """Return what `weave status targets` shows: the peers given by the user, as they were given."""
    return _lines(report.router.targets or ())


def ps_text(report: Report, wanted: Sequence[str] = ()) -> str:
    """Return what `weave ps` shows; `wanted` are container IDs, or beginnings of them."""
    return _lines(
        " ".join((one.container_id[:_CONTAINER_ID_LETTERS], one.mac or "-", *(one.addresses or ())))
        for one in attachments(report, wanted)
    )


STATUS_TEXTS: dict[str, Callable[[Report], str]] = {
    "": status_text,
    "connections": connections_text,
    "peers": peers_text,
    "ipam": ipam_text,
    "targets": targets_text,
}


def attachments(report: Report, wanted: Sequence[str] = ()) -> list[Attachment]:
    """Return the interfaces on the bridge: the host's own first, then by container ID."""
    found = (report.weavenet.attachments if report.weavenet is not None else None) or ()
    return sorted(
        (one for one in found if not wanted or any(one.container_id.startswith(text) for text in wanted)),
        key=lambda one: (one.container_id != EXPOSED, one.container_id, one.interface),
    )


def ipam_state(ipam: Ipam) -> str:
    """Return IPAM's state in words."""
    if ipam.entries:
        if not any(entry.is_known_peer for entry in ipam.entries):
            return "all IP ranges owned by unreachable peers - use 'rmpeer' if they are dead"
        return "waiting for IP(s) to become available" if ipam.pending_allocates else "ready"
    if ipam.paxos is None:
        return "idle"
    if not ipam.paxos.elector:
        return "priming"
    return f"awaiting consensus (quorum: {ipam.paxos.quorum}, known: {ipam.paxos.known_nodes})"


def _version_check(check: VersionCheck) -> str:
    if not check.enabled:
        return "version check update disabled"
    if check.new_version:
        return f"version {check.new_version} available - please upgrade!"
    result = "up to date" if check.success else "failed to check latest version - see logs"
    moment = check.next_check_at.replace("-", "/").replace("T", " ")[:19]
    return f"{result}; next check at {moment}"


def _protocol(router: Router) -> str:
    low, high = router.protocol_min_version, router.protocol_max_version
    return f"{router.protocol} {high}" if low == high else f"{router.protocol} {low}..{high}"


def _connection_counts(connections: Sequence[Connection]) -> str:
    states = [one.state for one in connections]
    counts = [f"{states.count(state)} {state}" for state in _STATES if state in states]
    return f"{len(states)} ({', '.join(counts)})" if counts else str(len(states))


def _peer_counts(peers: Sequence[Peer]) -> str:
    ends = [one.established for peer in peers for one in peer.connections or ()]
    counts = [
        f"{number} {state}"
        for number, state in ((ends.count(True), "established"), (ends.count(False), "pending"))
        if number
    ]
    return f"{len(peers)} (with {', '.join(counts)} connections)" if counts else str(len(peers))


def _connection(one: Connection, link: OverlayLink | None) -> str:
    """Show a connection as Weave does; behind that, what Weave does not say: the round trip, and why not better."""
    attributes = one.attrs or {}
    shown = [f"{key}={_value(attributes[key])}" for key in sorted(attributes) if key != "name"]
    if link is not None:
        shown += [f"rtt={link.rtt_us / 1000:.3g}ms"] if link.rtt_us is not None else []
        shown += [f"({reason})" for reason in _shortcomings(link)]
    arrow = _arrow(outbound=one.outbound)
    return f"{arrow} {one.address:{_ADDRESS_COLUMNS}} {one.state:{_STATE_COLUMNS}} {one.info} {' '.join(shown)}"


def _shortcomings(link: OverlayLink) -> list[str]:
    """Say why overlays that are better than the one in use are not; of all, where none is in use."""
    found: list[str] = []
    for one in sorted(
        link.overlays or (), key=lambda each: each.overlay
    ):  # fastdp before sleeve, which it is better than
        if one.state == IN_USE:
            break
        if one.reason:
            found.append(f"{one.overlay} {one.state}: {one.reason}")
    return found


def _connection_order(one: Connection) -> tuple[int, tuple[int, int], str]:
    rank = _STATES.index(one.state) if one.state in _STATES else len(_STATES)
    try:
        endpoint = Endpoint.parse(one.address)
    except AddressError:
        return rank, (0, 0), one.address
    return rank, (endpoint.address, endpoint.port), one.address


def _value(value: AttributeValue) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _arrow(*, outbound: bool) -> str:
    return "->" if outbound else "<-"


def _peer(name: str, nickname: str) -> str:
    return f"{name}({nickname})"


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{visible(line).rstrip()}\n" for line in lines)
