"""The log of a living catalogue, an SQLite database: what was acknowledged is on disk, and comes back.

A directory (on a local disk) holds

catalogue.sqlite           a row for every version: its record, and a checksum over it and all rows before
snapshot-<number>.parquet  a version in full, so that a start does not replay the records before it
writer.sqlite              whoever writes holds its lock; its `user_version` is the process

SQLite takes a damaged end of its write-ahead log for changes that were never finished. So each change goes on into the
database at once, where the checksums tell damage from what never was; only a reader of an older state that stays
longer than `_READERS_MS` puts that off to the next change.
"""

import json
import logging
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from llmrec.files import atomic_path, files_fingerprint, fingerprint
from llmrec.serving.living_catalogue.old_log import old_log, read_old_log

logger = logging.getLogger(__name__)

DATABASE = "catalogue.sqlite"
_LOCKS_MS, _READERS_MS = 60_000, 200  # how long a change waits for locks, and then for readers
_NO_ACCESS = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_BUSY)
FORMAT = 2  # 1 was that of `old_log`
_TABLES = f"""
    BEGIN;
    PRAGMA user_version = {FORMAT};
    CREATE TABLE catalogue (semid_fingerprint TEXT, oldest INTEGER, newest INTEGER, chain TEXT);
    CREATE TABLE versions (number INTEGER PRIMARY KEY, record TEXT, chain TEXT);
    CREATE TABLE snapshots (number INTEGER PRIMARY KEY, chain TEXT, file_fingerprint TEXT);
"""


class Recorded(NamedTuple):
    """Records after version `start`, which is a snapshot, or 0: what the model folder holds; `size` is in characters,
    of all that were read."""

    start: int
    records: list[dict]
    size: int


class Row(NamedTuple):
    """A version as a log holds it: its record as it was written, and the checksum over it and all rows before."""

    record: str
    chain: str


def snapshot_path(directory: Path, number: int) -> Path:
    return directory / f"snapshot-{number}.parquet"


def read_log(directory: Path, semid_fingerprint: str, until: int | None = None, whole: bool = False) -> Recorded:
    """The records up to version `until` (the last one), from the newest snapshot on or (`whole`) from the oldest.

    Raises:
        ValueError: a version that is there no more; a log of other Semantic IDs, of another format, or damaged.
    """
    path, ahead = directory / DATABASE, directory / f"{DATABASE}-wal"
    if not path.exists():
        return Recorded(0, [], 0)
    read_only_disk = not os.access(directory, os.W_OK) and not ahead.exists()
    try:
        return _read(path, semid_fingerprint, until, whole, "immutable=1" if read_only_disk else "mode=ro")
    except _DamagedError as error:
        alone = None
        with suppress(ValueError):
            alone = _read(path, semid_fingerprint, None, False, "immutable=1") if ahead.exists() else None
        if alone is None:
            raise
        newest = alone.records[-1]["number"] if alone.records else alone.start
        raise _DamagedError(
            f"{ahead} does not belong to the {DATABASE} beside it, which ends with version {newest} (an older copy?): "
            "put back the one that it belongs to; or move -wal and -shm away, and what came after that version is lost"
        ) from error


def _read(path: Path, semid_fingerprint: str, until: int | None, whole: bool, access: str) -> Recorded:
    directory = path.parent
    try:
        with closing(_connect(path, access)) as database:
            database.execute("BEGIN")  # one state of it, whatever is written meanwhile
            (form,) = database.execute("PRAGMA user_version").fetchone()
            if form != FORMAT:
                raise ValueError(f"{path} is no catalogue log of this version of llmrec: its format is {form}")
            owner, oldest, newest, end = database.execute("SELECT * FROM catalogue").fetchone()
            until = newest if until is None else until
            starts = {oldest: (owner, None)}
            for number, chain, file in database.execute("SELECT * FROM snapshots WHERE number <= ?", [until]):
                if number == oldest or not whole and snapshot_path(directory, number).exists():
                    starts[number] = chain, file
            start = max(starts)
            rows = database.execute("SELECT * FROM versions WHERE number > ? ORDER BY number", [start]).fetchall()
    except (sqlite3.Error, TypeError) as error:
        if getattr(error, "sqlite_errorcode", None) in _NO_ACCESS:
            raise ValueError(f"{path} cannot be opened ({error}): who may read it?") from error
        raise _damaged(path, error) from error
    if owner != semid_fingerprint:
        raise ValueError(
            f"{path} belongs to a model folder with the Semantic IDs {owner}, not {semid_fingerprint}: give this "
            "model a directory of its own"
        )
    if until < oldest:
        raise ValueError(f"there is no catalogue version {until} any more; the oldest one is {oldest}")
    chain, file = starts[start]
    if file is not None and file != files_fingerprint([snapshot_path(directory, start)]):
        raise ValueError(
            f"{snapshot_path(directory, start)} is damaged: restore it, or delete it, so that the records before it "
            "are read in its place"
        )
    last = start
    for last, record, check in rows:
        chain = chained(chain, last, record)
        if chain != check:
            raise _damaged(path, f"version {last}")
    if (last, chain) != (newest, end):
        raise _damaged(path, f"what follows version {last}")
    records = [json.loads(record) for number, record, _ in rows if number <= until]
    return Recorded(start, records, sum(len(record) for _, record, _ in rows))


