import copy
import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_data, tiny_index, tiny_model
from transformers.trainer_pt_utils import LengthGroupedSampler

from llmrec.data.prepared import SEQUENCES
from llmrec.instructions import (
    Catalogue,
    Prompt,
    Renderer,
    TaskMix,
    Template,
    build_dataset,
    load_prompt,
    parse_mixture,
    reader_of,
    task_rows,
)
from llmrec.instructions.spans import Sequences
from llmrec.instructions.tasks.sequential import stream_rows
from llmrec.instructions.wishes import Wishes


@pytest.fixture(scope="module")
def setting():
    data = tiny_data()
    index = tiny_index(data)
    _, tokenizer = tiny_model(data, index)
    return data, index, tokenizer, Renderer(tokenizer, Catalogue(index, data.items))


@pytest.mark.parametrize("name", ["next_item", "stream"])
def test_the_evaluation_prompt_is_the_training_prompt(setting, name):
    """SFT's text cut before a target equals what the recommender reads for the same history."""
    data, index, tokenizer, renderer = setting
    prompt = load_prompt(name)
    for row in task_rows(prompt.task, data, 9, limit=10):
        text = renderer.prompt(prompt, row) + renderer.completion(prompt, row)
        for cut, target in enumerate(row["targets"]):
            history = row["history"] + row["targets"][:cut]
            asked = renderer.next_item_prompts(prompt, [history], max_history=9)[0]
            assert text.startswith(asked + index.encode(target))


def test_only_answer_tokens_carry_labels_and_nothing_follows_a_semid(setting):
    data, index, tokenizer, renderer = setting
    names = ["next_item", "stream", "item_to_title", "title_to_item"]
    rows = build_dataset(data, [TaskMix.parse(name) for name in names], renderer, max_history=4, max_length=256)
    seen = set()
    for row in rows:
        labelled = [token for token, label in zip(row["input_ids"], row["labels"]) if label != -100]
        assert labelled == [label for label in row["labels"] if label != -100]
        answer = tokenizer.decode(labelled)
        if row["task"] == "item_to_title":
            title = renderer.catalogue.titles[row["about"]]
            assert answer == title + tokenizer.eos_token
        else:
            assert answer == "".join(index.encode(item) for item in row["targets"])
        assert row["length"] == len(row["input_ids"])
        seen.add(row["task"])
    assert seen == set(names)


def test_a_row_is_the_same_alone_and_in_a_batch_of_several_tasks(setting):
    data, index, tokenizer, renderer = setting
    mixture = [TaskMix.parse(name) for name in ("next_item", "persona:0.5", "title_to_item")]
    rows = build_dataset(data, mixture, renderer, max_history=4, max_length=180)
    reader = reader_of(rows)
    places = np.random.default_rng(0).permutation(len(rows)).tolist()
    together = rows.__getitems__(places)
    assert together == [rows[place] for place in places]
    assert len({row["task"] for row in together[:20]}) == 3
    assert reader.read == 2 * len(rows)


def test_batches_of_one_length_are_made_without_rendering_a_row(setting):
    data, index, tokenizer, renderer = setting
    rows = build_dataset(data, [TaskMix.parse("next_item")], renderer, max_history=4, max_length=180)
    order = list(LengthGroupedSampler(4, rows, rows.with_format(None)["length"][:], model_input_name="input_ids"))
    assert sorted(order) == list(range(len(rows))) and reader_of(rows).read == 0


def test_no_evaluation_target_is_a_training_target(setting):
    data, index, tokenizer, renderer = setting
    pairs = {(tuple(row["history"]), row["targets"][0]) for row in task_rows("next_item", data, 50)}
    for split in (data.valid, data.test):
        for history, target in zip(split["history"].to_pylist(), split["target"].to_pylist()):
            assert (tuple(history), target) not in pairs


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 4)), min_size=1, max_size=6), st.integers(1, 9))
def test_stream_windows_label_every_target_once_with_enough_history(shapes, max_history):
    sequences = [[f"{user}-{i}" for i in range(length)] for user, (length, _) in enumerate(shapes)]
    train = pa.table(
        {
            "user_id": [str(u) for u in range(len(shapes))],
            "item_ids": sequences,
            "timestamps": [[None] * len(s) for s in sequences],
            "num_context": [min(context, length) for length, context in shapes],
        }
    ).cast(SEQUENCES)
    data = tiny_data(num_users=2)
    data.train = train
    rows = Sequences(train).rows(stream_rows(data, max_history, np.random.default_rng(0)))
    labelled = [item for row in rows for item in row["targets"]]
    expected = [item for s, (length, context) in zip(sequences, shapes) for item in s[max(1, min(context, length)) :]]
    assert sorted(labelled) == sorted(expected)
    for row in rows:
        user = int(row["history"][0].split("-")[0])
        window = row["history"] + row["targets"]
        start = int(window[0].split("-")[1])
        assert window == sequences[user][start : start + len(window)]
        assert len(window) <= max_history + 1 and len(row["history"]) >= 1
        # A target sees half a window of history, or all there is.
        assert start == 0 or len(row["history"]) >= (max_history + 1) // 2


