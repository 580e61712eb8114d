"""From raw logs to the prepared data folder: load, validate, clean, k-core, sequences, split."""

from llmrec.data.leaks import check_no_leak
from llmrec.data.prepare import prepare, prepare_parts
from llmrec.data.prepared import PreparedData
from llmrec.data.rows import ids_to_rows, lists_to_rows, training_rows
from llmrec.data.seen import excludes_seen
from llmrec.data.sequences import stitch_windows

__all__ = [
    "PreparedData",
    "check_no_leak",
    "excludes_seen",
    "ids_to_rows",
    "lists_to_rows",
    "prepare",
    "prepare_parts",
    "stitch_windows",
    "training_rows",
]
