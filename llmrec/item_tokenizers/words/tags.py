"""Tags that a language model writes for every item, as its Semantic ID (IDGenRec, 2403.19021, without its training).

Any chat model answers a prompt from `prompts/`; the words of its answer come first in the ID, in its order, and words
of the item's own text follow where they do not make the ID unique. Tags that were made elsewhere are read from a
column instead.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from llmrec.arguments import one_of
from llmrec.features.text_encoders import TEXT_COLUMNS, item_text
from llmrec.item_tokenizers.words.text_ids import TextIDs, text_of, words_of

BACKENDS = ("transformers", "vllm")


@dataclass(eq=False)
class Tags(TextIDs):
    """Text IDs of tags.

    Greedy decoding; yet a model's answer may hang on the items it is batched with (rounding). Fitted items keep their
    IDs in any case.

    Args:
        model_name_or_path: a causal language model, of the Hub or a folder.
        tags_column: instead of a model: a column of the catalogue with tags (a string or a list).
        prompt: a template in `prompts/` or any YAML file; `{item}` stands for the item's text.
        columns: the catalogue's columns that the model reads; absent ones are left out.
        min_words, max_words: shortest and longest ID. max_new_tokens: length of an answer.
        batch_size, device: of transformers; `"auto"` takes a GPU where there is one.
        cache_dir: where answers are kept by the content of model, prompt and item, in shards that appear whole: a
            killed run goes on where it stopped, and a grown catalogue asks for its new items only.
        write: texts of items to the model's answers, not recorded. `llmrec.serving.writers.give_writer` makes it of
            the settings above.
    """

    name = "tags"

    model_name_or_path: str | None = None
    tags_column: str | None = None
    prompt: str = "item_tokenizers/item_tags"
    columns: Sequence[str] = TEXT_COLUMNS
    min_words: int = 3
    max_words: int = 8
    max_new_tokens: int = 48
    backend: str = "transformers"
    batch_size: int = 16
    device: str = "auto"
    cache_dir: str | Path | None = None
    write: Callable[[list[str]], Iterable[str]] | None = None

    def __post_init__(self):
        super().__post_init__()
        if (self.model_name_or_path is None) == (self.tags_column is None):
            raise ValueError("item tokenizer 'tags' needs either model_name_or_path or tags_column")
        one_of(self.backend, BACKENDS, "backend")

    def propose(self, items: pa.Table, words: list[list[str]]) -> list[list[str]]:
        if self.tags_column is None:
            if self.write is None:
                raise ValueError(
                    f"item tokenizer 'tags' has nobody to ask {self.model_name_or_path!r}: call "
                    "llmrec.serving.writers.give_writer(tokenizer), or set tokenizer.write to your own function"
                )
            return list(map(words_of, self.write(item_text(items, self.columns))))
        if self.tags_column not in items.column_names:
            column = f"no column {self.tags_column!r} with tags"
            raise ValueError(f"the catalogue has {column}; it has {items.column_names}")
        return list(map(words_of, text_of(items, [self.tags_column])))
