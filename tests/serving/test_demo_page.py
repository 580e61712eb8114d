"""The page's actions without a browser, against the real front; `test_demo_browser.py` has the browser."""

import re
import runpy
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest
from http_fixtures import listening, tiny_folder
from server_process import free_port
from tiny import tiny_data

gr = pytest.importorskip("gradio")

from llmrec.serving.demo import address  # noqa: E402
from llmrec.serving.demo.actions import FIRST, NO_TREE, NO_WORDS, Actions  # noqa: E402
from llmrec.serving.demo.client import Client  # noqa: E402
from llmrec.serving.demo.page import look, page  # noqa: E402
from llmrec.serving.demo.users import Users  # noqa: E402

DEMO = Path(__file__).parents[2] / "scripts" / "demo.py"
FORM = ("What comes next?", "", 5, 0, False, [], 2, "", "", [False])


@pytest.fixture(scope="module")
def acts(tmp_path_factory):
    folder, data = tmp_path_factory.mktemp("page"), tiny_data()
    for name in ("test", "valid"):
        pq.write_table(getattr(data, name), folder / f"{name}.parquet")
    with listening(tiny_folder(folder, data, prompt="next_item"), folder / "log", api_key="key") as (_, url):
        yield Actions([Client(url, "key")], Users(folder))


def test_connecting_fills_the_page(acts):
    header, name, listed, why, columns, explains, column, group = acts.connect("")
    assert "24 items" in header and "catalogue version 0" in header and "online" in header
    assert (name, listed, why, explains) == ("<h2>Recommendations</h2>", FIRST, NO_WORDS, [False])
    assert columns["price"] == "double" and column["value"] == "brand" and "brand" in column["choices"]
    assert group["choices"][0] == ("no limit", "")


def test_a_wrong_key_is_told(acts):
    header, _, listed, *_ = acts.connect("wrong")
    assert "not connected" in header and "API key" in listed and 'role="alert"' in listed
    assert "API key" in acts.search("gadget", "wrong")
    assert "API key" in acts.recommend([{"item_id": "item-01"}], None, *FORM[:-2], "wrong", [False])[0]


def test_the_page_sends_its_headers(acts):
    blocks = page(acts.clients)
    try:
        url = blocks.launch(prevent_thread_lock=True, quiet=True, server_port=free_port(), **look())[1]
        assert httpx.get(url).headers["x-frame-options"] == "DENY"
    finally:
        blocks.close()


def test_no_server_is_told():
    url = f"http://127.0.0.1:{free_port()}"
    header, _, listed, *_ = Actions([Client(url)], None).connect("")
    assert url in header and "not connected" in header and "Nothing answers" in listed


def test_a_user_is_shown_with_what_they_chose_next(acts):
    row = acts.users.rows[0]
    history, listed_history, target, listed, tree, why, titles = acts.pick(0, *FORM)
    assert [item["item_id"] for item in history] == row["history"] and target["item_id"] == row["target"]
    assert listed_history.count("<li>") == len(history)
    assert "★ Chosen next" in listed and target["title"] in listed and len(titles) == 24
    assert listed.count('class="what"') == 5 and tree.count("★") >= 1 and why == NO_WORDS


def test_conditions_reach_the_list(acts):
    where, chips, value = acts.condition([], "brand", "==", "brand 1", {"brand": "string"})
    assert (where, value) == ([["brand", "==", "brand 1"]], "") and "brand 1" in chips
    where, chips, value = acts.condition(where, "price", "<", "cheap", {"price": "double"})
    assert len(where) == 1 and "does not fit" in chips and value == "cheap"
    listed, tree, _, titles = acts.recommend(
        [{"item_id": "item-01"}], None, *FORM[:2], 10, 0, True, where, 2, "", "", [False]
    )
    assert len(titles) == 5 and all(int(item[-2:]) % 4 == 1 for item in titles) and "warning" in listed
    listed, *_ = acts.recommend(
        [{"item_id": "item-01"}], None, *FORM[:5], [["brand", "==", "none"]], 2, "", "", [False]
    )
    assert "0 items" in listed


def test_what_is_missing_is_told_before_the_server_is_asked(acts):
    assert "Add an item" in acts.recommend([], None, *FORM)[0]
    listed, tree, *_ = acts.recommend([{"item_id": "item-01"}], None, "Search in words", *FORM[1:])
    assert "“Query”" in listed and tree == NO_TREE


def test_a_refusal_is_told_kindly(acts):
    listed, tree, *_ = acts.recommend([{"item_id": "item-99"}], None, *FORM)
    assert "item-99" in listed and "warning" in listed and tree == NO_TREE


def test_nothing_of_the_page_comes_from_elsewhere(acts):
    blocks = page(acts.clients, acts.users)
    assert not re.search(r"https?://", look()["css"])
    assert "http" not in str(look()["theme"]._font_css)
    assert len(blocks.fns) > 10


