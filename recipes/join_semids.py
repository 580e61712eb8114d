"""Joins the Semantic IDs of several folders of recipes/tokenize_items.py into views side by side.

    python recipes/join_semids.py --config my/views.yaml

with `semids: {semantic: out/beauty/semids, collaborative: out/beauty/semids_cf}` and `output_dir` in the YAML; the
first view is the primary one. Writes semids.parquet and item_tokenizer/<view>/, what recipes/init_model.py reads.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from llmrec.catalogue.semids import SemIDIndex
from llmrec.catalogue.views import join_views
from llmrec.commands import run_script
from llmrec.models.folder import ITEM_TOKENIZER, SEMIDS, semids_table
from llmrec.stages import begin_stage, finish_stage, settings_of


@dataclass
class JoinArguments:
    semids: dict = field(metadata={"help": "YAML: view name → folder of recipes/tokenize_items.py."})
    output_dir: str = field(metadata={"help": "Folder to write."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what is there."})


def main(args: JoinArguments) -> None:
    folders = {name: Path(folder) for name, folder in args.semids.items()}
    indexes = {name: SemIDIndex.load(folder / SEMIDS) for name, folder in folders.items()}
    settings = settings_of(args, ignore=("output_dir", "overwrite", "semids"))
    settings |= {"views": [[name, index.fingerprint] for name, index in indexes.items()]}  # the first is primary
    joined, output = join_views(indexes), Path(args.output_dir)
    if begin_stage(output, settings, args.overwrite) == "done":
        print(f"Reusing the Semantic IDs in {output} (same views).")
        return
    for name, folder in folders.items():
        if (folder / ITEM_TOKENIZER).is_dir():
            shutil.copytree(folder / ITEM_TOKENIZER, output / ITEM_TOKENIZER / name, dirs_exist_ok=True)
    joined.save(output / SEMIDS, semids_table(next(iter(folders.values()))))
    finish_stage(output, tokens=len(joined.tokens))
    for row in range(0, len(joined), len(joined.items)):
        print(f"{joined.item_ids[row]}  {joined.semid_of_row(row)}")
    print(f"Wrote {output}. Next: recipes/init_model.py")


if __name__ == "__main__":
    run_script(main, JoinArguments)
