"""LMIndexer (ICML 2024, arXiv:2310.07815): codes that a language model learns to write for an item's text, without
being told any.

Level by level: the T5 warms up with its state in the place of a code; k-means of all states makes the level's
codebook; then codes are learned, so that with them a shallow network can fill in the words of a text most of which are
masked (reconstruction), so that items of the same prefix differ (contrast), and so that the levels before keep theirs
(commitment).

Smaller than the paper: the T5 is made from a config and learns from the catalogue alone, where the paper's is a
pretrained T5-base; a text is its first words (`words_of`), not word pieces; codes are picked without Gumbel noise; it
is not fine-tuned to recommend: TIGER or a language model learns its IDs.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from tqdm.auto import tqdm

from llmrec.arguments import at_least
from llmrec.arrays import blocks, check_loss, kmeans
from llmrec.devices import best_device
from llmrec.item_tokenizers.by_item import KeyedByItem
from llmrec.item_tokenizers.lm_indexer_network import LMIndexerNetwork
from llmrec.item_tokenizers.protocol import Traits, check_sizes
from llmrec.item_tokenizers.words.t5_weights import arrays_of, load_arrays
from llmrec.item_tokenizers.words.text_ids import text_of, words_of


@dataclass(eq=False)
class LMIndexer(KeyedByItem):
    """Codes of a learned ID generator.

    Args:
        columns: the catalogue's columns that it reads; absent ones are left out.
        max_words: of a text. Words of one item only are not read.
        width, num_layers: of the T5's encoder and decoder; width is a multiple of 4.
        masked: share of the words that the reconstruction has to fill in.
        warmup_epochs, epochs: of every level, before and after it has a codebook.

    Attributes:
        history (list of `dict`): per level the mean losses of its last epoch, `used` (share of its codes that an item
            has) and `changed` (share of the items whose codes before it changed while it was learned).
    """

    name = "lm_indexer"
    traits = Traits(decodes_to_vector=False, nearest=False, needs=("items",))
    learned = ("vocabulary", "history")

    codebook_sizes: Sequence[int] = (256, 256, 256)
    columns: Sequence[str] = ("title", "brand", "categories")
    max_words: int = 48
    width: int = 128
    num_layers: int = 2
    masked: float = 0.8
    contrast_weight: float = 0.1
    warmup_epochs: int = 3
    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 1e-3
    device: str = "auto"

    def __post_init__(self):
        self.codebook_sizes, self.columns = check_sizes(self.codebook_sizes), list(self.columns)
        counts = ("max_words", "width", "num_layers", "warmup_epochs", "epochs", "batch_size")
        at_least(self, **dict.fromkeys(counts, 1), contrast_weight=0.0, learning_rate=0.0)
        if self.width % 4:
            raise ValueError(f"width={self.width} must be a multiple of 4")
        if not 0 < self.masked <= 1:
            raise ValueError(f"masked={self.masked} must lie above 0 and be 1 at most")
        self.vocabulary: list[str] = []
        self.history: list[dict] = []

    def learn(self, features, items: pa.Table, train, seed: int) -> None:
        words = list(map(words_of, text_of(items, self.columns)))
        if (distinct := len({tuple(row[: self.max_words]) for row in words})) < max(self.codebook_sizes):
            raise ValueError(
                f"{distinct} distinct texts for {max(self.codebook_sizes)} codes: "
                f"lower codebook_sizes={list(self.codebook_sizes)}"
            )
        counts = Counter(word for row in words for word in row)
        self.vocabulary = sorted(word for word, count in counts.items() if count > 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._make()
            self._train(self._texts(words), seed)
        self.remember(items, self._write(words))

    def _make(self) -> None:
        shape = self.max_words, self.codebook_sizes, self.width, self.num_layers
        self._network = LMIndexerNetwork(len(self.vocabulary), *shape).eval()
        self._number = {word: number for number, word in enumerate(self.vocabulary, 1)}

    def _texts(self, words: list[list[str]]) -> torch.Tensor:
        """int64 `[N, max_words]`; a text without a known word is one masked word."""
        texts = torch.zeros(len(words), self.max_words, dtype=torch.long)
        for row, text in zip(texts, words):
            known = [self._number[word] for word in text if word in self._number][: self.max_words]
            row[: max(1, len(known))] = torch.tensor(known or [self._network.mask])
        return texts

    def _train(self, texts: torch.Tensor, seed: int) -> None:
        device, self.history = best_device(self.device), []
        network, texts = self._network.to(device), texts.to(device)
        codes = texts[:, :0]
        for level, size in enumerate(tqdm(self.codebook_sizes, desc="LMIndexer")):
            optimizer = torch.optim.AdamW(network.parameters(), self.learning_rate)
            for epoch in range(self.warmup_epochs + self.epochs):
                if epoch == self.warmup_epochs:
                    states = torch.cat(
                        [network.eval().states(*part)[:, level].detach() for part in _parts(texts, codes)]
                    )
                    centroids = kmeans(states.cpu().numpy(), size, seed + level)
                    network.codebooks[level].data.copy_(torch.from_numpy(centroids))
                means = self._epoch(optimizer, texts, codes, continuous=epoch < self.warmup_epochs)
            before, codes = codes, torch.cat([network.eval().write(part, level + 1) for (part,) in _parts(texts)])
            figures = {"used": len(codes[:, level].unique()) / size}
            if level:
                figures["changed"] = (codes[:, :level] != before).any(1).float().mean().item()
            self.history.append(means | figures)
        network.cpu()

    def _epoch(self, optimizer, texts: torch.Tensor, codes: torch.Tensor, continuous: bool) -> dict[str, float]:
        """One epoch of a level; items of the same codes so far share batches. The mean losses."""
        order = torch.randperm(len(texts))
        if codes.shape[1]:
            prefix = codes.unique(dim=0, return_inverse=True)[1].cpu()
            order = order[prefix[order].argsort(stable=True)]
        batches, sums = order.split(self.batch_size), Counter()
        self._network.train()
        for number in torch.randperm(len(batches)).tolist():
            batch = batches[number].to(texts.device)
            losses = self._network.losses(texts[batch], codes[batch], self.masked, continuous)
            weights = {"contrast": self.contrast_weight}
            loss = sum(weights.get(name, 1.0) * value for name, value in losses.items())
            check_loss(loss.item(), "LMIndexer")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            sums.update({name: len(batch) * value.item() for name, value in losses.items()})
        return {name: total / len(texts) for name, total in sums.items()}

    def _write(self, words: list[list[str]]) -> np.ndarray:
        texts, levels = self._texts(words), len(self.codebook_sizes)
        parts = [self._network.write(part, levels) for (part,) in _parts(texts)]
        return torch.cat(parts).numpy().astype(np.int32)

    def new_codes(self, features, items: pa.Table) -> np.ndarray:
        return self._write(list(map(words_of, text_of(items, self.columns))))

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        values, arrays = super().state()
        return values, arrays | arrays_of(self._network)

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        super().restore(values, arrays)
        self._make()
        load_arrays(self._network, arrays)


def _parts(*tensors: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    return [tuple(tensor[part] for tensor in tensors) for part in blocks(len(tensors[0]), 1024)]
