"""Cold items: every interaction with some items is taken out of training and validation, as if they had come later.

All that is learned then (features, codebooks, models, the choice of a checkpoint) is learned without them, while the
catalogue still has them.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.data.prepared import PreparedData
from llmrec.data.rows import (
    flatten_lists,
    ids_to_rows,
    list_array,
    lists_to_rows,
    offsets_of,
    training_rows,
    with_columns,
)
from llmrec.data.statistics import statistics


def hold_out_items(
    data: PreparedData, fraction: float = 0.05, seed: int = 0, from_training: bool = False
) -> PreparedData:
    """The same data as if some items had come after training.

    - Items are drawn from those in training, evenly over popularity: one of every 1 / `fraction` neighbours in order
      of their count. Items that training does not hold afterwards are all cold.
    - Training sequences and validation histories lose the cold items; validation rows with a cold target become test
      rows, since checkpoints are chosen on validation.
    - Test histories stay whole: by then the items are in the shop.

    - With `from_training` cold targets cut out of training sequences become test rows, too. There are many, but what
      the user did after them was trained on.

    `info["cold_items"]` lists the cold items, `info["rules"]["hold_out"]` says how they were drawn.
    Raises `ValueError` on a fraction that leaves no item, or data without items in training.
    """
    catalogue = data.items["item_id"]
    trained, _ = lists_to_rows(data.train["item_ids"], catalogue)
    counts = np.bincount(trained, minlength=data.items.num_rows)
    seen = np.flatnonzero(counts)
    number = round(fraction * len(seen))
    if not 1 <= number < len(seen):
        raise ValueError(f"fraction {fraction} of {len(seen)} items in training holds out {number}: it should be some")
    rng = np.random.default_rng(seed)
    by_count = seen[np.lexsort((rng.permutation(len(seen)), counts[seen]))]
    cold = np.zeros(data.items.num_rows, bool)
    cold[[rng.choice(block) for block in np.array_split(by_count, number)]] = True
    train = _without_items(data.train, cold[trained])
    cold[:] = True
    cold[lists_to_rows(train["item_ids"], catalogue)[0]] = False

    of_valid = cold[ids_to_rows(data.valid["target"], catalogue)]
    tests = [data.test, data.valid.filter(pa.array(of_valid))]
    rules = data.info.get("rules", {})
    if from_training:
        rows = training_rows(data.train, rules.get("max_history"))
        rows = rows.filter(pa.array(cold[ids_to_rows(rows["target"], catalogue)]))
        rows = rows.filter(pa.array(np.diff(flatten_lists(rows["history"])[1]) > 0))
        tests.append(rows.select(data.test.column_names).cast(data.test.schema))
    valid = data.valid.filter(pa.array(~of_valid))
    valid = _shorter_lists(valid, "history", ~cold[lists_to_rows(valid["history"], catalogue)[0]])
    info = {key: value for key, value in data.info.items() if key not in ("settings", "inputs_fingerprint")}
    hold_out = {"fraction": fraction, "seed": seed, "from_training": from_training, "of": data.fingerprint}
    info |= {"name": f"{info.get('name', 'data')}_cold", "rules": {**rules, "hold_out": hold_out}}
    info["cold_items"] = catalogue.filter(pa.array(cold)).to_pylist()
    without = PreparedData(data.items, train, valid, pa.concat_tables(tests), info)
    check_cold(without)
    without.info["statistics"] = statistics(without)
    return without


def check_cold(data: PreparedData) -> list[str]:
    """The cold items of a folder: those that `hold_out_items` named, or else all that neither training nor validation
    holds, a store's newest. Raises `ValueError` if there are none, or training or validation holds a named one."""
    known = {
        "train": flatten_lists(data.train["item_ids"])[0],
        "validation histories": flatten_lists(data.valid["history"])[0],
        "validation targets": data.valid["target"],
    }
    cold_items = data.info.get("cold_items")
    if cold_items is None:
        seen = {item for items in known.values() for item in items.to_pylist()}
        cold_items = [item for item in data.items["item_id"].to_pylist() if item not in seen]
    if not cold_items:
        raise ValueError("training has seen every item: recipes/cold_start.py --step hold_out makes some of them cold")
    for where, items in known.items():
        leaked = items.filter(pc.is_in(items, pa.array(cold_items)))
        if len(leaked):
            raise ValueError(f"leak: cold item {leaked[0].as_py()!r} stands in {where}")
    return cold_items


def _without_items(train: pa.Table, out: np.ndarray) -> pa.Table:
    """Training sequences without some of their elements (bool [elements])."""
    lengths = np.diff(flatten_lists(train["item_ids"])[1])
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(out)) - (np.cumsum(lengths) - lengths)[sequence]
    context = train["num_context"].to_numpy()
    # The first item was context, so the first that is left is: a target needs a history.
    shown = np.bincount(sequence[~out & (place < context[sequence])], minlength=len(lengths))
    shown = pa.array(np.maximum(shown, np.minimum(context, 1)).astype(np.int32))
    return _shorter_lists(with_columns(train, {"num_context": shown}), "item_ids", ~out)


def _shorter_lists(table: pa.Table, name: str, stays: np.ndarray) -> pa.Table:
    """Only these elements (bool [elements]) of a list column and of the lists beside it, which are parallel to it;
    rows whose list is empty disappear."""
    offsets = flatten_lists(table[name])[1]
    row = np.repeat(np.arange(table.num_rows), np.diff(offsets))
    left = np.bincount(row[stays], minlength=table.num_rows)
    for field in table.schema:
        if pa.types.is_list(field.type):
            values = flatten_lists(table[field.name])[0].filter(pa.array(stays))
            table = with_columns(table, {field.name: list_array(values, offsets_of(left)).cast(field.type)})
    return table.filter(pa.array(left > 0))
