"""Which peers the cluster's nodes are, and when to tell the mesh. Pure: what the API tells goes in, actions come out.

A node's address is its IPv4 InternalIP, else its ExternalIP, else it has none; ours is not a peer. New addresses are
connected to at once. When one goes, the mesh is told the whole list anew, which makes it forget the old one; but only
after a while, when the addresses of the departed have been reclaimed (agent/reclaim.py). A list without any node is no
reason to forget anybody: no cluster that we run in is empty.

A list that says what we knew already is no news, so what a user has connected to by hand lasts until a node departs.
Source: Weave prog/kube-utils/main.go and prog/weave-kube/launch.sh.
"""

import msgspec

from weavenet.address import parse_address
from weavenet.errors import AddressError
from weavenet.kube.follow import Changed, Gone, Listed, Told
from weavenet.resources import Node

_KINDS = ("InternalIP", "ExternalIP")  # in the order in which they are preferred


class ConnectTo(msgspec.Struct, frozen=True):
    """These addresses are peers; with `replace`, only these are."""

    addresses: tuple[str, ...]
    replace: bool


class Departed(msgspec.Struct, frozen=True):
    """Somebody has gone: reclaim, and then tell the mesh who is left."""


Action = ConnectTo | Departed


def peer_address(node: Node) -> str | None:
    """Return where the peer on a node is to be reached; None if the node does not say, or only says IPv6."""
    for kind in _KINDS:
        for each in node.status.addresses or ():
            if each.type == kind and _is_ipv4(each.address):
                return each.address
    return None


class Neighbours:
    """The nodes as the API tells them."""

    def __init__(self, our_node: str) -> None:
        """Know none."""
        self._our_node = our_node
        self._addresses: dict[str, str | None] = {}  # by node, ours included
        self._our_uid: str | None = None
        self.is_known = False

    @property
    def names(self) -> frozenset[str]:
        """The nodes there are."""
        return frozenset(self._addresses)

    @property
    def our_uid(self) -> str | None:
        """The UID of our own node: another one means that it was removed and has come back."""
        return self._our_uid

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where the peers on the other nodes are."""
        others = (address for name, address in self._addresses.items() if name != self._our_node)
        return tuple(sorted({address for address in others if address is not None}))

    def hear(self, told: Told[Node]) -> list[Action]:
        """Take in what the API tells; return what to do about it."""
        before = set(self.addresses)
        is_first = not self.is_known
        has_departed = False
        match told:
            case Listed(nodes):
                if not nodes:
                    return []
                listed = {each.metadata.name: peer_address(each) for each in nodes}
                has_departed = bool(self._addresses.keys() - listed.keys())
                self._addresses = listed
                self.is_known = True
                self._our_uid = {each.metadata.name: each.metadata.uid for each in nodes}.get(self._our_node)
            case Changed(node):
                self._addresses[node.metadata.name] = peer_address(node)
                if node.metadata.name == self._our_node:
                    self._our_uid = node.metadata.uid
            case Gone(node):
                has_departed = node.metadata.name in self._addresses
                self._addresses.pop(node.metadata.name, None)
                if node.metadata.name == self._our_node:
                    self._our_uid = None
        after = set(self.addresses)
        if is_first and self.is_known:
            return [ConnectTo(self.addresses, replace=True), Departed()]  # whoever went before we started, too
        actions: list[Action] = []
        if after - before:
            actions.append(ConnectTo(tuple(sorted(after - before)), replace=False))
        if has_departed or before - after:
            actions.append(Departed())
        return actions

    def after_departure(self) -> ConnectTo | None:
        """Return what to tell the mesh when the departed are reclaimed; None: nothing.

        That nobody is left is believed only of a list that has us in it.
        """
        is_believed = bool(self.addresses) or self._our_node in self._addresses
        return ConnectTo(self.addresses, replace=True) if is_believed else None


def _is_ipv4(text: str) -> bool:
    try:
        parse_address(text)
    except AddressError:
        return False
    return True
