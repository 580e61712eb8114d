"""What a prepared folder was made from, so that a second run with the same settings can reuse it."""

import glob
import json
import os
import re
from collections.abc import Iterator
from datetime import date
from pathlib import Path

from llmrec.data.prepared import check_replaceable
from llmrec.files import fingerprint, read_json

# Arguments of sources whose texts name no files.
_NO_FILES = "columns item_columns timestamp_unit encoding quote_char delimiter decimal price_format item_lists".split()


def expand(value):
    """Replaces `$NAME` and `${NAME}` in all strings of nested dicts and lists by environment variables; YAML's dates
    become text. Raises `ValueError` naming a variable that is not set.
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
    if unset := re.search(r"\$(\w+|\{[^}]*\})", expanded):
        name = unset[1].strip("{}")
        raise ValueError(f"{value!r} uses the environment variable {name}, which is not set: export {name}=…")
    return os.path.expanduser(expanded)


def inputs_fingerprint(settings: dict) -> str:
    """16 hex digits over size and time of change of every file that the source's arguments name, and this package's
    own code."""
    named = {name: value for name, value in settings["source_args"].items() if name not in _NO_FILES}
    files = sorted({file for value in _strings(named) if value for file in _files(value)})
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    code = [file.read_bytes() for file in sorted(Path(__file__).parent.rglob("*")) if file.suffix in (".py", ".yaml")]
    return fingerprint(json.dumps(stats), *code)


def can_reuse(folder: str | Path, settings: dict, inputs: str) -> bool:
    """Whether a folder holds data prepared with these settings from these inputs; raises `ValueError` where it holds
    something else, which must not vanish unasked.
    """
    path = Path(folder) / "dataset.json"
    if not path.exists():
        check_replaceable(folder)
        return False
    info = read_json(path)
    before, now = info.get("settings", {}), json.loads(json.dumps(settings))
    changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    if changed:
        raise ValueError(
            f"{folder} holds data prepared with other settings ({', '.join(changed)}): "
            "pass --overwrite true to replace it, or choose another output_dir"
        )
    return info.get("inputs_fingerprint") == inputs


def _strings(value) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


def _files(name: str) -> Iterator[Path]:
    for path in map(Path, [name] if Path(name).exists() else glob.glob(name, recursive=True)):
        yield from (file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
