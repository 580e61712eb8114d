"""Writes the YAML files of a project, in the manner of recipes/configs/own_csv, from a look at your files.

    llmrec new my_shop --interactions orders.csv --items products.csv
    llmrec new my_shop --interactions orders.csv --columns user_id=Client timestamp=Day --timestamp_unit %d.%m.%Y

my_shop/data.yaml says of every guess why it was made; what cannot be guessed is asked for. The files are CSV, TSV,
JSON lines or parquet, as `source: table` reads them (docs/own_data.md).
"""

import argparse
import logging
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import yaml

from llmrec.data.convert import as_ids
from llmrec.data.guessing import Guess, guess_interactions, guess_items, lists_written, price_written
from llmrec.data.sources.tables import delimiter_of, file_format, find_files, read_file
from llmrec.data.validate import INTERACTION_TYPES, ITEM_TYPES
from llmrec.files import atomic_path
from llmrec.messages import print_error
from llmrec.shipped import folder

LIKE = "own_csv"  # of recipes/configs
NEXT = (("prepare_data", "data"), ("tokenize_items", "semids"), ("train_baselines", "baselines"),
        ("init_model", "model"), ("sft", "sft"), ("evaluate", "evaluate"))  # fmt: skip
TEXT_FEATURES = "  - kind: text\n    encoder: auto\n    max_seq_length: 64\n"
RULES = """# Rules
user_k: 5 # users and items with fewer interactions are left out
item_k: 5
split: leave_one_out # or time: everything after a moment is the test
repeats: keep # or drop_duplicates: the same item at the same time counts once
unknown_items: error # or drop: interactions with an item that the items lack
"""


def main() -> None:
    sys.excepthook = print_error
    logging.getLogger("llmrec").setLevel(logging.ERROR)  # what loading guesses aloud stands in the YAML
    write(parse(sys.argv[1:]))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise ValueError(f"{message}; llmrec new --help has the flags")


def parse(argv: list[str]) -> argparse.Namespace:
    made = argparse.RawDescriptionHelpFormatter
    parser = _Parser("llmrec new", description=__doc__, allow_abbrev=False, formatter_class=made)
    parser.add_argument("folder", type=Path, help="to write; its name is the project's")
    parser.add_argument("--interactions", required=True, help="a file, a folder or a glob: one row per event")
    parser.add_argument("--items", help="the same: one row per item")
    parser.add_argument("--columns", nargs="+", default=[], metavar="NAME=COLUMN", help="of the interactions: "
                        "user_id, item_id, timestamp, ...")  # fmt: skip
    parser.add_argument("--item_columns", nargs="+", default=[], metavar="NAME=COLUMN", help="of the items: "
                        "item_id, title, ...")  # fmt: skip
    parser.add_argument("--timestamp_unit", help="s, ms, us, ns, or the form as strptime reads it: %%d.%%m.%%Y")
    parser.add_argument("--encoding", default="utf-8", help="of CSV and TSV files")
    return parser.parse_args(argv)


def write(args: argparse.Namespace) -> None:
    name = args.folder.name
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ValueError(f"{str(args.folder)!r}: name the project with letters, digits, '-' and '_'")
    if args.folder.exists() and (not args.folder.is_dir() or any(args.folder.iterdir())):
        raise ValueError(f"{args.folder} exists: choose another name, or remove it")
    text = data_yaml(args, name)
    with atomic_path(args.folder) as made:
        made.mkdir()
        for file in sorted((folder("recipes") / "configs" / LIKE).glob("*.yaml")):
            like = file.read_text(encoding="utf-8").replace(LIKE, name)
            if args.items is None:
                like = like.replace(TEXT_FEATURES, "  # there are no texts of the items\n")
            (made / file.name).write_text(text if file.stem == "data" else like, encoding="utf-8")
    commands = [f"  llmrec {stage} --config {args.folder}/{config}.yaml" for stage, config in NEXT]
    commands.append(f"  llmrec recommend --model out/{name}/model --data_dir out/{name}/data")
    guesses = text.partition("source_args:\n")[2].partition("# Rules")[0]
    sys.stdout.write("\n".join([f"Wrote {args.folder}. data.yaml says:", "", guesses, "Next:", *commands, ""]))


