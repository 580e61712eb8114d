"""Queries, intentions, preferences and rationales from the columns of the items: no model, the same for the same row.

They stand in where no `Texts` were made before. A query or an intention never holds the item's whole title or its
Semantic ID; a preference knows only the history.
"""

from collections.abc import Callable
from functools import partial

from llmrec.instructions.catalogue import Catalogue, choose
from llmrec.instructions.item_words import most_common
from llmrec.instructions.prompts import listing, phrase

RELEVANT = 3  # items of the history that a rationale names


def _asked(kind: str, options_of: Callable[[Catalogue, str], list[str]], catalogue: Catalogue, row: dict) -> str:
    item = row["about"]
    made = catalogue.text(kind, item, row)
    if made is not None:
        return made
    options = catalogue.composed.get((kind, item))
    if options is None:
        options = [text for text in options_of(catalogue, item) if text and not catalogue.leaks(kind, text, item)]
        options = catalogue.composed[kind, item] = options or [phrase("something")]
    return choose(options, row, kind)


def _queries(catalogue: Catalogue, item: str) -> list[str]:
    category, brand, price = catalogue.facts(item)
    words = catalogue.title(item).lower().replace(",", " ").split()
    some = [" ".join(words[:3]), " ".join(words[1:4]), " ".join(words[-3:])] if len(words) > 3 else words[:1]
    named = [f"{brand} {category.lower()}".strip(), f"{category.lower()} {price}".strip()]
    return [*some, *named] if category or brand else some


def _intentions(catalogue: Catalogue, item: str) -> list[str]:
    category, brand, price = catalogue.facts(item)
    of_brand = brand.lower().split()
    words = [w for w in catalogue.title(item).lower().replace(",", " ").split() if w not in of_brand]
    thing = category.lower() or phrase("products")
    texts = [phrase("intention_category", category=thing)]
    if brand:
        texts.append(phrase("intention_brand", brand=brand, category=thing))
    if price:
        texts.append(phrase("intention_price", price=price, category=thing))
    if len(words) > 3:
        texts.append(phrase("intention_word", category=thing, word=words[len(words) // 2]))
    return texts


# What somebody would type to find the item that a row is `about`, and what a user who chose it was looking for.
query, intention = partial(_asked, "query", _queries), partial(_asked, "intention", _intentions)


def preference(catalogue: Catalogue, row: dict) -> str:
    """What a user likes, from the history alone: over all of it or, by variation, lately."""
    history = row["history"]
    if not history:
        return phrase("unknown_user")
    made = catalogue.text("preference", history[-1], row)
    if made is not None:
        return made
    spans = [(history, phrase("mostly")), (history[-3:], phrase("lately"))]
    span, when = choose(spans, row, "preference")
    facts = [catalogue.facts(item) for item in span]
    categories = most_common((known.category for known in facts), 3)
    brands = most_common((known.brand for known in facts), 2)
    prices = sorted(p for item in span if (p := catalogue.column("price").get(item)) is not None and p == p)
    parts = [phrase("liked" if categories else "liked_all", when=when, categories=listing(categories))]
    if brands:
        parts.append(phrase("liked_brands", brands=listing(brands)))
    if prices:
        parts.append(phrase("liked_price", price=catalogue.price_text(prices[len(prices) // 2])))
    return ", ".join(parts)


def relevant_history(catalogue: Catalogue, history: list[str], target: str, count: int = RELEVANT) -> list[str]:
    """The items of a history that have most in common with the next one, in order of time (OneRec-Think's pruning).

    Category counts twice, brand once; among equals the newer one is taken.
    """
    wanted = catalogue.facts(target)

    def shared(place: int) -> tuple[int, int]:
        known = catalogue.facts(history[place])
        return 2 * (known.category == wanted.category != "") + (known.brand == wanted.brand != ""), place

    best = sorted(range(len(history)), key=shared, reverse=True)[:count]
    return [history[place] for place in sorted(best)]


def rationale(catalogue: Catalogue, row: dict) -> str:
    """Why the target may come next: OneRec-Think's category template, with the items of the history behind it."""
    target = row["targets"][0]
    made = catalogue.text("rationale", target, row)
    if made is not None:
        return made
    category, brand, _ = catalogue.facts(target)
    relevant = relevant_history(catalogue, row["history"], target)
    recent = most_common((catalogue.facts(item).category for item in relevant), RELEVANT)
    text = phrase("rationale_history", categories=listing(recent)) if recent else ""
    wanted = category or phrase("something_else")
    return text + phrase("rationale_brand" if brand else "rationale", category=wanted, brand=brand)


COMPOSED = {"query": query, "intention": intention, "preference": preference, "rationale": rationale}
