"""recipes/sft.py of the working folder, timed: what scripts/bench_sft.py runs in two versions of the repository.

    python scripts/timed_sft.py FIGURES.json --config ... [any flag of recipes/sft.py]

Writes the labels between the beginning of the eleventh step and that of the last, and the seconds and CPU seconds.
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
        begun.append((time.perf_counter(), time.process_time(), int((inputs["labels"] != -100).sum())))
        return step(self, model, inputs, *args, **kwargs)

    SemIDSFTTrainer.training_step = timed
    runpy.run_path("recipes/sft.py", run_name="__main__")
    measured = begun[WARM:]
    seconds, cpu = (measured[-1][kind] - measured[0][kind] for kind in (0, 1))
    figures = {"seconds": seconds, "cpu_seconds": cpu, "labels": sum(labels for *_, labels in measured[:-1])}
    with open(path, "w", encoding="utf-8") as file:
        json.dump(figures, file)


if __name__ == "__main__":
    main()
