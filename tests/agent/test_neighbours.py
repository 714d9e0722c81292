"""Which nodes are peers, and when the mesh is told."""

import pytest

from weavenet.agent.neighbours import ConnectTo, Departed, Neighbours, peer_address
from weavenet.kube.follow import Changed, Gone, Listed
from weavenet.resources import Node, NodeAddress, NodeStatus, ObjectMeta


def node(name: str, address: str | None = None, uid: str = "") -> Node:
    addresses = () if address is None else (NodeAddress("InternalIP", address),)
    return Node(ObjectMeta(name, uid=uid or f"uid-{name}"), NodeStatus(addresses))


A, B, C = node("a", "10.0.0.1"), node("b", "10.0.0.2"), node("c", "10.0.0.3")


@pytest.mark.parametrize(
    ("addresses", "chosen"),
    [
        ([("Hostname", "a"), ("InternalIP", "10.0.0.1"), ("ExternalIP", "192.0.2.1")], "10.0.0.1"),
        ([("ExternalIP", "192.0.2.1"), ("InternalIP", "10.0.0.1")], "10.0.0.1"),
        ([("InternalIP", "fd00::1"), ("InternalIP", "10.0.0.1")], "10.0.0.1"),
        ([("InternalIP", "fd00::1"), ("ExternalIP", "192.0.2.1")], "192.0.2.1"),
        ([("Hostname", "10.0.0.1")], None),
        ([("InternalIP", "not an address")], None),
        ([], None),
    ],
)
def test_a_node_is_reached_at_its_ipv4_internal_address_else_the_external_one(
    addresses: list[tuple[str, str]], chosen: str | None
) -> None:
    status = NodeStatus(tuple(NodeAddress(*each) for each in addresses))
    assert peer_address(Node(ObjectMeta("a"), status)) == chosen


def heard(*told: object) -> Neighbours:
    neighbours = Neighbours("a")
    for each in told:
        neighbours.hear(each)  # type: ignore[arg-type]
    return neighbours


def test_the_first_list_says_who_the_peers_are_and_that_somebody_may_have_gone_before() -> None:
    neighbours = Neighbours("a")
    assert not neighbours.is_known
    assert neighbours.hear(Listed((A, B, C))) == [ConnectTo(("10.0.0.2", "10.0.0.3"), replace=True), Departed()]
    assert neighbours.is_known
    assert neighbours.our_uid == "uid-a"


def test_a_new_node_is_connected_to_and_nobody_is_forgotten() -> None:
    assert heard(Listed((A, B))).hear(Changed(C)) == [ConnectTo(("10.0.0.3",), replace=False)]


def test_a_node_that_only_changes_otherwise_is_no_news() -> None:
    neighbours = heard(Listed((A, B)))
    assert neighbours.hear(Changed(B)) == []
    assert neighbours.hear(Listed((A, B))) == []


def test_a_departed_node_is_reclaimed_before_the_mesh_is_told() -> None:
    neighbours = heard(Listed((A, B, C)))
    assert neighbours.hear(Gone(B)) == [Departed()]
    assert neighbours.after_departure() == ConnectTo(("10.0.0.3",), replace=True)


def test_a_node_with_a_new_address_is_connected_to_and_the_old_one_forgotten() -> None:
    neighbours = heard(Listed((A, B)))
    assert neighbours.hear(Changed(node("b", "10.0.0.9"))) == [ConnectTo(("10.0.0.9",), replace=False), Departed()]
    assert neighbours.after_departure() == ConnectTo(("10.0.0.9",), replace=True)


def test_what_vanished_while_nobody_watched_has_departed_too() -> None:
    neighbours = heard(Listed((A, B, C)))
    assert neighbours.hear(Listed((A, B))) == [Departed()]


def test_a_list_of_no_nodes_is_not_believed() -> None:
    neighbours = heard(Listed((A, B)))
    assert neighbours.hear(Listed(())) == []
    assert neighbours.addresses == ("10.0.0.2",)


def test_that_nobody_is_left_is_believed_only_of_a_list_that_has_us_in_it() -> None:
    neighbours = heard(Listed((A, B)))
    assert neighbours.hear(Gone(B)) == [Departed()]
    assert neighbours.after_departure() == ConnectTo((), replace=True)
    neighbours.hear(Gone(A))
    assert neighbours.after_departure() is None


def test_our_own_node_made_anew_has_another_uid() -> None:
    neighbours = heard(Listed((A, B)), Gone(A))
    assert neighbours.our_uid is None
    neighbours.hear(Changed(node("a", "10.0.0.1", uid="another")))
    assert neighbours.our_uid == "another"
