"""Item features: a matrix float32 `[N, D]` made from a catalogue, and the state to make the same for new items.

    features = ItemFeatures([{"kind": "text"}, {"kind": "cooccurrence", "dim": 64, "weight": 0.5}])
    matrix = features.fit(items, train).encode(items)  # or encode_to("features.npy", items), for millions of items

Every part gives rows of unit length (or zero rows, where it knows nothing about an item), times its `weight`; the
parts stand side by side. A part is a `FeaturePart`, in a file of `parts/` with a line in `PARTS`, or a user's own by
its dotted path (docs/own_features.md).
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa

from llmrec.arguments import construct, part_named
from llmrec.arrays import blocks, check_features, l2_normalize
from llmrec.features.parts.categorical import CategoricalFeatures
from llmrec.features.parts.collaborative import CollaborativeFeatures, CooccurrenceFeatures
from llmrec.features.parts.graph import GraphFeatures
from llmrec.features.parts.image import ImageFeatures
from llmrec.features.parts.part import FeaturePart, some_in_training
from llmrec.features.parts.precomputed import PrecomputedFeatures
from llmrec.features.parts.text import TextFeatures
from llmrec.files import atomic_path, files_fingerprint, load_state, part_of, save_state, well_formed

PARTS: dict[str, type[FeaturePart]] = {
    "text": TextFeatures,
    "image": ImageFeatures,
    "categorical": CategoricalFeatures,
    "cooccurrence": CooccurrenceFeatures,
    "collaborative": CollaborativeFeatures,
    "graph": GraphFeatures,
    "precomputed": PrecomputedFeatures,
}
_BLOCK = 2**18  # items that `encode_to` takes at a time


class Reduction:
    """`reduce: {pca: 64, whiten: true}` of any part: principal components of its training items. `whiten` brings all
    to variance 1, so that small differences count as much as large ones.

    Zero rows mean "nothing is known": they teach nothing and stay zero, where plain PCA would move them to minus the
    mean.
    """

    def __init__(self, pca: int, whiten: bool = False):
        if not isinstance(pca, int) or pca < 1:
            raise ValueError(f"reduce: pca={pca!r} must be a positive whole number")
        self.config = {"pca": pca, "whiten": bool(whiten)}
        self.mean = self.components = np.empty(0)

    def fit(self, rows: np.ndarray, seed: int) -> Self:
        """Learns from `[N, D]`; raises `ValueError` where the rows vary in fewer than `pca` directions."""
        from sklearn.decomposition import PCA

        dim = self.config["pca"]
        rows = rows[rows.any(1)].astype(np.float64)
        directions = 0
        if dim <= min(rows.shape):
            pca = PCA(dim, random_state=seed).fit(rows)
            variance = pca.explained_variance_
            directions = int((variance > max(1e-10 * variance[0], 1e-12 * (rows**2).mean())).sum())
        if directions < dim:
            raise ValueError(
                f"reduce: pca={dim} needs {dim} directions; {len(rows)} training rows of {rows.shape[1]} dimensions "
                f"that are not zero have {directions or 'fewer'}: lower it"
            )
        scale = np.sqrt(variance) if self.config["whiten"] else np.ones(dim)
        self.mean, self.components = pca.mean_, pca.components_ / scale[:, None]
        return self

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """`[N, D]` to float32 `[N, pca]`."""
        reduced = (rows.astype(np.float64) - self.mean) @ self.components.T
        return np.where(rows.any(1, keepdims=True), reduced, 0).astype(np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        return {"mean": self.mean, "components": self.components}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        self.mean, self.components = arrays["mean"], arrays["components"]


class ItemFeatures:
    """Several kinds of features side by side.

    Every entry of `spec` has `kind` (a key of `PARTS`, or a dotted path), `weight` (default 1), perhaps `reduce` (the
    arguments of `Reduction`), and the part's arguments; what is wrong with them raises `ValueError`. Parts may keep
    what is costly to compute again in `cache_dir`. With `actors` the models of texts and pictures work on a Ray
    cluster (`CachedModel`).
    """

    def __init__(
        self,
        spec: Sequence[Mapping] = ({"kind": "text"},),
        cache_dir: str | Path | None = None,
        actors: int = 0,
        gpus_per_actor: float = 0,
    ):
        if not spec or isinstance(spec, Mapping) or not all(isinstance(entry, Mapping) for entry in spec):
            raise ValueError(f"features must be a list of parts, e.g. [{{'kind': 'text'}}], not {spec!r}")
        self.kinds: list[str] = []
        self.weights: list[float] = []
        self.parts: list[FeaturePart] = []
        self.reductions: list[Reduction | None] = []
        for entry in spec:
            arguments = dict(entry)
            kind = arguments.pop("kind", None)
            made_by = part_named(kind, PARTS, "features kind")
            if not (isinstance(made_by, type) and issubclass(made_by, FeaturePart)):
                raise ValueError(f"features kind {kind!r} is no subclass of llmrec.features.FeaturePart")
            with _naming(kind, TypeError):
                self.kinds.append(kind)
                self.weights.append(float(arguments.pop("weight", 1.0)))
                reduce = arguments.pop("reduce", None)
                self.reductions.append(None if reduce is None else Reduction(**reduce))
                if kind == "graph" and "of" in arguments:
                    of = arguments["of"]
                    arguments["of"] = ItemFeatures([of] if isinstance(of, Mapping) else of, cache_dir)
            if kind in PARTS:
                arguments["cache_dir"] = cache_dir
            self.parts.append(construct(made_by, arguments, f"features of kind {kind!r}"))
        for model in self.models:
            model.actors, model.gpus_per_actor = actors, gpus_per_actor

    @property
    def config(self) -> list[dict]:
        """The spec with every default and every `auto` resolved."""
        return [
            {"kind": kind, "weight": weight, **part.config, **({"reduce": reduce.config} if reduce else {})}
            for kind, weight, part, reduce in zip(self.kinds, self.weights, self.parts, self.reductions)
        ]

    def describe(self) -> str:
        """One short line, e.g. `text (tfidf) + 0.5 x cooccurrence`."""
        names = []
        for entry, part in zip(self.config, self.parts):
            weight = "" if entry["weight"] == 1 else f"{entry['weight']:g} x "
            detail = part.of.describe() if "of" in entry else entry.get("encoder", entry.get("method"))
            names.append(weight + entry["kind"] + (f" ({detail})" if detail else ""))
        return " + ".join(names)

    @property
    def models(self) -> tuple:
        """The `CachedModel`s of all parts."""
        return tuple(model for part in self.parts for model in part.models)

    def inputs(self) -> list[Path]:
        """Files and folders beside the catalogue that decide the features."""
        return [path for part in self.parts for path in part.inputs]

    def inputs_fingerprint(self) -> str:
        """Changes with the content of `inputs`; raises `ValueError` naming one that does not exist."""
        return files_fingerprint(self.inputs())

    def fit(self, items: pa.Table, train: pa.Table | None = None, seed: int = 0) -> Self:
        """Learns from the catalogue's items in the training sequences (all items, where there are none)."""
        for kind, part, reduce in zip(self.kinds, self.parts, self.reductions):
            with _naming(kind):
                part.fit(items, train, seed)
                if reduce is not None:
                    reduce.fit(check_features(part.encode(items.take(some_in_training(items, train, seed)))), seed)
        return self

    def encode(self, items: pa.Table) -> np.ndarray:
        """float32 `[N, D]` for any items, new ones too; raises `ValueError` on NaN or inf, naming part and row."""
        return self._encode(items)

    def encode_to(self, path: str | Path, items: pa.Table) -> np.ndarray:
        """`encode` into a `.npy` file, whole or not at all, some items at a time; returns its memory map."""
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            for block in blocks(items.num_rows, _BLOCK):
                rows = self._encode(items.slice(block.start, block.stop - block.start), block.start)
                if not block.start:
                    shape = items.num_rows, rows.shape[1]
                    header = {"descr": rows.dtype.str, "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(file, header)
                rows.tofile(file)
        return np.load(path, mmap_mode="r", allow_pickle=False)

    def _encode(self, items: pa.Table, first: int = 0) -> np.ndarray:
        """`encode` of items of which the first is that row of the catalogue."""
        matrices = []
        for kind, weight, part, reduce in zip(self.kinds, self.weights, self.parts, self.reductions):
            with _naming(kind):
                rows = check_features(part.encode(items), first=first)
            rows = l2_normalize(rows if reduce is None else reduce(rows))
            matrices.append(rows if weight == 1 else weight * rows)
        return (matrices[0] if len(matrices) == 1 else np.concatenate(matrices, axis=1)).astype(np.float32, copy=False)

    def state(self) -> tuple[list[dict], dict[str, np.ndarray]]:
        """What `fit` learned: plain JSON values per part, and arrays."""
        states = [part.state() for part in self.parts]
        arrays = {f"{i}.{name}": array for i, (_, group) in enumerate(states) for name, array in group.items()}
        for i, reduce in enumerate(self.reductions):
            if reduce is not None:
                arrays |= {f"reduce{i}.{name}": array for name, array in reduce.arrays().items()}
        return [values for values, _ in states], arrays

    def restore(self, values: list[dict], arrays: dict[str, np.ndarray]) -> None:
        """The inverse of `state`."""
        for i, (part, reduce) in enumerate(zip(self.parts, self.reductions)):
            part.restore(values[i], part_of(arrays, f"{i}."))
            if reduce is not None:
                reduce.restore(part_of(arrays, f"reduce{i}."))

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `config.json` and `model.safetensors`: what `encode` needs for new items."""
        values, arrays = self.state()
        save_state(folder, {"spec": self.config, "values": values}, arrays)

    @classmethod
    def from_pretrained(cls, folder: str | Path, cache_dir: str | Path | None = None) -> Self:
        config, arrays = load_state(folder)
        with well_formed(folder):
            features = cls(config["spec"], cache_dir)
            features.restore(config["values"], arrays)
        return features


@contextlib.contextmanager
def _naming(kind: str, *also: type[Exception]) -> Iterator[None]:
    """A `ValueError`, and what else bad input raises here, becomes a `ValueError` that says which part it was."""
    try:
        yield
    except (ValueError, *also) as error:
        raise ValueError(f"features of kind {kind!r}: {error}") from error
