"""A file of recommendations is what `recommend` gives row by row, also after a run that was killed."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import tiny_data, tiny_index, tiny_model, write_tiny_base

from llmrec.catalogue.filters import Filter
from llmrec.files import Lock
from llmrec.instructions import load_prompt
from llmrec.models.folder import RecommenderConfig
from llmrec.recommenders import LLMRecommender
from llmrec.recommenders.popularity import Popularity
from llmrec.serving.batch.parts import load
from llmrec.serving.batch.recommend_file import METADATA, RecommendFileArguments, main, recommend_file

DATA = tiny_data()
ITEMS = DATA.items["item_id"].to_pylist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_base(tmp_path_factory.mktemp("model"), DATA, tiny_index(DATA), head_dim=32)


@pytest.fixture(scope="module")
def recommender(folder):
    return LLMRecommender.from_pretrained(folder)


def rows_of(count: int = 60) -> pa.Table:
    """Users with histories of 0 to 8 items, and a column that nobody asked for."""
    rng = np.random.default_rng(0)
    histories = [rng.choice(ITEMS, number % 9).tolist() for number in range(count)]
    users, ages = [f"u{number}" for number in range(count)], pa.array(range(count), pa.int16())
    return pa.table({"user_id": users, "history": pa.array(histories, pa.list_(pa.string())), "age": ages})


@pytest.fixture
def users(tmp_path):
    pq.write_table(rows_of(), tmp_path / "users.parquet", row_group_size=25)
    return tmp_path / "users.parquet"


def assert_holds(output, rows, expected, titles=False):
    """The rows as they were, and the lists that are expected."""
    written = pq.read_table(output)
    assert written.select(rows.column_names).equals(rows)
    assert written["items"].type == pa.list_(pa.string())
    assert written["scores"].type == pa.list_(pa.float32())
    assert written["items"].to_pylist() == [[one.item_id for one in found] for found in expected]
    for scores, found in zip(written["scores"].to_pylist(), expected, strict=True):
        np.testing.assert_allclose(scores, [one.score for one in found], atol=1e-4)
    assert ("titles" in written.column_names) == titles
    if titles:
        assert written["titles"].to_pylist() == [[one.title for one in found] for found in expected]


class Interrupted:
    """A recommender that is stopped in its nth call."""

    def __init__(self, recommender, calls):
        self.recommender, self.index, self.calls = recommender, recommender.index, calls

    def recommend(self, *args, **kwargs):
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return self.recommender.recommend(*args, **kwargs)


@pytest.mark.parametrize("part_rows, batch_size", [(7, 3), (25, 512), (1000, 10)])
def test_rows_keep_their_order_and_get_the_lists_of_recommend(recommender, users, tmp_path, part_rows, batch_size):
    request = Filter(exclude_seen=True, where=[("price", "<", 15.0)])
    output = tmp_path / "lists.parquet"
    sizes = {"part_rows": part_rows, "batch_size": batch_size}
    assert recommend_file(recommender, users, output, 5, request, titles=True, **sizes, num_beams=8) == output
    rows = rows_of()
    expected = recommender.recommend(rows["history"].to_pylist(), 5, request, num_beams=8)
    assert_holds(output, rows, expected, titles=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lists.parquet", "users.parquet"]
    settings = json.loads(pq.read_schema(output).metadata[METADATA])
    assert (settings["k"], settings["semids"]) == (5, recommender.index.fingerprint)


def test_a_baseline_recommends_too(users, tmp_path):
    baseline = Popularity.fit(DATA)
    recommend_file(baseline, users, tmp_path / "lists.parquet", 4)
    assert_holds(tmp_path / "lists.parquet", rows_of(), baseline.recommend(rows_of()["history"].to_pylist(), 4))


def test_an_interrupted_run_goes_on_and_gives_the_same_file(recommender, users, tmp_path):
    whole, output = tmp_path / "whole.parquet", tmp_path / "lists.parquet"
    recommend_file(recommender, users, whole, 5, part_rows=10, batch_size=4)
    with pytest.raises(KeyboardInterrupt):  # 25 rows are parts of 10, 10 and 5: calls of 4, 4, 2, 4, 4, 2, 4
        recommend_file(Interrupted(recommender, 7), users, output, 5, part_rows=10, batch_size=4)
    parts = tmp_path / "lists.parquet.parts"
    assert not output.exists()
    assert sorted(path.name for path in parts.glob("*.parquet")) == ["000000.parquet", "000001.parquet"]

    with pytest.raises(
        ValueError, match=r"lists.parquet.parts was made with other settings \(filters, k\): remove it"
    ):
        recommend_file(recommender, users, output, 6, Filter(exclude_seen=True), part_rows=10)
    with pytest.raises(ValueError, match=r"other settings \(model\)"):
        recommend_file(recommender, users, output, 5, part_rows=10, settings={"model": "another"})

    rest = Interrupted(recommender, 3 + 3 + 3 + 3 - 1)  # 5, 10, 10, 5 and 10 rows are left
    with pytest.raises(KeyboardInterrupt):
        recommend_file(rest, users, output, 5, part_rows=10, batch_size=4)
    recommend_file(recommender, users, output, 5, part_rows=10, batch_size=4)
    assert output.read_bytes() == whole.read_bytes()
    assert not parts.exists()


def test_a_changed_input_is_other_settings(recommender, users, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        recommend_file(Interrupted(recommender, 1), users, tmp_path / "lists.parquet", part_rows=10)
    pq.write_table(rows_of(61), users, row_group_size=25)
    with pytest.raises(ValueError, match=r"other settings \(input\)"):
        recommend_file(recommender, users, tmp_path / "lists.parquet", part_rows=10)


def test_a_result_is_kept_and_nothing_of_others_is_touched(recommender, users, tmp_path):
    output = recommend_file(recommender, users, tmp_path / "lists.parquet", 5)
    before = output.stat().st_mtime_ns
    recommend_file(Interrupted(recommender, 0), users, output, 5)
    assert output.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"lists.parquet was made with other settings \(k\): remove it, or choose"):
        recommend_file(recommender, users, output, 6)
    with pytest.raises(ValueError, match="users.parquet exists and recommend_file did not make it"):
        recommend_file(recommender, users, users)
    foreign = tmp_path / "other.parquet.parts"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="other.parquet.parts holds files of somebody else"):
        recommend_file(recommender, users, tmp_path / "other.parquet")
    assert [path.name for path in foreign.iterdir()] == ["notes.txt"]


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def fewer_rows(path):
    pq.write_table(pq.read_table(path).slice(1), path)


def other_columns(path):
    pq.write_table(pq.read_table(path).drop_columns(["scores"]), path)


def rewritten(change):
    def damage(path):  # what the file says of itself is kept
        table = pq.read_table(path)
        pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), path)

    return damage


def no_items(table):
    empty = pa.array([[]] * len(table), pa.list_(pa.string()))
    return table.set_column(table.column_names.index("items"), "items", empty)


def other_order(table):
    return table.take(list(reversed(range(len(table)))))


def one_byte(path):
    changed = bytearray(path.read_bytes())
    changed[30] ^= 1  # in the first page: head and end are whole
    path.write_bytes(changed)


DAMAGE = [cut, fewer_rows, other_columns, one_byte, rewritten(no_items), rewritten(other_order)]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_part_or_a_result_is_believed_only_where_it_is_whole(recommender, users, tmp_path, damage):
    output = tmp_path / "lists.parquet"
    with pytest.raises(KeyboardInterrupt):
        recommend_file(Interrupted(recommender, 2), users, output, 5, part_rows=10)
    part = tmp_path / "lists.parquet.parts" / "000001.parquet"
    damage(part)
    with pytest.raises(ValueError, match=r"parts/000001.parquet is damaged.*remove it, and it is made"):
        recommend_file(recommender, users, output, 5, part_rows=10)
    part.unlink()
    recommend_file(recommender, users, output, 5, part_rows=10)
    whole = output.read_bytes()
    damage(output)
    with pytest.raises(ValueError, match=r"lists.parquet is damaged.*remove it, and the same command"):
        recommend_file(recommender, users, output, 5, part_rows=10)
    output.unlink()
    assert recommend_file(recommender, users, output, 5, part_rows=10).read_bytes() == whole


def test_a_part_is_that_of_its_own_rows_and_an_output_may_be_a_link(recommender, users, tmp_path):
    (tmp_path / "disk").mkdir()
    output = tmp_path / "lists.parquet"
    output.symlink_to(tmp_path / "disk" / "there.parquet")  # which is not there yet
    with pytest.raises(KeyboardInterrupt):
        recommend_file(Interrupted(recommender, 2), users, output, 5, part_rows=10)
    first, second = (tmp_path / "disk" / "there.parquet.parts" / f"00000{number}.parquet" for number in (0, 1))
    before = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(ValueError, match=r"000000.parquet was made with other settings \(part\): remove it"):
        recommend_file(recommender, users, output, 5, part_rows=10)
    first.write_bytes(before)
    recommend_file(recommender, users, output, 5, part_rows=10)
    assert output.is_symlink() and pq.read_table(output)["user_id"].equals(rows_of()["user_id"])
    (tmp_path / "file.parquet.parts").touch()
    with pytest.raises(ValueError, match="file.parquet.parts is a file, and should be a folder"):
        recommend_file(recommender, users, tmp_path / "file.parquet", 5)


@pytest.mark.parametrize("text", [b"", b"[]", b'{"k": 5', b"\xff"])
def test_damaged_settings_are_named(recommender, users, tmp_path, text):
    output = tmp_path / "lists.parquet"
    with pytest.raises(KeyboardInterrupt):
        recommend_file(Interrupted(recommender, 2), users, output, 5, part_rows=10)
    (tmp_path / "lists.parquet.parts/settings.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"the settings in \S+parts/settings.json are damaged .*: remove \S+parts$"):
        recommend_file(recommender, users, output, 5, part_rows=10)
    pq.write_table(rows_of().replace_schema_metadata({METADATA: text}), output)
    with pytest.raises(ValueError, match=r"the settings in \S+lists.parquet are damaged .*: remove \S+lists.parquet$"):
        recommend_file(recommender, users, output, 5, part_rows=10)


def test_two_runs_do_not_write_one_output(recommender, users, tmp_path):
    output = tmp_path / "lists.parquet"

    class Meanwhile(Interrupted):  # another run is started while this one is at work
        def recommend(self, *args, **kwargs):
            with pytest.raises(ValueError, match=rf"lists.parquet is being written by process {os.getpid()} on "):
                recommend_file(recommender, users, output, 5)
            return self.recommender.recommend(*args, **kwargs)

    recommend_file(Meanwhile(recommender, 0), users, output, 5)
    with Lock(output):  # what is there needs no lock to be looked at
        assert recommend_file(Interrupted(recommender, 0), users, output, 5) == output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lists.parquet", "users.parquet"]


def replaced(row: int, history) -> pa.Table:
    histories = rows_of()["history"].to_pylist()
    histories[row] = history
    return pa.table({"history": pa.array(histories, pa.list_(pa.string()))})


@pytest.mark.parametrize(
    "rows, message",
    [
        (None, "users.parquet does not exist"),
        (b"no parquet", "users.parquet is not a readable parquet file"),
        (
            rows_of().drop_columns("history"),
            r"has no column 'history' \(lists of item ids\); it has \['user_id', 'age'",
        ),
        (pa.table({"history": ["item-01"]}), r"column 'history' is string, it should be list<string>"),
        (pa.table({"history": [[1, 2]]}), r"column 'history' is list<\w+: int64>, it should be list<string>"),
        (rows_of().append_column("scores", rows_of()["age"]), "has a column 'scores' already: rename it"),
        (rows_of().append_column("history", rows_of()["history"]), "users.parquet has 2 columns 'history': leave one"),
        (replaced(58, None), "users.parquet, column 'history', row 58 .counted from 0.: a null"),
        (replaced(33, ["item-01", None]), "column 'history', row 33 .counted from 0.: a null"),
        (
            replaced(31, ["item-01", "B07"]),
            "column 'history', row 31 .* 'B07' is not in the catalogue; on_unknown drop",
        ),
    ],
)
def test_bad_input_is_named_before_the_work_begins(recommender, tmp_path, rows, message):
    users = tmp_path / "users.parquet"
    if isinstance(rows, bytes):
        users.write_bytes(rows)
    elif rows is not None:
        pq.write_table(rows, users, row_group_size=25)
    with pytest.raises(ValueError, match=message):
        recommend_file(Interrupted(recommender, 0), users, tmp_path / "lists.parquet", part_rows=10)
    assert not list(tmp_path.glob("lists*"))


def test_unknown_items_can_be_dropped(recommender, users, tmp_path, caplog):
    rows = replaced(31, ["B07", "item-03", "B08", "item-01"])
    pq.write_table(rows, users)
    recommend_file(recommender, users, tmp_path / "lists.parquet", 3, on_unknown="drop")
    expected = recommender.recommend(replaced(31, ["item-03", "item-01"])["history"].to_pylist(), 3)
    assert_holds(tmp_path / "lists.parquet", rows, expected)
    assert "2 unknown items are left out" in caplog.text


def test_settings_that_make_no_sense(recommender, users, tmp_path):
    output = tmp_path / "lists.parquet"
    for name in ("k", "batch_size", "part_rows"):
        with pytest.raises(ValueError, match=f"{name} is 0, it should be at least 1"):
            recommend_file(recommender, users, output, **{name: 0})
    with pytest.raises(ValueError, match="on_unknown 'ignore' is not one of"):
        recommend_file(recommender, users, output, on_unknown="ignore")
    with pytest.raises(ValueError, match="column 'colour' is not in the catalogue"):
        recommend_file(recommender, users, output, filters=Filter(where=[("colour", "==", "red")]))
    with pytest.raises(ValueError, match="backend 'onnx' is not one of"):
        load(tmp_path, "onnx")
    arguments = {"model": str(tmp_path), "input": str(users), "output": str(output)}
    with pytest.raises(ValueError, match="filters is not JSON"):
        main(RecommendFileArguments(**arguments, filters="{exclude_seen}"))
    with pytest.raises(ValueError, match=r"engine is \[\], it should be a JSON object"):
        main(RecommendFileArguments(**arguments, engine="[]"))
    with pytest.raises(ValueError, match="filters: there is no argument 'seen'; it takes exclude_seen"):
        main(RecommendFileArguments(**arguments, filters='{"seen": true}'))
    for wrong in ("num_beam", "k", "histories", "settings"):
        with pytest.raises(ValueError, match=f"^options: there is no '{wrong}'; it takes behaviour, think, num_beams"):
            main(RecommendFileArguments(**arguments, options=f'{{"{wrong}": 5}}'))


def test_no_rows_give_a_file_without_rows(recommender, tmp_path):
    pq.write_table(rows_of(0), tmp_path / "users.parquet")
    recommend_file(recommender, tmp_path / "users.parquet", tmp_path / "lists.parquet")
    written = pq.read_table(tmp_path / "lists.parquet")
    assert (written.num_rows, written.column_names[-2:]) == (0, ["items", "scores"])


def test_histories_of_a_model_with_behaviours_are_pairs(tmp_path):
    index = tiny_index(DATA).with_behaviours(["view", "buy"])
    model, tokenizer = tiny_model(DATA, index)
    config = RecommenderConfig(load_prompt("stream").to_dict(), num_beams=10)
    recommender = LLMRecommender(model.eval(), tokenizer, index, DATA.items, config)
    histories = [["item-01", "gone", "item-02"], [], ["item-05"]]
    kinds = [["view", "buy", "buy"], [], ["view"]]
    users, output = tmp_path / "users.parquet", tmp_path / "lists.parquet"
    rows = pa.table({"history": histories, "behaviours": kinds})
    pq.write_table(rows, users)
    recommend_file(recommender, users, output, 4, on_unknown="drop", behaviour="view")
    pairs = [[("item-01", "view"), ("item-02", "buy")], [], [("item-05", "view")]]
    assert_holds(output, rows, recommender.recommend(pairs, 4, behaviour="view"))

    for wrong, message in (
        (["view", "sell", "buy"], "column 'behaviours', row 0 .*: 'sell' is not one of view, buy"),
        (["view", None, "buy"], "row 0 .*: None is not one of view, buy"),
        (["view"], "column 'behaviours', row 0 .*: 1 of them for 3 items of the history"),
    ):
        pq.write_table(pa.table({"history": histories, "behaviours": [wrong, *kinds[1:]]}), users)
        with pytest.raises(ValueError, match=message):
            recommend_file(recommender, users, tmp_path / "new.parquet", on_unknown="drop")


def test_the_command_goes_on_after_kill_9(folder, recommender, tmp_path):
    rows = rows_of(200)
    pq.write_table(rows, tmp_path / "users.parquet")
    arguments = ["--model", folder, "--input", tmp_path / "users.parquet", "--output", tmp_path / "lists.parquet"]
    arguments += [
        "--k",
        "3",
        "--part_rows",
        "4",
        "--filters",
        '{"exclude_seen": true}',
        "--options",
        '{"num_beams": 4}',
    ]
    command = [sys.executable, "-m", "llmrec.serving.batch.recommend_file", *map(str, arguments)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    parts = tmp_path / "lists.parquet.parts"
    while process.poll() is None and len(list(parts.glob("*.parquet"))) < 3:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.parquet")}
    assert 3 <= len(done) < 50
    assert not (tmp_path / "lists.parquet").exists()

    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert f"{200 - 4 * len(done)} of 200 rows to do" in finished.stderr
    request = Filter(exclude_seen=True)
    assert_holds(
        tmp_path / "lists.parquet", rows, recommender.recommend(rows["history"].to_pylist(), 3, request, num_beams=4)
    )
    assert not parts.exists()


@pytest.mark.vllm
def test_vllm_gives_the_same_file(folder, recommender, users, tmp_path):
    ours = load(folder, "vllm", dtype="float32", distributed_executor_backend="uni", max_model_len=256)
    request = Filter(exclude_seen=True)
    recommend_file(ours, users, tmp_path / "lists.parquet", 5, request, part_rows=16, titles=True)
    expected = recommender.recommend(rows_of()["history"].to_pylist(), 5, request)
    assert_holds(tmp_path / "lists.parquet", rows_of(), expected, titles=True)
