"""Item tokenizers: features of items to codes, codes to unique Semantic IDs, and a report on how good they are."""

from collections.abc import Mapping
from pathlib import Path

from llmrec.arguments import construct, one_of, part_named
from llmrec.catalogue.lifecycle import diff, remove_items
from llmrec.catalogue.ready_made import ready_made_semids
from llmrec.files import read_json, well_formed
from llmrec.item_tokenizers.build import add_items, build_semids, check_collision, fit_semids
from llmrec.item_tokenizers.contextual.actionpiece import ActionPiece
from llmrec.item_tokenizers.contextual.pctx import Pctx
from llmrec.item_tokenizers.contextual.sequence_tokenizer import SequenceTokenizer
from llmrec.item_tokenizers.merged import Merged
from llmrec.item_tokenizers.protocol import ItemTokenizer, Traits
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
    IDGenRec,
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
    "IDGenRec",
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
    "Traits",
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
    """An item tokenizer by its name, or one of your own by its dotted path (docs/own_tokenizer.md), not fitted;
    `ValueError` for an unknown name, arguments that it does not take, or a collision policy that does not fit it."""
    tokenizer = construct(_kind(name, "tokenizer"), arguments or {}, f"tokenizer_args of {name!r}")
    tokenizer.name = name
    check_collision(collision, tokenizer)
    return tokenizer


def load_item_tokenizer(folder: str | Path, own: bool = True) -> ItemTokenizer | SequenceTokenizer:
    """Reads any item tokenizer that `save_pretrained` wrote; one of your own, if `own`, by its dotted path.
    Raises `ValueError` naming the file that is damaged."""
    path = Path(folder) / "config.json"
    with well_formed(path):
        name = read_json(path).get("name")
        if not own:
            one_of(name, TOKENIZERS | SEQUENCE_TOKENIZERS, f"{path}: item tokenizer")
        tokenizer = _kind(name, f"{path}: item tokenizer").from_pretrained(folder)
    tokenizer.name = name
    return tokenizer


def _kind(name: str, what: str) -> type[ItemTokenizer] | type[SequenceTokenizer]:
    known = TOKENIZERS | SEQUENCE_TOKENIZERS
    kind = part_named(name, known, what)
    if name not in known and not (isinstance(kind, type) and issubclass(kind, ItemTokenizer)):
        raise ValueError(f"{what} {name!r} is no subclass of llmrec.item_tokenizers.ItemTokenizer")
    return kind
