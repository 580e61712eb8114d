"""DPO and S-DPO over a catalogue: the item that a user chose beside N wrong ones, the group read as one row.

S-DPO is Chen et al., "On Softmax Direct Preference Optimization for Recommendation" (NeurIPS 2024, arXiv 2406.09215);
with one wrong item it is DPO. Different from the paper: items are Semantic IDs instead of titles, log-probabilities
are taken over what the trie allows (the paper's form, over the vocabulary, is an option), and wrong items can be
popular ones or those that the model itself ranks first, beside the paper's random ones.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from tqdm.auto import tqdm
from trl import DPOConfig, DPOTrainer

from llmrec.arguments import one_of
from llmrec.catalogue.semids import SemIDIndex
from llmrec.data.rows import flatten_lists, ids_to_rows
from llmrec.decoding import tree_beam_search
from llmrec.decoding.trie import SemIDTrie
from llmrec.recommenders import LLMRecommender
from llmrec.recommenders.protocol import requests_of
from llmrec.rl.log_probs import Groups, check_model, log_probs
from llmrec.rl.rollout import completions, padded, semids_of
from llmrec.training import RecommenderTrainer, ValidationSample, without_dropout
from llmrec.training.lora import is_quantised

# Fields of DPOConfig that would change nothing here, or something that is not there.
_FIXED = {
    "loss_type": ["sigmoid"],
    "loss_weights": None,
    "ld_alpha": None,
    "f_divergence_type": "reverse_kl",
    "label_smoothing": 0.0,
    "label_smoothing_factor": 0.0,
    "use_weighting": False,
    "router_aux_loss_coef": None,
    "precompute_ref_log_probs": False,
    "padding_free": False,
    "max_length": 1024,
    "use_liger_kernel": False,
}


def softmax_dpo_loss(log_ratios: torch.Tensor, beta: float) -> torch.Tensor:
    """The loss of S-DPO for each group, float32 [N], from r = log(policy / reference), float32 [N, 1 + J], the chosen
    item w first.

    -log sigmoid(-log sum_j exp(beta (r_j - r_w))) is the cross-entropy of choosing w among the group by beta r, and
    with one rejected item the sigmoid loss of DPO.
    """
    return -(beta * log_ratios).log_softmax(-1)[:, 0]


def check_dpo(args: DPOConfig, num_negatives: int, negatives: str, log_probs: str, index: SemIDIndex) -> None:
    """Refuses what cannot work, before anything is loaded, with a `ValueError` that names the field."""
    for name, only in _FIXED.items():
        if getattr(args, name) != only:
            raise ValueError(f"{name}: {getattr(args, name)} has no meaning for Semantic IDs: leave it out")
    one_of(negatives, ("random", "popularity", "beam"), "negatives:")
    one_of(log_probs, ("catalogue", "vocabulary"), "log_probs:")
    semids = int(index.groups().max()) + 1
    if not 1 <= num_negatives < semids:
        raise ValueError(
            f"num_negatives: {num_negatives} wrong items beside the target, of {semids} distinct Semantic IDs"
        )


class WrongItems:
    """The Semantic IDs that can be rejected: every item's first one in the view that is searched.

    An item that shares a Semantic ID with the target is not wrong. With training sequences (`train`) items are drawn
    by how often they occur, otherwise all alike.

    Attributes:
        ids (list of lists of `int`): the token ids of every distinct Semantic ID.
        weights (int64 [len(ids)]): how often each is drawn, relative to the others.
    """

    def __init__(self, recommender: LLMRecommender, train: pa.Table | None = None):
        index, within = recommender.index, next(iter(recommender.views.values()))
        self.recommender, self.within = recommender, within
        self.number = index.groups()  # of the Semantic ID of each row
        rows = range(len(index)) if within is None else np.flatnonzero(within).tolist()
        first = {index.item_ids[row]: row for row in reversed(rows)}
        self.first = {item: int(self.number[first[item]]) for item in index.items}
        self.of_item: dict[str, set[int]] = {}
        for item, number in zip(index.item_ids, self.number.tolist()):
            self.of_item.setdefault(item, set()).add(number)
        _, examples = np.unique(self.number, return_index=True)
        self.ids = completions(semids_of(recommender.trie, examples.tolist())[1], recommender.trie)
        counts = np.ones(len(index.items), np.int64)
        if train is not None:
            seen = ids_to_rows(flatten_lists(train["item_ids"])[0], index.items)
            counts = np.bincount(seen, minlength=len(index.items))
        self.weights = np.zeros(len(self.ids), np.int64)
        np.add.at(self.weights, list(self.first.values()), counts)
        self.edges, self.num_drawable = self.weights.cumsum(), int((self.weights > 0).sum())

    def chosen(self, target: str) -> list[int]:
        """The token ids of the target; raises `ValueError` for an item that is not in the catalogue."""
        if target not in self.first:
            raise ValueError(f"target {target!r} is not in the catalogue of the model folder")
        return self.ids[self.first[target]]

    def drawn(self, target: str, count: int, seed: Sequence[int]) -> list[list[int]]:
        """`count` distinct ones, each drawn by weight among those that are left; they follow from `seed` alone. Raises
        `ValueError`: fewer can be drawn."""
        right, rng, wrong = self.of_item[target], np.random.default_rng(seed), {}
        others = self.num_drawable - sum(self.weights[number] > 0 for number in right)
        if others < count:
            raise ValueError(
                f"num_negatives: {count} wrong items beside {target!r}, but only {others} other Semantic IDs can be "
                "drawn: lower it, or set negatives: random"
            )
        while len(wrong) < count:
            draws = rng.integers(self.edges[-1], size=2 * count)
            numbers = np.searchsorted(self.edges, draws, side="right").tolist()
            wrong |= dict.fromkeys(number for number in numbers if number not in right)
        return [self.ids[number] for number in list(wrong)[:count]]

    @cached_property
    def _rows(self) -> list[np.ndarray]:
        order = self.number.argsort(kind="stable")
        return np.split(order, np.flatnonzero(np.diff(self.number[order])) + 1)

    @torch.no_grad()
    def best(self, prompts: Sequence[Sequence[int]], targets: Sequence[str], count: int) -> list[list[list[int]]]:
        """For every prompt (token ids) the `count` wrong ones that the recommender's search ranks first.

        Processes share the prompts. The model is moved to the device of its process.
        """
        model, trie, state = self.recommender.model.eval(), self.recommender.trie, PartialState()
        if not is_quantised(model):
            model.to(state.device)
        trie.to(state.device)
        mine = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))[state.process_index :: state.num_processes]
        best: list[tuple[int, list[list[int]]]] = []
        config, size = self.recommender.config, self.recommender.batch_size
        with tqdm(total=len(mine), desc="Hard negatives", disable=not state.is_main_process) as bar:
            for start in range(0, len(mine), size):
                batch = mine[start : start + size]
                ids, mask = padded([prompts[n] for n in batch], "left")
                right = [np.concatenate([self._rows[k] for k in self.of_item[targets[n]]]) for n in batch]
                beams = tree_beam_search(
                    model,
                    ids.to(state.device),
                    mask.to(state.device),
                    trie,
                    max(count, config.num_beams),
                    normalize=config.normalize,
                    masks=[self.within] * len(batch),
                    denied=right,
                )
                lists = completions(beams.tokens[:, :count].flatten(0, 1), trie)
                best += [(n, lists[place * count : (place + 1) * count]) for place, n in enumerate(batch)]
                bar.update(len(batch))
        return [lists for _, lists in sorted(gather_object(best))]


def preference_rows(
    rows: Dataset,
    recommender: LLMRecommender,
    train: pa.Table,
    num_negatives: int = 3,
    negatives: str = "random",
    seed: int = 0,
) -> Dataset:
    """Rows for `SemIDDPOTrainer`: a prompt, its target, and wrong items.

    Args:
        rows: `prompt` (str), `target` (item id) and `row` (int), as from `llmrec.rl.prompt_rows`.
        negatives: `"random"` (every item alike), `"popularity"` (by its count in train) or `"beam"` (hard negatives:
            the best wrong items of the model as it is before training). A draw follows from `(seed, row)`.

    Returns:
        `prompt_ids`, `chosen_ids` (lists of int) and `rejected_ids` (`num_negatives` lists of int): token ids.

    Raises:
        ValueError: a target that is not in the catalogue, too few other items, or a model that thinks before it
            answers.
    """
    if recommender.block is not None:
        raise ValueError("this model writes a thought before an item, which DPO over items would leave out: use GRPO")
    wrong = WrongItems(recommender, train if negatives == "popularity" else None)
    prompts = recommender.token_ids(rows["prompt"][:])
    targets = rows["target"][:]
    chosen = [wrong.chosen(target) for target in targets]
    if negatives == "beam":
        rejected = wrong.best(prompts, targets, num_negatives)
    else:
        rejected = [wrong.drawn(target, num_negatives, [seed, row]) for target, row in zip(targets, rows["row"][:])]
    return Dataset.from_dict({"prompt_ids": prompts, "chosen_ids": chosen, "rejected_ids": rejected})


def sample_rows(sample: ValidationSample) -> Dataset:
    """The rows of a validation sample as `prompt`, `target` and `row`; targets outside the catalogue are left out."""
    recommender, known = sample.recommender, set(sample.recommender.item_ids)
    rows = sample.rows.filter(pa.array([target in known for target in sample.rows["target"].to_pylist()], pa.bool_()))
    histories, wishes = requests_of(recommender, rows)
    prompts = recommender.prompts(histories, **wishes)
    return Dataset.from_dict({"prompt": prompts, "target": rows["target"].to_pylist(), "row": range(rows.num_rows)})


def collate_groups(examples: list[dict]) -> dict[str, torch.Tensor]:
    """Rows of `preference_rows` as the fields of `Groups`, the chosen item first in each group."""
    prompts, prompt_mask = padded([row["prompt_ids"] for row in examples], "left")
    members = [ids for row in examples for ids in (row["chosen_ids"], *row["rejected_ids"])]
    ids, mask = (part.unflatten(0, (len(examples), -1)) for part in padded(members, "right"))
    return Groups(prompts, prompt_mask, ids, mask)._asdict()


class SemIDDPOTrainer(RecommenderTrainer, DPOTrainer):
    """TRL's `DPOTrainer` for rows of `preference_rows`.

    TRL stays in charge of the reference (a frozen copy of the model's folder, or the model without its adapter),
    logging, `sync_ref_model` and checkpoints. Overridden are `compute_loss` and what `RecommenderTrainer` does, which
    are public, and `_prepare_dataset`, which is not; read and written are `beta`, `ref_model` and `_metrics`. Checked
    with trl 1.16; tests/rl/test_dpo.py fails where one of them moves.

    Log-probabilities are taken over what `trie` allows, over the vocabulary without one. A model that cannot read a
    group as one row raises `ValueError`.
    """

    def __init__(self, model, args: DPOConfig, *, trie: SemIDTrie | None, **kwargs):
        check_model(model)
        super().__init__(model, args, data_collator=collate_groups, **kwargs)
        if args.disable_dropout:
            without_dropout(self.model)
        self.trie = None if trie is None else trie.to(self.accelerator.device)

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset  # rows come tokenised

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The mean loss of the groups (`softmax_dpo_loss`); logs rewards, margins and log-probabilities."""
        groups = Groups(**inputs)
        steps, entropies = log_probs(model, groups, self.trie)
        logps, reference = steps.sum(-1), self._reference(groups)
        loss = softmax_dpo_loss(logps - reference, self.beta).mean()
        logps, mask = logps.detach(), groups.completion_mask
        rewards = self.beta * (logps - reference)
        chosen, rejected = rewards[:, :1], rewards[:, 1:]
        figures = {
            "rewards/chosen": chosen.mean(),
            "rewards/rejected": rejected.mean(),
            "rewards/accuracies": (chosen > rejected).float().mean(),
            "rewards/margins": (chosen - rejected).mean(),
            "logps/chosen": logps[:, 0].mean(),
            "logps/rejected": logps[:, 1:].mean(),
            "entropy": entropies.detach().sum() / mask.sum(),
        }
        means = self.accelerator.reduce(torch.stack(list(figures.values())), "mean").tolist()
        for name, value in zip(figures, means):
            self._metrics["train" if self.model.training else "eval"][name].append(value)
        return (loss, None) if return_outputs else loss

    @torch.no_grad()
    def _reference(self, groups: Groups) -> torch.Tensor:
        if self.ref_model is not None:
            return log_probs(self.ref_model, groups, self.trie)[0].sum(-1)
        with self.accelerator.unwrap_model(self.model).disable_adapter():
            return log_probs(self.model, groups, self.trie)[0].sum(-1)
