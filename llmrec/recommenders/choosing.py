"""Settings that are chosen on validation: every combination of the choices is tried, the best by ndcg@10 is kept."""

import itertools
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import numpy as np
import torch

from llmrec.arguments import construct
from llmrec.catalogue.filters import Filter
from llmrec.data import PreparedData, excludes_seen
from llmrec.features.network_training import CHECKPOINT, CURVE
from llmrec.files import read_json, write_json
from llmrec.recommenders.protocol import Recommendation, Recommender, TrainableRecommender, requests_of, with_times

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
    if "exclude_seen" in open_ones:
        raise ValueError(f"{what}: exclude_seen is how choices are compared, so it has none itself: give one value")
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
    """The recommender of the config that is best on validation, without items of the history as `exclude_seen` of the
    configs says (`auto`, where they have none).

    With several configs `folder` gets choices.json, one entry for each that was tried, and the learning curve of the
    best; a run that was killed goes on where it was, within a choice too. What that needs lies in `CHECKPOINT`.
    """
    if len(configs) == 1:
        return kind.fit(data, configs[0], device, folder)
    if folder is None:
        with tempfile.TemporaryDirectory() as scratch:
            return fit_best(kind, data, configs, device, scratch)
    rule = getattr(configs[0], "exclude_seen", "auto")
    path, kept = Path(folder) / CHOICES, Path(folder) / CHECKPOINT
    tried, recommender = read_json(path)["tried"] if path.exists() else [], None
    for number, config in enumerate(configs[len(tried) :], len(tried) + 1):
        (own := kept / f"choice_{number}").mkdir(parents=True, exist_ok=True)
        candidate = kind.fit(data, config, device, own)
        tried.append({"ndcg@10": validation_ndcg(candidate, data, rule), "settings": asdict(config)})
        logger.info("%s, choice %d of %d: %s", kind.kind, number, len(configs), tried[-1])
        if tried[-1]["ndcg@10"] > max((one["ndcg@10"] for one in tried[:-1]), default=-1.0):
            recommender = candidate
            shutil.rmtree(kept / "best", ignore_errors=True)
            recommender.save_pretrained(kept / "best")
            if (own / CURVE).exists():
                shutil.copy2(own / CURVE, Path(folder) / CURVE)
        write_json(path, {"tried": tried})
        shutil.rmtree(own)
    if recommender is not None:
        return recommender
    chosen = configs[int(np.argmax([one["ndcg@10"] for one in tried]))]
    there = (kept / "best").exists()  # unless it was killed while the stage was finished
    return kind.from_pretrained(kept / "best", device) if there else kind.fit(data, chosen, device)


def validation_ndcg(recommender: Recommender, data: PreparedData, exclude_seen: str = "auto") -> float:
    """ndcg@10 of the lists for `data.valid`, without items of the history as `excludes_seen` says."""
    asked = {"filters": Filter(exclude_seen=True)} if excludes_seen(exclude_seen, data) else {}
    histories, wishes = requests_of(recommender, with_times(recommender, data.valid, data))
    lists = recommender.recommend(histories, k=10, **asked, **wishes)
    return float(list_gains(lists, data.valid["target"].to_pylist()).mean())


def list_gains(lists: Sequence[Sequence[Recommendation]], targets: Sequence[str]) -> np.ndarray:
    """float64 [n]: 1 / log2(place + 2) of the target in each list, 0 where it has none; of ten: ndcg@10."""
    found = ((item.item_id == target for item in one) for one, target in zip(lists, targets, strict=True))
    return np.array([next((1 / np.log2(place + 2) for place, hit in enumerate(one) if hit), 0.0) for one in found])
