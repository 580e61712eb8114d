"""SemID tokens ⇔ tokenizer ⇔ model.

The *full* codebooks become normal added tokens (never special ones: TRL and vLLM decode with
`skip_special_tokens=True`), and their embedding rows are initialised by token id, because checkpoints pad their
matrices (Qwen3 has 151,936 rows for 151,669 tokens) and the first new tokens land on rows that nobody trained.
"""

from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import AddedToken
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmrec.semids import SemIDIndex

INITIALISATIONS = ("mean", "text", "codebook")


def add_semid_tokens(tokenizer: PreTrainedTokenizerBase, index: SemIDIndex) -> int:
    """Adds every SemID token to the tokenizer, in place; returns how many were new.

    Raises:
        ValueError: a SemID token does not survive the tokenizer as exactly one id (e.g. it is a special token there).
    """
    added = tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in index.tokens])
    special = set(tokenizer.all_special_tokens)
    for tokens in index.level_tokens:
        text = "".join(tokens)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if tokenizer.convert_ids_to_tokens(ids) != tokens or special.intersection(tokens):
            raise ValueError(
                f"the tokenizer does not keep SemID tokens such as {tokens[0]!r} as single normal tokens: "
                "choose another SemID pattern"
            )
    return added


def semid_token_ids(tokenizer: PreTrainedTokenizerBase, index: SemIDIndex) -> list[np.ndarray]:
    """Token ids of every code, int64 [K_l] per level.

    Raises:
        ValueError: the tokenizer lacks a SemID token (call `add_semid_tokens` first).
    """
    vocabulary = tokenizer.get_vocab()
    missing = next((token for token in index.tokens if token not in vocabulary), None)
    if missing is not None:
        raise ValueError(f"the tokenizer has no token {missing!r}: run recipes/init_model.py with these Semantic IDs")
    return [np.asarray([vocabulary[token] for token in tokens], np.int64) for tokens in index.level_tokens]


@torch.no_grad()
def extend_vocabulary(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    index: SemIDIndex,
    init: str = "mean",
    *,
    texts: dict[str, str] | None = None,
    codebooks: Sequence[np.ndarray] | None = None,
    seed: int = 0,
) -> None:
    """Adds the SemID tokens to tokenizer and model, in place, and initialises their rows (input and untied output).

    Args:
        init (`str`): where a new row starts.
            `"mean"`: the mean of the old rows plus noise of their per-dimension standard deviation.
            `"text"`: the mean embedding of the title tokens of the items behind the code, centred per level and
            scaled to the old rows' spread (needs `texts`). TS-Rec, GTI (arXiv 2604.02324) call this grounded.
            `"codebook"`: the code's vector under a seeded random projection, which keeps the codebook's geometry,
            centred and scaled alike (needs `codebooks`). Codes without text or vector fall back to `"mean"`.
        texts (`dict`, *optional*): item id → text, for `"text"`.
        codebooks (sequence of `np.ndarray` [K_l, d], *optional*): per level; fewer levels than the index has (the
            level that only tells colliding items apart has no vectors) are fine.

    Raises:
        ValueError: an unknown `init`, or its input is missing.
    """
    if init not in INITIALISATIONS:
        raise ValueError(f"embedding initialisation {init!r} is not one of {', '.join(INITIALISATIONS)}")
    if init == "text" and not texts:
        raise ValueError("embedding initialisation 'text' needs the items' texts")
    if init == "codebook" and not codebooks:
        raise ValueError(
            "embedding initialisation 'codebook' needs the item tokenizer's codebooks; use 'mean' or 'text'"
        )
    old_tokens = len(tokenizer)
    add_semid_tokens(tokenizer, index)
    # Never shrink: vLLM and sharded checkpoints rely on the padded size.
    rows = max(model.get_input_embeddings().weight.shape[0], len(tokenizer))
    model.resize_token_embeddings(rows, mean_resizing=False)
    level_ids = [torch.from_numpy(ids) for ids in semid_token_ids(tokenizer, index)]
    generator = torch.Generator().manual_seed(seed)
    matrices = [model.get_input_embeddings().weight]
    if model.get_output_embeddings() is not None and model.get_output_embeddings().weight is not matrices[0]:
        matrices.append(model.get_output_embeddings().weight)
    for matrix in matrices:
        old = matrix[:old_tokens].float().cpu()
        mean, spread = old.mean(0), old.std(0)
        for level, ids in enumerate(level_ids):
            noise = torch.randn(len(ids), matrix.shape[1], generator=generator) * spread
            rows_of_level = mean + noise
            grounded, held = None, None
            if init == "text":
                grounded, held = _text_vectors(matrix, tokenizer, index, level, texts)
            elif init == "codebook" and level < len(codebooks):
                vectors = torch.from_numpy(np.asarray(codebooks[level], np.float32))
                projection = torch.randn(
                    vectors.shape[1], matrix.shape[1], generator=torch.Generator().manual_seed(seed)
                )
                grounded, held = vectors @ projection, torch.ones(len(ids), dtype=torch.bool)
            if grounded is not None and held.any():
                centred = grounded - grounded[held].mean(0)
                norms = centred.norm(dim=1)
                held &= norms > 1e-6 * grounded.norm(dim=1).max()  # a code alone in its level says nothing
                scale = spread.norm() / norms[held].mean()
                # A tenth of the usual noise keeps codes with equal texts apart.
                rows_of_level[held] = (mean + centred * scale + 0.1 * noise)[held]
            matrix[ids] = rows_of_level.to(matrix)


def _text_vectors(matrix, tokenizer, index: SemIDIndex, level: int, texts: dict[str, str]):
    """Mean token embedding of the texts of the items behind each code: ([K, hidden], bool [K]: any text)."""
    item_texts = [texts.get(item, "") for item in index.item_ids]
    ids = tokenizer(item_texts, add_special_tokens=False)["input_ids"]
    sums = torch.zeros(index.codebook_sizes[level], matrix.shape[1])
    counts = torch.zeros(index.codebook_sizes[level])
    for row, tokens in enumerate(ids):
        code = int(index.codes[row, level])
        if code >= 0 and tokens:
            sums[code] += matrix[torch.tensor(tokens)].float().mean(0).cpu()
            counts[code] += 1
    return sums / counts.clamp(min=1)[:, None], counts > 0
