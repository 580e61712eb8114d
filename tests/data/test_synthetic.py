import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from llmrec.data.synthetic import generate_catalogue, generate_store


@pytest.fixture(scope="module")
def store() -> tuple[pa.Table, pa.Table]:
    return generate_store(seed=0)


def histories_of(store) -> tuple[list[np.ndarray], pa.Table]:
    """The users' purchases as catalogue rows, oldest first."""
    interactions, items = store
    rows = pc.index_in(interactions["item_id"], items["item_id"].combine_chunks()).to_numpy()
    users = pc.rank(interactions["user_id"], tiebreaker="dense").to_numpy()
    order = np.argsort(users, kind="stable")
    return np.split(rows[order], np.flatnonzero(np.diff(users[order])) + 1), items


def last_pair_hits(histories: list[np.ndarray], labels: np.ndarray, previous: list[np.ndarray]) -> float:
    """How often the label of a last purchase is among the three that most often follow the previous one's label."""
    follows = np.zeros((labels.max() + 1, labels.max() + 1))
    for history in histories:
        np.add.at(follows, (labels[history[:-2]], labels[history[1:-1]]), 1)
    likely = np.argsort(-follows, axis=1)[:, :3]
    return float(np.mean([labels[h[-1]] in likely[labels[p[-2]]] for h, p in zip(histories, previous)]))


def test_tables_have_the_promised_columns(store):
    interactions, items = store
    assert interactions.schema == pa.schema(
        [("user_id", pa.string()), ("item_id", pa.string()), ("timestamp", pa.int64())]
    )
    assert items.schema == pa.schema(
        [(name, pa.string()) for name in ("item_id", "title", "description", "brand", "categories")]
        + [("price", pa.float64())]
    )
    assert items.num_rows == 3000
    assert pc.count_distinct(items["item_id"]).as_py() == 3000
    assert pc.count_distinct(items["title"]).as_py() == 3000
    assert pc.count_distinct(interactions["user_id"]).as_py() == 6000
    assert all(column.null_count == 0 for column in [*interactions.columns, *items.columns])
    assert pc.all(pc.is_in(interactions["item_id"], items["item_id"].combine_chunks())).as_py()
    assert set(pc.count_substring(items["categories"], " > ").to_pylist()) == {2}
    assert pc.min(items["price"]).as_py() > 0


def test_log_is_in_order_and_nobody_buys_twice(store):
    interactions, _ = store
    times = interactions["timestamp"].to_numpy()
    assert (np.diff(times) >= 0).all()
    pairs = interactions.group_by(["user_id", "item_id"]).aggregate([])
    assert pairs.num_rows == interactions.num_rows
    moments = interactions.group_by(["user_id", "timestamp"]).aggregate([])
    assert moments.num_rows == interactions.num_rows  # no ties to break
    per_user = interactions.group_by("user_id").aggregate([([], "count_all")])["count_all"]
    assert pc.min(per_user).as_py() == 5
    assert 8 < pc.mean(per_user).as_py() < 9


def test_same_seed_same_store_and_catalogue_does_not_depend_on_users():
    first, second, other = (generate_store(seed, num_items=200, num_users=50) for seed in (3, 3, 4))
    assert first[0].equals(second[0]) and first[1].equals(second[1])
    assert not first[1].equals(other[1])
    assert generate_store(3, num_items=200, num_users=80)[1].equals(first[1])
    assert generate_catalogue(np.random.default_rng([3, 0]), 200).items.equals(first[1])


def test_popularity_alone_explains_little(store):
    histories, items = histories_of(store)
    counts = np.bincount(np.concatenate([history[:-1] for history in histories]), minlength=items.num_rows)
    popular = set(np.argsort(-counts)[:10])
    recall = np.mean([history[-1] in popular for history in histories])
    assert 0.01 < recall < 0.05
    assert (counts < 5).mean() > 0.15  # a tail of items that ids alone cannot learn


def test_order_and_identity_of_a_history_matter(store):
    histories, items = histories_of(store)
    products = pc.rank(items["categories"], tiebreaker="dense").to_numpy().astype(int) - 1
    rng = np.random.default_rng(0)
    shuffled = [np.append(rng.permutation(history[:-1]), history[-1]) for history in histories]
    exchanged = [histories[user] for user in rng.permutation(len(histories))]
    true = last_pair_hits(histories, products, histories)
    assert true > 0.5
    assert last_pair_hits(histories, products, shuffled) < true - 0.15
    assert last_pair_hits(histories, products, exchanged) < 0.1


def test_taste_persists_and_drifts(store):
    """A user's brand choice is far from independent of the previous one, and price tiers stick."""
    histories, items = histories_of(store)
    brand = pc.rank(items["brand"], tiebreaker="dense").to_numpy()
    tier = generate_catalogue(np.random.default_rng([0, 0]), 3000).tier
    same_brand = np.mean([(brand[h[1:]] == brand[h[:-1]]).mean() for h in histories])
    other_brand = np.mean([(brand[g[1:4]] == brand[h[:3]]).mean() for g, h in zip(histories, histories[1:])])
    assert same_brand > 5 * other_brand
    near = np.mean([(tier[h[1:]] == tier[h[:-1]]).mean() for h in histories])
    far = np.mean([tier[h[-1]] == tier[h[0]] for h in histories if len(h) > 8])
    assert near > far > 0.34


@pytest.mark.parametrize("arguments", [{"num_items": 10}, {"num_items": 10**6}, {"num_users": 0}])
def test_sizes_outside_the_bounds_are_named(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"{name} is {arguments[name]}"):
        generate_store(**arguments)


def test_small_store_runs_out_of_items_without_failing():
    interactions, items = generate_store(num_items=77, num_users=200)
    assert items.num_rows == 77
    assert interactions.num_rows > 1000
