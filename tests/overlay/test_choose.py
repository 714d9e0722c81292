import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weavenet.overlay.choose import NO_COMMON_OVERLAY, OverlayEvent, Switch, negotiate

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "fastdp.json").read_text())["vectors"]

ESTABLISHED, UNHEALTHY, HEALTHY, FAILED = (
    OverlayEvent.ESTABLISHED,
    OverlayEvent.UNHEALTHY,
    OverlayEvent.HEALTHY,
    OverlayEvent.FAILED,
)
FASTDP, SLEEVE = 0, 1


@pytest.mark.parametrize("vector", VECTORS["overlay_negotiation"], ids=lambda vector: repr(vector["theirs"]))
def test_overlays_are_negotiated_as_weave_does(vector: dict[str, list[str] | str | None]) -> None:
    ours, theirs = vector["ours"], vector["theirs"]
    assert isinstance(ours, list)
    offered = theirs.split() if isinstance(theirs, str) else None

    common = negotiate(ours, offered)

    assert list(common) == vector["common_in_index_order"]
    assert vector.get("error") == (None if common else NO_COMMON_OVERLAY)


@pytest.mark.parametrize(
    ("events", "best"),
    [
        pytest.param([], FASTDP, id="at first the first"),
        pytest.param([(SLEEVE, ESTABLISHED)], SLEEVE, id="the one that is established"),
        pytest.param([(SLEEVE, ESTABLISHED), (FASTDP, ESTABLISHED)], FASTDP, id="of two established the first"),
        pytest.param([(FASTDP, UNHEALTHY)], SLEEVE, id="one on hold is passed over"),
        pytest.param(
            [(FASTDP, ESTABLISHED), (SLEEVE, ESTABLISHED), (FASTDP, UNHEALTHY)], SLEEVE, id="fail over to the standby"
        ),
        pytest.param(
            [(FASTDP, ESTABLISHED), (SLEEVE, ESTABLISHED), (FASTDP, UNHEALTHY), (FASTDP, HEALTHY)],
            FASTDP,
            id="and back",
        ),
        pytest.param([(FASTDP, ESTABLISHED), (FASTDP, FAILED)], SLEEVE, id="one that failed is not used"),
        pytest.param([(FASTDP, FAILED), (FASTDP, HEALTHY), (SLEEVE, FAILED)], None, id="failing is for good"),
        pytest.param([(FASTDP, UNHEALTHY), (SLEEVE, FAILED)], None, id="nothing works"),
    ],
)
def test_the_best_overlay_is_the_first_that_is_established_and_healthy(
    events: list[tuple[int, OverlayEvent]],
    best: int | None,
) -> None:
    switch = Switch(("fastdp", "sleeve"))
    for index, event in events:
        switch.apply(index, event)

    assert switch.best() == best


def test_a_connection_that_was_established_stays_so_when_its_overlay_fails() -> None:
    switch = Switch(("fastdp", "sleeve"))
    switch.apply(FASTDP, ESTABLISHED)
    switch.apply(FASTDP, FAILED)

    assert switch.established
    assert not switch.is_established(SLEEVE)


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(OverlayEvent)), max_size=30))
def test_the_choice_agrees_with_the_rule_read_word_by_word(events: list[tuple[int, OverlayEvent]]) -> None:
    switch = Switch(("a", "b", "c"))
    for index, event in events:
        switch.apply(index, event)

    def last_of(index: int, *kinds: OverlayEvent) -> OverlayEvent | None:
        return next((event for at, event in reversed(events) if at == index and event in kinds), None)

    works = [i for i in range(3) if not last_of(i, FAILED) and last_of(i, HEALTHY, UNHEALTHY) is not UNHEALTHY]
    rule = [i for i in works if last_of(i, ESTABLISHED)] + works + [None]
    assert switch.best() == rule[0]
