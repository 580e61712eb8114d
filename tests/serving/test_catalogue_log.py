"""What was acknowledged is on disk, whatever happens to the process, the file or the disk."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from serving.living_catalogue import same, write_living_folder

from llmrec.files import write_json
from llmrec.serving.living_catalogue import log as catalogue_log
from llmrec.serving.living_catalogue.log import segment_path
from llmrec.serving.living_catalogue.store import CatalogueStore, Changes, load_version

ROOT = Path(__file__).parents[2]
# Imports once; every line on its input starts a writer that goes on until it is killed.
WRITERS = """if True:
    import os, sys
    import faiss, sklearn.feature_extraction.text  # for the item tokenizer of every writer
    from llmrec.serving.living_catalogue.store import CatalogueStore, Changes

    def write():
        store = CatalogueStore(sys.argv[1], sys.argv[2])
        for step in range(store.current.number, 10**6):
            put = [{"item_id": "item-03", "price": float(step)}]
            if step % 3 == 0:
                put.append({"item_id": f"new-{step % 30}", "title": f"red gadget number {step}"})
            store.apply(Changes(put, [f"new-{(step - 1) % 30}"] if step % 3 == 1 else []))
            print(store.current.number, store.current.items.num_rows, flush=True)
            if step % 20 == 19:
                store.compact()

    for _ in sys.stdin:
        if not (child := os.fork()):
            write()
        print("writer", child, flush=True)
        os.waitpid(child, 0)
        print("dead", flush=True)
    """


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_living_folder(tmp_path_factory.mktemp("living") / "model")


@pytest.fixture
def store(folder, tmp_path):
    with CatalogueStore(folder, tmp_path / "log") as store:
        yield store


def price(store, value, item="item-01"):
    return store.apply(Changes(put=[{"item_id": item, "price": value}]))


def run_python(code, *arguments, **options):
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, **options)


def test_a_killed_writer_loses_nothing_that_it_acknowledged(folder, tmp_path):
    moment = random.Random(0)
    directory = tmp_path / "log"
    acknowledged = {0: 24}
    with run_python(WRITERS, folder, directory, stdin=subprocess.PIPE) as writers:
        for _ in range(6):
            print(file=writers.stdin, flush=True)
            lines = [writers.stdout.readline().split() for _ in range(2)]  # it writes now, as fast as it can
            time.sleep(moment.uniform(0, 0.3))
            os.kill(next(int(word) for name, word in lines if name == "writer"), signal.SIGKILL)
            while lines[-1] != ["dead"]:
                lines.append(writers.stdout.readline().split())
            acknowledged |= {int(line[0]): int(line[1]) for line in lines if line[0].isdigit()}
            with CatalogueStore(folder, directory) as store:
                last = max(acknowledged)
                assert last <= store.current.number <= last + 1
                assert [entry.number for entry in store.history()] == list(range(1, store.current.number + 1))
                for number in (last, moment.choice(sorted(acknowledged))):
                    version = store.version(number)
                    assert version.items.num_rows == acknowledged[number]
                    if number:
                        assert version.items["price"][version.index.row("item-03")].as_py() == number - 1
                acknowledged[store.current.number] = store.current.items.num_rows
        assert len(acknowledged) > 12
        writers.stdin.close()


@pytest.mark.parametrize("cut", ["half a line", "all but the line's end", "blocks of zeros", "zeros and a line's end"])
def test_an_unfinished_last_line_is_dropped(folder, tmp_path, caplog, cut):
    path = segment_path(tmp_path, 0)
    with CatalogueStore(folder, tmp_path) as store:
        price(store, 1.0)
        whole, before = path.read_bytes(), store.current
        price(store, 2.0)
        torn = path.read_bytes()[len(whole) :]
    tails = {
        "half a line": torn[: len(torn) // 2],
        "all but the line's end": torn[:-1],
        "blocks of zeros": bytes(512),
        "zeros and a line's end": bytes(100) + torn[100:],
    }
    path.write_bytes(whole + tails[cut])
    assert same(load_version(folder, tmp_path), before)
    assert path.read_bytes() == whole + tails[cut]  # a reader changes nothing
    with CatalogueStore(folder, tmp_path) as store:
        assert "never finished" in caplog.text
        assert same(store.current, before) and path.read_bytes() == whole
        assert price(store, 3.0)["number"] == 2
        after = store.current
    assert same(load_version(folder, tmp_path), after)


def test_damage_elsewhere_is_an_error_that_names_the_line(folder, tmp_path):
    path = segment_path(tmp_path, 0)
    with CatalogueStore(folder, tmp_path) as store:
        for value in (1.0, 2.0, 3.0):
            price(store, value)
    good = path.read_text().splitlines(keepends=True)

    def refused(lines, message):
        path.write_text("".join(lines))
        for opened in (CatalogueStore, load_version):
            with pytest.raises(ValueError, match=message):
                opened(folder, tmp_path)

    refused([good[0], good[1].replace("1.0", "7.0"), *good[2:]], r"changes-0.jsonl, line 2 is damaged .*restore")
    refused([*good[:2], good[2][:20] + "\n", good[3]], "line 3 is damaged")
    refused([*good[:3], good[3].replace("3.0", "7.0")], "line 4 is damaged")
    refused([good[0], good[2], good[3]], "line 2 is damaged")
    refused(["[]\n", *good[1:]], "line 1 is damaged")
    refused([], "does not begin like a catalogue log")
    path.write_text("".join(good))
    with CatalogueStore(folder, tmp_path) as store:  # nothing is left locked by the failures
        assert store.current.number == 3


def test_the_log_of_another_model_is_refused(folder, tmp_path):
    other = write_living_folder(tmp_path / "other", codebook_sizes=(3, 3))
    with CatalogueStore(other) as store:
        price(store, 1.0)
    for opened in (CatalogueStore, load_version):
        with pytest.raises(ValueError, match="belongs to a model folder with the Semantic IDs"):
            opened(folder, other / "catalogue")
    with pytest.raises(ValueError, match="no llmrec model folder"):
        CatalogueStore(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_log_of_a_later_format_is_refused(folder, tmp_path, monkeypatch):
    with monkeypatch.context() as later:
        later.setattr(catalogue_log, "FORMAT", 2)
        CatalogueStore(folder, tmp_path).close()
    with pytest.raises(ValueError, match="of this version of llmrec: {'format': 2"):
        CatalogueStore(folder, tmp_path)


def test_one_writer_at_a_time(folder, tmp_path, store):
    with pytest.raises(ValueError, match="open for writing in this process already"):
        CatalogueStore(folder, tmp_path / "log")
    code = """if True:
        import sys
        from llmrec.serving.living_catalogue.store import CatalogueStore, load_version
        print(load_version(sys.argv[1], sys.argv[2]).number)
        try:
            CatalogueStore(sys.argv[1], sys.argv[2])
        except ValueError as error:
            print(error)
        """
    price(store, 1.0)
    printed = run_python(code, folder, tmp_path / "log").communicate()[0].splitlines()
    assert printed[0] == "1" and "is being written by another process" in printed[1]
    price(store, 2.0)  # its lock is still there, and still its own
    store.close()
    with CatalogueStore(folder, tmp_path / "log") as again:
        assert again.current.number == 2


def test_a_full_disk_takes_nothing_back_and_half_a_record_is_never_there(folder, tmp_path):
    """A limit on the size of files is a full disk that a test can make."""
    code = """if True:
        import resource, sys
        from llmrec.serving.living_catalogue.store import CatalogueStore, Changes
        store = CatalogueStore(sys.argv[1], sys.argv[2])
        store.apply(Changes(put=[{"item_id": "item-01", "price": 1.0}]))
        resource.setrlimit(resource.RLIMIT_FSIZE, (store._log.size + 50, resource.RLIM_INFINITY))
        prepared = store.prepare(Changes(put=[{"item_id": "item-01", "price": 2.0}]))
        try:
            store.commit(prepared)
        except OSError as error:
            print("refused", store.current.number)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(store.apply(Changes(put=[{"item_id": "item-01", "price": 3.0}]))["number"])
        """
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    assert run_python(code, folder, tmp_path).communicate()[0].split() == ["refused", "1", "3"]
    with CatalogueStore(folder, tmp_path) as store:
        assert [(entry.number, entry.updated) for entry in store.history()] == [(1, 1), (3, 1)]
        assert store.current.items["price"][1].as_py() == 3.0
        with pytest.raises(ValueError, match="no catalogue version 2; the last one before it is 1"):
            store.version(2)


def test_compaction_keeps_versions_as_asked(folder, tmp_path):
    def names():
        return sorted(path.name for path in tmp_path.iterdir())

    with CatalogueStore(folder, tmp_path) as store:
        versions = {0: store.current}

        def do(changes):
            store.apply(changes)
            versions[store.current.number] = store.current

        do(Changes(put=[{"item_id": "new", "title": "red gadget number 44"}], remove=["item-02"]))
        store.compact()
        store.compact()  # nothing new: nothing happens
        assert names() == ["changes-0.jsonl", "changes-1.jsonl", "lock", "snapshot-1.parquet"]
        do(Changes(put=[{"item_id": "item-02", "title": "blue gadget number 2"}]))
        do(Changes(remove=["new"]))
        store.compact()
        do(Changes(put=[{"item_id": "item-03", "price": 8.0}]))
        assert all(same(store.version(number), version) for number, version in versions.items())
        assert [record["number"] for record in store.records(after=2)] == [3, 4]
    with CatalogueStore(folder, tmp_path, compact_bytes=1) as store:  # too long for its taste
        assert same(store.current, versions[4])
        assert [entry.number for entry in store.history()] == [1, 2, 3, 4]
        assert "snapshot-4.parquet" in names()
        store.compact(keep=2)
        assert names() == [
            *("changes-3.jsonl", "changes-4.jsonl", "lock", "snapshot-3.parquet", "snapshot-4.parquet"),
        ]
        assert [entry.number for entry in store.history()] == [4]
        assert same(store.version(3), versions[3])
        with pytest.raises(ValueError, match="no catalogue version 2 any more; the oldest one is 3"):
            store.rollback(2)
        with pytest.raises(ValueError, match="keep=0 should be at least 1"):
            store.compact(keep=0)
        do(Changes(put=[{"item_id": "new", "title": "it had a Semantic ID"}]))
        assert store.current.index.encode("new") == versions[1].index.encode("new")
        store.rollback(3)
        after = store.current
    assert same(load_version(folder, tmp_path), after) and same(after, versions[3], number=False)


def test_a_snapshot_whose_log_was_never_begun_is_of_no_consequence(folder, tmp_path):
    with CatalogueStore(folder, tmp_path) as store:
        price(store, 1.0)
        store.current.index.save(tmp_path / "snapshot-1.parquet", store.current.items.slice(0))
        before = store.current
    write_json(tmp_path / "changes-1.jsonl.backup", {})
    with CatalogueStore(folder, tmp_path) as store:
        assert same(store.current, before)
        store.compact()
        assert same(load_version(folder, tmp_path), before)
