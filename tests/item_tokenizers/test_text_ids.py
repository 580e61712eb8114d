"""Semantic IDs in words: keywords, tags and numbers, from the catalogue to the search."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from item_tokenizers.small import small_items, small_train
from tiny import MODEL, tiny_data, tiny_model
from transformers import AutoTokenizer
from trl import ModelConfig

from llmrec.catalogue.semids import SemIDIndex
from llmrec.decoding import SemIDTrie
from llmrec.instructions import load_prompt
from llmrec.item_tokenizers import ItemNumbers, Keywords, Tags, build_semids, fit_semids, load_item_tokenizer
from llmrec.item_tokenizers.words.text_ids import unique_words, words_of
from llmrec.models.folder import RecommenderConfig
from llmrec.models.from_scratch import model_from_config, train_tokenizer
from llmrec.recommenders import LLMRecommender
from llmrec.serving.writers import give_writer
from llmrec.training.lora import lora_config


def no_features(items):
    return np.zeros((items.num_rows, 1), np.float32)


def index_of(tokenizer, items, train=None, **naming):
    return fit_semids(tokenizer, no_features(items), items, train, **naming)


# Words and their tokens


# Rich in marks, which st.text() hardly ever draws.
TEXT = st.one_of(st.text(), st.text(st.characters(categories=("Ll", "Lu", "Lo", "Mn", "Mc", "Me", "Nd", "Zs"))))


@given(TEXT)
@settings(max_examples=200)
def test_words_are_whole_and_unambiguous(text):
    words = words_of(text)
    assert len(set(words)) == len(words)
    for word in words:
        assert word == word.lower() and len(word) > 1 and not set(word) & set(" ;_,") and not word.isnumeric()
        assert words_of(word) == [word]


@pytest.mark.parametrize(
    "text, words",
    [
        ("दाल मखनी, हिन्दी", ["दाल", "मखनी", "हिन्दी"]),
        ("İstanbul Straße", ["i̇stanbul", "straße"]),
        ("Cafe\u0301 café", ["café"]),
        ("ข้าวผัด 東京ラーメン", ["ข้าวผัด", "東京ラーメン"]),
        ("1️⃣ 12 ❤️red red❤️ a", ["red"]),
    ],
)
def test_marks_stay_on_their_letters(text, words):
    assert words_of(text) == words


WORD = TEXT.map(lambda text: words_of(text[:12])).filter(bool).map(lambda words: " " + words[0])
SEMID = st.one_of(
    st.lists(WORD, min_size=1, max_size=5).map("".join),
    st.builds(lambda words, n: "".join(words) + f" {n}", st.lists(WORD, min_size=1, max_size=3), st.integers(0, 150)),
    st.integers(0, 10**7).map(" item{}".format),
).map("{};".format)


def check_boundaries(tokenizer, semids):
    """Every SemID has the same tokens alone, in a history, and as an answer."""
    alone = [tokenizer(semid, add_special_tokens=False)["input_ids"] for semid in semids]
    together = tokenizer("".join(semids), add_special_tokens=False)["input_ids"]
    assert together == [token for ids in alone for token in ids]
    start = tokenizer.apply_chat_template(
        [{"role": "user", "content": "next?"}], tokenize=False, add_generation_prompt=True
    )
    answer = tokenizer(start + "".join(semids) + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    assert answer[-1 - len(together) : -1] == together


@given(st.lists(SEMID, min_size=1, max_size=4))
@settings(deadline=None)
def test_token_boundaries_hold_in_byte_level_bpe(semids):
    check_boundaries(SCRATCH, semids)


@pytest.mark.slow
@given(st.lists(SEMID, min_size=1, max_size=4))
@settings(deadline=None, max_examples=300)
def test_token_boundaries_hold_in_qwen3(semids):
    check_boundaries(qwen3(), semids)


SCRATCH = train_tokenizer(["red lamp 12", "item 4711 green lamps, red wireless mouse;", "b12 vitamin 200ml"] * 5, 600)


def qwen3(_loaded=[]):  # noqa: B006
    if "LLMREC_DATA" not in os.environ:
        pytest.skip("LLMREC_DATA does not name the data folder")
    if not _loaded:
        _loaded.append(AutoTokenizer.from_pretrained(Path(os.environ["LLMREC_DATA"]) / "qwen3_tokenizer"))
        _loaded[0].chat_template = _loaded[0].chat_template or SCRATCH.chat_template
    return _loaded[0]


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", [Keywords(), ItemNumbers(), Tags(tags_column="categories")])
def test_real_ids_in_qwen3(tokenizer):
    items = tiny_data().items
    index = index_of(tokenizer, items)
    check_boundaries(qwen3(), [index.encode(item) for item in index.items])


# The uniqueness loop


@given(
    wishes=st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=7, unique=True), max_size=60),
    least=st.integers(1, 3),
    more=st.integers(0, 3),
)
def test_unique_words(wishes, least, more):
    taken = set()
    for wish in wishes:
        chosen = unique_words(wish, taken, least, least + more)
        assert min(least, len(wish)) <= len(chosen) <= least + more
        assert set(chosen) <= set(wish) and chosen[:-1] == tuple(wish[: len(chosen) - 1])
        if chosen in taken:  # then nothing else was possible: every ID of this wish is taken
            assert all(tuple(wish[:n]) in taken for n in range(least, min(len(wish), least + more) + 1))
            assert all((*chosen[:-1], word) in taken for word in wish[least + more :])
        taken.add(chosen)


# Keywords


def shop(count=200, seed=0):
    """Every item has a model of its own, and a kind and a colour that many share."""
    rng = np.random.default_rng(seed)
    kinds, colours = rng.integers(0, 6, count), rng.integers(0, 9, count)
    titles = [f"The kind{kind} in colour{colour}, model m{i}x" for i, (kind, colour) in enumerate(zip(kinds, colours))]
    return pa.table({"item_id": [f"i{i}" for i in range(count)], "title": titles})


def test_keywords_go_from_general_to_particular():
    index = index_of(Keywords(), shop())
    words = [[word.strip() for word in index.tokens_of_row(row)] for row in range(200)]
    assert len({row[0] for row in words}) <= 15 and len({tuple(row[:2]) for row in words}) <= 60
    assert all(row[0][:4] in ("kind", "colo") for row in words)
    assert sum({word[:4] for word in row[:2]} == {"kind", "colo"} for row in words) > 180
    assert {row[0] for row in words} & {f"kind{k}" for k in range(6)}
    assert index.info["collisions_before"]["unique"] == 200 and index.lengths.max() == 3


def test_keywords_do_not_depend_on_the_order_of_the_catalogue():
    items, backwards = shop(), shop().take(np.arange(200)[::-1])
    one, two = (Keywords().fit(no_features(table), items=table) for table in (items, backwards))
    assert (one.encode(no_features(items), items) == two.encode(no_features(items), items)).all()


def test_items_without_text_are_called_item():
    items = pa.table({"item_id": ["a", "b", "c"], "title": ["", "12 3", None]})
    index = index_of(Keywords(), items)
    assert [index.encode(item) for item in "abc"] == [" item 0;", " item 1;", " item 2;"]


def test_a_new_item_leaves_fitted_ids_alone():
    """A new item whose text is that of a fitted one is called by other words, as long as there are some."""
    items = shop()
    tokenizer = Keywords().fit(no_features(items), items=items)
    copies = items.set_column(0, "item_id", [[f"new{i}" for i in range(200)]])
    old, new = tokenizer.encode(no_features(items), items), tokenizer.encode(no_features(items), copies)
    assert not {tuple(row) for row in old.tolist()} & {tuple(row) for row in new.tolist()}
    unknown = pa.table({"item_id": ["n"], "title": ["entirely unheard of"]})
    assert tokenizer.encode(no_features(unknown), unknown).tolist() == [[0] + [-1] * 7]


def test_an_item_id_occurs_once():
    items = pa.table({"item_id": ["a", "b", "a"], "title": ["red lamp", "blue lamp", "green lamp"]})
    for tokenizer in (Keywords(), ItemNumbers()):
        with pytest.raises(ValueError, match="item id 'a' is in the catalogue more than once"):
            tokenizer.fit(no_features(items), items=items)


# Numbers


def test_numbers_read_as_numbers():
    items, train = small_items(), small_train(small_items())
    index = index_of(ItemNumbers(), items)
    numbers = [int(index.encode(item).removeprefix(" item").removesuffix(";")) for item in index.items]
    assert sorted(numbers) == list(range(80)) and numbers != sorted(numbers)
    ordered = index_of(ItemNumbers("training"), items, train)
    first_user = list(dict.fromkeys(train["item_ids"][0].as_py()))
    assert [ordered.encode(item) for item in first_user] == [f" item{n};" for n in range(len(first_user))]


def test_new_numbers_lie_beyond_the_fitted_ones():
    items = small_items(80)
    tokenizer = ItemNumbers().fit(no_features(items), items=items)
    new = pa.table({"item_id": [f"new{i}" for i in range(300)]})
    codes = tokenizer.encode(no_features(new), new)
    numbers = [int("".join(str(d) for d in row[1:] if d >= 0)) for row in codes.tolist()]
    assert min(numbers) >= 80 and max(numbers) < 1000 and len(set(numbers)) > 200


def test_training_order_needs_sequences():
    with pytest.raises(ValueError, match="needs train"):
        ItemNumbers("training").fit(no_features(small_items()), items=small_items())
    with pytest.raises(ValueError, match="'user' is not one of random, training"):
        ItemNumbers("user")


# Tags


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """A model folder that can be asked, though it answers nonsense."""
    folder = tmp_path_factory.mktemp("writer")
    tokenizer = train_tokenizer(tiny_data().items["title"].to_pylist(), 800)
    config = MODEL | {"initializer_range": 0.5, "head_dim": 64}  # vLLM has no narrower heads on a CPU
    model_from_config(config, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_writes_tags_once(writer, tmp_path):
    items = tiny_data().items
    model, cache = tmp_path / "model", tmp_path / "cache"
    shutil.copytree(writer, model)
    arguments = {"model_name_or_path": str(model), "max_new_tokens": 6, "cache_dir": cache, "batch_size": 5}
    index = index_of(give_writer(Tags(**arguments)), items)
    assert len({index.encode(item) for item in index.items}) == 24
    answers = {key: text for shard in cache.glob("*/*.json") for key, text in json.loads(shard.read_text()).items()}
    assert len(answers) == 24
    # With everything in the cache the model is not even loaded: it may be gone.
    shutil.rmtree(model)
    again = index_of(give_writer(Tags(**arguments)), items)
    assert again.fingerprint == index.fingerprint
    more = pa.concat_tables(
        [items, items.slice(0, 1).set_column(0, "item_id", [["x"]]).set_column(1, "title", [["new"]])]
    )
    with pytest.raises(ValueError, match="cannot be loaded to write texts"):
        index_of(give_writer(Tags(**arguments)), more)


def test_the_answer_begins_the_id(writer, tmp_path):
    items = tiny_data().items
    tokenizer = give_writer(Tags(str(writer), max_new_tokens=6, cache_dir=tmp_path, min_words=1))
    index = index_of(tokenizer, items)
    [answers] = [json.loads(shard.read_text()) for shard in tmp_path.glob("*/*.json")]
    written = {word for answer in answers.values() for word in words_of(answer)}
    firsts = [index.tokens_of_row(row)[0].strip() for row in range(24)]
    assert sum(first in written for first in firsts) == sum(bool(words_of(answer)) for answer in answers.values()) > 12


def test_a_loaded_tokenizer_asks_as_the_fitted_one_did(tmp_path):
    items = pa.table({"item_id": ["a", "b"], "title": ["Luxo", "Bulb"], "tags": ["lamp desk", "bulb"]})
    tokenizer = Tags(tags_column="tags", backend="vllm", batch_size=3).fit(no_features(items), items=items)
    tokenizer.save_pretrained(tmp_path / "t")
    assert load_item_tokenizer(tmp_path / "t").config == tokenizer.config
    assert (tokenizer.config["backend"], tokenizer.config["batch_size"]) == ("vllm", 3)


def test_an_own_prompt_is_used_and_cached_apart(writer, tmp_path):
    prompt = tmp_path / "mine.yaml"
    fields = {"task": "item_tags", "templates": [{"prompt": "Tags of {item}", "completion": "{tags}"}]}
    prompt.write_text(yaml.safe_dump(fields))
    items = tiny_data().items.slice(0, 3)
    for name in ("item_tokenizers/item_tags", str(prompt)):
        index_of(give_writer(Tags(str(writer), prompt=name, max_new_tokens=3, cache_dir=tmp_path / "cache")), items)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    fields["templates"][0]["prompt"] = "Tags, please"
    prompt.write_text(yaml.safe_dump(fields))
    with pytest.raises(ValueError, match="has no {item}"):
        give_writer(Tags(str(writer), prompt=str(prompt)))


def test_without_a_writer_tags_say_where_one_is_had():
    with pytest.raises(ValueError, match=r"nobody to ask 'some/model': call llmrec.serving.writers.give_writer"):
        index_of(Tags("some/model"), tiny_data().items)
    texts = []
    own = Tags("some/model", write=lambda asked: texts.extend(asked) or ["lamp, red"] * len(asked))
    index = index_of(own, tiny_data().items)
    assert len(texts) == 24 and all(index.encode(item).startswith(" lamp red ") for item in index.items)
    assert "write" not in own.config and give_writer(own).write is own.write


def test_tags_from_a_column():
    tags = [["Lamp", "desk lamp"], ["lamp", "red"], None]
    items = pa.table({"item_id": ["a", "b", "c"], "title": ["Luxo", "Luxo B", "Bulb"], "tags": tags})
    index = index_of(Tags(tags_column="tags", min_words=2), items)
    assert [index.encode(item) for item in "abc"] == [" lamp desk;", " lamp red;", " bulb;"]
    with pytest.raises(ValueError, match="no column 'keywords' with tags"):
        index_of(Tags(tags_column="keywords"), items)


def test_bad_arguments_of_text_ids(tmp_path, writer):
    for arguments in ({}, {"model_name_or_path": "m", "tags_column": "t"}):
        with pytest.raises(ValueError, match="either model_name_or_path or tags_column"):
            Tags(**arguments)
    with pytest.raises(ValueError, match="'ollama' is not one of transformers, vllm"):
        Tags("m", backend="ollama")
    with pytest.raises(ValueError, match="1 <= min_words <= max_words"):
        Keywords(min_words=5, max_words=4)
    items = pa.table({"item_id": ["a"], "colour": ["red"]})
    with pytest.raises(ValueError, match="none of the text columns"):
        index_of(Keywords(), items)
    with pytest.raises(ValueError, match="needs items"):
        Keywords().fit(np.zeros((3, 1)))
    with pytest.raises(ValueError, match="not fitted"):
        Keywords().encode(no_features(items), items)
    with pytest.raises(ValueError, match="cannot be loaded"):
        index_of(give_writer(Tags(str(tmp_path / "nowhere"))), tiny_data().items)


def test_without_vllm_the_backend_says_so(writer, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match="needs the package vllm"):
        index_of(give_writer(Tags(str(writer), backend="vllm")), tiny_data().items)


@pytest.mark.vllm
def test_vllm_writes_the_tags_of_transformers(writer, tmp_path):
    items = tiny_data().items.slice(0, 4)
    answers = []
    for backend in ("transformers", "vllm"):
        folder = tmp_path / backend
        index = index_of(give_writer(Tags(str(writer), backend=backend, max_new_tokens=6, cache_dir=folder)), items)
        assert len({index.encode(item) for item in index.items}) == 4
        answers.append(json.loads(next(folder.glob("*/*.json")).read_text()))
    one, other = answers
    assert one.keys() == other.keys() and all(other.values())
    # The two compute with other kernels: where a nonsense model is undecided, an answer may differ.
    assert sum(one[key] == other[key] for key in one) >= 2


# From the catalogue to the search


@pytest.mark.parametrize("tokenizer", [Keywords(), ItemNumbers(), Tags(tags_column="brand")])
def test_a_model_recommends_with_words(tokenizer, tmp_path):
    data = tiny_data()
    index = index_of(tokenizer, data.items, data.train)
    index.save(tmp_path / "semids.parquet", data.items)
    index = SemIDIndex.load(tmp_path / "semids.parquet")
    model, text_tokenizer = tiny_model(data, index)
    assert len(text_tokenizer) == model.get_input_embeddings().weight.shape[0] and not index.tokens
    config = RecommenderConfig.of(data, index, prompt=load_prompt("stream").to_dict(), num_beams=30)
    recommender = LLMRecommender(model, text_tokenizer, index, data.items, config)
    [found] = recommender.recommend([index.items[:4]], k=24)
    assert {hit.item_id for hit in found} == set(index.items)
    # A score is the log-probability of the ID's text after the prompt.
    [prompt] = recommender.prompts([index.items[:4]])
    for hit in found[:3] + found[-3:]:
        ids = text_tokenizer(prompt + index.encode(hit.item_id), return_tensors="pt", add_special_tokens=False)
        start = len(text_tokenizer(prompt, add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            logits = model(**ids).logits[0, start - 1 : -1].log_softmax(-1)
        tokens = ids["input_ids"][0, start:]
        assert hit.score == pytest.approx(float(logits[range(len(tokens)), tokens].sum()), abs=1e-3)


def test_an_id_that_begins_another():
    codes = np.array([[0, -1, -1], [0, 1, -1], [0, 1, 2], [1, -1, -1]])
    words = [" red", " lamp", " shade"]
    index = SemIDIndex(list("abcd"), codes, [3] * 3, level_tokens=[words] * 3, adds_tokens=False)
    trie = SemIDTrie.from_index(index, SCRATCH)
    assert trie.num_leaves == 4 and index.decode(" red lamp;") == ["b"]
    # The same without ";": then EOS ends the shorter one.
    ids = [SCRATCH(semid.removesuffix(";"))["input_ids"] for semid in map(index.encode, "abcd")]
    rows = np.full((4, max(map(len, ids))), -1)
    for row, tokens in enumerate(ids):
        rows[row, : len(tokens)] = tokens
    bare = SemIDTrie(rows, SCRATCH.eos_token_id)
    for row, tokens in enumerate(ids):
        node = torch.tensor([0])
        for level, token in enumerate([*tokens, SCRATCH.eos_token_id][: bare.depth]):
            node = bare.step(node, torch.tensor([token]), level)
        low, high = bare.rows(node, min(len(tokens) + 1, bare.depth))
        assert bare.order[low:high].tolist() == [row]


def test_lora_trains_no_rows_where_there_are_no_new_tokens():
    data = tiny_data()
    index = index_of(Keywords(), data.items)
    model, text_tokenizer = tiny_model(data, index)
    config = lora_config(ModelConfig(use_peft=True, lora_target_modules=["q_proj"]), model, text_tokenizer, index)
    assert config.trainable_token_indices is None


def test_a_loaded_tokenizer_grows_the_index_alike(tmp_path):
    items = small_items()
    tokenizer = Keywords().fit(no_features(items), items=items.slice(0, 60))
    tokenizer.save_pretrained(tmp_path / "t")
    loaded = load_item_tokenizer(tmp_path / "t")
    ids = items["item_id"].to_pylist()
    one, two = (build_semids(ids, no_features(items), t, items=items) for t in (tokenizer, loaded))
    assert one.fingerprint == two.fingerprint
