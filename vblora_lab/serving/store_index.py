"""The index of a store: which adapter a name means. SQLite, so that many may read while one writes.

SQLite's write lock is also the lock of the whole store: whoever has it is the only one, of all
threads and processes, that changes folders. It ends with its process, whatever ends that.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from vblora_lab.errors import StoreError
from vblora_lab.files import whole_file
from vblora_lab.tuner.injection import UNFIT_FOR_A_FOLDER

PATIENCE = 60.0  # seconds that a writer waits for those before it
OURS = 0x56424C41  # SQLite's application_id: "VBLA"
VERSION = 1
TABLES = """
    CREATE TABLE adapters (
        name TEXT PRIMARY KEY,
        digest TEXT NOT NULL,      -- of its files; names its folder
        bank TEXT NOT NULL,        -- fingerprint of the bank that it needs
        bytes INTEGER NOT NULL,    -- of its files
        base_model TEXT            -- as its config calls it
    ) WITHOUT ROWID;
    CREATE INDEX by_digest ON adapters (digest);
    CREATE INDEX by_bank ON adapters (bank);
"""


class Row(NamedTuple):
    """An adapter in the index; see `TABLES`."""

    name: str
    digest: str
    bank: str
    bytes: int
    base_model: str | None


class Index:
    """The file of the index. Any thread may use it, and a process that was forked too.

    Args:
        path: of the file; it is made if it isn't there.

    Raises:
        StoreError: it is no index of a store, or one of a later version of this package.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._one_writer = threading.Lock()  # SQLite's own lock is waited for by trying again
        self._forget()
        self._prepare()

    def _forget(self) -> None:
        """Begin without connections: at first, and after a fork, which no connection survives."""
        self._pid = os.getpid()
        self._idle: deque[sqlite3.Connection] = deque()
        weakref.finalize(self, _close, self._idle, self._pid)

    def _prepare(self) -> None:
        # One at a time, and whole or absent: nobody meets an index that is being made.
        if not self._path.is_file():
            with FileLock(self._path.with_suffix(".lock"), fallback_to_soft=False):
                if not self._path.is_file():
                    with whole_file(self._path) as new:
                        _make(new)
        with self._connection() as connection:
            if _number(connection, "application_id") != OURS:
                raise StoreError(f"{self._path} is the database of another program.")
            version = _number(connection, "user_version")
            if version > VERSION:
                raise StoreError(
                    f"{self._path} has format {version}, and this version of vblora_lab reads "
                    f"{VERSION} at most; install a newer one."
                )

    # --- connections and transactions

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """One that no other thread uses meanwhile. An error closes it, which takes all back."""
        if os.getpid() != self._pid:
            self._one_writer = threading.Lock()
            self._abandoned = self._idle  # closing them here would drop the other process's locks
            self._forget()
        connection = None
        try:
            connection = self._taken() or self._connect()
            yield connection
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, sqlite3.Error):
                raise StoreError(f"{self._path} can't be read or written: {error}.") from error
            raise
        else:
            self._idle.append(connection)

    def _taken(self) -> sqlite3.Connection | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(
            self._path, timeout=PATIENCE, isolation_level=None, check_same_thread=False
        )

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        """Be the only writer; what is written is there when the block ends, all of it or nothing.

        Raises:
            StoreError: others have been writing for `PATIENCE` seconds, or the disk is full.
        """
        with self._one_writer, self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield Writer(connection)
            connection.execute("COMMIT")

    def close(self) -> None:
        """Close the connections; the next call opens one again."""
        _close(self._idle, self._pid)

    # --- reading

    def find(self, name: str) -> Row | None:
        """The adapter of this name."""
        if UNFIT_FOR_A_FOLDER.search(name):  # SQLite takes no text that isn't Unicode
            return None
        found = self._rows("WHERE name = ?", name)
        return found[0] if found else None

    def page(self, after: str = "", most: int = 1000) -> list[Row]:
        """The next adapters after a name, in the order of names."""
        return self._rows("WHERE name > ? ORDER BY name LIMIT ?", after, most)

    def near(self, name: str, most: int = 100) -> list[str]:
        """Names that stand before and behind this one in their order."""
        name = UNFIT_FOR_A_FOLDER.sub("_", name)
        before = self._rows("WHERE name < ? ORDER BY name DESC LIMIT ?", name, most)
        return [row.name for row in before + self.page(name, most)]

    def count(self) -> int:
        """How many adapters there are."""
        with self._connection() as connection:
            return int(connection.execute("SELECT count(*) FROM adapters").fetchone()[0])

    def check(self) -> None:
        """Raise `StoreError` if the file is damaged."""
        with self._connection() as connection:
            found = connection.execute("PRAGMA integrity_check").fetchone()[0]
        if found != "ok":
            raise StoreError(f"{self._path} is damaged: {found}.")

    def _rows(self, which: str, *values: str | int) -> list[Row]:
        with self._connection() as connection:
            found = connection.execute(f"SELECT * FROM adapters {which}", values).fetchall()
        return [Row(*each) for each in found]


class Writer:
    """What a writer does to the index."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def find(self, name: str) -> Row | None:
        found = self._connection.execute("SELECT * FROM adapters WHERE name = ?", (name,))
        row = found.fetchone()
        return None if row is None else Row(*row)

    def put(self, row: Row) -> None:
        self._connection.execute("INSERT OR REPLACE INTO adapters VALUES (?, ?, ?, ?, ?)", row)

    def remove(self, name: str) -> None:
        self._connection.execute("DELETE FROM adapters WHERE name = ?", (name,))

    def uses_adapter(self, digest: str) -> bool:
        return self._any("SELECT 1 FROM adapters WHERE digest = ? LIMIT 1", digest)

    def uses_bank(self, fingerprint: str) -> bool:
        return self._any("SELECT 1 FROM adapters WHERE bank = ? LIMIT 1", fingerprint)

    def _any(self, query: str, value: str) -> bool:
        return self._connection.execute(query, (value,)).fetchone() is not None


def _make(path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(
            f"{TABLES} PRAGMA application_id = {OURS}; PRAGMA user_version = {VERSION};"
        )
    finally:
        connection.close()  # which also brings all of it into the one file


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])


def _close(connections: deque[sqlite3.Connection], pid: int) -> None:
    while connections and os.getpid() == pid:
        connections.pop().close()
