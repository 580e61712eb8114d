"""Joins several shops (domains) into one prepared data set, and their Semantic IDs into one index.

    python recipes/join_domains.py --config recipes/configs/domains/join.yaml

with `domains: {industrial: {data_dir: out/industrial/data, semids: out/industrial/semids}, ...}` and `output_dir` in
the YAML. Writes <output_dir>/data and <output_dir>/semids, which recipes/init_model.py reads like any others; the
first token of a Semantic ID says the domain. docs/domains.md says more.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from llmrec.catalogue.domains import join_domain_semids
from llmrec.catalogue.semids import SemIDIndex
from llmrec.commands import run_script
from llmrec.data import PreparedData
from llmrec.data.domains import join_domains
from llmrec.data.statistics import statistics_table
from llmrec.models.folder import ITEM_TOKENIZER, SEMIDS
from llmrec.stages import begin_stage, finish_stage, settings_of

PARTS = ("data_dir", "semids")


@dataclass
class JoinArguments:
    domains: dict = field(metadata={"help": "YAML: domain → {data_dir: prepared data, semids: folder or index.json}."})
    output_dir: str = field(metadata={"help": "Folder to write."})
    shared_users: bool = field(default=False, metadata={"help": "Equal user ids are one person (split: time only)."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what is there."})


def read_domains(domains: dict) -> tuple[dict[str, PreparedData], dict[str, SemIDIndex], dict[str, Path]]:
    """Data, Semantic IDs of its items, and where these lie, by domain."""
    data, indexes, folders = {}, {}, {}
    for name, part in domains.items():
        if not isinstance(part, dict) or sorted(part) != sorted(PARTS):
            raise ValueError(f"domains: {name!r} should be {{{', '.join(f'{key}: ...' for key in PARTS)}}}")
        data[name], folders[name] = PreparedData.load(part["data_dir"]), Path(part["semids"])
        file = folders[name] / SEMIDS if folders[name].is_dir() else folders[name]
        try:
            indexes[name] = SemIDIndex.load(file).aligned(data[name].items)
        except ValueError as error:
            raise ValueError(f"domain {name!r}: {error}") from error
    return data, indexes, folders


def main(args: JoinArguments) -> None:
    data, indexes, folders = read_domains(args.domains)
    settings = settings_of(args, ignore=("output_dir", "overwrite", "domains"))
    settings |= {"domains": [[name, data[name].fingerprint, indexes[name].fingerprint] for name in data]}  # in order
    joined, index, output = join_domains(data, args.shared_users), join_domain_semids(indexes), Path(args.output_dir)
    if begin_stage(output, settings, args.overwrite) == "done":
        print(f"Reusing the joined domains in {output} (same data, same Semantic IDs).")
        return
    joined.save(output / "data")
    for name, folder in folders.items():
        if (folder / ITEM_TOKENIZER).is_dir():
            shutil.copytree(folder / ITEM_TOKENIZER, output / "semids" / ITEM_TOKENIZER / name, dirs_exist_ok=True)
    index.save(output / "semids" / SEMIDS, joined.items)
    finish_stage(output, items=joined.items.num_rows, tokens=len(index.tokens))
    print(statistics_table(joined.info["statistics"]))
    for number, name in enumerate(data):
        item = f"{name}/{indexes[name].item_ids[0]}"
        print(f"{index.token(0, number)} is {name}: {indexes[name].num_levels} levels; {item} is {index.encode(item)}")
    print(f"Wrote {output}/data and {output}/semids. Next: recipes/init_model.py")


if __name__ == "__main__":
    run_script(main, JoinArguments)
