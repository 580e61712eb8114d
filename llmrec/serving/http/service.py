"""`Service`: which catalogue version is served, how the next one comes in, and when an old one may go."""

import logging
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property

from llmrec.catalogue.semids import SemIDIndex
from llmrec.recommenders import LLMRecommender
from llmrec.serving.living_catalogue.store import CatalogueStore, CatalogueVersion, Changes, Prepared, Row

logger = logging.getLogger("llmrec.serving")


class SemIDScanner:
    """Finds Semantic IDs in what a model wrote; `items_with` gives the items of one, none for an unknown one."""

    def __init__(self, index: SemIDIndex, items_with: Callable[[str], Sequence[str]]):
        words = not index.adds_tokens  # SemIDs in the words of the LLM end with ";"
        self._items_with, self._longest = items_with, index.num_levels + words
        tokens = {token for level in index.level_tokens for token in level} | ({";"} if words else set())
        pattern = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))
        self._token, self._run = re.compile(pattern), re.compile(f"(?:{pattern})+")

    def items(self, text: str) -> list[str]:
        """The distinct items whose Semantic IDs stand in a text, in order; of two that fit the longer one counts."""
        item_ids: dict[str, None] = {}
        for run in self._run.finditer(text):
            tokens, place = self._token.findall(run[0]), 0
            while place < len(tokens):
                lengths = range(min(self._longest, len(tokens) - place), 0, -1)
                for length in lengths:  # where none fits, the first token is passed over
                    if items := self._items_with("".join(tokens[place : place + length])):
                        item_ids |= dict.fromkeys(items)
                        break
                place += length
        return list(item_ids)


@dataclass
class Served:
    """A catalogue version and the recommender over it; a request keeps the one that it started with."""

    version: CatalogueVersion
    recommender: LLMRecommender
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def number(self) -> int:
        return self.version.number

    def items_with(self, semid: str) -> list[str]:
        with self._lock:  # the first look-up makes a table
            return self.version.index.decode(semid)

    @cached_property
    def _scanner(self) -> SemIDScanner:
        return SemIDScanner(self.version.index, self.items_with)

    def items_in(self, text: str) -> list[dict]:
        """The items whose Semantic IDs stand in a text, as `name` gives them."""
        return [*map(self.name, self._scanner.items(text))]

    def name(self, item_id: str) -> dict:
        """`{"item_id", "title", "semid"}` of an item of the catalogue."""
        row = self.version.index.row(item_id)
        title = self.version.items["title"][row].as_py()
        return {"item_id": item_id, "title": title, "semid": self.version.index.semid_of_row(row)}


class Unavailable(RuntimeError):
    """An engine is dead; `seconds`: until there is about to be another one."""

    def __init__(self, message: str, seconds: float):
        super().__init__(message)
        self.seconds = seconds


class ChangeFailed(RuntimeError):
    """A change that fits the catalogue, but could not be made; what was served before still is."""


class Service:
    """The current version, changes of it one after the other, and who still uses which.

    Args:
        make: version → recommender over it. Its methods are called from several threads.
        publish: loads a prepared version into the engines, and returns when all have it.
        retire: gets the number of a version that no request uses any more, or that was published in vain.
        check: raises `Unavailable` where an engine is dead; it is asked before every request.
        fresh: raises where the current version may be older than one that was acknowledged elsewhere.

    All callables may block: they run in a thread of their own, except `check` and `fresh`, which should be quick.
    """

    def __init__(
        self,
        store: CatalogueStore,
        make: Callable[[CatalogueVersion], LLMRecommender],
        publish: Callable[[Prepared], None] = lambda prepared: None,
        retire: Callable[[int], None] = lambda number: None,
        check: Callable[[], None] = lambda: None,
        fresh: Callable[[], None] = lambda: None,
    ):
        self.store, self.check, self.fresh = store, check, fresh
        self._make, self._publish, self._retire = make, publish, retire
        self.current = Served(store.current, make(store.current))
        self._uses: Counter[int] = Counter()
        self._lock = threading.Lock()  # of `current` and `_uses`
        self._changing = threading.Lock()
        self._retiring = ThreadPoolExecutor(1, thread_name_prefix="llmrec-retire")

    @contextmanager
    def using(self, served: Served | None = None) -> Iterator[Served]:
        """A version, by default the current one, where it is fresh; it is not retired before the block ends."""
        if served is None:
            self.fresh()
        with self._lock:
            served = served or self.current
            self._uses[served.number] += 1
        try:
            yield served
        finally:
            with self._lock:
                self._uses[served.number] -= 1
                self._retire_unused(served.number)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """No version is made before the block ends."""
        with self._changing:
            yield

    def change(self, changes: Changes) -> dict:
        """Makes a version with these changes current; blocks until it is durable and gives its record.

        Raises:
            ValueError: the changes do not fit the catalogue.
            ChangeFailed: an engine did not take the version, or it could not be written.
        """
        with self._changing:
            return self._serve(self.store.prepare(changes))

    def rollback(self, number: int) -> dict:
        """The same for a version with the content of an older one; raises `ValueError` where there is none."""
        with self._changing:
            return self._serve(self.store.prepare_rollback(number))

    def adopt(self, row: Row) -> None:
        """Makes the next version of the log that this one follows current; raises as `change`."""
        with self._changing:
            self._serve(self.store.prepare_row(row))

    def close(self) -> None:
        """Retires nothing any more; the engines go too."""
        self._retiring.shutdown(wait=False, cancel_futures=True)

    def _serve(self, prepared: Prepared) -> dict:
        number = prepared.version.number
        try:
            served = Served(prepared.version, self._make(prepared.version))
            self._publish(prepared)
            record = self.store.commit(prepared)
        except Exception as error:
            logger.exception("catalogue version %d could not be served", number)
            self._retiring.submit(self._retire_logged, number)
            raise ChangeFailed(f"the catalogue stays at version {self.current.number}: {error}") from error
        with self._lock:
            old, self.current = self.current, served
            self._retire_unused(old.number)
        return record

    def _retire_unused(self, number: int) -> None:
        if number != self.current.number and not self._uses[number]:
            del self._uses[number]
            with suppress(RuntimeError):  # the service is closed
                self._retiring.submit(self._retire_logged, number)

    def _retire_logged(self, number: int) -> None:
        try:
            self._retire(number)
        except Exception:
            logger.exception("catalogue version %d could not be retired", number)
