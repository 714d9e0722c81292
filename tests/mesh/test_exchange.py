"""Compact gossip between whole peers: what is compared, announced, asked for and told, and how much of it."""

from collections.abc import Sequence
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mesh_world import CHANNEL, A, B, C, D, E, Host, Stranger, World, numbers

from weavenet.effects import GossipKind, SendTcp
from weavenet.identity import PeerName, PeerUID, ShortID
from weavenet.mesh import asking
from weavenet.mesh.compact import (
    Base,
    Buckets,
    Changes,
    Compact,
    Digests,
    News,
    Records,
    StateWanted,
    Version,
    Versions,
    Wanted,
    decode_compact,
    encode_compact,
)
from weavenet.mesh.gossip import GOSSIP_INTERVAL_S
from weavenet.mesh.local import ALLOWANCE_BYTES_MAX, ALLOWANCE_BYTES_PER_S
from weavenet.mesh.records import PeerConnection, decode_update, encode_update
from weavenet.mesh.topology import Peer
from weavenet.mesh.wire import Tag, build_message

F, G = PeerName(E + 1), PeerName(E + 2)


class Insider(Stranger):
    """A stranger that knows of compact gossip."""

    def __init__(self, world: World, host: Host, **options: object) -> None:
        super().__init__(world, host, compact=True, **options)  # type: ignore[arg-type]

    def say(self, message: Compact) -> None:
        self.send(build_message(Tag.COMPACT, encode_compact(message)))

    def told(self) -> list[Compact]:
        """What came by compact gossip since the last time this was asked."""
        taken = [each for each in self._inbox if each.tag == Tag.COMPACT]
        self._inbox = [each for each in self._inbox if each.tag != Tag.COMPACT]
        return [decode_compact(each.payload) for each in taken]


def record(name: PeerName, version: int = 3, links: Sequence[PeerName] = (E,)) -> Peer:
    link = PeerConnection("10.9.9.9:6783", outbound=True, established=True)
    return Peer(name, PeerUID(5), version, "far", ShortID(name & 0xFFF), dict.fromkeys(links, link))


def version(peer: Peer) -> Version:
    return Version(peer.name, peer.uid, peer.version, peer.short_id is not None)


def joined(world: World) -> tuple[Host, Insider]:
    """A host that has heard from an insider of itself and of F, behind it."""
    host = world.host(A)
    insider = Insider(world, host)
    us = Peer(E, PeerUID(99), 1, "stranger", ShortID(77), record(E, links=[A, F]).connections)
    insider.say(Records(encode_update([us, record(F)])[0]))
    insider.timer()
    insider.told()
    return host, insider


def views(hosts: Sequence[Host]) -> list[list[tuple[int, int, int]]]:
    return [[(each.name, each.uid, each.version) for each in host.mesh.topology.values()] for host in hosts]


def sent_bytes(host: Host) -> int:
    return sum(len(each.data) for each in host.of(SendTcp))


# --- who speaks it ----------------------------------------------------------------------------------------------------


def test_a_remote_without_the_feature_hears_weaves_gossip_alone() -> None:
    world = World()
    a = world.host(A)
    stranger = Stranger(world, a)
    world.now_s += GOSSIP_INTERVAL_S
    stranger.timer()
    assert {tag for tag, _ in stranger.heard()} == {Tag.GOSSIP}
    assert all(each.tag != Tag.COMPACT for each in stranger._inbox)
    stranger.send(build_message(Tag.COMPACT, b"anything"))
    assert not stranger.is_closed
    assert "ignored a message with tag 120" in a.notes()[-1]


def test_with_the_feature_off_we_hear_and_tell_weaves_gossip_alone() -> None:
    world = World()
    a = world.host(A, compact=False)
    insider = Insider(world, a)
    world.now_s += GOSSIP_INTERVAL_S
    insider.timer()
    assert not insider.told()
    assert [gossip.channel for _, gossip in insider.heard()][-1] == "topology"


@pytest.mark.parametrize("old", [{A}, {B}, {C}, {A, D}, {B, C}, {A, B, C, D}])
def test_in_a_mesh_of_both_kinds_news_goes_on_in_whatever_way_the_next_one_knows(old: set[PeerName]) -> None:
    world = World()
    hosts = [world.host(name, discovery=False, compact=name not in old) for name in (A, B, C, D)]
    for host, other in pairwise(hosts):
        world.connect(host, other)
    world.run(10)
    assert views(hosts) == views(hosts[:1]) * 4
    late = world.host(E, discovery=False, compact=False)
    world.connect(late, hosts[0])
    world.run(5)
    assert views([*hosts, late]) == views([late]) * 5
    world.crash(hosts[3])
    world.run(5)
    assert [host.mesh.topology.is_known(D) for host in (*hosts[:3], late)] == [False] * 4


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 32))
def test_meshes_of_both_kinds_come_to_one_view_whatever_happened(seed: int) -> None:
    rng = Random(seed)
    world = World(seed)
    names = [PeerName(A + index) for index in range(8)]
    for index, name in enumerate(names):
        host = world.host(name, discovery=False, compact=rng.random() < 0.6)
        world.connect(host, *rng.sample([world.hosts[key] for key in sorted(world.hosts)][:-1], min(index, 2)))
        world.run(rng.random())
    # Bytes into a cut are lost here, in the middle of a stream: it breaks, as a TCP connection would at last.
    lost = world.hosts[rng.choice(sorted(world.hosts))]
    targets = lost.mesh.direct_targets()
    world.crash(lost)
    world.run(rng.random() * 3)
    back = world.host(lost.name, uid=rng.getrandbits(32) | 1, discovery=False, compact=rng.random() < 0.5)
    others = [host for _, host in sorted(world.hosts.items()) if host is not back]
    world.connect(back, *rng.sample(others, 2))
    assert targets is not None
    world.run(2 * GOSSIP_INTERVAL_S + 400)
    hosts = [host for _, host in sorted(world.hosts.items())]
    assert views(hosts) == views(hosts[:1]) * len(hosts)


