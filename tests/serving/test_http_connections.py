"""Connections of clients that mean no good: heads without end, bodies in crumbs, more of them than there are files."""

import logging
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil
import pytest
from http_fixtures import listening, listening_app, tiny_folder, wait_for

from llmrec.serving.http import connections
from llmrec.serving.http.connections import HEAD_BYTES, Connection

BODY = {"history": ["item-03", "item-04"], "k": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("http"))


def connected(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1000) == b""
    except ConnectionError:
        return True


def answered(connection: socket.socket) -> bool:
    """Reads one answer of `app` to its end: head and body may come apart."""
    answer = b""
    while not answer.endswith(b"\r\n\r\nok"):
        some = connection.recv(1000)
        if not some:
            return False
        answer += some
    return True


async def app(scope, receive, send):
    """Answers everything."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


def test_a_head_without_end_is_closed():
    with listening_app(app) as url, connected(url) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nA: ")
        sent = 0
        with pytest.raises(OSError):
            while sent < 100 * HEAD_BYTES:
                sent += connection.send(b"a" * 4096)
        assert httpx.get(url).text == "ok"


def test_a_head_of_many_fields_may_be_of_some_size():
    with listening_app(app) as url:
        assert httpx.get(url, headers={"a": "b" * (HEAD_BYTES // 2)}).text == "ok"


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost: a\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /"])
def test_half_a_head_does_not_stay(monkeypatch, begun):
    monkeypatch.setattr(connections, "HEAD_S", 0.3)
    with listening_app(app, timeout_keep_alive=30) as url, connected(url) as connection:
        connection.sendall(begun)
        if begun.endswith(b"GET /"):
            assert answered(connection)
        began = time.monotonic()
        assert is_closed(connection) and time.monotonic() - began < 5


def test_a_body_in_crumbs_is_refused(folder, tmp_path):
    with listening(folder, tmp_path) as (_, url), connected(url) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = b"POST /v1/recommend HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        answer = b""
        connection.setblocking(False)
        for _ in range(20_000):
            try:
                connection.send(b"1\r\n \r\n")
                time.sleep(0.0002)
                answer += connection.recv(1000)
            except BlockingIOError:
                continue
            except OSError:
                break
            if answer:
                break
        assert b"400 Bad Request" in answer
        assert len(httpx.post(f"{url}/v1/recommend", json=BODY).json()["items"]) == 5


def test_one_more_connection_closes_the_longest_idle(caplog, monkeypatch):
    monkeypatch.setattr(Connection, "_told", -60.0)
    with caplog.at_level(logging.WARNING, "llmrec.serving"), listening_app(app, limit_concurrency=20) as url:
        with ExitStack() as held:
            many = [held.enter_context(connected(url)) for _ in range(60)]
            assert all(is_closed(one) for one in many[:39])
            assert httpx.get(url).text == "ok"
            many[-1].sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert answered(many[-1])
    assert len(caplog.records) == 1 and "20 connections are open" in caplog.text


def test_connections_stay_for_longer_than_clients_and_nginx_keep_them():
    """Where the server ends them first, a request that is under way is lost."""
    assert connections.web_config(app).timeout_keep_alive > max(httpx.Limits().keepalive_expiry, 60)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_connection_that_asks_to_become_a_web_socket_stays_one_of_http(caplog, method):
    """As a web socket it had no deadline, and where there were many of them who came next was not taken in."""
    with listening_app(app) as url, connected(url) as one:
        one.settimeout(5)
        one.sendall(f"{method} / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n".encode())
        assert answered(one)
        one.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert answered(one)


def test_who_leaves_before_the_end_of_a_body_makes_one_line_of_the_log(folder, tmp_path, caplog):
    with caplog.at_level(logging.INFO), listening(folder, tmp_path) as (_, url):
        for path in ("recommend", "recommend/batch", "catalogue"):
            with connected(url) as connection:
                head = f"POST /v1/{path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                connection.sendall(f"{head}Content-Length: 9\r\n\r\n{{".encode())
        wait_for(lambda: sum('"POST"' in record.getMessage() for record in caplog.records) == 3)
        lines = [record for record in caplog.records if record.name in ("llmrec.serving", "uvicorn.error")]
    assert len(lines) == 3 and not any(record.exc_info for record in lines), caplog.text
    assert '"status": 499' in lines[0].getMessage()


def test_without_files_for_more_connections_the_front_rests_and_answers(tmp_path):
    command, log, pipe = (
        [sys.executable, Path(__file__).with_name("few_files.py")],
        tmp_path / "stderr",
        subprocess.PIPE,
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True, env=environment) as front,
    ):
        url = front.stdout.readline().strip()
        with ExitStack() as held:
            for _ in range(400):
                held.enter_context(connected(url))
            before = sum(psutil.Process(front.pid).cpu_times()[:2])
            time.sleep(0.5)
            assert sum(psutil.Process(front.pid).cpu_times()[:2]) - before < 0.2
            assert httpx.get(url, timeout=30).text == "ok"
        front.stdin.close()
        assert front.wait(30) == 0
    assert 0 < log.stat().st_size < 2000, log.read_text()[:2000]  # it says once that it closes connections


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")
def test_https(tmp_path):
    files = {"ssl_certfile": str(tmp_path / "cert.pem"), "ssl_keyfile": str(tmp_path / "key.pem")}
    made = ["-keyout", files["ssl_keyfile"], "-out", files["ssl_certfile"], "-subj", "/CN=localhost", "-days", "1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *made]
    subprocess.run(command, check=True, capture_output=True)
    with listening_app(app, **files) as url:
        assert httpx.get(url.replace("http:", "https:"), verify=False).text == "ok"
        with pytest.raises(httpx.TransportError):
            httpx.get(url)
