"""What is left of a language model's language: plain questions, general English, and whether Semantic IDs push in.

No model judges: an answer is held against the one that the base model gives to the same question.
"""

import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmrec.decoding.free_text import continue_text
from llmrec.devices import best_device
from llmrec.instructions.item_words import same_text, token_f1
from llmrec.models.folder import CONFIG, RecommenderConfig, load_index
from llmrec.models.positions import positions_of
from llmrec.models.weights import load_model, load_tokenizer
from llmrec.tokens import conversation, fix_today, prompt_ids, text_start

ANSWER_TOKENS = 32
BATCH = 40  # questions that are answered together
BLOCKS, BLOCK = 8, 256  # of general text, and their tokens
# General English that every installation has: the README or a licence of packages that llmrec needs.
GENERAL_TEXTS = ("torch", "transformers", "peft", "accelerate/LICENSE")
CHARACTERS = 2500  # of each
_MARKUP = re.compile(r"[<|`]|\]\(|http")
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\n\d\.)\s")  # `1.` at the beginning of a line ends none


def general_text(sources: Sequence[str] = GENERAL_TEXTS) -> tuple[str, dict[str, str]]:
    """General English, and the version of each package that it is from: of every source, a package (its README) or
    `package/file` (a licence), the first lines of prose, `CHARACTERS` long. Raises `ValueError`: one that is not
    installed, or came without that file."""
    texts, versions = [], {}
    for source in sources:
        package, _, name = source.partition("/")
        try:
            found = metadata.distribution(package)
        except metadata.PackageNotFoundError:
            found = None
        files = [file for file in (found and found.files) or () if name and file.name == name]
        text = files[0].read_text(encoding="utf-8") if files else found and not name and found.metadata.get_payload()
        if not text:
            raise ValueError(
                f"package {package} is not installed here with its {name or 'README'}: give general_text, a text file"
            )
        text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        lines = [line.strip() for line in text.splitlines() if len(line) > 40 and not _MARKUP.search(line)]
        texts.append("\n".join(lines)[:CHARACTERS])
        versions[source] = found.version
    return "\n\n".join(texts), versions


