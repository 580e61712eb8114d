"""Writes rationales, queries, intentions or preferences for training rows: by a teacher, from columns or from reviews.

    python recipes/generate_rationales.py --config recipes/configs/quickstart/rationales.yaml
    python recipes/generate_rationales.py --config ... --source teacher --model_name_or_path Qwen/Qwen3-4B
    python recipes/generate_rationales.py --config ... --source reviews --reviews reviews.parquet --kind preference

`texts: <output_dir>` in the YAML of recipes/sft.py makes the tasks quote them (docs/reasoning.md). Only the training
split is read. The teacher's prompts are prompts/teacher/<kind>.yaml. Killed? The same command goes on.
"""

from dataclasses import dataclass, field
from pathlib import Path

from llmrec.arguments import at_least, one_of
from llmrec.catalogue.semids import SemIDIndex
from llmrec.commands import run_script
from llmrec.data import PreparedData
from llmrec.files import fingerprint
from llmrec.instructions import Catalogue, load_prompt
from llmrec.instructions.reviews import load_reviews, readable, reviews_writer
from llmrec.instructions.teacher import (
    check_question,
    columns_writer,
    rows_to_write,
    teacher_writer,
    unnamed_index,
    write_texts,
)
from llmrec.models.folder import SEMIDS
from llmrec.serving.writers import load_writer
from llmrec.stages import begin_stage, finish_stage, settings_of

SOURCES = ("teacher", "columns", "reviews")


@dataclass
class RationaleArguments:
    data_dir: str = field(metadata={"help": "Prepared data (recipes/prepare_data.py)."})
    output_dir: str = field(metadata={"help": "Folder to write: texts.parquet."})
    kind: str = field(default="rationale", metadata={"help": "rationale, query, intention or preference."})
    source: str = field(default="teacher", metadata={"help": "teacher: a model writes; columns, reviews: no model."})
    model_name_or_path: str | None = field(default=None, metadata={"help": "The teacher: a Hub model or a folder."})
    reviews: str | None = field(default=None, metadata={"help": "Parquet file: user_id, item_id, text (timestamp)."})
    prompt: str | None = field(default=None, metadata={"help": "Prompt file; prompts/teacher/<kind>.yaml by default."})
    semids: str | None = field(default=None, metadata={"help": "Folder of Semantic IDs that no text may hold."})
    backend: str = field(default="transformers", metadata={"help": "transformers or vllm."})
    max_new_tokens: int = field(default=96, metadata={"help": "Length of an answer."})
    temperature: float = field(default=0.0, metadata={"help": "0: greedy."})
    max_history: int = field(default=20, metadata={"help": "Newest items of a history among which are the relevant."})
    max_rows: int | None = field(default=None, metadata={"help": "A random sample of so many rows."})
    batch_size: int = field(default=16, metadata={"help": "Questions answered together (transformers)."})
    seed: int = field(default=0, metadata={"help": "Of the sample and of sampled answers."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what is there."})


def main(args: RationaleArguments) -> None:
    at_least(args, max_new_tokens=1, temperature=0.0, max_history=1, max_rows=1, batch_size=1)
    one_of(args.source, SOURCES, "source")
    if (args.source == "teacher") != (args.model_name_or_path is not None):
        raise ValueError("model_name_or_path is the teacher's: give one with source: teacher, and none with others")
    if (args.source == "reviews") != (args.reviews is not None):
        raise ValueError("reviews is a parquet file: give one with source: reviews, and none with others")
    data = PreparedData.load(args.data_dir)
    rows = rows_to_write(data, args.kind, args.max_history, args.max_rows, args.seed)
    prompt = load_prompt(args.prompt or f"teacher/{args.kind}")
    check_question(prompt, args.kind)
    index = unnamed_index(data.items)
    if args.semids is not None:
        index = SemIDIndex.load(Path(args.semids) / SEMIDS).aligned(data.items)
    catalogue = Catalogue(index, data.items)
    inputs = {"data": fingerprint(data.items, data.train), "prompt": prompt.to_dict(), "index": index.fingerprint}
    inputs["rows"] = fingerprint(rows)
    reviews = readable(load_reviews(args.reviews), data) if args.reviews is not None else None
    if reviews is not None:
        inputs["reviews_read"] = fingerprint(reviews)
    if begin_stage(args.output_dir, settings_of(args) | inputs, args.overwrite) == "done":
        print(f"Reusing the texts in {args.output_dir} (same settings, same data).")
        return
    if args.source == "columns":
        write = columns_writer(args.kind, catalogue)
    elif args.source == "reviews":
        write = reviews_writer(args.kind, catalogue, reviews)
    else:
        answer = load_writer(
            args.model_name_or_path, args.max_new_tokens, args.temperature, args.backend, args.batch_size
        )
        write = teacher_writer(args.kind, catalogue, prompt, answer, args.seed)
    found = write_texts(args.output_dir, data, rows, args.kind, catalogue, write)
    finish_stage(args.output_dir, **found)
    print(f"{found['kept']:,} texts; dropped {found['leak']} that leak their item and {found['empty']} empty ones.")
    print(f"Wrote {args.output_dir}. Next: texts: {args.output_dir} in the YAML of recipes/sft.py")


if __name__ == "__main__":
    run_script(main, RationaleArguments)
