import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.data.cleaning import clean_items, clean_text, k_core


@pytest.mark.parametrize(
    "raw, clean",
    [
        ("Pen &amp; Ink", "Pen & Ink"),
        ("Pen &amp;amp; Ink &#39;x&#39;", "Pen & Ink 'x'"),
        ("<b>Bold</b> <br/>text", "Bold text"),
        ("&lt;b&gt;Bold&lt;/b&gt;", "Bold"),
        ("before<script type='x'>var a = '<b>';\n</script>after", "before after"),
        ("a < b > c, <3, 5<6", "a < b > c, <3, 5<6"),
        ("  two\t\nlines\u00a0&nbsp;here ", "two lines here"),
        ("<!-- note -->x", "x"),
        ("", ""),
        (None, None),
    ],
)
def test_clean_text(raw, clean):
    assert clean_text(pa.chunked_array([[raw]], pa.string())).to_pylist() == [clean]


@given(st.lists(st.text(alphabet="ab <>/&;lgtamp#39\n", max_size=30), max_size=5))
@settings(deadline=None, max_examples=30)
def test_cleaning_twice_equals_once(texts):
    once = clean_text(pa.chunked_array([texts], pa.string()))
    assert clean_text(once).equals(once)


def test_clean_items_leaves_own_columns_alone():
    items = clean_items(pa.table({"item_id": ["&amp;"], "title": ["&amp;"], "own": ["&amp;"]}))
    assert items.to_pylist() == [{"item_id": "&amp;", "title": "&", "own": "&amp;"}]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=60), st.integers(0, 4), st.integers(0, 4))
@settings(deadline=None, max_examples=30)
def test_k_core_is_the_largest_fixed_point(pairs, user_k, item_k):
    users, items = (np.array([pair[side] for pair in pairs], np.int32) for side in (0, 1))
    mask = k_core(users, items, user_k, item_k)
    kept = {row for row in range(len(pairs)) if mask[row]}
    # Remove one violating row at a time; the order does not matter, so the result is the unique largest one.
    left = set(range(len(pairs)))
    while True:
        bad = [
            row
            for row in left
            if sum(users[row] == users[other] for other in left) < user_k
            or sum(items[row] == items[other] for other in left) < item_k
        ]
        if not bad:
            break
        left.discard(bad[0])
    assert kept == left
    again = k_core(users[mask], items[mask], user_k, item_k)
    assert again.all()


def _nested(levels):
    return "&" + "amp;" * levels, "<a" * levels + ">" * levels, "&l" * levels + "&#116;;" * levels


def test_texts_made_to_be_slow_cost_what_their_length_does():
    normal = [f"Pen &amp; Ink {number} <b>new</b>" for number in range(2_000)]
    for text in (
        *_nested(20_000),
        "<a" * 30_000,
        "&#" + "9" * 60_000 + ";",
        "&#" + "0" * 60_000 + "65;",
        "&" * 60_000,
    ):
        begin = time.process_time()
        cleaned = clean_text(pa.array([*normal, text]))
        assert time.process_time() - begin < 2
        assert cleaned[0].as_py() == "Pen & Ink 0 new"
        assert clean_text(cleaned).equals(cleaned)


def test_nesting_that_people_write_is_resolved_whole():
    deep = clean_text(pa.array([*_nested(8)[:2], "&" + "amp;" * 500, "&amp;#0000065;"])).to_pylist()
    assert deep == ["&", "", "&", "A"]
