"""Catalogue-constrained decoding: one trie, and the beam search, logits processor and filters that stand on it."""
