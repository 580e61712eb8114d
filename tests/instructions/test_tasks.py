"""Data correctness of every task in `TASKS`: no leak into a prompt, no evaluation interaction, labels, truncation."""

import dataclasses
import json
import re
import runpy
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from marked_store import KINDS, USERS, marked_setting

from llmrec.instructions import (
    TASKS,
    Catalogue,
    Prompt,
    Renderer,
    TaskMix,
    build_dataset,
    in_words,
    load_prompt,
    parse_mixture,
    reader_of,
    task_rows,
)
from llmrec.instructions.item_words import short_text
from llmrec.instructions.prompts import prompts_folder
from llmrec.instructions.wishes import kinds_of

ROOT = Path(__file__).parents[2]
SEMID = re.compile(r"<a_\d+><b_\d+>")
FREE = {"history", "behaviours", "variation", "unseen"}  # what every prompt may depend on
every_task = pytest.mark.parametrize("name", sorted(TASKS))


@pytest.fixture(scope="module")
def setting():
    return marked_setting()


def built(setting, name, seed=0, max_history=6, max_length=2000, **choices):
    data, _, _, renderer = setting
    return build_dataset(data, [TaskMix(load_prompt(name), **choices)], renderer, max_history, max_length, seed)


def changed(data, row: dict, name: str):
    """Another value for a column of a row."""
    value, ids = row[name], data.items["item_id"].to_pylist()
    if name in ("history", "targets"):
        return [ids[(ids.index(item) + 37) % len(ids)] for item in value]
    if name in ("behaviours", "target_behaviours"):
        return [KINDS[(KINDS.index(kind) + 1) % 3] for kind in value]
    if name == "about":
        return ids[(ids.index(value) + 37) % len(ids)]
    if name == "wish":
        if value in KINDS:
            return KINDS[(KINDS.index(value) + 1) % 3]
        return "cheaper" if value != "cheaper" else "pricier" if "about" in row else "brand=Nobody"
    if name == "variation":
        return value + 1
    return f"not {value}"


# Wordings


@every_task
def test_wordings_differ_and_unseen_ones_are_not_trained_on(name):
    prompt = load_prompt(name)
    assert prompt.task == name
    texts = ["\n".join(t.turns).lower() for t in (*prompt.templates, *prompt.unseen)]
    assert len(set(texts)) == len(texts)
    wordings = [re.sub(r"\{\w+\}|\W+", " ", text).split() for text in texts]
    for number, words in enumerate(wordings):  # paraphrases differ in structure, not in one word
        for other in wordings[:number]:
            common = sum((Counter(words) & Counter(other)).values())
            assert common <= 0.8 * max(len(words), len(other)), (words, other)
    assert name == "stream" or (len(prompt.templates) >= 5 and len(prompt.unseen) >= 2)


def test_every_shipped_prompt_is_of_a_task_of_its_name():
    assert {path.stem for path in prompts_folder().glob("*.yaml")} == set(TASKS)


@every_task
def test_no_prompt_depends_on_what_its_task_does_not_give(setting, name):
    data, _, _, renderer = setting
    prompt, task = load_prompt(name), TASKS[name]
    wordings = (*prompt.templates, *prompt.unseen)
    told = {column: [False] * len(wordings) for column in task.given}
    for place, row in enumerate(task_rows(name, data, 6, limit=400)[::20]):
        row = row | {"variation": place}
        for number, template in enumerate(wordings):
            text, answer = renderer.render(prompt, row, template)
            assert "{" not in text + answer and "None" not in text + answer and answer.strip()
            if row["targets"]:
                other = row | {"targets": changed(data, row, "targets")}
                assert renderer.prompt(prompt, other, template) == text
                answered = renderer.completion(prompt, other, template)
                # The title prompts answer with the item that they are about.
                assert answered != answer or name == "title_to_item" or not task.ends_with_item
            for column in set(row) - FREE - set(task.given):
                other = row | {column: changed(data, row, column)}
                assert renderer.prompt(prompt, other, template) == text, column
            for column in task.given:
                other = row | {column: changed(data, row, column)}
                told[column][number] |= renderer.prompt(prompt, other, template) != text
    # The other way round: every wording speaks of all that its task gives.
    assert all(all(numbers) for numbers in told.values()), told


@every_task
def test_every_wording_depends_on_the_history_where_there_is_one(setting, name):
    data, _, _, renderer = setting
    prompt = load_prompt(name)
    rows = [row for row in task_rows(name, data, 6, limit=60) if row["history"]]
    older = [row | {column: row[column][:1] for column in ("history", "behaviours")} for row in rows]
    for template in (*prompt.templates, *prompt.unseen):
        texts, others = ([renderer.prompt(prompt, row, template) for row in some] for some in (rows, older))
        assert not rows or texts != others