# --- rest -------------------------------------------------------------------------------------------------------------


def test_at_rest_peers_exchange_hashes_and_nothing_else() -> None:
    world = World()
    hosts = [world.host(PeerName(A + index)) for index in range(6)]
    for host in hosts:
        host.source.data = numbers(7)
        world.connect(host, *hosts[:1])
    world.run(100)
    before = [(sent_bytes(host), len(host.heard())) for host in hosts]
    world.run(GOSSIP_INTERVAL_S)
    for host, (sent, heard) in zip(hosts, before, strict=True):
        # A length, a tag, and a map of two channels, to five neighbours; and heartbeats.
        assert sent_bytes(host) - sent <= 5 * 60 + 5 * 10
        assert len(host.heard()) == heard


def test_a_new_connection_makes_both_ends_tell_all_that_the_other_lacks() -> None:
    world = World()
    hosts = [world.host(name, discovery=False) for name in (A, B, C, D)]
    a, b, c, d = hosts
    world.connect(a, b)
    world.connect(d, c)
    a.source.data = numbers(1)
    world.run(5)
    world.connect(b, c)
    world.run()
    assert list(b.mesh.topology) == list(c.mesh.topology) == [A, B, C, D]


def test_a_digest_that_differs_is_answered_with_the_hashes_of_parts() -> None:
    _, insider = joined(World())
    insider.say(Digests({"topology": bytes(8)}))
    (answer,) = insider.told()
    assert isinstance(answer, Buckets)
    insider.say(Digests({}))
    assert insider.told() == []


def test_of_parts_that_differ_the_versions_are_told_and_then_the_records_asked_for() -> None:
    host, insider = joined(World())
    insider.say(Buckets(bytes(8)))
    (answer,) = insider.told()
    assert answer == Versions(1, [0], [version(host.mesh.topology[name]) for name in (A, E, F)])
    insider.say(Versions(1, [0], [version(record(F)), version(record(G))]))
    told = insider.told()
    assert Wanted([Base(G, 0, 0)]) in told
    (records,) = [each for each in told if isinstance(each, Records)]
    assert [peer.name for peer in decode_update(records.update)] == [A, E]


def test_a_channel_that_differs_is_told_and_asked_for() -> None:
    host, insider = joined(World())
    host.source.data = numbers(1, 2)
    insider.heard()
    insider.say(Digests({CHANNEL: bytes(8)}))
    assert insider.told() == [StateWanted([CHANNEL])]
    assert [(gossip.channel, gossip.data) for _, gossip in insider.heard()] == [(CHANNEL, b"\x01\x02")]
    insider.gossip(b"\x03")
    assert [(each.kind, each.data) for each in host.heard()] == [(GossipKind.NEIGHBOUR, b"\x03")]


def test_a_channel_without_a_hash_is_told_both_ways_even_if_neither_has_one() -> None:
    world = World()
    a, b = world.line(A, B)
    a.source.data = numbers(1)
    world.run(GOSSIP_INTERVAL_S + 1)
    assert [each.data for each in b.heard()][-1:] == [b"\x01"]
    b.source.data, a.source.data = numbers(2), None
    world.run(GOSSIP_INTERVAL_S + 1)
    assert [each.data for each in a.heard()][-1:] == [b"\x02"]


def test_a_relay_that_has_no_such_channel_still_carries_it() -> None:
    world = World()
    a, b, c = (world.host(name, discovery=False, channels=() if name == B else (CHANNEL,)) for name in (A, B, C))
    world.connect(a, b)
    world.connect(b, c)
    world.run(5)
    a.source.data = numbers(8)
    world.run(GOSSIP_INTERVAL_S + 1)
    assert b"\x08" in [each.data for each in c.heard()]


# --- news -------------------------------------------------------------------------------------------------------------


def test_what_is_announced_by_several_is_asked_for_once() -> None:
    world = World()
    host, insider = joined(world)
    insider.say(News([version(record(G))]))
    insider.say(News([version(record(G))]))
    assert insider.told() == [Wanted([Base(G, 0, 0)])]
    insider.say(Records(encode_update([record(G)])[0]))
    insider.say(News([version(record(G))]))
    assert insider.told() == []
    assert host.mesh.topology.is_known(G)


