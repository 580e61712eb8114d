"""Queries, intentions, preferences and rationales from the columns of the items: no model, the same for the same row.

They stand in where no `Texts` were made before. A query or an intention never holds the item's whole title or its
Semantic ID; a preference knows only the history.
"""

from collections.abc import Callable

from llmrec.instructions.catalogue import Catalogue, choose
from llmrec.instructions.item_words import leaf_category, listing, most_common, price_text
from llmrec.instructions.texts import leaks

RELEVANT = 3  # items of the history that a rationale names


def facts(catalogue: Catalogue, item: str) -> tuple[str, str, str]:
    """Narrowest category, brand and price of an item, as far as they are known."""
    return (
        leaf_category(catalogue.column("categories").get(item)),
        str(catalogue.column("brand").get(item) or ""),
        price_text(catalogue.column("price").get(item)),
    )


def _written(kind: str, compose: Callable[[Catalogue, str], list[str]], catalogue: Catalogue, item: str, row: dict):
    made = catalogue.text(kind, row.get("user_id") or "", item, row)
    if made is not None:
        return made
    options = catalogue.composed.get((kind, item))
    if options is None:
        title, semid = catalogue.titles.get(item) or "", catalogue.semid(item)
        options = [text for text in compose(catalogue, item) if text and not leaks(kind, text, semid, title)]
        options = catalogue.composed[kind, item] = options or ["something new"]
    return choose(options, row, kind)


def query(catalogue: Catalogue, item: str, row: dict) -> str:
    """What somebody would type to find an item."""
    return _written("query", _queries, catalogue, item, row)


def intention(catalogue: Catalogue, item: str, row: dict) -> str:
    """What a user was looking for when they chose an item, in the first person."""
    return _written("intention", _intentions, catalogue, item, row)


def _queries(catalogue: Catalogue, item: str) -> list[str]:
    category, brand, price = facts(catalogue, item)
    words = (catalogue.titles.get(item) or "").lower().replace(",", " ").split()
    some = [" ".join(words[:3]), " ".join(words[1:4]), " ".join(words[-3:])] if len(words) > 3 else words[:1]
    named = [f"{brand} {category.lower()}".strip(), f"{category.lower()} {price}".strip()]
    return [*some, *named] if category or brand else some


def _intentions(catalogue: Catalogue, item: str) -> list[str]:
    category, brand, price = facts(catalogue, item)
    own = brand.lower().split()
    words = [w for w in (catalogue.titles.get(item) or "").lower().replace(",", " ").split() if w not in own]
    thing = category.lower() or "products"
    texts = [f"I am looking for something among {thing}"]
    if brand:
        texts.append(f"I would like something from {brand}, of the kind {thing}")
    if price:
        texts.append(f"I want to spend about {price} on {thing}")
    if len(words) > 3:
        texts.append(f"I need {thing} that can be called {words[len(words) // 2]}")
    return texts


def preference(catalogue: Catalogue, history: list[str], row: dict) -> str:
    """What a user likes, from the history alone: over all of it or, by variation, lately."""
    made = catalogue.text("preference", row.get("user_id") or "", history[-1], row) if history else None
    if made is not None:
        return made
    if not history:
        return "nothing is known yet"
    span, when = choose([(history, "Mostly"), (history[-3:], "Lately")], row, "preference")
    known = [facts(catalogue, item) for item in span]
    categories = most_common((category for category, _, _ in known), 3)
    brands = most_common((brand for _, brand, _ in known), 2)
    prices = sorted(p for item in span if (p := catalogue.column("price").get(item)) is not None and p == p)
    parts = [f"{when} {listing(categories)}" if categories else f"{when} a bit of everything"]
    if brands:
        parts.append(f"often from {listing(brands)}")
    if prices:
        parts.append(f"usually around {price_text(prices[len(prices) // 2])}")
    return ", ".join(parts)


def relevant_history(catalogue: Catalogue, history: list[str], target: str, count: int = RELEVANT) -> list[str]:
    """The items of a history that have most in common with the next one, in order of time (OneRec-Think's pruning).

    Category counts twice, brand once; among equals the newer one is taken.
    """
    category, brand, _ = facts(catalogue, target)

    def shared(place: int) -> tuple[int, int]:
        other_category, other_brand, _ = facts(catalogue, history[place])
        return 2 * (other_category == category != "") + (other_brand == brand != ""), place

    best = sorted(range(len(history)), key=shared, reverse=True)[:count]
    return [history[place] for place in sorted(best)]


def rationale(catalogue: Catalogue, row: dict) -> str:
    """Why the target may come next: OneRec-Think's category template, with the items of the history behind it."""
    target = row["targets"][0]
    made = catalogue.text("rationale", row.get("user_id") or "", target, row)
    if made is not None:
        return made
    category, brand, _ = facts(catalogue, target)
    recent = most_common(
        (facts(catalogue, i)[0] for i in relevant_history(catalogue, row["history"], target)), RELEVANT
    )
    text = f"The user lately looked at {listing(recent)}. " if recent else ""
    text += f"They are likely to want {category or 'something else'} next"
    return text + (f", perhaps from {brand}." if brand else ".")
