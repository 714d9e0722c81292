"""The wanted peers as they are stored, and which of them a started agent looks for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weavenet.errors import StoreError
from weavenet.node.targets import FirstTargets, decode_targets, encode_targets, first_targets, remember_launch


@given(st.lists(st.text()))
def test_texts_come_back_as_they_were_stored(texts: list[str]) -> None:
    assert decode_targets(encode_targets(texts)) == texts


@pytest.mark.parametrize("raw", [b"", b"[", b"{}", b"[1]", b"\xff", b"null"])
def test_what_is_no_list_of_texts_is_refused(raw: bytes) -> None:
    with pytest.raises(StoreError, match="stored list of peers does not decode"):
        decode_targets(raw)


def stored(launched: list[str], targets: list[str]) -> dict[str, bytes]:
    launch = remember_launch(launched, FirstTargets(tuple(targets), resumed=True))
    return {put.key: put.value for put in launch}


NEW = {"targets": encode_targets(["c"])}  # a database of before launches were remembered
FIRST_STARTS = [
    pytest.param({}, ["a", "b"], FirstTargets(("a", "b"), False), id="a first start: whom it is told of"),
    pytest.param({}, [], FirstTargets((), False), id="a first start that is told of nobody: nobody"),
    pytest.param(stored(["a"], ["a", "c"]), ["a", "d"], FirstTargets(("a", "d"), False), id="others are named: those"),
    pytest.param(stored(["a"], ["a", "c"]), [], FirstTargets((), False), id="nobody is named any more: nobody"),
    pytest.param(NEW, ["a"], FirstTargets(("a",), False), id="launches were not remembered yet: whom it is told of"),
]
RESTARTS = [
    pytest.param(stored(["a"], ["a", "c"]), ["a"], ("a", "c"), id="also whom `weave connect` added"),
    pytest.param(stored(["a", "b"], ["b"]), ["a", "b"], ("b",), id="not whom `weave forget` dropped"),
    pytest.param(stored([], ["c"]), [], ("c",), id="of one that was told of nobody"),
    pytest.param(stored(["a"], []), ["a"], (), id="of one that forgot everybody"),
]


@pytest.mark.parametrize(("values", "named", "expected"), FIRST_STARTS)
def test_a_launch_looks_for_the_peers_it_names(
    values: dict[str, bytes], named: list[str], expected: FirstTargets
) -> None:
    assert first_targets(values, named, resume=False) == expected


@pytest.mark.parametrize(("values", "named", "expected"), RESTARTS)
def test_a_plain_restart_looks_for_the_stored_peers(
    values: dict[str, bytes], named: list[str], expected: tuple[str, ...]
) -> None:
    assert first_targets(values, named, resume=False) == FirstTargets(expected, True)


def test_resuming_looks_for_the_stored_peers_whatever_was_launched() -> None:
    assert first_targets(stored(["a"], ["a", "c"]), [], resume=True) == FirstTargets(("a", "c"), True)
    assert first_targets({}, [], resume=True) == FirstTargets((), True)


def test_a_launch_is_told_from_others_by_its_peers_and_their_order() -> None:
    for named, other in ((["a", "b"], ["b", "a"]), (["a,b"], ["a", "b"])):
        assert not first_targets(stored(named, named), other, resume=False).resumed


def test_a_stored_list_that_cannot_be_read_stops_a_restart_and_not_a_launch() -> None:
    values = stored(["a"], ["a"]) | {"targets": b"["}
    with pytest.raises(StoreError):
        first_targets(values, ["a"], resume=False)
    assert first_targets(values, ["b"], resume=False) == FirstTargets(("b",), False)
