"""`Recommender`: the one Protocol behind which our model and every other recommender stand."""

from collections.abc import Sequence
from numbers import Number
from typing import NamedTuple, Protocol

import pyarrow as pa

from llmrec.catalogue.filters import Filter


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
            histories: item ids, oldest first; an empty history is allowed.
            k: how many items, one number for all or one per history.
            filters: what may be recommended, one for all or one per history.

        Returns:
            For each history at most k distinct items, best first; fewer only where fewer are allowed.

        Raises:
            ValueError: an unknown item in a history, k < 1, or a filter that does not fit the catalogue.
        """
        ...


def per_request(value, count: int, name: str) -> list:
    """Spreads one value over `count` requests, or checks that there is one for each."""
    if value is None or isinstance(value, (Number, str, Filter)):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{len(value)} values of {name} for {count} histories")
    return list(value)


def requests_of(recommender: Recommender, rows: pa.Table) -> tuple[list, dict]:
    """Histories of rows (`llmrec.data.prepared.TARGETS`), and what else `recommend` is to know of each.

    A recommender with `behaviours` gets (item id, behaviour) pairs, and the target's behaviour as the wanted one.
    """
    histories = rows["history"].to_pylist()
    if not getattr(recommender, "behaviours", ()) or "behaviours" not in rows.column_names:
        return histories, {}
    pairs = [list(zip(*lists, strict=True)) for lists in zip(histories, rows["behaviours"].to_pylist())]
    return pairs, {"behaviour": rows["target_behaviour"].to_pylist()}
