"""The demo's client and questions against the real front on a port."""

import threading

import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from http_fixtures import listening, listening_app, tiny_folder
from server_process import free_port
from starlette.responses import PlainTextResponse
from tiny import tiny_data

from llmrec.catalogue.filters import Filter
from llmrec.serving.demo.client import Client, ServerError
from llmrec.serving.demo.headers import SecurityHeaders
from llmrec.serving.demo.questions import QUESTIONS, body, typed
from llmrec.serving.demo.users import LISTED, Users

NEXT, LIKE, SEARCH = "What comes next?", "Like the last item, but …", "Search in words"
HISTORY = [{"item_id": "item-03", "title": ""}, {"item_id": "item-04", "title": ""}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("demo"), tiny_data(num_items=40), prompt="next_item")


@pytest.fixture(scope="module")
def served(folder, tmp_path_factory):
    with listening(folder, tmp_path_factory.mktemp("log") / "log") as server_and_url:
        yield server_and_url


def test_lookups(served):
    server, url = served
    client = Client(url + "/")
    assert client.models() == ["tiny"]
    catalogue = client.catalogue()
    assert (catalogue["version"], catalogue["items"], catalogue["columns"]["price"]) == (0, 40, "double")
    assert {item["item_id"] for item in client.search("green gadget")} < set(
        server.service.current.version.index.items
    )
    first, second = client.items(["item-07", "item-00"])
    assert (first["item_id"], first["title"]) == ("item-07", "green gadget number 7")
    assert second["semid"] == server.service.current.name("item-00")["semid"]
    assert not client.can_explain()


def test_recommendations_are_the_recommenders(served):
    server, url = served
    where = [["brand", "in", ["brand 1", "brand 2"]], ["price", "<", 30.0]]
    request = body(HISTORY, NEXT, "", 10, 30, True, where, {"brand": 4})
    answer = Client(url).recommend(request)
    made = server.service.current.recommender.recommend(
        [["item-03", "item-04"]], 50, Filter(True, where=where, at_most={"brand": 4}), num_beams=30
    )[0]
    assert [(item["item_id"], item["title"]) for item in answer["items"]] == [(hit.item_id, hit.title) for hit in made]
    assert [item["score"] for item in answer["items"]] == pytest.approx([hit.score for hit in made], abs=1e-4)
    assert len(made) == 8 and answer["message"]


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_question_is_understood_by_the_server(served, question):
    _, url = served
    answer = Client(url).recommend(body(HISTORY, question, "cheaper", 3))
    # All there are, for the tree asks for 50; but the one that a wish compares with
    assert len({item["item_id"] for item in answer["items"]}) == 40 - (question == LIKE)


def test_a_question_reaches_the_server_as_typed(served):
    server, url = served
    answer = Client(url).recommend(body(HISTORY, LIKE, " cheaper & red ", 5) | {"return_prompt": True})
    made = server.service.current.recommender.ask("like_but", [{"about": "item-04", "wish": "cheaper & red"}], 50)[0]
    assert [item["item_id"] for item in answer["items"]] == [hit.item_id for hit in made]
    assert "red" in answer["prompt"]


def test_why_is_asked_as_in_training(served):
    server, url = served
    recommender = server.service.current.recommender
    messages = Client(url).why(["item-03", "item-04"], "item-09")
    text = recommender.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == recommender.task_prompts("explain", [{"history": ["item-03", "item-04"], "about": "item-09"}])[0]


def test_a_server_without_words(served):
    with pytest.raises(ServerError) as error:
        Client(served[1]).explain(["item-03"], "item-09")
    assert error.value.status == 404


def test_a_key(folder, tmp_path):
    with listening(folder, tmp_path / "log", api_key="secret") as (_, url):
        client = Client(url)
        for wrong in (client, client.with_key("wrong"), client.with_key(" ")):
            with pytest.raises(ServerError, match="API key") as error:
                wrong.catalogue()
            assert error.value.status == 401
        assert client.with_key(" secret ").catalogue()["items"] == 40
        with pytest.raises(ServerError, match="API key"):
            client.with_key("schlüssel\n").catalogue()


