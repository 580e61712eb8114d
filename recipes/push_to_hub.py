"""Shares a model, or prepared data and Semantic IDs, on the Hugging Face Hub: files for others, and a card.

    python recipes/push_to_hub.py --repo_id me/shop-llm --model out/quickstart/model \
        --report out/quickstart/evaluation --recommender ours
    python recipes/push_to_hub.py --repo_id me/shop --data_dir out/quickstart/data --semids out/quickstart/semids

With `output_dir` the files are written there and nothing is uploaded. `LLMRecommender.from_pretrained("me/shop-llm")`
and `data_dir: me/shop`, `semids: me/shop` read what was shared (docs/sharing.md).
"""

import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from llmrec.catalogue.sharing import dataset_files
from llmrec.commands import run_script
from llmrec.files import Lock, atomic_path
from llmrec.hub import shared_files, upload
from llmrec.models.card import model_files, read_report
from llmrec.models.folder import RecommenderConfig


@dataclass
class PushArguments:
    repo_id: str = field(metadata={"help": "owner/name on the Hub."})
    model: str | None = field(default=None, metadata={"help": "Model folder, for a repository of a model."})
    report: str | None = field(default=None, metadata={"help": "Folder of recipes/evaluate.py: figures for the card."})
    recommender: str | None = field(default=None, metadata={"help": "What the model is called in that report."})
    data_dir: str | None = field(default=None, metadata={"help": "Prepared data, for a repository of a data set."})
    semids: str | None = field(
        default=None, metadata={"help": "Folder of recipes/tokenize_items.py, beside the data."}
    )
    license: str | None = field(default=None, metadata={"help": "Of the data; a model has that of its base."})
    private: bool | None = field(default=None, metadata={"help": "Who may see a repository that is made now."})
    revision: str | None = field(default=None, metadata={"help": "Branch to push to."})
    output_dir: str | None = field(default=None, metadata={"help": "Write the files here instead of uploading them."})


def main(args: PushArguments) -> None:
    data = [folder for folder in (args.data_dir, args.semids) if folder]
    if bool(args.model) == bool(data):
        raise ValueError("give either model, or data_dir and semids (or one of these)")
    if missing := next((folder for folder in (args.model, *data) if folder and not Path(folder).is_dir()), None):
        raise ValueError(f"{missing} is no folder: name one that a recipe wrote")
    if bool(args.report) != bool(args.recommender):
        raise ValueError("report and recommender belong together: a folder of recipes/evaluate.py and a name in it")
    if args.model:
        figures = None
        if args.report:
            figures = read_report(args.report, args.recommender, RecommenderConfig.load(args.model))
        kind, folders, finish = "model", [args.model], partial(model_files, source=args.model, report=figures)
    else:
        kind, folders, finish = "dataset", data, partial(dataset_files, license=args.license)
    if args.output_dir:
        with Lock(args.output_dir), shared_files(*folders) as files, atomic_path(args.output_dir) as there:
            finish(files, args.repo_id)
            shutil.copytree(files, there)
        print(f"Wrote {args.output_dir}: what a push to {args.repo_id} would upload.")
        return
    commit = upload(folders, args.repo_id, finish, kind, private=args.private, revision=args.revision)
    print(f"Pushed to {commit.repo_url}")


if __name__ == "__main__":
    run_script(main, PushArguments)
