"""The Semantic IDs that some recommenders are trained on: their setting `semids` names them."""

from pathlib import Path

from llmrec.models.folder import SEMIDS
from llmrec.stages import content_of


def semids_file(kind: str, semids: str) -> Path:
    """The file that the setting names; raises `ValueError` where it is empty."""
    if not semids:
        raise ValueError(
            f"settings of kind {kind!r}: semids is empty: name a folder that recipes/tokenize_items.py wrote"
        )
    path = Path(semids)
    return path / SEMIDS if path.is_dir() else path


def made_from_semids(kind: str, semids: str) -> dict:
    """As `TrainableRecommender.made_from`: the content of the Semantic IDs."""
    return {"semids": content_of(str(semids_file(kind, semids)))}
