"""The catalogue: which item has which Semantic ID, what requests allow of it, and how it changes."""

from llmrec.catalogue.filters import Filter
from llmrec.catalogue.semids import SemIDIndex

__all__ = ["Filter", "SemIDIndex"]
