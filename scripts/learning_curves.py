"""Learning curves of runs of recipes/sft.py over the tokens that training has seen, in one picture and one table.

    python scripts/learning_curves.py pretrained=out/smollm2/model random=out/smollm2/random --png docs/curves.png

Every argument is `<name>=<output folder of a run>`; an unfinished one is read from its newest checkpoint. Tokens are
those of prompts and answers, without padding. Draws the training loss, and loss, recall@10 and ndcg@10 on the
validation sample; prints a line of Markdown for every evaluation.
"""

import argparse
from pathlib import Path

from llmrec.catalogue.report_parts import draw_lines
from llmrec.evaluation.report import markdown_table
from llmrec.files import read_json
from llmrec.stages import last_complete_checkpoint

SEEN = "num_input_tokens_seen"
PANELS = {
    "loss": "training loss",
    "eval_loss": "validation loss",
    "eval_recall@10": "validation recall@10",
    "eval_ndcg@10": "validation ndcg@10",
}


def points(history: list[dict], name: str) -> dict[int, float]:
    """`{tokens seen: value}`. Of two values at one step the first counts: the other is that of the model that was
    chosen in the end."""
    found: dict[int, float] = {}
    for log in history:
        if name in log:
            found.setdefault(log[SEEN], log[name])
    return found


def history_of(folder: str) -> list[dict]:
    """The logs of a run. Raises `ValueError` where it left none, or some that do not count tokens."""
    whole, checkpoint = Path(folder) / "trainer_state.json", last_complete_checkpoint(folder)
    if not whole.exists() and checkpoint is None:
        raise ValueError(f"{folder} holds neither trainer_state.json nor a checkpoint: name the output of a run")
    history = read_json(whole if whole.exists() else Path(checkpoint) / "trainer_state.json")["log_history"]
    if not history or not all(SEEN in log for log in history):
        raise ValueError(
            f"{folder}: not all of its logs count tokens ({SEEN}): name a run of recipes/sft.py, or train it again "
            "where an older version began it"
        )
    return history


def table(runs: dict[str, dict[str, dict[int, float]]]) -> list[str]:
    """A line for every evaluation, with the last training loss before it."""
    rows = []
    for name, curves in runs.items():
        trained, *others = curves.values()
        for seen in sorted({seen for curve in others for seen in curve}) or list(trained)[-1:]:
            before = [loss for tokens, loss in trained.items() if tokens <= seen]
            cells = [f"{curve[seen]:.4f}" if seen in curve else "–" for curve in others]
            rows.append([name, f"{seen:,}", f"{before[-1]:.4f}" if before else "–", *cells])
    return markdown_table(["run", "tokens seen", *PANELS.values()], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--png", default="learning_curves.png", help="the picture to write (learning_curves.png)")
    arguments = parser.parse_args()
    runs = {}
    for argument in arguments.runs:
        name, separator, folder = argument.partition("=")
        if not separator or name in runs:
            parser.error(f"{argument!r} should be NAME=FOLDER, each name once")
        history = history_of(folder)
        runs[name] = {column: points(history, column) for column in PANELS}
    drawn = {
        title: {name: run[column].items() for name, run in runs.items()}
        for column, title in PANELS.items()
        if any(run[column] for run in runs.values())
    }
    draw_lines(arguments.png, drawn, "tokens seen", columns=2)
    print(*table(runs), "", f"Wrote {arguments.png}.", sep="\n")


if __name__ == "__main__":
    main()
