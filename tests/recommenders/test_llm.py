import numpy as np
import pyarrow as pa
import pytest
from tiny import tiny_data, tiny_index, tiny_model, write_tiny_base

from llmrec.catalogue.filters import Filter
from llmrec.catalogue.semids import SemIDIndex
from llmrec.instructions import load_prompt
from llmrec.models.folder import RecommenderConfig
from llmrec.recommenders import LLMRecommender


@pytest.fixture(scope="module")
def recommender():
    data = tiny_data()
    index = tiny_index(data)
    model, tokenizer = tiny_model(data, index)
    config = RecommenderConfig.of(data, index, prompt=load_prompt("stream").to_dict(), num_beams=5, max_history=4)
    return LLMRecommender(model.eval(), tokenizer, index, data.items, config, batch_size=3)


def test_lists_are_distinct_valid_and_sorted(recommender):
    histories = [[f"item-{i:02d}" for i in range(n)] for n in range(8)]
    for k, items in zip(range(1, 9), recommender.recommend(histories, k=list(range(1, 9)))):
        assert len({item.item_id for item in items}) == len(items) == k
        assert all(item.item_id in recommender.item_ids for item in items)
        assert [item.score for item in items] == sorted((item.score for item in items), reverse=True)
        assert items[0].title == recommender.renderer.catalogue.titles[items[0].item_id]


def test_one_request_does_not_change_another(recommender):
    histories = [["item-01"], ["item-02", "item-03", "item-09"], [], ["item-05"] * 4]
    together = recommender.recommend(histories, k=6)
    for history, items in zip(histories, together):
        alone = recommender.recommend([history], k=6)[0]
        assert [item.item_id for item in alone] == [item.item_id for item in items]


def test_no_history_gives_no_list(recommender):
    assert recommender.recommend([], k=3) == []


def test_more_than_the_catalogue_and_filters(recommender):
    history = [["item-01", "item-02"]]
    everything = recommender.recommend(history, k=100)[0]
    assert len(everything) == 24
    unseen = recommender.recommend(history, k=100, filters=Filter(exclude_seen=True))[0]
    assert [i.item_id for i in unseen] == [i.item_id for i in everything if i.item_id not in history[0]]
    cheap = recommender.recommend(
        history, k=100, filters=Filter(where=[("price", "<", 5), ("brand", "!=", "brand 1")])
    )
    assert {item.item_id for item in cheap[0]} == {"item-00", "item-02", "item-03", "item-04"}
    few = recommender.recommend(history, k=5, filters=Filter(allow=["item-07", "item-08"], deny=["item-08"]))
    assert [item.item_id for item in few[0]] == ["item-07"]
    assert recommender.recommend(history, k=5, filters=Filter(where=[("price", ">", 1000)])) == [[]]


