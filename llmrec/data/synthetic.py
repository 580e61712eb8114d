"""A generated store: a catalogue with real-looking text and users whose next purchase follows from their latest ones.

It is the embedded default of the quickstart and of the tests: no download, the same bytes for the same seed and numpy.
The words (12 departments, 77 products, every brand invented) stand in `synthetic.yaml`.

**Items.** An item is one draw of brand, style, feature, noun and variant (a colour, say) for a product, e.g.
"Trailforge Ultralight 2-Person Tent, Forest Green". A department has six brands in three price tiers and four styles;
the style's *position* means the same everywhere (Ultralight camping ~ Featherweight running), its *word* does not.
Popularity inside a product is log-normal.

**Users.** A user carries a taste, a style and a price tier, and makes 5 or more purchases (8.5 on average). Each step:

1. the anchor is the latest purchase, or with probability .2 the one before it (two threads in one history);
2. the next product is a complement of the anchor's with probability .6 (tents -> sleeping bags; the relation is
   directed, so the order of a history matters), the same product with .05, one of the department with .15, or any
   product by popularity with .2;
3. the taste drifts: the style changes with probability .12, the tier moves by one with .06;
4. the item is drawn from the product's items not bought yet, in proportion to
   popularity x e^(2.5 style fits) x e^(2 tier fits) x e^(1.2 brand of the anchor).

What separates the items of a product that share style, tier and brand (feature, noun, variant) is irrelevant to the
users: such items are interchangeable, and all that distinguishes them from others stands in their text and price. An
item that nobody has bought yet is therefore as predictable as its neighbours. Nothing else is planted.

**Behaviours** (an option). The purchases stay as they are, as the kind `buy`. In the minute before, the user views
another item of the product with probability .5 and then puts it into the cart with .4, for nothing; views the item
itself with .8; and puts it into the cart with .9.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase, digits

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

THREAD = 0.2
COMPLEMENT, SAME_PRODUCT, SAME_DEPARTMENT = 0.6, 0.05, 0.15
STYLE_DRIFT, TIER_DRIFT = 0.12, 0.06
STYLE_WEIGHT, TIER_WEIGHT, BRAND_WEIGHT = 2.5, 2.0, 1.2
NUM_STYLES, NUM_TIERS = 4, 3
FIRST_LENGTH, EXTRA_LENGTH, LONGEST = 5, 3.5, 40
VIEW_OTHER, CART_OTHER, VIEW, CART = 0.5, 0.4, 0.8, 0.9
START, SPAN_DAYS = 1_640_995_200, 540  # 2022-01-01 UTC; users arrive in the first 18 months


@dataclass
class Store:
    """The generated items with what users see in them; `int64 [items]` where not said otherwise."""

    items: pa.Table
    product: np.ndarray
    style: np.ndarray
    tier: np.ndarray
    brand: np.ndarray
    log_popularity: np.ndarray  # float64 [items]
    transitions: np.ndarray  # float64 [products, products], rows sum to 1: step 2 of the module docstring


def generate_store(
    seed: int = 0, num_items: int = 3000, num_users: int = 6000, behaviours: bool = False
) -> tuple[pa.Table, pa.Table]:
    """Generates the store, `(interactions, items)`; the same seed gives the same tables.

    Interactions have user_id: string, item_id: string, timestamp: int64 (seconds), in order of time; with `behaviours`
    views and carts besides the purchases, and a column behaviour: string (view, cart, buy). Items have item_id, title,
    description, brand, categories ("A > B > C"): string, price: double. The catalogue does not depend on `num_users`.
    Raises `ValueError` on less than one user, or a number of items outside 77 (the products) to 22,176.
    """
    if num_users < 1:
        raise ValueError(f"num_users is {num_users}; it should be at least 1")
    catalogue = generate_catalogue(np.random.default_rng([seed, 0]), num_items)
    interactions = generate_interactions(np.random.default_rng([seed, 1]), catalogue, num_users)
    if behaviours:
        interactions = add_behaviours(np.random.default_rng([seed, 2]), catalogue, interactions)
    return interactions, catalogue.items


def generate_catalogue(rng: np.random.Generator, num_items: int) -> Store:
    departments = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    products = [(path, name, product) for path, d in departments.items() for name, product in d["products"].items()]
    brands = sorted({brand for department in departments.values() for brand in department["brands"]})
    combinations = 6 * NUM_STYLES * 4 * 2 * 6  # brand, style, feature, noun, variant
    most = len(products) * combinations // 4
    if not len(products) <= num_items <= most:
        raise ValueError(f"num_items is {num_items}; it should be {len(products)} to {most}")
    shares = rng.dirichlet(np.full(len(products), 8.0))
    counts = 1 + rng.multinomial(num_items - len(products), shares)

    rows, columns = defaultdict(list), defaultdict(list)
    for index, ((path, name, product), count) in enumerate(zip(products, counts)):
        department = departments[path]
        chosen = rng.choice(combinations, size=count, replace=False)
        brand, style, feature, noun, variant = np.unravel_index(chosen, (6, NUM_STYLES, 4, 2, 6))
        prices = product["price"] * np.take((0.6, 1.0, 1.9), brand // 2) * np.exp(rng.normal(0, 0.15, count))
        prices = np.round(prices) - np.where(prices < 100, 0.01, 0.05)
        styles = list(department["styles"].items())
        variants = product.get("variants", department["variants"])
        for b, s, f, n, v, price in zip(brand, style, feature, noun, variant, prices):
            word, phrase = styles[s]
            what = f"{product['features'][f]} {product['nouns'][n]}"
            maker = department["brands"][b]
            rows["title"].append(f"{maker} {word} {what}, {variants[v]}")
            rows["description"].append(f"{phrase}. {what}, {variants[v]}, with {product['detail']}.")
            rows["brand"].append(maker)
            rows["categories"].append(f"{path} > {name}")
            rows["price"].append(float(round(price, 2)))
            columns["brand"].append(brands.index(maker))
        columns["product"].extend([index] * count)
        columns["style"].extend(style)
        columns["tier"].extend(brand // 2)

    order = rng.permutation(num_items)  # a row's place should not tell its product
    ids = _identifiers(rng, num_items, prefix="B0")
    return Store(
        items=pa.table({"item_id": ids, **{key: [values[row] for row in order] for key, values in rows.items()}}),
        **{key: np.asarray(values, np.int64)[order] for key, values in columns.items()},
        log_popularity=rng.normal(0, 1, num_items),
        transitions=_transitions(rng, products),
    )


def _transitions(rng: np.random.Generator, products: list[tuple]) -> np.ndarray:
    number = {name: index for index, (_, name, _) in enumerate(products)}
    popularity = rng.permutation(1 / np.arange(1, len(products) + 1) ** 0.6)
    complements = np.zeros((len(products), len(products)))
    for index, (_, _, product) in enumerate(products):
        complements[index, [number[name] for name in product["next"]]] = (0.5, 0.3, 0.2)
    paths = np.array([path for path, _, _ in products])
    department = (paths[:, None] == paths).astype(float)
    anything = 1 - COMPLEMENT - SAME_PRODUCT - SAME_DEPARTMENT
    return (
        COMPLEMENT * complements
        + SAME_PRODUCT * np.eye(len(products))
        + SAME_DEPARTMENT * department / department.sum(1, keepdims=True)
        + anything * popularity / popularity.sum()
    )


def generate_interactions(rng: np.random.Generator, catalogue: Store, num_users: int) -> pa.Table:
    """Lets every user walk through the catalogue, all users at once, one purchase per step."""
    extra = rng.geometric(1 / (1 + EXTRA_LENGTH), num_users) - 1
    lengths = np.minimum(FIRST_LENGTH + extra, LONGEST)
    style = rng.integers(NUM_STYLES, size=num_users)
    tier = rng.choice(NUM_TIERS, size=num_users, p=(0.35, 0.4, 0.25))
    members = _members(catalogue.product, len(catalogue.transitions))
    cumulative = catalogue.transitions.cumsum(1)
    popular = catalogue.transitions.mean(0).cumsum()

    bought = np.full((num_users, lengths.max()), -1)
    for step in range(lengths.max()):
        active = np.flatnonzero(lengths > step)
        draw = rng.random(len(active))
        if step == 0:
            anchor = None
            product = np.searchsorted(popular[:-1], draw)
        else:
            thread = (rng.random(len(active)) < THREAD) & (step > 1)
            anchor = bought[active, step - 1 - thread]
            product = (draw[:, None] > cumulative[catalogue.product[anchor], :-1]).sum(1)
        moved = active[rng.random(len(active)) < STYLE_DRIFT]
        style[moved] = (style[moved] + rng.integers(1, NUM_STYLES, len(moved))) % NUM_STYLES
        moved = active[rng.random(len(active)) < TIER_DRIFT]
        tier[moved] = np.clip(tier[moved] + rng.choice([-1, 1], len(moved)), 0, NUM_TIERS - 1)

        choice = members[product]
        logits = catalogue.log_popularity[choice] + np.where(choice < 0, -np.inf, 0.0)
        logits += STYLE_WEIGHT * (catalogue.style[choice] == style[active, None])
        logits += TIER_WEIGHT * (catalogue.tier[choice] == tier[active, None])
        if anchor is not None:
            logits += BRAND_WEIGHT * (catalogue.brand[choice] == catalogue.brand[anchor, None])
        for earlier in range(step):  # finite, so that a product of which everything is bought can be bought again
            logits -= 100.0 * (choice == bought[active, earlier, None])
        best = (logits + rng.gumbel(size=logits.shape)).argmax(1)
        bought[active, step] = choice[np.arange(len(active)), best]

    day = 86_400
    gaps = rng.lognormal(np.log(5 * day), 1.2, bought.shape).astype(np.int64) + 60
    gaps[:, 0] = rng.integers(SPAN_DAYS * day, size=num_users)
    times = START + gaps.cumsum(1)
    user, step = np.nonzero(bought >= 0)
    order = np.lexsort((user, times[user, step]))
    user, step = user[order], step[order]
    users = _identifiers(rng, num_users, prefix="A")
    return pa.table(
        {
            "user_id": users.take(pa.array(user)),
            "item_id": catalogue.items["item_id"].combine_chunks().take(pa.array(bought[user, step])),
            "timestamp": pa.array(times[user, step], pa.int64()),
        }
    )


def add_behaviours(rng: np.random.Generator, catalogue: Store, purchases: pa.Table) -> pa.Table:
    """The purchases with the views and carts that led to them (see the module docstring), in order of time."""
    count, ids = purchases.num_rows, catalogue.items["item_id"].combine_chunks()
    bought = pc.index_in(purchases["item_id"], ids).to_numpy()
    members = _members(catalogue.product, len(catalogue.transitions))
    of_product = (members >= 0).sum(1)[catalogue.product[bought]]
    other = members[catalogue.product[bought], (rng.random(count) * of_product).astype(np.int64)]
    happens = rng.random((5, count)) < np.array([VIEW_OTHER, CART_OTHER, VIEW, CART, 1])[:, None]
    happens[0] &= other != bought
    happens[1] &= happens[0]
    step, row = np.nonzero(happens)
    times = purchases["timestamp"].to_numpy()[row] - np.array([50, 40, 30, 15, 0])[step]
    order = np.lexsort((row, times))
    step, row = step[order], row[order]
    return pa.table(
        {
            "user_id": purchases["user_id"].take(pa.array(row)),
            "item_id": ids.take(pa.array(np.stack([other, other, bought, bought, bought])[step, row])),
            "timestamp": times[order],
            "behaviour": pa.array(["view", "cart", "view", "cart", "buy"]).take(pa.array(step)),
        }
    )


def _members(product: np.ndarray, num_products: int) -> np.ndarray:
    """int64 [products, most items of a product]: the items of each product, padded with -1."""
    counts = np.bincount(product, minlength=num_products)
    members = np.full((num_products, counts.max()), -1)
    members[np.arange(counts.max()) < counts[:, None]] = np.argsort(product, kind="stable")
    return members


def _identifiers(rng: np.random.Generator, count: int, prefix: str) -> pa.Array:
    """`count` distinct ids such as B07XQ1M4ZK."""
    numbers = rng.choice(36**8, size=count, replace=False)
    letters = np.array(list(digits + ascii_uppercase))[numbers[:, None] // 36 ** np.arange(8)[::-1] % 36]
    return pa.array([prefix + "".join(row) for row in letters], pa.string())
