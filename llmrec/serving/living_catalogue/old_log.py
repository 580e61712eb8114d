"""The catalogue log of llmrec before 0.2, chained lines of JSON in changes-<version>.jsonl: taken over once.

This file can go with the version after 0.2.
"""

import fcntl
import json
import logging
import re
from pathlib import Path

from llmrec.files import fingerprint

logger = logging.getLogger(__name__)


def old_log(directory: Path) -> dict[int, Path]:
    """Version → the file with the records after it; empty where there is no old log."""
    matches = {path: re.fullmatch(r"changes-(\d+)\.jsonl", path.name) for path in directory.glob("changes-*.jsonl")}
    return dict(sorted((int(match[1]), path) for path, match in matches.items() if match))


def read_old_log(directory: Path, semid_fingerprint: str) -> list[dict]:
    """All its records, oldest first; raises `ValueError` where it is damaged, in use, or that of another model."""
    if not (files := old_log(directory)):
        return []
    with open(directory / "lock", "a") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"{directory} is being written by a process of an older llmrec: stop it") from error
    records, newest = [], min(files)
    for start, path in files.items():
        header, *lines = _lines(path) or [{}]
        if (header.get("format"), header.get("start")) != (1, start):
            raise ValueError(f"{path} does not begin like a catalogue log of llmrec: {header}")
        if header["semid_fingerprint"] != semid_fingerprint:
            raise ValueError(
                f"{path} belongs to a model folder with the Semantic IDs {header['semid_fingerprint']}, not "
                f"{semid_fingerprint}: give this model a directory of its own"
            )
        numbers, parents = ([line[name] for line in lines] for name in ("number", "parent"))
        if [newest, start, *numbers][:-1] != [start, *parents]:
            raise ValueError(f"{path} does not follow version {newest}, or a line is missing in it: restore it")
        newest = [start, *numbers][-1]
        records += lines
    return records


def put_away(directory: Path) -> None:
    """Gives its files names that are read no more."""
    for path in old_log(directory).values():
        path.rename(path.with_suffix(".jsonl.migrated"))
        logger.warning("%s: its versions are in the database now; the file is kept as %s.migrated", path, path.name)


def _lines(path: Path) -> list[dict]:
    *lines, _ = path.read_bytes().split(b"\n")  # what follows the last line's end was never acknowledged
    if lines and b"\0" in lines[-1]:  # blocks that never reached the disk
        lines.pop()
    check, read = "", []
    for number, line in enumerate(lines, 1):
        try:
            fields = json.loads(line)
            said = fields.pop("check")
            check = fingerprint(check, json.dumps(fields))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            said = error
        if said != check:
            raise ValueError(f"{path}, line {number} is damaged ({said}): restore it, or cut it before this line")
        read.append(fields)
    return read
