"""LMIndexer: its codes say what texts say, its losses are those of the paper, and what it refuses."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from llmrec.item_tokenizers import LMIndexer
from llmrec.item_tokenizers.lm_indexer_network import LMIndexerNetwork

TOPICS = ["lamp bulb light watt shade glow", "chair seat oak legs cushion arm", "rug wool pile carpet woven yarn",
          "pan steel lid pot cook fry"]  # fmt: skip
SMALL = {"width": 32, "num_layers": 1, "max_words": 8, "batch_size": 32, "warmup_epochs": 3, "epochs": 6}
NOTHING = np.empty((0, 1), np.float32)


def topical(count: int = 240, seed: int = 0) -> tuple[pa.Table, np.ndarray]:
    """Items whose titles are four words of one topic."""
    rng = np.random.default_rng(seed)
    topic = rng.integers(0, len(TOPICS), count)
    titles = [" ".join(rng.permutation(TOPICS[one].split())[:4]) for one in topic]
    return pa.table({"item_id": [f"{seed}-{i}" for i in range(count)], "title": titles}), topic


def test_the_first_code_says_what_the_text_is_about():
    items, topic = topical()
    tokenizer = LMIndexer(codebook_sizes=[4, 4], **SMALL).fit(NOTHING, items)
    codes = tokenizer.encode(NOTHING, items)
    assert normalized_mutual_info_score(topic, codes[:, 0]) > 0.6
    new, new_topic = topical(60, seed=7)
    assert normalized_mutual_info_score(new_topic, tokenizer.encode(NOTHING, new)[:, 0]) > 0.6
    first, second = tokenizer.history
    assert first["used"] == 1 and "commitment" not in first and second["commitment"] < 0.5
    assert second["changed"] < 0.2 and second["reconstruction"] < np.log(24)


def test_the_losses_of_a_level():
    torch.manual_seed(0)
    network = LMIndexerNetwork(20, 6, [5, 4], 16, 1).eval()
    for book in network.codebooks:
        book.data.normal_()
    texts, codes = torch.randint(1, 21, (6, 6)), torch.tensor([[0], [0], [1], [2], [1], [0]])
    losses = network.losses(texts, codes, 0.5, continuous=False)
    states = network.states(texts, codes)
    unit = torch.nn.functional.normalize(states[:, 1], dim=-1)
    contrast = 0
    for one in range(6):
        alike = [other for other in range(6) if codes[other] == codes[one]]
        near = torch.stack([unit[one] @ unit[other] / 0.1 for other in alike])
        contrast -= near.log_softmax(0)[alike.index(one)] / 6
    torch.testing.assert_close(losses["contrast"], contrast)
    wanted = (states[:, 0] @ network.codebooks[0].T).log_softmax(-1)[torch.arange(6), codes[:, 0]]
    torch.testing.assert_close(losses["commitment"], -wanted.mean())
    losses["reconstruction"].backward()
    # The code is a choice, and yet what the text is reconstructed from teaches who chose it.
    assert network.lm.encoder.block[0].layer[0].SelfAttention.q.weight.grad.abs().sum() > 0
    assert network.codebooks[1].grad.abs().sum() > 0


def test_what_it_refuses():
    items, _ = topical(30)
    with pytest.raises(ValueError, match="none of the text columns"):
        LMIndexer(codebook_sizes=[4], **SMALL).fit(NOTHING, items.select(["item_id"]))
    with pytest.raises(ValueError, match="distinct texts for 64 codes: lower codebook_sizes"):
        LMIndexer(codebook_sizes=[64], **SMALL).fit(NOTHING, items)
    with pytest.raises(ValueError, match="width=10 must be a multiple of 4"):
        LMIndexer(width=10)
    with pytest.raises(ValueError, match="masked=0 must lie above 0"):
        LMIndexer(masked=0)
