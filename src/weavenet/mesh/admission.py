"""From a remote's introduction to the end of the connection: who gets in, and what is left when one goes.

Both ends of a connection decide for themselves and must decide alike. Where two connections join the same two peers,
which happens whenever both dial at once, the one with the smaller connection UID survives: a number both ends know and
neither chose. Source: docs/protocol.md, "After the introduction" and "Connections of the local peer"; Weave's mesh
connection.go (registerRemote, teardown) and local_peer.go.
"""

from weavenet.effects import CloseTcp, ConnectionAdded, ConnectionGone, Level, Note, Now, Output
from weavenet.errors import HandshakeError, NameCollisionError, RemoteError, SelfConnectionError
from weavenet.identity import UNKNOWN_PEER, format_peer_name
from weavenet.mesh.connection import Introduced
from weavenet.mesh.connector import Connector
from weavenet.mesh.exchange import Exchange
from weavenet.mesh.gossip import TOPOLOGY_CHANNEL
from weavenet.mesh.guesses import Guesses
from weavenet.mesh.local import LocalConnection, LocalConnections
from weavenet.mesh.records import NICKNAME_CHARACTERS_MAX, Peer, PeerConnection
from weavenet.mesh.relay import Relay
from weavenet.mesh.routes import Routes
from weavenet.mesh.session import OverlayKeys
from weavenet.mesh.topology import Topology
from weavenet.mesh.upkeep import Upkeep
from weavenet.mesh.wire import RemoteFeatures


