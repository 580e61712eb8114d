"""Item tokenizers: features of items to codes, codes to unique Semantic IDs, and a report on how good they are."""

from collections.abc import Mapping
from pathlib import Path

from llmrec.arguments import construct, one_of
from llmrec.catalogue.lifecycle import diff, remove_items
from llmrec.catalogue.ready_made import ready_made_semids
from llmrec.files import read_json, well_formed
from llmrec.item_tokenizers.build import add_items, build_semids, check_collision, fit_semids
from llmrec.item_tokenizers.contextual.actionpiece import ActionPiece
from llmrec.item_tokenizers.contextual.pctx import Pctx
from llmrec.item_tokenizers.contextual.sequence_tokenizer import SequenceTokenizer
from llmrec.item_tokenizers.merged import Merged
from llmrec.item_tokenizers.protocol import ItemTokenizer
from llmrec.item_tokenizers.registry import (
    LETTER,
    OPQ,
    PQ,
    RQVAE,
    RVQ,
    STAND_ALONE,
    BalancedTree,
    CategoryTree,
    CooccurrenceTree,
    CoST,
    ETEGRec,
    ItemNumbers,
    Keywords,
    LMIndexer,
    MBGen,
    RandomIDs,
    RQKMeans,
    SequentialIDs,
    Tags,
)

TOKENIZERS: dict[str, type[ItemTokenizer]] = {**STAND_ALONE, "merged": Merged}
SEQUENCE_TOKENIZERS: dict[str, type[SequenceTokenizer]] = {"actionpiece": ActionPiece, "pctx": Pctx}

__all__ = [
    "ActionPiece",
    "BalancedTree",
    "CategoryTree",
    "CoST",
    "CooccurrenceTree",
    "ETEGRec",
    "ItemNumbers",
    "ItemTokenizer",
    "Keywords",
    "LETTER",
    "LMIndexer",
    "MBGen",
    "Merged",
    "OPQ",
    "PQ",
    "Pctx",
    "RQKMeans",
    "RQVAE",
    "RVQ",
    "RandomIDs",
    "SEQUENCE_TOKENIZERS",
    "SequenceTokenizer",
    "SequentialIDs",
    "TOKENIZERS",
    "Tags",
    "add_items",
    "build_semids",
    "diff",
    "fit_semids",
    "load_item_tokenizer",
    "make_item_tokenizer",
    "ready_made_semids",
    "remove_items",
]


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
    """Reads any item tokenizer that `save_pretrained` wrote; `ValueError` naming the file that is damaged."""
    path, known = Path(folder) / "config.json", TOKENIZERS | SEQUENCE_TOKENIZERS
    with well_formed(path):
        return known[one_of(read_json(path).get("name"), known, f"{path}: item tokenizer")].from_pretrained(folder)
