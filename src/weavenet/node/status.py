"""What a node says about itself: its cores' views, gathered into the report that everything shown is made from."""

from collections.abc import Mapping

from weavenet.address import Cidr, format_address
from weavenet.cni.request import Attachment
from weavenet.dataplane.model import Bridge, HostNetwork, format_mac
from weavenet.effects import ConnectionNumber
from weavenet.identity import PeerName, ShortID, format_peer_name
from weavenet.ipam.status import IpamStatus
from weavenet.mesh.connector import TargetState, TargetStatus
from weavenet.mesh.local import ConnectionStatus
from weavenet.mesh.topology import Peer
from weavenet.node import report as r
from weavenet.node.node import Node
from weavenet.node.text import wall_clock
from weavenet.overlay.forwarding import Link

_PROTOCOL = "weave"
_INTERFACE = "weave (via VXLAN and eBPF)"
_ZERO_NAME = "00:00:00:00:00:00"


def router_report(node: Node, macs: tuple[r.Mac, ...]) -> r.Router:
    """Describe the mesh and the overlays. MAC addresses are the data plane's to know."""
    config, mesh = node.config.mesh, node.mesh
    links = node.overlays.links()
    connections = [
        _connection(status, links.get(status.name), mesh.keyring is not None) for status in mesh.connections()
    ]
    targets = [_target(status) for status in mesh.targets() if _is_shown(status)]
    return r.Router(
        protocol=_PROTOCOL,
        protocol_min_version=config.min_version,
        protocol_max_version=config.max_version,
        encryption=mesh.keyring is not None,
        peer_discovery=config.discovery,
        name=format_peer_name(config.name),
        nick_name=config.nickname,
        port=config.port,
        peers=r.listed(_peer(node, mesh.topology[name]) for name in sorted(mesh.topology)),
        unicast_routes=r.listed(
            r.UnicastRoute(format_peer_name(dest), _ZERO_NAME if dest == config.name else format_peer_name(via))
            for dest, via in sorted(mesh.routes.unicast.items())
        ),
        broadcast_routes=r.listed(
            r.BroadcastRoute(format_peer_name(source), r.listed(format_peer_name(hop) for hop in hops))
            for source, hops in sorted(mesh.routes.broadcast_rows.items())
        ),
        connections=r.listed([*connections, *targets]),
        termination_count=mesh.termination_count,
        targets=r.listed(mesh.direct_targets()),
        overlay_diagnostics={"fastdp": r.OverlayDiagnostics()},
        trusted_subnets=tuple(str(subnet) for subnet in config.trusted_subnets),
        interface=_INTERFACE,
        capture_stats=None,
        macs=macs or None,
    )


def ipam_report(status: IpamStatus) -> r.Ipam:
    """Describe who owns which addresses."""
    return r.Ipam(
        paxos=None
        if status.election is None
        else r.Paxos(status.election.elector, status.election.known_nodes, status.election.quorum),
        range=str(status.universe),
        range_num_ips=status.universe_size,
        active_ips=status.active_count,
        default_subnet=str(status.default_subnet),
        entries=r.listed(
            r.RingEntry(
                token=format_address(entry.token),
                size=entry.size,
                peer=format_peer_name(entry.peer),
                nickname=entry.nickname,
                is_known_peer=entry.is_known_peer,
                version=entry.version,
            )
            for entry in status.ranges
        ),
        pending_claims=r.listed(
            r.PendingClaim(ident, r.ReportedCidr(format_address(cidr.address), cidr.prefix_length))
            for ident, cidr in status.pending_claims
        ),
        pending_allocates=r.listed(f"{ident} {subnet}" for ident, subnet in status.pending_allocates),
    )


def link_reports(
    node: Node, rtts_us: Mapping[ConnectionNumber, int], traffic: Mapping[ShortID, r.Traffic]
) -> tuple[r.OverlayLink, ...]:
    """Describe how frames reach each peer that we have a connection with.

    The kernel knows how long a round trip takes, and what went to and came from each short ID.
    """
    links, standings = node.overlays.links(), node.overlays.standings()
    found: list[r.OverlayLink] = []
    for status in node.mesh.connections():
        link = links.get(status.name)
        peer = node.mesh.topology.get(status.name)
        if link is None or peer is None:
            continue
        found.append(
            r.OverlayLink(
                peer=format_peer_name(status.name),
                nick_name=status.nickname,
                connection=str(status.remote),
                overlay=link.overlay,
                remote=str(link.remote),
                established=link.established,
                mtu=link.mtu,
                overlays=r.listed(
                    r.OverlayState(one.overlay, one.state.value, one.reason) for one in standings[status.name]
                ),
                rtt_us=rtts_us.get(status.connection),
                traffic=None if peer.short_id is None else traffic.get(peer.short_id),
            )
        )
    return tuple(found)


