"""Several domains as one prepared data set: ids, columns, kinds of interaction, shared users, and no leak."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from tiny import tiny_data

from llmrec.data import PreparedData, check_no_leak, prepare
from llmrec.data.domains import join_domains


def log(seed: int, num_items: int, kinds: tuple[str, ...] = ()) -> pa.Table:
    """300 interactions of 20 users at 300 different seconds; who interacts at all does so in the first 60 seconds."""
    rng = np.random.default_rng(seed)
    users = np.concatenate([np.arange(20), rng.integers(20, size=280)])
    times = np.concatenate([np.arange(20), np.sort(rng.choice(np.arange(20, 1000), 280, replace=False))]) * 2 + seed
    table = {"user_id": [f"u{u}" for u in users], "item_id": [f"{i}" for i in rng.integers(num_items, size=300)]}
    table["timestamp"] = times
    if kinds:
        table["behaviour"] = [kinds[k] for k in rng.integers(len(kinds), size=300)]
    return pa.table(table)


def catalogue(num_items: int, **columns) -> pa.Table:
    return pa.table(
        {"item_id": [str(i) for i in range(num_items)], "title": [f"t{i}" for i in range(num_items)]} | columns
    )


POINTS = {"split": "time", "valid_start": 1400, "test_start": 1700, "max_history": 5}


def by_time(seed: int, num_items: int, kinds=(), **rules) -> PreparedData:
    return prepare(log(seed, num_items, kinds), catalogue(num_items), **{**POINTS, **rules})


def test_ids_of_domains_never_meet_and_rows_stay_as_they_were(tmp_path):
    games, books = tiny_data(num_items=24), tiny_data(num_items=12, num_users=10)  # both have item-00 and user-0
    joined = join_domains({"games": games, "books": books})
    assert joined.items.num_rows == 36 and len(set(joined.items["item_id"].to_pylist())) == 36
    assert joined.items["item_id"][24].as_py() == "books/item-00"
    for row in joined.items.to_pylist():
        assert row["item_id"].startswith(row["domain"] + "/")
    for table in ("train", "valid", "test"):
        own = getattr(books, table).to_pylist()
        there = getattr(joined, table).to_pylist()[-len(own) :]
        for before, after in zip(own, there):
            assert after["user_id"] == f"books/{before['user_id']}"
            for column in {"item_ids", "history"} & before.keys():
                assert after[column] == [f"books/{item}" for item in before[column]]
            assert after.get("target") == (f"books/{before['target']}" if "target" in before else None)
            assert after.get("timestamps") == before.get("timestamps")
    assert joined.info["statistics"]["users"] == 50
    assert {name: part["fingerprint"] for name, part in joined.info["domains"].items()} == {
        "games": games.fingerprint,
        "books": books.fingerprint,
    }
    check_no_leak(joined)
    joined.save(tmp_path / "data")
    assert PreparedData.load(tmp_path / "data").fingerprint == joined.fingerprint


def test_columns_of_all_domains_are_there_and_missing_ones_are_empty():
    one = prepare(log(0, 9), catalogue(9, price=[1.0] * 9, brand=["Acme"] * 9))
    other = prepare(log(1, 7), catalogue(7, pages=list(range(7)), mood=["glad"] * 7))
    rows = join_domains({"one": one, "other": other}).items.to_pylist()
    first, last = rows[0], rows[-1]
    assert first["brand"] == "Acme" and first["pages"] is None and first["mood"] is None
    assert last["brand"] == "" and last["price"] is None and last["mood"] == "glad"


def test_a_part_that_leaks_is_named():
    data = prepare(log(0, 9), catalogue(9))
    targets = data.test["target"].to_pylist()
    history = pa.array([[*h[1:], t] for h, t in zip(data.test["history"].to_pylist(), targets)])
    leaking = dataclasses.replace(data, test=data.test.set_column(1, "history", history))
    with pytest.raises(ValueError, match=r"domain 'two': leak: test row 1"):
        join_domains({"one": data, "two": leaking})


def test_splits_that_differ_are_each_checked_by_their_own_rule():
    joined = join_domains({"one": by_time(0, 9), "two": prepare(log(1, 7), catalogue(7))})
    assert joined.info["rules"]["split"] == "domains"
    assert {name: check["rule"] for name, check in joined.info["leak_check"].items()} == {
        "one": "time",
        "two": "leave_one_out",
    }
    assert join_domains({"one": by_time(0, 9), "two": by_time(1, 7)}).info["rules"]["split"] == "time"


def test_kinds_of_interaction_are_joined_with_the_wanted_one_last():
    one = by_time(0, 9, ("view", "buy"), behaviours=["view", "buy"])
    two = by_time(1, 7, ("like", "view", "buy"), behaviours=["like", "view", "buy"])
    for shared in (False, True):
        joined = join_domains({"one": one, "two": two}, shared)
        assert joined.behaviours == ["view", "like", "buy"]
        check_no_leak(joined)
    with pytest.raises(ValueError, match="domain 'two' does not say the kinds"):
        join_domains({"one": one, "two": by_time(1, 7)})
    with pytest.raises(ValueError, match="kind to recommend differs: {'one': 'buy', 'two': 'view'}"):
        join_domains({"one": one, "two": by_time(1, 7, ("view", "buy"), behaviours=["buy", "view"])})


@pytest.mark.parametrize("kinds", [(), ("view", "buy")])
def test_shared_users_are_what_one_log_of_all_domains_gives(kinds):
    rules = {"behaviours": ["view", "buy"]} if kinds else {}
    joined = join_domains({"a": by_time(0, 9, kinds, **rules), "b": by_time(1, 7, kinds, **rules)}, shared_users=True)
    logs = []
    for name, part in (("a", log(0, 9, kinds)), ("b", log(1, 7, kinds))):
        logs.append(part.set_column(1, "item_id", pa.array([f"{name}/{i}" for i in part["item_id"].to_pylist()])))
    direct = prepare(pa.concat_tables(logs), joined.items, **POINTS, **rules)
    for table in ("train", "valid", "test"):
        assert getattr(joined, table).equals(getattr(direct, table))
    assert joined.info["leak_check"]["joined"]["last_train"] < POINTS["valid_start"]
    mixed = [{item[0] for item in history} for history in joined.test["history"].to_pylist()]
    assert {"a", "b"} in mixed


def test_no_evaluation_interaction_of_any_domain_is_trained_and_histories_end_before_their_targets():
    """Users without training in a domain too; checked against the raw log, second by second."""
    late = log(1, 7).filter(pa.array([user not in ("u0", "u1") or t > 1500 for user, t in _pairs(log(1, 7))]))
    parts = {"a": by_time(0, 9), "b": prepare(late, catalogue(7), **POINTS)}
    joined = join_domains(parts, shared_users=True)
    when = {"a": log(0, 9), "b": late}
    done = {
        (row["user_id"], f"{name}/{row['item_id']}", row["timestamp"])
        for name, table in when.items()
        for row in table.to_pylist()
    }
    for row in joined.train.to_pylist():
        assert max(row["timestamps"]) < POINTS["valid_start"] and row["timestamps"] == sorted(row["timestamps"])
        assert {(row["user_id"], *pair) for pair in zip(row["item_ids"], row["timestamps"])} <= done
    targets = 0
    for table in (joined.valid, joined.test):
        for row in table.to_pylist():
            assert (row["user_id"], row["target"], row["timestamp"]) in done
            earlier = [
                item for user, item, time in sorted(done, key=lambda e: e[2])
                if user == row["user_id"] and time < row["timestamp"]
            ]  # fmt: skip
            assert _is_within(row["history"], earlier)
            targets += 1
    assert targets == sum(part.valid.num_rows + part.test.num_rows for part in parts.values())


def _pairs(table: pa.Table):
    return zip(table["user_id"].to_pylist(), table["timestamp"].to_pylist())


def _is_within(history: list, earlier: list) -> bool:
    rest = iter(earlier)
    return all(item in rest for item in history)


def test_what_cannot_be_joined_is_named():
    data, timed = prepare(log(0, 9), catalogue(9)), by_time(0, 9)

    def sized(size) -> PreparedData:
        return prepare(log(0, 9), catalogue(9, size=[size] * 9))

    for domains, shared, message in (
        ({"one": data}, False, "two domains or more"),
        ({"one": data, "a/b": data}, False, "domain 'a/b': .*without '/'"),
        ({"one": data, "two": data}, True, "one split by time.*'leave_one_out'"),
        ({"one": timed, "two": by_time(1, 7, test_start=1800)}, True, "one split by time.*1800"),
        ({"one": data, "two": prepare(log(0, 9), catalogue(9, domain=["x"] * 9))}, False, "'two'.*column 'domain'"),
        ({"one": sized(1.0), "two": sized("S")}, False, "column 'size' of the items is string, but double"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            join_domains(domains, shared)