def test_whoever_does_not_send_what_it_announced_is_passed_over_within_a_second() -> None:
    world = World()
    a, b = world.host(A), world.host(B)
    world.connect(b, a)
    world.run(5)
    insider = Insider(world, a)
    far = record(G, links=[B])
    insider.say(News([version(far)]))
    # B learns of it elsewhere.
    other = Insider(world, b, name=F, uid=98)
    us = Peer(F, PeerUID(98), 1, "other", ShortID(78), record(F, links=[B, G]).connections)
    other.say(Records(encode_update([us, record(G, links=[F])])[0]))
    world.run(0.9)
    assert not a.mesh.topology.is_known(G) or a.mesh.topology[G].version == 0
    world.run(asking.ANSWER_TIMEOUT_S)
    assert a.mesh.topology[G].version == 3


def test_a_changed_record_is_told_as_its_change_to_whoever_has_the_former_one() -> None:
    host, insider = joined(World())
    links = [PeerName(G + index) for index in range(10)]
    insider.say(Records(encode_update([record(F, 4, [E, *links])])[0]))
    insider.say(Records(encode_update([record(F, 5, [E, *links[1:]])])[0]))
    insider.told()
    insider.say(Wanted([Base(F, 5, 4)]))
    (answer,) = insider.told()
    assert isinstance(answer, Changes)
    (change,) = answer.changes
    assert (change.base, change.number, change.put, change.gone) == (4, 5, [], [links[0]])
    insider.say(Wanted([Base(F, 5, 1)]))
    (answer,) = insider.told()
    assert isinstance(answer, Records)
    assert decode_update(answer.update) == [host.mesh.topology[F]]


def test_a_change_of_a_record_that_we_do_not_have_is_asked_for_again() -> None:
    world = World()
    host, insider = joined(world)
    other, helper = joined(World())
    links = [PeerName(G + index) for index in range(10)]
    for number in (4, 5):
        helper.say(Records(encode_update([record(F, number, [E, *links[number:]])])[0]))
    helper.told()
    helper.say(Wanted([Base(F, 5, 4)]))
    (changes,) = helper.told()
    insider.say(changes)
    assert insider.told() == [Wanted([Base(F, 5, 3)])]
    insider.say(Records(encode_update([record(F, 4, [E, *links[4:]])])[0]))
    insider.say(changes)
    assert host.mesh.topology[F] == other.mesh.topology[F]


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff",
        encode_compact(Records(b"no update")),
        encode_compact(Records(encode_update([record(G)])[0][:-1])),
        encode_compact(Digests({CHANNEL: bytes(8)}))[:-1],
    ],
)
def test_what_cannot_be_read_costs_its_sender_the_connection_and_nobody_else_anything(payload: bytes) -> None:
    host, insider = joined(World())
    before = views([host])
    insider.send(build_message(Tag.COMPACT, payload))
    assert insider.is_closed
    assert [name for name, _, _ in views([host])[0]] == [A]
    assert before != views([host])


def test_what_was_not_asked_for_and_does_not_exist_is_ignored() -> None:
    host, insider = joined(World())
    before = views([host])
    insider.say(Wanted([Base(G, 1, 1)] * 10))
    insider.say(StateWanted(["no such channel", "topology"]))
    insider.say(Versions(4, [3, 3, 3], []))
    told = insider.told()
    assert all(isinstance(each, Records) for each in told)
    assert views([host]) == before
    assert not insider.is_closed


def test_who_asks_all_the_time_is_answered_at_the_speed_of_its_allowance() -> None:
    world = World()
    host, insider = joined(world)
    host.source.data = numbers(*range(200))
    rounds = ALLOWANCE_BYTES_MAX // 200
    heard = 0
    for _ in range(rounds + 100):
        insider.say(StateWanted([CHANNEL]))
        heard += sum(len(gossip.data) for _, gossip in insider.heard())
    # The answer that uses up the last of it is told whole.
    assert ALLOWANCE_BYTES_MAX - 4096 < heard <= ALLOWANCE_BYTES_MAX + 200
    world.now_s += 1
    for _ in range(ALLOWANCE_BYTES_PER_S // 200 + 100):
        insider.say(StateWanted([CHANNEL]))
        heard += sum(len(gossip.data) for _, gossip in insider.heard())
    assert heard <= ALLOWANCE_BYTES_MAX + ALLOWANCE_BYTES_PER_S + 200


def test_what_is_announced_and_never_sent_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "ASKED_MAX", 10)
    world = World()
    host, insider = joined(world)
    made_up = [Version(PeerName(G + index), 1, 1, has_short_id=False) for index in range(30)]
    insider.say(News(made_up))
    # With no room to remember, records are still asked for.
    assert [len(each.bases) for each in insider.told() if isinstance(each, Wanted)] == [30]
    insider.say(News(made_up[:10]))
    assert insider.told() == []
    world.now_s += asking.ANSWER_TIMEOUT_S
    insider.timer()
    insider.told()
    insider.say(News(made_up[:1]))
    assert insider.told() == [Wanted([Base(G, 0, 0)])]
    assert not host.mesh.topology.is_known(G)