def read_rows(directory: Path, number: int, chain: str, most: int = 2**24) -> list[Row]:
    """What another log lacks that ends with version `number` and the checksum `chain`, oldest first: as many rows as
    have `most` characters, and at least one where there is one.

    Raises:
        ValueError: this log has no such version, or has none after it any more.
    """
    with closing(_connect(directory / DATABASE, "mode=ro")) as database:
        database.execute("BEGIN")
        owner, oldest, newest, _ = database.execute("SELECT * FROM catalogue").fetchone()
        (mine,) = database.execute("SELECT chain FROM versions WHERE number = ?", [number]).fetchone() or (None,)
        mine = owner if number == oldest else mine
        if number < oldest:
            raise ValueError(f"this log has no versions before {oldest} any more: copy its directory to begin with")
        if mine != chain:
            raise ValueError(
                f"version {number} of that log is none of this one, which ends with {newest}: they belong to other "
                "Semantic IDs, or one was put back from a copy; move the directory of the one that follows away"
            )
        rows, size = [], 0
        query = "SELECT record, chain FROM versions WHERE number > ? ORDER BY number"
        for row in map(Row._make, database.execute(query, [number])):
            rows.append(row)
            size += len(row.record)
            if size >= most:
                break
        return rows


class CatalogueLog:
    """The writer of a directory; there is one at a time.

    Args:
        directory: made where it does not exist. A log that an older llmrec wrote there is taken over.

    Raises:
        ValueError: another process or object writes there, or an old log is damaged or disagrees with the database.
    """

    def __init__(self, directory: Path, semid_fingerprint: str):
        self.directory, self.path = directory, directory / DATABASE
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{directory} cannot be the folder of a catalogue log: {error}") from error
        self._lock: sqlite3.Connection | None = _locked(directory)
        self._database: sqlite3.Connection | None = None
        try:
            old_records = read_old_log(directory, semid_fingerprint)
            if not self.path.exists():
                self._create(semid_fingerprint, old_records)
            elif old_records:
                known = {
                    record["number"]: record for record in read_log(directory, semid_fingerprint, whole=True).records
                }
                if any(known.get(record["number"]) != record for record in old_records):
                    raise ValueError(
                        f"{directory} holds {DATABASE} and a log of an older llmrec (changes-*.jsonl), which say "
                        "different things: move away the one that is not wanted"
                    )
            for path in old_log(directory).values():
                path.rename(f"{path}.migrated")
                logger.warning("%s is in %s now; it is kept as %s.migrated", path, DATABASE, path.name)
        except BaseException:
            self.close()
            raise

    @property
    def end(self) -> tuple[int, str]:
        """Number and checksum of the last version."""
        with closing(_connect(self.path, "mode=ro")) as database:
            return database.execute("SELECT newest, chain FROM catalogue").fetchone()

    def append(self, record: dict) -> None:
        """Writes a record: when this returns, no crash can lose it; an `OSError` leaves the log without it."""
        if self._lock is None:
            raise ValueError(f"{self.directory}: this catalogue is closed; open it again")
        try:
            if self._database is None:  # not before: engines may be forked, and no connection may go with them
                self._database = _connect(self.path)
            with self._database as database:
                _insert(database, record)
        except sqlite3.Error as error:
            raise OSError(f"{self.path}: version {record['number']} could not be written: {error}") from error
        self._database.execute(f"PRAGMA busy_timeout = {_READERS_MS}")
        with suppress(sqlite3.Error):  # a reader stays: the change is durable all the same
            self._database.execute("PRAGMA wal_checkpoint(FULL)")
        self._database.execute(f"PRAGMA busy_timeout = {_LOCKS_MS}")

    def add_snapshot(self, number: int, write: Callable[[Path], None]) -> None:
        """Keeps the last version, `number`, in full beside the records."""
        with atomic_path(snapshot_path(self.directory, number)) as scratch:
            write(scratch)
            _sync(scratch)
        _sync(self.directory)
        with closing(_connect(self.path)) as database, database:
            self._insert_snapshot(database, number)

    def close(self) -> None:
        for connection in (self._database, self._lock):
            if connection is not None:
                connection.close()
        self._database = self._lock = None

    def _create(self, semid_fingerprint: str, records: list[dict]) -> None:
        """The whole database or none, with the records of an old log."""
        if (ahead := self.path.with_name(f"{DATABASE}-wal")).exists():
            raise ValueError(f"{ahead} is there without {DATABASE}: put that back, or move -wal and -shm away too")
        oldest = min(old_log(self.directory), default=0)
        with atomic_path(self.path) as scratch, closing(_connect(scratch, "mode=rwc")) as database, database:
            database.executescript(_TABLES)
            row = semid_fingerprint, oldest, oldest, semid_fingerprint
            database.execute("INSERT INTO catalogue VALUES (?, ?, ?, ?)", row)
            if oldest:
                self._insert_snapshot(database, oldest)
            for record in records:
                _insert(database, record)
        _sync(self.directory)
        _sync(self.directory.parent)

    def _insert_snapshot(self, database: sqlite3.Connection, number: int) -> None:
        row = number, files_fingerprint([snapshot_path(self.directory, number)])
        database.execute("REPLACE INTO snapshots SELECT newest, chain, ?2 FROM catalogue WHERE newest = ?1", row)


