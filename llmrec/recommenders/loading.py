"""`load_recommender`: any folder that recommends, ours or a baseline's, behind the one Protocol."""

from pathlib import Path

from llmrec.data import PreparedData
from llmrec.files import read_json
from llmrec.recommenders import LLMRecommender
from llmrec.recommenders.protocol import Recommender


def load_recommender(folder: str | Path) -> Recommender:
    """Loads a model folder (`llmrec_config.json`), a Hub model or a baseline's folder (`kind` in its `config.json`).

    Raises:
        ValueError: none of the three.
    """
    if not Path(folder).is_dir() or (Path(folder) / "llmrec_config.json").exists():
        return LLMRecommender.from_pretrained(folder)
    folder = Path(folder)
    kind = read_json(folder / "config.json").get("kind")
    if kind == "popularity":
        from llmrec.recommenders.popularity import Popularity

        return Popularity.from_pretrained(folder)
    if kind == "item_knn":
        from llmrec.recommenders.item_knn import ItemKNN

        return ItemKNN.from_pretrained(folder)
    if kind == "content_knn":
        from llmrec.recommenders.content_knn import ContentKNN

        return ContentKNN.from_pretrained(folder)
    if kind == "sasrec":
        from llmrec.recommenders.sasrec import SASRec

        return SASRec.from_pretrained(folder)
    raise ValueError(f"{folder} is neither a model folder (no llmrec_config.json) nor a baseline (kind {kind!r})")


def check_trained_on(folder: str | Path, data: PreparedData) -> None:
    """Raises `ValueError` if a folder was trained on other data than it is to be evaluated on: a leak in waiting."""
    folder = Path(folder)
    if (folder / "llmrec_config.json").exists():
        trained_on = read_json(folder / "llmrec_config.json").get("trained_on", {}).get("fingerprint")
    elif (folder / "config.json").exists():
        trained_on = read_json(folder / "config.json").get("data_fingerprint")
    else:
        return  # a model of the Hub
    if trained_on and trained_on != data.fingerprint:
        raise ValueError(
            f"{folder} was trained on other data ({trained_on}) than it is to be evaluated on ({data.fingerprint}), "
            "so test rows may be among its training rows: train it again on this data"
        )


def files_of(folder: str | Path) -> str:
    """Names, sizes and times of a folder's files: what tells one training of a recommender from the next."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return "\n".join(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files)
