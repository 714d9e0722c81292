"""What must outlive the process does."""

import sqlite3
import stat
from pathlib import Path

import pytest

from weavenet.address import Cidr
from weavenet.drivers.store import Store
from weavenet.effects import ClearStore, DropAllocation, PutAllocation, PutSecret, PutValue
from weavenet.errors import StoreError

ADDRESS = Cidr.parse("10.32.0.1/12")
OTHER = Cidr.parse("10.32.0.2/12")


def _reopen(path: Path) -> Store:
    return Store(path)


def test_what_was_applied_is_there_after_reopening(tmp_path: Path) -> None:
    store = Store(tmp_path / "state" / "weavenet.db")
    store.load()
    store.apply([PutValue("ring", b"r1"), PutAllocation("c1/eth0", ADDRESS, is_container=True)])
    store.apply([PutValue("ring", b"r2"), PutAllocation("weave:expose", OTHER, is_container=False)])
    store.close()
    loaded = _reopen(tmp_path / "state" / "weavenet.db").load()
    assert loaded.values == {"ring": b"r2"}
    assert loaded.allocations == (
        PutAllocation("c1/eth0", ADDRESS, is_container=True),
        PutAllocation("weave:expose", OTHER, is_container=False),
    )


def test_a_secret_that_is_replaced_is_not_left_in_the_file(tmp_path: Path) -> None:
    store = Store(tmp_path / "weavenet.db")
    former = b"retired secret " * 400  # on pages of its own
    store.apply([PutSecret("keyring", former)])
    assert store.load().values == {"keyring": former}
    store.apply([PutSecret("keyring", b"the other one")])
    store.close()
    assert [path.name for path in tmp_path.iterdir()] == ["weavenet.db"]
    assert b"retired secret" not in (tmp_path / "weavenet.db").read_bytes()
    assert b"the other one" in (tmp_path / "weavenet.db").read_bytes()
    assert "secret" not in repr(PutSecret("keyring", former))


def test_dropping_and_clearing_forget(tmp_path: Path) -> None:
    store = Store(tmp_path / "weavenet.db")
    store.apply([PutAllocation("c1", ADDRESS, is_container=True), PutAllocation("c1", OTHER, is_container=True)])
    store.apply([DropAllocation("c1", ADDRESS), DropAllocation("c2", ADDRESS)])
    assert store.load().allocations == (PutAllocation("c1", OTHER, is_container=True),)
    store.apply([PutValue("peername", b"x"), ClearStore()])
    assert store.load().values == {}
    assert store.load().allocations == ()


def test_only_root_may_read_the_file(tmp_path: Path) -> None:
    Store(tmp_path / "weavenet.db").load()
    assert stat.S_IMODE((tmp_path / "weavenet.db").stat().st_mode) == 0o600


def test_a_database_of_another_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "weavenet.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="format 99"):
        Store(path).load()
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "weavenet.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match=r"weavenet\.db"):
        Store(tmp_path / "weavenet.db").load()
