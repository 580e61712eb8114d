"""Proof from the four tables alone that no validation or test target can be learned in training."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.data.prepared import PreparedData
from llmrec.data.rows import (
    flatten_beside,
    flatten_lists,
    ids_to_rows,
    lists_to_rows,
    numbered,
    offsets_of,
    ragged_arange,
)


def check_no_leak(data: PreparedData) -> dict:
    """Checks the split of prepared data.

    Where every user has one sequence from its first interaction on ("leave_one_out", "time", "given"): a user's
    training sequence, validation and test targets form one chain, and every history is exactly the end of the chain
    before its target; so a target's position is never one that was trained. For "time", besides, training ends before
    validation begins, and validation before the test. For ready "windows" the start of a cut history is unknown; it is
    checked that no target with a whole history stands at a trained position, and that no dated training target of a
    user is later than the user's first dated validation or test target.

    Returns:
        What was checked, for `dataset.json`.

    Raises:
        ValueError: naming the table, the user and what leaks.
    """
    rule = data.info.get("rules", {}).get("split")
    if rule == "windows":
        return {"rule": "windows", **_check_windows(data)}
    _check_chains(data)
    result = {"rule": rule, "histories_end_before_their_targets": data.valid.num_rows + data.test.num_rows}
    if rule == "time":
        result["last_train"], result["first_valid"] = _first_and_last(data.train)[1], _first_and_last(data.valid)[0]
        result["last_valid"], result["first_test"] = _first_and_last(data.valid)[1], _first_and_last(data.test)[0]
        for before, after in (("last_train", "first_valid"), ("last_valid", "first_test")):
            if None not in (result[before], result[after]) and result[before] >= result[after]:
                raise ValueError(f"leak: {before} at {result[before]} is not before {after} at {result[after]}")
    return result


def _check_chains(data: PreparedData) -> None:
    (train_users, *eval_users), names = numbered(*(table["user_id"] for table in (data.train, data.valid, data.test)))
    num_users = len(names)
    if len(np.unique(train_users)) != len(train_users):
        raise ValueError("leak check: a user has several training sequences")
    catalogue = data.items["item_id"]
    train, offsets = lists_to_rows(data.train["item_ids"], catalogue)
    trained = np.diff(offsets)
    users = np.concatenate(eval_users)
    parts = [lists_to_rows(table["history"], catalogue) for table in (data.valid, data.test)]
    targets = np.concatenate([ids_to_rows(table["target"], catalogue) for table in (data.valid, data.test)])
    if data.behaviours:  # what was done is a pair of item and kind
        train = _pairs(data, "train", train, offsets)
        parts = [(_pairs(data, name, *part), part[1]) for name, part in zip(("valid", "test"), parts)]
        of_targets = [ids_to_rows(table["target_behaviour"], data.behaviours) for table in (data.valid, data.test)]
        targets = targets.astype(np.int64) * len(data.behaviours) + np.concatenate(of_targets)
    histories = np.concatenate([values for values, _ in parts])
    lengths = np.concatenate([np.diff(part) for _, part in parts])
    stops = np.cumsum(lengths)

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
        row = int(wrong.argmax())
        name, row = ("valid", row) if row < data.valid.num_rows else ("test", row - data.valid.num_rows)
        user = getattr(data, name)["user_id"][row].as_py()
        raise ValueError(
            f"leak: {name} row {row + 1} (user {user!r}): its history is not what the user did just before the "
            "target, so the target may stand in training"
        )


def _pairs(data: PreparedData, name: str, items: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """int64: (item, behaviour) pairs as numbers; the lists of both must have equal lengths."""
    kinds = ids_to_rows(flatten_beside(getattr(data, name), "behaviours", offsets, name), data.behaviours)
    return items.astype(np.int64) * len(data.behaviours) + kinds


def _check_windows(data: PreparedData) -> dict:
    (train_users, *eval_users), names = numbered(*(table["user_id"] for table in (data.train, data.valid, data.test)))
    num_users = len(names)
    _, offsets = flatten_lists(data.train["item_ids"])
    window = max(int(pc.max(pc.list_value_length(t["history"])).as_py() or 0) for t in (data.valid, data.test))
    context = data.train["num_context"].to_numpy()
    whole = context < window  # shorter than the cut, so the sequence begins with the user's first interaction
    trained = np.zeros(num_users, np.int64)
    np.maximum.at(trained, train_users[whole], np.diff(offsets)[whole])
    times, time_offsets = flatten_lists(data.train["timestamps"])
    time_users = np.repeat(train_users, np.diff(time_offsets))
    dated = times.is_valid().to_numpy(zero_copy_only=False)
    latest = np.full(num_users, np.iinfo(np.int64).min)
    np.maximum.at(latest, time_users[dated], times.drop_null().to_numpy())
    positions = dates = 0
    for name, users in zip(("valid", "test"), eval_users):
        table = getattr(data, name)
        lengths = pc.list_value_length(table["history"]).to_numpy()
        decidable = lengths < window
        positions += int(decidable.sum())
        seconds = pc.fill_null(table["timestamp"], np.iinfo(np.int64).max).to_numpy()
        known = table["timestamp"].is_valid().to_numpy()
        dates += int((known & (latest[users] > np.iinfo(np.int64).min)).sum())
        for bad, problem in (
            (decidable & (lengths < trained[users]), "its position is one of the user's training sequence"),
            (known & (latest[users] > seconds), "a training target of the user is later"),
        ):
            if bad.any():
                row = int(bad.argmax())
                raise ValueError(f"leak: {name} row {row + 1} (user {table['user_id'][row].as_py()!r}): {problem}")
    last_train, first_valid = _first_and_last(data.train)[1], _first_and_last(data.valid)[0]
    return {
        "targets_checked_by_position": positions,
        "targets_checked_by_time": dates,
        "targets": data.valid.num_rows + data.test.num_rows,
        "last_train": last_train,
        "first_valid": first_valid,
        "no_training_target_after_first_valid": (
            None if last_train is None or first_valid is None else last_train <= first_valid
        ),
    }


def _first_and_last(table: pa.Table) -> tuple[int | None, int | None]:
    times = table["timestamp"] if "timestamp" in table.column_names else flatten_lists(table["timestamps"])[0]
    return tuple(pc.min_max(times).as_py().values())
