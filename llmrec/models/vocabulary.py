"""SemID tokens ⇔ tokenizer ⇔ model.

The *full* codebooks become normal added tokens (never special ones: TRL and vLLM decode with
`skip_special_tokens=True`), and their embedding rows are initialised by token id, because checkpoints pad their
matrices (Qwen3 has 151,936 rows for 151,669 tokens) and the first new tokens land on rows that nobody trained.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import AddedToken
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmrec.arguments import one_of
from llmrec.catalogue.semids import SemIDIndex
from llmrec.decoding.self_check import evaluating
from llmrec.models.positions import positions_of
from llmrec.tokens import ControlTokens, conversation, prompt_ids

logger = logging.getLogger(__name__)
INITIALISATIONS = ("mean", "text", "codebook")
_MOST_MASS = 1e-3  # of all new tokens together, anywhere in the text below, before any training
_TEXT = (
    ("What is the highest mountain?", "Mount Everest is the highest mountain above sea level."),
    ("Say thank you in Italian.", "Grazie!"),
    ("What is 12 plus 30?", "12 + 30 = 42."),
    ("Who painted the Mona Lisa?", "The Mona Lisa was painted by Leonardo da Vinci in the early 16th century."),
    ("Is ice colder than steam? Answer yes or no.", "Yes."),
    ("List two colours.", "1. Blue\n2. Green"),
    ("Write one line of Python that prints hi.", 'print("hi")'),
    ("Why do we sleep?", "Sleep lets the body and the brain rest, repair themselves and store what was learned."),
)


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


def check_plain(tokenizer: PreTrainedTokenizerBase, index: SemIDIndex) -> None:
    """Raises `ValueError` where a pretrained model has tokens of these Semantic IDs already: training may have taught
    their rows, and `extend_vocabulary` would draw them again."""
    vocabulary = tokenizer.get_vocab()
    if (there := next((token for token in index.tokens if token in vocabulary), None)) is not None:
        raise ValueError(
            f"the model has the token {there!r} already: start from the model before it got Semantic IDs, or go on "
            "from this one with recipes/sft.py or recipes/update_catalogue.py"
        )


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

    A model that has learned a language keeps it: rows of the output head are drawn so near their mean that all new
    tokens together have less than 0.1 % of the probability at every position of some plain text, and tokens that no
    item uses (spare codes) lie below the mean. What an untrained model says of a text is of no worth, and its rows
    have the old rows' full spread.

    Tokens of behaviours start from `"mean"`, whatever `init` says.

    Args:
        init: where a new row starts.
            `"mean"`: the mean of the old rows plus noise of their per-dimension standard deviation, or less (above).
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
    head = model.get_output_embeddings()
    heard = None if head is None or not index.tokens else _hear_text(model, tokenizer)
    for matrix in dict.fromkeys(layer.weight for layer in (model.get_input_embeddings(), head) if layer is not None):
        old = matrix[:old_tokens].float().cpu()
        mean, spread = old.mean(0), old.std(0)
        apart = {}  # token id → its row, less the mean
        for ids, levels in levels_of_ids.items():
            level = levels[0]
            noise = torch.randn(len(ids), matrix.shape[1], generator=generator) * spread
            rows_of_level = noise.clone()
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
                rows_of_level[known] = (centred * scale + 0.1 * noise)[known]
            apart |= dict(zip(ids, rows_of_level))
        behaviours = behaviour_token_ids(tokenizer, index)
        apart |= dict(zip(behaviours, torch.randn(len(behaviours), matrix.shape[1], generator=generator) * spread))
        if not apart:
            continue
        ids, rows = torch.tensor(list(apart)), torch.stack(list(apart.values()))
        if head is not None and matrix is head.weight:
            bias = torch.zeros(1)
            if getattr(head, "bias", None) is not None:
                bias = head.bias[:old_tokens].float().cpu()
                head.bias[ids] = bias.mean().to(head.bias)
            spare = ~torch.isin(ids, torch.tensor(_used(index, tokenizer)))
            rows = _below_text(rows, mean, old, bias, heard, spare)
        matrix[ids] = (mean + rows).to(matrix)


class _Heard(NamedTuple):
    """What the output head receives at every position of some text (float32 [M, hidden]), and what the model makes of
    its output: some multiply it (Granite, Cohere), some cap it (Gemma 2)."""

    states: torch.Tensor
    scale: float
    cap: float | None

    def logits(self, rows: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        logits = self.scale * (self.states @ rows.T + bias)
        return logits if self.cap is None else self.cap * (logits / self.cap).tanh()


def _hear_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> _Heard:
    texts = [conversation(tokenizer, [{"role": "user", "content": asked}]) + answer for asked, answer in _TEXT]
    states, output = [], []

    def keep(head, args, returned):
        states.append(args[0][0].float().cpu())
        output[:] = [returned.detach().clone()]  # some models go on in place

    handle = model.get_output_embeddings().register_forward_hook(keep)
    try:
        with evaluating(model):
            for ids in prompt_ids(tokenizer, texts):
                read = torch.tensor([ids[: positions_of(model)]], device=model.device)
                logits = model(input_ids=read, use_cache=False).logits.float()
    finally:
        handle.remove()
    cap = getattr(model.config.get_text_config(decoder=True), "final_logit_softcapping", None)
    returned = output[0][..., : logits.shape[-1]].float()
    scale = 1.0 if cap or not returned.any() else ((logits * returned).sum() / returned.square().sum()).item()
    return _Heard(torch.cat(states), scale, cap)


def _below_text(
    rows: torch.Tensor, mean: torch.Tensor, old: torch.Tensor, bias: torch.Tensor, heard: _Heard, spare: torch.Tensor
) -> torch.Tensor:
    """`rows` (new rows of the head, less the mean) made so small that they take at most `_MOST_MASS` of the
    probability anywhere in the text, around a centre that is lowered where rows at the mean alone would take half of
    that, and those that are spare (bool) lower still; unchanged where a row at the mean is as likely as a tenth of a
    word of the vocabulary, as in an untrained model, and, with a warning, where no centre is low enough. `bias` is
    that of the old rows, whose mean new ones have."""
    log_z = heard.logits(old, bias).logsumexp(1)

    def mass(rows: torch.Tensor) -> float:
        return torch.sigmoid(heard.logits(mean + rows, bias.mean()).logsumexp(1) - log_z).max().item()

    if (heard.logits(mean[None], bias.mean())[:, 0] - log_z).exp().mean() * len(old) > 0.1:
        return rows
    common = heard.states.mean(0)
    step = 0.1 * old.std(0).norm() * common / common.norm()
    centre = torch.zeros_like(mean)
    while mass(centre.expand_as(rows)) > _MOST_MASS / 2:
        centre = centre - step
        if centre.norm() > 2 * old.norm(dim=1).max():
            logger.warning("%d new tokens cannot be kept out of this model's text: it may answer with them", len(rows))
            return rows
    while mass(centre + rows) > _MOST_MASS:
        rows = 0.9 * rows
    rows = centre + rows
    rows[spare] -= step
    return rows


def _used(index: SemIDIndex, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids that an item's Semantic ID has, and those of behaviours."""
    levels = [
        ids[np.unique(codes[codes >= 0])] for ids, codes in zip(semid_token_ids(tokenizer, index), index.codes.T)
    ]
    return [int(token) for level in levels for token in level] + behaviour_token_ids(tokenizer, index)


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
