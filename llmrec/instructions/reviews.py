"""Queries and preferences from what users wrote about items: no model, the same for the same reviews.

A query is what the reviews of an item say and those of few other items do; a preference what the reviews of a user's
history say and those of few other users do (tf-idf). Nothing of the future is read:

- reviews of training interactions only, and only of an item that the user took once and reviewed once, in the whole
  prepared data: else nobody knows whether a review was written before the target or of it;
- for a preference those of its history alone, and none that is dated later than its target. How common words are is
  counted in the reviews of the other users, so no other review of the user changes a preference.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer

from llmrec.data import PreparedData
from llmrec.data.cleaning import clean_text
from llmrec.data.convert import as_text
from llmrec.data.validate import standard_interactions
from llmrec.files import read_parquet
from llmrec.instructions.catalogue import Catalogue
from llmrec.instructions.prompts import listing, phrase
from llmrec.instructions.teacher import Write
from llmrec.instructions.texts import interactions_of
from llmrec.item_tokenizers.words.text_ids import words_of

KINDS = {"query": "item_id", "preference": "user_id"}  # whose reviews are set against those of the others
PAIR = ["user_id", "item_id"]
STOP = ENGLISH_STOP_WORDS | {""}


def load_reviews(path: str | Path) -> pa.Table:
    """A parquet file of reviews: user_id, item_id, text and, if it has them, timestamp; other columns are not read.
    Raises `ValueError`: a missing column or id, or a value of the wrong type, with its row."""
    raw, name = read_parquet(path), Path(path).name
    if "text" not in raw.column_names:
        raise ValueError(f"{name}: no column 'text'; it has {', '.join(raw.column_names)}")
    known = raw.select([column for column in (*PAIR, "timestamp") if column in raw.column_names])
    text = pc.fill_null(as_text(raw["text"], name, "text", (" ", " ")), "")
    return standard_interactions(known, name).append_column("text", clean_text(text))


def readable(reviews: pa.Table, data: PreparedData) -> pa.Table:
    """The reviews that may be read, by user and item: see the module docstring. Raises `ValueError`: there is none."""
    trained = _once(interactions_of(data.train))
    evaluated = [table.select(["user_id", "target"]).rename_columns(PAIR) for table in (data.valid, data.test)]
    kept = reviews.join(_once(reviews), PAIR, join_type="inner").join(trained, PAIR, join_type="inner")
    kept = kept.join(pa.concat_tables(evaluated), PAIR, join_type="left anti")
    kept = kept.filter(pc.not_equal(kept["text"], "")).sort_by([(name, "ascending") for name in PAIR])
    if not kept.num_rows:
        raise ValueError(
            f"none of the {reviews.num_rows} reviews can be read: their user_id and item_id should be those of "
            "training interactions in data_dir, each with one review"
        )
    return kept


def _once(table: pa.Table) -> pa.Table:
    counts = table.group_by(PAIR).aggregate([([], "count_all")])
    return counts.filter(pc.equal(counts["count_all"], 1)).select(PAIR)


@lru_cache(maxsize=1 << 18)
def _words(chunk: str) -> list[str]:
    return [""] if "'" in chunk or "’" in chunk else words_of(chunk)  # don't, it's: a stop word


def terms_of(text: str) -> list[str]:
    """The words of a text without English stop words, and pairs of such words side by side within a clause."""
    terms = []
    for clause in re.split(r"[.,;:!?()\"]+", text):
        words = [word for chunk in clause.split() for word in _words(chunk)]
        terms += [word for word in words if word not in STOP]
        terms += [" ".join(pair) for pair in pairwise(words) if STOP.isdisjoint(pair)]
    return terms


def reviews_writer(kind: str, catalogue: Catalogue, reviews: pa.Table) -> Write:
    """Texts from `readable` reviews, for `llmrec.instructions.teacher.write_texts`; empty where none can be read.
    Raises `ValueError`: another kind."""
    if kind not in KINDS:
        raise ValueError(f"reviews say no kind {kind!r}: they give {' and '.join(KINDS)}")
    vectorizer = CountVectorizer(analyzer=terms_of, binary=True)
    said = vectorizer.fit_transform(reviews["text"].to_pylist())  # [reviews, terms]
    terms = vectorizer.get_feature_names_out()  # in the order of the alphabet
    owners = reviews[KINDS[kind]].combine_chunks().dictionary_encode()
    others = max(len(owners.dictionary) - 1, 1)
    places = owners.indices.to_numpy(), np.arange(reviews.num_rows)
    spread = np.bincount((csr_array((np.ones(reviews.num_rows), places)) @ said).indices, minlength=len(terms))
    numbers: dict[str, list[int]] = {}
    for number, owner in enumerate(owners.to_pylist()):
        numbers.setdefault(owner, []).append(number)
    items = reviews["item_id"].to_pylist()
    times = reviews["timestamp"].to_pylist() if "timestamp" in reviews.column_names else [None] * reviews.num_rows

    def best(chosen: list[int]) -> Iterator[str]:
        used, counts = np.unique(said[np.array(chosen, int)].indices, return_counts=True)
        elsewhere = spread[used] - 1  # the owner of these reviews counts in each of their terms
        weights = counts * np.log(others / np.maximum(elsewhere, 1)) * (elsewhere > 0)
        longer = [-term.count(" ") for term in terms[used]]  # of equal weight first, then the alphabet
        for place in np.lexsort((used, longer, -weights)):
            if weights[place] > 0:
                yield str(terms[used[place]])

    def query(row: dict) -> str:
        item, text = row["about"], ""
        for term in best(numbers.get(item, [])):
            longer = f"{text} {term}".strip()
            if _adds(text, term) and not catalogue.leaks(kind, longer, item):
                text = longer
            if len(text.split()) >= 4:  # or 5: the last term may be a pair
                break
        return text

    def preference(row: dict) -> str:
        def known(number: int) -> bool:
            time, until = times[number], row["time"]
            return items[number] in history and (time is None or until is None or time <= until)

        history, kept = set(row["history"]), []
        for term in best([number for number in numbers.get(row["user_id"], []) if known(number)]):
            if _adds(" ".join(kept), term):
                kept.append(term)
            if len(kept) == 5:
                break
        return phrase("reviews", words=listing(kept)) if kept else ""

    write = query if kind == "query" else preference
    return lambda rows, _: [write(row) for row in rows]


def _adds(text: str, term: str) -> bool:
    return set(term.split()).isdisjoint(text.split())
