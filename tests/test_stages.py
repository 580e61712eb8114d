import hashlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save_file
from tiny import tiny_data, tiny_index, write_tiny_base

from llmrec.data.provenance import can_reuse
from llmrec.files import (
    Lock,
    check_readable,
    fingerprint,
    read_json,
    read_parquet,
    save_state,
    write_json,
    write_parquet,
)
from llmrec.recommenders import check_trained_on
from llmrec.stages import RECORD, begin_stage, content_of, finish_stage

ROOT = Path(__file__).parents[1]
WRITER = """if True:
    import os, sys, time
    from llmrec.stages import begin_stage
    begin_stage(sys.argv[1], {"a": 1})
    child = os.fork()  # as a data loader's worker, which may outlive what started it
    if child:
        print(child, flush=True)
    time.sleep(60)
    """


@pytest.fixture
def writer(tmp_path):
    """A process that is at work on a stage."""
    command = [sys.executable, "-c", WRITER, str(tmp_path / "stage")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": str(ROOT)}) as process:
        child = int(process.stdout.readline())
        yield process
        process.kill()
        os.kill(child, signal.SIGKILL)


def test_a_stage_is_new_then_resumed_then_done_and_refuses_other_settings(tmp_path):
    folder = tmp_path / "stage"
    assert begin_stage(folder, {"a": 1}) == "new"
    assert begin_stage(folder, {"a": 1}) == "resume"
    finish_stage(folder, figure=2)
    assert begin_stage(folder, {"a": 1}) == "done"
    with pytest.raises(ValueError, match="other settings .a."):
        begin_stage(folder, {"a": 2})
    assert begin_stage(folder, {"a": 2}, overwrite=True) == "new"


def test_what_is_overwritten_lies_aside_until_its_successor_is_finished(tmp_path):
    folder, aside = tmp_path / "stage", tmp_path / "stage.old"
    begin_stage(folder, {"a": 1})
    (folder / "part.txt").write_text("unfinished")
    assert begin_stage(folder, {"a": 2}, overwrite=True) == "new" and not aside.exists()
    (folder / "result.txt").write_text("hours of work")
    finish_stage(folder)
    for attempt in (3, 4):  # both fail, the second also replaces what the first left
        assert begin_stage(folder, {"a": attempt}, overwrite=True) == "new"
        (folder / "part.txt").write_text("unfinished")
        assert (aside / "result.txt").read_text() == "hours of work"
    finish_stage(folder)
    assert not aside.exists() and (folder / "part.txt").exists()


def test_a_backup_of_the_same_name_is_never_removed(tmp_path):
    folder, mine = tmp_path / "stage", tmp_path / "stage.old"
    mine.mkdir()
    (mine / "backup.txt").write_text("precious")
    begin_stage(folder, {"a": 1})
    finish_stage(folder)
    with pytest.raises(ValueError, match="stage.old, which exists: move that elsewhere"):
        begin_stage(folder, {"a": 2}, overwrite=True)
    assert (mine / "backup.txt").read_text() == "precious" and begin_stage(folder, {"a": 1}) == "done"


def test_a_run_that_wrote_nothing_is_in_nobodys_way(tmp_path):
    folder = tmp_path / "stage"
    assert begin_stage(folder, {"a": "typo"}) == "new"
    assert begin_stage(folder, {"a": "corrected"}) == "new"
    assert begin_stage(folder, {"a": "corrected"}) == "resume"
    (folder / "part.txt").write_text("hours of work")
    with pytest.raises(ValueError, match="other settings .a."):
        begin_stage(folder, {"a": "typo"})
    (folder / "part.txt").unlink()
    finish_stage(folder)
    with pytest.raises(ValueError, match="other settings .a."):
        begin_stage(folder, {"a": "typo"})


def test_the_content_of_files_that_settings_may_name(tmp_path):
    file = tmp_path / "prompt.yaml"
    file.write_text("one")
    before = content_of("a_column", None, str(file))
    assert content_of("a_column", None, "") is None and before == content_of(str(file))
    file.write_text("two")
    assert content_of(str(file)) != before


def test_files_of_somebody_else_are_never_removed(tmp_path):
    (tmp_path / "mine.csv").write_text("precious")
    with pytest.raises(ValueError, match="files that no stage wrote"):
        begin_stage(tmp_path, {}, overwrite=True)
    with pytest.raises(ValueError, match="no prepared data"):
        can_reuse(tmp_path, {}, "")
    with pytest.raises(ValueError, match=r"no prepared data \(mine.csv\)"):
        tiny_data().save(tmp_path)
    with pytest.raises(ValueError, match="files of somebody else"):
        save_state(tmp_path, {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["mine.csv"]
    assert (tmp_path / "mine.csv").read_text() == "precious"
    for write in (lambda file: begin_stage(file, {}, overwrite=True), tiny_data().save):
        with pytest.raises(ValueError, match="mine.csv is a file, and should be a folder"):
            write(tmp_path / "mine.csv")


def test_where_the_output_is_a_link_what_it_points_to_is_replaced(tmp_path):
    link = tmp_path / "out"
    link.symlink_to(tmp_path / "disk")  # which is not there yet
    for attempt in range(3):
        assert begin_stage(link, {"a": attempt}, overwrite=True) == "new"
        finish_stage(link)
    (tmp_path / "data").symlink_to(tmp_path / "disk2")
    for _ in range(2):
        tiny_data().save(tmp_path / "data")
    links = {path.name: path.is_symlink() for path in tmp_path.iterdir()}
    assert links == {"out": True, "disk": False, "data": True, "disk2": False}


@pytest.mark.parametrize("change", [{"settings": []}, {"files": []}, {"complete": "yes"}])
def test_a_record_of_other_kinds_is_named(tmp_path, change):
    begin_stage(tmp_path / "stage", {"a": 1})
    finish_stage(tmp_path / "stage")
    record = tmp_path / "stage" / "stage.json"
    write_json(record, read_json(record) | change)
    with pytest.raises(ValueError, match="stage.json is not what a stage wrote"):
        begin_stage(tmp_path / "stage", {"a": 1})


def test_evaluation_refuses_a_model_of_other_data(tmp_path):
    data = tiny_data()
    folder = write_tiny_base(tmp_path / "base", data, tiny_index(data))
    check_trained_on(folder, data)
    with pytest.raises(ValueError, match="trained on other data"):
        check_trained_on(folder, tiny_data(num_users=41))


def test_one_process_writes_a_stage_and_a_killed_one_is_in_nobodys_way(tmp_path, writer):
    folder = tmp_path / "stage"
    with pytest.raises(ValueError, match=rf"stage is being written by process {writer.pid} on \S+ since 20..-"):
        begin_stage(folder, {"a": 1})
    with pytest.raises(ValueError, match=f"process {writer.pid}"):
        begin_stage(tmp_path / "x" / ".." / "stage", {"a": 2}, overwrite=True)
    assert begin_stage(folder, {"a": 1}, writes=False) == "resume"  # another of the processes launched together
    half = tmp_path / ".stage.partial-12345678", folder / ".part.parquet.partial-12345678"
    for left in half:
        left.mkdir()
    writer.kill()
    writer.wait()
    assert begin_stage(folder, {"a": 1}) == "resume" and not any(left.exists() for left in half)
    finish_stage(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["stage"]
    with Lock(folder):  # whoever writes: what is finished can be looked at
        assert begin_stage(folder, {"a": 1}) == "done"


def test_a_lock_ends_with_its_block_and_says_where_it_cannot_be(tmp_path):
    with Lock(tmp_path / "list.parquet"), pytest.raises(ValueError, match=f"process {os.getpid()} on"):
        Lock(tmp_path / "list.parquet")
    with pytest.raises(RuntimeError, match="mine"), Lock(tmp_path / "list.parquet"):
        raise RuntimeError("mine")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be locked .*look who may write"):
        Lock(tmp_path / "file" / "stage")


def test_a_run_killed_before_it_recorded_anything_is_in_nobodys_way(tmp_path):
    (tmp_path / "stage" / f".{RECORD}.partial-12345678").mkdir(parents=True)
    assert begin_stage(tmp_path / "stage", {"a": 1}) == "new"


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def longer(path):
    path.write_bytes(path.read_bytes() + b"\0" * 7)


@pytest.mark.parametrize(
    "name, damage",
    [
        (name, damage)
        for name in ("a.parquet", "b/c.safetensors", "d.npy", "e.json", "f.jinja")
        for damage in (cut, os.remove)
    ]
    + [("b/c.safetensors", longer), ("d.npy", longer)],
)
def test_done_is_believed_only_of_what_can_be_read_whole(tmp_path, name, damage):
    folder = tmp_path / "stage"
    begin_stage(folder, {"a": 1})
    (folder / "b").mkdir()
    write_parquet(folder / "a.parquet", pa.table({"x": range(1000)}))
    save_file({"x": np.zeros(100)}, folder / "b/c.safetensors")
    np.save(folder / "d.npy", np.zeros(100))
    write_json(folder / "e.json", {"x": 1})
    (folder / "f.jinja").write_text("{{ messages }}")
    finish_stage(folder)
    write_json(folder / "e.json", {"x": "edited"})
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3/trainer_state.json").write_text("{")
    assert begin_stage(folder, {"a": 1}) == "done"
    damage(folder / name)
    with pytest.raises(
        ValueError, match=rf"stage/{name} .*restore it, or pass --overwrite true to make .*stage again"
    ):
        begin_stage(folder, {"a": 1})
    assert begin_stage(folder, {"a": 1}, overwrite=True) == "new"
    finish_stage(folder)


@pytest.mark.parametrize("text", ["{}", '{"settings": {}}'])
def test_a_record_that_is_none_is_named(tmp_path, text):
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(ValueError, match="stage.json is not what a stage wrote"):
        begin_stage(tmp_path, {})


def test_a_byte_that_changed_in_a_parquet_file_is_noticed(tmp_path):
    path = tmp_path / "x.parquet"
    write_parquet(path, pa.table({"x": np.random.default_rng(0).random(1000)}))
    changed = bytearray(path.read_bytes())
    changed[len(changed) // 3] ^= 1
    path.write_bytes(changed)
    check_readable(path)  # looks at the ends only
    with pytest.raises(ValueError, match="x.parquet is not a readable parquet file"):
        read_parquet(path)


def test_every_recipe_that_writes_takes_the_lock_of_its_output():
    takes = re.compile(r"begin_stage\(|with Lock\(|TrainingRun\(")
    recipes = {path.stem: path.read_text(encoding="utf-8") for path in ROOT.glob("recipes/*.py")}
    only_print = {"ask", "recommend"}
    assert {name for name, text in recipes.items() if not takes.search(text)} == only_print


def test_a_fingerprint_does_not_tell_how_a_table_is_cut():
    table = pa.table({"item_id": [["a"], [], ["b", "c"], None], "number": [1, None, 3, 4]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content = str(table.schema).encode() + sink.getvalue().to_pybytes() + b"\0"
    assert fingerprint(table) == hashlib.sha256(content).hexdigest()[:16]  # as files of 0.2 hold it
    pieces = [table.slice(0, 1), table.slice(1, 0), table.slice(1)]
    assert fingerprint("a", iter(pieces)) == fingerprint("a", pa.concat_tables(pieces)) == fingerprint("a", table)
    numbers = pa.array(np.arange(2**20 + 3))
    long = pa.table({"number": numbers, "text": numbers.cast(pa.string())})
    cuts = [long.slice(0, 5), long.slice(5, 2**20 - 5), long.slice(2**20)]
    assert fingerprint(iter(cuts)) == fingerprint(pa.concat_tables(cuts)) == fingerprint(long)
    assert fingerprint(long.slice(0, 2**20)) != fingerprint(long) != fingerprint(long.slice(1))


def test_what_arrow_refuses_of_one_row_is_said(monkeypatch):
    def refuse(tables):
        raise pa.ArrowInvalid("no such chunk")

    monkeypatch.setattr("llmrec.files.pa.concat_tables", refuse)
    with pytest.raises(pa.ArrowInvalid, match="no such chunk"):
        fingerprint(pa.table({"a": [1, 2, 3]}))
