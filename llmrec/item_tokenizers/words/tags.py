"""Tags that a language model writes for every item, as its Semantic ID (IDGenRec, 2403.19021, without training).

Any chat model answers a prompt from `prompts/`; the words of its answer come first in the ID, in its order, and words
of the item's own text follow where they do not make the ID unique. Tags that were made elsewhere are read from a
column instead.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from llmrec.features.text_encoders import TEXT_COLUMNS, item_text
from llmrec.files import fingerprint, read_json, write_json
from llmrec.item_tokenizers.words.text_ids import TextIDs, text_of, words_of

logger = logging.getLogger(__name__)

_SHARD = 256


class Tags(TextIDs):
    """Text IDs of tags.

    Greedy decoding; yet a model's answer may hang on the items it is batched with (rounding). Fitted items keep their
    IDs in any case.

    Args:
        model_name_or_path (`str`, *optional*): a causal language model, of the Hub or a folder.
        tags_column (`str`, *optional*): instead of a model: a column of the catalogue with tags (a string or a list).
        prompt (`str`): a template in `prompts/` or any YAML file; `{item}` stands for the item's text.
        columns (sequence of `str`): the catalogue's columns that the model reads; absent ones are left out.
        min_words, max_words (`int`): shortest and longest ID.
        max_new_tokens (`int`): length of an answer.
        backend (`str`): `"transformers"` or `"vllm"`.
        batch_size (`int`), device (`str`): of transformers; `"auto"` takes a GPU where there is one.
        cache_dir (`str`, *optional*): where answers are kept by the content of model, prompt and item, in shards that
            appear whole: a killed run goes on where it stopped, and a grown catalogue asks for its new items only.

    Raises:
        ValueError: neither or both of model and column, an unknown backend, or a prompt without `{item}`.
    """

    name = "tags"

    def __init__(
        self,
        model_name_or_path: str | None = None,
        tags_column: str | None = None,
        prompt: str = "item_tokenizers/item_tags",
        columns: Sequence[str] = TEXT_COLUMNS,
        min_words: int = 3,
        max_words: int = 8,
        max_new_tokens: int = 48,
        backend: str = "transformers",
        batch_size: int = 16,
        device: str = "auto",
        cache_dir: str | Path | None = None,
    ):
        from llmrec.instructions.prompts import load_prompt

        super().__init__(columns, min_words, max_words)
        if (model_name_or_path is None) == (tags_column is None):
            raise ValueError("item tokenizer 'tags' needs either model_name_or_path or tags_column")
        if backend not in ("transformers", "vllm"):
            raise ValueError(f"backend {backend!r} is not one of transformers, vllm")
        self._settings = {
            "model_name_or_path": model_name_or_path,
            "tags_column": tags_column,
            "prompt": prompt,
            "max_new_tokens": max_new_tokens,
            "backend": backend,
            "batch_size": batch_size,
        }
        if model_name_or_path is not None and "{item}" not in load_prompt(prompt).templates[0].prompt:
            raise ValueError(f"prompt {prompt!r} has no {{item}}, the place of the item's text")
        self.device, self.cache_dir = device, cache_dir

    @property
    def config(self) -> dict:
        words = {"min_words": self.min_words, "max_words": self.max_words}
        return {**self._settings, "columns": self.columns, **words}

    def propose(self, items: pa.Table, words: list[list[str]]) -> list[list[str]]:
        column = self._settings["tags_column"]
        if column is None:
            return list(map(words_of, self._answers(item_text(items, self.columns))))
        if column not in items.column_names:
            raise ValueError(f"the catalogue has no column {column!r} with tags; it has {items.column_names}")
        return list(map(words_of, text_of(items, [column])))

    def _answers(self, texts: list[str]) -> list[str]:
        """The model's answer for every text; no two calls for one text, and none for those in the cache."""
        from llmrec.decoding.free_text import load_writer
        from llmrec.instructions.prompts import load_prompt

        model, length = self._settings["model_name_or_path"], self._settings["max_new_tokens"]
        prompt = load_prompt(self._settings["prompt"])
        folder = None
        if self.cache_dir is not None:
            asked = fingerprint(str(model), str(length), prompt.system, prompt.templates[0].prompt)
            folder = Path(self.cache_dir) / f"tags-{asked}"
        answers: dict[str, str] = {}
        for shard in sorted(folder.glob("*.json")) if folder else ():
            answers |= read_json(shard)
        new = [text for text in dict.fromkeys(texts) if fingerprint(text) not in answers]
        if new:
            logger.info("%s writes tags for %d items (%d are known)", model, len(new), len(answers))
            backend, batch_size = self._settings["backend"], self._settings["batch_size"]
            write = load_writer(model, length, 0.0, backend, batch_size, self.device)
            new.sort(key=len)  # neighbours in length share a batch
            for start in range(0, len(new), _SHARD):
                block = new[start : start + _SHARD]
                questions = [prompt.templates[0].prompt.replace("{item}", text) for text in block]
                shard = dict(zip(map(fingerprint, block), write(questions, prompt.system)))
                if folder:
                    write_json(folder / f"{fingerprint(*block)}.json", shard)
                answers |= shard
        return [answers[fingerprint(text)] for text in texts]
