"""The log of a living catalogue, an SQLite database: what was acknowledged is on disk, and comes back.

A directory (on a local disk) holds

catalogue.sqlite           a row for every version: its record, and a checksum over it and all rows before
snapshot-<number>.parquet  a version in full, so that a start does not replay the records before it
writer.sqlite              whoever writes holds its lock; its `user_version` is the process

SQLite takes a damaged end of its write-ahead log for changes that were never finished. So each change goes on into the
database at once (`wal_autocheckpoint=1`), where the checksums tell damage from what never was.
"""

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from llmrec.files import atomic_path, files_fingerprint, fingerprint
from llmrec.serving.living_catalogue.old_log import old_log, put_away, read_old_log

FORMAT = 2  # 1 were files of JSON lines
DATABASE = "catalogue.sqlite"
_TABLES = """
    CREATE TABLE catalogue (semid_fingerprint TEXT, oldest INTEGER, newest INTEGER, chain TEXT);
    CREATE TABLE versions (number INTEGER PRIMARY KEY, record TEXT, chain TEXT);
    CREATE TABLE snapshots (number INTEGER PRIMARY KEY, chain TEXT, file TEXT);
"""


class Recorded(NamedTuple):
    """Records that follow version `start`: a snapshot whose file has that fingerprint, or (`None`) the model folder.

    `oldest` is the oldest version that can be made again, `size` the length of all records after `start`.
    """

    start: int
    file: str | None
    records: list[dict]
    oldest: int = 0
    size: int = 0


def snapshot_path(directory: Path, number: int) -> Path:
    return directory / f"snapshot-{number}.parquet"


def read_log(directory: Path, semid_fingerprint: str, until: int | None = None, whole: bool = False) -> Recorded:
    """The records up to version `until` (the last one), from the newest snapshot on or (`whole`) from the oldest.

    Raises:
        ValueError: the log of a model folder with other Semantic IDs, a log of another format, or a damaged one.
    """
    path = directory / DATABASE
    if not path.exists():
        return Recorded(0, None, [])
    try:
        with closing(_connect(path, "mode=ro" if os.access(directory, os.W_OK) else "immutable=1")) as database:
            return _read(database, path, semid_fingerprint, until, whole)
    except (sqlite3.Error, TypeError) as error:
        raise ValueError(_damaged(path, error)) from error


def _read(
    database: sqlite3.Connection, path: Path, semid_fingerprint: str, until: int | None, whole: bool
) -> Recorded:
    database.execute("BEGIN")  # one state of it, whatever is written meanwhile
    (form,) = database.execute("PRAGMA user_version").fetchone()
    if form != FORMAT:
        raise ValueError(f"{path} is no catalogue log of this version of llmrec: its format is {form}, not {FORMAT}")
    owner, oldest, newest, end = database.execute("SELECT * FROM catalogue").fetchone()
    if owner != semid_fingerprint:
        raise ValueError(
            f"{path} belongs to a model folder with the Semantic IDs {owner}, not {semid_fingerprint}: give this "
            "model a directory of its own"
        )
    until = newest if until is None else until
    starts = {oldest: (owner, None)}  # of which version there is a table → the chain up to it, the file's fingerprint
    for number, chain, file in database.execute("SELECT * FROM snapshots"):
        usable = number <= until and not whole and snapshot_path(path.parent, number).exists()
        if usable or number == oldest:
            starts[number] = chain, file
    start = number = max(starts)
    chain, file = starts[start]
    records, size = [], 0
    rows = database.execute("SELECT * FROM versions WHERE number > ? ORDER BY number", [start])
    for number, record, check in rows:  # noqa: B007
        chain = _chained(chain, number, record)
        if chain != check:
            raise ValueError(_damaged(path, f"version {number}"))
        size += len(record)
        if number <= until:
            records.append(json.loads(record))
    if (number, chain) != (newest, end):
        raise ValueError(_damaged(path, f"what follows version {number}"))
    return Recorded(start, file, records, oldest, size)