def test_weights_repeat_and_sample_rows_and_the_seed_fixes_them(setting):
    data, index, tokenizer, renderer = setting
    build = lambda weight, seed: build_dataset(  # noqa: E731
        data, [TaskMix.parse(f"item_to_title:{weight}")], renderer, max_history=4, max_length=256, seed=seed
    )
    assert len(build(0.5, 0)) == 12 and len(build(2.25, 0)) == 54
    ids = [build(0.5, seed)[:]["input_ids"] for seed in (3, 3, 4)]
    assert ids[0] == ids[1] != ids[2]


def test_since_keeps_what_is_recent_and_dated(setting):
    data, index, tokenizer, renderer = setting
    stamps = [[0, 86_400 * day] if day is not None else [None, None] for day in (0, 9, 10, 11, None)]
    train = pa.table(
        {
            "user_id": [str(i) for i in range(5)],
            "item_ids": [["item-00", f"item-0{i}"] for i in range(5)],
            "timestamps": stamps,
            "num_context": [1] * 5,
        }
    ).cast(SEQUENCES)
    recent = dataclasses.replace(data, train=train)
    mix = TaskMix.parse({"prompt": "stream", "since": "1970-01-11", "weight": 2})
    rows, sequences = mix.rows(recent, 5, np.random.default_rng(0))
    assert [row["targets"] for row in Sequences(sequences).rows(rows)] == [["item-02"], ["item-03"]]
    assert len(build_dataset(recent, [mix], renderer, 5, 256)) == 4
    with pytest.raises(ValueError, match="since a date YYYY-MM-DD"):
        TaskMix.parse({"prompt": "stream", "since": "yesterday"})


def test_chat_frame_is_what_the_chat_template_gives(setting):
    data, index, tokenizer, renderer = setting
    prompt = Prompt.from_dict(
        {"task": "item_to_title", "system": "Be brief.", "templates": [{"prompt": "{item}?", "completion": "{title}"}]}
    )
    row = {"history": [], "targets": [], "about": "item-03"}
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": index.encode("item-03") + "?"}]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert renderer.prompt(prompt, row) == expected


def test_chat_templates_may_trim_messages(setting):
    data, index, tokenizer, _ = setting
    trimming = copy.deepcopy(tokenizer)
    trimming.chat_template = tokenizer.chat_template.replace("m['content']", "m['content'] | trim")
    renderer = Renderer(trimming, Catalogue(index, data.items))
    row = {"history": ["item-01"], "targets": []}
    assert index.encode("item-01") in renderer.prompt(load_prompt("next_item"), row)


def test_bad_prompts_and_mixtures_are_named(tmp_path, setting):
    data, index, tokenizer, renderer = setting
    with pytest.raises(ValueError, match="no prompt template 'nonsense'.*stream"):
        load_prompt("nonsense")
    with pytest.raises(ValueError, match="no prompt template 'next_itm'.*did you mean 'next_item'"):
        load_prompt("next_itm")
    misspelt = Prompt("next_item", (Template("after {histori}", "{target}"),))
    with pytest.raises(ValueError, match="slot 'histori' is not one of history, target: did you mean 'history'"):
        renderer.prompt(misspelt, {"history": [], "targets": []})
    with pytest.raises(ValueError, match="wish 'cheapr' is not one of .*did you mean 'cheaper'"):
        Wishes(data.items).satisfying("cheapr")
    bad = tmp_path / "bad.yaml"
    bad.write_text("task: stream\ntemplate: []\n")
    with pytest.raises(ValueError, match="bad.yaml: unknown fields .'template'., missing fields .'templates'."):
        load_prompt(bad)
    bad.write_text("task: [unclosed\n")
    with pytest.raises(ValueError, match="bad.yaml is not valid YAML"):
        load_prompt(bad)
    bad.write_text("task: fly\ntemplates: [{prompt: a, completion: b}]\n")
    with pytest.raises(ValueError, match="'fly' is not one of"):
        TaskMix.parse(str(bad))
    for name in ("like_but", "item_to_title"):
        with pytest.raises(ValueError, match=f"task '{name}' cannot recommend"):
            parse_mixture([name], load_prompt(name), index)
    with pytest.raises(ValueError, match="without a history, more than max_length 5: raise max_length"):
        build_dataset(data, [TaskMix.parse("stream")], renderer, max_history=4, max_length=5)