@pytest.mark.parametrize(
    "limits", [{"brand": 1}, {"brand": 2}, {"brand": 3, "categories": 2}, {"price": 1}, {"categories": 1}]
)
def test_at_most_takes_the_best_of_every_value(recommender, limits):
    ranking = recommender.recommend([["item-01"]], k=100)[0]
    rows = {row["item_id"]: row for row in recommender.filter.items.to_pylist()}
    expected, taken = [], {}
    for item in ranking:
        values = [(column, rows[item.item_id][column]) for column in limits]
        if all(taken.get(value, 0) < limits[value[0]] for value in values):
            expected.append(item.item_id)
            for value in values:
                taken[value] = taken.get(value, 0) + 1
    for k in (1, 3, 100):
        found = recommender.recommend([["item-01"]], k=k, filters=Filter(at_most=limits), num_beams=24)[0]
        assert [item.item_id for item in found] == expected[:k]
    nothing = Filter(where=[("price", ">", 1000)], at_most=limits)
    assert recommender.recommend([["item-01"]], k=3, filters=nothing) == [[]]
    # narrow beams widen until there are enough
    narrow = recommender.recommend([["item-01"]], k=3, filters=Filter(at_most=limits), num_beams=1)[0]
    assert len(narrow) == 3


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"histories": [["nothing"]]}, "'nothing' has no Semantic ID"),
        ({"histories": [[]], "k": 0}, "k is 0"),
        ({"histories": [[]], "k": 2.5}, "k is 2.5, it should be a whole number"),
        ({"histories": [[], []], "k": [3, -1]}, "k is -1"),
        ({"histories": [[]], "num_beams": 0}, "num_beams is 0, it should be a whole number of at least 1"),
        ({"histories": [[]], "num_beams": -3}, "num_beams is -3"),
        ({"histories": [[]], "num_beams": 5.0}, "num_beams is 5.0"),
        ({"histories": [[]], "k": [1, 2]}, "2 values of k for 1 histories"),
        ({"histories": [[]], "filters": Filter(where=[("colour", "==", "red")])}, "'colour' is not in the catalogue"),
        ({"histories": [[]], "filters": Filter(where=[("price", "~", 3)])}, "operator '~'"),
        ({"histories": [[]], "filters": Filter(where=[("price", "<", "x")])}, "does not fit the columns' types"),
        ({"histories": [[]], "filters": Filter(at_most={"colour": 1})}, "'colour' is not in the catalogue"),
        ({"histories": [[]], "filters": Filter(at_most={"brand": 0})}, "at_most\\['brand'\\] is 0"),
        ({"histories": [[]], "filters": Filter(deny=["gone"])}, "'gone', which is not in the catalogue"),
    ],
)
def test_bad_requests_are_named(recommender, arguments, message):
    with pytest.raises(ValueError, match=message):
        recommender.recommend(**arguments)


def test_a_folder_with_exchanged_semids_is_refused(tmp_path):
    data = tiny_data()
    index = tiny_index(data)
    folder = write_tiny_base(tmp_path / "base", data, index)
    LLMRecommender.from_pretrained(folder)
    index.shuffled(1).save(folder / "semids.parquet", data.items)
    with pytest.raises(ValueError, match="not the one the model was trained with"):
        LLMRecommender.from_pretrained(folder)
    with pytest.raises(ValueError, match="nowhere does not exist: run what makes it first .*sft.py, baselines: "):
        LLMRecommender.from_pretrained(tmp_path / "nowhere")


def test_several_semids_per_item_count_once():
    data = tiny_data()
    one = tiny_index(data, ragged=False)
    codes = one.codes.copy()
    codes[:, 2] = 1
    both = SemIDIndex(one.item_ids * 2, np.concatenate([one.codes, codes]), one.codebook_sizes)
    model, tokenizer = tiny_model(data, both)
    config = RecommenderConfig.of(data, both, prompt=load_prompt("stream").to_dict(), num_beams=48)
    recommender = LLMRecommender(model.eval(), tokenizer, both, pa.concat_tables([data.items, data.items]), config)
    items = recommender.recommend([["item-03"]], k=24)[0]
    assert len({item.item_id for item in items}) == 24


def test_filters_are_checked_and_counted_without_the_catalogue(recommender):
    history = ["item-03", "item-04"]
    ids = [item.item_id for item in recommender.recommend([history], k=100)[0]]
    rows = {row["item_id"]: row for row in recommender.filter.items.to_pylist()}
    cheap = Filter(where=[("price", "<", 9)], exclude_seen=True, deny=["item-05"])
    expected = [i for i in ids if rows[i]["price"] < 9 and i not in {*history, "item-05"}]
    assert recommender.filter.satisfied(cheap, ids, history) == len(expected) == 6
    assert recommender.filter.satisfied(Filter(allow=ids[:3]), ids[1:6]) == 2
    assert recommender.filter.satisfied(Filter(at_most={"brand": 2}), ids) == 8
    for wrong in (Filter(where=[("colour", "==", "red")]), Filter(where=[("price", "<", "x")]), Filter(deny=["gone"])):
        with pytest.raises(ValueError):
            recommender.filter.check(wrong)
    recommender.filter.check(cheap)
