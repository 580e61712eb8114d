"""The server around the recommendations: keys, limits, overload, catalogue versions, metrics, logs."""

import json
import logging
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient
from http_fixtures import listening, serving, tiny_folder, wait_for
from tiny import tiny_data

from llmrec.serving.__main__ import Lines, main
from llmrec.serving.http import catalogue_routes
from llmrec.serving.http.service import Unavailable
from llmrec.serving.http.settings import Settings

HISTORY = ["item-03", "item-04"]
BODY = {"history": HISTORY, "k": 24}
NEW = {"item_id": "new", "title": "a new gadget", "semid": ["<a_5>", "<b_5>", "<c_3>"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("http"))


def ids(answer) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [item["item_id"] for item in answer.json()["items"]]


def bearer(key: str) -> dict:
    return {"Authorization": f"Bearer {key}"}


def sent(url: str, body: str, length: int | None = None) -> socket.socket:
    """A connection on which a recommendation was asked; with `length` more of its body is announced than sent."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    head = "POST /v1/recommend HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {length or len(body)}\r\n\r\n{body}".encode())
    return connection


class Held:
    """Searches wait until `release`; `started` counts them."""

    def __init__(self, server):
        self.started, self._open = 0, threading.Event()
        server.hold = self._hold

    def _hold(self):
        self.started += 1
        assert self._open.wait(60)

    def release(self):
        self._open.set()


# Keys


def test_every_route_of_v1_needs_the_key(folder, tmp_path):
    with serving(folder, tmp_path, api_key="käse", admin_key="root") as (_, client):
        schema = client.get("/openapi.json").json()
        for path, methods in schema["paths"].items():
            for method in methods:
                for headers in ({}, bearer("wrong"), {"Authorization": "Basic k\u00e4se"}, bearer("")):
                    encoded = {name: value.encode() for name, value in headers.items()}
                    answer = client.request(method, path, headers=encoded, content=b"{")
                    if path.startswith("/v1/"):
                        assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
                        assert answer.headers["www-authenticate"] == "Bearer"
                    else:
                        assert answer.status_code == 200
        key = {"Authorization": "Bearer käse".encode()}
        assert client.get("/v1/models", headers=key).json()["data"][0]["id"] == "tiny"
        assert client.post("/v1/catalogue", headers=key, json={"remove": ["item-00"]}).status_code == 401
        assert client.post("/v1/catalogue", headers=bearer("root"), json={"remove": ["item-00"]}).status_code == 200
        assert client.get("/v1/models", headers=bearer("root")).status_code == 200


def test_a_prefix_of_a_proxy_opens_nothing(folder, tmp_path):
    """Routes go by the path without `root_path`, as Ray Serve gives it, and so must keys and bounds."""
    with serving(folder, tmp_path, api_key="user", admin_key="root") as (server, _):
        shop = TestClient(server.app, root_path="/shop", raise_server_exceptions=False)
        assert shop.get("/shop/health").status_code == 200
        assert shop.get("/shop/v1/models").status_code == 401
        assert shop.post("/shop/v1/catalogue", headers=bearer("user"), json={"remove": ["item-00"]}).status_code == 401
        assert shop.post("/shop/v1/catalogue", headers=bearer("root"), json={"remove": ["item-00"]}).status_code == 200


def test_an_admin_key_alone_guards_changes_only(folder, tmp_path):
    with serving(folder, tmp_path, admin_key="root") as (_, client):
        assert client.get("/v1/models").status_code == 200
        assert client.post("/v1/catalogue/rollback", json={"version": 0}).status_code == 401


def test_without_an_admin_key_users_cannot_change_the_catalogue(folder, tmp_path):
    with serving(folder, tmp_path, api_key="key") as (_, client):
        for headers in ({}, bearer("key"), bearer("root")):
            for path, body in (("", {"remove": ["item-00"]}), ("/rollback", {"version": 0})):
                answer = client.post(f"/v1/catalogue{path}", headers=headers, json=body)
                assert answer.status_code == 403 and "LLMREC_ADMIN_KEY" in answer.json()["error"]["message"]
        assert client.get("/v1/catalogue", headers=bearer("key")).json()["version"] == 0


def test_pages_can_ask_for_the_admin_key(folder, tmp_path):
    pages = ("/docs", "/openapi.json", "/metrics", "/docs/oauth2-redirect")
    with serving(folder, tmp_path, api_key="key", admin_key="root", closed=True) as (_, client):
        for page in pages:
            assert client.get(page).status_code == client.get(page, headers=bearer("key")).status_code == 401
            assert client.get(page, headers=bearer("root")).status_code == 200
        assert client.get("/health").status_code == 200


def test_settings_that_make_no_sense_are_refused():
    limits = {"max_k": 0}, {"max_queue": -1}, {"max_k": 600}, {"timeout_s": 0}, {"timeout_s": float("nan")}
    for wrong in (*limits, {"drain_s": -1.0}, {"drain_s": float("nan")}, {"closed": True}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Settings("tiny", **wrong)
    for url in ("catalogue:8000", "http://", "http://a:port", "http://a:99999", "http://[a"):
        with pytest.raises(ValueError, match=f"^follow: {re.escape(repr(url))} is no address: write http://host:port"):
            Settings("tiny", follow=url)
    for keys, said in [
        ({"api_key": ""}, "LLMREC_API_KEY is empty"),
        ({"admin_key": " root\n"}, "LLMREC_ADMIN_KEY is empty, or has spaces"),
        ({"api_key": "key", "admin_key": "key"}, "are equal"),
        ({"api_key": "key", "no_keys": True}, "no_keys beside a key"),
    ]:
        with pytest.raises(ValueError, match=said):
            Settings("tiny", **keys)


@pytest.mark.parametrize("host, local", [
    ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True),
    ("0.0.0.0", False), ("::", False), ("", False), (None, False), ("192.0.2.7", False), ("::ffff:127.0.0.1", False),
])  # fmt: skip
def test_other_machines_need_a_key(host, local):
    for open_to_all in ({"api_key": "key"}, {"no_keys": True}):
        Settings("tiny", **open_to_all).check_host(host)
    for alone in ({}, {"admin_key": "root"}):
        if local:
            Settings("tiny", **alone).check_host(host)
        else:
            with pytest.raises(ValueError, match="LLMREC_API_KEY.*--no_keys"):
                Settings("tiny", **alone).check_host(host)


@pytest.mark.parametrize("environment, flags, said", [
    ({}, ["--host", "0.0.0.0"], "--no_keys"),
    ({"LLMREC_API_KEY": ""}, [], "LLMREC_API_KEY is empty"),
    ({"LLMREC_API_KEY": ""}, ["--host", "0.0.0.0"], "LLMREC_API_KEY is empty"),
    ({"LLMREC_API_KEY": "a"}, ["--no_keys"], "no_keys beside a key"),
    ({}, ["--host", "no.such.host.invalid"], "no name or address"),
    ({}, ["--no_keys", "--host", "no.such.host.invalid"], "no name or address"),
    ({}, ["--port", "99999"], "--port: 99999 should be from 1 to 65535"),
    ({}, ["--port", "http"], "--port: invalid port value: 'http'"),
])  # fmt: skip
def test_an_open_server_does_not_start(monkeypatch, capsys, environment, flags, said):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        main(["out/model", *flags])
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_a_port_that_is_taken_is_named_before_anything_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(SystemExit) as ended:
            main(["out/model", "--port", str(port)])
    assert ended.value.code == 2 and f"error: port {port}: address already in use" in capsys.readouterr().err


def test_no_page_of_another_site_may_read_the_answers(folder, tmp_path):
    origin = {"Origin": "https://example.org"}
    with serving(folder, tmp_path) as (_, client):
        for answer in (
            client.post("/v1/recommend", json=BODY, headers=origin),
            client.options("/v1/recommend", headers=origin | {"Access-Control-Request-Method": "POST"}),
        ):
            assert not [name for name in answer.headers if name.startswith("access-control-")]
            assert answer.headers["x-content-type-options"] == "nosniff"


def test_without_an_engine_for_it_nothing_is_recommended(folder, tmp_path):
    with serving(folder, tmp_path, recommend=False) as (_, client):
        assert client.post("/v1/recommend", json=BODY).status_code == 404
        assert client.get("/v1/items/item-01").status_code == 200


# Limits


def test_bodies_are_limited_while_they_are_read(folder, tmp_path):
    with listening(folder, tmp_path, max_body_bytes=2000, max_catalogue_bytes=4000) as (_, url):
        sent = 0

        def chunks():
            nonlocal sent
            yield b'{"history": ["'
            while True:
                sent += 1000
                yield b"a" * 1000

        for path, limit in (("recommend", 2000), ("catalogue", 4000)):
            answer = httpx.post(f"{url}/v1/{path}", content=b" " * (limit + 1))
            assert answer.status_code == 413 and f"{limit} bytes" in answer.json()["error"]["message"]
            answer = httpx.post(f"{url}/v1/{path}", content=b" " * limit)
            assert answer.status_code == 400
        try:  # the server may close the connection before the client reads the answer
            answer = httpx.post(f"{url}/v1/recommend", content=chunks(), headers={"content-type": "application/json"})
            assert answer.status_code == 413
        except httpx.TransportError:
            pass
        assert sent < 50_000_000
        assert len(ids(httpx.post(f"{url}/v1/recommend", json=BODY))) == 24


def test_a_body_that_does_not_come_is_given_up(folder, tmp_path):
    with listening(folder, tmp_path, timeout_s=0.3) as (_, url):
        with sent(url, "{", length=100) as connection:
            assert b"400 Bad Request" in connection.recv(10_000)


def test_too_many_requests_are_turned_away_and_the_others_answered(folder, tmp_path):
    with serving(folder, tmp_path, max_concurrent=2, max_queue=3) as (server, client), ThreadPoolExecutor(8) as pool:
        expected = ids(client.post("/v1/recommend", json=BODY))
        held = Held(server)
        accepted = [pool.submit(client.post, "/v1/recommend", json=BODY) for _ in range(5)]
        wait_for(lambda: held.started == 2 and "llmrec_waiting 3.0" in client.get("/metrics").text)
        assert "llmrec_running 2.0" in client.get("/metrics").text
        refused = client.post("/v1/recommend", json=BODY)
        assert refused.status_code == 429 and refused.json()["error"]["code"] == "queue_full"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert client.get("/v1/items/item-01").status_code == 200  # other routes go on
        held.release()
        assert all(ids(answer.result()) == expected for answer in accepted)
        assert "llmrec_waiting 0.0" in client.get("/metrics").text


def test_who_waits_too_long_is_told_so(folder, tmp_path):
    with serving(folder, tmp_path, max_concurrent=1, timeout_s=0.5) as (server, client), ThreadPoolExecutor(2) as pool:
        held = Held(server)
        answers = [pool.submit(client.post, "/v1/recommend", json=BODY) for _ in range(2)]
        for answer in answers:  # one searches, one waits
            answer = answer.result()
            assert answer.status_code == 503 and answer.json()["error"]["code"] == "timeout"
            assert int(answer.headers["retry-after"]) >= 1
        wait_for(lambda: held.started == 1)
        held.release()
        wait_for(lambda: "llmrec_running 0.0" in client.get("/metrics").text)


def test_clients_that_go_away_leave_their_place(folder, tmp_path):
    settings = {"max_concurrent": 1, "max_queue": 1}
    with listening(folder, tmp_path, **settings) as (server, url), ThreadPoolExecutor(2) as pool:
        gauge = lambda name: f"{name} 1.0" in httpx.get(f"{url}/metrics").text  # noqa: E731
        held = Held(server)
        first = pool.submit(httpx.post, f"{url}/v1/recommend", json=BODY, timeout=60)
        wait_for(lambda: held.started == 1)
        with sent(url, json.dumps(BODY)):
            wait_for(lambda: gauge("llmrec_waiting"))
        wait_for(lambda: not gauge("llmrec_waiting"))
        second = pool.submit(httpx.post, f"{url}/v1/recommend", json=BODY, timeout=60)
        wait_for(lambda: gauge("llmrec_waiting"))
        held.release()
        assert ids(first.result()) == ids(second.result())
        assert held.started == 2  # nobody searched for the one that went
        text = httpx.get(f"{url}/metrics").text
        assert 'llmrec_requests_total{route="/v1/recommend",status="499"} 1.0' in text


def test_a_failing_engine_is_503_and_comes_back(folder, tmp_path):
    with serving(folder, tmp_path) as (server, client):

        def fail():
            raise RuntimeError("the engine is dead")

        server.hold = fail
        answer = client.post("/v1/recommend", json=BODY)
        assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
        batch = client.post("/v1/recommend/batch", json={"requests": [BODY, BODY]}).json()
        assert [one["error"]["code"] for one in batch["data"]] == ["engine", "engine"]
        server.dead = Unavailable("the engine is dead", 6.5)  # which says for how long
        for route, body in [
            ("/v1/recommend", BODY),
            ("/v1/recommend/batch", {"requests": [BODY]}),
            ("/v1/catalogue", {"put": [NEW]}),
        ]:
            answer = client.post(route, json=body)
            assert answer.status_code == 503 and answer.headers["retry-after"] == "7"
            assert answer.json()["error"]["message"] == "the engine is dead: try again later"
        health = client.get("/ready")
        assert client.get("/health").status_code == 200  # the front is alive
        assert health.status_code == 503 and "the engine is dead" in health.json()["error"]["message"]
        server.hold, server.dead = lambda: None, None
        assert len(ids(client.post("/v1/recommend", json=BODY))) == 24
        assert client.get("/ready").json() == {"status": "ok", "catalogue_version": 0}


# Catalogue


def test_a_change_is_seen_by_every_later_request(folder, tmp_path):
    with serving(folder, tmp_path) as (server, client):
        changes = {"put": [NEW, {"item_id": "item-05", "price": 99.0}], "remove": ["item-16"]}
        answer = client.post("/v1/catalogue", json=changes).json()
        added = [{"item_id": "new", "semid": "<a_5><b_5><c_3>"}]
        assert answer == {"version": 1, "added": added, "updated": ["item-05"], "removed": ["item-16"]}
        found = client.post("/v1/recommend", json=BODY)
        assert found.json()["catalogue_version"] == 1
        assert "new" in ids(found) and "item-16" not in ids(found)
        dear = client.post("/v1/recommend", json=BODY | {"filter": {"where": [["price", ">", 50]]}})
        assert ids(dear) == ["item-05"]
        # histories keep what is gone: its Semantic ID is reserved
        after_gone = client.post("/v1/recommend", json={"history": ["item-16", "item-02"]})
        assert after_gone.status_code == 200 and "item-16" not in ids(after_gone)
        assert client.get("/v1/items/item-16").status_code == 404
        catalogue = client.get("/v1/catalogue").json()
        assert (catalogue["version"], catalogue["items"], catalogue["columns"]["price"]) == (1, 24, "double")
        (entry,) = catalogue["history"]
        assert (entry["version"], entry["added"], entry["updated"], entry["removed"]) == (1, 1, 1, 1)

        back = client.post("/v1/catalogue/rollback", json={"version": 0}).json()
        assert back["version"] == 2 and back["removed"] == ["new"]
        assert [item["item_id"] for item in back["added"]] == ["item-16"]
        assert {*ids(client.post("/v1/recommend", json=BODY))} == {f"item-{i:02d}" for i in range(24)}
        pages = [({}, [1, 2]), ({"limit": 1}, [2]), ({"before": 2}, [1]), ({"before": 1}, [])]
        for asked, versions in pages:
            history = client.get("/v1/catalogue", params=asked).json()["history"]
            assert [entry["version"] for entry in history] == versions
        assert client.get("/v1/catalogue").json()["history"][1]["rollback_of"] == 0
        assert client.get("/v1/catalogue", params={"limit": 1001}).status_code == 400
        assert server.published == [1, 2]
    with serving(folder, tmp_path) as (_, client):  # what was acknowledged is there after a restart
        assert client.get("/health").json()["catalogue_version"] == 2


def test_requests_in_flight_finish_on_their_version(folder, tmp_path):
    with serving(folder, tmp_path) as (server, client), ThreadPoolExecutor(1) as pool:
        held = Held(server)
        old = pool.submit(client.post, "/v1/recommend", json=BODY)
        wait_for(lambda: held.started == 1)
        server.hold = lambda: None
        assert client.post("/v1/catalogue", json={"put": [NEW], "remove": ["item-16"]}).status_code == 200
        new = client.post("/v1/recommend", json=BODY)
        assert new.json()["catalogue_version"] == 1 and "item-16" not in ids(new) and "new" in ids(new)
        assert server.retired == []
        held.release()
        old = old.result()
        assert old.json()["catalogue_version"] == 0 and "item-16" in ids(old) and "new" not in ids(old)
        wait_for(lambda: server.retired == [0])
        assert client.post("/v1/catalogue", json={"remove": ["new"]}).status_code == 200
        wait_for(lambda: server.retired == [0, 1])


def test_changes_that_cannot_be_made_change_nothing(folder, tmp_path):
    with serving(folder, tmp_path) as (server, client):
        for body, said in [
            ({}, "nothing to change"),
            ({"remove": ["nope"]}, "nope"),
            ({"put": [{"item_id": "x"}]}, "title"),
            ({"put": [{"item_id": "item-01", "price": "cheap"}]}, "price"),
            ({"put": [{"item_id": "item-01", "colour": "red"}]}, "colour"),
            ({"put": [NEW | {"semid": ["<a_9>"]}]}, "<a_9>"),
            ({"put": [{"item_id": "item-01", "price": 10**400}]}, "price"),
            ({"put": [{"item_id": "item-01", "title": "\ud800"}]}, ""),
        ]:
            answer = client.post(
                "/v1/catalogue", content=json.dumps(body), headers={"content-type": "application/json"}
            )
            assert answer.status_code == 400 and said in answer.json()["error"]["message"], answer.text
        answer = client.post("/v1/catalogue/rollback", json={"version": 7})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "version"
        server.broken = RuntimeError("no such engine")
        answer = client.post("/v1/catalogue", json={"put": [NEW]})
        assert answer.status_code == 503 and "stays at version 0: no such engine" in answer.json()["error"]["message"]
        wait_for(lambda: len(server.retired) == 1)  # the one that was published in vain
        server.broken = None
        assert client.get("/v1/catalogue").json()["version"] == 0
        assert client.post("/v1/catalogue", json={"put": [NEW]}).json()["version"] not in server.retired


def test_items_are_found_by_their_titles(folder, tmp_path):
    with serving(folder, tmp_path) as (_, client):
        found = client.get("/v1/items", params={"query": "RED Gadget", "limit": 2}).json()
        assert [item["item_id"] for item in found["data"]] == ["item-00", "item-03"]
        assert found["data"][0] == {"item_id": "item-00", "title": "red gadget number 0", "semid": "<a_0><b_0>"}
        assert client.get("/v1/items", params={"query": "[a-z]("}).json()["data"] == []
        for params in ({}, {"query": ""}, {"query": "red", "limit": 0}, {"query": "red", "limit": 101}):
            answer = client.get("/v1/items", params=params)
            assert answer.status_code == 400 and answer.json()["error"]["param"] in params.keys() | {"query"}
        item = client.get("/v1/items/item-07").json()
        assert item["semid"] == "<a_1><b_1><c_0>" and item["columns"]["brand"] == "brand 3"
        assert client.get("/v1/items/a/b%2Fc").json()["error"]["code"] == "unknown_item"
        assert client.get("/v1/nothing").status_code == 404
        wrong = client.delete("/v1/catalogue")
        assert wrong.status_code == 405 and wrong.headers["allow"] == "GET, POST"


def test_questions_for_titles_take_turns(folder, tmp_path, monkeypatch):
    """Each reads every title of the catalogue, in a thread: many of them at once left none to others."""
    go_on, titled = threading.Event(), catalogue_routes._titled
    monkeypatch.setattr(catalogue_routes, "_titled", lambda *asked: (go_on.wait(60), titled(*asked))[1])
    with (
        listening(folder, tmp_path, max_queue=2) as (server, url),
        httpx.Client(base_url=url, timeout=60) as http,
        ThreadPoolExecutor(20) as pool,
    ):
        asked = [pool.submit(http.get, "/v1/items?query=red") for _ in range(20)]
        try:
            wait_for(lambda: sum(one.done() for one in asked) == 20 - 4 - 2)
            assert {one.result().status_code for one in asked if one.done()} == {429}
            assert server.app.state.front.lookups.running == 4
            assert http.get("/v1/items/item-03").status_code == 200
        finally:
            go_on.set()
        assert [one.result().status_code for one in asked].count(200) == 6


def test_columns_of_all_kinds_are_shown(tmp_path):
    data = tiny_data()
    odd = pa.array([float("nan")] + [None] * 23, pa.float64())
    dates = pa.array([0] * 24, pa.timestamp("s"))
    data.items = (
        data.items.append_column("odd", odd)
        .append_column("since", dates)
        .append_column("raw", pa.array([b"\xff"] * 24))
    )
    with serving(tiny_folder(tmp_path, data), tmp_path / "log") as (_, client):
        columns = client.get("/v1/items/item-00").json()["columns"]
        assert columns["odd"] is None and columns["since"].startswith("1970-01-01") and isinstance(columns["raw"], str)


# What operators see


def test_metrics_count_what_was_done(folder, tmp_path):
    with serving(folder, tmp_path) as (_, client):
        client.post("/v1/recommend", json={"history": HISTORY, "k": 5})
        client.post(
            "/v1/recommend", json={"history": HISTORY, "k": 3, "num_beams": 20, "filter": {"at_most": {"brand": 1}}}
        )
        client.post("/v1/recommend", json={"history": ["nope"]})
        client.get("/v1/items/one"), client.get("/v1/items/two"), client.get("/elsewhere")
        text = client.get("/metrics").text
        for line in (
            'llmrec_requests_total{route="/v1/recommend",status="200"} 2.0',
            'llmrec_requests_total{route="/v1/recommend",status="400"} 1.0',
            'llmrec_requests_total{route="/v1/items/{item_id:path}",status="404"} 2.0',
            'llmrec_requests_total{route="unknown",status="404"} 1.0',
            'llmrec_items_returned_total{valid="true"} 8.0',
            'llmrec_items_returned_total{valid="false"} 0.0',
            "llmrec_valid_share 1.0",
            'llmrec_beams_bucket{le="10.0"} 1.0',
            'llmrec_beams_bucket{le="20.0"} 2.0',
            'llmrec_stage_seconds_count{stage="search"} 2.0',
            'llmrec_stage_seconds_count{stage="queue"} 2.0',
            'llmrec_stage_seconds_count{stage="total"} 2.0',
            "llmrec_running 0.0",
            "llmrec_catalogue_version 0.0",
            "llmrec_catalogue_items 24.0",
        ):
            assert line in text.splitlines()


def logged(caplog) -> list[dict]:
    return [json.loads(record.message) for record in caplog.records if record.message.startswith("{")]


def test_logs_hold_no_histories(folder, tmp_path, caplog):
    caplog.set_level(logging.INFO, "llmrec.serving")
    private = [
        {"history": HISTORY, "k": 3},
        {"history": ["red gadget number 3"], "history_format": "title"},
        {"messages": [{"role": "user", "content": "a secret gadget"}]},
        {"history": ["secret"]},
    ]
    with serving(folder, tmp_path) as (_, client):
        answers = [client.post("/v1/recommend", json=body) for body in private]
        client.post("/v1/recommend/batch", json={"requests": private[:2]})
        client.get("/v1/items", params={"query": "secret"}), client.get("/v1/items/item-03")
    lines = logged(caplog)
    assert [line["status"] for line in lines] == [200, 200, 200, 400, 200, 200, 200]
    first = lines[0]
    assert answers[0].json()["id"] == f"rec-{first['id']}" and answers[0].headers["x-request-id"] == first["id"]
    assert first["route"] == "/v1/recommend" and first["method"] == "POST" and first["ms"] > 0
    assert (first["k"], first["beams"], first["history"], first["catalogue_version"]) == (3, 10, 2, 0)
    assert lines[4]["k"] == [3, 10] and lines[4]["history"] == [2, 1]
    ours = "\n".join(record.getMessage() for record in caplog.records if record.name == "llmrec.serving")
    assert not any(word in ours for word in ("item-", "gadget", "secret"))


def test_a_text_in_the_log_is_no_record():
    forged = 'x\n{"status": 200}\r\u2028\x1b[2J\ud800'
    try:
        raise ValueError(forged)
    except ValueError as error:
        failure = type(error), error, error.__traceback__
    record = logging.LogRecord("llmrec", logging.ERROR, "", 0, "%s failed", (forged,), failure)
    first, *rest = Lines("%(message)s").format(record).splitlines()
    assert first == "x" and len(rest) > 3 and all(line.startswith("| ") for line in rest)
    assert "\x1b" not in "".join(rest) and "\\x1b[2J\\ud800" in rest[0]


def test_logs_hold_requests_where_the_operator_wants_them(folder, tmp_path, caplog):
    caplog.set_level(logging.INFO, "llmrec.serving")
    with serving(folder, tmp_path, log_histories=True) as (_, client):
        client.post("/v1/recommend", json={"history": HISTORY, "k": 3})
    assert logged(caplog)[0]["request"] == {"history": HISTORY, "k": 3}


def test_the_openai_client_reaches_our_routes(folder, tmp_path):
    from openai import AuthenticationError, BadRequestError, OpenAI

    with listening(folder, tmp_path, api_key="key") as (_, url):
        client = OpenAI(base_url=f"{url}/v1", api_key="key", max_retries=0)
        assert [model.id for model in client.models.list()] == ["tiny"]
        answer = client.post("/recommend", body={"history": HISTORY, "k": 3}, cast_to=object)
        assert len(answer["items"]) == 3
        with pytest.raises(BadRequestError) as caught:
            client.post("/recommend", body={"history": ["nope"]}, cast_to=object)
        assert caught.value.param == "history[0]" and caught.value.code == "unknown_item"
        with pytest.raises(AuthenticationError):
            OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).models.list()