@pytest.mark.parametrize("count", [2, 6])
def test_templates_of_two_epochs_are_drawn_apart(setting, count):
    """A checksum instead of a hash would let most rows keep their wording from one epoch to the next."""
    data, index, tokenizer, renderer = setting
    dataset = build_dataset(data, [TaskMix.parse("item_to_title:40")], renderer, 5, 256)
    drawn = []
    for epoch in range(4):
        reader_of(dataset).set_epoch(epoch)
        drawn.append(np.array([row["variation"] % count for row in dataset]))
    for one in range(4):
        for other in range(one):
            assert abs((drawn[one] == drawn[other]).mean() - 1 / count) < 0.06


def test_a_training_set_does_not_lose_what_renders_it_without_a_word(setting):
    data, index, tokenizer, renderer = setting
    one, other = (build_dataset(data, [TaskMix.parse(name)], renderer, 5, 256) for name in ("stream", "title_to_item"))
    both = concatenate_datasets([one.select([1]), one.select([0])])
    assert both[:]["input_ids"] == [one[1]["input_ids"], one[0]["input_ids"]]
    with pytest.raises(
        ValueError, match="two training sets cannot be put together as they are: give build_dataset one"
    ):
        concatenate_datasets([one, other])
    plain = Dataset.from_dict({"input_ids": [[1, 2]], "labels": [[1, 2]]})
    for lost in (one.with_format(None), concatenate_datasets([one, plain]).remove_columns(["input_ids", "labels"])):
        with pytest.raises(ValueError, match="have lost what renders them"):
            reader_of(lost)
    columns = ["input_ids", "labels"]
    rendered = [
        rows.map(lambda row: {name: row[name] for name in columns}, remove_columns=rows.column_names).with_format(None)
        for rows in (one, other)
    ]
    assert concatenate_datasets(rendered)[:]["input_ids"] == one[:]["input_ids"] + other[:]["input_ids"]


def test_it_is_a_data_set_like_any_other(setting):
    data, index, tokenizer, renderer = setting
    rows = build_dataset(data, [TaskMix.parse(name) for name in ("stream", "title_to_item")], renderer, 5, 256)
    whole, reader = rows[:], reader_of(rows)
    assert rows.select([3, 50])[:]["input_ids"] == [whole["input_ids"][place] for place in (3, 50)]
    shuffled = rows.shuffle(seed=0)
    assert sorted(shuffled[:]["input_ids"]) == sorted(whole["input_ids"]) != shuffled[:]["input_ids"]
    titles = rows.filter(lambda row: row["task"] == "title_to_item")
    assert len(titles) == 24 and titles[0]["about"] == "item-00" and titles[0]["input_ids"] == whole["input_ids"][40]
    parts = titles.train_test_split(0.25, seed=0)
    assert len(parts["train"]) == 18 and parts["train"][0]["task"] == "title_to_item"
    both = rows.map(lambda row: {"labels": row["input_ids"], "size": len(row["input_ids"])})
    assert both[1]["labels"] == both[1]["input_ids"] == whole["input_ids"][1] and both[1]["size"] == whole["length"][1]
    own = rows.map(lambda row: {"text": row["task"]}, remove_columns=rows.column_names)
    assert own[0] == {"text": "stream"} and own[-1] == {"text": "title_to_item"}
    # All of them follow the epoch of the one reader.
    assert all(reader_of(one) is reader for one in (shuffled, titles, parts["train"], both))
    reader.set_epoch(1)
    assert titles[:]["input_ids"] == rows[40:]["input_ids"] != whole["input_ids"][40:]
