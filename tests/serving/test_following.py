"""Several servers with one catalogue: a writer, and followers that answer from nothing older than was acknowledged."""

import asyncio
import math
import threading
import time
from contextlib import closing, contextmanager

import httpx
import pytest
from http_fixtures import Server, listening, listening_app, tiny_folder, wait_for

from llmrec.models.folder import RecommenderConfig
from llmrec.serving.http import followers as followers_module
from llmrec.serving.http import following as following_module
from llmrec.serving.http.errors import ApiError
from llmrec.serving.http.followers import Followers
from llmrec.serving.http.following import Following, WriterAway
from llmrec.serving.http.service import Unavailable
from llmrec.serving.living_catalogue.store import CatalogueStore, Changes, Row

BODY = {"history": ["item-03", "item-04"], "k": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("followed"))


@pytest.fixture(autouse=True)
def short_leases(monkeypatch):
    for module in (followers_module, following_module):
        monkeypatch.setattr(module, "LEASE_S", 1.0)
    for module in (followers_module, following_module):
        monkeypatch.setattr(module, "POLL_S", 0.3)
    monkeypatch.setattr(followers_module, "_MARGIN_S", 0.2)


@contextmanager
def follower(folder, log, url, **settings):
    """`(server, url)` of one that follows `url`, as `serve` starts it."""
    with CatalogueStore(folder, log) as store:
        asyncio.run(Following(url, store).catch_up())
    with listening(folder, log, follow=url, **settings) as (server, own):
        following = Following(url, server.store, never_stale=settings.get("never_stale", False))
        server.service.fresh = following.check
        ended, task = [], None

        async def run():
            nonlocal task
            task = asyncio.ensure_future(following.run(server.service))
            try:
                await task
            except (Exception, asyncio.CancelledError) as error:
                ended.append(error)

        server.following, server.ended = following, ended
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_until_complete, args=(run(),), daemon=True)
        thread.start()
        wait_for(lambda: following.level.is_set() or ended)
        try:
            yield server, own
        finally:
            loop.call_soon_threadsafe(task.cancel)
            thread.join()


def test_an_acknowledged_change_is_everywhere(folder, tmp_path):
    with listening(folder, tmp_path / "writer") as (writer, url), httpx.Client(base_url=url, timeout=30) as http:
        assert http.post("/v1/catalogue", json={"remove": ["item-00"]}).status_code == 200
        with (
            follower(folder, tmp_path / "one", url) as (one, one_url),
            follower(folder, tmp_path / "two", url) as (two, two_url),
        ):
            assert [server.service.current.number for server in (one, two)] == [1, 1]  # what came before
            for gone in ("item-01", "item-02"):
                http.post("/v1/catalogue", json={"remove": [gone]}).raise_for_status()
                for own in (one_url, two_url):
                    answer = httpx.post(f"{own}/v1/recommend", json=BODY | {"k": 20}).json()
                    assert answer["catalogue_version"] == writer.store.current.number
                    assert gone not in [item["item_id"] for item in answer["items"]]
            assert one.published == two.published == [2, 3]
            assert "llmrec_followers 2.0" in http.get("/metrics").text
            for path, body in (("", {"remove": ["item-03"]}), ("/rollback", {"version": 0})):
                refused = httpx.post(f"{one_url}/v1/catalogue{path}", json=body)
                assert refused.status_code == 409 and "ask the writer" in refused.json()["error"]["message"]
            new = {"put": [{"item_id": "new", "title": "a new gadget", "semid": ["<a_5>", "<b_5>", "<c_3>"]}]}
            http.post("/v1/catalogue", json=new).raise_for_status()
            http.post("/v1/catalogue/rollback", json={"version": 1}).raise_for_status()
            assert one.store.end == two.store.end == writer.store.end
            assert one.store.current.index.fingerprint == writer.store.current.index.fingerprint
    with CatalogueStore(folder, tmp_path / "one") as alone:  # what it followed is on its own disk
        assert alone.current.number == 5 and "new" not in alone.current.index and "item-01" in alone.current.index
        alone.commit(alone.prepare(Changes(remove=["item-05"])))  # and it can become the writer


def test_a_writer_waits_for_followers_of_the_one_before_if_there_were_any(folder, tmp_path):
    for name, followed in (("alone", False), ("followed", True), ("follower", True)):
        with listening(folder, tmp_path / name) as (writer, url):
            asked = {
                "after": 0,
                "chain": writer.store.end[1],
                "wait_s": 0,
                **({"follower": "one"} if name == "followed" else {}),
            }
            if name == "follower":
                with follower(folder, tmp_path / "copy", url):
                    pass
                name = "copy"
            else:
                assert httpx.get(f"{url}/v1/catalogue/records", params=asked).status_code == 200
                stranger = {"after": 0, "chain": "x", "follower": "two"}
                assert httpx.get(f"{url}/v1/catalogue/records", params=stranger).status_code == 409
        with CatalogueStore(folder, tmp_path / name) as store:
            assert math.isfinite(store.followed_until) == followed


