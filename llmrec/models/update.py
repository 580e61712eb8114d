"""The living catalogue: a trained model folder for the next version of its Semantic IDs, without training.

The model speaks tokens, and no token changes: newcomers are new words made of known tokens, old items keep theirs. So
the weights and the tokenizer stay as they are; `semids.parquet` and the two hashes of `llmrec_config.json` follow the
catalogue, and a dense head gives newcomers their embeddings. How well a model ranks items it has never seen is another
question: recipes/cold_start.py measures it.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa

from llmrec.arguments import one_of
from llmrec.catalogue.lifecycle import IndexDiff, diff
from llmrec.catalogue.semids import SemIDIndex
from llmrec.data.prepared import catalogue_fingerprint
from llmrec.decoding.dense import MODES
from llmrec.files import atomic_path, write_json
from llmrec.models.card import add_to_card
from llmrec.models.dense import DenseHead, load_dense
from llmrec.models.folder import (
    CONFIG,
    DENSE,
    RecommenderConfig,
    check_checksums,
    load_index,
    write_checksums,
    write_sidecars,
)


def update_model_folder(
    folder: str | Path,
    index: SemIDIndex,
    items: pa.Table,
    output_dir: str | Path,
    hard_links: bool = False,
    cache_dir: str | Path | None = None,
) -> IndexDiff:
    """Writes a copy of a model folder for a later version of its index; the old folder stays as it is.

    Args:
        index: of `add_items` and `remove_items`.
        items: the columns of exactly its items; their order becomes the catalogue's.
        output_dir: must not exist yet.
        hard_links: share the files that do not change with the old folder, where the disk is one; then neither folder
            may be trained in place.
        cache_dir: of text embeddings, which newcomers need where the folder has a dense head.

    Raises:
        ValueError: other items than the index has, another item tokenizer, other tokens, or an item that would move:
            the model would misread it.
    """
    folder = Path(folder)
    config = RecommenderConfig.load(folder)
    old = load_index(folder, config)
    if set(index.items) != set(items["item_id"].to_pylist()):
        raise ValueError("items must hold exactly the items of the index")
    if index.behaviours and index.behaviours != old.behaviours:
        raise ValueError(f"{folder} knows the behaviours {old.behaviours}, the new index {index.behaviours}")
    index = index.aligned(items).with_behaviours(old.behaviours)
    if old.item_tokenizer_fingerprint != index.item_tokenizer_fingerprint:
        raise ValueError(f"{folder} was trained on Semantic IDs of another item tokenizer: train it again")
    if old.level_tokens != index.level_tokens or old.adds_tokens != index.adds_tokens:
        raise ValueError(f"{folder} was trained with other Semantic ID tokens than the new ones have: train it again")
    changes = diff(old, index)
    if changes.moved:
        item, (before, after) = next(iter(changes.moved.items()))
        raise ValueError(f"{folder} knows item {item!r} as {before}, now it is {after}: train it again")
    config = replace(config, semid_fingerprint=index.fingerprint, catalogue_fingerprint=catalogue_fingerprint(items))
    with copied_folder(folder, output_dir, hard_links) as temporary:
        if (dense := load_dense(folder, old.items, cache_dir)) is not None:
            dense.for_items(items).save_pretrained(temporary / DENSE)
        write_sidecars(temporary, config, index, items)
        text = f"Updated without training, to version {index.version} of the Semantic IDs:"
        add_to_card(temporary, f"\n## Catalogue\n\n{text}\n\n```\n{changes}\n```\n")
    return changes


def add_dense(
    folder: str | Path, dense: DenseHead, mode: str, output_dir: str | Path, hard_links: bool = False
) -> None:
    """Writes a copy of a model folder with a dense head that was fitted on its states.

    Args:
        mode: how the copy recommends, one of `llmrec.decoding.dense.MODES`.
        output_dir, hard_links: as of `update_model_folder`.

    Raises:
        ValueError: a head of other items, an `output_dir` that exists, or an unknown mode.
    """
    config = RecommenderConfig.load(folder)
    index = load_index(folder, config)
    if index.items != dense.item_ids:
        raise ValueError(f"the dense head was made for other items than {folder} has")
    one_of(mode, MODES, "mode")
    with copied_folder(Path(folder), output_dir, hard_links) as temporary:
        dense.save_pretrained(temporary / DENSE)
        write_json(temporary / CONFIG, asdict(replace(config, dense=mode)))
        write_checksums(temporary)


@contextmanager
def copied_folder(folder: Path, output_dir: str | Path, hard_links: bool = False) -> Iterator[Path]:
    """A copy of a model folder, which becomes `output_dir` when the block ends; without what is of its run. Files that
    shall differ are written anew and put in place, never through a link. Raises `ValueError`: `output_dir` exists, or
    a file of the folder is damaged."""
    if Path(output_dir).exists():
        raise ValueError(f"{output_dir} exists: an updated model goes into a new folder")
    check_checksums(folder)
    with atomic_path(output_dir) as temporary:
        copy = os.link if hard_links else shutil.copy2
        of_the_run = shutil.ignore_patterns("checkpoint-*", "stage.json", "runs")
        shutil.copytree(folder, temporary, ignore=of_the_run, copy_function=copy)
        yield temporary
