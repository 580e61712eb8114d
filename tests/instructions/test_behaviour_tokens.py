"""Kinds of interaction as tokens: one rendering in training and inference, and a model that learns what they say."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny import tiny_data, tiny_index, tiny_model
from trl import ModelConfig

from llmrec.catalogue.filters import Filter
from llmrec.catalogue.semids import SemIDIndex
from llmrec.catalogue.views import join_views
from llmrec.data import PreparedData, prepare
from llmrec.evaluation import evaluate
from llmrec.evaluation.controls import shuffle_histories, shuffle_order
from llmrec.instructions import (
    Catalogue,
    Renderer,
    TaskMix,
    build_dataset,
    encode_rows,
    load_prompt,
    target_rows,
    task_rows,
)
from llmrec.models.folder import RecommenderConfig
from llmrec.recommenders import LLMRecommender
from llmrec.recommenders.protocol import requests_of
from llmrec.training import lora_config

ROOT = Path(__file__).parents[2]
KINDS = ["view", "cart", "buy"]


def typed_data(num_users: int = 40) -> PreparedData:
    """Everyone walks through the catalogue: puts an item into the cart, buys it, views the next, and so on."""
    rng = np.random.default_rng(0)
    rows = []
    for user, start in enumerate(rng.integers(24, size=num_users)):
        steps = [(start + i, kind) for i in range(4) for kind in ("view", "cart", "buy")]
        rows += [(f"user-{user:03d}", f"item-{item % 24:02d}", t, kind) for t, (item, kind) in enumerate(steps)]
    names = ("user_id", "item_id", "timestamp", "behaviour")
    return prepare(pa.table(dict(zip(names, zip(*rows)))), tiny_data().items, behaviours=KINDS, name="typed")


@pytest.fixture(scope="module")
def setting():
    data = typed_data()
    index = tiny_index(data).with_behaviours(data.behaviours)
    model, tokenizer = tiny_model(data, index)
    return data, index, model.eval(), tokenizer, Renderer(tokenizer, Catalogue(index, data.items))


def recommender(setting, **config) -> LLMRecommender:
    data, index, model, tokenizer, _ = setting
    config = {"prompt": load_prompt("stream").to_dict(), "num_beams": 24} | config
    return LLMRecommender(model, tokenizer, index, data.items, RecommenderConfig.of(data, index, **config))


def test_behaviours_are_part_of_the_index_and_of_no_semid(setting, tmp_path):
    data, index, model, tokenizer, _ = setting
    plain = tiny_index(data)
    assert index.tokens == [*plain.tokens, "<|view|>", "<|cart|>", "<|buy|>"]
    assert index.fingerprint != plain.fingerprint == plain.with_behaviours([]).fingerprint
    assert index.with_behaviours(KINDS[::-1]).fingerprint != index.fingerprint
    index.save(tmp_path / "semids.parquet", data.items)
    again = SemIDIndex.load(tmp_path / "semids.parquet")
    assert again.behaviours == KINDS and again.fingerprint == index.fingerprint
    assert again.aligned(data.items).behaviours == again.shuffled(0).behaviours == KINDS
    ids = tokenizer("<|buy|>" + index.encode("item-03"), add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids)[0] == "<|buy|>" and len(ids) == 1 + index.lengths[3]
    assert "<|buy|>" in tokenizer.decode(ids, skip_special_tokens=True)
    rows = model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(index.tokens[-3:])]
    assert (rows.std(1) > 0).all() and len({tuple(row.tolist()) for row in rows}) == 3
    with pytest.raises(ValueError, match="repeat"):
        plain.with_behaviours(["buy", "buy"])
    with pytest.raises(ValueError, match="'<.end.>' as single normal"):
        tiny_model(data, plain.with_behaviours(["view", "end"]))


def test_lora_trains_the_rows_of_behaviours(setting):
    data, index, model, tokenizer, _ = setting
    arguments = ModelConfig(use_peft=True, lora_r=2, lora_target_modules=["q_proj"])
    config = lora_config(arguments, model, tokenizer, index)
    assert set(tokenizer.convert_tokens_to_ids(index.tokens)) == set(config.trainable_token_indices["embed_tokens"])


@pytest.mark.parametrize("name", ["next_item", "stream"])
def test_the_evaluation_prompt_is_the_training_prompt(setting, name):
    """SFT's tokens cut before a target's Semantic ID are those that the recommender reads for the same history."""
    data, index, _, tokenizer, renderer = setting
    prompt = load_prompt(name)
    rows = task_rows(prompt.task, data, 11, limit=10)
    encoded = encode_rows(rows, prompt, renderer, 256)
    for row, ids in zip(rows, encoded["input_ids"]):
        steps = list(zip(row["history"], row["behaviours"], strict=True))
        for target, kind in zip(row["targets"], row["target_behaviours"], strict=True):
            (asked,) = renderer.next_item_prompts(prompt, [steps], 11, [kind])
            expected = tokenizer(asked, add_special_tokens=False)["input_ids"]
            semid = tokenizer.convert_tokens_to_ids(index.tokens_of_row(index.row(target)))
            assert ids[: len(expected)] == expected and ids[len(expected) : len(expected) + len(semid)] == semid
            steps.append((target, kind))


@pytest.mark.parametrize("name", ["next_item", "stream"])
def test_another_target_or_kind_leaves_the_prompt_byte_identical(setting, name):
    data, index, _, _, renderer = setting
    prompt = load_prompt(name)
    for row in task_rows(prompt.task, data, 5, limit=20):
        count = len(row["targets"])
        other = row | {"targets": [index.items[-1]] * count, "target_behaviours": ["view"] * count}
        assert renderer.prompt(prompt, row) == renderer.prompt(prompt, other)


def test_behaviours_are_labelled_and_items_alone_have_none(setting):
    data, index, _, tokenizer, renderer = setting
    mixture = [TaskMix.parse(name) for name in ("stream", "next_item", "title_to_item")]
    for row in build_dataset(data, mixture, renderer, max_history=4, max_length=256):
        answer = tokenizer.decode([label for label in row["labels"] if label != -100])
        kinds = row.get("target_behaviours") or [""]
        tokens = [f"<|{kind}|>" if kind else "" for kind in kinds]
        assert answer == "".join(token + index.encode(item) for token, item in zip(tokens, row["targets"]))
        assert bool(row.get("target_behaviours")) == (row["task"] != "title_to_item")
    row = target_rows(data.test, 3)[0]
    assert len(row["history"]) == len(row["behaviours"]) == 3 and row["target_behaviours"] == ["buy"]
    without = Renderer(tokenizer, Catalogue(tiny_index(data), data.items))  # an index that knows no behaviours
    assert "<|" not in without.completion(load_prompt("stream"), row)


def test_requests_name_the_wanted_behaviour(setting):
    ours = recommender(setting, max_history=2)
    typed = [[("item-01", "view"), ["item-02", "cart"], "item-03"]]
    assert ours.prompts(typed)[0].endswith(
        f"<|cart|>{ours.index.encode('item-02')}<|buy|>{ours.index.encode('item-03')}<|buy|>"
    )
    assert ours.prompts(typed, behaviour="view")[0].endswith(f"<|view|>{ours.index.encode('item-03')}<|view|>")
    assert recommender(setting, behaviour="cart").prompts([[]])[0].endswith("<|cart|>")
    both = ours.recommend(typed * 2, k=5, behaviour=["view", "buy"])
    alone = [ours.recommend(typed, k=5, behaviour=kind)[0] for kind in ("view", "buy")]
    scores = [[item.score for item in items] for items in (*both, *alone)]
    assert scores[0] == pytest.approx(scores[2], abs=1e-4) and scores[1] == pytest.approx(scores[3], abs=1e-4)
    assert scores[0] != pytest.approx(scores[1], abs=1e-4)
    unseen = ours.recommend(typed, k=24, filters=Filter(exclude_seen=True))[0]
    assert len(unseen) == 21 and not {item.item_id for item in unseen} & {"item-01", "item-02", "item-03"}
    for arguments, message in (
        ({"behaviour": "steal"}, "behaviour 'steal' has no token; the model knows view, cart, buy"),
        ({"behaviour": ["buy", "buy"]}, "2 values of behaviour for 1 histories"),
        ({"histories": [[("item-01", "steal")]]}, "'steal' has no token"),
    ):
        with pytest.raises(ValueError, match=message):
            ours.recommend(**{"histories": typed} | arguments)
    data, _, model, tokenizer, _ = setting
    plain = tiny_index(data)
    config = RecommenderConfig.of(data, plain, prompt=load_prompt("stream").to_dict())
    untyped = LLMRecommender(model, tokenizer, plain, data.items, config)
    assert untyped.prompts(typed) == untyped.prompts([["item-01", "item-02", "item-03"]])
    with pytest.raises(ValueError, match="knows no behaviours"):
        untyped.recommend(typed, behaviour="buy")


def test_streams_and_behaviours_go_together(setting):
    data, index, _, tokenizer, _ = setting
    number = np.arange(24)
    other = SemIDIndex(index.item_ids, np.stack([number // 4, number % 4], 1), [6, 4])
    joined = join_views({"one": tiny_index(data), "two": other}).with_behaviours(KINDS)
    catalogue = Catalogue(joined, data.items).view("two")
    assert catalogue.semids(["item-05"], "", ["cart"]) == "<|cart|><d_1><e_1>"


def test_evaluation_passes_kinds_on_and_controls_keep_them_parallel(setting):
    data = setting[0]
    ours = recommender(setting)
    histories, wishes = requests_of(ours, data.test.slice(0, 2))
    assert histories[0][-1] == (data.test["history"][0].as_py()[-1], "cart") and wishes == {"behaviour": ["buy"] * 2}
    rows = data.test.slice(0, 6)
    before = {tuple(zip(row["history"], row["behaviours"])) for row in rows.to_pylist()}
    for control in (shuffle_histories, shuffle_order):
        shuffled = control(rows, 0)
        after = {tuple(zip(row["history"], row["behaviours"])) for row in shuffled.to_pylist()}
        assert {frozenset(steps) for steps in before} == {frozenset(steps) for steps in after}
        result = evaluate(ours, shuffled, data, "control", ks=(5,), bootstrap=0)
        assert "target behaviour / buy" in {each["slice"] for each in result.slices}


def recipe(name: str, *flags) -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "recipes" / f"{name}.py"), *map(str, flags)],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert result.returncode == 0, result.stderr[-3000:]


def test_a_tiny_model_learns_that_buy_follows_cart(tmp_path):
    data = typed_data(120)
    data.save(tmp_path / "data")
    tiny_index(data).save(tmp_path / "semids" / "semids.parquet", data.items)
    config = tmp_path / "model.yaml"
    shape = "{model_type: qwen3, hidden_size: 48, intermediate_size: 96, num_hidden_layers: 2, head_dim: 16, "
    shape += "num_attention_heads: 3, num_key_value_heads: 3, tie_word_embeddings: true}"
    config.write_text(
        f"data_dir: {tmp_path}/data\nsemids: {tmp_path}/semids\noutput_dir: {tmp_path}/base\n"
        f"vocab_size: 300\nmodel_config: {shape}\n"
    )
    recipe("init_model", "--config", config)
    config = tmp_path / "sft.yaml"
    config.write_text(
        f"model_name_or_path: {tmp_path}/base\ndata_dir: {tmp_path}/data\noutput_dir: {tmp_path}/sft\n"
        "tasks: [stream, title_to_item]\nnum_train_epochs: 12\nper_device_train_batch_size: 8\nhidden_dropout: 0.0\n"
        "learning_rate: 3.0e-3\nmax_length: 128\nvalidation_rows: 40\nnum_beams: 24\nuse_cpu: true\nbf16: false\n"
        "gradient_checkpointing: false\nreport_to: none\nsave_strategy: 'no'\ndisable_tqdm: true\n"
    )
    recipe("sft", "--config", config)
    trained = LLMRecommender.from_pretrained(tmp_path / "sft")
    assert trained.behaviours == KINDS
    kinds = trained.tokenizer.convert_tokens_to_ids(["<|view|>", "<|cart|>", "<|buy|>"])
    histories, wishes = requests_of(trained, data.test)
    histories = [history[-5:] for history in histories]  # whole histories are longer than training sequences were
    prompts = [text.removesuffix("<|buy|>") for text in trained.prompts(histories, **wishes)]
    with torch.no_grad():  # after cart: buy, and after that purchase: view
        for wanted, texts in (
            ("buy", prompts[:20]),
            ("view", [p + "<|buy|>" + trained.index.encode(h[-1][0]) for p, h in zip(prompts, histories)][:20]),
        ):
            for text in texts:
                ids = trained.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
                assert KINDS[int(trained.model(ids).logits[0, -1, kinds].argmax())] == wanted
    # What lies in the cart is bought, and what is viewed next is the next item.
    bought = [items[0].item_id for items in trained.recommend(histories, k=1)]
    assert np.mean([item == target for item, target in zip(bought, data.test["target"].to_pylist())]) > 0.9
    done = [[*history, (history[-1][0], "buy")] for history in histories]
    viewed = [items[0].item_id for items in trained.recommend(done, k=1, behaviour="view")]
    following = [f"item-{(int(history[-1][0][-2:]) + 1) % 24:02d}" for history in histories]
    assert np.mean([item == after for item, after in zip(viewed, following)]) > 0.8
