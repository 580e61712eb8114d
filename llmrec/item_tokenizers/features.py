"""Item features: a matrix float32 `[N, D]` made from a catalogue, and the state to make the same for new items.

    features = ItemFeatures([{"kind": "text"}, {"kind": "cooccurrence", "dim": 64, "weight": 0.5}])
    matrix = features.fit(items, train).encode(items)

Every part gives rows of unit length (or zero rows, where it knows nothing about an item), times its `weight`; the
parts stand side by side. A part is a class in `PARTS` with `config`, `fit`, `encode`, `state` and `restore`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmrec.files import read_parquet
from llmrec.item_tokenizers.cooccurrence import cooccurrence_embeddings
from llmrec.item_tokenizers.preprocess import check_features, l2_normalize
from llmrec.item_tokenizers.protocol import load_state, part_of, save_state
from llmrec.item_tokenizers.text_encoders import (
    TEXT_COLUMNS,
    choose_text_encoder,
    item_text,
)


class TextFeatures:
    """Embeddings of `item_text`; TF-IDF is fitted on the items of the training sequences.

    Args:
        encoder (`str`): `"auto"`, `"tfidf"`, or the name or folder of a sentence-transformers model.
        columns (sequence of `str`): the catalogue's columns to render; absent ones are left out.
        kwargs: further arguments of the encoder.
    """

    def __init__(
        self,
        encoder: str = "auto",
        columns: Sequence[str] = TEXT_COLUMNS,
        cache_dir: str | Path | None = None,
        **kwargs,
    ):
        self.columns = list(columns)
        self.encoder = choose_text_encoder(encoder, cache_dir, **kwargs)

    @property
    def config(self) -> dict:
        config = dict(self.encoder.config)
        return {"encoder": config.pop("model_name_or_path", self.encoder.name), "columns": self.columns, **config}

    def fit(self, items: pa.Table, train: pa.Table | None, seed: int) -> Self:
        self.encoder.fit(item_text(items.take(rows_in_training(items, train)), self.columns), seed)
        return self

    def encode(self, items: pa.Table) -> np.ndarray:
        return self.encoder.encode(item_text(items, self.columns))

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        return self.encoder.state()

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        self.encoder.restore(values, arrays)


class CooccurrenceFeatures:
    """`cooccurrence_embeddings` of the training sequences; an item that was not there gets zeros."""

    def __init__(self, dim: int = 64, window: int = 5, cache_dir: str | Path | None = None):
        self.config = {"dim": dim, "window": window}
        self.item_ids: list[str] = []
        self.embeddings = np.empty((0, dim), np.float32)

    def fit(self, items: pa.Table, train: pa.Table | None, seed: int) -> Self:
        if train is None:
            raise ValueError("features of kind 'cooccurrence' need training sequences")
        self.item_ids = items["item_id"].to_pylist()
        self.embeddings = cooccurrence_embeddings(self.item_ids, train, **self.config, seed=seed)
        return self

    def encode(self, items: pa.Table) -> np.ndarray:
        row = {item: i for i, item in enumerate(self.item_ids)}
        padded = np.concatenate([self.embeddings, np.zeros((1, self.config["dim"]), np.float32)])
        return padded[[row.get(item, -1) for item in items["item_id"].to_pylist()]]

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        return {"item_ids": self.item_ids}, {"embeddings": self.embeddings}

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        self.item_ids, self.embeddings = values["item_ids"], arrays["embeddings"]


class PrecomputedFeatures:
    """The user's own embeddings.

    Args:
        path (`str`): `.npy` with one row per item in the order of the catalogue at `fit`, or `.parquet` with `item_id`
            and `embedding` (a list of numbers), in which new items may be found later.
    """

    def __init__(self, path: str, cache_dir: str | Path | None = None):
        self.config = {"path": str(path)}
        self.item_ids: list[str] = []

    def fit(self, items: pa.Table, train: pa.Table | None, seed: int) -> Self:
        self.item_ids = items["item_id"].to_pylist()
        return self

    def encode(self, items: pa.Table) -> np.ndarray:
        path = Path(self.config["path"])
        if path.suffix == ".npy":
            try:
                matrix = np.load(path, allow_pickle=False)
            except (OSError, ValueError) as error:
                raise ValueError(f"{path} is not a readable .npy file: {error}") from error
            ids = self.item_ids
        else:
            table = read_parquet(path)
            for column in ("item_id", "embedding"):
                if column not in table.column_names:
                    raise ValueError(f"{path} has no column {column!r}; it has {table.column_names}")
            ids = table["item_id"].cast(pa.string()).to_pylist()
            widths = pc.unique(pc.list_value_length(table["embedding"])).to_pylist()
            if len(widths) != 1 or widths[0] is None:
                raise ValueError(f"{path}: embeddings have different lengths {widths}")
            matrix = pc.list_flatten(table["embedding"]).to_numpy().reshape(-1, widths[0])
        if len(matrix) != len(ids):
            raise ValueError(f"{path} holds {len(matrix)} rows for a catalogue of {len(ids)} items")
        row = {item: i for i, item in enumerate(ids)}
        missing = next((item for item in items["item_id"].to_pylist() if item not in row), None)
        if missing is not None:
            raise ValueError(f"{path} holds no embedding of item {missing!r}")
        return matrix[[row[item] for item in items["item_id"].to_pylist()]]

    def state(self) -> tuple[dict, dict[str, np.ndarray]]:
        return {"item_ids": self.item_ids}, {}

    def restore(self, values: dict, arrays: dict[str, np.ndarray]) -> None:
        self.item_ids = values["item_ids"]


PARTS = {"text": TextFeatures, "cooccurrence": CooccurrenceFeatures, "precomputed": PrecomputedFeatures}


class ItemFeatures:
    """Several kinds of features side by side.

    Args:
        spec (sequence of mappings): each has `kind` (a key of `PARTS`), `weight` (default 1) and the part's arguments.
        cache_dir (`str`, *optional*): where parts may keep what is costly to compute again.
    """

    def __init__(self, spec: Sequence[Mapping] = ({"kind": "text"},), cache_dir: str | Path | None = None):
        if not spec:
            raise ValueError("features must name at least one part, e.g. [{'kind': 'text'}]")
        self.kinds: list[str] = []
        self.weights: list[float] = []
        self.parts: list = []
        for entry in spec:
            arguments = dict(entry)
            kind = arguments.pop("kind", None)
            if kind not in PARTS:
                raise ValueError(f"features kind {kind!r} is not one of {', '.join(PARTS)}")
            self.kinds.append(kind)
            self.weights.append(float(arguments.pop("weight", 1.0)))
            try:
                self.parts.append(PARTS[kind](**arguments, cache_dir=cache_dir))
            except TypeError as error:
                raise ValueError(f"features of kind {kind!r}: {error}") from error

    @property
    def config(self) -> list[dict]:
        """The spec with every default and every `auto` resolved."""
        return [
            {"kind": kind, "weight": weight, **part.config}
            for kind, weight, part in zip(self.kinds, self.weights, self.parts)
        ]

    def describe(self) -> str:
        """One short line, e.g. `text (tfidf) + 0.5 x cooccurrence`."""
        names = []
        for entry in self.config:
            weight = "" if entry["weight"] == 1 else f"{entry['weight']:g} x "
            names.append(weight + entry["kind"] + (f" ({entry['encoder']})" if "encoder" in entry else ""))
        return " + ".join(names)

    def fit(self, items: pa.Table, train: pa.Table | None = None, seed: int = 0) -> Self:
        """Learns from a catalogue (`item_id` and text columns) and, where given, the training sequences."""
        for part in self.parts:
            part.fit(items, train, seed)
        return self

    def encode(self, items: pa.Table) -> np.ndarray:
        """float32 `[N, D]` for any items, new ones too; raises `ValueError` on NaN or inf in a part."""
        matrices = [check_features(part.encode(items)) for part in self.parts]
        return np.concatenate([weight * l2_normalize(m) for weight, m in zip(self.weights, matrices)], axis=1).astype(
            np.float32
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `config.json` and `model.safetensors`: what `encode` needs for new items."""
        states = [part.state() for part in self.parts]
        arrays = {f"{i}.{name}": array for i, (_, group) in enumerate(states) for name, array in group.items()}
        save_state(folder, {"spec": self.config, "values": [values for values, _ in states]}, arrays)

    @classmethod
    def from_pretrained(cls, folder: str | Path, cache_dir: str | Path | None = None) -> Self:
        config, arrays = load_state(folder)
        features = cls(config["spec"], cache_dir)
        for i, (part, values) in enumerate(zip(features.parts, config["values"])):
            part.restore(values, part_of(arrays, f"{i}."))
        return features


def rows_in_training(items: pa.Table, train: pa.Table | None) -> np.ndarray:
    """int64, ascending: the catalogue's rows that occur in training sequences (all, where there are none).

    Whatever is learned about items is learned from these, so cold items stay unseen.
    """
    if train is None:
        return np.arange(items.num_rows)
    seen = pc.is_in(items["item_id"], value_set=pc.unique(pc.list_flatten(train["item_ids"])))
    return np.flatnonzero(seen.to_numpy(zero_copy_only=False))
