"""The catalogue versions of a process that runs an engine: a model folder's, and those that were loaded since.

The front (`llmrec.serving.http`) decides which version a request belongs to; here versions are only kept. Both kinds
of engines read them: the pooler of `recommend` and the logits processor of `generate`.
"""

import threading
from pathlib import Path

from llmrec.decoding.searchable import SearchableCatalogue
from llmrec.models.folder import RecommenderConfig, load_index, semids_table
from llmrec.serving.living_catalogue.store import CatalogueVersion, apply_record, load_version


class WorkerCatalogues:
    """Catalogue versions by number.

    Args:
        folder: a model folder.
        directory (*optional*): of a catalogue log, whose last version is loaded; without it the folder's own items.
    """

    def __init__(self, folder: str | Path, directory: str | Path | None = None):
        from transformers import AutoTokenizer

        self.config = RecommenderConfig.load(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self._versions: dict[int, tuple[CatalogueVersion, SearchableCatalogue]] = {}
        self._lock = threading.Lock()
        self._dropped: set[int] = set()
        if directory is None:
            table = semids_table(folder)
            self._add(CatalogueVersion.of_table(0, load_index(folder, self.config), table))
        else:
            self._add(load_version(folder, directory))

    @property
    def newest(self) -> int:
        """The number of the version that requests without one get."""
        return max(self._versions)

    def get(self, number: int | None = None) -> SearchableCatalogue:
        """A version; raises `ValueError` for one that is not loaded (any more)."""
        number = self.newest if number is None else number
        if number not in self._versions:
            raise ValueError(f"catalogue version {number} is not loaded, these are: {sorted(self._versions)}")
        return self._versions[number][1]

    def load(self, record: dict) -> int:
        """Makes the version that a record of the log describes; a second time it does nothing."""
        with self._lock:
            if record["number"] not in self._versions and record["number"] not in self._dropped:
                self._add(apply_record(self._versions[record["parent"]][0], record))
            return record["number"]

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
        catalogue.trie, catalogue.item_of_row  # noqa: B018 (built now, not at the first request)
        self._versions[version.number] = (version, catalogue)


_of_folder: dict[str, WorkerCatalogues] = {}
_lock = threading.Lock()


def of(folder: str | Path, directory: str | Path | None = None) -> WorkerCatalogues:
    """The one object of this process for a model folder."""
    with _lock:
        key = str(Path(folder).resolve())
        if key not in _of_folder:
            _of_folder[key] = WorkerCatalogues(folder, directory)
        return _of_folder[key]