def _connect(path: Path, access: str = "mode=rw") -> sqlite3.Connection:
    uri = f"{path.resolve().as_uri()}?{access}"
    database = sqlite3.connect(uri, uri=True, timeout=_LOCKS_MS / 1000, check_same_thread=False)
    if access.startswith("mode=rw"):
        for setting in ("journal_mode = WAL", "synchronous = FULL", "wal_autocheckpoint = 1"):
            database.execute(f"PRAGMA {setting}")
    return database


def _locked(directory: Path) -> sqlite3.Connection:
    """A lock that ends with its connection or with the process, and that a forked process does not have."""
    path = directory / "writer.sqlite"
    try:
        lock = sqlite3.connect(path, timeout=0.1, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise ValueError(f"{path} cannot be opened ({error}): look who may write in its folder") from error
    try:
        for statement in ("BEGIN IMMEDIATE", f"PRAGMA user_version = {os.getpid()}", "COMMIT", "BEGIN IMMEDIATE"):
            lock.execute(statement)
        return lock
    except sqlite3.Error as error:
        with closing(lock):
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise ValueError(
                    f"{path} cannot be locked ({error}): look who may write it; if it is damaged, delete it"
                ) from error
            (owner,) = lock.execute("PRAGMA user_version").fetchone()
        if owner == os.getpid():
            problem = "is open for writing in this process already: close that catalogue first"
        else:
            problem = f"is being written by another process ({owner}): stop it, or give this one another directory"
        raise ValueError(f"{directory} {problem}") from error


def _insert(database: sqlite3.Connection, record: dict) -> None:
    number, text = record["number"], json.dumps(record)
    (chain,) = database.execute("SELECT chain FROM catalogue").fetchone()
    chain = chained(chain, number, text)
    database.execute("INSERT INTO versions VALUES (?, ?, ?)", [number, text, chain])
    database.execute("UPDATE catalogue SET newest = ?, chain = ?", [number, chain])


def chained(chain: str, number: int, record: str) -> str:
    """The checksum of a version after that of the one before."""
    return fingerprint(str(chain), str(number), str(record))


class _DamagedError(ValueError):
    pass


def _damaged(path: Path, what: object) -> _DamagedError:
    return _DamagedError(
        f"{path} is damaged ({what}): restore it from a copy, with the -wal and -shm files of that copy and no "
        "others, or move all three away to begin again"
    )


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
