"""Writes a model that is a GGUF file as a folder that transformers, recipes/init_model.py and vLLM read.

    python recipes/import_gguf.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf --output_dir out/SmolLM2-135M-Instruct

The weights are dequantised; `pip install -e '.[gguf]'` brings the package that reads them.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch

from llmrec.arguments import one_of
from llmrec.commands import run_script
from llmrec.files import files_fingerprint
from llmrec.models.from_gguf import load_gguf
from llmrec.models.provenance import of_pretrained
from llmrec.stages import begin_stage, finish_stage, settings_of


@dataclass
class ImportArguments:
    gguf: str = field(metadata={"help": "The .gguf file of a causal language model."})
    output_dir: str = field(metadata={"help": "Where the model folder goes."})
    dtype: str = field(default="bfloat16", metadata={"help": "Of the weights: bfloat16, float16 or float32."})
    base_model: str | None = field(default=None, metadata={"help": "The model's name on the Hub, for the card."})
    license: str | None = field(default=None, metadata={"help": "For the card, where the Hub's does not say it."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what is there."})


def main(args: ImportArguments) -> None:
    one_of(args.dtype, ("bfloat16", "float16", "float32"), "dtype")
    settings = settings_of(args, ignore=("gguf", "output_dir", "overwrite"))
    settings |= {"content": files_fingerprint([Path(args.gguf)])}
    if begin_stage(args.output_dir, settings, args.overwrite) == "done":
        print(f"Reusing the model in {args.output_dir} (same file).")
        return
    model, tokenizer = load_gguf(args.gguf, getattr(torch, args.dtype))
    tokenizer.save_pretrained(args.output_dir)
    model.save_pretrained(args.output_dir)
    of_pretrained(None, args.base_model, args.license).then("import", file=args.gguf).save(args.output_dir)
    finish_stage(args.output_dir, parameters=model.num_parameters(), tokens=len(tokenizer))
    print(f"{model.config.model_type}, {model.num_parameters():,} parameters, {len(tokenizer):,} tokens, {args.dtype}")
    print(f"Wrote {args.output_dir}. Next: recipes/init_model.py --model_name_or_path {args.output_dir}")


if __name__ == "__main__":
    run_script(main, ImportArguments)
