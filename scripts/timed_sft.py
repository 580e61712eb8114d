"""recipes/sft.py of the working folder, timed: what scripts/bench_sft.py runs in two versions of the repository.

    python scripts/timed_sft.py FIGURES.json --config ... [any flag of recipes/sft.py]

Writes the labels and the seconds between the beginning of the eleventh step and that of the last.
"""

import json
import runpy
import sys
import time

WARM = 10


def main() -> None:
    path, sys.argv = sys.argv[1], ["recipes/sft.py", *sys.argv[2:]]
    from llmrec.training import SemIDSFTTrainer  # of the working folder, which PYTHONPATH names

    begun, step = [], SemIDSFTTrainer.training_step

    def timed(self, model, inputs, *args, **kwargs):
        begun.append((time.perf_counter(), int((inputs["labels"] != -100).sum())))
        return step(self, model, inputs, *args, **kwargs)

    SemIDSFTTrainer.training_step = timed
    runpy.run_path("recipes/sft.py", run_name="__main__")
    measured = begun[WARM:]
    figures = {"seconds": measured[-1][0] - measured[0][0], "labels": sum(labels for _, labels in measured[:-1])}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(figures, file)


if __name__ == "__main__":
    main()
