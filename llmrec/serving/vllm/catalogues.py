"""The catalogue versions of a process that runs an engine: a model folder's, and those that were loaded since.

The front (`llmrec.serving.http`) decides which version a request belongs to; here versions are only kept. Both kinds
of engines read them: the pooler of `recommend` and the logits processor of `generate`.
"""

import json
import threading
from pathlib import Path

import pyarrow as pa

from llmrec.decoding.searchable import SearchableCatalogue
from llmrec.models.dense import DenseHead, load_dense
from llmrec.models.folder import RecommenderConfig, load_index, semids_table
from llmrec.models.weights import load_tokenizer
from llmrec.serving.living_catalogue.store import load_version
from llmrec.serving.living_catalogue.versions import CatalogueVersion, apply_records


class WorkerCatalogues:
    """Catalogue versions by number.

    Args:
        directory (*optional*): of a catalogue log, whose last version is loaded; without it the folder's own items.

    Attributes:
        states: number of a version that was to be loaded beside running requests → `"loading"`, `"loaded"`, or why it
            could not be loaded.
    """

    def __init__(self, folder: str | Path, directory: str | Path | None = None):
        self.config = RecommenderConfig.load(folder)
        self.tokenizer = load_tokenizer(folder)
        self.states: dict[int, str] = {}
        index = load_index(folder, self.config)
        self._dense = load_dense(folder, index.items)
        self._versions: dict[int, tuple[CatalogueVersion, SearchableCatalogue, DenseHead | None]] = {}
        self._lock = threading.Lock()
        self._dropped: set[int] = set()
        if directory is None:
            self._add(CatalogueVersion.of_table(0, index, semids_table(folder)))
        else:
            self._add(load_version(folder, directory))

    def get(self, number: int | None = None) -> SearchableCatalogue:
        """A version, by default the newest; raises `ValueError` for one that is not loaded (any more)."""
        return self._version(number)[1]

    def dense(self, number: int | None = None) -> DenseHead:
        """The dense head of a version, by default the newest; raises `ValueError` as `get`, or where it has none."""
        if (head := self._version(number)[2]) is None:
            raise ValueError("the model folder has no dense head")
        return head

    def _version(self, number: int | None) -> tuple[CatalogueVersion, SearchableCatalogue, DenseHead | None]:
        number = max(self._versions) if number is None else number
        if number not in self._versions:
            raise ValueError(f"catalogue version {number} is not loaded, these are: {sorted(self._versions)}")
        return self._versions[number]

    def load(self, record: dict) -> None:
        """Makes the version that a record of the log describes; a second time it does nothing."""
        with self._lock:
            if record["number"] not in self._versions and record["number"] not in self._dropped:
                self._add(apply_records(self._versions[record["parent"]][0], [record]))

    def load_aside(self, record: dict) -> None:
        """Begins to load a version in a thread; `states` says how it went."""
        self.states[record["number"]] = "loading"

        def load() -> None:
            try:
                self.load(record)
                self.states[record["number"]] = "loaded"
            except Exception as error:
                self.states[record["number"]] = f"{type(error).__name__}: {error}"

        threading.Thread(target=load, daemon=True).start()

    def drop(self, number: int) -> None:
        """Forgets a version that no request uses any more, or that was loaded in vain."""
        with self._lock:
            self._dropped.add(number)  # it may still be loading
            if len(self._versions) > 1:
                self._versions.pop(number, None)

    def _add(self, version: CatalogueVersion) -> None:
        config = self.config
        views = config.fuse or [name for name in (config.prompt.get("semids"),) if name]
        catalogue = SearchableCatalogue(version.index, version.items, self.tokenizer, views)
        catalogue.tokens, catalogue.item_of_row  # noqa: B018 (built now, not at the first request)
        dense, index = self._dense, version.index
        if dense is not None and index.items != dense.item_ids:
            dense = dense.for_items(version.items.take(pa.array([index.row(item) for item in index.items])))
        self._versions[version.number] = (version, catalogue, dense)


_of_folder: dict[str, WorkerCatalogues] = {}
_lock = threading.Lock()


def of(vllm_config) -> WorkerCatalogues:
    """The one object of this process for an engine's model folder."""
    folder = str(Path(vllm_config.model_config.model).resolve())
    with _lock:
        if folder not in _of_folder:
            _of_folder[folder] = WorkerCatalogues(folder, vllm_config.additional_config.get("catalogue"))
        return _of_folder[folder]


class CatalogueWorker:
    """What the front can ask of an engine's worker, as a `worker_extension_cls` of vLLM.

    vLLM mixes this into its worker, so names have a prefix; `record` is one of the catalogue log, as JSON.
    """

    def llmrec_load(self, record: str) -> None:
        of(self.vllm_config).load_aside(json.loads(record))

    def llmrec_state(self, number: int) -> str:
        return of(self.vllm_config).states.get(number, "nobody asked for it")

    def llmrec_drop(self, number: int) -> None:
        of(self.vllm_config).drop(number)
