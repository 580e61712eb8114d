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

from collections.abc import Sequence
from typing import Self

import numpy as np

from llmrec.item_tokenizers.protocol import Traits, require
from llmrec.item_tokenizers.residual.rq_vae import DEFAULTS, RQVAE, WITH_TRAIN

CYCLES = {
    "cycles": 4,
    "cycle_epochs": 2,
    "max_length": 20,
    "sequence_batch_size": 256,
    "width": 64,
    "tokenizer_learning_rate": 1e-4,
    "recommender_learning_rate": 1e-3,
    "sia_weight": 1e-3,
    "psa_weight": 1e-3,
}


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
    defaults = DEFAULTS | CYCLES

    def __init__(
        self,
        codebook_sizes: Sequence[int] = (256, 256, 256),
        preset: str = "default",
        device: str = "auto",
        **settings,
    ):
        super().__init__(codebook_sizes, preset, device, **settings)
        self.traits = ETEGRec.traits

    def fit(self, features: np.ndarray, seed: int = 0, items=None, train=None) -> Self:
        import torch

        from llmrec.item_tokenizers.residual.etegrec_training import fine_tune, training_windows

        require(self, items=items, train=train)
        super().fit(features, seed, items, train)
        windows = training_windows(train, items["item_id"].to_pylist(), self._settings["max_length"])
        rows = self.preprocess(np.ascontiguousarray(features, np.float32))
        shared = ("beta", "temperature")
        settings = {key: self._settings[key] for key in (*CYCLES, *shared) if key != "max_length"}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.history += fine_tune(self._module, rows, windows, **settings, device=self._device(), seed=seed)
        self._adopt(self._module)
        return self