# What is right


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.score])
def test_a_rows_own_answer_has_the_full_score_and_others_have_not(setting, name):
    data, _, _, renderer = setting
    prompt, task, rows = load_prompt(name), TASKS[name], task_rows(name, data, 6)
    answers = [
        row["targets"][0]
        if task.ends_with_item
        else renderer.completion(prompt, row).removesuffix(renderer.tokenizer.eos_token)
        for row in rows
    ]
    assert rows and all(task.score(renderer.catalogue, *pair) == 1 for pair in zip(rows, answers))
    others = [task.score(renderer.catalogue, *pair) for pair in zip(rows, answers[1:] + answers[:1])]
    assert all(0 <= score <= 1 for score in others) and min(others) < 1


def test_tasks_that_are_answered_with_an_item_know_what_is_right():
    assert all(task.score for task in TASKS.values() if task.ends_with_item)


# Words


@every_task
def test_answers_in_words_hold_no_semantic_id(setting, name):
    data, _, _, renderer = setting
    prompt = load_prompt(name)
    rows = task_rows(name, data, 6, limit=60)
    answers = [renderer.render(prompt, row, number)[1] for row in rows for number in range(len(prompt.templates))]
    assert in_words(prompt) == (not any(map(SEMID.search, answers)) and name != "next_behaviour")


def test_a_wording_of_its_own_may_answer_with_a_semantic_id():
    wordings = [{"prompt": "What is {item} called?", "completion": text} for text in ("{title}", "{title} ({item})")]
    assert in_words(Prompt.from_dict({"task": "item_to_title", "templates": wordings[:1]}))
    assert not in_words(Prompt.from_dict({"task": "item_to_title", "templates": wordings}))


# Splits


@every_task
def test_no_evaluation_interaction_is_in_a_training_row(setting, name):
    data, index, _, renderer = setting
    evaluated = {}
    for split in (data.valid, data.test):
        for user, target in zip(split["user_id"].to_pylist(), split["target"].to_pylist()):
            assert target.startswith(f"{user}-evaluated")
            evaluated.setdefault(user, set()).add(target)
    assert len(evaluated) == USERS and all(len(items) == 2 for items in evaluated.values())
    prompt, of_users = load_prompt(name), 0
    for seed in range(3):
        for place, row in enumerate(task_rows(name, data, 6, seed=seed)):
            if not row.get("user_id"):
                assert not row["history"]
                continue
            of_users += 1
            own = evaluated[row["user_id"]]
            assert not own & {*row["history"], *row["targets"], row.get("about")}
            text = "".join(renderer.render(prompt, row | {"variation": place}, place % len(prompt.templates)))
            assert not {index.encode(item) for item in own} & set(SEMID.findall(text))
            assert not [item for item in own if renderer.catalogue.titles[item] in text]
    assert bool(of_users) == ("user_id" in task_rows(name, data, 6, limit=1)[0])


# Labels


@every_task
def test_only_the_answer_is_learned(setting, name):
    _, index, tokenizer, renderer = setting
    prompt, task = load_prompt(name), TASKS[name]
    data_set = built(setting, name)
    for row in _some(data_set):
        first = row["labels"].count(-100)
        assert row["labels"] == [-100] * first + row["input_ids"][first:]
        asked, answer = (tokenizer.decode(row["input_ids"][s]) for s in (slice(first), slice(first, None)))
        template = row["variation"] % len(prompt.templates)
        assert (asked, answer) == renderer.render(prompt, row, template)
        assert asked.endswith("<|assistant|>" + (renderer.catalogue.history(row, "") if name == "stream" else ""))
        turns = len(prompt.templates[template].turns)
        assert asked.count("<|user|>") == (turns + 1) // 2 and asked.count("<|assistant|>") == (turns + 1) // 2
        if task.ends_with_item:  # nothing is learned after a Semantic ID
            assert answer.endswith(index.encode(row["targets"][-1]))
        else:
            assert answer.endswith(tokenizer.eos_token) and answer.count(tokenizer.eos_token) == 1
        assert answer.startswith("<think>\n") == prompt.thinking
    assert name != "conversation" or {len(t.turns) for t in prompt.templates} == {3, 5}


def _some(data_set, count: int = 60) -> list[dict]:
    return [data_set[int(place)] for place in np.linspace(0, len(data_set) - 1, min(count, len(data_set)))]


