import dataclasses

import pyarrow as pa
import pytest

from llmrec.data import check_no_leak, prepare
from llmrec.data.leaks import joined_checks
from llmrec.data.prepared import SEQUENCES, TARGETS

ITEMS = pa.table({"item_id": list("abcdef"), "title": list("ABCDEF")})


def log_of(**users):
    rows = [(user, item, time) for user, walk in users.items() for time, item in enumerate(walk)]
    return pa.table(dict(zip(("user_id", "item_id", "timestamp"), zip(*rows))))


def with_rows(data, table, schema=None, **columns):
    old = getattr(data, table)
    new = pa.table({name: columns.get(name, old[name]) for name in old.column_names}, schema=old.schema)
    return dataclasses.replace(data, **{table: new})


def test_a_target_in_the_training_sequence_is_found():
    data = prepare(log_of(u="abcde", v="bcdef"), ITEMS)
    leaking = with_rows(data, "train", item_ids=[list("abc"), list("bcde")], timestamps=[[0, 1, 2], [0, 1, 2, 3]])
    with pytest.raises(ValueError, match=r"leak: valid row 2 \(user 'v'\)"):
        check_no_leak(leaking)


def test_a_history_that_holds_its_own_target_is_found():
    data = prepare(log_of(u="abcde"), ITEMS)
    with pytest.raises(ValueError, match=r"leak: test row 1 \(user 'u'\)"):
        check_no_leak(with_rows(data, "test", history=[list("bcde")]))
    with pytest.raises(ValueError, match=r"leak: valid row 1 \(user 'u'\)"):
        check_no_leak(with_rows(data, "valid", history=[list("abcabcabc")]))


def test_truncated_histories_and_repeated_items_are_no_leak():
    data = prepare(log_of(u="aaaaaaa", v="abababab"), ITEMS, max_history=2)
    assert data.info["leak_check"]["histories_end_before_their_targets"] == 4


def test_training_after_the_first_validation_target_is_found():
    data = prepare(log_of(u="abcdef"), ITEMS, split="time", valid_start=3, test_start=5)
    assert data.info["leak_check"]["last_train"] == 2
    with pytest.raises(ValueError, match="leak: last_train at 3 is not before first_valid at 3"):
        check_no_leak(with_rows(data, "train", timestamps=[[0, 1, 3]]))
    with pytest.raises(ValueError, match="leak: last_valid at 7 is not before first_test at 5"):
        check_no_leak(with_rows(data, "valid", timestamp=[3, 7]))


def windows(train, valid, test):
    rows = [(user, list(h), t, s, split) for split, part in zip(("train", "valid", "test"), (train, valid, test))
            for user, h, t, s in part]  # fmt: skip
    names = ["user_id", "history", "item_id", "timestamp", "split"]
    types = [*TARGETS.types, pa.string()]
    return pa.table({n: pa.array(c, k) for n, c, k in zip(names, zip(*rows), types)})


def test_windows_are_checked_as_far_as_they_can_be():
    train = [("u", "a", "b", 1), ("u", "ab", "c", 2), ("w", "a", "b", None)]
    test = [("u", "bcd", "e", 4), ("x", "a", "b", 9)]
    data = prepare(windows(train, [("u", "abc", "d", 3)], test), ITEMS, split="given")
    assert data.info["leak_check"] == {
        "rule": "windows", "targets_checked_by_position": 1, "targets_checked_by_time": 2, "targets": 3,
        "last_train": 2, "first_valid": 3, "no_training_target_after_first_valid": True,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"leak: valid row 1 \(user 'u'\): its position is one of"):
        prepare(windows(train, [("u", "ab", "c", 3)], test), ITEMS, split="given")
    with pytest.raises(ValueError, match=r"leak: test row 2 \(user 'u'\): a training target of the user is later"):
        prepare(windows(train, [("x", "abc", "d", 3)], [test[0], ("u", "bcd", "e", 1)]), ITEMS, split="given")


def test_several_sequences_of_a_user_outside_windows_are_refused():
    data = prepare(log_of(u="abcde"), ITEMS)
    twice = pa.concat_tables([data.train, data.train]).cast(SEQUENCES)
    with pytest.raises(ValueError, match="several training sequences"):
        check_no_leak(dataclasses.replace(data, train=twice))


OF_WINDOWS = windows([("u", "a", "b", 1), ("u", "ab", "c", 2)], [("u", "abc", "d", 3)], [("v", "ab", "e", 4)])


@pytest.mark.parametrize(("log", "rules"), [(log_of(u="abcde", v="bcdef"), {}), (OF_WINDOWS, {"split": "given"})])
def test_ids_that_are_null_or_of_no_item_are_named(log, rules):
    data = prepare(log, ITEMS, **rules)
    for table, column in (("train", "item_ids"), ("valid", "history"), ("test", "target")):
        right = getattr(data, table)[column].to_pylist()
        for wrong, what in (("x", "item 'x' is not in the catalogue"), (None, "an item id is null")):
            last = wrong if column == "target" else [*right[-1][:-1], wrong]
            place = rf"{table} row {len(right)} \(user '[uv]'\), column '{column}'"
            with pytest.raises(ValueError, match=f"^leak check: {place}: {what}$"):
                check_no_leak(with_rows(data, table, **{column: [*right[:-1], last]}))
    with pytest.raises(ValueError, match="^leak check: train row 1: user_id is null$"):
        check_no_leak(with_rows(data, "train", user_id=[None, *data.train["user_id"].to_pylist()[1:]]))
    with pytest.raises(ValueError, match="^leak check: test, column 'history': row 0 has no list"):
        check_no_leak(with_rows(data, "test", history=[None, *data.test["history"].to_pylist()[1:]]))


def test_there_is_nothing_to_join():
    with pytest.raises(ValueError, match="^leak check: there are no parts to join"):
        joined_checks([])
