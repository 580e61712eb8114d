"""Kinds of item features, one per file; `llmrec.item_tokenizers.features.PARTS` names them."""
