"""Stages are folders: each remembers the settings that made it, so that a second run reuses, resumes or refuses it."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path

from llmrec.files import fingerprint, read_json, write_json

logger = logging.getLogger(__name__)
RECORD = "stage.json"


def begin_stage(folder: str | Path, settings: dict, overwrite: bool = False) -> str:
    """Looks at a stage's output folder before the work starts, and records the settings in it.

    Args:
        settings: everything that decides the result: flags and fingerprints of the inputs.
        overwrite: replace what another run left. A finished result is moved aside, to `<folder>.old`, until the new
            one is finished.

    Returns:
        `"done"`: the folder holds the finished result of these settings. `"resume"`: a run with these settings was
        interrupted. `"new"`: nothing is there yet.

    Raises:
        ValueError: the folder holds a run with other settings (named in the message), or files of somebody else, or
            there is a `<folder>.old` of somebody else. A run that failed before it wrote anything is in nobody's way.
    """
    folder = Path(folder)
    settings = json.loads(json.dumps(settings, default=str))
    record = folder / RECORD
    if folder.is_dir() and any(folder.iterdir()) and not record.exists():
        raise ValueError(f"{folder} holds files that no stage wrote: choose another output_dir")
    before = read_json(record) if record.exists() else None
    replaces = before is not None and before.get("replaces", False)
    if overwrite and before is not None:
        if before["complete"]:
            aside, replaces = _aside(folder), True
            if aside.exists():
                raise ValueError(f"{folder} would be moved to {aside}, which exists: move that elsewhere or remove it")
            folder.rename(aside)
            logger.warning("%s is replaced; until that is done, what it held lies in %s", folder, aside)
        else:
            shutil.rmtree(folder)
        before = None
    if before is not None:
        if before["settings"] == settings:
            return "done" if before["complete"] else "resume"
        if before["complete"] or list(folder.iterdir()) != [record]:
            changed = sorted(
                key for key in {*before["settings"], *settings} if before["settings"].get(key) != settings.get(key)
            )
            raise ValueError(
                f"{folder} holds a run with other settings ({', '.join(changed)}): "
                "pass --overwrite true to replace it, or choose another output_dir"
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(record, {"settings": settings, "complete": False, "replaces": replaces})
    return "new"


def finish_stage(folder: str | Path, **results) -> None:
    """Marks the folder as finished; `results` (figures, seconds) are kept beside the settings."""
    record = Path(folder) / RECORD
    begun = read_json(record)
    write_json(record, {**begun, "complete": True, "replaces": False, "results": results})
    if begun.get("replaces"):
        shutil.rmtree(_aside(record.parent), ignore_errors=True)  # its owner may have removed it already


def _aside(folder: Path) -> Path:
    return folder.with_name(folder.name + ".old")


def content_of(*names: str | None) -> str | None:
    """Fingerprint of the files among these names, for settings that may name a file; `None` where there is none."""
    files = [Path(name) for name in names if name and Path(name).is_file()]
    return fingerprint(*(file.read_bytes() for file in files)) if files else None


def settings_of(*arguments, ignore: tuple[str, ...] = ("output_dir", "overwrite")) -> dict:
    """The fields of dataclasses as one flat dict, without those that do not decide the result."""
    fields: dict = {}
    for each in arguments:
        values = each.to_dict() if hasattr(each, "to_dict") else dataclasses.asdict(each)
        fields.update({key: value for key, value in values.items() if key not in ignore})
    return fields
