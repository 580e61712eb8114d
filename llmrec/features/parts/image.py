"""Features of kind `image`: pictures of items, through CLIP or any sentence-transformers model that reads images.

Files only: nothing is downloaded. Embeddings are cached by the content of picture and model, as those of texts.
"""

import logging
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
from PIL import Image

from llmrec.features.parts.part import FeaturePart, need_column, rows_in_training
from llmrec.features.text_encoders import CachedModel

logger = logging.getLogger(__name__)


class ImageFeatures(FeaturePart):
    """Embeddings of pictures; an item without one gets zeros.

    The paths in the catalogue's `column` are relative to `folder`; one without a file counts as no picture (logged).
    `encoder` is the name or folder of a sentence-transformers model with images; a CLIP folder of transformers is one.
    """

    def __init__(
        self,
        folder: str,
        column: str = "image",
        encoder: str = "sentence-transformers/clip-ViT-B-32",
        batch_size: int = 32,
        cache_dir: str | Path | None = None,
    ):
        self.config = {"folder": str(folder), "column": column, "encoder": str(encoder), "batch_size": batch_size}
        self.inputs = (Path(folder),)
        self.dim = 0
        advice = "give the folder of a model, or compute embeddings elsewhere and use kind: precomputed"
        self.model = CachedModel(str(encoder), "image encoder", advice, cache_dir, batch_size, read=_open)
        self.models = (self.model,)

    def fit(self, items: pa.Table, train: pa.Table | None, seed: int) -> Self:
        files = list(self._files(items.take(rows_in_training(items, train))).values())
        if not files:
            column, folder = self.config["column"], self.config["folder"]
            raise ValueError(f"no training item has a picture: column {column!r} names no file in {folder}")
        self.dim = self._embed(files[:1]).shape[1]
        return self

    def encode(self, items: pa.Table) -> np.ndarray:
        files = self._files(items)
        matrix = np.zeros((items.num_rows, self.dim), np.float32)
        if files:
            matrix[list(files)] = self._embed(list(files.values()))
        return matrix

    def _files(self, items: pa.Table) -> dict[int, Path]:
        """The pictures of those items that have one, by row; raises `ValueError` on a URL."""
        column, folder = self.config["column"], self.inputs[0]
        files = {}
        for row, name in enumerate(need_column(items, column).to_pylist()):
            if name and "://" in name:
                raise ValueError(
                    f"column {column!r}, row {row}: {name!r} is a URL; download the pictures and name files in folder"
                )
            if name:
                files[row] = folder / name
        if absent := [row for row, file in files.items() if not file.is_file()]:
            logger.warning("%d pictures of column %r do not exist, e.g. %s", len(absent), column, files[absent[0]])
        return {row: file for row, file in files.items() if file.is_file()}

    def _embed(self, files: list[Path]) -> np.ndarray:
        if "image" not in (reads := self.model.model.modalities):
            raise ValueError(f"encoder {self.config['encoder']!r} reads {reads}, no images")
        return self.model.embed(files, "images")

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        return {"dim": self.dim}, {}

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        self.dim = values["dim"]


def _open(path: Path):
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a readable picture: {error}") from error