def attachment_reports(
    node: Node, network: HostNetwork, local: Mapping[str, tuple[Cidr, ...]]
) -> tuple[r.Attachment, ...]:
    """Describe what is on the bridge, and pods' ports on others: the host's own first, then pods.

    Addresses are those that IPAM has given, or this node by itself (`local`, by ident).
    """
    found: list[r.Attachment] = []
    if isinstance(network.bridge, Bridge):
        bridge = network.bridge
        addresses = r.listed(str(cidr) for cidr in bridge.addresses)
        found.append(r.Attachment(r.EXPOSED, bridge.name, format_mac(bridge.mac), addresses))
    held = _held_by_interface({**(node.ipam.owned() if node.ipam is not None else {}), **local})
    for port in network.pods:
        addresses = r.listed(str(cidr) for cidr in held.get((port.container_id, port.ifname), ()))
        mac = "" if port.mac is None else format_mac(port.mac)
        found.append(r.Attachment(port.container_id, port.name, mac, addresses))
    return tuple(found)


def _held_by_interface(owned: Mapping[str, tuple[Cidr, ...]]) -> dict[tuple[str, str], list[Cidr]]:
    """Return addresses by container and interface, in whatever network (cni/request.py has the form of idents)."""
    held: dict[tuple[str, str], list[Cidr]] = {}
    for ident, cidrs in owned.items():
        attachment = Attachment.from_ident(ident)
        if attachment is not None:
            held.setdefault((attachment.container_id, attachment.interface), []).extend(cidrs)
    return held


def _nickname(node: Node, name: PeerName) -> str:
    peer = node.mesh.topology.get(name)
    return "" if peer is None else peer.nickname


def _peer(node: Node, peer: Peer) -> r.Peer:
    return r.Peer(
        name=format_peer_name(peer.name),
        nick_name=peer.nickname,
        uid=peer.uid,
        short_id=peer.short_id or 0,
        version=peer.version,
        connections=r.listed(
            r.PeerConnection(
                name=format_peer_name(remote),
                nick_name=_nickname(node, remote),
                address=connection.address,
                outbound=connection.outbound,
                established=connection.established,
            )
            for remote, connection in sorted(peer.connections.items())
        ),
    )


def _connection(status: ConnectionStatus, link: Link | None, has_password: bool) -> r.Connection:  # noqa: FBT001
    overlay = link.overlay if link is not None else "none"
    info = f"{overlay:<6} {format_peer_name(status.name)}({status.nickname})"
    if has_password:
        info = f"{'encrypted' if status.encrypted else 'unencrypted':<11} {info}"
    attributes: dict[str, r.AttributeValue] = {"encrypted": True} if status.encrypted else {}
    if link is not None:
        attributes["mtu"] = link.mtu
    attributes["name"] = overlay  # last: Go writes the keys of a map in their order
    return r.Connection(
        address=str(status.remote),
        outbound=status.outbound,
        state="established" if status.established else "pending",
        info=info,
        attrs=attributes,
    )


def _is_shown(status: TargetStatus) -> bool:
    return status.state in {TargetState.WAITING, TargetState.ATTEMPTING}


def _target(status: TargetStatus) -> r.Connection:
    """Word a target as Weave does: why the last attempt failed, and when the next one is due."""
    if status.state is TargetState.ATTEMPTING:
        state, info = ("retrying", status.error) if status.error else ("connecting", "")
    else:
        when = "never" if status.retry_wall_s is None else wall_clock(status.retry_wall_s)
        if status.error:
            state, info = "failed", f"{status.error}, retry: {when}"
        else:
            state, info = "waiting", f"until: {when}"
    return r.Connection(address=str(status.endpoint), outbound=True, state=state, info=info, attrs=None)
