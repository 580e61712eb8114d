"""A language model writes general conversations in its own words, to be mixed into training against forgetting.

    python recipes/general_chat.py --model_name_or_path HuggingFaceTB/SmolLM2-135M-Instruct --output_dir out/chat

The model is the one before it got Semantic IDs. Writes chat.parquet with a column `messages`; `{chat:
out/chat/chat.parquet}` among the tasks of recipes/sft.py mixes it in, `distill_weight` distils (docs/training.md). The
questions are made of prompts/general/topics.yaml; none is one of the 40 that recipes/language.py asks.
"""

from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from llmrec.arguments import at_least
from llmrec.commands import run_script
from llmrec.files import fingerprint, write_parquet
from llmrec.instructions.general import conversations, general_questions
from llmrec.models.weights import load_tokenizer
from llmrec.serving.writers import load_writer
from llmrec.stages import begin_stage, finish_stage, model_content, settings_of


@dataclass
class ChatArguments:
    model_name_or_path: str = field(metadata={"help": "The model that writes: of the Hub or a folder."})
    output_dir: str = field(metadata={"help": "Folder to write: chat.parquet."})
    rows: int = field(default=300, metadata={"help": "Conversations: a question and an answer each."})
    max_new_tokens: int = field(
        default=48, metadata={"help": "Of an answer; one that is cut ends with its last whole sentence."}
    )
    temperature: float = field(default=0.3, metadata={"help": "0: greedy; 1: as likely as the model finds it."})
    backend: str = field(default="transformers", metadata={"help": "transformers or vllm."})
    batch_size: int = field(default=32, metadata={"help": "Questions answered together (transformers)."})
    seed: int = field(default=0, metadata={"help": "Of the questions and the sampled answers."})
    overwrite: bool = field(default=False, metadata={"help": "Replace what is there."})


def main(args: ChatArguments) -> None:
    at_least(args, rows=1, max_new_tokens=1, temperature=0.0, batch_size=1)
    questions = general_questions(args.rows, args.seed)
    settings = {"asked": fingerprint(*questions), "model": model_content(args.model_name_or_path)}
    if begin_stage(args.output_dir, settings_of(args) | settings, args.overwrite) == "done":
        print(f"Reusing the conversations in {args.output_dir} (same settings).")
        return
    write = load_writer(args.model_name_or_path, args.max_new_tokens, args.temperature, args.backend, args.batch_size)
    tokenizer = load_tokenizer(args.model_name_or_path)

    def ended(answer: str) -> bool:
        return len(tokenizer(answer)["input_ids"]) < args.max_new_tokens

    talks = conversations(questions, write, ended, args.seed)
    if not talks:
        raise ValueError(f"no answer of {args.model_name_or_path} has a whole sentence: raise max_new_tokens")
    file = Path(args.output_dir) / "chat.parquet"
    write_parquet(file, pa.table({"messages": talks}))
    finish_stage(args.output_dir, rows=len(talks))
    left_out = len(questions) - len(talks)
    print(f"{len(talks)} conversations; {left_out} without a whole sentence were left out. For example:")
    for question, answer in talks[:3]:
        print(f"  {question['content']} -> {answer['content']}")
    print(f"Wrote {file}. Next: {{chat: {file}}} among the tasks of recipes/sft.py")


if __name__ == "__main__":
    run_script(main, ChatArguments)
