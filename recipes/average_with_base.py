"""A tuned model some of the way back to its base: it recommends as before and talks more like the base (WiSE-FT).

    python recipes/average_with_base.py --model out/smollm2/talking --share 0.7 \\
        --base out/pretrained/SmolLM2-135M-Instruct --output_dir out/smollm2/averaged

Nothing is trained. `recipes/language.py` and `recipes/evaluate.py --split valid` say what a share keeps of both
(docs/reference/pretrained_measured.md). Writes a model folder into `model`, there.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from llmrec.commands import run_script
from llmrec.models.averaging import average_with_base
from llmrec.stages import begin_stage, finish_stage, model_content, settings_of


@dataclass
class AverageArguments:
    model: str = field(metadata={"help": "The tuned model: a folder of recipes/sft.py, grpo.py or dpo.py."})
    base: str = field(metadata={"help": "The language model that training started from: a folder or of the Hub."})
    output_dir: str = field(metadata={"help": "Folder to write: model."})
    share: float = field(default=0.7, metadata={"help": "How far from the base to the tuned model, between 0 and 1."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what a run with other settings left."})


def main(args: AverageArguments) -> None:
    settings = settings_of(args) | {"made_from": [model_content(args.model), model_content(args.base)]}
    if begin_stage(args.output_dir, settings, args.overwrite) == "done":
        print(f"Reusing {args.output_dir}: same settings, same models.")
        return
    made = Path(args.output_dir) / "model"
    if not made.exists():
        average_with_base(args.model, args.base, args.share, made)
    finish_stage(args.output_dir)
    print(f"Wrote {made}. Next: recipes/language.py, recipes/evaluate.py")


if __name__ == "__main__":
    run_script(main, AverageArguments, level=logging.INFO)
