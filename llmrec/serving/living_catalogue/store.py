"""`CatalogueStore`: the living catalogue of a model folder, one immutable version after the other.

What `commit` has returned for is on disk (`log.py`) and comes back after any crash. A server prepares a version, loads
it into its engines, and commits it, so that nobody sees a version that some engine lacks:

    prepared = store.prepare(Changes(put=[{"item_id": "B02", "price": 3.0}], remove=["B01"]))
    ...                                # apply_records(their version, [prepared.record]) wherever it is needed
    store.commit(prepared)             # durable, and store.current

Nobody moves (docs/lifecycle.md): items keep their Semantic IDs, those of removed items stay reserved, through
rollbacks too, and no token is added to the model.
"""

import json
import logging
import math
import sqlite3
import threading
import time
from bisect import bisect_left
from collections.abc import Sequence
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple, Self

from llmrec.catalogue.lifecycle import VERSION_COLUMN
from llmrec.catalogue.semids import SemIDIndex
from llmrec.files import read_parquet
from llmrec.models.folder import RecommenderConfig, load_index, semids_table
from llmrec.serving.living_catalogue.changes import Changes, checked
from llmrec.serving.living_catalogue.log import (
    DATABASE,
    CatalogueLog,
    Recorded,
    Row,
    chained,
    read_log,
    read_rows,
    snapshot_path,
)
from llmrec.serving.living_catalogue.old_log import old_log
from llmrec.serving.living_catalogue.semids import NewSemIDs
from llmrec.serving.living_catalogue.versions import CatalogueVersion, apply_records, difference

logger = logging.getLogger("llmrec.serving")
SNAPSHOT_SIZE = 2**25  # characters of records: a log that has more is not replayed from the beginning a second time


class Prepared(NamedTuple):
    """A version that nobody sees yet, and the record (JSON) that makes it from `record["parent"]`."""

    record: dict
    version: CatalogueVersion


class CatalogueStore:
    """The versions of a model folder's catalogue; one object at a time writes a directory.

    Args:
        folder: a model folder; it is only read.
        directory (*optional*): of the log, by default `<folder>/catalogue`.

    Attributes:
        followed_until: when (`time.monotonic`) whoever wrote here before had stopped, and may have had servers that
            followed it; -inf where none ever did.

    Raises:
        ValueError: no model folder, the log of another one, a damaged log, or one that is being written already.
    """

    def __init__(self, folder: str | Path, directory: str | Path | None = None):
        self.folder, self.directory = Path(folder), _directory(folder, directory)
        self._make_semids = NewSemIDs(self.folder)
        self._lock, self._remembering = threading.RLock(), threading.Lock()
        self._history: list[dict] | None = None
        self._fingerprint = _fingerprint(self.folder)
        self._log = CatalogueLog(self.directory, self._fingerprint)
        self._note = self.directory / "followed"
        self.followed_until = time.monotonic() if self._note.exists() else -math.inf
        try:
            recorded = read_log(self.directory, self._fingerprint)
            self.current = _replayed(self.folder, self.directory, recorded)
            self._last_number, self._size = self.current.number, recorded.size
            self._shorten()
        except BaseException:
            self._log.close()
            raise

    def prepare(self, changes: Changes) -> Prepared:
        """The version after `current` with these changes; nothing is visible or durable yet. Raises `ValueError` for
        changes that do not fit the catalogue (naming item and column), or an item that gets no Semantic ID."""
        with self._lock:
            current = self.current
            puts, removed = checked(changes, current)
            if new := [put for put in puts if put.is_new]:
                if VERSION_COLUMN in current.items.column_names:
                    came, coming = current.index.reserved_versions, current.index.version + 1
                    for put in new:
                        put.columns[VERSION_COLUMN] = came.get(put.item_id, coming)
                codes = self._make_semids(current.index, new, current.items.schema)
                for put in new:
                    put.codes.extend(codes[put.item_id])
            return self._prepared({"remove": removed, "put": [put.written() for put in puts]})

    def prepare_rollback(self, number: int) -> Prepared:
        """A new version with the content of version `number`; raises `ValueError` as `version`."""
        with self._lock:
            if number == self.current.number:
                raise ValueError(f"version {number} is the current one: there is nothing to roll back")
            target = self.version(number)
            prepared = self._prepared(difference(self.current, target), rollback_of=number)
            assert prepared.version.index.fingerprint == target.index.fingerprint
            return prepared

    def note_follower(self) -> None:
        """Keeps, also for who writes here next, that there are servers that follow."""
        if not self._note.exists():
            self._note.touch()

    def rows_after(self, number: int, chain: str) -> list[Row]:
        """See `read_rows`."""
        return read_rows(self.directory, number, chain)

    @property
    def end(self) -> tuple[int, str]:
        """Number and checksum of the last version."""
        return self._log.end

    def prepare_row(self, row: Row) -> Prepared:
        """The version that another log has after the last one of this; nothing is visible or durable yet. Raises
        `ValueError` for a row that does not follow."""
        with self._lock:
            record = self._followed(*self.end, [row])[0]
            return Prepared(record, apply_records(self.current, [record]))

    def catch_up(self, rows: Sequence[Row]) -> None:
        """Makes what another log has after the last version of this one current, all at once; raises as
        `prepare_row`."""
        with self._lock:
            records = self._followed(*self.end, rows)
            version = apply_records(self.current, records)
            for record in records:
                self._append(record)
            self._make_current(version)

    def _followed(self, number: int, chain: str, rows: Sequence[Row]) -> list[dict]:
        records = [json.loads(row.record) for row in rows]
        for record, row in zip(records, rows):
            if record["parent"] != number or chained(chain, record["number"], row.record) != row.chain:
                raise ValueError(f"version {record['number']} of another log does not follow {number} of this one")
            number, chain = record["number"], row.chain
        return records

    def commit(self, prepared: Prepared) -> dict:
        """Makes a prepared version current, durably; gives its record.

        Raises:
            ValueError: another version became current since it was prepared.
            OSError: it could not be written; `current` stays.
        """
        with self._lock:
            if prepared.record["parent"] != self.current.number:
                raise ValueError(
                    f"version {prepared.record['number']} was prepared after version {prepared.record['parent']}, but "
                    f"version {self.current.number} is current now: prepare the changes again"
                )
            self._append(prepared.record)
            self._make_current(prepared.version)
            return prepared.record

    def _append(self, record: dict) -> None:
        self._log.append(record)
        self._size += len(json.dumps(record))
        with self._remembering:
            known = self._history
            if known is not None and (not known or known[-1]["version"] < record["number"]):
                known.append(_summary(record))

    def _make_current(self, version: CatalogueVersion) -> None:
        self.current, self._last_number = version, max(self._last_number, version.number)
        try:
            self._shorten()
        except (OSError, sqlite3.Error):  # the change is durable all the same
            logger.exception("no snapshot of catalogue version %d could be written", version.number)

    def _shorten(self) -> None:
        """Keeps the current version in full where a start would have to replay too many records."""
        if self._size > SNAPSHOT_SIZE:
            current = self.current
            self._log.add_snapshot(current.number, lambda path: current.index.save(path, current.items))
            self._size = 0

    def history(self, limit: int = 100, before: int | None = None) -> list[dict]:
        """What made the newest versions that the log has, oldest first: at most `limit` of those before a version.
        The log is read once."""
        with self._remembering:
            if self._history is None:
                records = read_log(self.directory, self._fingerprint, whole=True).records
                self._history = [*map(_summary, records)]
            end = len(self._history)
            if before is not None:
                end = bisect_left(self._history, before, key=itemgetter("version"))
            return self._history[max(0, end - limit) : end]

    def version(self, number: int) -> CatalogueVersion:
        """Any version that the log has, made again; raises `ValueError` where it has no such version."""
        current = self.current
        return current if number == current.number else load_version(self.folder, self.directory, number)

    def close(self) -> None:
        with self._lock:
            self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _prepared(self, content: dict, rollback_of: int | None = None) -> Prepared:
        # A number is given once: an engine may still hold a version that was prepared in vain.
        self._last_number += 1
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        numbers = {"number": self._last_number, "parent": self.current.number}
        record = {**numbers, "time": now, "rollback_of": rollback_of, **content}
        return Prepared(record, apply_records(self.current, [record]))


