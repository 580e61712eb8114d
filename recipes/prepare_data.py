"""Prepares data: load, validate, clean, k-core, split; writes the folder that every later stage reads.

    python recipes/prepare_data.py --config recipes/configs/quickstart/data.yaml
    python recipes/prepare_data.py --config recipes/configs/own_csv/data.yaml --user_k 3 --overwrite true

A folder prepared with the same settings from the same files is reused; one with other settings needs --overwrite true.
"""

import inspect
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa

from llmrec.arguments import at_least, did_you_mean, one_of
from llmrec.commands import run_script
from llmrec.data import PreparedData, prepare_parts
from llmrec.data.prepared import check_replaceable
from llmrec.data.provenance import can_reuse, expand, inputs_fingerprint
from llmrec.data.sources import SOURCES
from llmrec.data.statistics import statistics_table
from llmrec.files import Lock


@dataclass
class DataArguments:
    output_dir: str = field(metadata={"help": "Folder to write."})
    source: str = field(metadata={"help": f"Where the data comes from: {', '.join(SOURCES)}."})
    source_args: dict = field(default_factory=dict, metadata={"help": "Arguments of the source's loader."})
    name: str = field(default="", metadata={"help": "Name of the data set, for reports."})
    user_k: int = field(default=0, metadata={"help": "Every user keeps at least so many interactions."})
    item_k: int = field(default=0, metadata={"help": "Every item keeps at least so many interactions."})
    split: str = field(default="leave_one_out", metadata={"help": "leave_one_out, time or given."})
    fractions: list[float] = field(
        default_factory=lambda: [0.8, 0.1, 0.1], metadata={"help": "Shares of train, valid and test in a time split."}
    )
    valid_start: str | None = field(default=None, metadata={"help": "First moment of validation (ISO 8601, UTC)."})
    test_start: str | None = field(default=None, metadata={"help": "First moment of the test (ISO 8601, UTC)."})
    ties: str = field(default="input_order", metadata={"help": "Order at equal times: input_order or item_id."})
    repeats: str = field(default="keep", metadata={"help": "keep, drop_duplicates, drop_consecutive or first."})
    behaviours: list[str] | None = field(default=None, metadata={"help": "Keep only these kinds of interaction."})
    min_rating: float | None = field(default=None, metadata={"help": "Keep only ratings from this one on."})
    unknown_items: str = field(default="error", metadata={"help": "error or drop: interactions without an item."})
    keep_all_items: bool = field(default=False, metadata={"help": "Items outside the k-core stay in the catalogue."})
    clean: bool = field(default=True, metadata={"help": "Remove HTML and surplus white space from item text."})
    max_history: int | None = field(default=50, metadata={"help": "Length of validation and test histories."})
    max_user_interactions: int | None = field(default=None, metadata={"help": "Users with more keep the last ones."})
    currency: str | None = field(default=None, metadata={"help": "Of the prices, as prompts say it: €, EUR."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what is there."})


def load(source: str, source_args: dict) -> tuple[pa.Table, pa.Table]:
    takes = inspect.signature(SOURCES[one_of(source, SOURCES, "source")])
    try:
        takes.bind(**source_args)
    except TypeError as error:
        near = next((did_you_mean(name, takes.parameters) for name in source_args if name not in takes.parameters), "")
        raise ValueError(f"source_args of source {source!r}: {error}{near}") from error
    return SOURCES[source](**source_args)


def main(args: DataArguments) -> None:
    at_least(args, user_k=0, item_k=0, max_history=1, max_user_interactions=1, fractions=0.0)
    settings = expand(asdict(args))
    output_dir, overwrite = Path(settings.pop("output_dir")), settings.pop("overwrite")
    inputs = inputs_fingerprint(settings)
    if not overwrite and can_reuse(output_dir, settings, inputs):
        info = PreparedData.load(output_dir).info
        print(f"Reusing {output_dir}: same settings, same files (--overwrite true prepares it again).")
    else:
        rules = dict(settings)
        with Lock(output_dir):
            check_replaceable(output_dir)
            interactions, items = load(settings["source"], rules.pop("source_args"))
            parts = prepare_parts(interactions, items, **rules)
            parts.save(output_dir, settings=settings, inputs_fingerprint=inputs)
            info = parts.info
        print(f"Prepared {output_dir}.")
    print(statistics_table(info["statistics"]))


if __name__ == "__main__":
    run_script(main, DataArguments)
