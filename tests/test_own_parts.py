"""Parts of one's own by dotted path: the pages of docs run as they stand, through the recipes."""

import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from tiny import tiny_data, write_tiny_base

from llmrec import LLMRecommender
from llmrec.catalogue.semids import SemIDIndex
from llmrec.features import ItemFeatures
from llmrec.instructions import TASKS, load_prompt
from llmrec.instructions.tasks import check_prompt
from llmrec.item_tokenizers import add_items, load_item_tokenizer, make_item_tokenizer
from llmrec.rl.rewards import Facts, load_rewards
from recipes import sft, tokenize_items

ROOT = Path(__file__).parents[1]


def blocks(page: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """The files of the pages in the folder of the run."""
    folder = tmp_path / "my_shop"
    folder.mkdir()
    files = {"__init__.py": "", "broken.py": "import no_such_package\n", "wrong.py": "number = 3\n"}
    pages = {"own_tokenizer": "shelves", "own_features": "colours", "own_task": "tasks", "own_reward": "rewards"}
    for page, name in pages.items():
        [files[f"{name}.py"]] = blocks(f"{page}.md", "python")
    files["item_to_brand.yaml"] = blocks("own_task.md", "yaml")[0]
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    data = tiny_data()
    data.save("data")
    yield data
    sys.path[:] = [path for path in sys.path if path != str(tmp_path)]
    for name in [name for name in sys.modules if name.split(".")[0] == "my_shop"]:
        del sys.modules[name]


def settings(page: str) -> dict:
    return yaml.safe_load(blocks(page, "yaml")[-1])


def test_a_tokenizer_and_features_make_semantic_ids_and_later_items_follow(shop):
    said = settings("own_tokenizer.md") | settings("own_features.md")
    tokenize_items.main(tokenize_items.TokenizeArguments("data", "semids", cache_dir="cache", **said))
    index = SemIDIndex.load("semids/semids.parquet")
    assert index.codebook_sizes[:2] == (27, 12) and index.collision == "append" and len(index) == 24
    assert index.item_tokenizer == "my_shop.shelves.Shelves"
    tokenizer = load_item_tokenizer("semids/item_tokenizer")
    assert tokenizer.places == 12 and len(tokenizer.edges) == 11
    features = ItemFeatures.from_pretrained("semids/item_tokenizer/features")
    matrix = features.encode(shop.items)
    np.testing.assert_array_equal(matrix, np.load("semids/features.npy"))
    assert features.config[1]["kind"] == "my_shop.colours.Colours" and "0.5 x my_shop" in features.describe()
    new = pa.table({"item_id": ["new"], "title": ["green thing"], "price": [3.0]})
    grown = add_items(index, tokenizer, features.encode(new), ["new"], new)
    assert len(grown) == 25 and grown.codes[-1, 0] == 7  # g


def test_a_task_is_trained_and_asked(shop):
    index = SemIDIndex(shop.items["item_id"].to_pylist(), np.arange(24)[:, None], [24])
    write_tiny_base(Path("base"), shop, index)
    arguments = sft.DataArguments("data", **settings("own_task.md"))
    training = sft.SFTConfig(
        "model", max_steps=2, max_length=128, use_cpu=True, bf16=False, report_to="none", disable_tqdm=True
    )
    sft.main(arguments, sft.training.SFTArguments(), training, sft.ModelConfig("base"))
    recommender = LLMRecommender.from_pretrained("model", device="cpu")
    assert len(recommender.generate_text("my_shop/item_to_brand.yaml", [{"about": "item-03"}], 4)) == 1
    task = TASKS[load_prompt("my_shop/item_to_brand.yaml").task]
    catalogue = recommender.renderer.catalogue
    assert task.score(catalogue, {"about": "item-03"}, "brand 3") == 1
    assert "my_shop.tasks.item_to_brand" not in TASKS  # no entry: the tests of all tasks are about those shipped


def test_rewards_are_called_with_what_the_page_says(shop):
    index = SemIDIndex(shop.items["item_id"].to_pylist(), np.arange(24)[:, None], [24])
    facts = Facts(index, shop.items, shop.train)
    rewards, weights = load_rewards(settings("own_reward.md")["rewards"], facts)
    dearest = max(range(24), key=shop.items["price"].to_pylist().__getitem__)
    group = {"item": ["item-00", f"item-{dearest:02d}"], "target": ["item-00"] * 2, "rank": [4, 5]}
    given = {"prompts": ["?"] * 2, "completions": ["", ""], "history": [[], []], **group}
    hit, margin, short = (reward(**given) for reward in rewards)
    assert weights == [1, 0.5, 1] and hit == [1, 0] and short == [1, 0]
    assert margin[1] == 0.5 and 1 <= margin[0] <= 1.5


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: make_item_tokenizer("shelves"), "tokenizer 'shelves' is not one of .*, nor a dotted path"),
        (
            lambda: make_item_tokenizer("my_shop.shelves.Shelfs"),
            "'my_shop.shelves.Shelfs' cannot be imported: .*Shelfs",
        ),
        (lambda: make_item_tokenizer("my_shop.broken.It"), "cannot be imported: No module named 'no_such_package'"),
        (
            lambda: make_item_tokenizer("my_shop.wrong.number"),
            "is no subclass of llmrec.item_tokenizers.ItemTokenizer",
        ),
        (lambda: make_item_tokenizer("my_shop.shelves.Shelves", {"place": 3}), "no argument 'place'; .* 'places'"),
        (lambda: ItemFeatures([{"kind": "my_shop.wrong.number"}]), "no subclass of llmrec.features.FeaturePart"),
        (lambda: ItemFeatures([{"kind": "my_shop.colours.Colours", "of": 1}]), "there is no argument 'of'"),
        (lambda: ItemFeatures([{"weight": 1}]), "features kind None is not one of text"),
        (lambda: TASKS["my_shop.wrong.number"], "task 'my_shop.wrong.number' is int, no llmrec.instructions.Task"),
        (lambda: TASKS["item_to_brand"], "task 'item_to_brand' is not one of next_item, .*: did you mean"),
    ],
)
def test_what_is_none_is_named(shop, make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_a_wrong_slot_names_those_of_the_task(shop):
    text = Path("my_shop/item_to_brand.yaml").read_text().replace("{item}?", "{itm}?")
    Path("my_shop/other.yaml").write_text(text)
    with pytest.raises(ValueError, match="other.yaml: slot 'itm' is not one of item, brand: did you mean 'item'?"):
        check_prompt(load_prompt("my_shop/other.yaml"))
