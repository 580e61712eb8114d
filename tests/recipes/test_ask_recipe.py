"""recipes/ask.py on a model that has learned nothing: what it prints is of the catalogue, and marked as it is."""

import re

import pytest
from tiny import tiny_data, tiny_index, write_tiny_base

from llmrec.instructions.wishes import Wishes
from recipes.ask import AskArguments, main


def test_every_item_is_one_of_the_shop_and_missed_wishes_are_marked(tmp_path, capsys):
    data = tiny_data()
    data.save(tmp_path / "data")
    model = write_tiny_base(tmp_path / "model", data, tiny_index(data))
    asked = {"queries": ["a red thing"], "wishes": ["cheaper"], "questions": ["Why?"], "max_new_tokens": 4, "k": 4}
    main(AskArguments(str(model), str(tmp_path / "data"), **asked))
    said = capsys.readouterr().out
    blocks = dict(re.findall(r"— (.*) —\n((?:  .*\n)*)", said))
    assert [name.split(",")[0].split(":")[0] for name in blocks][1:4] == [
        "and gets recommended",
        "Why the first?",
        "Search",
    ]
    items = {
        f"{title} (${price:.2f})": item
        for item, title, price in zip(*data.items.select(["item_id", "title", "price"]).to_pydict().values())
    }
    lists = {name: re.findall(r"\d\. (.* \(\$[\d.]+\))(.*)", block) for name, block in blocks.items()}
    shown = [entry for entries in lists.values() for entry, _ in entries]
    assert len(shown) == 12 and set(shown) <= set(items)
    [[about, wished]] = [(name[5:], entries) for name, entries in lists.items() if name.startswith("Like")]
    about = items[about.removesuffix(", but: cheaper")]
    for entry, remark in wished:
        assert Wishes(data.items).satisfies(items[entry], "cheaper", about) == (remark == "")
    assert "   (not what was wished)" in {remark for _, remark in wished}


def test_an_unknown_user_is_named(tmp_path):
    data = tiny_data()
    data.save(tmp_path / "data")
    with pytest.raises(ValueError, match="--user: 'nobody' has no row in .*test.parquet"):
        main(AskArguments("no model is read", str(tmp_path / "data"), user="nobody"))


def test_a_model_of_another_catalogue_is_named(tmp_path):
    tiny_data(num_items=30).save(tmp_path / "data")
    data = tiny_data()
    model = write_tiny_base(tmp_path / "model", data, tiny_index(data))
    with pytest.raises(ValueError, match="model was made for another catalogue than the given data"):
        main(AskArguments(str(model), str(tmp_path / "data")))
