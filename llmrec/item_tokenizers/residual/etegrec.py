"""ETEGRec: an RQ-VAE that is fine-tuned in turn with a recommender (SIGIR 2025, 2409.05546). Experimental.

After RQ-VAE training come cycles: some epochs of the recommender with the tokenizer frozen, then one epoch of the
tokenizer with the recommender frozen. Two losses tie them. SIA: the state of a sequence, mapped to an item, should get
the codes of the target item. PSA: it should be near the target item's reconstruction. The result is an RQ-VAE like any
other.

Differs from the paper: the recommender is a GRU over the items' quantised vectors that predicts a next item code by
code (there, T5 over code tokens); it is thrown away at the end; and it learns first in every cycle, as a tokenizer
aligned to a random recommender would learn noise. One state serves both losses, where T5 has an encoder's and a
decoder's. The RQ-VAE gets its usual input, not SASRec embeddings, unless the features are made so.

Fine-tuning moves items to other codes: do it before an LLM learns them, never after. `history` says how many moved.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from llmrec.item_tokenizers.protocol import Traits
from llmrec.item_tokenizers.residual.etegrec_training import fine_tune, training_windows
from llmrec.item_tokenizers.residual.rq_vae import RQVAE, WITH_TRAIN

# What the alternating training takes of the settings.
_LOOP = (
    "beta",
    "temperature",
    "cycles",
    "cycle_epochs",
    "sequence_batch_size",
    "width",
    "tokenizer_learning_rate",
    "recommender_learning_rate",
    "sia_weight",
    "psa_weight",
)


@dataclass(eq=False)
class ETEGRec(RQVAE):
    """RQ-VAE, aligned with a recommender.

    Args: those of `RQVAE`, for the training before the cycles (`temperature` is also PSA's), and
        cycles, cycle_epochs (`int`): how many cycles, of how many epochs; the last one of each is the tokenizer's.
        max_length (`int`): items of a history, the latest. sequence_batch_size (`int`). width (`int`): of the GRU.
        tokenizer_learning_rate, recommender_learning_rate (`float`): of AdamW.
        sia_weight, psa_weight (`float`): of the alignment losses.

    Attributes:
        history (list of `dict`): the epochs of RQ-VAE, then per cycle `recommendation`, `sia`, `psa`,
            `reconstruction`, `quantisation`, and `changed`: the share of items whose codes differ from RQ-VAE's.

    `fit` raises `ValueError` where the training sequences hold no two items in a row.
    """

    name = "etegrec"
    traits = Traits(needs=WITH_TRAIN)

    cycles: int = 4
    cycle_epochs: int = 2
    max_length: int = 20
    sequence_batch_size: int = 256
    width: int = 64
    tokenizer_learning_rate: float = 1e-4
    recommender_learning_rate: float = 1e-3
    sia_weight: float = 1e-3
    psa_weight: float = 1e-3

    def __post_init__(self):
        super().__post_init__()
        self.traits = ETEGRec.traits

    def learn(self, features: np.ndarray, items: pa.Table, train: pa.Table, seed: int) -> None:
        super().learn(features, items, train, seed)
        windows = training_windows(train, items["item_id"].to_pylist(), self.max_length)
        rows = self.preprocessing(features)
        loop = {name: self.config[name] for name in _LOOP}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            device = self._training_device()
            self.history += fine_tune(self._module, rows, windows, **loop, device=device, seed=seed)
        self.adopt(self._module)
