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

from llmrec.arguments import one_of
from llmrec.catalogue.semids import SemIDIndex
from llmrec.tokens import ControlTokens

INITIALISATIONS = ("mean", "text", "codebook")


def add_semid_tokens(tokenizer: PreTrainedTokenizerBase, index: SemIDIndex) -> int:
    """Adds every SemID token to the tokenizer, in place; returns how many were new. Raises `ValueError` where a token
    does not survive the tokenizer as exactly one id (e.g. it is a special token there)."""
    added = tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in index.tokens])
    special = set(tokenizer.all_special_tokens)
    behaviours = [index.behaviour_token(behaviour) for behaviour in index.behaviours]
    for tokens in [*(index.level_tokens if index.adds_tokens else []), behaviours]:
        text = "".join(tokens)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if tokenizer.convert_ids_to_tokens(ids) != tokens or special.intersection(tokens):
            example = next((token for token in tokens if token in special), tokens[0])
            raise ValueError(
                f"the tokenizer does not keep tokens such as {example!r} as single normal tokens: "
                "choose another SemID pattern, or other names of behaviours"
            )
    return added


def behaviour_token_ids(tokenizer: PreTrainedTokenizerBase, index: SemIDIndex) -> list[int]:
    """Token ids of the kinds of interaction, in their order."""
    return tokenizer.convert_tokens_to_ids([index.behaviour_token(behaviour) for behaviour in index.behaviours])


def semid_token_ids(tokenizer: PreTrainedTokenizerBase, index: SemIDIndex) -> list[np.ndarray]:
    """Token ids of every code, int64 [K_l] per level; no level where the Semantic IDs add no tokens. Raises
    `ValueError` where the tokenizer lacks one (call `add_semid_tokens` first)."""
    vocabulary = tokenizer.get_vocab()
    missing = next((token for token in index.tokens if token not in vocabulary), None)
    if missing is not None:
        raise ValueError(f"the tokenizer has no token {missing!r}: run recipes/init_model.py with these Semantic IDs")
    levels = index.level_tokens if index.adds_tokens else []
    return [np.asarray([vocabulary[token] for token in tokens], np.int64) for tokens in levels]


@torch.no_grad()
def extend_vocabulary(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    index: SemIDIndex,
    init: str = "mean",
    *,
    texts: dict[str, str] | None = None,
    codebooks: Sequence[np.ndarray | None] | None = None,
    seed: int = 0,
) -> None:
    """Adds the SemID tokens to tokenizer and model, in place, and initialises their rows (input and untied output).

    Tokens of behaviours start from `"mean"`, whatever `init` says.

    Args:
        init: where a new row starts.
            `"mean"`: the mean of the old rows plus noise of their per-dimension standard deviation.
            `"text"`: the mean embedding of the title tokens of the items behind the code, centred per level and
            scaled to the old rows' spread (needs `texts`). TS-Rec, GTI (arXiv 2604.02324) call this grounded.
            `"codebook"`: the code's vector under a seeded random projection, which keeps the codebook's geometry,
            centred and scaled alike (needs `codebooks`). Codes without text or vector fall back to `"mean"`.
        texts: item id → text, for `"text"`.
        codebooks: [K_l, d] or `None` per level; fewer levels than the index has (the level that only tells colliding
            items apart has no vectors) are fine.

    Raises:
        ValueError: an unknown `init`, or its input is missing.
    """
    one_of(init, INITIALISATIONS, "embedding initialisation")
    if init == "text" and not texts:
        raise ValueError("embedding initialisation 'text' needs the items' texts")
    if init == "codebook" and all(vectors is None for vectors in codebooks or ()):
        raise ValueError(
            "embedding initialisation 'codebook' needs the item tokenizer's codebooks; use 'mean' or 'text'"
        )
    old_tokens = len(tokenizer)
    add_semid_tokens(tokenizer, index)
    # Never shrink: vLLM and sharded checkpoints rely on the padded size.
    rows = max(model.get_input_embeddings().weight.shape[0], len(tokenizer))
    model.resize_token_embeddings(rows, mean_resizing=False)
    levels_of_ids: dict[tuple[int, ...], list[int]] = {}  # levels that share their tokens are one codebook
    for level, ids in enumerate(semid_token_ids(tokenizer, index)):
        levels_of_ids.setdefault(tuple(ids.tolist()), []).append(level)
    generator = torch.Generator().manual_seed(seed)
    layers = model.get_input_embeddings(), model.get_output_embeddings()
    for matrix in dict.fromkeys(layer.weight for layer in layers if layer is not None):
        old = matrix[:old_tokens].float().cpu()
        mean, spread = old.mean(0), old.std(0)
        for ids, levels in levels_of_ids.items():
            level, ids = levels[0], torch.tensor(ids)
            noise = torch.randn(len(ids), matrix.shape[1], generator=generator) * spread
            rows_of_level = mean + noise
            grounded = None
            if init == "text":
                grounded, known = _text_vectors(matrix, tokenizer, index, levels, texts)
            elif init == "codebook" and level < len(codebooks) and codebooks[level] is not None:
                vectors = torch.from_numpy(np.asarray(codebooks[level], np.float32))
                projection = torch.randn(
                    vectors.shape[1], matrix.shape[1], generator=torch.Generator().manual_seed(seed)
                )
                grounded, known = vectors @ projection, torch.ones(len(ids), dtype=torch.bool)
            if grounded is not None and known.any():
                centred = grounded - grounded[known].mean(0)
                norms = centred.norm(dim=1)
                known &= norms > 1e-6 * grounded.norm(dim=1).max()  # a code alone in its level says nothing
                scale = spread.norm() / norms[known].mean()
                # A tenth of the usual noise keeps codes with equal texts apart.
                rows_of_level[known] = (mean + centred * scale + 0.1 * noise)[known]
            matrix[ids] = rows_of_level.to(matrix)
        if behaviours := behaviour_token_ids(tokenizer, index):
            noise = torch.randn(len(behaviours), matrix.shape[1], generator=generator) * spread
            matrix[torch.tensor(behaviours)] = (mean + noise).to(matrix)


def _text_vectors(matrix, tokenizer, index: SemIDIndex, levels: list[int], texts: dict[str, str]):
    """Mean token embedding of the texts of the items behind each code: ([K, hidden], bool [K]: any text)."""
    control = ControlTokens(tokenizer, index.tokens)
    item_texts = [control.plain(texts.get(item, "")) for item in index.item_ids]
    ids = tokenizer(item_texts, add_special_tokens=False)["input_ids"]
    sums = torch.zeros(index.codebook_sizes[levels[0]], matrix.shape[1])
    counts = torch.zeros(index.codebook_sizes[levels[0]])
    for row, tokens in enumerate(ids):
        codes = index.codes[row, levels]
        if tokens:
            mean = matrix[torch.tensor(tokens)].float().mean(0).cpu()
            for code in codes[codes >= 0].tolist():
                sums[code] += mean
                counts[code] += 1
    return sums / counts.clamp(min=1)[:, None], counts > 0
