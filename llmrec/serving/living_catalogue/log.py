"""The log of a living catalogue: what was acknowledged is on disk, and comes back.

A directory holds

changes-<start>.jsonl      a header, then one record for every version after <start> (JSON lines, appended, fsynced)
snapshot-<start>.parquet   version <start> in full; changes-0.jsonl begins with what the model folder holds
lock                       whoever writes holds an fcntl lock on it

A line that a crash left unfinished was never acknowledged: it is dropped. Every line carries a checksum over itself
and all lines before it, so any other damage is an error.
"""

import fcntl
import json
import logging
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from llmrec.files import atomic_path, fingerprint

logger = logging.getLogger(__name__)

FORMAT = 1
_SEGMENT = re.compile(r"changes-(\d+)\.jsonl")
# fcntl locks do not hold within a process, and go with any of its descriptors of the file.
_locked: set[Path] = set()


class Segment(NamedTuple):
    """What a file of the log says: its header, its records, where the whole lines end, and the last checksum."""

    header: dict
    records: list[dict]
    end: int
    check: str


def segment_path(directory: Path, start: int) -> Path:
    return directory / f"changes-{start}.jsonl"


def snapshot_path(directory: Path, start: int) -> Path:
    return directory / f"snapshot-{start}.parquet"


def segment_starts(directory: Path) -> list[int]:
    """The versions after which the files of the log begin, ascending; none where there is no log yet."""
    found = map(_SEGMENT.fullmatch, os.listdir(directory) if directory.is_dir() else ())
    return sorted(int(match[1]) for match in found if match)


def read_segment(directory: Path, start: int, semid_fingerprint: str) -> Segment:
    """Reads a file of the log; an unfinished last line is left out.

    Raises:
        ValueError: the log of a model folder with other Semantic IDs, or a damaged line (names it).
    """
    path = segment_path(directory, start)
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    last = content.rfind(b"\n", 0, max(end - 1, 0)) + 1
    if b"\0" in content[last:end]:  # blocks that never reached the disk
        end = last
    check, lines = "", []
    for number, line in enumerate(content[:end].split(b"\n")[:-1], 1):
        try:
            fields = json.loads(line)
            check, said = _check(check, fields), fields.pop("check")
        except (ValueError, KeyError, AttributeError) as error:
            said = error
        if said != check:
            raise ValueError(
                f"{path}, line {number} is damaged ({said}): restore the file, or cut it before this line to give up "
                "this version and all later ones"
            )
        lines.append(fields)
    header, *records = lines or [{}]
    if header.get("format") != FORMAT or header.get("start") != start:
        raise ValueError(f"{path} does not begin like a catalogue log of this version of llmrec: {header}")
    if header["semid_fingerprint"] != semid_fingerprint:
        raise ValueError(
            f"{path} belongs to a model folder with the Semantic IDs {header['semid_fingerprint']}, not "
            f"{semid_fingerprint}: give this model a directory of its own"
        )
    previous = start
    for number, record in enumerate(records, 2):
        if record["parent"] != previous or record["number"] <= previous:
            raise ValueError(f"{path}, line {number} does not follow version {previous}: a line is missing before it")
        previous = record["number"]
    return Segment(header, records, end, check)


class CatalogueLog:
    """The writer of a directory; there is one at a time.

    Args:
        directory: made where it does not exist.
        semid_fingerprint (`str`): of the model folder's index.

    Attributes:
        start (`int`), records (list of `dict`): the last file of the log, as it was found.
        size (`int`): its bytes now.

    Raises:
        ValueError: another process or object writes there, or `read_segment` refuses the log.
    """

    def __init__(self, directory: Path, semid_fingerprint: str):
        self.directory, self.semid_fingerprint = directory, semid_fingerprint
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = _locked_file(directory)
        self._file: int | None = None
        try:
            if not (starts := segment_starts(directory)):
                self._write_header(0)
                sync(directory.parent)
            self._open(max(starts, default=0))
        except BaseException:
            self.close()
            raise

    def append(self, record: dict) -> None:
        """Writes a record: when this returns, no crash can lose it; an `OSError` leaves the log without it."""
        if self._file is None:
            raise ValueError(f"{self.directory}: this catalogue is closed; open it again")
        if self._torn:
            raise OSError(f"{self.directory}: a failed write could not be undone; open the catalogue again")
        line, check = _line(self._check, record)
        self._torn = True
        try:
            _write_all(self._file, line)
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, self.size)
            os.fsync(self._file)
            self._torn = False
            raise
        self._torn = False
        self._check, self.size = check, self.size + len(line)

    def begin(self, start: int, write_snapshot: Callable[[Path], None]) -> None:
        """Goes on in a new file, on top of a snapshot of version `start`, which is written first."""
        with atomic_path(snapshot_path(self.directory, start)) as path:
            write_snapshot(path)
            sync(path)
        sync(self.directory)
        self._write_header(start)
        before, self._file = self._file, None
        os.close(before)
        self._open(start)

    def forget_before(self, start: int) -> None:
        """Deletes the files before version `start`."""
        for old in segment_starts(self.directory):
            if old < start:
                segment_path(self.directory, old).unlink()
                snapshot_path(self.directory, old).unlink(missing_ok=True)

    def close(self) -> None:
        """Gives the directory free."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        if self._lock is not None:
            _locked.discard(self.directory.resolve())
            os.close(self._lock)
            self._lock = None

    def _open(self, start: int) -> None:
        path = segment_path(self.directory, start)
        segment = read_segment(self.directory, start, self.semid_fingerprint)
        self.start, self.records, self.size, self._check = start, segment.records, segment.end, segment.check
        self._torn = False
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        if (found := os.fstat(self._file).st_size) > segment.end:
            logger.warning("%s: dropped %d bytes of a change that was never finished", path, found - segment.end)
            os.ftruncate(self._file, segment.end)
            os.fsync(self._file)

    def _write_header(self, start: int) -> None:
        header = {"format": FORMAT, "start": start, "semid_fingerprint": self.semid_fingerprint, "time": now()}
        with atomic_path(segment_path(self.directory, start)) as path:
            path.write_bytes(_line("", header)[0])
            sync(path)
        sync(self.directory)


def now() -> str:
    """The time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _locked_file(directory: Path) -> int:
    path = directory / "lock"
    key = directory.resolve()
    if key in _locked:
        raise ValueError(f"{directory} is open for writing in this process already: close that catalogue first")
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.pread(file, 20, 0).decode().strip()
        os.close(file)
        raise ValueError(
            f"{directory} is being written by another process ({owner}): stop it, or give this one another directory"
        ) from error
    os.ftruncate(file, 0)
    os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
    _locked.add(key)
    return file


def _line(check: str, fields: dict) -> tuple[bytes, str]:
    check = _check(check, fields)
    return (json.dumps({**fields, "check": check}) + "\n").encode(), check


def _check(previous: str, fields: dict) -> str:
    return fingerprint(previous, json.dumps({name: value for name, value in fields.items() if name != "check"}))


def _write_all(file: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(file, view) :]
