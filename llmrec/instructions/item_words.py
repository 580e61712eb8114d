"""Words about items from their columns: categories, prices, short descriptions, and what a history has in common."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

TEXT_WORDS = 48  # of a description; the first sentences say what an item is, the rest fills the context
WORD_LENGTH = 8  # characters that a word may have on average: some languages write no spaces


@lru_cache(maxsize=100_000)
def short_text(text: str | None, words: int = TEXT_WORDS) -> str:
    """The first words of a text on one line."""
    return " ".join((text or "").split()[:words])[: WORD_LENGTH * words].rstrip()


@lru_cache(maxsize=100_000)
def category_path(categories: str | None) -> tuple[str, ...]:
    """`"A > B > C | D > E"` → `("A", "B", "C")`: the first path, widest category first."""
    first = (categories or "").split(" | ")[0]
    return tuple(part.strip() for part in first.split(" > ") if part.strip())


def leaf_category(categories: str | None) -> str:
    """The narrowest category of the first path; empty where there is none."""
    path = category_path(categories)
    return path[-1] if path else ""


def price_text(price: float | None) -> str:
    """`12.5` → `$12.50`; empty for none."""
    return "" if price is None or price != price else f"${price:,.2f}"


def listing(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def most_common(values: Iterable[str], count: int) -> list[str]:
    """The most frequent values that are not empty, the earlier one first among equals."""
    return [value for value, _ in Counter(value for value in values if value).most_common(count)]


def same_text(text: str, reference: str) -> bool:
    """Whether a text is the reference, whatever the case and white space."""
    return text.lower().split() == reference.lower().split()


def token_f1(text: str, reference: str) -> float:
    """F1 over the words of both as bags, whatever the case and punctuation (as SQuAD, arXiv 1606.05250, has it)."""
    words, wanted = (Counter(re.findall(r"\w+", one.lower())) for one in (text, reference))
    common = sum((words & wanted).values())
    return 2 * common / (sum(words.values()) + sum(wanted.values())) if common else 0.0


def says(text: str, name: str) -> bool:
    """Whether a text names something (a title, a Semantic ID) as it stands, whatever the case and white space."""
    plain, whole = " ".join(name.lower().split()), " ".join(text.lower().split())
    # Most texts do not hold the name at all, and a pattern for every name costs more than that look.
    return bool(plain) and plain in whole and re.search(rf"(?<!\w){re.escape(plain)}(?!\w)", whole) is not None
