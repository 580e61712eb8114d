"""Baselines that look at no feature."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmrec.item_tokenizers import RandomIDs, SequentialIDs


def table(ids):
    return pa.table({"item_id": ids})


def sequences(lists):
    return pa.table({"item_ids": pa.array(lists, pa.list_(pa.string()))})


def test_random_codes_are_even_and_unrelated_to_each_other():
    items = table([f"item {n}" for n in range(20_000)])
    codes = RandomIDs([16, 10]).fit(None, items=items).encode(None, items)
    cells = np.bincount(codes[:, 0] * 10 + codes[:, 1], minlength=160)
    assert abs(cells - 125).max() < 5 * np.sqrt(125)
    other = RandomIDs([16, 10]).fit(None, seed=1, items=items).encode(None, items)
    assert abs((other == codes).mean(0) - [1 / 16, 1 / 10]).max() < 0.01


def test_random_codes_depend_on_seed_and_id_only():
    fitted = RandomIDs().fit(None, seed=3, items=table(["a", "b"])).encode(None, table(["z", "a"]))
    other = RandomIDs().fit(None, seed=3, items=table(["q"])).encode(None, table(["a"]))
    assert (fitted[1] == other[0]).all()
    assert RandomIDs([8]).fit(None, items=table(["a"])).encode(None, table([])).shape == (0, 1)


def test_sequential_numbers_follow_the_training_sequences():
    train = sequences([["d", "b", "d"], ["a", "b"], [], ["c"]])
    tokenizer = SequentialIDs(base=3).fit(None, items=table(["a", "b", "c", "d", "e"]), train=train)
    assert tokenizer.codebook_sizes == (3, 3)
    assert tokenizer.encode(None, table(["d", "b", "a", "c"])).tolist() == [[0, 0], [0, 1], [0, 2], [1, 0]]


@given(seen=st.integers(1, 300), base=st.integers(2, 300), new=st.lists(st.text(min_size=1), unique=True, max_size=30))
@settings(deadline=None, max_examples=60)
def test_unseen_items_get_numbers_after_the_seen(seen, base, new):
    ids = [f"\x00{n}" for n in range(seen)]
    tokenizer = SequentialIDs(base).fit(None, items=table(ids), train=sequences([ids]))
    sizes = tokenizer.codebook_sizes
    room = int(np.prod(sizes))
    assert 2 * seen <= room and room / sizes[0] * (sizes[0] - 1) < 2 * seen  # twice as many, no more than digits need
    assert all(size == base for size in sizes[1:]) and sizes[0] <= base

    def numbers(items):
        return np.ravel_multi_index(tokenizer.encode(None, table(items)).T, sizes)

    assert (numbers(ids) == np.arange(seen)).all()
    strangers = [item for item in new if item not in ids]
    if strangers:
        assert (numbers(strangers) >= seen).all()
        assert (numbers(strangers[:1]) == numbers(strangers)[:1]).all()


def test_clear_errors():
    with pytest.raises(ValueError, match="positive"):
        RandomIDs([256, 0])
    with pytest.raises(ValueError, match="base=1"):
        SequentialIDs(1)
    with pytest.raises(ValueError, match="needs items"):
        RandomIDs().fit(None)
    with pytest.raises(ValueError, match="needs train"):
        SequentialIDs().fit(None, items=table(["a"]))
    with pytest.raises(ValueError, match="no order"):
        SequentialIDs().fit(None, items=table(["a"]), train=sequences([[]]))
    with pytest.raises(ValueError, match="not fitted"):
        SequentialIDs().encode(None, table(["a"]))
