"""Proof from the four tables alone that no validation or test target can be learned in training."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.data.prepared import PreparedData
from llmrec.data.rows import (
    flatten_beside,
    flatten_lists,
    ids_to_rows,
    numbered,
    offsets_of,
    ragged_arange,
)

_FOLLOW = (("train", "valid"), ("valid", "test"))
_ITEMS = (("train", "item_ids"), ("valid", "history"), ("valid", "target"), ("test", "history"), ("test", "target"))


def check_no_leak(data: PreparedData) -> dict:
    """Checks the split of prepared data.

    Where every user has one sequence from its first interaction on ("leave_one_out", "time", "given"): a user's
    training sequence, validation and test targets form one chain, and every history is exactly the end of the chain
    before its target; so a target's position is never one that was trained. For "time", besides, training ends before
    validation begins, and validation before the test. For ready "windows" the start of a cut history is unknown; it is
    checked that no target with a whole history stands at a trained position, and that no dated training target of a
    user is later than the user's first dated validation or test target.

    Returns what was checked, for `dataset.json`; raises `ValueError` naming the table, the user and what leaks, or the
    row whose user or item has no id, or an item that is not in the catalogue.
    """
    _check_nulls(data)
    rule = data.info.get("rules", {}).get("split")
    if rule == "windows":
        return {"rule": "windows", **_check_windows(data)}
    _check_chains(data)
    result = {"rule": rule, "histories_end_before_their_targets": data.valid.num_rows + data.test.num_rows}
    if rule == "time":
        for before, after in _FOLLOW:
            last, first = _first_and_last(getattr(data, before))[1], _first_and_last(getattr(data, after))[0]
            result |= {f"last_{before}": last, f"first_{after}": first}
        _check_order(result)
    return result


def joined_checks(checks: Sequence[dict]) -> dict:
    """What `check_no_leak` of parts of the users says of all of them; raises `ValueError` as it does, and where there
    are none."""
    if not checks:
        raise ValueError("leak check: there are no parts to join")
    if len(checks) == 1:
        return checks[0]
    result = dict(checks[0])
    for name in result.keys() - {"rule"}:
        values = [check[name] for check in checks if check[name] is not None]
        join = {"first": min, "last": max}.get(name.split("_")[0], sum)
        result[name] = join(values) if values else None
    if result["rule"] == "time":
        _check_order(result)
    return result


def _check_nulls(data: PreparedData) -> None:
    for name in ("train", "valid", "test"):
        if (users := getattr(data, name)["user_id"]).null_count:
            raise ValueError(f"leak check: {name} row {pc.index(users.is_null(), True).as_py() + 1}: user_id is null")
    for name, column in _ITEMS:
        ids, offsets = _item_ids(data, name, column)
        if ids.null_count:
            place = pc.index(ids.is_null(), True).as_py()
            raise ValueError(f"leak check: {_row(data, name, column, place, offsets)}: an item id is null")


def _check_known(data: PreparedData, used: pa.Array) -> None:
    """Every item that is used is one of the catalogue."""
    catalogue = data.items["item_id"].combine_chunks().cast(pa.string())
    unknown = used.filter(pc.invert(pc.is_in(used, catalogue))).to_pylist()
    for name, column in _ITEMS if unknown else ():
        ids, offsets = _item_ids(data, name, column)
        if (place := pc.index(ids, unknown[0]).as_py()) >= 0:
            where = _row(data, name, column, place, offsets)
            raise ValueError(f"leak check: {where}: item {unknown[0]!r} is not in the catalogue")


def _item_ids(data: PreparedData, name: str, column: str) -> tuple[pa.Array | pa.ChunkedArray, np.ndarray]:
    """The item ids of a column of a table, and where those of each row begin."""
    values = getattr(data, name)[column]
    if column == "target":
        return values, np.arange(len(values) + 1)
    try:
        return flatten_lists(values)
    except ValueError as error:
        raise ValueError(f"leak check: {name}, column {column!r}: {error}") from error


def _row(data: PreparedData, name: str, column: str, place: int, offsets: np.ndarray) -> str:
    row = int(np.searchsorted(offsets, place, side="right")) - 1
    return f"{name} row {row + 1} (user {getattr(data, name)['user_id'][row].as_py()!r}), column {column!r}"


def _check_order(result: dict) -> None:
    for before, after in _FOLLOW:
        last, first = result[f"last_{before}"], result[f"first_{after}"]
        if None not in (last, first) and last >= first:
            raise ValueError(f"leak: last_{before} at {last} is not before first_{after} at {first}")


def _check_chains(data: PreparedData) -> None:
    rows = pa.concat_tables([data.valid, data.test])
    (train_users, users), names = numbered(data.train["user_id"], rows["user_id"])
    num_users = len(names)
    if len(np.unique(train_users)) != len(train_users):
        raise ValueError("leak check: a user has several training sequences")
    (train, offsets), (histories, bounds) = flatten_lists(data.train["item_ids"]), flatten_lists(rows["history"])
    (train, histories, targets), used = numbered(train, histories, rows["target"])
    _check_known(data, used)
    if data.behaviours:  # what was done is a pair of item and kind
        train = _pairs(train, flatten_beside(data.train, "behaviours", offsets), data)
        kinds = [
            flatten_beside(table, "behaviours", flatten_lists(table["history"])[1], name)
            for name, table in (("valid", data.valid), ("test", data.test))
        ]
        histories = _pairs(histories, pa.concat_arrays(kinds), data)
        targets = _pairs(targets, rows["target_behaviour"], data)
    trained, lengths, stops = np.diff(offsets), np.diff(bounds), bounds[1:]

    # A target's rank among its user's targets: validation rows come before test rows, each in order of time.
    by_user = np.argsort(users, kind="stable")
    counts = np.bincount(users, minlength=num_users)
    rank = np.empty(len(users), np.int64)
    rank[by_user] = ragged_arange(np.zeros_like(counts), counts)

    # A chain begins with the training sequence, or with the first history of a user that has none.
    begun = np.zeros(num_users, np.int64)
    begun[train_users] = trained
    untrained = np.flatnonzero((rank == 0) & (begun[users] == 0))
    begun[users[untrained]] = lengths[untrained]
    first_histories = histories[ragged_arange((stops - lengths)[untrained], stops[untrained])]
    owners = np.concatenate([np.repeat(train_users, trained), np.repeat(users[untrained], lengths[untrained]), users])
    chain = np.concatenate([train, first_histories, targets])[np.argsort(owners, kind="stable")]
    chain_starts = offsets_of(np.bincount(owners, minlength=num_users))[:-1]

    position = begun[users] + rank
    compared = np.minimum(lengths, position)
    ends = chain_starts[users] + position
    differ = chain[ragged_arange(ends - compared, ends)] != histories[ragged_arange(stops - compared, stops)]
    row_of = np.repeat(np.arange(len(users)), compared)
    wrong = (lengths > position) | (np.bincount(row_of, weights=differ, minlength=len(users)) > 0)
    if wrong.any():
        raise ValueError(
            f"leak: {_place(data, wrong)}: its history is not what the user did just before the target, so the target "
            "may stand in training"
        )


def _place(data: PreparedData, wrong: np.ndarray) -> str:
    """The first of the rows that are wrong (bool, of valid and then of test), in words."""
    row = int(wrong.argmax())
    name, row = ("valid", row) if row < data.valid.num_rows else ("test", row - data.valid.num_rows)
    return f"{name} row {row + 1} (user {getattr(data, name)['user_id'][row].as_py()!r})"


def _pairs(items: np.ndarray, kinds: pa.Array | pa.ChunkedArray, data: PreparedData) -> np.ndarray:
    """int64: (item, kind) pairs as numbers."""
    return items.astype(np.int64) * len(data.behaviours) + ids_to_rows(kinds, data.behaviours)


def _check_windows(data: PreparedData) -> dict:
    rows = pa.concat_tables([data.valid, data.test])
    (train_users, users), names = numbered(data.train["user_id"], rows["user_id"])
    num_users = len(names)
    items, offsets = flatten_lists(data.train["item_ids"])
    _check_known(data, numbered(items, flatten_lists(rows["history"])[0], rows["target"])[1])
    lengths = pc.list_value_length(rows["history"]).to_numpy()
    window = int(lengths.max(initial=0))
    context = data.train["num_context"].to_numpy()
    whole = context < window  # shorter than the cut, so the sequence begins with the user's first interaction
    trained = np.zeros(num_users, np.int64)
    np.maximum.at(trained, train_users[whole], np.diff(offsets)[whole])
    times, time_offsets = flatten_lists(data.train["timestamps"])
    dated = times.is_valid().to_numpy(zero_copy_only=False)
    latest = np.full(num_users, np.iinfo(np.int64).min)
    np.maximum.at(latest, np.repeat(train_users, np.diff(time_offsets))[dated], times.drop_null().to_numpy())
    decidable = lengths < window
    seconds = pc.fill_null(rows["timestamp"], np.iinfo(np.int64).max).to_numpy()
    known = rows["timestamp"].is_valid().to_numpy()
    for wrong, problem in (
        (decidable & (lengths < trained[users]), "its position is one of the user's training sequence"),
        (known & (latest[users] > seconds), "a training target of the user is later"),
    ):
        if wrong.any():
            raise ValueError(f"leak: {_place(data, wrong)}: {problem}")
    last_train, first_valid = _first_and_last(data.train)[1], _first_and_last(data.valid)[0]
    return {
        "targets_checked_by_position": int(decidable.sum()),
        "targets_checked_by_time": int((known & (latest[users] > np.iinfo(np.int64).min)).sum()),
        "targets": rows.num_rows,
        "last_train": last_train,
        "first_valid": first_valid,
        "no_training_target_after_first_valid": (
            None if last_train is None or first_valid is None else last_train <= first_valid
        ),
    }


def _first_and_last(table: pa.Table) -> tuple[int | None, int | None]:
    times = table["timestamp"] if "timestamp" in table.column_names else flatten_lists(table["timestamps"])[0]
    return tuple(pc.min_max(times).as_py().values())