@every_task
def test_every_item_of_an_answer_is_a_target(setting, name):
    _, index, _, renderer = setting
    if TASKS[name].ends_with_item or name == "like_but_several":
        prompt, items = load_prompt(name), {index.encode(item): item for item in index.items}
        for row in _some(built(setting, name)):
            answer = renderer.completion(prompt, row, row["variation"] % len(prompt.templates))
            assert [items[semid] for semid in SEMID.findall(answer)] == row["targets"]
            if "behaviour" in name:  # as the history is written
                assert answer == f"<|{row['target_behaviours'][0]}|>{index.encode(row['targets'][0])}"


# Length, epochs, draws


@every_task
def test_truncation_keeps_the_instruction_and_the_newest_history(setting, name):
    _, _, tokenizer, renderer = setting
    prompt, whole = load_prompt(name), built(setting, name)
    rows = list(whole)
    assert reader_of(whole).truncated == 0 and reader_of(whole).read == len(whole)
    if not any(row["history"] for row in rows):
        return
    kept = slice(-1, None) if name != "stream" else slice(0)  # the windows of a stream begin with one item
    bare = [row | {column: row[column][kept] for column in ("history", "behaviours")} for row in rows]
    texts = ["".join(renderer.render(prompt, row, row["variation"] % len(prompt.templates))) for row in bare]
    least = max(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))
    lengths = [row["length"] for row in rows]
    limit = min(max(least, int(np.quantile(lengths, 0.6))), max(lengths) - 1)
    short = built(setting, name, max_length=limit)
    cut = 0
    for row, full in zip(short, rows):
        assert len(row["input_ids"]) <= limit
        assert (row["user_id"], row["targets"], row.get("about")) == (
            full["user_id"], full["targets"], full.get("about"))  # fmt: skip
        assert (len(row["history"]) < len(full["history"])) == (full["length"] > limit)
        assert full["history"][len(full["history"]) - len(row["history"]) :] == row["history"]
        assert len(row["behaviours"]) == len(row["history"])
        asked = tokenizer.decode(row["input_ids"][: row["labels"].count(-100)])
        assert asked == renderer.prompt(prompt, row, row["variation"] % len(prompt.templates))
        cut += full["length"] > limit
    assert 0 < cut < len(rows) and reader_of(short).truncated == cut and reader_of(short).read == len(rows)


@every_task
def test_seed_and_epoch_decide_what_is_read(setting, name):
    one, two, other = built(setting, name), built(setting, name), built(setting, name, seed=1)
    places = [int(place) for place in np.linspace(0, min(len(one), len(other)) - 1, 40)]
    read = lambda data_set: data_set.__getitems__(places)  # noqa: E731
    first = read(one)
    assert first == read(two) != read(other)
    reader_of(one).set_epoch(1)
    second = read(one)
    assert first != second or name == "stream"  # one template, nothing varies
    assert [row["user_id"] if "user_id" in row else row["about"] for row in first] == [
        row["user_id"] if "user_id" in row else row["about"] for row in second
    ]
    reader_of(two).set_epoch(1)
    assert read(two) == second
    reader_of(one).set_epoch(0)
    assert read(one) == first


@every_task
def test_shares_caps_and_items_hold_in_every_epoch(setting, name):
    def drawn(data_set, epoch):
        reader_of(data_set).set_epoch(epoch)
        names = ("user_id", "about", "history", "targets")
        return [[row.get(column) for column in names] for row in data_set]

    count = len(built(setting, name))
    half = built(setting, name, weight=0.5)
    epochs = [drawn(half, epoch) for epoch in range(2)]
    assert len(half) == round(count / 2) and epochs[0] != epochs[1] and epochs[0] == drawn(half, 0)
    capped = built(setting, name, cap=7)
    assert len(capped) == 7 and len({str(drawn(capped, epoch)) for epoch in range(3)}) > 1
    few = built(setting, name, max_per_item=2)
    for epoch in range(2):
        rows = drawn(few, epoch)
        assert len(rows) == len(few)
        if TASKS[name].ends_with_item or "about" in few[0]:
            first = [targets[0] if targets else about for _, about, _, targets in rows]
            assert max(Counter(first).values()) <= 2


def test_kinds_of_wishes_have_weights_of_their_own(setting):
    data, index, _, renderer = setting
    entries = [{"prompt": "like_but", "wishes": ["other_brand"], "weight": 2}, "like_but:0.5"]
    some, all_of_them = (build_dataset(data, [TaskMix.parse(entry)], renderer, 6, 400) for entry in entries)
    kinds = Counter(kinds_of(row["wish"]) for row in all_of_them)
    assert {kinds_of(row["wish"]) for row in some} == {"other_brand"} and len(kinds) > 3
    with pytest.raises(ValueError, match=r"wishes is a list, \[other_brand\]"):
        TaskMix.parse({"prompt": "like_but", "wishes": "other_brand"})
    every = [row for row in task_rows("like_but", data, 6) if row["wish"] == "other_brand"]
    assert len(some) == 2 * len(every)
    for task, wishes, why in (
        ("like_but", ["nicer"], "no row with one of them"),
        ("next_item", ["cheaper"], "has none"),
    ):
        with pytest.raises(ValueError, match=why):
            build_dataset(data, [TaskMix.parse({"prompt": task, "wishes": wishes})], renderer, 6, 400)


