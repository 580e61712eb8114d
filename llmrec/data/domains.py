"""Several shops (domains) as one prepared data set: one catalogue with a column `domain`, one log.

Item ids become `<domain>/<id>`, always: two shops may number their items alike, and a domain that joins later changes
no id. Users become `<domain>/<id>` too, so those of different domains are different people, unless they are shared.
Shared users need one global split by time: with any other, a user's training interactions in one domain may be later
than their validation or test target in another.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.data.convert import TEXT
from llmrec.data.leaks import check_no_leak
from llmrec.data.prepared import PreparedData
from llmrec.data.rows import events_of, flatten_lists, ids_to_rows, list_array, numbered, with_columns
from llmrec.data.sequences import build_tables
from llmrec.data.statistics import statistics
from llmrec.data.validate import ITEM_TYPES

DOMAIN = "domain"
_SPLIT = ("split", "valid_start", "test_start", "max_history")


def check_domain_names(names: Sequence[str]) -> None:
    """Raises `ValueError` unless these are two names or more, none empty, none with a `/`."""
    if len(names) < 2:
        raise ValueError(f"two domains or more can be joined, not {len(names)}")
    for name in names:
        if not name or "/" in name:
            raise ValueError(f"domain {name!r}: a domain needs a name, and one without '/', which ends it in item ids")


def join_domains(domains: Mapping[str, PreparedData], shared_users: bool = False) -> PreparedData:
    """One prepared data set from those of several domains, in this order.

    Every part is checked for leaks by the rules of its own split, and what is joined for shared users once more.
    Items have the columns of all parts and `domain`; text that a part lacks is empty, anything else null.

    Args:
        shared_users (`bool`): equal user ids are one person, whose sequences are merged in order of time. A history
            then holds what the person did before the target in any domain. What a part has no time of (the history of
            a user's first target, where the user has no training sequence there) is left out.

    Raises:
        ValueError: fewer than two domains, a column `domain` or one of two types, kinds of interaction in some parts
            only or ending with different ones, a leak, or shared users without one split by time.
    """
    check_domain_names(list(domains))
    kinds = _joined_behaviours(domains)
    checks = {}
    for name, data in domains.items():
        try:
            checks[name] = check_no_leak(data)
        except ValueError as error:
            raise ValueError(f"domain {name!r}: {error}") from error
    rules = _joined_rules(domains, shared_users)
    items = _joined_items(domains)
    parts = [_prefixed(name, data, shared_users) for name, data in domains.items()]
    if shared_users:
        tables, rules["targets_without_history_left_out"] = _merged_in_time(parts, items, rules["max_history"])
    else:
        tables = {table: pa.concat_tables([part[table] for part in parts]) for table in ("train", "valid", "test")}
    sources = {
        name: {"name": data.info.get("name", ""), "fingerprint": data.fingerprint, "rules": data.info.get("rules", {})}
        for name, data in domains.items()
    }
    info = {"name": "+".join(domains), "source": "domains", "rules": rules, "domains": sources}
    joined = PreparedData(items=items, **tables, info=info | ({"behaviours": kinds} if kinds else {}))
    joined.info["statistics"] = statistics(joined)
    joined.info["leak_check"] = checks | ({"joined": check_no_leak(joined)} if shared_users else {})
    return joined


def _joined_behaviours(domains: Mapping[str, PreparedData]) -> list[str]:
    """The kinds of all domains, the one to recommend last."""
    without = [name for name, data in domains.items() if not data.behaviours]
    if len(without) == len(domains):
        return []
    if without:
        raise ValueError(
            f"domain {without[0]!r} does not say the kinds of its interactions, others do: prepare all with them, or "
            "all without (behaviours: [buy] keeps one kind)"
        )
    last = {name: data.behaviours[-1] for name, data in domains.items()}
    if len(set(last.values())) > 1:
        raise ValueError(
            f"the kind to recommend differs: {last}; name it last in behaviours when the data are prepared"
        )
    kinds = [kind for data in domains.values() for kind in data.behaviours[:-1]]
    return [*dict.fromkeys(kinds), *set(last.values())]


def _joined_rules(domains: Mapping[str, PreparedData], shared_users: bool) -> dict:
    """The split where all parts have the same one; "domains" says that each keeps its own."""
    splits = {name: [data.info.get("rules", {}).get(key) for key in _SPLIT] for name, data in domains.items()}
    first, *others = splits.values()
    same = all(split == first for split in others)
    if shared_users and not (same and first[0] == "time"):
        shown = ", ".join(f"{name} {dict(zip(_SPLIT, split))}" for name, split in splits.items())
        raise ValueError(
            "shared users need one split by time: prepare every domain with split: time and the same valid_start, "
            f"test_start and max_history; here {shown}"
        )
    return (dict(zip(_SPLIT, first)) if same else {"split": "domains"}) | {"shared_users": shared_users}


def _joined_items(domains: Mapping[str, PreparedData]) -> pa.Table:
    parts, types = [], {}
    for name, data in domains.items():
        items = data.items.replace_schema_metadata(None)
        if DOMAIN in items.column_names:
            raise ValueError(f"domain {name!r}: its items have a column {DOMAIN!r} already; rename it")
        for field in items.schema:
            if (earlier := types.setdefault(field.name, field.type)) != field.type:
                what = f"column {field.name!r} of the items is {field.type}, but {earlier} in an earlier domain"
                raise ValueError(f"domain {name!r}: {what}")
        domain = pa.repeat(name, items.num_rows)
        parts.append(with_columns(items, {"item_id": _tagged(name, items["item_id"]), DOMAIN: domain}))
    joined = pa.concat_tables(parts, promote_options="default")
    texts = [column for column, kind in ITEM_TYPES.items() if kind == TEXT and column in joined.column_names]
    # as `standard_items` writes missing text
    return with_columns(joined, {column: pc.fill_null(joined[column], "") for column in texts})


def _tagged(name: str, ids: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    return pc.binary_join_element_wise(pa.scalar(name), ids, "/")


def _prefixed(name: str, data: PreparedData, shared_users: bool) -> dict[str, pa.Table]:
    tables = {}
    for table, column in (("train", "item_ids"), ("valid", "history"), ("test", "history")):
        rows = getattr(data, table).replace_schema_metadata(None)
        ids, offsets = flatten_lists(rows[column])
        changed = {column: list_array(_tagged(name, ids), offsets)}
        if not shared_users:
            changed["user_id"] = _tagged(name, rows["user_id"])
        if table != "train":
            changed["target"] = _tagged(name, rows["target"])
        tables[table] = with_columns(rows, changed)
    return tables


def _merged_in_time(
    parts: Sequence[Mapping[str, pa.Table]], items: pa.Table, max_history: int | None
) -> tuple[dict[str, pa.Table], int]:
    """The tables of users who are the same in all parts, made from their dated interactions; see `build_tables`."""
    tables = [events_of(table) for part in parts for table in part.values()]
    events = pa.concat_tables(tables)
    labels = np.repeat(np.arange(3 * len(parts)) % 3, [table.num_rows for table in tables]).astype(np.int8)
    (users,), user_ids = numbered(events["user_id"])
    order = np.lexsort([events["timestamp"].to_numpy(), users])
    events, catalogue = events.take(pa.array(order)), items["item_id"].combine_chunks()
    return build_tables(
        users[order],
        ids_to_rows(events["item_id"], catalogue),
        events["timestamp"].combine_chunks(),
        labels[order],
        user_ids,
        catalogue,
        max_history,
        events["behaviour"].combine_chunks() if "behaviour" in events.column_names else None,
    )
