"""`Recommender`: the one Protocol behind which our model and every baseline stand."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from llmrec.filters import Filter


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
    if value is None or isinstance(value, (int, Filter)):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{len(value)} values of {name} for {count} histories")
    return list(value)
