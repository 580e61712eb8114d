"""Where an interrupted run goes on."""

import json
from pathlib import Path


def last_complete_checkpoint(output_dir: str | Path) -> str | None:
    """The newest `checkpoint-N` that was written to its end, or `None`.

    A killed process may leave a checkpoint half-written; `trainer_state.json` is the last file of each.
    """
    found = []
    for folder in Path(output_dir).glob("checkpoint-*"):
        step = folder.name.rpartition("-")[2]
        try:
            json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if step.isdigit():
            found.append((int(step), folder))
    return str(max(found)[1]) if found else None