def test_a_slow_follower_is_waited_for_and_a_dead_one_is_given_up(folder, tmp_path):
    with listening(folder, tmp_path / "writer") as (_, url), httpx.Client(base_url=url, timeout=30) as http:
        with follower(folder, tmp_path / "one", url) as (one, own):
            loading = one.service._publish
            one.service._publish = lambda prepared: (time.sleep(2.5), loading(prepared))  # longer than its lease
            began = time.monotonic()
            assert http.post("/v1/catalogue", json={"remove": ["item-00"]}).status_code == 200
            assert time.monotonic() - began > 2.4
            assert httpx.post(f"{own}/v1/recommend", json=BODY).json()["catalogue_version"] == 1
        began = time.monotonic()
        assert http.post("/v1/catalogue", json={"remove": ["item-01"]}).status_code == 200
        assert time.monotonic() - began < 2.0
        assert "llmrec_followers 0.0" in http.get("/metrics").text


def test_a_follower_that_takes_no_version_is_left_out_and_answers_nothing_old(folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(followers_module, "ADOPT_S", 0.5)
    with listening(folder, tmp_path / "writer") as (_, url), httpx.Client(base_url=url, timeout=30) as http:
        with follower(folder, tmp_path / "one", url) as (one, own):
            go_on, publish = threading.Event(), one.service._publish
            one.service._publish = lambda prepared: (go_on.wait(60), publish(prepared))
            try:
                assert http.post("/v1/catalogue", json={"remove": ["item-00"]}).status_code == 200
                answer = httpx.post(f"{own}/v1/recommend", json=BODY)
                assert answer.status_code == 503 and answer.json()["error"]["code"] == "catching_up"
                assert httpx.get(f"{own}/ready").status_code == 503 and one.service.current.number == 0
                assert http.post("/v1/catalogue", json={"remove": ["item-01"]}).status_code == 200
                assert "llmrec_followers 0.0" in (metrics := http.get("/metrics").text)
                assert "llmrec_followers_left_out 1.0" in metrics
                told = f"follower {one.following._name} is at version 0 and did not take 1 within 0.5 s"
                assert [told in record.getMessage() for record in caplog.records].count(True) == 1
            finally:
                go_on.set()
            wait_for(lambda: httpx.get(f"{own}/ready").status_code == 200)
            assert httpx.post(f"{own}/v1/recommend", json=BODY).json()["catalogue_version"] == 2
            assert http.post("/v1/catalogue", json={"remove": ["item-02"]}).status_code == 200
            assert httpx.post(f"{own}/v1/recommend", json=BODY).json()["catalogue_version"] == 3
            assert "llmrec_followers_left_out 0.0" in http.get("/metrics").text and not one.ended


def test_one_that_asks_under_ever_new_names_holds_up_no_change_for_good(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(followers_module, "ADOPT_S", 0.5)

    async def ask(followers: Followers) -> None:
        for name in range(10**6):
            await followers.heard(str(name), 0)
            await asyncio.sleep(0.1)

    async def run() -> None:
        followers = Followers(lambda: -math.inf)
        asking = asyncio.ensure_future(ask(followers))
        await asyncio.sleep(0)
        async with asyncio.timeout(30):
            await followers.have(1)
        assert followers.left_out and not len(followers)
        asking.cancel()

    asyncio.run(run())


@pytest.mark.parametrize("never_stale", [False, True])
def test_a_follower_that_is_cut_off(folder, tmp_path, never_stale):
    with listening(folder, tmp_path / "writer") as (_, url):
        running = follower(folder, tmp_path / "one", url, never_stale=never_stale)
        one, own = running.__enter__()
    try:  # the writer is gone now
        wait_for(lambda: one.following.silent_s > 1.1)
        answer, ready = httpx.post(f"{own}/v1/recommend", json=BODY), httpx.get(f"{own}/ready")
        if never_stale:
            assert answer.status_code == ready.status_code == 503 and answer.headers["retry-after"]
            assert "was not heard" in answer.json()["error"]["message"]
        else:
            assert answer.status_code == ready.status_code == 200
        assert not one.ended and httpx.get(f"{own}/health").status_code == 200
    finally:
        running.__exit__(None, None, None)


def test_a_writer_that_started_again_waits_for_followers_that_it_does_not_know():
    async def waited() -> float:
        began = time.monotonic()
        await Followers(lambda: began).have(1)
        return time.monotonic() - began

    assert 1.2 <= asyncio.run(waited()) < 3


def test_a_log_that_is_no_continuation_is_refused(folder, tmp_path):
    with CatalogueStore(folder, tmp_path / "one") as one:
        one.commit(one.prepare(Changes(remove=["item-09"])))
    with listening(folder, tmp_path / "writer") as (writer, url):
        with (
            CatalogueStore(folder, tmp_path / "one") as one,
            pytest.raises(ValueError, match="none of this one") as said,
        ):
            asyncio.run(Following(url, one).catch_up())
        assert "move the directory" in str(said.value)
        writer.service.change(Changes(remove=["item-00"]))
        (row,) = writer.store.rows_after(0, RecommenderConfig.load(folder).semid_fingerprint)
    with CatalogueStore(folder, tmp_path / "three") as three:
        for wrong in (row._replace(record=row.record.replace("item-00", "item-01")), row._replace(chain="0")):
            with pytest.raises(ValueError, match="does not follow"):
                three.catch_up([wrong])
        assert three.current.number == 0
        three.catch_up([row])
        assert three.end == (1, row.chain) and "item-00" not in three.current.index
        with pytest.raises(ValueError, match="does not follow"):
            three.prepare_row(Row(row.record, row.chain))


def test_a_writer_that_is_not_there(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(following_module, "_START_S", 0.1)
    with CatalogueStore(folder, tmp_path / "one") as one:
        with pytest.raises(WriterAway, match="http://127.0.0.1:9, which this server follows, does not answer"):
            asyncio.run(Following("http://127.0.0.1:9", one).catch_up())


def until_level(folder, log, url, publish=lambda: None) -> None:
    async def run() -> None:
        with closing(Server(folder, log, follow=url)) as server:
            following = Following(url, server.store)
            taken, server.service._publish = server.service._publish, lambda prepared: (publish(), taken(prepared))
            task = asyncio.ensure_future(following.run(server.service))
            try:
                await following.until_level([task])
                assert following.level.is_set() and server.service.current.number == server.store.end[0] > 0
            finally:
                task.cancel()

    asyncio.run(run())


def test_a_start_goes_on_while_there_is_progress_and_not_without(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(following_module, "_START_S", 0.5)
    with listening(folder, tmp_path / "writer") as (writer, url):
        for number in range(4):
            writer.service.change(Changes(remove=[f"item-{number:02d}"]))
        until_level(folder, tmp_path / "one", url, lambda: time.sleep(0.4))
    with pytest.raises(WriterAway, match="does not answer any more"):
        until_level(folder, tmp_path / "two", "http://127.0.0.1:9")


def test_whoever_follows_has_the_admin_key(folder, tmp_path):
    with listening(folder, tmp_path / "writer", api_key="secret", admin_key="root") as (_, url):
        with CatalogueStore(folder, tmp_path / "one") as one:
            with pytest.raises(ValueError, match="wrong or missing key"):
                asyncio.run(Following(url, one, "secret").catch_up())
            asyncio.run(Following(url, one, "root").catch_up())
    with listening(folder, tmp_path / "open", api_key="secret") as (_, url):
        with CatalogueStore(folder, tmp_path / "two") as two, pytest.raises(ValueError, match="LLMREC_ADMIN_KEY"):
            asyncio.run(Following(url, two, "secret").catch_up())


def test_a_version_that_an_engine_does_not_take_ends_the_follower(folder, tmp_path):
    with listening(folder, tmp_path / "writer") as (_, url), follower(folder, tmp_path / "one", url) as (one, _):
        one.service._publish = fail(RuntimeError("the engine is full"))
        assert httpx.post(f"{url}/v1/catalogue", json={"remove": ["item-00"]}, timeout=30).status_code == 200
        wait_for(lambda: one.ended)
        assert "the engine is full" in str(one.ended[0]) and one.store.current.number == 0


def test_a_follower_whose_engine_is_dead_holds_up_nobody_and_catches_up_before_it_answers(folder, tmp_path):
    with listening(folder, tmp_path / "writer") as (_, url), follower(folder, tmp_path / "one", url) as (one, own):
        dead = Unavailable("it has stopped", 1.0)
        taken, one.service._publish, one.service.check = one.service._publish, fail(dead), fail(dead)
        began = time.monotonic()
        for number in (1, 2):
            assert httpx.post(f"{url}/v1/catalogue", json={"remove": [f"item-0{number}"]}, timeout=30).is_success
        assert time.monotonic() - began < 10
        assert httpx.post(f"{own}/v1/recommend", json=BODY).json()["error"]["code"] == "engine"
        one.service._publish, one.service.check = taken, lambda: None  # it was started again
        wait_for(lambda: httpx.get(f"{own}/ready").status_code == 200)
        assert httpx.post(f"{own}/v1/recommend", json=BODY).json()["catalogue_version"] == 2 and not one.ended


def fail(error: Exception):
    def raises(*_):
        raise error

    return raises


def test_never_stale_refuses_before_the_writer_gives_up(folder, tmp_path):
    with CatalogueStore(folder, tmp_path / "one") as one:
        following = Following("http://127.0.0.1:9", one, never_stale=True)
        following.level.set()
        following._heard = time.monotonic() - followers_module.LEASE_S + 0.3
        following.check()
        following._heard -= 0.4
        with pytest.raises(ApiError):
            following.check()


@pytest.mark.parametrize(
    "answer", [b'{"rows": []}', b'{"rows": [{"number": 1}], "waits": true}', b"[]", b"<html>", b'{"rows": 1}']
)
def test_what_is_no_writer_of_this_version_is_named(folder, tmp_path, answer):
    async def app(scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": answer})

    with listening_app(app) as url, CatalogueStore(folder, tmp_path / "one") as one:
        with pytest.raises(ValueError, match="does not answer as a writer of llmrec .* start it with this version"):
            asyncio.run(Following(url, one).catch_up())