def test_general_conversations_are_learned_on_their_last_turn(setting, tmp_path):
    data, index, tokenizer, renderer = setting
    talks = [
        [{"role": "user", "content": f"Add {n} and 1."}, {"role": "assistant", "content": f"It is {n + 1}."}]
        for n in range(8)
    ]
    talks[0] = [{"role": "system", "content": "Be kind."}, *talks[1], *talks[0]]
    file = tmp_path / "talks.jsonl"
    file.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    mixture = parse_mixture(["next_item:0.1", {"chat": str(file), "cap": 6}], load_prompt("next_item"), index)
    data_set = build_dataset(data, mixture, renderer, 6, 400)
    learned = []
    for epoch in range(4):
        reader_of(data_set).set_epoch(epoch)
        rows = [row for row in data_set if row["task"] == "chat"]
        assert len(rows) == 6
        for row in rows:
            first = row["labels"].count(-100)
            asked, answer = (tokenizer.decode(row["input_ids"][s]) for s in (slice(first), slice(first, None)))
            learned.append(answer)
            number = int(re.findall(r"Add (\d+)", asked)[-1])
            assert answer == f"It is {number + 1}.{tokenizer.eos_token}" and asked.endswith("<|assistant|>")
            assert number or ("Be kind." in asked and "It is 2." in asked)
    assert len(set(learned)) == 8
    good, question = json.dumps({"messages": talks[1]}), talks[1][:1]
    silent = [*question, {"role": "assistant", "content": None}]
    for talk, why in ((question, "it should end with the assistant's turn"), (silent, "turn of the assistant has no")):
        file.write_text("".join(line + "\n" for line in [*[good] * 500, json.dumps({"messages": talk})]))
        with pytest.raises(ValueError, match=f"row 501: .*{why}"):
            build_dataset(data, mixture[:1] + [TaskMix.parse({"chat": str(file)})], renderer, 6, 400)


def test_conversations_that_are_too_long_lose_an_end(setting, tmp_path):
    data, _, tokenizer, renderer = setting
    asked, told = "count to " * 40, "one two three " * 40
    talks = [("Hi.", told), (asked, "Done."), (asked, told)]
    file = tmp_path / "talks.jsonl"
    roles = ("user", "assistant")
    talks = [[{"role": r, "content": c} for r, c in zip(roles, talk)] for talk in talks]
    file.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    data_set = build_dataset(data, [TaskMix.parse({"chat": str(file)})], renderer, 6, 30)
    answers = []
    for row, talk in zip(data_set, talks, strict=True):
        prompt, answer = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in renderer.chat(talk))
        first = row["labels"].count(-100)
        assert len(row["input_ids"]) == 30 and row["input_ids"][:first] == prompt[-first:]
        assert row["labels"][first:] == row["input_ids"][first:] == answer[: 30 - first]
        answers.append((first == len(prompt), 30 - first == len(answer), first))
    assert answers[0][0] and answers[1][1] and answers[2][2] == 15
    assert reader_of(data_set).truncated == reader_of(data_set).read == 3


def test_one_item_with_too_long_a_title_is_found_before_training(setting, monkeypatch):
    monkeypatch.setattr("llmrec.instructions.dataset.PROBED", 2)
    data, index, tokenizer, renderer = setting
    titles = data.items["title"].to_pylist()
    titles[len(titles) // 2] = "endless " * 400
    items = data.items.set_column(data.items.schema.get_field_index("title"), "title", pa.array(titles))
    longer = Renderer(tokenizer, Catalogue(index, items))
    item = data.items["item_id"][len(titles) // 2].as_py()
    with pytest.raises(ValueError, match=f"'item_to_title' about item '{item}' has .* tokens without a history"):
        build_dataset(dataclasses.replace(data, items=items), [TaskMix.parse("item_to_title")], longer, 6, 400)


def test_a_description_without_spaces_is_shortened_too():
    assert len(short_text("好" * 2000)) == 384
    assert short_text(" ".join(["word"] * 60)) == " ".join(["word"] * 48)


# Documentation


def test_the_page_of_tasks_is_what_its_command_writes_now():
    page = runpy.run_path(str(ROOT / "scripts" / "write_tasks.py"))["page"]
    text = page()
    assert text == (ROOT / "docs" / "reference" / "tasks.md").read_text(encoding="utf-8")
    assert all(f"## {name}\n" in text for name in TASKS)
