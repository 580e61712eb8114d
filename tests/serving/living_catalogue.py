"""A model folder with a fitted item tokenizer and its text encoder, for tests of the living catalogue."""

from pathlib import Path
from unittest.mock import patch

import pyarrow as pa
from tiny import tiny_data

from llmrec.catalogue.semids import SemIDIndex
from llmrec.features import ItemFeatures
from llmrec.instructions import load_prompt
from llmrec.item_tokenizers import RQKMeans, fit_semids
from llmrec.models.folder import ITEM_TOKENIZER, RecommenderConfig, write_sidecars
from llmrec.serving.living_catalogue import store as store_module
from llmrec.serving.living_catalogue.log import read_log
from llmrec.serving.living_catalogue.store import CatalogueStore, CatalogueVersion, Changes


def write_living_folder(
    folder: Path, collision: str = "append", codebook_sizes=(4, 4), items: pa.Table | None = None
) -> Path:
    """Everything of a model folder that a catalogue needs; weights and tokenizer are not among it.

    Args:
        items (`pa.Table`, *optional*): other columns for the tiny catalogue.
    """
    data = tiny_data()
    items = data.items if items is None else items
    features = ItemFeatures([{"kind": "text", "encoder": "tfidf", "dim": 8}]).fit(data.items, data.train, 0)
    tokenizer = RQKMeans(list(codebook_sizes), niter=5)
    index = fit_semids(tokenizer, features.encode(items), items, data.train, collision=collision)
    tokenizer.save_pretrained(folder / ITEM_TOKENIZER)
    features.save_pretrained(folder / ITEM_TOKENIZER / "features")
    write_sidecars(folder, RecommenderConfig.of(data, index, prompt=load_prompt("stream").to_dict()), index, items)
    return folder


def same(one: CatalogueVersion, other: CatalogueVersion, number: bool = True) -> bool:
    """Whether two versions are equal; without their numbers, whether they hold the same items in the same order."""
    reserved = not number or one.index.info.get("reserved", {}) == other.index.info.get("reserved", {})
    numbers = not number or one.number == other.number
    aligned = one.items["item_id"].to_pylist() == one.index.item_ids
    equal = one.index.fingerprint == other.index.fingerprint and one.items.equals(other.items)
    return numbers and reserved and aligned and equal


def row(version: CatalogueVersion, item: str) -> dict:
    """The columns of an item."""
    return version.items.take([version.index.row(item)]).to_pylist()[0]


def bare(folder: Path, index: SemIDIndex, items: pa.Table | None = None) -> Path:
    """A model folder without item tokenizer."""
    data = tiny_data()
    write_sidecars(folder, RecommenderConfig.of(data, index, prompt={}), index, data.items if items is None else items)
    return folder


def change(store: CatalogueStore, changes: Changes) -> dict:
    """Makes a version with these changes; gives its record."""
    return store.commit(store.prepare(changes))


def roll_back(store: CatalogueStore, number: int) -> dict:
    """Makes a version with the content of an older one; gives its record."""
    return store.commit(store.prepare_rollback(number))


def records(folder: Path, directory: Path) -> list[dict]:
    """All records of a log."""
    return read_log(directory, RecommenderConfig.load(folder).semid_fingerprint, whole=True).records


def opened_with_snapshot(folder: Path, directory: Path) -> CatalogueStore:
    """A store that finds its log too long to be replayed once more."""
    with patch.object(store_module, "SNAPSHOT_SIZE", 0):
        return CatalogueStore(folder, directory)
