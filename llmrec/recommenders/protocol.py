"""`Recommender`: the one Protocol behind which our model and every other recommender stand."""

from collections.abc import Iterable, Sequence
from numbers import Number, Real
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol, Self

import numpy as np
import pyarrow as pa
import torch

from llmrec.arguments import whole_number
from llmrec.catalogue.filters import Filter
from llmrec.data import PreparedData
from llmrec.data.rows import with_columns
from llmrec.data.times import history_times


class Recommendation(NamedTuple):
    """One recommended item; scores are comparable within one request only."""

    item_id: str
    score: float
    title: str = ""


class Recommender(Protocol):
    """Anything that ranks a catalogue for histories."""

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        k: int | Sequence[int] = 10,
        filters: Filter | Sequence[Filter] | None = None,
    ) -> list[list[Recommendation]]:
        """The best items for each history.

        Args:
            histories: item ids, oldest first; an empty history is allowed. Numbers stand for the ids that prepared
                data makes of them (`item_histories`).
            k: how many items, one number for all or one per history.
            filters: what may be recommended, one for all or one per history.

        Returns:
            For each history at most k distinct items, best first; fewer only where fewer are allowed.

        Raises:
            ValueError: an unknown item in a history, what is no list of histories, k < 1, or a filter that does not
                fit the catalogue.
        """
        ...


class TrainableRecommender(Recommender, Protocol):
    """A `kind` of recommender that recipes/train_recommender.py makes and `load_recommender` reads (see `KINDS`).

    Attributes:
        config_class: the dataclass of its settings.
        num_parameters: that were learned by gradients.
    """

    kind: ClassVar[str]
    config_class: ClassVar[type]
    num_parameters: int

    @classmethod
    def fit(
        cls,
        data: PreparedData,
        config=None,
        device: str | torch.device | None = None,
        folder: str | Path | None = None,
    ) -> Self:
        """Learns from `data.train`; `data.valid` says when to stop and which settings are best, `data.test` is not
        read. What trains for long keeps its checkpoints in `folder` and goes on from what lies there."""
        ...

    @staticmethod
    def made_from(config) -> dict:
        """Fingerprints of what decides the result beside data and config, such as files that the config names."""
        ...

    def save_pretrained(self, folder: str | Path, info: dict | None = None) -> None:
        """Writes `config.json`, which has `kind`, `settings` and `info`, and whatever else, whole or not at all."""
        ...

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: str | torch.device | None = None) -> Self:
        """Reads a folder written by `save_pretrained`."""
        ...


def per_request(value, count: int, name: str) -> list:
    """Spreads one value over `count` requests, or checks that there is one for each."""
    if value is None or isinstance(value, (Number, str, Filter)):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{len(value)} values of {name} for {count} histories")
    return list(value)


def asked_for(k, filters, count: int) -> tuple[list[int], list[Filter | None]]:
    """How many items each of `count` requests wants, and its filter, from what `Recommender.recommend` was given.
    Raises `ValueError`: k < 1 or no whole number, or not one for each."""
    ks = [whole_number(number, "k") for number in per_request(k, count, "k")]
    return ks, per_request(filters, count, "filters")


def item_histories(histories: Sequence[Sequence], pairs: bool = False) -> list[list]:
    """Histories as lists of item ids (str) or, with `pairs`, of (item id, behaviour) pairs where they are given so.
    Without, of a pair the item is taken: a model that knows no behaviours leaves them unsaid.

    Ids may be numbers, as in a table that `prepare` reads, and values of numpy and pyarrow. Raises `ValueError` naming
    the place of what is no id, and for a single history where several are asked for.
    """
    if isinstance(histories, (str, bytes)):
        raise ValueError(f"{histories!r} is no list of histories: write [[{histories!r}]]")
    lists = []
    for number, history in enumerate(histories):
        history = history.as_py() if isinstance(history, pa.Scalar) else history
        if isinstance(history, (str, bytes)) or not isinstance(history, Iterable):
            raise ValueError(
                f"history {number + 1} is {history!r}: recommend takes a list of histories, each a list of item ids; "
                "put the ids of one history in brackets once more"
            )
        lists.append([_entry(one, number, place, pairs) for place, one in enumerate(history)])
    return lists


def _entry(entry, number: int, place: int, pairs: bool) -> str | tuple[str, str]:
    if type(entry) is str:
        return entry
    where = f"history {number + 1}, item {place + 1}"
    entry = entry.as_py() if isinstance(entry, pa.Scalar) else entry
    if isinstance(entry, (tuple, list)) and len(entry) == 2:
        item = item_id_of(entry[0], where)
        return (item, entry[1]) if pairs else item
    return item_id_of(entry, where)


def item_id_of(value, where: str) -> str:
    """An item id, as `prepare` reads it: 12 and 12.0 are `"12"`. Raises `ValueError` with `where` it stands."""
    value = value.as_py() if isinstance(value, pa.Scalar) else value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Real) and not isinstance(value, (bool, np.bool_)) and value == value // 1:
        return str(int(value))
    raise ValueError(f"{where}: {value!r} is no item id")


def with_times(recommender: Recommender, rows: pa.Table, data: PreparedData) -> pa.Table:
    """The rows; for a recommender that is `timed` with a column times, those of the items of histories."""
    return with_columns(rows, {"times": history_times(rows, data)}) if getattr(recommender, "timed", False) else rows


def requests_of(recommender: Recommender, rows: pa.Table) -> tuple[list, dict]:
    """Histories of rows (`llmrec.data.prepared.TARGETS`), and what else `recommend` is to know of each.

    A recommender with `behaviours` gets (item id, behaviour) pairs, and the target's behaviour as the wanted one; one
    that is `timed` the `times` of items, where rows have them (`with_times`).
    """
    histories, wishes = rows["history"].to_pylist(), {}
    if getattr(recommender, "timed", False) and "times" in rows.column_names:
        wishes["times"] = rows["times"].to_pylist()
    if getattr(recommender, "behaviours", ()) and "behaviours" in rows.column_names:
        histories = [list(zip(*lists, strict=True)) for lists in zip(histories, rows["behaviours"].to_pylist())]
        wishes["behaviour"] = rows["target_behaviour"].to_pylist()
    return histories, wishes
