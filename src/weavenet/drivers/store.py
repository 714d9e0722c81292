"""What must outlive the process, in one SQLite file.

Two tables: `value` (peer name, ring, targets, passwords: one blob each) and `allocation` (one row per address, so that
a pod that comes or goes costs one small row and not a rewrite of them all). `synchronous=FULL` with a write-ahead log:
a commit has reached the disk when it returns, which is what lets the outbox answer ADD right after
(sqlite.org/pragma.html). The file is 0600: it names every container of the host, and holds the mesh's passwords.

Calls block and belong in the store's own thread; the connection is made in whichever thread calls first.
"""

import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import assert_never

from weavenet.address import Address, Cidr
from weavenet.effects import ClearStore, DropAllocation, PutAllocation, PutSecret, PutValue, StoreChange
from weavenet.errors import StoreError
from weavenet.ipam.allocator import StoredState

FORMAT_VERSION = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS value (key TEXT PRIMARY KEY, content BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS allocation (
    ident TEXT NOT NULL,
    address INTEGER NOT NULL,
    prefix_length INTEGER NOT NULL,
    is_container INTEGER NOT NULL,
    PRIMARY KEY (ident, address)
) WITHOUT ROWID;
"""


class Store:
    """The database of one node."""

    def __init__(self, path: Path) -> None:
        """Name the file; nothing is opened yet."""
        self._path = path
        self._connection: sqlite3.Connection | None = None

    def load(self) -> StoredState:
        """Open the file, making it if need be, and read all of it. Raises StoreError, naming the file."""
        try:
            connection = self._open()
            values = dict(connection.execute("SELECT key, content FROM value ORDER BY key"))
            rows = connection.execute(
                "SELECT ident, address, prefix_length, is_container FROM allocation ORDER BY ident, address",
            )
            allocations = tuple(
                PutAllocation(ident, Cidr(Address(address), prefix_length), bool(is_container))
                for ident, address, prefix_length, is_container in rows
            )
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"cannot read the database {self._path}: {error}") from error
        return StoredState(values=values, allocations=allocations)

    def apply(self, changes: Sequence[StoreChange]) -> None:
        """Make changes durable as one transaction. Raises StoreError, and then none of them happened."""
        try:
            connection = self._open()
            with connection:
                for change in changes:
                    _apply_change(connection, change)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"cannot write the database {self._path}: {error}") from error

    def close(self) -> None:
        """Close the file; must be called in the thread that used it."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None:
            return self._connection
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(self._path, timeout=5.0)
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, FORMAT_VERSION):
            connection.close()
            raise StoreError(
                f"the database {self._path} has format {version}, this weavenet reads format {FORMAT_VERSION}; "
                "upgrade weavenet, or remove the file to start afresh (running pods then keep addresses nobody tracks)",
            )
        # Only now: changing the journal writes to the file, and a file that we do not understand is left as it is.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA secure_delete=ON")  # a retired password is overwritten
        connection.executescript(_SCHEMA)
        connection.execute(f"PRAGMA user_version={FORMAT_VERSION}")
        self._connection = connection
        return connection


def _apply_change(connection: sqlite3.Connection, change: StoreChange) -> None:
    match change:
        case PutValue(key, value) | PutSecret(key, value):
            connection.execute("INSERT OR REPLACE INTO value VALUES (?, ?)", (key, value))
        case PutAllocation(ident, cidr, is_container):
            connection.execute(
                "INSERT OR REPLACE INTO allocation VALUES (?, ?, ?, ?)",
                (ident, cidr.address, cidr.prefix_length, is_container),
            )
        case DropAllocation(ident, cidr):
            connection.execute("DELETE FROM allocation WHERE ident = ? AND address = ?", (ident, cidr.address))
        case ClearStore():
            connection.execute("DELETE FROM value")
            connection.execute("DELETE FROM allocation")
        case _:
            assert_never(change)