def _summary(record: dict) -> dict:
    new = sum("codes" in put for put in record["put"])
    counts = {"added": new, "updated": len(record["put"]) - new, "removed": len(record["remove"])}
    return {"version": record["number"], "time": record["time"], **counts, "rollback_of": record["rollback_of"]}


def load_version(
    folder: str | Path, directory: str | Path | None = None, number: int | None = None
) -> CatalogueVersion:
    """A committed version of a model folder's catalogue, by default the last; for readers, beside a writer too.

    Raises:
        ValueError: no such version, or none any more; the log of another model folder, a damaged one, or one of an
            older llmrec that no `CatalogueStore` has taken over yet.
    """
    folder, directory = Path(folder), _directory(folder, directory)
    if names := ", ".join(path.name for path in old_log(directory).values()):
        raise ValueError(
            f"{directory} holds the log of an older llmrec ({names}). To take it over into {DATABASE}, start the "
            f"server once, or run in Python: from {__name__} import CatalogueStore; "
            f"CatalogueStore({str(folder)!r}, {str(directory)!r}).close()"
        )
    version = _replayed(folder, directory, read_log(directory, _fingerprint(folder), number))
    if number is not None and version.number != number:
        raise ValueError(f"there is no catalogue version {number}; the last one before it is {version.number}")
    return version


def _directory(folder: str | Path, directory: str | Path | None) -> Path:
    return (Path(folder) / "catalogue" if directory is None else Path(directory)).absolute()


def _fingerprint(folder: Path) -> str:
    config = RecommenderConfig.load(folder)
    return config.semid_fingerprint or load_index(folder, config).fingerprint


def _replayed(folder: Path, directory: Path, recorded: Recorded) -> CatalogueVersion:
    if recorded.start:
        path = snapshot_path(directory, recorded.start)
        index, table = SemIDIndex.load(path), read_parquet(path)
    else:
        index, table = load_index(folder, RecommenderConfig.load(folder)), semids_table(folder)
    return apply_records(CatalogueVersion.of_table(recorded.start, index, table), recorded.records)
