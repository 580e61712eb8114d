"""Stages are folders: each remembers the settings that made it, so that a second run reuses, resumes or refuses it.

One process writes a stage: from `begin_stage` to `finish_stage`, or its own end, it has the folder's `Lock`.
"""

import contextlib
import dataclasses
import json
import logging
import shutil
from pathlib import Path

from llmrec.files import (
    Lock,
    check_folder,
    check_whole,
    files_fingerprint,
    fingerprint,
    read_json,
    remove_partial,
    sizes_of,
    write_json,
)
from llmrec.shipped import find

logger = logging.getLogger(__name__)
RECORD = "stage.json"
_locks: dict[Path, Lock] = {}  # of the stages that this process has begun


def begin_stage(
    folder: str | Path, settings: dict, overwrite: bool = False, writes: bool = True, lengths: tuple[str, ...] = ()
) -> str:
    """Looks at a stage's output folder before the work starts, and records the settings in it.

    Args:
        settings: everything that decides the result: flags and fingerprints of the inputs.
        overwrite: replace what another run left. A finished result is moved aside, to `<folder>.old`, until the new
            one is finished.
        writes: take the folder's lock. Of several processes that were launched together only the main one does.
        lengths: settings (numbers above 0) that say how long a run is, of which the first that is given counts: a run
            of which that alone became more is extended from its last checkpoint, finished or not.

    Returns:
        `"done"`: the folder holds the finished result of these settings. `"resume"`: a run with these settings was
        interrupted. `"extend"`: a shorter one is there. `"new"`: nothing is there yet.

    Raises:
        ValueError: the folder holds a run with other settings (named in the message), files of somebody else, or a
            finished result of which a file is missing or damaged; there is a `<folder>.old` of somebody else; or
            another process writes there. A run that failed before it wrote anything is in nobody's way.

    Where `folder` is a link, all of this is about the folder that it points to.
    """
    folder, settings = check_folder(Path(folder).resolve()), json.loads(json.dumps(settings, default=str))
    settings = _given(settings)
    if not overwrite and _holds_result_of(folder, settings):
        return "done"  # to look needs no lock
    if writes and not (folder in _locks and _locks[folder].held):
        _locks[folder] = Lock(folder)
    try:
        if writes:
            _remove_partial(folder)
        outcome = _begin(folder, settings, overwrite, lengths)
    except BaseException:
        _release(folder)
        raise
    if outcome == "done":  # while this process waited for the lock
        _release(folder)
    return outcome


