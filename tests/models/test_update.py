"""A model folder for the next version of its catalogue (see also the recipe's tests)."""

import pytest
from tiny import tiny_data, tiny_index, write_tiny_base

from llmrec import LLMRecommender
from llmrec.catalogue.lifecycle import remove_items
from llmrec.models.update import update_model_folder

KINDS = ["view", "cart", "buy"]


def test_the_behaviours_that_a_model_knows_stay_in_its_prompts(tmp_path):
    data = tiny_data()
    plain = tiny_index(data)
    old = write_tiny_base(tmp_path / "old", data, plain.with_behaviours(KINDS))
    later = remove_items(plain, ["item-23"])  # the folder of tokenize_items.py knows no behaviours
    update_model_folder(old, later, data.items.slice(0, 23), tmp_path / "new")
    history = [[("item-01", "view"), ("item-02", "buy")]]
    before, after = (LLMRecommender.from_pretrained(folder) for folder in (old, tmp_path / "new"))
    assert after.prompts(history, behaviour="cart") == before.prompts(history, behaviour="cart")
    assert "<|view|>" in after.prompts(history)[0]
    with pytest.raises(ValueError, match="knows the behaviours"):
        update_model_folder(old, later.with_behaviours(["like"]), data.items.slice(0, 23), tmp_path / "other")
    assert not (tmp_path / "other").exists()
