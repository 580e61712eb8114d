"""What a prepared folder was made from, so that a second run with the same settings can reuse it."""

import glob
import json
import os
import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path

from llmrec.files import fingerprint, read_json


def expand(value):
    """Replaces `$NAME` and `${NAME}` in all strings of nested dicts and lists by environment variables; YAML's dates
    become text.

    Raises:
        ValueError: naming a variable that is not set.
    """
    if isinstance(value, dict):
        return {key: expand(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [expand(part) for part in value]
    if isinstance(value, date):
        return value.isoformat()
    if not isinstance(value, str):
        return value
    expanded = os.path.expandvars(value)
    unset = re.search(r"\$(\w+|\{[^}]*\})", expanded)
    if unset:
        name = unset[1].strip("{}")
        raise ValueError(f"{value!r} uses the environment variable {name}, which is not set: export {name}=…")
    return os.path.expanduser(expanded)


def settings_fingerprint(settings: dict) -> str:
    """16 hex digits over the settings, size and time of change of every file they name, and this package's code."""
    files = sorted({file for value in _strings(settings) for file in _files(value)})
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    code = [file.read_bytes() for file in sorted(Path(__file__).parent.rglob("*")) if file.suffix in (".py", ".yaml")]
    return fingerprint(json.dumps([settings, stats], sort_keys=True, default=str), *code)


def prepared_with(folder: str | Path, settings: str) -> bool:
    """Whether a folder holds prepared data that was made with these settings (their fingerprint)."""
    path = Path(folder) / "dataset.json"
    return path.exists() and read_json(path).get("settings_fingerprint") == settings


def _strings(value) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _strings(part)


def _files(name: str) -> Iterator[Path]:
    for path in map(Path, [name] if Path(name).exists() else glob.glob(name, recursive=True)):
        yield from (file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
