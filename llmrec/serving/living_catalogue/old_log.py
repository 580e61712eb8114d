"""The catalogue log of llmrec before 0.2, chained lines of JSON in changes-<version>.jsonl, is read once.

This file can go with the version after 0.2.
"""

import fcntl
import json
from pathlib import Path

from llmrec.files import fingerprint


def old_log(directory: Path) -> dict[int, Path]:
    """Version → the file with the records after it; empty where there is no old log."""
    files = {path.stem.removeprefix("changes-"): path for path in directory.glob("changes-*.jsonl")}
    return {int(start): files[start] for start in sorted(filter(str.isdecimal, files), key=int)}


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
        *before, last = newest, start, *(record["number"] for record in lines)
        if before != [start, *(record["parent"] for record in lines)]:
            raise ValueError(f"{path} does not follow version {newest}, or a line is missing in it: restore it")
        newest = last
        records += lines
    return records


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
