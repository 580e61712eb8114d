"""Two views of Semantic IDs: joined, rendered, searched each in its own, and fused."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny import tiny_data, tiny_index, tiny_model

from llmrec.catalogue.filters import Filter
from llmrec.catalogue.semids import SemIDIndex
from llmrec.catalogue.views import join_views, view_rows
from llmrec.instructions import Catalogue, Renderer, build_dataset, load_prompt, parse_mixture
from llmrec.item_tokenizers import RQKMeans, add_items, build_semids
from llmrec.item_tokenizers.codebooks import load_codebooks
from llmrec.models.folder import RecommenderConfig
from llmrec.recommenders import LLMRecommender

ROOT = Path(__file__).parents[2]
MIXTURE = ["stream", {"prompt": "stream", "semids": "collaborative"}]


def two_views(data) -> SemIDIndex:
    number = np.arange(data.items.num_rows)
    ids = data.items["item_id"].to_pylist()
    other = SemIDIndex(ids[::-1], np.stack([number // 4, number % 4], 1), [6, 4])
    return join_views({"semantic": tiny_index(data), "collaborative": other})


@pytest.fixture(scope="module")
def setting():
    data = tiny_data()
    index = two_views(data).aligned(data.items)
    model, tokenizer = tiny_model(data, index)
    return data, index, model, tokenizer


def test_views_keep_their_items_codes_and_tokens_apart(setting, tmp_path):
    data, index, _, _ = setting
    assert list(index.views) == ["semantic", "collaborative"] and len(index) == 2 * len(index.items)
    for name, levels in (("semantic", "abc"), ("collaborative", "de")):
        part = index.rows_at(view_rows(index, name))
        assert sorted(part.items) == sorted(index.items) and len(part) == len(part.items)
        assert all(set(part.encode(item)[1::5]) <= set(levels) for item in part.items)
    one = tiny_index(data)
    assert all(index.encode(item) == one.encode(item) for item in index.items)  # the primary view, as it was
    index.save(tmp_path / "semids.parquet")
    again = SemIDIndex.load(tmp_path / "semids.parquet")
    assert again.fingerprint == index.fingerprint
    assert (view_rows(again, "collaborative") == view_rows(index, "collaborative")).all()
    with pytest.raises(ValueError, match="no view 'visual'.*semantic, collaborative"):
        view_rows(index, "visual")


def test_a_file_written_before_views_had_this_name_is_read(setting, tmp_path, caplog):
    _, index, _, _ = setting
    path = tmp_path / "semids.parquet"
    index.save(path)
    table = pq.read_table(path)
    header = json.loads(table.schema.metadata[b"llmrec"])
    header["info"] = {"streams": header["info"]["views"], "stream_info": header["info"]["view_info"]}
    pq.write_table(table.replace_schema_metadata({b"llmrec": json.dumps(header).encode()}), path)
    again = SemIDIndex.load(path)
    assert again.info == index.info and again.fingerprint == index.fingerprint
    (warning,) = caplog.messages
    assert str(path) in warning and "stream is a view now" in warning


def test_a_shuffled_control_keeps_an_items_views_together(setting):
    _, index, _, _ = setting
    control = index.shuffled(0)
    parts = [control.rows_at(view_rows(control, name)) for name in list(control.views)]
    before = {index.encode(item): index.codes[index.rows(item)].tolist() for item in index.items}
    assert all(sorted(part.items) == sorted(index.items) for part in parts)
    assert all(control.codes[control.rows(item)].tolist() == before[control.encode(item)] for item in control.items)
    assert any(control.encode(item) != index.encode(item) for item in index.items)


def test_what_cannot_be_joined_is_named():
    data = tiny_data()
    index = tiny_index(data)
    ids, codes = index.item_ids, np.arange(24)[:, None]
    words = SemIDIndex(ids, codes, [24], level_tokens=[[f" w{i}" for i in range(24)]], adds_tokens=False)
    taken = SemIDIndex(ids, codes, [24], level_tokens=[[f"<a_{i}>" for i in range(24)]])
    for other, message in (
        (index.rows_at(range(3)), "other items than 'one', e.g. 'item-03'"),
        (words, "'two' writes words"),
        (taken, "share tokens"),
        (two_views(data), "no joined Semantic IDs"),
    ):
        with pytest.raises(ValueError, match=message):
            join_views({"one": index, "two": other})
    with pytest.raises(ValueError, match="not 1"):
        join_views({"one": index})


def test_a_mixture_writes_each_view_and_teaches_what_is_asked(setting):
    data, index, _, tokenizer = setting
    renderer = Renderer(tokenizer, Catalogue(index, data.items))
    prompt = load_prompt("stream")
    mixture = parse_mixture(MIXTURE, prompt, index, ["semantic", "collaborative"])
    rows = build_dataset(data, mixture, renderer, max_history=4, max_length=128)
    half = len(rows) // 2
    for letters, part in (("abc", rows[:half]), ("de", rows[half:])):
        for ids, row in zip(part["input_ids"], part["history"]):
            letters_seen = {token[1] for token in tokenizer.convert_ids_to_tokens(ids) if token in set(index.tokens)}
            assert letters_seen and letters_seen <= set(letters), row
    with pytest.raises(ValueError, match="semids 'collaborative' is none of the tasks"):
        parse_mixture(["stream"], prompt, index, ["semantic", "collaborative"])
    with pytest.raises(ValueError, match="no view 'visual'"):
        parse_mixture([*MIXTURE, {"prompt": "stream", "semids": "visual"}], prompt, index)
    with pytest.raises(ValueError, match="no view 'collaborative'.*join_semids"):
        parse_mixture(MIXTURE, prompt, tiny_index(data))
    with pytest.raises(ValueError, match="'semantic', 'semantic'.: name each of them once"):
        parse_mixture(MIXTURE, prompt, index, ["semantic", "semantic"])
    assert parse_mixture([{"prompt": "stream", "semids": None}], prompt, index)[0].prompt == prompt


def recommender(setting, *fuse: str, num_beams: int = 24) -> LLMRecommender:
    data, index, model, tokenizer = setting
    prompt = load_prompt("stream").to_dict()
    config = RecommenderConfig.of(data, index, prompt=prompt, num_beams=num_beams, max_history=4, fuse=list(fuse))
    items = data.items.take(np.repeat(np.arange(data.items.num_rows), 2))
    return LLMRecommender(model.eval(), tokenizer, index, items, config, batch_size=3)


def test_each_view_is_searched_in_its_own_semids_and_the_lists_are_fused(setting):
    histories = [["item-01", "item-02"], [], ["item-09"]]
    lists = {name: recommender(setting, name).recommend(histories, k=24) for name in ("semantic", "collaborative")}
    fused = recommender(setting, "semantic", "collaborative").recommend(histories, k=24)
    assert recommender(setting).recommend(histories, k=24) == lists["semantic"]  # the primary view
    for name, start in (("semantic", "<a_1>"), ("collaborative", "<d_5>")):  # what is shown is what is searched
        ours = recommender(setting, name)
        assert (
            ours.prompts([["item-01"]]) == ours.prompts([["item-01"]], name)
            and start in ours.prompts([["item-01"]])[0]
        )
    for of_views, together in zip(zip(*lists.values()), fused):
        scores = [{item.item_id: item.score for item in items} for items in of_views]
        assert all(len(each) == 24 for each in scores) and scores[0] != scores[1]
        for item in together:
            expected = np.logaddexp(*(each[item.item_id] for each in scores)) - np.log(2)
            assert item.score == pytest.approx(expected, abs=1e-5)
        assert [i.score for i in together] == sorted((i.score for i in together), reverse=True)


def test_filters_and_more_than_the_catalogue_hold_over_views(setting):
    fused = recommender(setting, "semantic", "collaborative", num_beams=3)
    seen = [["item-01", "item-02"], ["item-03"]]
    for history, items in zip(seen, fused.recommend(seen, k=100, filters=Filter(exclude_seen=True))):
        assert len({item.item_id for item in items}) == len(items) == 24 - len(history)
        assert not {item.item_id for item in items} & set(history)
    filters = [None, Filter(where=[("price", "<", 5)], deny=["item-01"])]
    lists = fused.recommend(seen, k=[4, 9], filters=filters)
    assert len(lists[0]) == 4 and sorted(i.item_id for i in lists[1]) == ["item-00", "item-02", "item-03", "item-04"]
    assert fused.recommend(seen, k=2, filters=Filter(allow=[])) == [[], []]


def recipe(name: str, *flags, fails: bool = False) -> subprocess.CompletedProcess:
    result = subprocess.run(
        [sys.executable, str(ROOT / "recipes" / f"{name}.py"), *map(str, flags)],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert (result.returncode != 0) == fails, result.stderr[-3000:]
    return result


def test_the_recipes_join_start_train_and_fuse(tmp_path):
    data = tiny_data(num_users=120)
    data.save(tmp_path / "data")
    angle = np.arange(24) * 2 * np.pi / 24
    circle = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    colours = np.eye(24, dtype=np.float32)[:, np.arange(24) % 6 + 6 * (np.arange(24) // 12)][:, :12]
    indexes = {}
    for name, features in (("semantic", colours), ("collaborative", circle)):
        tokenizer = RQKMeans([4, 3]).fit(features)
        indexes[name] = build_semids(data.items["item_id"].to_pylist(), features, tokenizer, collision="append")
        indexes[name].save(tmp_path / name / "semids.parquet", data.items)
        tokenizer.save_pretrained(tmp_path / name / "item_tokenizer")
    config = tmp_path / "views.yaml"
    config.write_text(f"semids: {{semantic: {tmp_path}/semantic, collaborative: {tmp_path}/collaborative}}\n")
    flags = ["--config", config, "--output_dir", tmp_path / "semids"]
    recipe("join_semids", *flags)
    assert "Reusing" in recipe("join_semids", *flags).stdout
    record = tmp_path / "semids" / "stage.json"
    written = record.read_text()
    record.write_text(written.replace('"views"', '"streams"'))  # as they were called before
    refused = "other settings (streams, views): pass --overwrite true"
    assert refused in recipe("join_semids", *flags, fails=True).stderr
    record.write_text(written)
    joined = SemIDIndex.load(tmp_path / "semids" / "semids.parquet")
    assert joined.fingerprint == join_views(indexes).fingerprint
    held = [vectors is not None for vectors in load_codebooks(tmp_path / "semids" / "item_tokenizer", joined)]
    assert held == [True, True, False, True, True, False]
    with pytest.raises(ValueError, match="add the items to semantic, collaborative"):
        add_items(joined, tokenizer, circle[:1], ["new"])

    model = tmp_path / "model.yaml"
    shape = "{model_type: qwen3, hidden_size: 48, intermediate_size: 96, num_hidden_layers: 2, head_dim: 16, "
    shape += "num_attention_heads: 3, num_key_value_heads: 3, tie_word_embeddings: true}"
    where = f"data_dir: {tmp_path}/data\nsemids: {tmp_path}/semids\noutput_dir: {tmp_path}/base\n"
    model.write_text(f"{where}vocab_size: 300\nembedding_init: codebook\nmodel_config: {shape}\n")
    recipe("init_model", "--config", model)
    assert (tmp_path / "base" / "item_tokenizer" / "collaborative").is_dir()
    sft = tmp_path / "sft.yaml"
    sft.write_text(
        f"model_name_or_path: {tmp_path}/base\ndata_dir: {tmp_path}/data\noutput_dir: {tmp_path}/sft\n"
        "tasks: [stream, {prompt: stream, semids: collaborative}]\nfuse: [semantic, collaborative]\n"
        "num_train_epochs: 10\nper_device_train_batch_size: 8\nlearning_rate: 3.0e-3\nmax_length: 128\n"
        "hidden_dropout: 0.3\n"
        "validation_rows: 40\nnum_beams: 24\nuse_cpu: true\nbf16: false\ngradient_checkpointing: false\n"
        "report_to: none\nsave_strategy: 'no'\ndisable_tqdm: true\n"
    )
    recipe("sft", "--config", sft)
    trained = LLMRecommender.from_pretrained(tmp_path / "sft")
    assert list(trained.views) == ["semantic", "collaborative"]
    lists = trained.recommend(data.test["history"].to_pylist(), k=5)
    hits = [t in [item.item_id for item in items] for t, items in zip(data.test["target"].to_pylist(), lists)]
    assert np.mean(hits) > 0.8  # items follow each other in a circle
