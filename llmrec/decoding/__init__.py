"""Catalogue-constrained decoding: one trie, and the beam search, logits processor and filters that stand on it."""

from llmrec.decoding.logits_processor import SemIDLogitsProcessor, constrained_generate
from llmrec.decoding.search import search_items, tree_beam_search
from llmrec.decoding.searchable import ScoredItem
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