def test_two_models_side_by_side(acts):
    nobody = Client(f"http://127.0.0.1:{free_port()}")
    two = Actions([acts.clients[0], acts.clients[0]], None)
    header, first, _, _, second, *_, explains, _, _ = two.connect("")
    assert first == second == "<h2>tiny</h2>" and "tiny · tiny" in header and explains == [False, False]
    history = [{"item_id": "item-01"}, {"item_id": "item-02"}]
    left, tree, _, right, other_tree, _, titles = two.recommend(history, None, *FORM[:-1], explains)
    assert "5 in both" in left and [f"#{rank} beside" in right for rank in range(1, 6)] == [True] * 5
    assert left.count('class="what"') == right.count('class="what"') == 5 and tree and other_tree
    left, _, _, right, tree, *_ = Actions([acts.clients[0], nobody], None).recommend(
        history, None, *FORM[:-1], explains
    )
    assert "in both" not in left and "Nothing answers" in right and tree == NO_TREE


COLUMNS = {"price": "double", "brand": "string"}
FORMS = [
    ([], None, *FORM[:2], 10, *FORM[3:-2]),
    ([{"item_id": "a b&c"}, {"item_id": "é"}], {"item_id": "x"}, "What comes next?", "", 5, 100, True, [], 2, ""),
    (
        [{"item_id": "1", "behaviour": "view"}],
        None,
        "Like the last item, but …",
        "cheaper & other_brand",
        10,
        0,
        False,
        [["price", "<", 3.5], ["brand", "in", ["3M", "#?"]]],
        3,
        "brand",
    ),
]


@pytest.mark.parametrize("form", FORMS, ids=["nothing", "a history", "all"])
def test_an_address_keeps_what_was_asked(form):
    history, target, question, text, k, beams, seen, where, most, group = form
    query = address.write(*form)
    asked = address.read(query, COLUMNS)
    assert query == "" if form is FORMS[0] else query.startswith("?item=")
    assert [*asked.item] == [item["item_id"] for item in history] and asked.next == (target or {}).get("item_id", "")
    assert [*asked.kind] == [item["behaviour"] for item in history if "behaviour" in item]
    assert (asked.question, asked.text, asked.k, asked.beams, bool(asked.seen)) == (question, text, k, beams, seen)
    assert ([*asked.where], asked.most, asked.each) == (where, most, group)


@pytest.mark.parametrize(
    "part", ["k=999", "k=x", "ask=nothing", "beams=7", "each=colour", "where=[1]", 'where=["price","~",1]', "kind=buy"]
)
def test_an_address_that_cannot_be_shown_is_told(acts, part):
    with pytest.raises(ValueError, match=re.escape(part.split("=")[0])):
        address.read(f"?{part}", COLUMNS)
    history, *_, listed, tree, why, titles = acts.restore(f"?{part}", COLUMNS, [False], "")
    assert history == [] and "The address of this page" in listed and 'class="notice warning"' in listed


def test_an_address_is_asked_again(acts):
    form = [{"item_id": "item-01"}], {"item_id": "item-02"}, *FORM[:2], 7, 0, True, [["brand", "!=", "x"]], 2, "brand"
    history, shown, target, *_, listed, tree, why, titles = acts.restore(address.write(*form), COLUMNS, [False], "")
    assert [item["item_id"] for item in history] == ["item-01"] and target["item_id"] == "item-02"
    assert "Chosen next" in listed and listed.count('class="what"') == 7 and titles
    assert [part["__type__"] for part in acts.restore("", COLUMNS, [False], "")[-4:]] == ["update"] * 4  # as it was
    unknown = acts.restore("?item=nobody", COLUMNS, [False], "")
    assert unknown[0] == [] and "nobody" in unknown[-4]


@pytest.mark.parametrize("arguments", [["--url", "ftp://host"], ["--data", "/nowhere"]])
def test_bad_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        runpy.run_path(str(DEMO))["main"](arguments)
    assert error.value.code == 2 and arguments[1] in capsys.readouterr().err


def test_a_history_grows_and_shrinks(acts):
    def clicked(**data):
        return gr.EventData(None, data)

    history, shown, target = acts.add([], clicked(item="item-01", title="one <b>"))
    assert history == [{"item_id": "item-01", "title": "one <b>"}] and "one &lt;b&gt;" in shown and target is None
    history, *_ = acts.add(history, clicked(item="item-02", title=""))
    history, shown, _ = acts.remove(history, clicked(place="0"))
    assert [item["item_id"] for item in history] == ["item-02"] and "item-02" in shown
    assert acts.clear()[0] == []
    assert acts.drop([["a", "<", 1], ["b", "<", 2]], clicked(place="1"))[0] == [["a", "<", 1]]
    assert "warning" in acts.why(0)(history, {}, "", clicked(item="item-03"))  # no mode generate, told in words
