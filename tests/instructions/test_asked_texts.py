"""Queries, intentions and wishes: they never name their item, and what answers them satisfies them."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from marked_store import marked_setting

from llmrec.catalogue.semids import SemIDIndex
from llmrec.instructions import TASKS, Catalogue, Texts, compose, load_prompt, task_rows
from llmrec.instructions.item_words import says
from llmrec.instructions.texts import leaks
from llmrec.instructions.wishes import Wishes, conditions_of, phrases, say


@pytest.fixture(scope="module")
def setting():
    return marked_setting()


def test_no_query_or_intention_names_its_item(setting):
    data, index, _, renderer = setting
    catalogue, different = renderer.catalogue, 0
    for item in index.items:
        for write in (compose.query, compose.intention):
            texts = {write(catalogue, {"about": item, "variation": variation}) for variation in range(30)}
            different += len(texts) > 1
            for text in texts:
                assert not says(text, catalogue.titles[item]) and index.encode(item) not in text
                assert write(catalogue, {"about": item}) in texts
    assert different > len(index.items)


def test_a_title_of_one_word_is_no_query():
    items = pa.table({"item_id": ["x", "y"], "title": ["Lamp", "Lamp Red"], "brand": ["Lamp", ""]})
    catalogue = Catalogue(SemIDIndex(["x", "y"], np.array([[0], [1]]), [2]), items)
    assert {compose.query(catalogue, {"about": "x", "variation": v}) for v in range(9)} == {"something new"}
    assert {compose.query(catalogue, {"about": "y", "variation": v}) for v in range(9)} == {"lamp"}
    assert leaks("query", "a red LAMP <a_0>", "<a_0>", "") and leaks("query", "my  lamp  red", "<a_1>", "Lamp Red")
    assert not leaks("query", "lampshade", "<a_0>", "Lamp") and not leaks("preference", "Lamp", "<a_0>", "Lamp")


def test_texts_made_before_are_used_and_may_not_give_the_item_away(setting, tmp_path):
    data, index, _, _ = setting
    row = task_rows("history_query_to_item", data, 6, limit=1)[0]
    item, user = row["about"], row["user_id"]
    table = {
        "kind": ["query", "query", "intention", "rationale", "preference"],
        "user_id": ["", "", user, user, "somebody else"],
        "item_id": [item, item, item, item, row["history"][-1]],
        "text": ["what everybody wants", "what nobody wants", "I need it", "It had to be", "Gold"],
    }
    Texts(pa.table(table)).save(tmp_path)
    catalogue = Catalogue(index, data.items, texts=Texts.load(tmp_path))
    queries = {compose.query(catalogue, row | {"variation": v}) for v in range(20)}
    assert queries == {"what everybody wants", "what nobody wants"}
    assert compose.intention(catalogue, row) == "I need it"
    assert compose.intention(catalogue, row | {"user_id": "another"}) != "I need it"
    assert compose.preference(catalogue, row) != "Gold"
    assert compose.rationale(catalogue, row) == "It had to be"
    for leak in (catalogue.titles[item].upper() + ", please", f"give me {index.encode(item)}"):
        with pytest.raises(ValueError, match=f"query .* gives item '{item}' away"):
            Catalogue(index, data.items, texts=Texts(pa.table(table | {"text": [leak, *table["text"][1:]]})))


@pytest.mark.parametrize("name", [name for name in sorted(TASKS) if "wish" in TASKS[name].given])
def test_steering_targets_satisfy_their_wish_and_held_out_ones_do_not_train(setting, name):
    data, _, _, _ = setting
    if "behaviour" in name:
        return
    wishes, rows = Wishes(data.items), task_rows(name, data, 6)
    kinds = Counter()
    for row in rows:
        satisfying = {wishes.ids[place] for place in wishes.satisfying(row["wish"], row.get("about"))}
        assert set(row["targets"]) <= satisfying and len(set(row["targets"])) == len(row["targets"]) > 0
        assert row.get("about") not in row["targets"]
        assert not wishes.held_out(row["wish"], row.get("about"))
        kinds[row["wish"].partition("=")[0]] += 1
    assert len(kinds) >= (1 if name == "domain_next_item" else 2)


def test_held_out_wishes_are_there_for_evaluation(setting):
    data, _, _, _ = setting
    wishes = Wishes(data.items)
    combination = lambda about, wish: (wishes.category[wishes.place[about]], wish.partition("=")[0])  # noqa: E731
    every = [(item, wish, rows) for item in wishes.ids for wish, rows in wishes.relative_to(item)]
    held = [(item, wish) for item, wish, _ in every if wishes.held_out(wish, item)]
    assert held and all(set(rows) <= set(wishes.satisfying(wish, item)) for item, wish, rows in every)
    trained = {combination(row["about"], row["wish"]) for row in task_rows("like_but", data, 6)}
    assert trained and not {combination(*each) for each in held} & trained


def test_values_of_a_wish_may_hold_an_and():
    assert conditions_of("category=Health & Care & below=20") == ["category=Health & Care", "below=20"]
    assert conditions_of("cheaper & other_brand") == ["cheaper", "other_brand"]
    assert say("domain=outdoors & camping") == "from the shop outdoors & camping"
    columns = {"title": "A", "categories": "All > Health & Care", "brand": "Dent & Co", "price": 11.0}
    wishes = Wishes(pa.Table.from_pylist([{"item_id": "x", **columns}]))
    for wish in wishes.describing("x"):  # a round price too: it is below what the wish says
        assert wishes.satisfying(wish).tolist() == [0]
    assert len(wishes.describing("x")) == 4


def test_wishes_are_said_in_other_words_when_unseen(setting):
    for kind, words in phrases().items():
        assert len(set(words["templates"])) >= 2 and len(set(words["unseen"])) >= 2, kind
        assert not set(words["templates"]) & set(words["unseen"])
    data, _, _, renderer = setting
    prompt, row = load_prompt("like_but"), task_rows("like_but", data, 6, limit=1)[0]
    trained = {renderer.prompt(prompt, row | {"variation": v}) for v in range(20)}
    assert renderer.prompt(prompt, row | {"variation": 3, "unseen": True}) not in trained


def test_every_wording_meets_every_phrase_of_a_wish(setting):
    """The template of a row and the phrase of its wish are drawn apart."""
    prompt = load_prompt("like_but")
    row = next(row for row in task_rows("like_but", setting[0], 6) if row["wish"] == "cheaper & other_brand")
    options = [phrases()[kind]["templates"] for kind in ("cheaper", "other_brand")]
    meetings: list[set] = [set(), set(), set()]
    for variation in range(4000):
        template = variation % len(prompt.templates)
        text = setting[3].prompt(prompt, row | {"variation": variation}, template)
        # Some phrases hold others: the longest one is what was said.
        one, other = (max((words for words in said if words in text), key=len) for said in options)
        for met, pair in zip(meetings, ((template, one), (template, other), (one, other))):
            met.add(pair)
    counts = len(prompt.templates), *map(len, options)
    assert [len(met) for met in meetings] == [counts[0] * counts[1], counts[0] * counts[2], counts[1] * counts[2]]