def data_yaml(args: argparse.Namespace, name: str) -> str:
    """The text of data.yaml; every line that was guessed ends with the reason."""
    events, where = _read(args.interactions, args.encoding)
    given = _pairs(args.columns, "columns") | ({"timestamp_unit": args.timestamp_unit} if args.timestamp_unit else {})
    columns = guess_interactions(events, where, given)
    unit = columns.pop("timestamp_unit", None)
    lines = [
        f"# Written by `llmrec new`, which looked at {' and '.join(filter(None, (args.interactions, args.items)))}."
    ]
    lines += [
        "# What follows a # is why: change what is wrong. docs/own_data.md has all settings.",
        f"name: {_dump(name)}",
        f"output_dir: out/{name}/data",
        "source: table",
        "source_args:",
        _line("interactions", args.interactions),
    ]
    lines += [_line("items", args.items)] if args.items else []
    lines += [] if args.encoding == "utf-8" else [_line("encoding", args.encoding)]
    lines += _delimiter(args)
    lines += _mapping("columns", events, columns, INTERACTION_TYPES, "not used")
    lines += [_line("timestamp_unit", *unit)] if unit else []
    if "timestamp" not in columns:
        lines.append("  # no timestamp: the rows stand in the order of time")
    decimals = {}
    if "rating" in columns and (written := price_written(events[columns["rating"].value])):
        decimals[written[1]] = columns["rating"].value
    lines += _items(args, events, columns, decimals) if args.items else []
    if decimals.keys() - {None} == {","}:  # where columns differ, each is seen for itself
        lines.append(_line("decimal", ",", f"in {decimals[',']}"))
    return "\n".join([*lines, RULES])


def _items(args: argparse.Namespace, events: pa.Table, columns: dict[str, Guess], decimals: dict) -> list[str]:
    table, where = _read(args.items, args.encoding)
    source = columns["item_id"].value
    bought = as_ids(events[source], args.interactions, source)
    found = guess_items(table, where, _pairs(args.item_columns, "item_columns"), bought, source)
    settings = []
    if "price" in found:
        name = found["price"].value
        written = price_written(table[name])
        if written is None:
            why = "is written in several ways, or in one that can be read in two: set price_format and decimal"
            settings.append(f"  # {_in_a_line(name)} {why}")
        else:
            settings += [_line("price_format", written[0], f"how {name} is written")] if written[0] else []
            decimals[written[1]] = name
    rules = []
    meanings = {guess.value: meaning for meaning, guess in found.items()}
    for name in map(str, table.column_names):
        meaning = meanings.get(name)
        if meaning in (None, "categories") and (rule := lists_written(table[name], meaning)):
            why = f"{rule[1][:60]!r}; path: from wide to narrow, several: side by side"
            rules.append("  " + _line(meaning or name, rule[0], why))
    columns = _mapping("item_columns", table, found, ITEM_TYPES, "kept under their own names, for filters")
    return [*columns, *settings, *(["  item_lists:"] if rules else []), *rules]


def _mapping(name: str, table: pa.Table, found: dict[str, Guess], standard: Iterable[str], rest: str) -> list[str]:
    used = {guess.value for guess in found.values()}
    others = [column for column in map(str, table.column_names) if column not in used]
    by_name = [column for column in others if column in standard and column not in found]
    lines = [f"  {name}:", *("  " + _line(meaning, *guess) for meaning, guess in found.items())]
    for columns, what in ((by_name, "used by this name"), ([one for one in others if one not in by_name], rest)):
        lines += [f"  # {_in_a_line(', '.join(columns))}: {what}"] if columns else []
    return lines


def _delimiter(args: argparse.Namespace) -> list[str]:
    files = [path for where in (args.interactions, args.items) if where for path in find_files(where)]
    found = {delimiter_of(path, args.encoding) for path in files if file_format(path) == "csv"}
    if len(found) != 1 or found == {","}:
        return []  # seen from each file when it is read
    return [_line("delimiter", *found, "it parts the first rows into as many values as the header has")]


def _line(key: str, value: object, why: str = "") -> str:
    return f"  {_dump(key)}: {_dump(value)}" + (f" # {_in_a_line(why)}" if why else "")


def _dump(value: object) -> str:
    style = '"' if isinstance(value, str) and "\n" in value else None  # which alone writes a line break in one line
    written = yaml.safe_dump(value, default_style=style, default_flow_style=True, allow_unicode=True, width=10**6)
    return written.removesuffix("...\n").strip()


def _in_a_line(text: str) -> str:
    """Of a comment, which names columns and files: a header's value in quotes may hold line breaks."""
    return " ".join(text.split())


def _read(where: str, encoding: str) -> tuple[pa.Table, str]:
    table = pa.concat_tables([read_file(path, encoding) for path in find_files(where)], promote_options="permissive")
    if not table.num_rows:
        raise ValueError(f"{where} has no rows, from which its columns could be told")
    return table, where


def _pairs(given: list[str], flag: str) -> dict[str, str]:
    wrong = [each for each in given if "=" not in each]
    if wrong:
        raise ValueError(f"--{flag} {wrong[0]}: write NAME=COLUMN, such as user_id=customer")
    return {name: column for name, _, column in (each.partition("=") for each in given)}


if __name__ == "__main__":
    main()