def read_general_text(path: str | Path) -> str:
    """The text of a file. Raises `ValueError`: it is no readable UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"general_text {path} is not a readable UTF-8 text file: {error}") from error


def load_language_model(
    folder: str | Path, device: str | torch.device | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[int]]:
    """The model of a folder in float32, its tokenizer, and the ids of its Semantic IDs' tokens: none for a folder
    that is no recommender, such as the base, or a model of the Hub. Raises `ValueError`: no such model, or other
    Semantic IDs than it was trained with."""
    tokenizer, model = load_tokenizer(folder), load_model(folder, dtype=torch.float32).to(best_device(device))
    fix_today(tokenizer)
    tokens = load_index(folder, RecommenderConfig.load(folder)).tokens if (Path(folder) / CONFIG).exists() else []
    return model, tokenizer, tokenizer.convert_tokens_to_ids(tokens)


@torch.no_grad()
def perplexity(model, tokenizer, text: str, blocks: int = 200, length: int = 512) -> dict[str, float]:
    """`{"perplexity": ..., "tokens": how many were predicted}`: exp of the mean negative log-likelihood (nats) of a
    token, given those before it in its block of `length` tokens, or of what the model has positions for. Each block
    begins as the tokenizer begins a text (BOS), which is given and not predicted. The first
    `blocks` are read; fewer than two tokens raise `ValueError`."""
    ids, start = tokenizer(text, add_special_tokens=False)["input_ids"], text_start(tokenizer)
    length = min(length, positions_of(model) or length) - len(start)
    pieces = [[*start, *ids[place : place + length]] for place in range(0, len(ids), length)][:blocks]
    first = max(len(start), 1)  # predicted
    pieces = [piece for piece in pieces if len(piece) > first]
    if not pieces:
        raise ValueError(f"a text of {len(ids)} tokens has no perplexity: give one of at least two")
    device = next(model.parameters()).device
    total = 0.0
    for piece in pieces:  # one at a time: a block's logits over a large vocabulary fill memory
        input_ids = torch.tensor([piece], device=device)
        logits = model(input_ids=input_ids).logits[0, first - 1 : -1].float()
        total += torch.nn.functional.cross_entropy(logits, input_ids[0, first:], reduction="sum").item()
    count = sum(map(len, pieces)) - first * len(pieces)
    return {"perplexity": float(np.exp(total / count)), "tokens": count}


@torch.no_grad()
def new_token_mass(model, prompts: Sequence[Sequence[int]], new: Sequence[int]) -> list[float]:
    """The softmax mass on tokens `new` after each of the prompts (token ids)."""
    masses = []
    for prompt in prompts:
        logits = model(input_ids=torch.tensor([prompt], device=model.device), logits_to_keep=1).logits[0, -1]
        masses.append(logits.float().softmax(0)[list(new)].sum().item())
    return masses


def measure(model, tokenizer: PreTrainedTokenizerBase, new: Sequence[int], asked: Sequence[str], text: str) -> dict:
    """`{"answers": [{"question", "answer", "semids", "mass"}], "perplexity", "tokens"}` of one model.

    Answers are greedy, in the model's chat template, at most `ANSWER_TOKENS` long. `semids`: whether a token of a
    Semantic ID (`new`, ids) is in one; `mass`: what the softmax gives to all of those as the first token. The
    perplexity is that of `BLOCKS` blocks of the text, over the whole vocabulary.
    """
    prompts = [conversation(tokenizer, [{"role": "user", "content": question}]) for question in asked]
    prompts = prompt_ids(tokenizer, prompts)
    words = tokenizer.convert_ids_to_tokens(list(new))
    answers = continue_text(model, tokenizer, prompts, ANSWER_TOKENS, batch_size=BATCH)
    rows = [
        {"question": question, "answer": answer, "semids": any(word in answer for word in words), "mass": mass}
        for question, answer, mass in zip(asked, answers, new_token_mass(model, prompts, new), strict=True)
    ]
    return {"answers": rows, **perplexity(model, tokenizer, text, BLOCKS, BLOCK)}


def kept(question: str, answer: str, base: str) -> bool:
    """Whether an answer says what the base's says, by what the first sentence of each adds to the question: the same
    numbers, and words that agree (token F1 of at least 0.5; beside a number one of the two may have none)."""
    first, wanted = (_SENTENCE_END.split(f"\n{text.strip()}")[0] for text in (answer, base))
    if same_text(first, wanted):
        return True
    known = {*re.findall(r"\w+", question.lower())}
    added = [[word for word in re.findall(r"\w+", one.lower()) if word not in known] for one in (first, wanted)]
    numbers = [[word for word in one if word.isdigit()] for one in added]
    words = [" ".join(word for word in one if not word.isdigit()) for one in added]
    return numbers[0] == numbers[1] and (token_f1(*words) >= 0.5 or bool(numbers[0]) and not all(words))


def against(measured: Mapping, base: Mapping) -> dict:
    """What `measure` found of a model beside what it found of the base, on the same questions and text: the answers
    with `base`, `exact` (the same words in order) and `kept` (no Semantic ID in it, and the rule `kept`), and

        {"questions", "questions_kept", "questions_exact", "answers_with_semids": int, "mass_mean", "mass_max",
         "perplexity", "perplexity_ratio": float, "answers": [...]}
    """
    rows = []
    for row, reference in zip(measured["answers"], base["answers"], strict=True):
        question, answer, wanted = row["question"], row["answer"], reference["answer"]
        exact = same_text(answer, wanted)
        agrees = not row["semids"] and kept(question, answer, wanted)
        rows.append({**row, "base": wanted, "exact": exact, "kept": agrees})
    masses = [row["mass"] for row in rows]
    return {
        "questions": len(rows),
        "questions_kept": sum(row["kept"] for row in rows),
        "questions_exact": sum(row["exact"] for row in rows),
        "answers_with_semids": sum(row["semids"] for row in rows),
        "mass_mean": float(np.mean(masses)),
        "mass_max": max(masses),
        "perplexity": measured["perplexity"],
        "perplexity_ratio": measured["perplexity"] / base["perplexity"],
        "tokens": measured["tokens"],
        "answers": rows,
    }
