"""Contextual item tokenizers end to end: rendering, training rows, constrained recommendation, the saved folder."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import yaml
from tiny import MODEL, tiny_data, tiny_index

from llmrec import LLMRecommender
from llmrec.catalogue.views import join_views
from llmrec.instructions import (
    Catalogue,
    Renderer,
    TaskMix,
    build_dataset,
    encode_rows,
    load_prompt,
    target_rows,
)
from llmrec.instructions.tasks.sequential import stream_slots
from llmrec.item_tokenizers import ActionPiece, Pctx, add_items, fit_semids
from llmrec.models.folder import CONFIG, ITEM_TOKENIZER, RecommenderConfig, plain_generation_config, write_sidecars
from llmrec.models.from_scratch import model_from_config, train_tokenizer
from llmrec.models.vocabulary import extend_vocabulary
from llmrec.serving.http.recommending import read_request, search
from llmrec.serving.http.schemas import RecommendRequest
from llmrec.serving.http.service import Served
from llmrec.serving.http.settings import Settings
from llmrec.serving.living_catalogue.store import CatalogueStore
from llmrec.training import ValidationSample

ROOT = Path(__file__).parents[2]
KINDS = {
    "pctx": lambda: Pctx([4, 4], contexts="cooccurrence", context_dim=4, feature_dim=4),
    "actionpiece": lambda: ActionPiece(2, 4, pca_dim=None, num_buckets=8, vocabulary_size=40),
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    data = tiny_data()
    features = np.random.default_rng(0).normal(size=(data.items.num_rows, 8)).astype(np.float32)
    contextual = KINDS[request.param]()
    index = fit_semids(contextual, features, data.items, data.train)
    tokenizer = train_tokenizer(data.items["title"].to_pylist(), 300)
    model = model_from_config(MODEL, tokenizer)
    extend_vocabulary(model, tokenizer, index)
    model.generation_config = plain_generation_config(tokenizer)
    path = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    contextual.save_pretrained(path / "made" / ITEM_TOKENIZER)
    config = RecommenderConfig.of(data, index, prompt=load_prompt("next_item").to_dict(), num_beams=10)
    items = data.items.take([data.items["item_id"].to_pylist().index(item) for item in index.items])
    write_sidecars(path, config, index, items, path / "made" / ITEM_TOKENIZER)
    return path, data, index, contextual, tokenizer


def test_the_folder_recommends_and_its_prompts_are_the_training_prompts(folder):
    path, data, index, contextual, tokenizer = folder
    recommender = LLMRecommender.from_pretrained(path)
    assert recommender.renderer.catalogue.sequence_tokenizer.name == contextual.name
    history = data.train["item_ids"][0].as_py()
    (found,) = recommender.recommend([history], k=5)
    assert len({item.item_id for item in found}) == 5
    prompt = load_prompt("next_item")
    row = {"history": history[:-1], "targets": [history[-1]]}
    (asked,) = recommender.prompts([history[:-1]])
    assert asked == recommender.renderer.prompt(prompt, row | {"variation": 0})
    assert "".join(contextual.encode_history([history[:-1]], 0)[0]) in asked
    answer = recommender.renderer.completion(prompt, row)
    assert history[-1] in index.decode(answer)


def test_a_history_is_asked_in_several_ways_and_what_they_find_is_averaged(folder):
    path, data, index, contextual, tokenizer = folder
    recommender, everything = LLMRecommender.from_pretrained(path), 200
    with pytest.raises(ValueError, match="variations is -1, for this model it should be at least 0"):
        recommender.recommend([["item-01"]], variations=-1)
    assert recommender.config.variations == 5 and [seed for _, seed in recommender.ways()] == [0, 1, 2, 3, 4]
    histories = [lists[:-1] for lists in data.train["item_ids"].to_pylist()[:12]]
    together = recommender.recommend(histories, k=24, num_beams=everything)
    ways = 0
    for history, found in zip(histories, together):
        rows = [{"history": history, "targets": [], "variation": seed} for seed in range(5)]
        prompts = [recommender.renderer.prompt(recommender.prompt, row) for row in rows]
        ways += len(set(prompts))
        lists = recommender.search(recommender.token_ids(prompts), [24] * 5, num_beams=everything)
        chances = [{hit.item: np.exp(hit.score) for hit in hits} for hits in lists]
        mean = {index.items[item]: np.mean([one[item] for one in chances]) for item in chances[0]}
        assert len(mean) == 24
        assert {item.item_id: np.exp(item.score) for item in found} == pytest.approx(mean, rel=1e-4)
        # Neither what stands beside a history nor the time of asking changes it.
        (alone,) = recommender.recommend([history], k=24, num_beams=everything)
        assert [item.score for item in alone] == pytest.approx([item.score for item in found], abs=1e-4)
    recommender.seed = 1
    assert [seed for _, seed in recommender.ways()] == [5, 6, 7, 8, 9]
    if contextual.name == "pctx":  # its items have one context each in a store of so few interactions
        return
    assert ways > len(histories)
    other = recommender.recommend(histories, k=24, num_beams=everything)
    assert [[item.score for item in items] for items in other] != [
        [item.score for item in items] for items in together
    ]


def test_the_http_front_asks_in_all_ways(folder, tmp_path):
    path, data, index, contextual, tokenizer = folder
    recommender, history = LLMRecommender.from_pretrained(path), data.train["item_ids"][0].as_py()
    with CatalogueStore(path, tmp_path / "log") as store:
        served = Served(store.current, recommender)
        asked = read_request(RecommendRequest(history=history, k=5), served, Settings(model="m"))
        found = search(asked, served)
    assert asked.prompt == recommender.prompts([history])[0]
    (expected,) = recommender.recommend([history], k=5)
    assert found.items == [(item.item_id, item.score) for item in expected]


def test_the_usual_way_without_chance_is_that_of_older_folders(folder, tmp_path):
    path, data, index, contextual, tokenizer = folder
    settings = json.loads((path / CONFIG).read_text())
    assert settings.pop("variations") == 5
    shutil.copytree(path, older := tmp_path / "older")
    (older / CONFIG).write_text(json.dumps(settings))
    history = data.train["item_ids"][0].as_py()
    one = LLMRecommender.from_pretrained(older)
    assert one.ways() == [("", None)]
    assert "".join(contextual.encode_history([history])[0]) in one.prompts([history])[0]
    assert one.recommend([history]) == LLMRecommender.from_pretrained(path).recommend([history], variations=0)


def test_validation_asks_in_one_way_of_training(folder):
    path, data, index, contextual, tokenizer = folder
    recommender = LLMRecommender.from_pretrained(path)
    sample = ValidationSample(recommender, data.valid, size=20)
    alone = SimpleNamespace(process_index=0, num_processes=1, device="cpu", reduce=lambda sums, _: sums)
    found = sample.evaluate(recommender.model, alone)
    lists = recommender.recommend(sample.rows["history"].to_pylist(), k=50, variations=1)
    hits = [
        target in [item.item_id for item in items[:10]]
        for items, target in zip(lists, sample.rows["target"].to_pylist())
    ]
    assert found["recall@10"] == pytest.approx(np.mean(hits))
    prompt = load_prompt("next_item")
    rows = target_rows(sample.rows, 20)
    encoded = encode_rows(rows, prompt, recommender.renderer, 300)
    prompts = recommender.token_ids([recommender.renderer.prompt(prompt, row | {"variation": 0}) for row in rows])
    assert all(ids[: len(start)] == start for ids, start in zip(encoded["input_ids"], prompts))


def test_only_where_a_history_has_several_ways():
    data = tiny_data()
    index = tiny_index(data)
    assert RecommenderConfig.of(data, index, prompt={}).variations == 0
    with pytest.raises(ValueError, match="variations: 5 .*actionpiece, pctx"):
        RecommenderConfig.of(data, index, prompt={}, variations=5)


def test_a_stream_is_trained_and_asked_in_one_way(folder):
    path, data, index, contextual, tokenizer = folder
    stream = load_prompt("stream").to_dict()
    assert RecommenderConfig.of(data, index, prompt=stream).variations == 0
    with pytest.raises(ValueError, match="variations: -1"):
        RecommenderConfig.of(data, index, prompt=stream, variations=-1)


def test_training_shows_variations(folder):
    path, data, index, contextual, tokenizer = folder
    renderer = Renderer(tokenizer, Catalogue(index, data.items, contextual))
    rows = build_dataset(data, [TaskMix.parse("next_item:8")], renderer, 5, 200, seed=1)
    again = build_dataset(data, [TaskMix.parse("next_item:8")], renderer, 5, 200, seed=1)
    assert rows[:]["input_ids"] == again[:]["input_ids"]
    ways: dict[tuple, set] = {}
    for row in rows:
        ways.setdefault((tuple(row["history"]), *row["targets"]), set()).add(tuple(row["input_ids"]))
    assert max(map(len, ways.values())) > 1


def test_what_contextual_semids_cannot_do_is_refused(folder):
    path, data, index, contextual, tokenizer = folder
    with pytest.raises(ValueError, match="cannot write behaviours"):
        Catalogue(index.with_behaviours(["view", "buy"]), data.items, contextual)
    with pytest.raises(ValueError, match="separator must be empty"):
        row = {"history": ["item-01"], "targets": ["item-02"]}
        stream_slots(Catalogue(index, data.items, contextual), row, " ")
    with pytest.raises(ValueError, match="stand alone"):
        join_views({"one": index, "two": index})
    new = pa.table({"item_id": ["new"], "title": ["new"]})
    with pytest.raises(ValueError, match="knows the items it was fitted with only: fit it again"):
        add_items(index, contextual, np.zeros((1, 8), np.float32), ["new"], new)


@pytest.mark.parametrize("kind", KINDS)
def test_the_recipes_make_a_model_of_them(kind, tmp_path):
    data = tiny_data()
    data.save(tmp_path / "data")
    arguments = KINDS[kind]().config
    features = [{"kind": "categorical", "columns": ["brand", "categories", "price"], "dim": 8}]
    shared = {"data_dir": str(tmp_path / "data")}
    semids = {"tokenizer": kind, "tokenizer_args": arguments, "features": features, "output_dir": "semids"}
    model = {"semids": "semids", "output_dir": "base", "model_config": MODEL, "vocab_size": 300}

    def run(recipe, settings):
        (tmp_path / "settings.yaml").write_text(yaml.safe_dump(shared | settings))
        command = [sys.executable, ROOT / "recipes" / f"{recipe}.py", "--config", "settings.yaml"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    for recipe, settings in (("tokenize_items", semids), ("init_model", model)):
        done = run(recipe, settings)
        assert done.returncode == 0, done.stderr
    recommender = LLMRecommender.from_pretrained(tmp_path / "base")
    (found,) = recommender.recommend([["item-01", "item-02"]], k=5)
    assert len({item.item_id for item in found}) == 5
    refused = run("init_model", model | {"shuffle_semids": True, "output_dir": "control"})
    assert "no shuffle_semids" in refused.stderr and not (tmp_path / "control").exists()


def test_training_rows_and_streams(folder):
    path, data, index, contextual, tokenizer = folder
    renderer = Renderer(tokenizer, Catalogue(index, data.items, contextual))
    rows = build_dataset(data, [TaskMix.parse("next_item")], renderer, 5, 200)
    semids = {id for tokens in index.level_tokens for id in tokenizer.convert_tokens_to_ids(tokens)}
    for row in map(rows.__getitem__, range(20)):
        answer = [token for token in row["labels"] if token >= 0]
        assert set(answer) <= semids and row["targets"][0] in index.decode(tokenizer.decode(answer))
    if contextual.name == "pctx":  # an item keeps tokens of its own, so histories are lists of targets
        assert len(build_dataset(data, [TaskMix.parse("stream")], renderer, 5, 200)) == data.train.num_rows
    else:
        with pytest.raises(ValueError, match="use a prompt of task next_item"):
            build_dataset(data, [TaskMix.parse("stream")], renderer, 5, 200)
