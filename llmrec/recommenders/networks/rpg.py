"""RPG's network (KDD 2025, arXiv:2506.05781): a GPT-2 over items that predicts all digits of the next one at once.

An item is one position, whose input is the mean of its digits' embeddings. Every digit has a residual head,
`h + silu(h W)` with W = 0 at first, and its logits are cosines with the embeddings of that digit's codes, divided by
the temperature; so the digits share what they know with the input. Training takes the mean cross-entropy of the
digits after every position.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from transformers import GPT2Config, GPT2Model

from llmrec.arguments import at_least, one_of
from llmrec.catalogue.semids import SemIDIndex
from llmrec.features.attention import at_last
from llmrec.features.network_training import check_rate
from llmrec.features.next_item import NextItemConfig
from llmrec.recommenders.networks.decoding_graph import item_scores

FEWEST_DIGITS = 8  # digits are predicted independently of each other: with four, RPG loses to TIGER
MOST_COLLIDING = 0.1  # share of the items whose digits the collision policy had to change


@dataclass(frozen=True)
class RPGConfig(NextItemConfig):
    """Shape, training and search of an RPG; shape, temperature and graph are the paper's for Amazon Beauty. Its
    optimizer is AdamW."""

    semids: str = field(
        default="",
        metadata={"help": "Folder of recipes/tokenize_items.py, or an index.json: opq or pq, 16-64 digits."},
    )
    hidden_size: int = field(default=448, metadata={"help": "Width of embeddings, blocks and heads."})
    intermediate_size: int = field(default=1024, metadata={"help": "Width inside a block's feed-forward part."})
    num_layers: int = field(default=2, metadata={"help": "Transformer blocks."})
    num_heads: int = field(default=4, metadata={"help": "Attention heads; hidden_size is a multiple of it."})
    dropout: float = field(default=0.3, metadata={"help": "Of the input and of attention weights."})
    temperature: float = field(default=0.03, metadata={"help": "Divides the cosines that are the logits."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Constant."})
    search: str = field(default="exhaustive", metadata={"help": "Items that are scored: exhaustive (all), or graph."})
    edges: int = field(default=200, metadata={"help": "graph: neighbours of an item."})
    beam: int = field(default=20, metadata={"help": "graph: items that a round expands, and random ones at first."})
    rounds: int = field(default=3, metadata={"help": "graph: how often the best are expanded."})

    def __post_init__(self):
        super().__post_init__()
        at_least(self, intermediate_size=1, num_layers=1, num_heads=1, edges=1, beam=1, rounds=1)
        check_rate(self, "dropout")
        one_of(self.search, ("exhaustive", "graph"), "search")
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature!r}, it should be above 0")


class RPGNetwork(nn.Module):
    """`forward` gives one hidden state per position, `head` scores the catalogue after it.

    Args:
        codes: int32 `[items, m]`, from 0 on at every digit.
        codebook_size: K, codes of a digit.
    """

    def __init__(self, codes: np.ndarray, codebook_size: int, config: RPGConfig):
        super().__init__()
        self.num_digits, width = codes.shape[1], config.hidden_size
        self.codebook_size, self.temperature = codebook_size, config.temperature
        first = np.arange(self.num_digits, dtype=np.int32) * codebook_size
        self.register_buffer("codes", torch.from_numpy(codes + first))
        self.digits = nn.EmbeddingBag(self.num_digits * codebook_size, width, mode="mean")
        nn.init.normal_(self.digits.weight, std=0.02)
        shape = {"n_embd": width, "n_inner": config.intermediate_size, "n_layer": config.num_layers}
        shape |= {"n_head": config.num_heads, "n_positions": config.max_length}
        shape |= {"vocab_size": 1, "bos_token_id": None, "eos_token_id": None}  # it reads vectors
        dropout = {"embd_pdrop": config.dropout, "attn_pdrop": config.dropout, "resid_pdrop": 0.0}
        self.decoder = GPT2Model(GPT2Config(**shape, **dropout, use_cache=False))
        self.heads = nn.Parameter(torch.zeros(self.num_digits, width, width))

    def forward(
        self,
        ids_BT: torch.Tensor,
        lengths_B: torch.Tensor | None = None,
        known_BTK: torch.Tensor | None = None,
        last: bool = False,
    ) -> torch.Tensor:
        """As of `NextItemNetwork`; what else is known is not read, and lengths for the last items alone."""
        # Padding stands on the right, so the causal mask hides it from every real position.
        inputs = self.digits(self.codes[ids_BT].flatten(0, 1)).unflatten(0, ids_BT.shape)
        hidden_BTH = self.decoder(inputs_embeds=inputs).last_hidden_state
        return at_last(hidden_BTH, lengths_B)[:, 0] if last else hidden_BTH

    def digit_vectors(self) -> torch.Tensor:
        """float [m, K, hidden]: the embeddings of every digit's codes."""
        return self.digits.weight.unflatten(0, (self.num_digits, self.codebook_size))

    def logits(self, hidden_PH: torch.Tensor) -> torch.Tensor:
        """float [P, hidden] to float [m, P, K]."""
        return _digit_logits(hidden_PH, self.heads, F.normalize(self.digit_vectors(), dim=-1) / self.temperature)

    def loss(self, hidden_PH: torch.Tensor, items_P: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy over positions and digits of the items (int64 [P]) that follow the states."""
        codes_mP = self.codes[items_P].T.long() % self.codebook_size
        vectors = F.normalize(self.digit_vectors(), dim=-1) / self.temperature
        return _DigitLoss.apply(hidden_PH, self.heads, vectors, codes_mP) / self.num_digits

    def tables(self, hidden_PH: torch.Tensor) -> torch.Tensor:
        """float32 [P, m * K]: the log-probability of every digit's codes, for `decoding_graph`."""
        return self.logits(hidden_PH).float().log_softmax(-1).transpose(0, 1).flatten(1)

    def head(self, hidden_PH: torch.Tensor) -> torch.Tensor:
        """float [P, hidden] to float32 [P, items]: the mean log-probability of every item's digits."""
        return item_scores(self.tables(hidden_PH), self.codes)


def _digit_logits(hidden_PH: torch.Tensor, head: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Of one digit, whose head is [hidden, hidden] and whose vectors are [K, hidden], or of all, [m, ...]."""
    return F.normalize(hidden_PH + F.silu(hidden_PH @ head), dim=-1) @ vectors.mT


class _DigitLoss(torch.autograd.Function):
    """The sum of the digits' mean cross-entropies. A digit's gradients are made with its loss, so that what stands
    between them does not leave the cache."""

    @staticmethod
    def forward(ctx, hidden_PH, heads, vectors, codes_mP) -> torch.Tensor:
        total, by_hidden = hidden_PH.new_zeros(()), torch.zeros_like(hidden_PH)
        by_heads, by_vectors = torch.empty_like(heads), torch.empty_like(vectors)
        for digit, codes_P in enumerate(codes_mP):
            inputs = [part.detach().requires_grad_() for part in (hidden_PH, heads[digit], vectors[digit])]
            with torch.enable_grad():
                loss = F.cross_entropy(_digit_logits(*inputs), codes_P)
            by_one, by_heads[digit], by_vectors[digit] = torch.autograd.grad(loss, inputs)
            by_hidden += by_one
            total += loss.detach()
        ctx.save_for_backward(by_hidden, by_heads, by_vectors)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return *(by_part * grad for by_part in ctx.saved_tensors), None


def digits_of(index: SemIDIndex, items) -> tuple[np.ndarray, int]:
    """Long unordered IDs: codes int32 `[items, m]` of a catalogue, and K.

    Raises:
        ValueError: IDs that depend on the history or have an order, several IDs of an item, codebooks of different
            sizes, fewer than `FEWEST_DIGITS` digits, or too few to tell the items apart.
    """
    advice = "make them with recipes/tokenize_items.py, tokenizer opq or pq, 16 to 64 digits"
    name = f"Semantic IDs of {index.item_tokenizer or 'an unknown item tokenizer'}"
    if index.contextual:
        raise ValueError(f"{name} depend on the history: RPG needs one ID an item: {advice}")
    if index.views or index.domains:
        raise ValueError(f"{name} are joined from several: RPG needs one ID an item: {advice}")
    if index.ordered:
        raise ValueError(f"{name} have an order, coarse to fine, and RPG predicts all digits at once: {advice}")
    index = index.aligned(items)
    if len(index) != items.num_rows:
        raise ValueError(f"{name}: there are items with several: RPG needs one ID an item: {advice}")
    codes, sizes, few = index.codes, index.codebook_sizes, "these are too few digits for this catalogue: take more"
    if index.collision != "keep":  # the last level is that of its further tokens
        if further := int((codes[:, -1] >= 0).sum()):
            where = f"{further} of {len(codes)} items have a further token beside their digits"
            raise ValueError(f"{name}: {where}: {few}, and collision: reassign_last")
        codes, sizes = codes[:, :-1], sizes[:-1]
    if (codes < 0).any():
        raise ValueError(f"{name}: there are items without a code at some level: {advice}")
    if len(set(sizes)) > 1:
        raise ValueError(f"{name} have codebooks of different sizes {list(sizes)}: {advice}")
    if len(sizes) < FEWEST_DIGITS:
        raise ValueError(f"{name} have {len(sizes)} digits, too few for RPG (at least {FEWEST_DIGITS}): {advice}")
    if shared := len(codes) - len(np.unique(codes, axis=0)):
        where = f"{shared} of {len(codes)} items have the digits of another"
        raise ValueError(f"{name}: {where}: {few}, or collision: reassign_last")
    if (share := index.info.get("collisions_before", {}).get("colliding_items", 0)) > MOST_COLLIDING:
        raise ValueError(f"{name}: {share:.0%} of the items collided before the policy: {few}")
    return codes, sizes[0]
