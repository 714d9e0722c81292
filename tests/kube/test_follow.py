"""What to ask next, decided without a server: the waits, and what each failure means for what is known."""

import pytest
from cluster import Halves

from weavenet.errors import KubeAnswerError, KubeError, KubeStatusError, KubeUnreachableError
from weavenet.kube import backoff
from weavenet.kube.follow import (
    Changed,
    CheckHistory,
    Follower,
    Gone,
    Listed,
    ListPage,
    Pause,
    Watch,
)
from weavenet.resources import KubeObject, ObjectMeta


@pytest.fixture(autouse=True)
def _whole_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_S", 1.0)
    monkeypatch.setattr(backoff, "CAP_S", 30.0)


def thing(name: str, version: int, uid: str = "") -> KubeObject:
    return KubeObject(ObjectMeta(name, uid=uid or f"uid-{name}", resource_version=str(version)))


def watching(*things: KubeObject, version: str = "10") -> Follower[KubeObject]:
    follower: Follower[KubeObject] = Follower(Halves())
    assert follower.next_step() == ListPage("")
    follower.page_came(things, version, "")
    assert follower.next_step() == Watch(version, 450)
    return follower


def refused(code: int, retry_after_s: float | None = None) -> KubeStatusError:
    return KubeStatusError("asking", code, "Reason", "", retry_after_s)


@pytest.mark.parametrize(
    ("error", "steps"),
    [
        pytest.param(refused(410), [Pause(0.75), ListPage("")], id="gone"),
        pytest.param(refused(400), [Pause(0.75), ListPage("")], id="a version it cannot read"),
        pytest.param(refused(403), [Pause(0.75), Watch("10", 450)], id="forbidden"),
        pytest.param(refused(500), [Pause(0.75), Watch("10", 450)], id="unwell"),
        pytest.param(refused(429, 5), [Pause(5.75), Watch("10", 450)], id="too many requests"),
        pytest.param(refused(503, 1e6), [Pause(120.75), Watch("10", 450)], id="a wait without reason"),
        pytest.param(KubeUnreachableError("cut"), [Pause(0.75), CheckHistory()], id="cut off"),
        pytest.param(KubeAnswerError("nonsense"), [Pause(0.75), ListPage("")], id="nonsense"),
    ],
)
def test_what_a_failure_means_for_what_is_known(error: KubeError, steps: list[object]) -> None:
    follower = watching(thing("a", 9))
    follower.failed(error)
    assert [follower.next_step() for _ in steps] == steps


def test_a_watch_that_fails_after_each_list_is_asked_for_less_and_less_often() -> None:
    follower: Follower[KubeObject] = Follower(Halves())
    waits = []
    for _ in range(7):
        assert isinstance(follower.next_step(), ListPage)
        follower.page_came([thing("a", 9)], "10", "")
        assert isinstance(follower.next_step(), Watch)
        follower.watch_refused(refused(500))
        pause = follower.next_step()
        assert isinstance(pause, Pause)
        waits.append(pause.delay_s)
    assert waits == [0.75, 1.5, 3.0, 6.0, 12.0, 22.5, 22.5]


def test_a_bookmark_or_an_orderly_end_means_that_all_is_well() -> None:
    follower = watching(thing("a", 9))
    for _ in range(5):
        follower.failed(refused(500))
        follower.next_step()
    follower.next_step()
    follower.bookmark("11")
    follower.failed(refused(500))
    assert follower.next_step() == Pause(0.75)
    assert follower.next_step() == Watch("11", 450)
    follower.watch_ended(400.0)
    assert follower.next_step() == Watch("11", 450)
    follower.watch_ended(0.1)
    assert follower.next_step() == Pause(0.75)


def test_a_history_below_ours_is_listed_again_and_one_above_is_gone_on_with() -> None:
    follower = watching(thing("a", 9))
    follower.failed(KubeUnreachableError("cut"))
    follower.next_step()
    assert follower.next_step() == CheckHistory()
    follower.history_came("12")
    assert follower.next_step() == Watch("10", 450)
    follower.failed(KubeUnreachableError("cut"))
    follower.next_step()
    follower.next_step()
    follower.history_came("3")
    assert follower.next_step() == ListPage("")


def test_what_vanished_is_told_before_the_new_list_and_a_namesake_is_another() -> None:
    a, b, c = thing("a", 1), thing("b", 2), thing("c", 3)
    follower = watching(a, b, c)
    follower.failed(refused(410))
    follower.next_step()
    new_b = thing("b", 12, uid="another")
    assert follower.page_came([new_b], "20", "next") == []
    assert follower.next_step() == ListPage("next")
    told = follower.page_came([c], "20", "")
    assert told == [Gone(a), Gone(b), Listed((new_b, c))]


def test_events_are_told_as_they_come_and_unknown_deletions_are_not() -> None:
    follower = watching(thing("a", 9))
    assert follower.changed(thing("a", 11)) == [Changed(thing("a", 11))]
    assert follower.changed(thing("a", 12, uid="another")) == [Gone(thing("a", 11)), Changed(thing("a", 12, "another"))]
    assert follower.deleted(thing("a", 13)) == [Gone(thing("a", 13))]
    assert follower.deleted(thing("a", 14)) == []
    with pytest.raises(KubeAnswerError, match="went backwards"):
        follower.changed(thing("b", 5))
