"""That a larger mesh, in short, does what docs/benchmarks.md says of the largest."""

from itertools import islice
from random import Random

import pytest

from weavenet.sim.scale import TOLD_OF, Scale, told_of

HOSTS = 60


@pytest.mark.parametrize("hosts", [2, 3, 10, HOSTS])
def test_every_host_is_told_of_as_many_as_are_told_of_it(hosts: int) -> None:
    told = told_of(hosts, Random(1))
    for index in range(1, hosts + 1):
        assert 0 < len(told[index]) <= TOLD_OF
        assert index not in told[index]
        assert 0 < sum(index in others for others in told.values()) <= TOLD_OF


def test_a_mesh_of_sixty_agrees_rests_and_hears_of_a_newcomer() -> None:
    storm, rest, join = islice(Scale(HOSTS, compact=True).play(), 3)
    assert storm.agreed_s is not None
    assert storm.agreed_s < 10
    assert rest.sent_bytes / rest.duration_s < 50
    assert rest.held_bytes is not None
    assert join.known_s is not None
    assert join.known_s < 5
    assert join.sent_bytes < storm.sent_bytes / 4


def test_what_is_sent_at_rest_hardly_depends_on_the_size_and_is_a_fraction_of_weaves() -> None:
    small, larger, weave = (
        list(islice(Scale(hosts, compact=compact).play(), 2))[1]
        for hosts, compact in ((10, True), (30, True), (30, False))
    )
    assert larger.sent_bytes < 2 * small.sent_bytes
    assert larger.sent_bytes * 30 < weave.sent_bytes


def test_a_run_is_the_same_each_time() -> None:
    def counts() -> list[tuple[float, float, float | None]]:
        return [(each.messages, each.sent_bytes, each.agreed_s) for each in Scale(6, compact=True).play()]

    assert counts() == counts()
