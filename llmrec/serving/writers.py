"""Language models as writers of texts, through transformers or vLLM, and what the tokenizer `tags` asks of one."""

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from llmrec.arguments import one_of
from llmrec.decoding.free_text import chat_writer, continue_text
from llmrec.devices import best_device, best_dtype
from llmrec.files import fingerprint, made_again, read_json, write_json
from llmrec.instructions.prompts import load_prompt
from llmrec.item_tokenizers.protocol import BaseTokenizer
from llmrec.item_tokenizers.words.tags import BACKENDS, Tags
from llmrec.models.weights import load_model, load_tokenizer

logger = logging.getLogger(__name__)
_SHARD = 256


def load_writer(
    name: str,
    max_new_tokens: int,
    temperature: float = 0.0,
    backend: str = "transformers",
    batch_size: int = 16,
    device: str = "auto",
) -> Callable[..., Iterator[str]]:
    """A chat model as a function `write(questions, system="", seeds=())` → its answers (`chat_writer`).

    Args:
        name: of a model of the Hub, or its folder.
        temperature: 0 is greedy.
        batch_size, device: for the backend transformers; `"auto"` takes a GPU where there is one.

    Raises:
        ValueError: an unknown backend, one that is not installed, or a model that cannot be loaded.
    """
    one_of(backend, BACKENDS, "backend")
    try:
        tokenizer = load_tokenizer(name)
    except ValueError as error:
        raise ValueError(f"model {name!r} cannot be loaded to write texts: {error}") from error
    if backend == "transformers":
        generate = _transformers(name, tokenizer, max_new_tokens, temperature, batch_size, device)
    else:
        generate = _vllm(name, max_new_tokens, temperature)
    return chat_writer(name, tokenizer, max_new_tokens, generate)


def _transformers(name, tokenizer, max_new_tokens, temperature, batch_size, device) -> Callable:
    where = best_device(device)
    model = load_model(name, dtype=best_dtype(None, where)).to(where)

    def generate(ids: list[list[int]], seeds: Sequence[int]) -> Iterator[str]:
        return continue_text(model, tokenizer, ids, max_new_tokens, temperature, seeds, batch_size=batch_size)

    return generate


def _vllm(name: str, max_new_tokens: int, temperature: float) -> Callable:
    try:
        from vllm import LLM, SamplingParams
        from vllm.platforms import current_platform
    except ImportError as error:
        raise ValueError("backend 'vllm' needs the package vllm: install it, or use transformers") from error
    on_cpu = current_platform.is_cpu()
    dtype = best_dtype(None, best_device("cpu" if on_cpu else None))
    model = LLM(model=name, dtype=dtype, enforce_eager=on_cpu)  # compiling takes longer there than it saves

    def generate(ids: list[list[int]], seeds: Sequence[int]) -> Iterator[str]:
        settings = [
            SamplingParams(temperature=temperature, max_tokens=max_new_tokens, seed=seed)
            for seed in (seeds or [None] * len(ids))
        ]
        for request in model.generate([{"prompt_token_ids": row} for row in ids], settings):
            yield request.outputs[0].text

    return generate


def give_writer(tokenizer: BaseTokenizer) -> BaseTokenizer:
    """The same item tokenizer; `Tags` of a model can ask it from now on. The model is loaded at the first question.
    Raises `ValueError` where the prompt of `Tags` has no `{item}`, or cannot be read."""
    if isinstance(tokenizer, Tags) and tokenizer.model_name_or_path is not None and tokenizer.write is None:
        prompt = load_prompt(tokenizer.prompt)
        if "{item}" not in prompt.templates[0].prompt:
            raise ValueError(f"prompt {tokenizer.prompt!r} has no {{item}}, the place of the item's text")
        tokenizer.write = lambda texts: _answers(tokenizer, prompt.system, prompt.templates[0].prompt, texts)
    return tokenizer


def _answers(tags: Tags, system: str, question: str, texts: list[str]) -> list[str]:
    """The model's answer for every text; no two calls for one text, and none for those in the cache."""
    model, length = tags.model_name_or_path, tags.max_new_tokens
    folder = None
    if tags.cache_dir is not None:
        folder = Path(tags.cache_dir) / f"tags-{fingerprint(str(model), str(length), system, question)}"
    answers: dict[str, str] = {}
    for shard in sorted(folder.glob("*.json")) if folder else ():
        with made_again(shard):
            answers |= read_json(shard)
    new = [text for text in dict.fromkeys(texts) if fingerprint(text) not in answers]
    if new:
        logger.info("%s writes tags for %d items (%d are known)", model, len(new), len(answers))
        write = load_writer(model, length, 0.0, tags.backend, tags.batch_size, tags.device)
        new.sort(key=len)  # neighbours in length share a batch
        for start in range(0, len(new), _SHARD):
            block = new[start : start + _SHARD]
            questions = [question.replace("{item}", text) for text in block]
            shard = dict(zip(map(fingerprint, block), write(questions, system)))
            if folder:
                write_json(folder / f"{fingerprint(*block)}.json", shard)
            answers |= shard
    return [answers[fingerprint(text)] for text in texts]
