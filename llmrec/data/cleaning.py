"""Cleaning of item text, and k-core filtering of interactions."""

import html

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.data.rows import with_columns

_HIDDEN = r"(?is)<(?:script|style)\b[^>]*>.*?</(?:script|style)\s*>"
# A letter must follow the bracket, so that "a < b" and "<3" stay.
_TAG = r"</?[a-zA-Z!][^<>]*>"
_BLANK = r"[\s\p{Z}\p{Cc}\x{200B}\x{FEFF}]+"
TEXT_COLUMNS = ("title", "description", "brand", "categories")


def clean_text(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Resolves HTML entities (also twice-escaped ones), removes tags and joins white space; cleaning twice = once."""
    while True:
        # Entities are rare, so only distinct texts that have one are unescaped in Python.
        escaped = pc.fill_null(pc.match_substring(column, "&"), False)
        cleaned = column
        if pc.any(escaped).as_py():
            distinct = pc.filter(column, escaped).unique()
            resolved = pa.array([html.unescape(text) for text in distinct.to_pylist()], column.type)
            rows = pc.index_in(column, distinct)
            cleaned = pc.if_else(escaped, resolved.take(rows), column)
        cleaned = pc.replace_substring_regex(cleaned, _HIDDEN, " ")
        cleaned = pc.replace_substring_regex(cleaned, _TAG, " ")
        cleaned = pc.utf8_trim(pc.replace_substring_regex(cleaned, _BLANK, " "), " ")
        if cleaned.equals(column):
            return cleaned
        column = cleaned


def clean_items(items: pa.Table) -> pa.Table:
    """`clean_text` on title, description, brand and categories, where the table has them."""
    return with_columns(items, {name: clean_text(items[name]) for name in TEXT_COLUMNS if name in items.column_names})


def k_core(users: np.ndarray, items: np.ndarray, user_k: int, item_k: int) -> np.ndarray:
    """The largest set of interactions in which every user has at least `user_k` and every item at least `item_k`.

    `users` and `items` are numbers from 0 on, integer [n]. Returns bool [n]: which interactions stay.
    """
    mask = np.zeros(len(users), bool)
    kept = np.arange(len(users))
    while True:
        enough = np.bincount(users)[users] >= user_k
        enough &= np.bincount(items)[items] >= item_k
        if enough.all():
            mask[kept] = True
            return mask
        users, items, kept = users[enough], items[enough], kept[enough]
