"""`load_recommender`: any folder that recommends, ours or a baseline's, behind the one Protocol."""

from pathlib import Path

import torch

from llmrec.arguments import did_you_mean
from llmrec.data import PreparedData
from llmrec.decoding import self_check
from llmrec.files import fingerprint, read_json
from llmrec.hub import local_folder
from llmrec.models.folder import CARD, CONFIG
from llmrec.recommenders.blend import BlendConfig, BlendedRecommender
from llmrec.recommenders.bsarec import BSARec
from llmrec.recommenders.content_knn import ContentKNN
from llmrec.recommenders.hstu import HSTU
from llmrec.recommenders.item_knn import ItemKNN
from llmrec.recommenders.llm import LLMRecommender
from llmrec.recommenders.popularity import Popularity
from llmrec.recommenders.protocol import Recommender, TrainableRecommender
from llmrec.recommenders.rpg import RPG
from llmrec.recommenders.sasrec import SASRec
from llmrec.recommenders.tiger import TIGER
from llmrec.stages import unfinished


class Blend(BlendedRecommender):
    """A blend whose members are any folders that `load_recommender` reads."""

    @staticmethod
    def load(
        folder: str | Path, device: str | torch.device | None = None, data: PreparedData | None = None
    ) -> Recommender:
        if data is not None:
            check_trained_on(folder, data)
        return load_recommender(folder, device)

    @staticmethod
    def made_from(config: BlendConfig) -> dict:
        return {"members": {name: fingerprint(files_of(path)) for name, path in config.recommenders.items()}}


# What recipes/train_recommender.py trains: `kind` in a `config.json`.
KINDS: dict[str, type[TrainableRecommender]] = {
    "popularity": Popularity,
    "item_knn": ItemKNN,
    "content_knn": ContentKNN,
    "sasrec": SASRec,
    "bsarec": BSARec,
    "hstu": HSTU,
    "tiger": TIGER,
    "rpg": RPG,
    "blend": Blend,
}


def load_recommender(
    folder: str | Path, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> Recommender:
    """Loads a model folder (`llmrec_config.json`), one of the Hub (`owner/name@revision`) or a baseline's folder
    (`kind` in its `config.json`); `ValueError` for none of the three. Baselines keep their dtypes."""
    folder = local_folder(folder)
    if not folder.is_dir() or (folder / CONFIG).exists():
        return LLMRecommender.from_pretrained(folder, device, dtype)
    if not (folder / "config.json").exists():
        inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
        inside = f"; it holds {', '.join(inside)}" if inside else ""
        raise ValueError(unfinished(folder) or f"{folder} holds no recommender: it has no config.json{inside}")
    kind = read_json(folder / "config.json").get("kind")
    if kind in KINDS:
        return KINDS[kind].from_pretrained(folder, device)
    neither = f"{folder} is neither a model folder (no {CONFIG}) nor a baseline (kind {kind!r})"
    raise ValueError(neither + did_you_mean(kind, KINDS))


def check_trained_on(folder: str | Path, data: PreparedData) -> None:
    """Raises `ValueError` if a folder was trained on other data than it is to be evaluated on: a leak in waiting."""
    folder = local_folder(folder)
    if (folder / CONFIG).exists():
        trained_on = read_json(folder / CONFIG).get("trained_on", {}).get("fingerprint")
    elif (folder / "config.json").exists():
        trained_on = read_json(folder / "config.json").get("data_fingerprint")
    else:
        return
    if trained_on and trained_on != data.fingerprint:
        raise ValueError(
            f"{folder} was trained on other data ({trained_on}) than it is to be evaluated on ({data.fingerprint}), "
            "so test rows may be among its training rows: train it again on this data"
        )


def files_of(folder: str | Path) -> str:
    """Names, sizes and times of the files of a folder, here or on the Hub: what tells one training of a recommender
    from the next. What was found of its decoding (`self_check.FILE`) and its card are no part of that."""
    beside = (self_check.FILE, CARD)
    files = sorted(path for path in local_folder(folder).rglob("*") if path.is_file() and path.name not in beside)
    return "\n".join(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files)
