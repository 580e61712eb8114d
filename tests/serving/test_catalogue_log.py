"""What was acknowledged is on disk, whatever happens to the process, the file or the disk."""

import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving.living_catalogue import (
    change,
    opened_with_snapshot,
    records,
    roll_back,
    same,
    write_living_folder,
)

from llmrec.files import fingerprint
from llmrec.models.folder import RecommenderConfig
from llmrec.serving.living_catalogue.log import DATABASE
from llmrec.serving.living_catalogue.store import CatalogueStore, Changes, load_version

ROOT = Path(__file__).parents[2]
# Imports once; every line on its input starts a writer that goes on until it is killed.
WRITERS = """if True:
    import os, sys
    import faiss, sklearn.feature_extraction.text  # for the item tokenizer of every writer
    from llmrec.serving.living_catalogue import store as store_module
    from llmrec.serving.living_catalogue.store import CatalogueStore, Changes

    def write():
        store_module.SNAPSHOT_SIZE = 2000  # about 20 changes
        store = CatalogueStore(sys.argv[1], sys.argv[2])
        for step in range(store.current.number, 10**6):
            put = [{"item_id": "item-03", "price": float(step)}]
            if step % 3 == 0:
                put.append({"item_id": f"new-{step % 30}", "title": f"red gadget number {step}"})
            removed = [f"new-{(step - 1) % 30}"] if step % 3 == 1 else []
            store.commit(store.prepare(Changes(put, removed)))
            print(store.current.number, store.current.items.num_rows, flush=True)
            if step % 20 == 19:
                store.close()
                store = CatalogueStore(sys.argv[1], sys.argv[2])

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
    return change(store, Changes(put=[{"item_id": item, "price": value}]))


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
                versions = [entry["version"] for entry in store.history(limit=10**6)]
                assert versions == list(range(1, store.current.number + 1))
                for number in (last, moment.choice(sorted(acknowledged))):
                    version = store.version(number)
                    assert version.items.num_rows == acknowledged[number]
                    if number:
                        assert version.items["price"][version.index.row("item-03")].as_py() == number - 1
                acknowledged[store.current.number] = store.current.items.num_rows
        assert len(acknowledged) > 12
        writers.stdin.close()


def copy_of(directory, target):
    """What a crash would leave: the files of a log as they are, without the locks."""
    shutil.copytree(directory, target, ignore=shutil.ignore_patterns("*-shm", "writer.sqlite"), dirs_exist_ok=True)
    return target


def test_a_change_that_a_crash_left_unfinished_is_dropped(folder, tmp_path, store):
    price(store, 1.0)
    before, earlier = store.current, copy_of(store.directory, tmp_path / "earlier")
    wal = f"{DATABASE}-wal"
    with closing(sqlite3.connect(store.directory / DATABASE)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM catalogue").fetchall()  # what comes now stays in the write-ahead log
        price(store, 2.0)
        crashed = copy_of(store.directory, tmp_path / "crashed")
    assert same(load_version(folder, copy_of(crashed, tmp_path / "whole")), store.current)
    old, new = (earlier / wal).read_bytes(), (crashed / wal).read_bytes()
    old = old.ljust(len(new), b"\0")
    end = 1 + max(i for i in range(len(new)) if old[i] != new[i])
    for written in (*range(0, end, 1500), end - 1):
        torn = copy_of(crashed, tmp_path / f"torn-{written}")
        (torn / wal).write_bytes(new[:written] + old[written:])
        assert same(load_version(folder, torn), before)
        with CatalogueStore(folder, torn) as again:
            assert same(again.current, before) and price(again, 3.0)["number"] == 2
            after = again.current
        assert same(load_version(folder, torn), after)


@pytest.fixture(scope="module")
def damageable(folder, tmp_path_factory):
    """The files of a log as they lie while a store is open, and what it says."""
    directory = tmp_path_factory.mktemp("damageable")
    with CatalogueStore(folder, directory / "log") as store:
        change(store, Changes([{"item_id": "new", "title": "red gadget number 44"}], ["item-02"]))
        for value in range(40):
            price(store, float(value))
    with opened_with_snapshot(folder, directory / "log") as store:
        price(store, 50.0)
        price(store, 51.0)
        log = copy_of(directory / "log", directory / "copy")
        return log, store.current, records(folder, store.directory)


@given(data=st.data())
@settings(deadline=None, max_examples=150)
def test_changed_bytes_are_named_or_change_nothing(folder, damageable, tmp_path_factory, data):
    log, current, written = damageable
    directory = copy_of(log, tmp_path_factory.mktemp("damaged"))
    path = directory / data.draw(st.sampled_from([DATABASE, DATABASE, f"{DATABASE}-wal"]))
    content = bytearray(path.read_bytes())
    page = data.draw(st.integers(0, len(content) // 4096 - 1)) * 4096
    place = data.draw(st.one_of(st.integers(0, len(content) - 1), st.integers(page, page + 150)))
    for i in range(place, min(place + data.draw(st.sampled_from([1, 1, 2, 8, 600])), len(content))):
        content[i] ^= data.draw(st.integers(1, 255)) if i == place else 0xFF
    path.write_bytes(content)
    for read, whole in (
        (lambda: load_version(folder, directory), current),
        (lambda: records(folder, directory), written),
    ):
        try:
            assert same(read(), whole) if whole is current else read() == whole
        except ValueError as error:
            assert DATABASE in str(error) or "snapshot-" in str(error)
    try:
        with CatalogueStore(folder, directory) as store:
            assert same(store.current, current)
    except ValueError as error:
        assert DATABASE in str(error) or "snapshot-" in str(error)


def test_damage_is_an_error_that_names_the_version(folder, tmp_path, store):
    for value in (1.0, 2.0, 3.0):
        price(store, value)
    store.close()

    def refused(message, *statements):
        directory = copy_of(store.directory, tmp_path / "damaged")
        with closing(sqlite3.connect(directory / DATABASE)) as database, database:
            for statement in statements:
                database.execute(statement)
        for opened in (CatalogueStore, load_version):
            with pytest.raises(ValueError, match=message):
                opened(folder, directory)

    refused(
        r"catalogue.sqlite is damaged .version 1.: restore it",
        "UPDATE versions SET record = replace(record, '1.0', '7.0') WHERE number = 1",
    )
    refused(r"damaged .version 2", "UPDATE versions SET record = substr(record, 1, 20) WHERE number = 2")
    refused(r"damaged .version 3", "UPDATE versions SET record = replace(record, '3.0', '7.0') WHERE number = 3")
    refused(r"damaged .version 2", "DELETE FROM versions WHERE number = 1")
    refused(r"damaged .what follows version 2", "DELETE FROM versions WHERE number = 3")
    refused(r"damaged .version 4", "UPDATE versions SET number = 4 WHERE number = 3")
    refused(r"catalogue.sqlite is damaged", "DELETE FROM catalogue")
    refused(r"catalogue.sqlite is damaged .no such table", "DROP TABLE versions")
    path = copy_of(store.directory, tmp_path / "damaged") / DATABASE
    for content in (b"", b"[]\n" * 9999):
        path.write_bytes(content)
        for opened in (CatalogueStore, load_version):
            with pytest.raises(ValueError, match="catalogue.sqlite is "):
                opened(folder, path.parent)
    with CatalogueStore(folder, store.directory) as again:  # nothing is left locked by the failures
        assert again.current.number == 3


def test_an_older_database_beside_a_newer_write_ahead_log_is_named(folder, tmp_path, store):
    title = "a title that fills more than a page of the database " * 100
    for number in range(1, 6):
        change(store, Changes(put=[{"item_id": f"item-0{number}", "title": f"{number} {title}"}]))
        if number == 2:
            shutil.copy(store.directory / DATABASE, tmp_path / "older.sqlite")
    crashed = copy_of(store.directory, tmp_path / "crashed")
    shutil.copy(tmp_path / "older.sqlite", crashed / DATABASE)
    for opened in (load_version, CatalogueStore):
        with pytest.raises(ValueError, match=r"-wal does not belong to the catalogue.sqlite .* ends with version 2 "):
            opened(folder, crashed)
    (crashed / f"{DATABASE}-wal").unlink()
    (crashed / f"{DATABASE}-shm").unlink(missing_ok=True)
    assert same(load_version(folder, crashed), store.version(2))


def test_what_lies_about_is_named(folder, tmp_path):
    directory = tmp_path / "log"
    directory.mkdir()
    (directory / f"{DATABASE}-wal").write_bytes(b"of a database that was moved away")
    with pytest.raises(ValueError, match="catalogue.sqlite-wal is there without catalogue.sqlite"):
        CatalogueStore(folder, directory)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file cannot be the folder of a catalogue log"):
        CatalogueStore(folder, tmp_path / "file")


def test_a_relative_directory_stays_where_it_is(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with CatalogueStore(folder, "log") as store:
        price(store, 1.0)
        monkeypatch.chdir("/")
        assert [entry["version"] for entry in store.history()] == [1]


def test_the_log_of_another_model_is_refused(folder, tmp_path):
    other = write_living_folder(tmp_path / "other", codebook_sizes=(3, 3))
    with CatalogueStore(other) as store:
        price(store, 1.0)
    for opened in (CatalogueStore, load_version):
        with pytest.raises(ValueError, match="belongs to a model folder with the Semantic IDs"):
            opened(folder, other / "catalogue")
    with pytest.raises(ValueError, match="nothing does not exist"):
        CatalogueStore(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_log_of_a_later_format_is_refused(folder, tmp_path):
    CatalogueStore(folder, tmp_path).close()
    with closing(sqlite3.connect(tmp_path / DATABASE)) as database, database:
        database.execute("PRAGMA user_version = 3")
    with pytest.raises(ValueError, match="of this version of llmrec: its format is 3"):
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
    assert printed[0] == "1" and f"is being written by another process ({os.getpid()})" in printed[1]
    price(store, 2.0)  # its lock is still there, and still its own
    with pytest.raises(ValueError, match="open for writing in this process already"):
        CatalogueStore(folder, tmp_path / "log")
    store.close()
    with CatalogueStore(folder, tmp_path / "log") as again:
        assert again.current.number == 2


def test_a_forked_process_reads_and_holds_no_lock(folder, tmp_path):
    """Engines are forked after the store was opened, and may outlive a front that was killed."""
    code = """if True:
        import os, signal, sys, time
        from llmrec.serving.living_catalogue.store import CatalogueStore, Changes, load_version
        store = CatalogueStore(sys.argv[1], sys.argv[2])
        assert store._log._database is None  # no connection that a fork could copy
        if not os.fork():
            print("engine", os.getpid(), load_version(sys.argv[1], sys.argv[2]).number, flush=True)
            time.sleep(60)
        store.commit(store.prepare(Changes([{"item_id": "item-01", "price": 1.0}])))
        print("committed", flush=True)
        time.sleep(60)
        """
    with run_python(code, folder, tmp_path) as front:
        lines = [front.stdout.readline().split() for _ in range(2)]
        front.kill()
        front.wait()
        engine = next(line for line in lines if line[0] == "engine")
        try:
            with CatalogueStore(folder, tmp_path) as store:
                assert store.current.number == 1 and price(store, 2.0)["number"] == 2
        finally:
            os.kill(int(engine[1]), signal.SIGKILL)


def test_readers_do_not_wait_for_the_writer_nor_it_for_them(folder, store):
    with closing(sqlite3.connect(store.directory / DATABASE)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT newest FROM catalogue").fetchone() == (0,)
        for value in range(20):
            price(store, float(value))
            assert load_version(folder, store.directory).number == value + 1
        assert reader.execute("SELECT newest FROM catalogue").fetchone() == (0,)
    price(store, 99.0)
    assert [entry["version"] for entry in store.history()] == list(range(1, 22))


def test_a_change_is_in_the_database_when_readers_of_an_older_state_have_left(folder, tmp_path, store):
    price(store, 1.0)
    reader = sqlite3.connect(store.directory / DATABASE, check_same_thread=False)
    reader.execute("BEGIN")
    assert reader.execute("SELECT newest FROM catalogue").fetchone() == (1,)
    leaves = threading.Timer(0.05, reader.close)
    leaves.start()
    price(store, 2.0)
    leaves.join()
    alone = tmp_path / "alone"  # without the write-ahead log, whose damaged end nobody could tell from nothing
    alone.mkdir()
    shutil.copy(store.directory / DATABASE, alone)
    assert load_version(folder, alone).number == 2


def test_a_full_disk_takes_nothing_back_and_half_a_record_is_never_there(folder, tmp_path):
    """A limit on the size of files is a full disk that a test can make."""
    code = """if True:
        import resource, sys
        from llmrec.serving.living_catalogue.store import CatalogueStore, Changes
        def price(value):
            return store.commit(store.prepare(Changes(put=[{"item_id": "item-01", "price": value}])))
        store = CatalogueStore(sys.argv[1], sys.argv[2])
        price(1.0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
        try:
            price(2.0)
        except OSError as error:
            assert "catalogue.sqlite: version 2 could not be written" in str(error), error
            print("refused", store.current.number)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(price(3.0)["number"])
        """
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    for room in (0, 50, 3000, 5000):  # nothing; within the first page, between two of a change
        log = tmp_path / str(room)
        assert run_python(code, folder, log, room).communicate()[0].split() == ["refused", "1", "3"]
        with CatalogueStore(folder, log) as store:
            assert [(entry["version"], entry["updated"]) for entry in store.history()] == [(1, 1), (3, 1)]
            assert store.current.items["price"][1].as_py() == 3.0
            with pytest.raises(ValueError, match="no catalogue version 2; the last one before it is 1"):
                store.version(2)


@pytest.mark.skipif(os.getuid() != 0, reason="mounts a disk")
def test_a_disk_that_is_full_and_has_room_again(folder, tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("cannot mount a disk here")
    try:
        with CatalogueStore(folder, tmp_path / "log") as store:
            filler = tmp_path / "filler"
            filler.write_bytes(bytes(150_000))
            long = "red gadget number " + "7" * 20_000
            with pytest.raises(OSError, match="version .* could not be written: .*full"):
                for _ in range(100):
                    change(store, Changes([{"item_id": "item-01", "title": long}]))
            last = store.current
            assert same(load_version(folder, store.directory), last)
            with pytest.raises(OSError, match="full"):
                change(store, Changes([{"item_id": "item-01", "title": long}]))
            filler.unlink()
            change(store, Changes([{"item_id": "item-01", "title": long}], ["item-02"]))
            assert same(store.version(last.number), last) and "item-02" not in store.current.index
            after = store.current
        assert same(load_version(folder, tmp_path / "log"), after)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_snapshots_make_a_long_log_short_and_every_version_stays(folder, tmp_path):
    def names():
        return sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith(("-wal", "-shm")))

    store = CatalogueStore(folder, tmp_path)
    versions = {0: store.current}

    def do(changes):
        change(store, changes)
        versions[store.current.number] = store.current

    do(Changes(put=[{"item_id": "new", "title": "red gadget number 44"}], remove=["item-02"]))
    for _ in range(2):  # nothing new the second time: nothing happens
        store.close()
        store = opened_with_snapshot(folder, tmp_path)
        assert names() == ["catalogue.sqlite", "snapshot-1.parquet", "writer.sqlite"]
    do(Changes(put=[{"item_id": "item-02", "title": "blue gadget number 2"}]))
    do(Changes(remove=["new"]))
    store.close()
    store = opened_with_snapshot(folder, tmp_path)
    assert "snapshot-3.parquet" in names()
    do(Changes(put=[{"item_id": "item-03", "price": 8.0}]))
    assert all(same(store.version(number), version) for number, version in versions.items())
    assert [entry["version"] for entry in store.history()] == [1, 2, 3, 4]
    store.close()
    with CatalogueStore(folder, tmp_path) as store:
        assert same(store.current, versions[4])
        change(store, Changes(put=[{"item_id": "new", "title": "it had a Semantic ID"}]))
        assert store.current.index.encode("new") == versions[1].index.encode("new")
        roll_back(store, 3)
        after = store.current
    assert same(load_version(folder, tmp_path), after) and same(after, versions[3], number=False)
    snapshot = tmp_path / "snapshot-3.parquet"
    content = bytearray(snapshot.read_bytes())
    content[len(content) // 2] ^= 1
    snapshot.write_bytes(content)
    for opened in (CatalogueStore, load_version):
        with pytest.raises(ValueError, match="snapshot-3.parquet is damaged: restore it, or delete it"):
            opened(folder, tmp_path)
    snapshot.unlink()
    assert same(load_version(folder, tmp_path), after)


def test_a_snapshot_that_the_log_does_not_know_is_of_no_consequence(folder, tmp_path):
    with CatalogueStore(folder, tmp_path) as store:
        price(store, 1.0)
        store.current.index.save(tmp_path / "snapshot-1.parquet", store.current.items.slice(0))
        price(store, 2.0)
        before = store.current
    with opened_with_snapshot(folder, tmp_path) as store:
        assert same(store.current, before)
    assert same(load_version(folder, tmp_path), before)


# What an older llmrec wrote


def write_old_log(directory, start, semid_fingerprint, lines):
    """A file of the old log: every line with a checksum over itself and all before it."""
    header = {"format": 1, "start": start, "semid_fingerprint": semid_fingerprint, "time": "2026-01-31T12:00:00.000"}
    check, text = "", ""
    for fields in (header, *lines):
        check = fingerprint(check, json.dumps(fields))
        text += json.dumps({**fields, "check": check}) + "\n"
    directory.mkdir(exist_ok=True)
    (directory / f"changes-{start}.jsonl").write_text(text)


@pytest.fixture(scope="module")
def old(folder, tmp_path_factory):
    """`(directory, versions)`: a log of two files and four versions."""
    with CatalogueStore(folder, tmp_path_factory.mktemp("new") / "log") as store:
        made = [change(store, Changes([{"item_id": "new", "title": "red gadget number 44"}], ["item-02"]))]
        made += [price(store, value) for value in (1.0, 2.0)] + [roll_back(store, 1)]
        versions = [store.version(number) for number in range(5)]
    directory = tmp_path_factory.mktemp("old")
    semid_fingerprint = RecommenderConfig.load(folder).semid_fingerprint
    write_old_log(directory, 0, semid_fingerprint, made[:2])
    write_old_log(directory, 2, semid_fingerprint, made[2:])
    versions[2].index.save(directory / "snapshot-2.parquet", versions[2].items)
    (directory / "lock").write_text("123\n")
    return directory, versions


def test_an_old_log_is_taken_over(folder, old, tmp_path, caplog):
    directory, versions = copy_of(old[0], tmp_path / "log"), old[1]
    with pytest.raises(ValueError, match=r"older llmrec .changes-0.jsonl, changes-2.jsonl.*CatalogueStore\(.*close"):
        load_version(folder, directory)
    with (directory / "changes-2.jsonl").open("a") as file:
        file.write('{"number": 5, "par')  # was never acknowledged
    with CatalogueStore(folder, directory) as store:
        assert "changes-0.jsonl.migrated" in caplog.text
        assert same(store.current, versions[4])
        assert [entry["version"] for entry in store.history()] == [1, 2, 3, 4]
        assert price(store, 3.0)["number"] == 5
        assert all(same(store.version(number), versions[number]) for number in range(5))
    assert sorted(path.name for path in directory.iterdir()) == [
        *("catalogue.sqlite", "changes-0.jsonl.migrated", "changes-2.jsonl.migrated"),
        *("lock", "snapshot-2.parquet", "writer.sqlite"),
    ]
    assert load_version(folder, directory).number == 5
    (directory / "snapshot-2.parquet").unlink()
    assert load_version(folder, directory).number == 5
    shutil.copy(old[0] / "changes-2.jsonl", directory)  # as if it was killed before the last renaming
    CatalogueStore(folder, directory).close()
    assert load_version(folder, directory).number == 5 and not (directory / "changes-2.jsonl").exists()


def test_an_old_log_whose_first_versions_were_forgotten_is_taken_over(folder, old, tmp_path):
    directory, versions = copy_of(old[0], tmp_path / "log"), old[1]
    (directory / "changes-0.jsonl").unlink()
    with CatalogueStore(folder, directory) as store:
        assert [entry["version"] for entry in store.history()] == [3, 4]
        assert all(same(store.version(number), versions[number]) for number in (2, 3, 4))
        with pytest.raises(ValueError, match="no catalogue version 1 any more; the oldest one is 2"):
            store.prepare_rollback(1)
    (directory / "snapshot-2.parquet").unlink()
    with pytest.raises(ValueError, match="snapshot-2.parquet does not exist"):
        CatalogueStore(folder, directory)


def test_an_old_log_beside_a_database_that_says_other_things_is_refused(folder, old, tmp_path):
    directory = tmp_path / "log"
    with CatalogueStore(folder, directory) as store:
        price(store, 7.0)
    copy_of(old[0], directory)
    names = {path.name for path in directory.iterdir()}
    with pytest.raises(ValueError, match=r"holds catalogue.sqlite and a log of an older llmrec .*different things"):
        CatalogueStore(folder, directory)
    with pytest.raises(ValueError, match="holds the log of an older llmrec"):
        load_version(folder, directory)
    assert names <= {path.name for path in directory.iterdir()}


def test_an_old_log_that_cannot_be_read_is_refused_and_left_alone(folder, old, tmp_path):
    directory = copy_of(old[0], tmp_path / "log")
    path = directory / "changes-0.jsonl"
    good = path.read_text().splitlines(keepends=True)

    def refused(lines, message):
        path.write_text("".join(lines))
        with pytest.raises(ValueError, match=message):
            CatalogueStore(folder, directory)
        assert not (directory / DATABASE).exists()

    refused([good[0], good[1].replace("number 44", "number 45"), *good[2:]], r"changes-0.jsonl, line 2 is damaged")
    refused([*good[:2], good[2][:20] + "\n"], "line 3 is damaged")
    refused([good[0], good[2]], "line 2 is damaged")
    refused(["[]\n", *good[1:]], "line 1 is damaged")
    refused(good[:2], r"changes-2.jsonl does not follow version 1")
    refused([], "does not begin like a catalogue log")
    path.write_text("".join(good))
    other = write_living_folder(tmp_path / "other", codebook_sizes=(3, 3))
    with pytest.raises(ValueError, match="belongs to a model folder with the Semantic IDs"):
        CatalogueStore(other, directory)
    code = """if True:
        import fcntl, sys
        lock = open(sys.argv[1], "r+")
        fcntl.lockf(lock, fcntl.LOCK_EX)
        print("locked", flush=True)
        sys.stdin.read()
        """
    with run_python(code, directory / "lock", stdin=subprocess.PIPE) as writer:
        writer.stdout.readline()
        with pytest.raises(ValueError, match="written by a process of an older llmrec"):
            CatalogueStore(folder, directory)
        writer.stdin.close()
    with CatalogueStore(folder, directory) as store:
        assert same(store.current, old[1][4])
