"""Two shops in one model: domain-tagged Semantic IDs, requests held to a domain, and the recipes end to end."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny import MODEL, tiny_data, tiny_index, tiny_model
from trl import TrlParser

from llmrec.catalogue.domains import join_domain_semids
from llmrec.catalogue.filters import Filter
from llmrec.catalogue.lifecycle import check_updatable, remove_items
from llmrec.catalogue.semids import SemIDIndex
from llmrec.catalogue.views import join_views
from llmrec.data import PreparedData
from llmrec.data.domains import join_domains
from llmrec.instructions import load_prompt
from llmrec.item_tokenizers import RQKMeans, add_items, build_semids
from llmrec.item_tokenizers.codebooks import domain_codebooks, load_codebooks
from llmrec.models.folder import RecommenderConfig
from llmrec.recommenders import LLMRecommender

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("join_domains_recipe", ROOT / "recipes" / "join_domains.py")
recipe = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = recipe
spec.loader.exec_module(recipe)


def two_indexes() -> dict[str, SemIDIndex]:
    """Three ragged levels for the 24 items of games, two levels (one shared SemID) for the 12 of books."""
    number = np.arange(12)
    codes = np.stack([number // 4, number % 4], 1)
    codes[1] = codes[0]
    return {
        "games": tiny_index(tiny_data()),
        "books": SemIDIndex([f"item-{i:02d}" for i in number], codes, [3, 5]),
    }


def test_the_first_token_says_the_domain_and_no_two_domains_share_a_token():
    parts = two_indexes()
    joined = join_domain_semids(parts)
    assert list(joined.domains) == ["games", "books"] and joined.codebook_sizes == (2, 6 + 3, 6 + 5, 4)
    used: dict[str, set] = {"games": set(), "books": set()}
    for name, part in parts.items():
        for item in part.items:
            there, own = joined.row(f"{name}/{item}"), part.row(item)
            first, *rest = joined.tokens_of_row(there)
            assert first == {"games": "<a_0>", "books": "<a_1>"}[name] and len(rest) == part.lengths[own]
            used[name].update(rest)
            same = [f"{name}/{each}" for each in part.decode(part.encode(item))]
            assert joined.decode(joined.encode(f"{name}/{item}")) == same
    assert not used["games"] & used["books"]
    assert joined.encode("books/item-00") == joined.encode("books/item-01") == "<a_1><b_6><c_6>"


def test_a_domain_that_is_added_last_changes_no_token_of_the_others(tmp_path):
    parts = two_indexes()
    two, three = join_domain_semids(parts), join_domain_semids({**parts, "music": parts["books"]})
    assert all(two.encode(item) == three.encode(item) for item in two.items)
    two.save(tmp_path / "semids.parquet")
    again = SemIDIndex.load(tmp_path / "semids.parquet")
    assert again.fingerprint == two.fingerprint and list(again.domains) == list(two.domains)


def test_removed_items_keep_their_semid_and_newcomers_go_to_their_domain():
    parts = two_indexes()
    before = join_domain_semids(parts)
    parts["books"] = remove_items(parts["books"], ["item-05"])
    after = join_domain_semids(parts)
    assert "books/item-05" not in after.items and after.encode("books/item-05") == before.encode("books/item-05")
    tokenizer = RQKMeans([3]).fit(np.eye(4, dtype=np.float32))
    with pytest.raises(ValueError, match="add the items to games, books, and join them again"):
        add_items(after, tokenizer, np.eye(4, dtype=np.float32)[:1], ["new"])
    with pytest.raises(ValueError, match="update games, books, and join them again"):
        check_updatable(after, Path("out"), adding=False)


def test_semids_that_cannot_be_tagged_are_named():
    parts = two_indexes()
    books, ids = parts["books"], parts["books"].item_ids
    words = SemIDIndex(ids, np.arange(12)[:, None], [12], level_tokens=[[f" w{i}" for i in range(12)]])
    contextual = books.replaced(ids, books.codes, {"item_tokenizer": {"name": "actionpiece"}})
    distinct = SemIDIndex(ids, np.arange(12)[:, None], [12])
    for other, message in (
        (words, "'books': its Semantic IDs write tokens of their own"),
        (contextual, "'books': its Semantic IDs depend on the history"),
        (books.with_behaviours(["view", "buy"]), "'books': its Semantic IDs hold behaviours"),
        (join_views({"a": distinct, "b": distinct}), "'books': its Semantic IDs are joined ones already"),
        (join_domain_semids(parts), "'books': its Semantic IDs are joined ones already"),
    ):
        with pytest.raises(ValueError, match=message):
            join_domain_semids({"games": parts["games"], "books": other})


def test_codebooks_lie_side_by_side_in_units_of_their_own():
    rng = np.random.default_rng(0)
    games = [rng.normal(5, 100, (6, 8)), rng.normal(0, 1, (6, 8))]  # no vectors for the third level
    books = [rng.normal(0, 0.01, (3, 4))]
    index = join_domain_semids(two_indexes())
    levels = domain_codebooks({"games": games, "books": books}, index)
    assert levels[0] is None and levels[3] is None
    assert [level.shape for level in levels[1:3]] == [(9, 8), (11, 8)]
    assert not levels[2][6:].any() and not levels[1][6:, 4:].any()
    for block in (levels[1][:6], levels[1][6:], levels[2][:6]):
        assert np.linalg.norm(block, axis=1).mean() == pytest.approx(1, abs=1e-6)
        assert block.mean(0) == pytest.approx(0, abs=1e-6)
    gaps = [
        np.linalg.norm(book[0] - book[1]) / np.linalg.norm(book[0] - book[2]) for book in (books[0], levels[1][6:])
    ]
    assert gaps[0] == pytest.approx(gaps[1], rel=1e-5)  # the geometry of a domain stays


@pytest.fixture(scope="module")
def recommender() -> LLMRecommender:
    data = join_domains({"games": tiny_data(), "books": tiny_data(num_items=12, num_users=10)})
    index = join_domain_semids(two_indexes()).aligned(data.items)
    model, tokenizer = tiny_model(data, index)
    config = RecommenderConfig.of(data, index, prompt=load_prompt("stream").to_dict(), num_beams=4, max_history=4)
    return LLMRecommender(model.eval(), tokenizer, index, data.items, config)


def test_a_request_is_held_to_a_domain_whatever_the_history(recommender):
    histories = [["games/item-01", "games/item-02"], ["books/item-03", "games/item-09"], []]
    for name, count in (("games", 24), ("books", 12)):
        only = Filter(where=[("domain", "==", name)])
        for k in (5, count):  # more items than beams
            for items in recommender.recommend(histories, k=k, filters=only):
                assert len({item.item_id for item in items}) == k
                assert all(item.item_id.startswith(name + "/") for item in items)
    everything = recommender.recommend(histories, k=100)
    assert all(len(items) == 36 for items in everything)
    inside = Filter(where=[("domain", "==", "books")], exclude_seen=True)
    (items,) = recommender.recommend(histories[1:2], k=100, filters=inside)
    assert [i.item_id for i in items] == [
        i.item_id for i in everything[1] if i.item_id.startswith("books/") and i.item_id != "books/item-03"
    ]


def run(name: str, config: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "recipes" / f"{name}.py"), "--config", str(config)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr[-3000:]
    return result


def join(config: Path, *flags: str) -> None:
    parser = TrlParser((recipe.JoinArguments,))
    recipe.main(parser.parse_args_and_config(args=["--config", str(config), *flags])[0])


def write(path: Path, **settings) -> Path:
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def shops(tmp_path_factory) -> Path:
    """Two shops in which items follow each other in circles of 24 and of 12, each with its own item tokenizer."""
    folder = tmp_path_factory.mktemp("shops")
    for name, size, dims in (("games", 24, 2), ("books", 12, 3)):
        data = tiny_data(num_items=size, num_users=80)
        data.save(folder / name / "data")
        angle = np.arange(size) * 2 * np.pi / size
        circle = np.stack([np.cos(angle), np.sin(angle), np.sin(2 * angle)], 1).astype(np.float32)[:, :dims]
        tokenizer = RQKMeans([4, 3]).fit(circle)
        index = build_semids(data.items["item_id"].to_pylist(), circle, tokenizer, collision="append")
        index.save(folder / name / "semids" / "semids.parquet", data.items)
        tokenizer.save_pretrained(folder / name / "semids" / "item_tokenizer")
    parts = {n: {"data_dir": f"{folder}/{n}/data", "semids": f"{folder}/{n}/semids"} for n in ("games", "books")}
    write(folder / "join.yaml", domains=parts, output_dir=f"{folder}/joined")
    return folder


def test_the_recipe_writes_reuses_and_refuses(shops, tmp_path, capsys):
    config, output = shops / "join.yaml", ["--output_dir", str(tmp_path / "out")]
    join(config, *output)
    printed = capsys.readouterr().out
    assert "<a_0> is games" in printed and "<a_1> is books" in printed
    data = PreparedData.load(tmp_path / "out" / "data")
    index = SemIDIndex.load(tmp_path / "out" / "semids" / "semids.parquet")
    assert index.items == data.items["item_id"].to_pylist()
    held = [vectors is not None for vectors in load_codebooks(tmp_path / "out" / "semids" / "item_tokenizer", index)]
    assert held == [False, True, True, False]
    join(config, *output)
    assert "Reusing" in capsys.readouterr().out
    settings = yaml.safe_load(config.read_text())
    games, books = settings["domains"]["games"], settings["domains"]["books"]
    for domains, flags, message in (
        ({"books": books, "games": games}, [], r"other settings \(domains\)"),  # the order gives the tokens
        ({"games": games, "books": {"semids": books["semids"]}}, [], "'books' should be {data_dir: ..., semids: ...}"),
        (
            {"games": games | {"semids": books["semids"]}, "books": books},
            [],
            "'games': item 'item-12' .*no Semantic ID",
        ),
        (settings["domains"], ["--shared_users", "true"], "one split by time"),
    ):
        with pytest.raises(ValueError, match=message):
            join(write(tmp_path / "other.yaml", domains=domains), *output, *flags)


def test_one_model_learns_both_shops(shops):
    join(shops / "join.yaml")
    where = {"data_dir": f"{shops}/joined/data"}
    start = where | {"semids": f"{shops}/joined/semids", "output_dir": f"{shops}/base", "model_config": MODEL}
    run("init_model", write(shops / "model.yaml", **start, vocab_size=300, embedding_init="codebook"))
    training = {
        "model_name_or_path": f"{shops}/base", "output_dir": f"{shops}/model", "tasks": ["stream"],
        "num_train_epochs": 10, "per_device_train_batch_size": 8, "learning_rate": 3e-3, "max_length": 128,
        "validation_rows": 40, "num_beams": 24, "use_cpu": True, "bf16": False, "gradient_checkpointing": False,
        "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip
    run("sft", write(shops / "sft.yaml", **where, **training, hidden_dropout=0.0))
    model, test = LLMRecommender.from_pretrained(shops / "model"), PreparedData.load(shops / "joined" / "data").test
    domains = np.array([target.split("/")[0] for target in test["target"].to_pylist()])
    lists = model.recommend(test["history"].to_pylist(), k=5)
    hits = np.array([t in [i.item_id for i in items] for t, items in zip(test["target"].to_pylist(), lists)])
    for name in ("games", "books"):
        assert hits[domains == name].mean() > 0.8  # items follow each other in a circle
        first = [items[0].item_id.split("/")[0] for items, domain in zip(lists, domains) if domain == name]
        assert np.mean(np.array(first) == name) > 0.95  # without a filter
    away = model.recommend([["books/item-03"]], k=5, filters=Filter(where=[("domain", "==", "games")]))[0]
    assert len(away) == 5 and all(item.item_id.startswith("games/") for item in away)
