"""IDGenRec (SIGIR 2024, arXiv:2403.19021): a generator writes an item's ID in words of the catalogue's texts, and is
trained in turn with a recommender that reads and writes these IDs.

A round is some epochs of the recommender on the IDs as they are; then epochs of the generator, whose distributions
over words stand for the words of the histories in the frozen recommender, so that the likelihood of the next item's ID
teaches it what to call an item; then all items are named anew. Diverse beam search writes several IDs for an item, and
the likeliest that no other has is its own; where all are taken, the shortest length grows.

Smaller than the paper: both T5s are made from a config and read the words that two items or more have, where the
paper's are pretrained and read word pieces; the generator begins with what `keywords` would write, not with tags of
articles; users have no IDs, and there is one prompt, the history; the recommender is thrown away at the end: TIGER or
a language model learns the IDs.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from tqdm.auto import tqdm

from llmrec.arguments import at_least
from llmrec.arrays import blocks, check_loss
from llmrec.devices import best_device
from llmrec.item_tokenizers.by_item import KeyedByItem
from llmrec.item_tokenizers.residual.etegrec import training_windows
from llmrec.item_tokenizers.words.idgenrec_network import (
    diverse_beams,
    hard_vectors,
    next_loss,
    soft_vectors,
    word_logits,
    word_t5,
    writing_loss,
)
from llmrec.item_tokenizers.words.keywords import Keywords
from llmrec.item_tokenizers.words.t5_weights import arrays_of, load_arrays
from llmrec.item_tokenizers.words.text_ids import TEXT_TRAITS, text_of, words_of


@dataclass(eq=False)
class IDGenRec(KeyedByItem):
    """Text IDs of a learned generator.

    Args:
        columns: the catalogue's columns that it reads; absent ones are left out.
        min_words, max_words: shortest and longest ID.
        max_text: words of a text that are read.
        groups, penalty: of the diverse beam search, whose groups are an item's choice of IDs.
        width, num_layers: of both T5s, encoder and decoder; width is a multiple of 4.
        warmup_epochs: in which the generator learns to write keywords.
        rounds, recommender_epochs, generator_epochs: what is done in turn; 0 rounds leave the generator as it began.
        max_length: items of a history, the latest.
        batch_size: texts, or sequences; of each a random item is the next one.

    Attributes:
        history (list of `dict`): per round the mean losses of its last epochs, `recommender` and `generator`, and
            `changed`, the share of items with another ID than before.

    `fit` raises `ValueError` where no training sequence holds two items, or texts share too few words.
    """

    name = "idgenrec"
    traits = TEXT_TRAITS._replace(needs=("items", "train"))
    learned = ("vocabulary", "history")

    columns: Sequence[str] = ("title", "brand", "categories")
    min_words: int = 3
    max_words: int = 8
    max_text: int = 48
    groups: int = 8
    penalty: float = 1.0
    width: int = 128
    num_layers: int = 2
    warmup_epochs: int = 20
    rounds: int = 3
    recommender_epochs: int = 10
    generator_epochs: int = 2
    max_length: int = 10
    batch_size: int = 64
    learning_rate: float = 1e-3
    device: str = "auto"

    def __post_init__(self):
        self.columns = list(self.columns)
        counts = "max_text groups width num_layers recommender_epochs generator_epochs max_length batch_size"
        rates = {"penalty": 0.0, "learning_rate": 0.0}
        at_least(self, **dict.fromkeys(counts.split(), 1), warmup_epochs=0, rounds=0, **rates)
        if not 1 <= self.min_words <= self.max_words:
            wrong = f"min_words={self.min_words} and max_words={self.max_words}"
            raise ValueError(f"{wrong}: write 1 <= min_words <= max_words")
        if self.width % 4:
            raise ValueError(f"width={self.width} must be a multiple of 4")
        self.vocabulary: list[str] = []
        self.history: list[dict] = []

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (len(self.vocabulary),) * self.max_words if self.vocabulary else ()

    @property
    def level_tokens(self) -> list[list[str]]:
        return [[f" {word}" for word in self.vocabulary]] * len(self.codebook_sizes)

    def learn(self, features, items: pa.Table, train: pa.Table, seed: int) -> None:
        items = items.sort_by("item_id")
        words = list(map(words_of, text_of(items, self.columns)))
        counts = Counter(word for row in words for word in row)
        self.vocabulary = sorted(word for word, count in counts.items() if count > 1)
        if len(self.vocabulary) < self.max_words + self.groups:
            raise ValueError(
                f"{len(self.vocabulary)} words stand in the texts ({', '.join(self.columns)}) of two items or more, "
                f"too few for IDs of max_words={self.max_words} in groups={self.groups}: lower them, or name columns"
            )
        windows = training_windows(train, items["item_id"].to_pylist(), self.max_length, self.name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._make()
            texts = self._numbers(words, self.max_text)
            self._warm_up(items, texts, seed)
            ids = self._train(texts, windows)
        self.remember(items, ids.numpy().astype(np.int32))

    def _make(self) -> None:
        self._writer = word_t5(len(self.vocabulary), self.width, self.num_layers).eval()
        self._number = {word: number for number, word in enumerate(self.vocabulary)}

    def _numbers(self, words: list[list[str]], most: int) -> torch.Tensor:
        """int64 `[N, most]`: the first words that are in the vocabulary, -1 behind them."""
        numbers = torch.full((len(words), most), -1)
        for row, text in zip(numbers, words):
            known = [self._number[word] for word in text if word in self._number][:most]
            row[: len(known)] = torch.tensor(known, dtype=torch.long)
        return numbers

    def _warm_up(self, items: pa.Table, texts: torch.Tensor, seed: int) -> None:
        general = min(Keywords.general_words, self.max_words)
        keywords = Keywords(self.columns, general, self.min_words, self.max_words)
        keywords.learn(None, items, None, seed)
        written = [[keywords.vocabulary[word] for word in row if word >= 0] for row in keywords.remembered.codes]
        wanted = self._numbers(written, self.max_words)
        rows, device = (wanted >= 0).any(1).nonzero()[:, 0], best_device(self.device)
        texts, wanted, writer = texts[rows].to(device), wanted[rows].to(device), self._writer.to(device)
        optimizer = torch.optim.AdamW(writer.parameters(), self.learning_rate)
        for _ in tqdm(range(self.warmup_epochs), desc="IDGenRec, keywords"):
            self._epoch(writer, optimizer, len(texts), lambda batch: writing_loss(writer, texts[batch], wanted[batch]))
        writer.cpu().eval()

    def _train(self, texts: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
        """The rounds; returns the IDs of all items, int64 `[N, max_words]`."""
        device, self.history = best_device(self.device), []
        writer, texts, windows = self._writer.to(device), texts.to(device), windows.to(device)
        recommender = word_t5(len(self.vocabulary), self.width, self.num_layers).to(device)
        optimizers = [torch.optim.AdamW(one.parameters(), self.learning_rate) for one in (recommender, writer)]
        ids = self._write(texts)

        def loss(written: Callable, batch: torch.Tensor) -> torch.Tensor:
            before, targets = draw(windows[batch])
            read = ids[before.clamp(min=0)].masked_fill((before < 0)[..., None], -1)
            return next_loss(recommender, read, written(before, read), ids[targets])

        def soft(before: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
            known, place = before.clamp(min=0).unique(return_inverse=True)
            return soft_vectors(recommender, word_logits(writer, texts[known], ids[known]))[place]

        def hard(before: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
            return hard_vectors(recommender, read)

        for _ in tqdm(range(self.rounds), desc="IDGenRec"):
            figures = {}
            for _ in range(self.recommender_epochs):
                figures["recommender"] = self._epoch(recommender, optimizers[0], len(windows), partial(loss, hard))
            recommender.requires_grad_(False)
            for _ in range(self.generator_epochs):
                figures["generator"] = self._epoch(writer, optimizers[1], len(windows), partial(loss, soft))
            recommender.requires_grad_(True)
            before, ids = ids, self._write(texts)
            self.history.append(figures | {"changed": (ids != before).any(1).float().mean().item()})
        writer.cpu()
        return ids.cpu()

    def _epoch(self, network: nn.Module, optimizer, count: int, loss: Callable[[torch.Tensor], torch.Tensor]) -> float:
        """Trains on every one of `count` rows once; the mean loss."""
        network.train()
        total = 0.0
        for batch in torch.randperm(count).split(self.batch_size):
            mean = loss(batch)
            check_loss(value := mean.item(), "IDGenRec")
            optimizer.zero_grad(set_to_none=True)
            mean.backward()
            optimizer.step()
            total += len(batch) * value
        network.eval()
        return total / max(1, count)

    def _write(self, texts: torch.Tensor, taken: Iterable[tuple] | None = None) -> torch.Tensor:
        """int64 `[N, max_words]`: an ID for every text; those of the texts before it are taken or, where `taken` says
        which are, these alone. Where nothing helps, it is one of those taken: the collision policy's case."""
        settings = self.max_words, self.groups, self.penalty
        grows, used = taken is None, set(taken or ())
        ids, waiting = torch.full((len(texts), self.max_words), -1), list(range(len(texts)))
        for least in range(self.min_words, self.max_words + 1):
            rows, waiting = waiting, []
            for part in blocks(len(rows), 128):
                choices = diverse_beams(self._writer, texts[rows[part]], least, *settings).tolist()
                for row, choice in zip(rows[part], choices):
                    free = [each for each in choice if tuple(each) not in used]
                    ids[row] = torch.tensor((free or choice)[0])
                    if not free:
                        waiting.append(row)
                    elif grows:
                        used.add(tuple(free[0]))
        return ids.to(texts.device)

    def new_codes(self, features, items: pa.Table) -> np.ndarray:
        words = list(map(words_of, text_of(items, self.columns)))
        ids = self._write(self._numbers(words, self.max_text), map(tuple, self.remembered.codes.tolist()))
        return ids.numpy().astype(np.int32)

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        values, arrays = super().state()
        return values, arrays | arrays_of(self._writer)

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        super().restore(values, arrays)
        self._make()
        load_arrays(self._writer, arrays)


def draw(windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of training windows `[B, T + 1]` the items before a random place, `[B, T]` padded with -1, and the one there."""
    lengths, steps = (windows >= 0).sum(1), torch.arange(windows.shape[1] - 1, device=windows.device)
    place = 1 + (torch.rand(len(windows), device=windows.device) * (lengths - 1)).long()
    place = torch.minimum(place, lengths - 1)[:, None]  # rounding
    return windows[:, :-1].masked_fill(steps >= place, -1), windows.gather(1, place)[:, 0]