def test_refusals_are_told_in_words(served):
    _, url = served
    client = Client(url)
    with pytest.raises(ServerError, match="nobody") as error:
        client.items(["item-01", "nobody"])
    assert error.value.status == 404
    with pytest.raises(ServerError, match="The server says: .*colour") as error:
        client.recommend(body(HISTORY, NEXT, "", 5, where=[["colour", "==", "red"]]))
    assert error.value.status == 400
    with pytest.raises(ServerError) as error:
        client.items(["../catalogue", "a/b?c#d"])
    assert error.value.status == 404


def test_a_full_queue_says_when_to_come_back(folder, tmp_path):
    entered, released = threading.Event(), threading.Event()

    def hold():
        entered.set()
        assert released.wait(60)

    with listening(folder, tmp_path / "log", max_concurrent=1, max_queue=0) as (server, url):
        server.hold = hold
        client, request = Client(url), body(HISTORY, NEXT, "", 5)
        first = threading.Thread(target=client.recommend, args=[request])
        first.start()
        try:
            assert entered.wait(60)
            with pytest.raises(ServerError, match=r"more requests than .* Try again in \d+ seconds") as error:
                client.recommend(request)
            assert error.value.status == 429
        finally:
            released.set()
            first.join()


def test_no_server():
    with pytest.raises(ServerError, match="Nothing answers at .*llmrec.serving") as error:
        Client(f"http://127.0.0.1:{free_port()}").catalogue()
    assert error.value.status == 0


def test_a_server_that_is_none_of_ours():
    async def app(scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"<html>hello"})

    with listening_app(app) as url, pytest.raises(ServerError, match="not llmrec's API"):
        Client(url).catalogue()


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "file:///etc/passwd", "http://"])
def test_a_url_that_is_none(url):
    with pytest.raises(ValueError, match="http://127.0.0.1:8000"):
        Client(url)


@pytest.mark.parametrize(
    "text, operator, kind, value",
    [
        ("3", "<", "int64", 3),
        ("3", "<", "double", 3.0),
        ("Yes", "==", "bool", True),
        ("3", "==", "string", "3"),
        ("1, 2", "in", "int32", [1, 2]),
        ("a b,c", "not in", "large_string", ["a b", "c"]),
    ],
)
def test_values_of_conditions(text, operator, kind, value):
    made = typed(text, operator, kind)
    assert made == value and type(made) is type(value)


@pytest.mark.parametrize("text, kind", [("cheap", "double"), ("1.5", "int64"), ("maybe", "bool"), ("nan", "double")])
def test_values_that_do_not_fit(text, kind):
    with pytest.raises(ValueError, match=f"“{text}” does not fit a column of type {kind}"):
        typed(text, "==", kind)


def test_what_must_be_filled_in():
    with pytest.raises(ValueError, match="Add an item"):
        body([], NEXT, "", 5)
    with pytest.raises(ValueError, match="“Query”"):
        body([], SEARCH, "  ", 5)
    assert body([], SEARCH, " tape ", 5)["query"] == "tape"


def test_kinds_of_interaction_are_sent_where_all_are_known():
    known = [item | {"behaviour": "buy"} for item in HISTORY]
    assert body(known, NEXT, "", 5)["behaviours"] == ["buy", "buy"]
    assert "behaviours" not in body([*known, HISTORY[0]], NEXT, "", 5)


def test_users_of_a_folder(tmp_path):
    data = tiny_data(num_users=1200)
    pq.write_table(data.test, tmp_path / "test.parquet")
    with pytest.raises(ValueError, match="valid.parquet"):
        Users(tmp_path)
    pq.write_table(data.valid.slice(0, 3), tmp_path / "valid.parquet")
    users = Users(tmp_path)
    assert LISTED * 0.5 < len(users.names) <= LISTED + 3
    assert users.names[0] == ("user-0 · 7 items · test", 0) and users.names[-1][0] == "user-2 · 6 items · valid"
    assert users.rows[users.any_row()]["target"].startswith("item-")
    pq.write_table(data.test.drop_columns("history"), tmp_path / "test.parquet")
    with pytest.raises(ValueError, match="'history'"):
        Users(tmp_path)


def test_no_other_site_may_frame_the_page():
    async def app(scope, receive, send):
        if scope["type"] == "http":
            await PlainTextResponse("the page")(scope, receive, send)

    answer = TestClient(SecurityHeaders(app)).get("/")
    assert answer.text == "the page" and answer.headers["x-frame-options"] == "DENY"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
