"""A server that is told to stop: it says so, goes on for a while, and loses nothing."""

import json
import signal
import socket
import threading
import time

import httpx
import pytest
from http_fixtures import Server as Fixture
from http_fixtures import serving, tiny_folder, wait_for

from llmrec.serving.http.connections import Server, web_config

BODY = {"history": ["item-03", "item-04"], "k": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("leaving"))


def test_sigterm_drains(folder, tmp_path):
    fixture = Fixture(folder, tmp_path / "log")
    front = fixture.app.state.front
    web = Server(web_config(fixture.app, port=0), 2.0, lambda: setattr(front, "leaving", True))
    thread = threading.Thread(target=web.run)
    thread.start()
    try:
        wait_for(lambda: web.started)
        url = f"http://127.0.0.1:{web.servers[0].sockets[0].getsockname()[1]}"
        with httpx.Client(base_url=url, timeout=30) as client:
            stays = client.get("/ready")
            assert stays.status_code == 200 and "connection" not in stays.headers
            began = time.monotonic()
            web.handle_exit(signal.SIGTERM, None)
            leaves = client.get("/ready")
            assert leaves.status_code == 503 and leaves.json()["error"]["code"] == "leaving"
            assert leaves.headers["connection"] == "close" and leaves.headers["retry-after"]
            assert client.get("/health").status_code == 200
            fixture.hold = lambda: time.sleep(2.5)  # it is still searching when the time is over
            answer = client.post("/v1/recommend", json=BODY)
            assert len(answer.json()["items"]) == 5 and time.monotonic() - began > 2.4
        thread.join(10)
        assert not thread.is_alive()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))
    finally:
        web.should_exit = True
        thread.join()
        fixture.close()


def test_a_second_signal_ends_it_at_once(folder, tmp_path):
    fixture = Fixture(folder, tmp_path / "log")
    web = Server(web_config(fixture.app, port=0), 60.0)
    thread = threading.Thread(target=web.run)
    thread.start()
    wait_for(lambda: web.started)
    web.handle_exit(signal.SIGTERM, None)
    web._captured_signals.clear()  # a thread of tests is not told again
    web.handle_exit(signal.SIGTERM, None)
    web._captured_signals.clear()
    thread.join(10)
    assert not thread.is_alive()
    fixture.close()


@pytest.mark.parametrize(
    ("given", "logged"),
    [
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "4bf92f3577b34da6a3ce929d0e0e4736"),
        ("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", "4bf92f3577b34da6a3ce929d0e0e4736"),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more", None),
        ("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01more", None),
        ("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", None),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", None),
        ("00-00000000000000000000000000000000-00f067aa0ba902b7-01", None),
        ("nonsense", None),
        (None, None),
    ],
)
def test_a_trace_stands_in_the_log(folder, tmp_path, caplog, given, logged):
    with serving(folder, tmp_path / "log") as (_, client), caplog.at_level("INFO", "llmrec.serving"):
        client.post("/v1/recommend", json=BODY, headers={} if given is None else {"traceparent": given})
    (line,) = [json.loads(record.message) for record in caplog.records if record.message.startswith("{")]
    assert line.get("trace") == logged
