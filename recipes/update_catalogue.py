"""Next version of a catalogue: new items get Semantic IDs, old ones go, nobody moves, and a model follows.

    python recipes/update_catalogue.py --semids out/shop/semids --items new.parquet --output_dir out/shop/semids_2
    python recipes/update_catalogue.py ... --remove B01 B02 --model out/shop/model

Writes semids.parquet, item_tokenizer/, features.npy, diff.json, drift/ (report.md: is it time for new Semantic IDs?)
and, with `model`, model/: the trained model for the new catalogue. Nothing in the old folders is touched.
"""

import logging
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.catalogue import lifecycle
from llmrec.catalogue.drift import drift_lines, drift_report, write_drift_report
from llmrec.catalogue.semids import SemIDIndex
from llmrec.commands import run_script
from llmrec.data import ids_to_rows
from llmrec.features import ItemFeatures
from llmrec.files import atomic_path, read_parquet, write_json
from llmrec.item_tokenizers import add_items, load_item_tokenizer
from llmrec.models.update import update_model_folder
from llmrec.serving.writers import give_writer
from llmrec.stages import begin_stage, finish_stage, settings_of


@dataclass
class UpdateArguments:
    semids: str = field(metadata={"help": "Folder of recipes/tokenize_items.py, or of this recipe."})
    output_dir: str = field(metadata={"help": "Folder to write."})
    items: str | None = field(
        default=None, metadata={"help": "Parquet or prepared data: new items, and old ones whose columns changed."}
    )
    remove: list[str] = field(default_factory=list, metadata={"help": "Ids of items that go."})
    reuse: bool = field(default=False, metadata={"help": "Let newcomers have the Semantic IDs that become free."})
    model: str | None = field(default=None, metadata={"help": "Model folder (recipes/sft.py) that shall follow."})
    hard_links: bool = field(default=False, metadata={"help": "Share the weights' files with that folder."})
    cache_dir: str = field(default="out/feature_cache", metadata={"help": "Text embeddings by content."})
    overwrite: bool = field(default=False, metadata={"help": "Replace an update with other settings."})


def main(args: UpdateArguments) -> None:
    if not (args.items or args.remove):
        raise ValueError("nothing to do: give items, remove, or both")
    args.remove = [str(item) for item in args.remove]  # YAML reads ids of digits as numbers
    source, folder = Path(args.semids), Path(args.output_dir)
    for old in filter(None, (args.semids, args.model)):
        mine, theirs = folder.resolve(), Path(old).resolve()
        if mine == theirs or theirs in mine.parents or mine in theirs.parents:
            raise ValueError(f"output_dir {folder} and {old} must lie apart: the old folder stays as it is")
    index, table = SemIDIndex.load(source / "semids.parquet"), read_parquet(source / "semids.parquet")
    given = lifecycle.read_catalogue(args.items) if args.items else None
    columns = table.drop_columns(["semid", "codes"]).take(pa.array([index.row(item) for item in index.items]))
    items = lifecycle.next_catalogue(columns, given, args.remove, index.version + 1, index.reserved_versions)
    new = items.filter(pc.invert(pc.is_in(items["item_id"], pa.array(index.items))))
    lifecycle.check_updatable(index, source, adding=new.num_rows > 0)
    settings = settings_of(args, ignore=("output_dir", "overwrite", "cache_dir"))
    if begin_stage(folder, settings | lifecycle.update_inputs(index, given, args.model), args.overwrite) == "done":
        print(f"Reusing {folder} (same settings, same items).")
        return
    latest = lifecycle.remove_items(index, args.remove, args.reuse, columns) if args.remove else index
    matrix = np.load(source / "features.npy", allow_pickle=False)
    if new.num_rows:
        tokenizer = give_writer(load_item_tokenizer(source / "item_tokenizer"))
        features = ItemFeatures.from_pretrained(source / "item_tokenizer" / "features", args.cache_dir).encode(new)
        latest = add_items(latest, tokenizer, features, new["item_id"].to_pylist(), new)
        matrix = np.concatenate([matrix, features])
    latest = lifecycle.next_version(index, latest.aligned(items))
    matrix = matrix[ids_to_rows(items["item_id"], [*index.items, *new["item_id"].to_pylist()])]
    latest.save(folder / "semids.parquet", items)
    if (source / "item_tokenizer").is_dir():
        shutil.copytree(source / "item_tokenizer", folder / "item_tokenizer", dirs_exist_ok=True)
    with atomic_path(folder / "features.npy") as path:
        np.save(path, matrix)
    changes = lifecycle.diff(index, latest)
    write_json(folder / "diff.json", asdict(changes))
    drift = drift_report(latest, matrix, items[lifecycle.VERSION_COLUMN].to_numpy() > 1)
    write_drift_report(drift, folder / "drift")
    print(f"Version {latest.version}: {changes}", *drift_lines(drift), sep="\n")
    if args.model and not (folder / "model").exists():
        update_model_folder(args.model, latest, items, folder / "model", args.hard_links, args.cache_dir)
    finish_stage(folder, verdict=drift["verdict"], version=latest.version)
    print(f"Wrote {folder}: {latest.fingerprint}, {len(latest.items)} items.")


if __name__ == "__main__":
    run_script(main, UpdateArguments, level=logging.INFO)
