"""Waits grow to a cap, are random in part, and a server that says when to come again is believed, within reason."""

import pytest
from cluster import Halves

from weavenet.kube import backoff
from weavenet.kube.backoff import Backoff


def test_waits_grow_to_a_cap_and_begin_anew_after_a_success(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_S", 1.0)
    monkeypatch.setattr(backoff, "CAP_S", 5.0)
    waits = Backoff(Halves())
    assert [waits.next_s() for _ in range(5)] == [0.75, 1.5, 3.0, 3.75, 3.75]
    waits.reset()
    assert waits.next_s() == 0.75


def test_a_server_may_ask_for_more_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_S", 1.0)
    assert Backoff(Halves()).next_s(retry_after_s=10) == 10.75
    assert Backoff(Halves()).next_s(retry_after_s=1e9) == backoff.RETRY_AFTER_MAX_S + 0.75
