"""Catalogue-constrained decoding: one trie, and the beam search, logits processor and filters that stand on it."""

from llmrec.decoding.beam_search import tree_beam_search
from llmrec.decoding.item_search import ScoredItem, search_items
from llmrec.decoding.logits_processor import SemIDLogitsProcessor, constrained_generate
from llmrec.decoding.trie import RowFilter, SemIDTrie

__all__ = [
    "RowFilter",
    "ScoredItem",
    "SemIDLogitsProcessor",
    "SemIDTrie",
    "constrained_generate",
    "search_items",
    "tree_beam_search",
]
