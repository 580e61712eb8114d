"""TIGER (Rajput et al. 2023, arXiv:2305.05065): a T5 made from a config that reads and writes Semantic IDs.

Its words are the codes of every level, an end, and (optional) hashed users; there is no vocabulary of a language. The
encoder reads `[user] code code ... end`, the decoder writes the codes of the next item. Notable: the width, heads and
layers are the paper's; the Semantic IDs are those of any item tokenizer here, with a token for collisions as its
collision policy gives it; half of the training rows leave the user out, because `recommend(histories)` knows none.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import T5Config, T5ForConditionalGeneration

from llmrec.arguments import at_least, one_of
from llmrec.catalogue.semids import SemIDIndex
from llmrec.data.rows import ragged_arange
from llmrec.features.network_training import NetworkConfig, check_rate

PAD, EOS = 0, 1  # the decoder begins with PAD, as T5's does
ROWS = ("prefix", "one", "dense")


@dataclass(frozen=True)
class TIGERConfig(NetworkConfig):
    """Shape and training of a TIGER."""

    semids: str = field(default="", metadata={"help": "Folder of recipes/tokenize_items.py, or an index.json."})
    rows: str = field(
        default="prefix",
        metadata={"help": "prefix: every prefix is a row; one: a random one of every sequence and epoch; dense."},
    )
    max_length: int = field(default=20, metadata={"help": "Items of a history that the encoder reads, the newest."})
    user_tokens: int = field(default=0, metadata={"help": "Users are hashed into so many tokens (paper: 2000)."})
    hidden_size: int = field(default=128, metadata={"help": "Width of embeddings and blocks."})
    intermediate_size: int = field(default=1024, metadata={"help": "Width inside the feed-forward layers."})
    num_layers: int = field(default=4, metadata={"help": "Blocks of the encoder, and of the decoder."})
    num_heads: int = field(default=6, metadata={"help": "Attention heads."})
    head_dim: int = field(default=64, metadata={"help": "Width of a head."})
    dropout: float = field(default=0.1, metadata={"help": "Everywhere where T5 has it."})
    learning_rate: float = field(default=5e-4, metadata={"help": "Of AdamW, the highest."})
    lr_scheduler_type: str = field(
        default="constant_with_warmup", metadata={"help": "Of transformers: constant_with_warmup, cosine, linear, ..."}
    )
    warmup_steps: int = field(default=0, metadata={"help": "Updates in which the learning rate grows."})
    weight_decay: float = field(default=1e-3, metadata={"help": "Of AdamW, on matrices."})
    eval_steps: int = field(default=500, metadata={"help": "Updates between two validations, each a checkpoint."})
    patience: int = field(default=20, metadata={"help": "Validations without a better ndcg@10."})
    validation_rows: int | None = field(default=500, metadata={"help": "Validate on so many random rows."})
    num_beams: int = field(default=20, metadata={"help": "Width of the search, in validation and later."})

    def __post_init__(self):
        super().__post_init__()
        one_of(self.rows, ROWS, "rows")
        counts = "max_length hidden_size intermediate_size num_layers num_heads head_dim eval_steps num_beams"
        at_least(self, **dict.fromkeys(counts.split(), 1), user_tokens=0, warmup_steps=0)
        check_rate(self, "dropout")


def check_index(index: SemIDIndex) -> None:
    """Raises `ValueError` for Semantic IDs that TIGER cannot write: contextual or unordered ones, and those that
    several items share."""
    made_by = f"these Semantic IDs are of item tokenizer {index.item_tokenizer!r}"
    if index.contextual:
        raise ValueError(
            f"TIGER: {made_by}, which writes an item in another way after every history; a Semantic ID has to be the "
            "item's own: take rq_kmeans or rq_vae, or train our language model on these"
        )
    if not index.ordered:
        raise ValueError(
            f"TIGER: {made_by}, whose codes have no order, and a decoder writes them one after the other: take "
            "rq_kmeans or rq_vae (RPG is the model for unordered codes)"
        )
    group_of: dict[int, str] = {}
    shared = {item for item, group in zip(index.item_ids, index.groups()) if group_of.setdefault(group, item) != item}
    if shared:
        raise ValueError(
            f"TIGER: {len(shared)} of {len(index.items)} items share the Semantic ID of another, e.g. "
            f"{min(shared)!r} (codebook_sizes {list(index.codebook_sizes)}, collision {index.collision!r}): that is "
            "too few codes. Tokenize with collision: append_all (the paper's further token), append or reassign_last"
        )


class CodeVocabulary:
    """Token ids of the codes of an index, in place of a tokenizer; those of users stand before them.

    Attributes:
        size: how many tokens there are.
        codes (int64 [items, L]): the primary Semantic ID of every item, padded with -1 on the right.
        answers (int64 [items, L + 1]): what the decoder is to write: the codes, and the end where the search scores
            it, because the Semantic ID begins another.
    """

    unk_token_id, eos_token_id = None, EOS

    def __init__(self, index: SemIDIndex, config: TIGERConfig):
        self.user_tokens, self.ends = config.user_tokens, config.rows != "dense"  # there a prompt goes on
        tokens = dict.fromkeys(token for level in index.level_tokens for token in level)
        first = EOS + 1 + self.user_tokens
        self._ids = dict(zip(tokens, range(first, first + len(tokens))))
        self.size = first + len(tokens)
        rows = [self.convert_tokens_to_ids(index.tokens_of_row(row)) for row in range(len(index))]
        begun = {tuple(row[:length]) for row in rows for length in range(1, len(row))}
        own = [rows[index.row(item)] for item in index.items]
        self.codes = np.full((len(own), max(map(len, own))), -1, np.int64)
        self.answers = np.full((len(own), self.codes.shape[1] + 1), -1, np.int64)
        for row, (codes, answer) in zip(own, zip(self.codes, self.answers)):
            codes[: len(row)] = answer[: len(row)] = row
            if tuple(row) in begun:
                answer[len(row)] = EOS
        self.lengths = (self.codes >= 0).sum(1)

    def convert_tokens_to_ids(self, tokens: Sequence[str]) -> list[int]:
        return [self._ids[token] for token in tokens]

    def user(self, user_id: str) -> int:
        """The token of a user: the same in every process."""
        return EOS + 1 + zlib.crc32(user_id.encode()) % self.user_tokens

    def prompts(
        self, items: np.ndarray, starts: np.ndarray, stops: np.ndarray, users: np.ndarray | None = None
    ) -> dict[str, torch.Tensor]:
        """`input_ids` and `attention_mask` (int64 [b, P], padded on the right) of histories.

        Args:
            items (int [n]): rows of the catalogue; history `i` is `items[starts[i] : stops[i]]`.
            users (int64 [b]): tokens of users, -1 where none is said.
        """
        read = items[ragged_arange(starts, stops)]
        bounds = np.append(0, np.cumsum(stops - starts))
        codes = np.append(0, np.cumsum(self.lengths[read]))
        before = np.zeros(len(starts), np.int64) if users is None else (users >= 0).astype(np.int64)
        lengths = before + codes[bounds[1:]] - codes[bounds[:-1]] + self.ends
        places = np.arange(lengths.max())
        ids = np.full((len(starts), len(places)), PAD)
        table = self.codes[read]
        ids[(places >= before[:, None]) & (places < lengths[:, None] - self.ends)] = table[table >= 0]
        if self.ends:
            ids[np.arange(len(starts)), lengths - 1] = EOS
        if users is not None:
            ids[before > 0, 0] = users[before > 0]
        mask = (places < lengths[:, None]).astype(np.int64)
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}


def make_t5(config: TIGERConfig, vocabulary_size: int) -> T5ForConditionalGeneration:
    """A T5 with random weights; see `reads_forward` for `rows: dense`."""
    return reads_forward(
        T5ForConditionalGeneration(
            T5Config(
                vocab_size=vocabulary_size,
                d_model=config.hidden_size,
                d_kv=config.head_dim,
                d_ff=config.intermediate_size,
                num_layers=config.num_layers,
                num_heads=config.num_heads,
                dropout_rate=config.dropout,
                pad_token_id=PAD,
                eos_token_id=EOS,
                decoder_start_token_id=PAD,
            )
        ),
        config,
    )


def reads_forward(model: T5ForConditionalGeneration, config: TIGERConfig) -> T5ForConditionalGeneration:
    """With `rows: dense` the encoder reads from left to right, so that one pass serves every target of a sequence.
    That is not the paper's encoder, and no field of T5: it is set anew when a model is loaded."""
    # A stack makes its mask by the config, which its attention completes where it is causal and nothing is padded; all
    # else (positions, caches) goes by what the stack was built as.
    model.encoder.config.is_decoder = config.rows == "dense"
    for block in model.encoder.block:
        block.layer[0].SelfAttention.is_causal = config.rows == "dense"
    return model
