"""Any task's prompt asked of a recommender: items by the constrained beam, words greedily."""

import pytest
from tiny import tiny_data, tiny_index, tiny_model

from llmrec import Filter, LLMRecommender
from llmrec.instructions import load_prompt
from llmrec.models.folder import RecommenderConfig


@pytest.fixture(scope="module")
def recommender():
    data = tiny_data()
    index = tiny_index(data)
    model, tokenizer = tiny_model(data, index)
    config = RecommenderConfig.of(data, index, prompt=load_prompt("next_item").to_dict(), num_beams=24)
    return LLMRecommender(model.eval(), tokenizer, index, data.items, config)


def test_ask_gives_the_items_after_the_rendered_prompt(recommender):
    row = {"about": "item-03", "wish": "cheaper & other_brand"}
    (found,) = recommender.ask("like_but", [row], k=24)
    assert {item.item_id for item in found} == {*recommender.item_ids} - {"item-03"}  # which it compares with
    text = recommender.renderer.prompt(load_prompt("like_but"), {"history": [], "targets": [], **row})
    ids = recommender.tokenizer(text, add_special_tokens=False)["input_ids"]
    (hits,) = recommender.search([ids], [24])
    expected = [recommender.index.items[hit.item] for hit in hits]
    assert [item.item_id for item in found] == [item for item in expected if item != "item-03"]
    (few,) = recommender.ask("like_but", [row], k=5, filters=Filter(where=[("brand", "==", "brand 1")]))
    assert [item.item_id for item in few] == [i.item_id for i in found if int(i.item_id[-2:]) % 4 == 1][:5]
    (kept,) = recommender.ask("like_but", [row], k=24, filters=[Filter(deny=["item-01"])])
    assert [item.item_id for item in kept] == [item.item_id for item in found if item.item_id != "item-01"]
    assert "item-03" in {item.item_id for item in recommender.ask("title_to_item", [{"about": "item-03"}], k=24)[0]}


def test_the_next_item_task_is_what_recommend_asks(recommender):
    history = ["item-01", "item-02"]
    asked = recommender.ask("next_item", [{"history": history}], k=10, filters=Filter(exclude_seen=True))
    assert asked == recommender.recommend([history], k=10, filters=Filter(exclude_seen=True))
    long = recommender.item_ids[:24]  # cut to max_history
    assert recommender.ask("next_item", [{"history": long}]) == recommender.recommend([long])


def test_a_wish_in_own_words_is_said_as_it_is(recommender):
    prompt, row = load_prompt("like_but"), {"about": "item-03", "history": [], "targets": []}
    assert "I want something like" in recommender.renderer.prompt(prompt, row | {"wish": "for my aunt"})
    assert recommender.renderer.prompt(prompt, row | {"wish": "for my aunt"}).count("for my aunt") == 1
    assert len(recommender.ask("like_but", [row | {"wish": "for my aunt"}], k=3)[0]) == 3


def test_a_search_says_its_query(recommender):
    prompt = load_prompt("history_query_to_item")
    row = {"history": ["item-01"], "query": "a gadget as blue as the sea"}
    text = recommender.renderer.prompt(prompt, {"targets": [], **row})
    assert text.count("a gadget as blue as the sea") == 1 and recommender.index.encode("item-01") in text
    assert len(recommender.ask("history_query_to_item", [row], k=4)[0]) == 4
    with pytest.raises(ValueError, match="needs about: 'about' is missing"):
        recommender.ask("query_to_item", [{}])


def test_generate_text_answers_in_words_and_what_is_missing_is_named(recommender):
    texts = recommender.generate_text("item_to_title", [{"about": "item-03"}, {"about": "item-04"}], max_new_tokens=5)
    assert len(texts) == 2 and texts[:1] == recommender.generate_text("item_to_title", [{"about": "item-03"}], 5)
    assert recommender.ask("next_item", []) == [] == recommender.generate_text("explain", [])
    with pytest.raises(ValueError, match="'like_but' needs about and wish: 'wish' is missing"):
        recommender.ask("like_but", [{"about": "item-03"}])
    with pytest.raises(ValueError, match="'item_to_title' is answered in words: use generate_text"):
        recommender.ask("item_to_title", [{"about": "item-03"}])
    with pytest.raises(ValueError, match="'think_next_item' thinks before it answers"):
        recommender.ask("think_next_item", [{"history": ["item-03"]}])


def two_kinds() -> LLMRecommender:
    data = tiny_data()
    index = tiny_index(data).with_behaviours(["view", "buy"])
    model, tokenizer = tiny_model(data, index)
    config = RecommenderConfig.of(data, index, prompt=load_prompt("next_item").to_dict(), num_beams=24)
    return LLMRecommender(model.eval(), tokenizer, index, data.items, config)


def test_a_model_of_several_kinds_of_interaction_wants_them_beside_the_history():
    recommender = two_kinds()
    index = recommender.index
    history, kinds = ["item-01", "item-02"], ["view", "buy"]
    row = {"history": history, "query": "something blue"}
    texts = [
        recommender.renderer.prompt(load_prompt("history_query_to_item"), {"targets": [], "behaviours": of, **row})
        for of in (kinds, kinds[::-1])
    ]
    assert all(index.behaviour_token(kind) + index.encode("item-01") in text for kind, text in zip(kinds, texts))
    with pytest.raises(ValueError, match=r"\(view, buy\): a row with a history needs `behaviours`"):
        recommender.ask("history_query_to_item", [row | {"behaviours": ["buy"]}])
    ask = [row | {"behaviours": kinds, "behaviour": kind} for kind in ("view", "buy")]
    view, buy = recommender.ask("history_query_to_item", ask)
    assert view != buy == recommender.ask("history_query_to_item", [row | {"behaviours": kinds}])[0]
    assert recommender.ask("query_to_item", [{"query": "something blue"}], k=2)


def test_ask_ends_with_the_wanted_kind_exactly_where_training_writes_it():
    recommender, kinds = two_kinds(), ["view", "buy"]
    history = ["item-01", "item-02"]
    asked = recommender.ask("next_item", [{"history": history, "behaviours": kinds, "behaviour": "view"}])
    assert asked == recommender.recommend([list(zip(history, kinds))], behaviour="view")
    assert recommender.ask("next_item", [{}]) == recommender.recommend([[]])
    (text,) = recommender.task_prompts(
        "item_for_behaviour", [{"history": history, "behaviours": kinds, "wish": "view"}]
    )
    assert text.endswith("<|view|>")
    row = {"history": history, "behaviours": kinds, "about": "item-03", "wish": "cheaper"}
    ends = [recommender.task_prompts(task, [row])[0][-7:] == "<|buy|>" for task in ("conversation", "titles_to_item")]
    assert ends == [False, True]  # another item like this has no kind of interaction
