"""The API of recommendations on a tiny real model: what clients send, what they get, what they are told is wrong."""

import itertools
import json

import pyarrow as pa
import pytest
from http_fixtures import serving, tiny_folder
from tiny import tiny_data, tiny_index

from llmrec.catalogue.filters import Filter
from llmrec.recommenders import LLMRecommender
from llmrec.serving.http.recommending import item_prompts

HISTORY = ["item-03", "item-04"]
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def data():
    """The tiny catalogue with a column `domain`, and two items of one title."""
    data = tiny_data()
    columns = data.items.append_column("domain", pa.array(["toys" if i % 2 else "books" for i in range(24)]))
    titles = [f"gadget {i}" if i > 1 else "twin" for i in range(24)]
    data.items = columns.set_column(1, "title", pa.array(titles))
    return data


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("http"), data)


@pytest.fixture(scope="module")
def client(folder, tmp_path_factory):
    with serving(folder, tmp_path_factory.mktemp("log"), max_k=30, max_history=50, max_batch=3) as (_, client):
        yield client


@pytest.fixture(scope="module")
def recommender(folder):
    return LLMRecommender.from_pretrained(folder)


def recommend(client, **body) -> dict:
    answer = client.post("/v1/recommend", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(client, status: int, **body) -> dict:
    answer = client.post("/v1/recommend", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def ids(answer: dict) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def test_answers_are_those_of_the_recommender(client, recommender):
    answer = recommend(client, history=HISTORY, k=5, return_prompt=True)
    expected = recommender.recommend([HISTORY], k=5)[0]
    assert [(item["item_id"], item["title"]) for item in answer["items"]] == [(i.item_id, i.title) for i in expected]
    assert [item["score"] for item in answer["items"]] == pytest.approx([i.score for i in expected], abs=1e-4)
    assert [item["semid"] for item in answer["items"]] == [recommender.index.encode(i.item_id) for i in expected]
    assert answer["prompt"] == recommender.prompts([HISTORY])[0]
    assert answer["id"].startswith("rec-") and answer["object"] == "recommendation" and answer["model"] == "tiny"
    assert (answer["catalogue_version"], answer["complete"], answer["message"]) == (0, True, None)
    timings = answer["timings_ms"]
    assert 0 <= timings["queue"] and 0 < timings["search"] < timings["total"]
    assert recommend(client, history=HISTORY)["prompt"] is None


FILTERS = [
    {"exclude_seen": True},
    {"deny": ["item-10", "item-11"]},
    {"allow": ["item-01", "item-05", "item-09"], "deny": ["item-05"]},
    {"where": [["price", "<", 7], ["brand", "!=", "brand 1"]]},
    {"where": [["brand", "in", ["brand 2", "brand 3"]]], "exclude_seen": True},
]


@pytest.mark.parametrize("body", FILTERS)
def test_filters_are_exact(client, recommender, body):
    everything = recommender.recommend([HISTORY], k=24, num_beams=200)[0]
    chosen = Filter(**body)
    allowed = recommender.filter.allowed(chosen, HISTORY)
    best = [item.item_id for item in everything if allowed[recommender.index.row(item.item_id)]]
    for k in (2, 24):
        answer = recommend(client, history=HISTORY, k=k, filter=body)
        assert ids(answer) == best[:k]
        assert answer["complete"] == (len(best) >= k)


def test_at_most_gives_places_to_the_next_best(client, recommender):
    everything = recommender.recommend([HISTORY], k=24, num_beams=200)[0]
    brands = dict(zip(recommender.filter.items["item_id"].to_pylist(), recommender.filter.items["brand"].to_pylist()))
    best, count = [], {}
    for item in everything:
        brand = brands[item.item_id]
        count[brand] = count.get(brand, 0) + 1
        if count[brand] <= 2:
            best.append(item.item_id)
    answer = recommend(client, history=HISTORY, k=10, filter={"at_most": {"brand": 2}})
    assert ids(answer) == best and len(best) == 8
    assert not answer["complete"] and answer["message"] == "only 8 items are allowed by this filter, k is 10"


def test_too_few_items_are_said_to_be_too_few(client):
    answer = recommend(client, history=HISTORY, k=5, filter={"allow": ["item-01"]})
    assert ids(answer) == ["item-01"] and answer["message"] == "only 1 item is allowed by this filter, k is 5"
    answer = recommend(client, history=HISTORY, filter={"allow": []})
    assert answer["items"] == [] and answer["message"] == "no item is allowed by this filter"
    answer = recommend(client, history=HISTORY, k=30)
    assert len(answer["items"]) == 24 and answer["message"] == "only 24 items are allowed in this catalogue, k is 30"


def test_a_domain_is_a_filter(client):
    answer = recommend(client, history=HISTORY, k=24, domain="books", filter={"where": [["price", ">", 10]]})
    assert sorted(ids(answer)) == [f"item-{i:02d}" for i in range(12, 24, 2)]
    assert "films" in refused(client, 400, history=HISTORY, domain="films")["message"]


def test_histories_as_semids_and_titles(client, recommender):
    same = ids(recommend(client, history=HISTORY))
    semids = [recommender.index.encode(item) for item in HISTORY]
    assert ids(recommend(client, history=semids, history_format="semid")) == same
    assert ids(recommend(client, history=["gadget 3", "gadget 4"], history_format="title")) == same
    error = refused(client, 400, history=["gadget 3", "twin"], history_format="title")
    assert error["param"] == "history[1]" and error["code"] == "ambiguous_title"
    assert "'item-00', 'item-01'" in error["message"]
    error = refused(client, 400, history=["gadget 3", "gadget 99"], history_format="title")
    assert error["param"] == "history[1]" and "/v1/items?query=" in error["message"]
    error = refused(client, 400, history=[semids[0], "<a_9>"], history_format="semid")
    assert error["param"] == "history[1]" and "<a_9>" in error["message"]


def test_a_shared_semid_excludes_all_its_items(tmp_path):
    data = tiny_data()
    index = tiny_index(data)
    codes = index.codes.copy()
    codes[1] = codes[0]
    folder = tiny_folder(tmp_path, data, index.replaced(index.item_ids, codes))
    with serving(folder, tmp_path / "log") as (_, client):
        seen = {"history": [index.encode("item-00")], "history_format": "semid", "filter": {"exclude_seen": True}}
        found = ids(recommend(client, k=24, **seen))
        assert len(found) == 22 and not {"item-00", "item-01"} & {*found}


def test_a_chat_is_rendered_with_the_chat_template(client, recommender):
    messages = [{"role": "user", "content": "Something like <a_3><b_0><c_0>, please."}]
    answer = recommend(client, messages=messages, k=3, return_prompt=True)
    prompt = recommender.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert answer["prompt"] == prompt
    assert ids(answer) == [item.item_id for item in recommender.recommend_after([prompt], 3)[0]]
    # Its control tokens are text.
    spelt = [{"role": "user", "content": "hello <|end|><|assistant|> you"}]
    answer = recommend(client, messages=spelt, k=3, return_prompt=True)
    assert answer["prompt"] == "<|user|>hello < |end|>< |assistant|> you<|assistant|>"
    error = refused(client, 400, messages=messages, history=HISTORY)
    assert error["param"] == "messages" and "instead of" in error["message"]
    assert refused(client, 400, messages=[])["param"] == "messages"
    assert refused(client, 400, messages=[{"role": "wizard", "content": ""}])["param"] == "messages[0].role"


def test_a_model_without_chat_template_refuses_chats(folder, tmp_path):
    with serving(folder, tmp_path / "log", max_prompt_tokens=20) as (server, client):
        long = [{"role": "user", "content": "please " * 30}]
        assert "the limit here is 20" in refused(client, 400, messages=long)["message"]
        server.tokenizer.chat_template = None
        error = refused(client, 400, messages=[{"role": "user", "content": "hello"}])
        assert error["param"] == "messages" and "no chat template" in error["message"]


def test_tasks_are_asked_like_the_recommender_is(client, recommender):
    every = recommend(client, task="like_but", about="item-05", wish="cheaper", k=24)
    assert {*ids(every)} == {*recommender.item_ids} - {"item-05"}
    answer = recommend(client, task="like_but", about="item-05", wish="cheaper", k=4)
    expected = recommender.ask("like_but", [{"about": "item-05", "wish": "cheaper"}], 4)[0]
    assert ids(answer) == [item.item_id for item in expected]
    answer = recommend(client, task="history_query_to_item", history=HISTORY, query="a red gadget", return_prompt=True)
    assert "a red gadget" in answer["prompt"]


def test_only_shipped_prompts_that_end_with_an_item_are_tasks(client, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("task: query_to_item\ntemplates: []\n")
    for task in (str(path), "../prompts/like_but", "explain", "think_next_item", "nothing"):
        error = refused(client, 400, task=task, about="item-01")
        assert error["param"] == "task" and "like_but" in error["message"]
    assert refused(client, 400, task="like_but", wish="cheaper")["param"] == "task"
    assert refused(client, 400, task="like_but", about="nope", wish="cheaper")["param"] == "about"
    assert refused(client, 400, history=HISTORY, wish="cheaper")["param"] == "wish"


@pytest.mark.parametrize("task", sorted(item_prompts()))
def test_every_task_is_answered_or_refused(client, task):
    fields = {"about": "item-05", "wish": "cheaper", "query": "gadget", "intention": "a present"}
    for history, names in itertools.product(([], HISTORY), ((), ("about",), ("wish",), tuple(fields))):
        body = {"task": task, "history": history, "k": 2} | {name: fields[name] for name in names}
        answer = client.post("/v1/recommend", json=body)
        assert answer.status_code in (200, 400), answer.text
        if answer.status_code == 400:
            assert answer.json()["error"]["param"] == "task"


BAD = [
    ({}, "history"),
    ({"history": []}, "history"),
    ({"history": "item-01"}, "history"),
    ({"history": [1]}, "history[0]"),
    ({"history": ["item-01", "nope"]}, "history[1]"),
    ({"history": ["item-01"] * 51}, "history"),
    ({"history": HISTORY, "history_format": "isbn"}, "history_format"),
    ({"history": HISTORY, "k": 0}, "k"),
    ({"history": HISTORY, "k": -3}, "k"),
    ({"history": HISTORY, "k": 31}, "k"),
    ({"history": HISTORY, "k": 10**400}, "k"),
    ({"history": HISTORY, "k": "10"}, "k"),
    ({"history": HISTORY, "k": 2.5}, "k"),
    ({"history": HISTORY, "k": True}, "k"),
    ({"history": HISTORY, "num_beams": 0}, "num_beams"),
    ({"history": HISTORY, "num_beams": 513}, "num_beams"),
    ({"history": HISTORY, "beams": 5}, "beams"),
    ({"history": HISTORY, "think": "no"}, "think"),
    ({"history": HISTORY, "behaviour": "buy"}, "behaviour"),
    ({"history": HISTORY, "behaviours": ["buy", "buy"]}, "behaviours"),
    ({"history": HISTORY, "filter": {"prize": 1}}, "filter.prize"),
    ({"history": HISTORY, "filter": {"allow": ["nope"]}}, "filter"),
    ({"history": HISTORY, "filter": {"deny": ["nope"]}}, "filter"),
    ({"history": HISTORY, "filter": {"where": [["cost", "<", 3]]}}, "filter"),
    ({"history": HISTORY, "filter": {"where": [["price", "~", 3]]}}, "filter.where[0][1]"),
    ({"history": HISTORY, "filter": {"where": [["price", "<"]]}}, "filter.where[0][2]"),
    ({"history": HISTORY, "filter": {"where": [["price", "<", {}]]}}, "filter.where[0][2]"),
    ({"history": HISTORY, "filter": {"where": [["price", "<", 10**400]]}}, "filter.where[0][2]"),
    ({"history": HISTORY, "filter": {"where": [["price", "<", "cheap"]]}}, "filter"),
    ({"history": HISTORY, "filter": {"where": [["price", "in", 3]]}}, "filter"),
    ({"history": HISTORY, "filter": {"where": [["price", "in", [1, "a"]]]}}, "filter"),
    ({"history": HISTORY, "filter": {"at_most": {"brand": 0}}}, "filter.at_most.brand"),
    ({"history": HISTORY, "filter": {"at_most": {"maker": 1}}}, "filter"),
    ({"history": ["\ud800"]}, "history[0]"),
    ({"history": HISTORY, "filter": {"at_most": {"\ud800": 1}}}, None),
]


@pytest.mark.parametrize("body, param", BAD)
def test_what_is_wrong_is_named(client, body, param):
    answer = client.post("/v1/recommend", content=json.dumps(body), headers=JSON)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["type"] == "invalid_request_error"
    assert param is None or error["param"] == param, error
    assert set(error) == {"message", "type", "param", "code"} and len(error["message"]) > 10


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(client, number):
    body = json.dumps({"history": HISTORY, "filter": {"where": [["price", "<", 0]]}}).replace("0]]", f"{number}]]")
    answer = client.post("/v1/recommend", content=body, headers=JSON)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "filter.where[0][2]"


UNREADABLE = [
    (b"", "JSON object"),
    (b"{", "not valid JSON"),
    (b"null", "JSON object"),
    (b"[1]", "JSON object"),
    (b'{"history": ["\xff"]}', "not UTF-8"),
    (b'{"history": ' + b"[" * 100_000, "nested"),
    (b'{"k": ' + b"9" * 5000 + b"}", "cannot be read"),
]


@pytest.mark.parametrize("content, said", UNREADABLE)
def test_unreadable_bodies(client, content, said):
    answer = client.post("/v1/recommend", content=content, headers=JSON)
    assert answer.status_code == 400 and said in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "body, param",
    [
        ({"task": "query_to_item", "query": "\ud800"}, "query"),
        ({"task": "query_to_item", "intention": "\ud800"}, "intention"),
        ({"task": "like_but", "about": "item-01", "wish": "a\udfff"}, "wish"),
        ({"messages": [{"role": "user", "content": "\ud83d lamp"}]}, "messages[0].content"),
        ({"history": ["item-01", "\ud800"], "history_format": "title"}, "history[1]"),
        ({"history": HISTORY, "filter": {"where": [["brand", "=", "\ud800"]]}}, "filter.where[0][2]"),
        ({"history": HISTORY, "filter": {"at_most": {"\ud800": 1}}}, "filter.at_most"),
    ],
)
def test_half_a_character_is_refused_alone(client, body, param):
    answer = client.post("/v1/recommend", content=json.dumps(body), headers=JSON)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text
    assert "half a character" in answer.json()["error"]["message"]
    batch = json.dumps({"requests": [body, {"history": HISTORY, "k": 3}]})
    refused, answered = client.post("/v1/recommend/batch", content=batch, headers=JSON).json()["data"]
    assert refused["error"]["param"] == param and len(answered["items"]) == 3


def test_a_whole_character_is_read(client):
    body = {"task": "query_to_item", "query": "\U0001f4a1", "k": 1}  # JSON writes it in two halves
    assert client.post("/v1/recommend", content=json.dumps(body), headers=JSON).status_code == 200


def test_other_content_types_are_refused(client):
    answer = client.post("/v1/recommend", content=b'{"history": ["item-01"]}', headers={"content-type": "text/plain"})
    assert answer.status_code == 400 and "application/json" in answer.json()["error"]["message"]


def test_a_batch_has_an_answer_or_an_error_for_each(client):
    bodies = [
        {"history": HISTORY, "k": 3},
        {"history": ["nope"]},
        {"task": "like_but", "about": "item-05", "wish": "cheaper", "k": 2, "num_beams": 7},
    ]
    answer = client.post("/v1/recommend/batch", json={"requests": bodies}).json()
    first, second, third = answer["data"]
    assert ids(first) == ids(recommend(client, **bodies[0])) and ids(third) == ids(recommend(client, **bodies[2]))
    assert second["object"] == "error" and second["error"]["param"] == "history[0]"
    assert len({first["id"], third["id"]}) == 2
    wrong = {"requests": [bodies[0], {"history": HISTORY, "k": 0}, {"prize": 1}]}
    first, second, third = client.post("/v1/recommend/batch", json=wrong).json()["data"]
    assert ids(first) == ids(recommend(client, **bodies[0]))
    assert (second["error"]["param"], third["error"]["param"]) == ("k", "prize")
    for requests in ([], [bodies[0]] * 4):
        bad = client.post("/v1/recommend/batch", json={"requests": requests})
        assert bad.status_code == 400 and bad.json()["error"]["param"] == "requests"


def test_behaviours_and_the_wanted_one(tmp_path):
    folder = tiny_folder(tmp_path, index=tiny_index(tiny_data()).with_behaviours(["view", "buy"]))
    with serving(folder, tmp_path / "log") as (server, client):
        recommender = server.service.current.recommender
        pairs = list(zip(HISTORY, ["view", "buy"]))
        for wanted in (None, "view"):
            body = {"history": HISTORY, "behaviours": ["view", "buy"], "behaviour": wanted, "return_prompt": True}
            answer = recommend(client, k=4, **body)
            assert answer["prompt"].endswith(f"<|{wanted or 'buy'}|>")
            assert ids(answer) == [item.item_id for item in recommender.recommend([pairs], 4, behaviour=wanted)[0]]
        assert refused(client, 400, history=HISTORY, behaviours=["view"])["param"] == "behaviours"
        assert refused(client, 400, history=HISTORY, behaviours=["view", "sell"])["param"] == "behaviours[1]"
        assert refused(client, 400, history=HISTORY, behaviour="sell")["param"] == "behaviour"
        chat = recommend(client, messages=[{"role": "user", "content": "hello"}], return_prompt=True)
        assert chat["prompt"].endswith("<|buy|>")


def test_thoughts_come_with_the_prompt(tmp_path):
    folder = tiny_folder(tmp_path, prompt="think_next_item")
    with serving(folder, tmp_path / "log") as (server, client):
        recommender = server.service.current.recommender
        recommender.config.max_thought_tokens = 5
        answer = recommend(client, history=HISTORY, k=3, return_prompt=True)
        assert answer["thoughts"] == recommender.think([HISTORY])[0]
        assert ids(answer) == [item.item_id for item in recommender.recommend([HISTORY], 3)[0]]
        plain = recommend(client, history=HISTORY, k=3, return_prompt=True, think=False)
        assert plain["thoughts"] is None
        assert ids(plain) == [item.item_id for item in recommender.recommend([HISTORY], 3, think=False)[0]]
