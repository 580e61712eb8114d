"""What models keep of their base's language: 40 plain questions and the perplexity of general English.

    python recipes/language.py --base out/pretrained/SmolLM2-135M-Instruct \
        --output_dir out/pretrained/language --models init=out/pretrained/base sft=out/pretrained/model

`base` is the model before it got Semantic IDs. Writes `<name>.json` for every model, with its answers beside the
base's (docs/alignment.md says which count as kept), and prints a table. What was measured before is read again.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

from llmrec.commands import run_script
from llmrec.evaluation.language import (
    against,
    general_text,
    load_language_model,
    load_tokenizer,
    measure,
    read_general_text,
)
from llmrec.files import Lock, fingerprint, read_json, write_json
from llmrec.instructions.general import plain_questions
from llmrec.recommenders.loading import files_of

BASE = "base"
COLUMNS = {
    "kept": ("questions_kept", "d"),
    "exact": ("questions_exact", "d"),
    "with SemIDs": ("answers_with_semids", "d"),
    "SemID mass, mean": ("mass_mean", ".4f"),
    "max": ("mass_max", ".4f"),
    "perplexity": ("perplexity", ".3f"),
    "ratio": ("perplexity_ratio", ".4f"),
}


@dataclass
class LanguageArguments:
    base: str = field(metadata={"help": "The language model that training started from: a folder or of the Hub."})
    models: list[str] = field(metadata={"help": "name=folder of each model that was made from it."})
    output_dir: str = field(metadata={"help": "Where <name>.json goes."})
    general_text: str | None = field(default=None, metadata={"help": "A text file in place of the packages' READMEs."})


def measured(folder: str, path: Path, asked: list[str], text: str) -> dict:
    """What `path` says of the model, if that is about these files, questions and text; or it is measured."""
    made_from = fingerprint(files_of(folder), folder, *asked, text)
    found = read_json(path) if path.exists() else {}
    if found.get("made_from") != made_from:
        found = {"folder": folder, "made_from": made_from, **measure(*load_language_model(folder), asked, text)}
        if not math.isfinite(found["perplexity"]):
            raise ValueError(f"{folder}: its perplexity is {found['perplexity']}: its weights are damaged")
        write_json(path, found)
    return found


def _tokens(folder: str, text: str) -> list[int]:
    return load_tokenizer(folder)(text, add_special_tokens=False)["input_ids"]


def main(args: LanguageArguments) -> None:
    models = {name: model for name, _, model in (given.partition("=") for given in args.models)}
    wrong = [name for name, model in models.items() if name in (BASE, "") or Path(name).name != name or not model]
    if wrong or len(models) < len(args.models):
        raise ValueError(f"models {args.models}: write name=folder, each name once, other than {BASE!r} and no path")
    asked, (text, packages) = plain_questions(), ("", {})
    if args.general_text is None:
        text, packages = general_text()
    else:
        text = read_general_text(args.general_text)
    folder, cut = Path(args.output_dir), _tokens(args.base, text)
    for name, model in models.items():
        if _tokens(model, text) != cut:
            raise ValueError(
                f"model {name}={model} cuts the text into other tokens than {args.base}, so perplexities per token do "
                "not compare: name the base that it was made from"
            )
    with Lock(folder):
        base = measured(args.base, folder / f"{BASE}.json", asked, text)
        results = {BASE: against(base, base)}
        for name, model in models.items():
            found = measured(model, folder / f"{name}.json", asked, text)
            results[name] = against(found, base)
            about = {"folder": model, "made_from": found["made_from"], "base": args.base, "packages": packages}
            write_json(folder / f"{name}.json", about | results[name])
    print(f"{len(asked)} questions; perplexity of {base['tokens']} tokens of {packages or args.general_text}\n")
    print("|".join(["", " model ", *(f" {column} " for column in COLUMNS), ""]))
    print("|---" * (len(COLUMNS) + 1) + "|")
    for name, result in results.items():
        print("|".join(["", f" {name} ", *(f" {result[key]:{form}} " for key, form in COLUMNS.values()), ""]))
    print(f"\nAnswers: {folder}/<name>.json")


if __name__ == "__main__":
    run_script(main, LanguageArguments)