class Admission:
    """The doorkeeper of one peer."""

    def __init__(
        self,
        *,
        topology: Topology,
        routes: Routes,
        links: LocalConnections,
        connector: Connector,
        guesses: Guesses,
        exchange: Exchange,
        relay: Relay,
        upkeep: Upkeep,
        out: list[Output],
        connection_limit: int,
    ) -> None:
        """Admit up to `connection_limit` connections; 0 means any number. Outputs are appended to `out`."""
        self._topology = topology
        self._routes = routes
        self._links = links
        self._connector = connector
        self._guesses = guesses
        self._exchange = exchange
        self._relay = relay
        self._upkeep = upkeep
        self._out = out
        self._limit = connection_limit
        # Connections that ended, for whatever reason except that they led to ourself.
        self.termination_count = 0

    # --- in -----------------------------------------------------------------------------------------------------------

    def admit(self, link: LocalConnection, introduced: Introduced, now: Now) -> bool:
        """Add a connection whose remote has introduced itself, or end it. Say whether it was added."""
        link.uid = introduced.uid
        link.compact = introduced.compact
        both_trust = link.trusted and introduced.features.trusted
        key = introduced.session_key
        link.overlay_keys = None if both_trust or key is None else OverlayKeys(key, (key,))
        try:
            before = self._register(link, introduced.features, now)
            self.note(link, f"connection ready; using protocol version {introduced.version}")
            self._settle_tie(link, now)
            self.check_limit()
        except RemoteError as error:
            self.end(link, error, now)
            return False
        restarted = before is not None and before.uid != introduced.features.uid
        self._add(link, introduced.features, now, is_new=before is None, restarted=restarted)
        return True

    def check_limit(self) -> None:
        """Raise HandshakeError if there are as many connections as there may be."""
        if self._limit and self._links.added_count >= self._limit:
            raise HandshakeError(f"Connection limit reached ({self._limit})")

    def _register(self, link: LocalConnection, remote: RemoteFeatures, now: Now) -> Peer | None:
        """Have the remote in the peer table, held for this connection. Return its record of before, if any."""
        if remote.name == UNKNOWN_PEER:
            raise HandshakeError(f"{format_peer_name(remote.name)} is not a name a peer can have")
        known = self._topology.get(remote.name)
        if known is None and link.outbound and not link.direct:
            # Discovery said that somebody else is here; whoever this is has not been vouched for.
            raise HandshakeError(f"Found unknown remote name: {format_peer_name(remote.name)} at {link.remote}")
        nickname = remote.nickname[:NICKNAME_CHARACTERS_MAX]
        peer = Peer(remote.name, remote.uid, nickname=nickname, short_id=remote.short_id)
        self._upkeep.apply(self._topology.register(peer), now)
        self._topology.hold(remote.name)
        link.name = remote.name
        us = self._topology.ourself
        if remote.name == us.name and remote.uid != us.uid:
            raise NameCollisionError(f'local "{us}" and remote "{peer}" peer names collision')
        if remote.name == us.name:
            raise SelfConnectionError("cannot connect to ourself")
        return known

    def _settle_tie(self, link: LocalConnection, now: Now) -> None:
        assert link.name is not None
        assert link.uid is not None
        other = self._links.to(link.name)
        if other is None:
            return
        assert other.uid is not None
        error = HandshakeError(f"Multiple connections to {self._topology[link.name]} added to {self._topology.ourself}")
        if link.uid <= other.uid:
            self.end(other, error, now)
        if link.uid >= other.uid:
            raise error

    def _add(self, link: LocalConnection, remote: RemoteFeatures, now: Now, *, is_new: bool, restarted: bool) -> None:
        assert link.name is not None
        assert link.uid is not None
        assert link.local is not None
        # Whoever packets reach knows what we know, more or less, and periodic gossip will do for the rest. Not so
        # somebody whom only the routes of a moment ago remember.
        is_new = is_new or link.name not in self._routes.unicast
        self._publish(link)
        self._links.add(link)
        if link.outbound:
            self._connector.connected(link.remote)
        remark = " (restarted peer)" if restarted else " (new peer)" if is_new else ""
        self.note(link, f"connection added{remark}")
        self._upkeep.targets_are_stale = True
        self._upkeep.recalculate_soon(now)
        self._upkeep.update_soon((link.name,), now)
        self._out.append(
            ConnectionAdded(
                connection=link.number,
                remote_name=link.name,
                local=link.local,
                remote=link.remote,
                outbound=link.outbound,
                uid=link.uid,
                overlay_key=None if link.overlay_keys is None else link.overlay_keys.sealing,
                overlays=remote.overlays,
                sleeve_formats=remote.sleeve_formats,
            )
        )
        if link.compact:
            # Cheap enough to be done always, and it goes both ways, so that one end's asking is enough.
            if link.outbound:
                self._exchange.compare(link)
        elif restarted or is_new:
            for channel, data in self._upkeep.complete_state():
                self._relay.tell(link, channel, data)

    def establish(self, link: LocalConnection, now: Now) -> None:
        """Tell everybody that the connection carries packets: its overlay works.

        The other end hears it at once, as packets take a connection only where both ends have said so; Weave leaves
        that to the update a second later, and the first packets of a newcomer are lost until then.
        """
        if not link.added or link.established:
            return
        link.established = True
        self._publish(link)
        self.note(link, "connection fully established")
        self._relay.tell(link, TOPOLOGY_CHANNEL, self._upkeep.ourself())
        self._upkeep.recalculate_soon(now)
        self._upkeep.update_soon((), now)

    def _publish(self, link: LocalConnection) -> None:
        assert link.name is not None
        connection = PeerConnection(str(link.remote), link.outbound, link.established)
        self._topology.set_connection(link.name, connection)

    # --- out ----------------------------------------------------------------------------------------------------------

    def end(self, link: LocalConnection, error: RemoteError, now: Now, *, is_closed: bool = False) -> None:
        """End a connection in whatever state it is; `is_closed` if its socket is gone already."""
        during = " during handshake" if link.name is None else ""
        self.note(link, f"connection shutting down due to error{during}: {error}", Level.WARNING)
        if not is_closed:
            self._out.append(CloseTcp(link.number))
        self._links.end(link)
        if link.name is not None:
            self._topology.release(link.name)
        if link.added:
            self._remove(link, now)
        if link.outbound:
            hopeless = isinstance(error, NameCollisionError | SelfConnectionError)
            self._connector.ended(link.remote, str(error), now, hopeless=hopeless, at_once=self._has_more_to_try(link))
        if not isinstance(error, SelfConnectionError):
            self.termination_count += 1
        self._upkeep.targets_are_stale = True

    def _has_more_to_try(self, link: LocalConnection) -> bool:
        """Whether the remote may have refused the password that we dialled with, and there are others."""
        protocol = link.protocol
        if link.guess is None or protocol is None or not protocol.is_guessing:
            return False
        return self._guesses.failed(link.remote, link.guess, protocol.hint)

    def _remove(self, link: LocalConnection, now: Now) -> None:
        assert link.name is not None
        self._topology.delete_connection(link.name)
        self.note(link, "connection deleted")
        self._out.append(ConnectionGone(link.number, link.name))
        self._upkeep.collect(now)
        self._upkeep.recalculate_soon(now)
        self._upkeep.update_soon((), now)

    def note(self, link: LocalConnection, text: str, level: Level = Level.INFO) -> None:
        """Say something about a connection, in Weave's form."""
        if link.name is None:
            self._out.append(Note(level, f"->[{link.remote}] {text}"))
        else:
            peer = self._topology.get(link.name) or Peer(link.name)
            self._out.append(Note(level, f"->[{link.remote}|{peer}]: {text}"))
