"""Cleaning of item text, and k-core filtering of interactions."""

import html
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.data.rows import with_columns

_HIDDEN = r"(?is)<(?:script|style)\b[^>]*>.*?</(?:script|style)\s*>"
# A letter must follow the bracket, so that "a < b" and "<3" stay.
_TAG = r"</?[a-zA-Z!][^<>]*>"
_BLANK = r"[\s\p{Z}\p{Cc}\x{200B}\x{FEFF}]+"
_ESCAPED_OFTEN = r"&(?:(?:amp|AMP|#38|#[xX]26);){8,}"  # "&amp;amp;amp;…"
# `html.unescape` refuses numbers of thousands of digits.
_LEADING_ZEROS, _NO_CHARACTER = re.compile(r"&#0+(?=\d)"), re.compile(r"&#\d{9,};?")
_ROUNDS = 16
TEXT_COLUMNS = ("title", "description", "brand", "categories")


def clean_text(column: pa.ChunkedArray | pa.Array, rounds: int = _ROUNDS) -> pa.ChunkedArray | pa.Array:
    """Resolves HTML entities (also twice-escaped ones), removes tags and joins white space; cleaning twice = once.

    Only texts that the last round changed are read again. One that is still not settled after 16 rounds has tags in
    tags or entities in entities so deep that it was made to be slow: it loses its ampersands and angle brackets.
    """
    if isinstance(column, pa.ChunkedArray):
        return pa.chunked_array([clean_text(chunk, rounds) for chunk in column.chunks], column.type)
    cleaned = _clean_once(column)
    moved = pc.fill_null(pc.not_equal(cleaned, column), False)
    if not pc.any(moved).as_py():
        return cleaned
    texts = cleaned.filter(moved)
    if not rounds:
        texts = pc.replace_substring_regex(texts, "[&<>]", " ")
    return pc.replace_with_mask(cleaned, moved, clean_text(texts, rounds - 1))


def _clean_once(texts: pa.Array) -> pa.Array:
    # Entities are rare, so only distinct texts that have one are unescaped in Python.
    escaped = pc.fill_null(pc.match_substring(texts, "&"), False)
    if pc.any(escaped).as_py():
        distinct = pc.replace_substring_regex(texts.filter(escaped), _ESCAPED_OFTEN, "&amp;").dictionary_encode()
        resolved = [_unescape(text) for text in distinct.dictionary.to_pylist()]
        texts = pc.replace_with_mask(texts, escaped, pa.array(resolved, texts.type).take(distinct.indices))
    texts = pc.replace_substring_regex(texts, _HIDDEN, " ")
    texts = pc.replace_substring_regex(texts, _TAG, " ")
    return pc.utf8_trim(pc.replace_substring_regex(texts, _BLANK, " "), " ")


def _unescape(text: str) -> str:
    return html.unescape(_NO_CHARACTER.sub("\ufffd", _LEADING_ZEROS.sub("&#", text)))


def clean_items(items: pa.Table) -> pa.Table:
    """`clean_text` on title, description, brand and categories, where the table has them."""
    return with_columns(items, {name: clean_text(items[name]) for name in TEXT_COLUMNS if name in items.column_names})


def k_core(users: np.ndarray, items: np.ndarray, user_k: int, item_k: int) -> np.ndarray:
    """The largest set of interactions in which every user has at least `user_k` and every item at least `item_k`.

    `users` and `items` are numbers from 0 on, integer [n]. Returns bool [n]: which interactions stay.
    """
    mask = np.ones(len(users), bool)
    while True:
        enough = (np.bincount(users) >= user_k)[users]
        enough &= (np.bincount(items) >= item_k)[items]
        if enough.all():
            return mask
        mask[mask] = enough
        users, items = users[enough], items[enough]
