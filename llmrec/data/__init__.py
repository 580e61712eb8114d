"""From raw logs to the prepared data folder: load, validate, clean, k-core, sequences, split."""

from llmrec.data.prepared import PreparedData
from llmrec.data.rows import ids_to_rows, lists_to_rows, training_rows

__all__ = ["PreparedData", "ids_to_rows", "lists_to_rows", "training_rows"]
