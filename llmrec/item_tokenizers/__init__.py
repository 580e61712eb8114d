"""Item tokenizers: features of items to codes, codes to unique Semantic IDs, and a report on how good they are."""

from pathlib import Path

from llmrec.files import read_json
from llmrec.item_tokenizers.build import add_items, build_semids, ready_made_semids
from llmrec.item_tokenizers.collisions import COLLISION_POLICIES
from llmrec.item_tokenizers.features import ItemFeatures, rows_in_training
from llmrec.item_tokenizers.protocol import ItemTokenizer
from llmrec.item_tokenizers.rq_kmeans import RQKMeans
from llmrec.item_tokenizers.rq_vae import RQVAE

TOKENIZERS: dict[str, type[ItemTokenizer]] = {"rq_kmeans": RQKMeans, "rq_vae": RQVAE}

__all__ = [
    "COLLISION_POLICIES",
    "TOKENIZERS",
    "ItemFeatures",
    "ItemTokenizer",
    "RQKMeans",
    "RQVAE",
    "add_items",
    "build_semids",
    "load_item_tokenizer",
    "ready_made_semids",
    "rows_in_training",
]


def load_item_tokenizer(folder: str | Path) -> ItemTokenizer:
    """Reads any item tokenizer that `save_pretrained` wrote."""
    name = read_json(Path(folder) / "config.json").get("name")
    if name not in TOKENIZERS:
        raise ValueError(
            f"{Path(folder) / 'config.json'} names item tokenizer {name!r}; known: {', '.join(TOKENIZERS)}"
        )
    return TOKENIZERS[name].from_pretrained(folder)
