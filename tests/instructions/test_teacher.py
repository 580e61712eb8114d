"""Texts of a teacher model and from columns: which rows, what is dropped, and runs that were killed."""

import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from tiny import MODEL, tiny_data, tiny_index, write_tiny_base
from transformers import AutoTokenizer
from trl import TrlParser

from llmrec.data.prepared import SEQUENCES
from llmrec.files import read_json, read_parquet
from llmrec.instructions import Catalogue, Texts, load_prompt, teacher
from llmrec.instructions.compose import relevant_history
from llmrec.instructions.tasks import TASKS
from llmrec.instructions.teacher import (
    columns_writer,
    question,
    rows_to_write,
    teacher_writer,
    unnamed_index,
    write_texts,
)
from llmrec.models.from_scratch import model_from_config, train_tokenizer
from llmrec.recommenders import LLMRecommender
from llmrec.serving import writers
from llmrec.serving.writers import load_writer

ROOT = Path(__file__).parents[2]
KINDS = ("query", "intention", "preference", "rationale")
DATA = tiny_data()
CATALOGUE = Catalogue(unnamed_index(DATA.items), DATA.items)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A real model that answers nonsense."""
    folder = tmp_path_factory.mktemp("teacher")
    tokenizer = train_tokenizer(DATA.items["title"].to_pylist(), 800)
    model_from_config(MODEL | {"initializer_range": 0.5}, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("generate_rationales", ROOT / "recipes/generate_rationales.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(recipe, tmp_path, **fields):
    """As from the command line: the YAML is parsed by TRL."""
    data, config = tmp_path / "data", tmp_path / "config.yaml"
    if not data.exists():
        DATA.save(data)
    output = Path(fields.setdefault("output_dir", str(tmp_path / "texts")))
    config.write_text(yaml.safe_dump({"data_dir": str(data), **fields}))
    recipe.main(TrlParser((recipe.RationaleArguments,)).parse_args_and_config(["--config", str(config)])[0])
    return read_parquet(output / "texts.parquet").to_pylist()


def sampling(model, **changes):
    return {"model_name_or_path": model, "temperature": 1.0, "max_new_tokens": 8, "batch_size": 4, **changes}


def shown(items, text):
    return [item for item in items if f"{CATALOGUE.titles[item]}," in text]


def test_what_the_teacher_is_asked():
    row = {"user_id": "u", "history": [f"item-{i:02d}" for i in range(16)], "targets": ["item-16"], "about": "item-16"}
    asked = {kind: question(load_prompt(f"teacher/{kind}"), kind, CATALOGUE, row) for kind in KINDS}
    relevant = relevant_history(CATALOGUE, row["history"], "item-16", 10)
    assert len(relevant) == 10 and "item-13" in relevant and "item-02" not in relevant
    assert shown(row["history"], asked["rationale"]) == relevant
    assert shown(row["history"], asked["preference"]) == row["history"]
    assert shown(row["history"], asked["query"]) == shown(row["history"], asked["intention"]) == []
    for kind in ("rationale", "query", "intention"):
        assert shown(["item-16"], asked[kind]) == ["item-16"]
    assert "item-16" not in asked["preference"] and not shown(["item-16"], asked["preference"])
    other = question(load_prompt("teacher/preference"), "preference", CATALOGUE, row | {"targets": ["item-20"]})
    assert other == asked["preference"]


@pytest.mark.parametrize("kind", KINDS)
def test_only_training_rows_are_read(kind, tmp_path):
    poisoned = tiny_data()
    targets = pa.table(
        {"user_id": ["user-0"], "history": [["nothing"]], "target": ["nothing"], "timestamp": [0]}
    ).cast(poisoned.valid.schema)
    poisoned.valid = poisoned.test = targets
    tables = []
    for number, data in enumerate((DATA, poisoned)):
        rows = rows_to_write(data, kind, max_rows=30)
        write_texts(tmp_path / str(number), data, rows, kind, CATALOGUE, columns_writer(kind, CATALOGUE))
        tables.append(read_parquet(tmp_path / str(number) / "texts.parquet"))
    assert tables[0].equals(tables[1])
    train = dict(zip(DATA.train["user_id"].to_pylist(), DATA.train["item_ids"].to_pylist()))
    for row in tables[0].to_pylist():
        assert row["kind"] == kind
        assert row["user_id"] == "" if kind == "query" else row["item_id"] in train[row["user_id"]]


@pytest.mark.parametrize(
    "kind, task", [("query", "query_to_item"), ("intention", "history_intention_to_item"),
                   ("preference", "history_to_preference"), ("rationale", "think_next_item")]
)  # fmt: skip
def test_tasks_find_what_was_written(kind, task, tmp_path):
    rows = rows_to_write(DATA, kind)
    marks = [f"{kind} number {i}" for i in range(rows.num_rows)]
    write_texts(tmp_path, DATA, rows, kind, CATALOGUE, lambda _, numbers: [marks[i] for i in numbers])
    catalogue = Catalogue(tiny_index(DATA), DATA.items, texts=Texts.load(tmp_path))
    found = set()
    for row in teacher.Sequences(DATA.train).rows(rows):
        found.add(TASKS[task].slots(catalogue, row, "")[kind])
    assert found <= set(marks) and len(found) > 20


def repeating_data(sequences):
    """DATA with other training sequences, as (user, items) each."""
    data = tiny_data()
    users, items = zip(*sequences)
    times = [list(range(len(each))) for each in items]
    data.train = pa.table(
        {"user_id": users, "item_ids": items, "timestamps": times, "num_context": [1] * len(users)}
    ).cast(SEQUENCES)
    return data


def places_quoted(kind, task, data, rows, texts):
    """(place of the target of a row, place that the text it quotes was written for), for all rows that quote one."""
    catalogue = Catalogue(tiny_index(data), data.items, texts=texts)
    read = teacher.Sequences(data.train).rows(rows)
    said = [TASKS[task].slots(catalogue, row, "")[kind] for row in read]
    places = rows["middle"].to_pylist()
    return [(place, int(text.split()[-1])) for place, text in zip(places, said) if text.startswith("written at ")]


@pytest.mark.parametrize(
    "kind, task", [("preference", "preference_to_item"), ("rationale", "think_next_item"),
                   ("intention", "history_intention_to_item")]
)  # fmt: skip
def test_no_row_quotes_what_was_written_of_another_time(kind, task, tmp_path, caplog):
    draw, ids = random.Random(0), DATA.items["item_id"].to_pylist()
    walk = [*ids[:6], ids[0], ids[9]]  # its history of 5 before the last target does not show that ids[0] was there
    others = [(f"user-{n % 20}", draw.sample(ids, 6) + draw.sample(ids, 3)) for n in range(40)]
    twice = [("twice", [*ids[:4], ids[7]]), ("twice", [*ids[4:6], ids[7]])]
    data = repeating_data([("walker", walk), *twice, *others])
    rows = rows_to_write(data, kind, max_history=5)
    assert f"rows get no {kind}: their user took the item more than once" in caplog.text
    write = lambda _, numbers: [f"written at {rows['middle'][number]}" for number in numbers]  # noqa: E731
    write_texts(tmp_path, data, rows, kind, CATALOGUE, write)
    quoting = TASKS[task].rows(data, 5, None)
    quoted = places_quoted(kind, task, data, quoting, Texts.load(tmp_path))
    assert len(quoted) >= 5 and all(place == own for place, own in quoted)
    # A table of one's own, with a text for every row, has texts of another time, until those are left out.
    every = teacher.ROWS[kind](data, 5, None)
    keys = [teacher.key_of(kind, row) for row in teacher.Sequences(data.train).rows(every)]
    records = [
        {"kind": kind, "user_id": user, "item_id": item, "text": f"written at {place}"}
        for (user, item), place in zip(keys, every["middle"].to_pylist())
    ]
    own = Texts(pa.Table.from_pylist(records))
    assert any(place != other for place, other in places_quoted(kind, task, data, quoting, own))
    assert places_quoted(kind, task, data, quoting, own.without_repeats(data.train)) == quoted


def test_texts_of_items_stay_whoever_took_them_twice():
    data = repeating_data([("u", ["item-01", "item-02", "item-01"])])
    rows = [("query", "", "item-01"), ("preference", "", "item-01"), ("rationale", "u", "item-02"),
            ("rationale", "u", "item-01"), ("rationale", "v", "item-01")]  # fmt: skip
    records = [{"kind": kind, "user_id": user, "item_id": item, "text": "so"} for kind, user, item in rows]
    kept = Texts(pa.Table.from_pylist(records)).without_repeats(data.train).table.to_pylist()
    assert [record for record in records if record not in kept] == [records[3]]


def test_leaks_and_empty_texts_are_dropped_and_counted(tmp_path, caplog):
    rows = rows_to_write(DATA, "query")
    semid = CATALOGUE.semid

    def write(rows, numbers):
        texts = ["a thing to have"] * len(rows)
        texts[3] = f"buy the {CATALOGUE.titles[rows[3]['about']].upper()} today"
        texts[5], texts[7] = f"like {semid(rows[5]['about'])}", ""
        texts[9] = CATALOGUE.titles[rows[8]["about"]]  # another item's
        return texts

    with caplog.at_level("INFO", "llmrec.instructions.teacher"):
        found = write_texts(tmp_path, DATA, rows, "query", CATALOGUE, write)
    assert dict(found) == {"kept": 21, "leak": 2, "empty": 1}
    assert "21 texts; dropped 2 that leak and 1 that are empty" in caplog.text
    kept = Texts.load(tmp_path).table["item_id"].to_pylist()
    assert sorted(set(CATALOGUE.titles) - set(kept)) == ["item-03", "item-05", "item-07"]
    written = read_parquet(next((tmp_path / "shards").iterdir()))
    assert written["dropped"].to_pylist()[3:8] == ["leak", "", "leak", "", "empty"]
    with pytest.raises(ValueError, match=r"no text can be used \(0 leak, 24 are empty\)"):
        write_texts(tmp_path / "none", DATA, rows, "query", CATALOGUE, lambda rows, _: [""] * len(rows))


def test_a_killed_run_goes_on_and_equals_one_that_was_not(recipe, model, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher, "SHARD", 10)
    fields = sampling(model, kind="rationale", max_rows=34, seed=3)
    whole = run(recipe, tmp_path, **fields, output_dir=str(tmp_path / "whole"))
    shards = sorted((tmp_path / "whole/shards").iterdir())
    assert len(shards) == 4 and len({row["text"] for row in whole}) > 10

    real, calls = teacher.write_parquet, []

    def killed(path, table):
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(path, table)

    monkeypatch.setattr(teacher, "write_parquet", killed)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path, **fields)
    assert len(list((tmp_path / "texts/shards").iterdir())) == 2 and not (tmp_path / "texts/texts.parquet").exists()
    assert run(recipe, tmp_path, **fields) == whole
    assert len(calls) == 5  # two shards of the first run, one lost, the last two
    record = read_json(tmp_path / "texts/stage.json")
    assert record["complete"] and record["results"]["kept"] == len(whole)
    before = (tmp_path / "texts/texts.parquet").stat().st_mtime_ns
    assert run(recipe, tmp_path, **fields) == whole
    assert (tmp_path / "texts/texts.parquet").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="other settings"):
        run(recipe, tmp_path, **fields | {"seed": 4})


def test_answers_follow_from_their_own_rows(model):
    rows = teacher.Sequences(DATA.train).rows(rows_to_write(DATA, "preference", max_rows=9))
    write = load_writer(model, 8, temperature=1.0, batch_size=4)
    ask = teacher_writer("preference", CATALOGUE, load_prompt("teacher/preference"), write, seed=1)
    together = list(ask(rows, list(range(9))))
    assert together == [text for n, row in enumerate(rows) for text in ask([row], [n])]
    other = teacher_writer("preference", CATALOGUE, load_prompt("teacher/preference"), write, seed=2)
    assert list(other(rows, list(range(9)))) != together
    assert AutoTokenizer.from_pretrained(model).eos_token not in "".join(together)


@pytest.mark.parametrize(
    "opening, answer, text",
    [
        ("", "It is red.", "It is red."),
        ("", "<think>Okay.</think>It is red.", "It is red."),
        ("", "<think>Okay, they", ""),
        ("<think>\n", "Okay. They like\nred.\n</think>\n\nIt is red.", "It is red."),
        ("<think>\n", "Hm, </think> no. <think>Well.</think>It is red.", "It is red."),
        ("<think>\n", "Okay, they", ""),
        ("<think>\n\n</think>\n\n", "It is red.", "It is red."),
    ],
)
def test_thoughts_are_no_part_of_an_answer(opening, answer, text, tmp_path, monkeypatch, caplog):
    tokenizer = train_tokenizer(DATA.items["title"].to_pylist(), 800)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}" + f"{{{{ {opening!r} }}}}"
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(writers, "_transformers", lambda *_: lambda ids, seeds: [answer] * len(ids))
    write = load_writer(str(tmp_path), 96)
    assert [said.strip() for said in write(["What is it?", "And this?"])] == [text, text]
    warned = "always thinks before it answers" in caplog.text and "max_new_tokens (96)" in caplog.text
    assert warned == (opening == "<think>\n")


def test_semids_that_are_there_are_looked_for(recipe, tmp_path):
    index = tiny_index(DATA)
    index.save(tmp_path / "semids/semids.parquet", DATA.items)
    rows = run(recipe, tmp_path, kind="query", source="columns", semids=str(tmp_path / "semids"))
    assert len(rows) == 24 and {row["user_id"] for row in rows} == {""}
    write = lambda rows, _: [f"like {index.encode(row['about'])}" for row in rows]  # noqa: E731
    with pytest.raises(ValueError, match="24 leak"):
        table = rows_to_write(DATA, "query")
        write_texts(tmp_path / "leaks", DATA, table, "query", Catalogue(index, DATA.items), write)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"kind": "opinion", "source": "columns"}, "kind 'opinion' is not one of"),
        ({"source": "oracle"}, "source 'oracle' is not one of teacher, columns, reviews"),
        ({"source": "teacher"}, "give one with source: teacher"),
        ({"source": "columns", "model_name_or_path": "m"}, "none with others"),
        ({"source": "reviews", "kind": "query"}, "reviews is a parquet file: give one with source: reviews"),
        ({"source": "columns", "reviews": "r.parquet"}, "and none with others"),
        ({"source": "reviews", "reviews": "nowhere.parquet"}, "nowhere.parquet does not exist"),
        ({"source": "teacher", "model_name_or_path": "m", "backend": "ollama"}, "backend 'ollama' is not one of"),
        ({"source": "teacher", "model_name_or_path": "nowhere/at/all"}, "cannot be loaded to write texts"),
    ],
)
def test_bad_settings_are_named(recipe, tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        run(recipe, tmp_path, **fields)


def test_sft_quotes_the_texts_and_writes_a_folder_that_thinks(recipe, tmp_path):
    run(recipe, tmp_path, kind="rationale", source="columns")
    base = write_tiny_base(tmp_path / "base", DATA, tiny_index(DATA))
    config = tmp_path / "sft.yaml"
    fields = {
        "model_name_or_path": str(base),
        "data_dir": str(tmp_path / "data"),
        "output_dir": str(tmp_path / "model"),
        "tasks": ["think_next_item"],
        "recommend_prompt": "think_next_item",
        "texts": str(tmp_path / "texts"),
        "max_steps": 2,
        "max_length": 300,
        "validation_rows": 4,
        "per_device_train_batch_size": 2,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
    }
    config.write_text(yaml.safe_dump(fields))
    command = [sys.executable, str(ROOT / "recipes/sft.py"), "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "recall@10" in done.stdout
    recommender = LLMRecommender.from_pretrained(tmp_path / "model")
    recommender.config.max_thought_tokens = 5
    assert recommender.config.thoughts == 1 and len(recommender.think([["item-01"]])[0]) == 1
    assert len({item.item_id for item in recommender.recommend([["item-01"]], k=24)[0]}) == 24
    texts = Texts.load(tmp_path / "texts")
    row = {"user_id": "user-0", "history": ["item-01"], "targets": [texts.table["item_id"][0].as_py()]}
    quoting = LLMRecommender(
        recommender.model, recommender.tokenizer, recommender.index, DATA.items, recommender.config, texts=Texts(
            pa.table({"kind": ["rationale"], "user_id": [""], "item_id": row["targets"], "text": ["because it is so"]})
        )
    )  # fmt: skip
    assert quoting.renderer.completion(quoting.prompt, row).startswith("<think>\nbecause it is so\n</think>\n\n<")
    changed = texts.table.to_pylist()
    changed[0]["text"] = "another reason"
    Texts(pa.Table.from_pylist(changed)).save(tmp_path / "texts")
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode and "other settings (texts)" in refused.stderr
