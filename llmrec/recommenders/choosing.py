"""Settings that are chosen on validation: every combination of the choices is tried, the best by ndcg@10 is kept."""

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import numpy as np
import torch

from llmrec.arguments import construct
from llmrec.catalogue.filters import Filter
from llmrec.data import PreparedData, excludes_seen
from llmrec.files import read_json, write_json
from llmrec.recommenders.protocol import Recommendation, Recommender, TrainableRecommender, requests_of

logger = logging.getLogger(__name__)
CHOICES = "choices.json"


def configs_of(kind: type[TrainableRecommender], settings: Mapping) -> list:
    """The configs that settings ask for: one for every combination where a setting that is no list has a list of
    choices. Raises `ValueError` for a setting that the kind does not have, or refuses."""
    hints = get_type_hints(kind.config_class)
    open_ones = {
        name: choices
        for name, choices in settings.items()
        if isinstance(choices, list) and list not in [get_origin(one) or one for one in _alternatives(hints.get(name))]
    }
    what = f"settings of kind {kind.kind!r}"
    if empty := [name for name, choices in open_ones.items() if not choices]:
        raise ValueError(f"{what}: {empty[0]} has no choice")
    combinations = (dict(zip(open_ones, chosen)) for chosen in itertools.product(*open_ones.values()))
    return [construct(kind.config_class, {**settings, **chosen}, what) for chosen in combinations]


def _alternatives(hint) -> tuple:
    return get_args(hint) if get_args(hint) and get_origin(hint) is not list else (hint,)


def fit_best(
    kind: type[TrainableRecommender],
    data: PreparedData,
    configs: Sequence,
    device: str | torch.device | None = None,
    folder: str | Path | None = None,
) -> TrainableRecommender:
    """The recommender of the config that is best on validation. With several configs `folder` gets choices.json, one
    entry for each that was tried; a run that was killed goes on after the last of them."""
    if len(configs) == 1:
        return kind.fit(data, configs[0], device, folder)
    path = Path(folder) / CHOICES if folder else None
    tried = read_json(path)["tried"] if path and path.exists() else []
    recommender, best = None, max((one["ndcg@10"] for one in tried), default=-1.0)
    for number, config in enumerate(configs[len(tried) :], len(tried) + 1):
        candidate = kind.fit(data, config, device)
        tried.append({"ndcg@10": validation_ndcg(candidate, data), "settings": asdict(config)})
        logger.info("%s, choice %d of %d: %s", kind.kind, number, len(configs), tried[-1])
        if tried[-1]["ndcg@10"] > best:
            recommender, best = candidate, tried[-1]["ndcg@10"]
        if path:
            write_json(path, {"tried": tried})
    chosen = configs[int(np.argmax([one["ndcg@10"] for one in tried]))]
    return recommender or kind.fit(data, chosen, device)


def validation_ndcg(recommender: Recommender, data: PreparedData, exclude_seen: str = "auto") -> float:
    """ndcg@10 of the lists for `data.valid`, without items of the history as `excludes_seen` says."""
    asked = {"filters": Filter(exclude_seen=True)} if excludes_seen(exclude_seen, data) else {}
    histories, wishes = requests_of(recommender, data.valid)
    lists = recommender.recommend(histories, k=10, **asked, **wishes)
    return float(list_gains(lists, data.valid["target"].to_pylist()).mean())


def list_gains(lists: Sequence[Sequence[Recommendation]], targets: Sequence[str]) -> np.ndarray:
    """float64 [n]: 1 / log2(place + 2) of the target in each list, 0 where it has none; of ten: ndcg@10."""
    found = ((item.item_id == target for item in one) for one, target in zip(lists, targets, strict=True))
    return np.array([next((1 / np.log2(place + 2) for place, hit in enumerate(one) if hit), 0.0) for one in found])
