"""Item tokenizers: features of items to codes, codes to unique Semantic IDs, and a report on how good they are."""

from collections.abc import Mapping
from pathlib import Path

from llmrec.arguments import construct, one_of
from llmrec.catalogue.lifecycle import diff, remove_items
from llmrec.catalogue.ready_made import ready_made_semids
from llmrec.files import read_json
from llmrec.item_tokenizers.build import add_items, build_semids, check_collision, fit_semids
from llmrec.item_tokenizers.contextual.actionpiece import ActionPiece
from llmrec.item_tokenizers.contextual.pctx import Pctx
from llmrec.item_tokenizers.contextual.sequence_tokenizer import SequenceTokenizer
from llmrec.item_tokenizers.merged import Merged
from llmrec.item_tokenizers.none import RandomIDs, SequentialIDs
from llmrec.item_tokenizers.product import OPQ, PQ
from llmrec.item_tokenizers.protocol import ItemTokenizer
from llmrec.item_tokenizers.residual.etegrec import ETEGRec
from llmrec.item_tokenizers.residual.rq_kmeans import RQKMeans, RQKMeansPlus
from llmrec.item_tokenizers.residual.rq_vae import LETTER, RQVAE, CoST
from llmrec.item_tokenizers.residual.rvq import RVQ
from llmrec.item_tokenizers.trees.balanced_tree import BalancedTree
from llmrec.item_tokenizers.trees.category_tree import CategoryTree
from llmrec.item_tokenizers.trees.cooccurrence_tree import CooccurrenceTree
from llmrec.item_tokenizers.with_behaviour.mbgen import MBGen
from llmrec.item_tokenizers.words.item_numbers import ItemNumbers
from llmrec.item_tokenizers.words.keywords import Keywords
from llmrec.item_tokenizers.words.tags import Tags

TOKENIZERS: dict[str, type[ItemTokenizer]] = {
    "rq_kmeans": RQKMeans,
    "pq": PQ,
    "opq": OPQ,
    "balanced_tree": BalancedTree,
    "cooccurrence_tree": CooccurrenceTree,
    "category_tree": CategoryTree,
    "random": RandomIDs,
    "sequential": SequentialIDs,
    "rvq": RVQ,
    "rq_vae": RQVAE,
    "mbgen": MBGen,
    "keywords": Keywords,
    "numbers": ItemNumbers,
    "tags": Tags,
    "letter": LETTER,
    "cost": CoST,
    "rq_kmeans_plus": RQKMeansPlus,
    "etegrec": ETEGRec,
}
Merged.kinds = dict(TOKENIZERS)
TOKENIZERS["merged"] = Merged
SEQUENCE_TOKENIZERS: dict[str, type[SequenceTokenizer]] = {"actionpiece": ActionPiece, "pctx": Pctx}

__all__ = [
    "SEQUENCE_TOKENIZERS",
    "TOKENIZERS",
    "ItemTokenizer",
    "SequenceTokenizer",
    "add_items",
    "build_semids",
    "diff",
    "fit_semids",
    "load_item_tokenizer",
    "make_item_tokenizer",
    "ready_made_semids",
    "remove_items",
]
__all__ += [kind.__name__ for kind in (TOKENIZERS | SEQUENCE_TOKENIZERS).values()]


def make_item_tokenizer(
    name: str, arguments: Mapping | None = None, collision: str = "auto"
) -> ItemTokenizer | SequenceTokenizer:
    """An item tokenizer by its name, not fitted; `ValueError` for an unknown name, arguments that it does not take, or
    a collision policy that does not fit it."""
    known = TOKENIZERS | SEQUENCE_TOKENIZERS
    tokenizer = construct(known[one_of(name, known, "tokenizer")], arguments or {}, f"tokenizer_args of {name!r}")
    check_collision(collision, tokenizer)
    return tokenizer


def load_item_tokenizer(folder: str | Path) -> ItemTokenizer | SequenceTokenizer:
    """Reads any item tokenizer that `save_pretrained` wrote."""
    path, known = Path(folder) / "config.json", TOKENIZERS | SEQUENCE_TOKENIZERS
    return known[one_of(read_json(path).get("name"), known, f"{path}: item tokenizer")].from_pretrained(folder)