class CatalogueLog:
    """The writer of a directory; there is one at a time.

    Args:
        directory: made where it does not exist. A log that an older llmrec wrote there is taken over.
        semid_fingerprint (`str`): of the model folder's index.

    Raises:
        ValueError: another process or object writes there, or an old log is damaged or disagrees with the database.
    """

    def __init__(self, directory: Path, semid_fingerprint: str):
        self.directory, self.path = directory, directory / DATABASE
        directory.mkdir(parents=True, exist_ok=True)
        self._lock: sqlite3.Connection | None = _locked(directory)
        self._database: sqlite3.Connection | None = None
        try:
            old_records = read_old_log(directory, semid_fingerprint)
            if not self.path.exists():
                self._create(semid_fingerprint, old_records)
            elif old_records:
                known = {record["number"]: record for record in read_log(directory, semid_fingerprint, whole=True)[2]}
                other = next((old for old in old_records if known.get(old["number"]) != old), None)
                if other is not None:
                    raise ValueError(
                        f"{directory} holds {DATABASE} and a log of an older llmrec (changes-*.jsonl), whose version "
                        f"{other['number']} is another or missing there: move away the one that is not wanted"
                    )
            put_away(directory)
        except BaseException:
            self.close()
            raise

    def append(self, record: dict) -> None:
        """Writes a record: when this returns, no crash can lose it; an `OSError` leaves the log without it."""
        if self._lock is None:
            raise ValueError(f"{self.directory}: this catalogue is closed; open it again")
        try:
            if self._database is None:  # not before: engines may be forked, and no connection may go with them
                self._database = _connect(self.path, "mode=rw")
            with self._database as database:
                _insert(database, record)
        except sqlite3.Error as error:
            raise OSError(f"{self.path}: version {record['number']} could not be written: {error}") from error

    def add_snapshot(self, number: int, write: Callable[[Path], None]) -> None:
        """Keeps the last version, `number`, in full beside the records."""
        path = snapshot_path(self.directory, number)
        with atomic_path(path) as scratch:
            write(scratch)
            _sync(scratch)
        _sync(self.directory)
        with closing(_connect(self.path, "mode=rw")) as database, database:
            _insert_snapshot(database, path, number)

    def close(self) -> None:
        """Gives the directory free."""
        for connection in (self._database, self._lock):
            if connection is not None:
                connection.close()
        self._database = self._lock = None

    def _create(self, semid_fingerprint: str, records: list[dict]) -> None:
        """The whole database or none, with the records of an old log."""
        starts = old_log(self.directory)
        oldest = min(starts, default=0)
        with atomic_path(self.path) as scratch:
            with closing(_connect(scratch, "mode=rwc")) as database, database:
                database.executescript(f"BEGIN; PRAGMA user_version = {FORMAT}; {_TABLES}")
                row = semid_fingerprint, oldest, oldest, semid_fingerprint
                database.execute("INSERT INTO catalogue VALUES (?, ?, ?, ?)", row)
                if oldest:
                    _insert_snapshot(database, snapshot_path(self.directory, oldest), oldest)
                for record in records:
                    _insert(database, record)
                    path = snapshot_path(self.directory, record["number"])
                    if record["number"] in starts and path.exists():
                        _insert_snapshot(database, path, record["number"])
            _sync(scratch)
        _sync(self.directory)
        _sync(self.directory.parent)


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _locked(directory: Path) -> sqlite3.Connection:
    """A lock that ends with its connection or with the process, and that a forked process does not have."""
    path = directory / "writer.sqlite"
    lock = sqlite3.connect(path, timeout=0.1, isolation_level=None, check_same_thread=False)
    try:
        lock.execute("BEGIN IMMEDIATE")
        lock.execute(f"PRAGMA user_version = {os.getpid()}")
        lock.execute("COMMIT")
        lock.execute("BEGIN IMMEDIATE")
        return lock
    except sqlite3.Error as error:
        with closing(lock):
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise ValueError(f"{path} cannot be locked: {error}; if it is damaged, delete it") from error
            (owner,) = lock.execute("PRAGMA user_version").fetchone()
        if owner == os.getpid():
            raise ValueError(
                f"{directory} is open for writing in this process already: close that catalogue first"
            ) from error
        raise ValueError(
            f"{directory} is being written by another process ({owner}): stop it, or give this one another directory"
        ) from error


def _connect(path: Path, access: str) -> sqlite3.Connection:
    uri = f"{path.resolve().as_uri()}?{access}"
    database = sqlite3.connect(uri, uri=True, timeout=60, check_same_thread=False)
    if access not in ("mode=ro", "immutable=1"):
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA wal_autocheckpoint = 1")
    return database


def _insert(database: sqlite3.Connection, record: dict) -> None:
    number, text = record["number"], json.dumps(record)
    (chain,) = database.execute("SELECT chain FROM catalogue").fetchone()
    chain = _chained(chain, number, text)
    database.execute("INSERT INTO versions VALUES (?, ?, ?)", [number, text, chain])
    database.execute("UPDATE catalogue SET newest = ?, chain = ?", [number, chain])


def _insert_snapshot(database: sqlite3.Connection, path: Path, number: int) -> None:
    row = number, files_fingerprint([path])
    database.execute("REPLACE INTO snapshots SELECT ?1, chain, ?2 FROM catalogue WHERE newest = ?1", row)


def _chained(chain: str, number: int, text: str) -> str:
    return fingerprint(chain, str(number), str(text))


def _damaged(path: Path, what: object) -> str:
    return f"{path} is damaged ({what}): restore it from a copy, or move it away to begin again"


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