def _begin(folder: Path, settings: dict, overwrite: bool, lengths: tuple[str, ...]) -> str:
    record = folder / RECORD
    if folder.is_dir() and any(folder.iterdir()) and not record.exists():
        raise ValueError(f"{folder} holds files that no stage wrote: choose another output_dir")
    before = _record(folder)
    replaces = before is not None and before.get("replaces", False)
    if overwrite and before is not None:
        if before["complete"]:
            aside, replaces = _aside(folder), True
            if aside.exists():
                raise ValueError(f"{folder} would be moved to {aside}, which exists: move that elsewhere or remove it")
            folder.rename(aside)
            logger.warning("%s is replaced; until that is done, what it held lies in %s", folder, aside)
        else:
            shutil.rmtree(folder.rename(folder.with_name(f".{folder.name}.partial-overwritten")))
        before = None
    if before is not None:
        if before["settings"] == settings:
            return "done" if _holds_result_of(folder, settings) else "resume"
        if before["complete"] or list(folder.iterdir()) != [record]:
            old = before["settings"]
            changed = sorted(key for key in {*old, *settings} if old.get(key) != settings.get(key))
            if (length := _length(old, settings, lengths)) is not None and {*changed} <= {*lengths}:
                _check_extendable(folder, length, old[length], settings[length])
                write_json(record, {"settings": settings, "complete": False, "replaces": replaces})
                return "extend"
            raise ValueError(
                f"{folder} holds a run with other settings ({', '.join(changed)}): "
                "pass --overwrite true to replace it, or choose another output_dir"
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(record, {"settings": settings, "complete": False, "replaces": replaces})
    return "new"


def finish_stage(folder: str | Path, **results) -> None:
    """Marks the folder as finished; `results` (figures, seconds) are kept beside the settings."""
    record = Path(folder).resolve() / RECORD
    begun, files = read_json(record), sizes_of(record.parent)
    del files[RECORD]
    write_json(record, {**begun, "complete": True, "replaces": False, "results": results, "files": files})
    if begun.get("replaces"):
        shutil.rmtree(_aside(record.parent), ignore_errors=True)  # its owner may have removed it already
    _release(record.parent)


def _given(settings: dict) -> dict:
    """Without those that are `None`: a setting that a later version has is no other setting."""
    return {name: value for name, value in settings.items() if value is not None}


def _length(old: dict, new: dict, lengths: tuple[str, ...]) -> str | None:
    """Which setting says how long two runs are, if one says it of both and they differ."""
    for name in lengths:
        given = [settings.get(name, 0) > 0 for settings in (old, new)]
        if any(given):
            return name if all(given) and old[name] != new[name] else None
    return None


def _check_extendable(folder: Path, length: str, old: float, new: float) -> None:
    checkpoint, anew = last_complete_checkpoint(folder), "--overwrite true trains anew, or choose another output_dir"
    if new < old:
        raise ValueError(f"{folder} holds a run of {length} {old}: it can be extended, not cut to {new}; {anew}")
    if checkpoint is None or not has_optimizer(checkpoint):
        why = "no checkpoint" if checkpoint is None else f"{checkpoint}, without the optimizer's state,"
        raise ValueError(
            f"{folder} holds a run of {length} {old} and {why} to extend it from (save_strategy, save_only_model); "
            f"{anew}"
        )


def _record(folder: Path) -> dict | None:
    if not (folder / RECORD).exists():
        return None
    record = read_json(folder / RECORD)
    kinds = {"settings": dict, "complete": bool, "files": dict}
    if not all(isinstance(({"files": {}} | record).get(name), kind) for name, kind in kinds.items()):
        raise ValueError(f"{folder / RECORD} is not what a stage wrote: remove {folder}, or choose another output_dir")
    return record | {"settings": _given(record["settings"])}


def _remove_partial(folder: Path) -> None:
    """What a killed process left half-written in a stage that is not finished."""
    remove_partial(folder / RECORD)
    if (record := _record(folder)) is not None and not record["complete"]:
        for left in [*folder.rglob(".*.partial-*")]:
            shutil.rmtree(left, ignore_errors=True)


def _release(folder: Path) -> None:
    if (lock := _locks.pop(folder, None)) is not None:
        lock.release()


def _holds_result_of(folder: Path, settings: dict) -> bool:
    """Whether a stage with these settings is finished here; raises `ValueError` where it is there no longer whole."""
    record = _record(folder)
    if record is None or not record["complete"] or record["settings"] != settings:
        return False
    try:
        check_whole(folder, record.get("files"))
    except ValueError as error:
        raise ValueError(f"{error}: restore it, or pass --overwrite true to make {folder} again") from error
    return True


def _aside(folder: Path) -> Path:
    return folder.with_name(folder.name + ".old")


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """The newest `checkpoint-N` of transformers' `Trainer` that was written to its end, or `None`.

    A killed process may leave a checkpoint half-written; `trainer_state.json` is the last file of each.
    """
    complete = {}
    for state in Path(output_dir).glob("checkpoint-*/trainer_state.json"):
        with contextlib.suppress(ValueError):  # cut short, or no step of ours
            json.loads(state.read_text(encoding="utf-8"))
            complete[int(state.parent.name.rpartition("-")[2])] = str(state.parent)
    return complete[max(complete)] if complete else None


def has_optimizer(checkpoint: str | Path) -> bool:
    """Whether training can go on from a checkpoint as if it had not stopped."""
    return any(any(Path(checkpoint).glob(pattern)) for pattern in ("optimizer*", "global_step*"))  # DeepSpeed's


def unfinished(folder: str | Path) -> str:
    """What to say of a folder that a stage has begun and not finished; empty where none has."""
    record = _record(Path(folder))
    if record is None or record["complete"]:
        return ""
    checkpoint = last_complete_checkpoint(folder)
    meanwhile = f", or take {checkpoint}" if checkpoint else ""
    return f"{folder} is not finished: run the command that makes it again, and it goes on{meanwhile}"


def content_of(*names: str | None) -> str | None:
    """Fingerprint of the files among these names, for settings that may name a file; `None` where there is none."""
    files = [file for name in names if name and (file := find(name)).is_file()]
    return fingerprint(*(file.read_bytes() for file in files)) if files else None


def model_content(model: str) -> str:
    """What changes with a language model: how its stage made it, or its files; of the Hub its name."""
    folder = Path(model)
    if (folder / RECORD).exists():
        return fingerprint((folder / RECORD).read_bytes())
    return files_fingerprint([folder]) if folder.is_dir() else model


def settings_of(*arguments, ignore: tuple[str, ...] = ("output_dir", "overwrite")) -> dict:
    """The fields of dataclasses as one flat dict, without those that do not decide the result."""
    fields: dict = {}
    for each in arguments:
        values = each.to_dict() if hasattr(each, "to_dict") else dataclasses.asdict(each)
        fields.update({key: value for key, value in values.items() if key not in ignore})
    return fields
