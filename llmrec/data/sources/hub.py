"""A data set on the Hugging Face Hub (or a local folder that `datasets.load_dataset` can read)."""

from collections.abc import Mapping

import pyarrow as pa

from llmrec.data.validate import INTERACTION_TYPES, items_without_text, standard_interactions, standard_items


def load_hub(
    interactions: Mapping,
    items: Mapping | None = None,
    columns: Mapping | None = None,
    item_columns: Mapping | None = None,
    timestamp_unit: str = "s",
    streaming: bool = False,
) -> tuple[pa.Table, pa.Table]:
    """Loads interactions and items with `datasets.load_dataset`.

    Args:
        interactions: keyword arguments of `load_dataset`, e.g. `{"path": "org/name", "name": "reviews"}`;
            `split` is "train" unless given.
        items: the same for the items; without it items have no text, only the ids that occur.
        columns, item_columns: standard name → own name.
        timestamp_unit: of numeric timestamps: s, ms, us or ns.
        streaming: read without the data set's copy on disk, keeping the needed columns only.
    """
    wanted = {(columns or {}).get(name, name) for name in INTERACTION_TYPES}
    raw = _read(interactions, streaming, wanted)
    table = standard_interactions(raw, _name(interactions), columns, timestamp_unit)
    if items is None:
        return table, items_without_text(table)
    return table, standard_items(_read(items, streaming), _name(items), item_columns)


def _read(arguments: Mapping, streaming: bool, wanted: set[str] | None = None) -> pa.Table:
    import datasets

    if "path" not in arguments:
        raise ValueError(f"a Hub data set needs a path, e.g. {{path: org/name}}; got {dict(arguments)}")
    try:
        data = datasets.load_dataset(**{"split": "train", **arguments}, streaming=streaming).with_format("arrow")
        batches = data.iter(batch_size=100_000) if streaming else [data[:]]
        kept = [b.select([n for n in b.column_names if wanted is None or n in wanted]) for b in batches]
        return pa.concat_tables(kept, promote_options="permissive")
    except (datasets.exceptions.DatasetsError, OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"{_name(arguments)} cannot be loaded: {error}") from error


def _name(arguments: Mapping) -> str:
    return " ".join(str(arguments[key]) for key in ("path", "name", "split") if key in arguments)
