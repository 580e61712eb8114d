"""What every recommender does with filters and k, on the tiny store."""

from llmrec.catalogue.filters import Filter

HISTORIES = [["item-03", "item-04"], [], ["item-10"] * 3, ["item-23"]]
FILTERS = [
    Filter(exclude_seen=True),
    Filter(where=[("price", "<", 4)]),
    Filter(deny=["item-11"]),
    Filter(allow=["item-00", "item-23"], exclude_seen=True),
]
KS = [100, 3, 24, 5]


def check_filters(recommender):
    """The lists of `HISTORIES`, which `FILTERS` and `KS` limit."""
    lists = recommender.recommend(HISTORIES, k=KS, filters=FILTERS)
    ids = [[item.item_id for item in one] for one in lists]
    assert all(len({*one}) == len(one) for one in ids)
    assert len(ids[0]) == 22 and not {"item-03", "item-04"} & {*ids[0]}
    assert max(ids[1]) <= "item-03" and len(ids[1]) == 3
    assert len(ids[2]) == 23 and "item-11" not in ids[2]
    assert ids[3] == ["item-00"]
    return lists
