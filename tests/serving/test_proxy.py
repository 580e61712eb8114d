"""`scripts/nginx.conf` before the real front, and `deploy/nginx.conf` before several, where nginx is installed."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from http_fixtures import listening, tiny_folder, wait_for
from server_process import free_port
from serving_runs import nginx_configuration, nginx_file

CONFIG = Path(__file__).parents[2] / "scripts" / "nginx.conf"
BODY = {"history": ["item-03", "item-04"], "k": 5}
NGINX = shutil.which("nginx")


@contextmanager
def proxied(
    configuration: Path, url: str, there: tuple[str, int] = ("/health", 200), **client
) -> Iterator[httpx.Client]:
    """A client of an nginx with this configuration, once a path there has this status."""

    def answers() -> bool:
        try:
            return asking.get(there[0]).status_code == there[1]
        except httpx.TransportError:
            return False

    with subprocess.Popen([NGINX, "-c", configuration, "-e", configuration.parent / "error"]) as nginx:
        try:
            with httpx.Client(base_url=url, **client) as asking:
                wait_for(answers)
                yield asking
        finally:
            nginx.terminate()


@pytest.mark.skipif(NGINX is None or shutil.which("openssl") is None, reason="no nginx")
def test_what_users_need_passes_and_nothing_else(tmp_path):
    made = ["-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem", "-subj", "/CN=localhost", "-days", "1"]
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *made], check=True)
    port = free_port()
    with listening(tiny_folder(tmp_path), tmp_path / "log") as (_, behind):
        text = CONFIG.read_text().replace("http://127.0.0.1:8000", behind).replace("/etc/ssl/llmrec", str(tmp_path))
        path = nginx_file(tmp_path, text.replace("443", f"127.0.0.1:{port}"))
        with proxied(path, f"https://127.0.0.1:{port}", verify=False) as client:
            assert len(client.post("/v1/recommend", json=BODY).json()["items"]) == 5
            assert client.get("/v1/catalogue").status_code == 200
            for path, body in (("", {"remove": ["item-00"]}), ("/rollback", {"version": 0})):
                assert client.post(f"/v1/catalogue{path}", json=body).status_code == 403
            for page in ("/docs", "/openapi.json", "/metrics", "/ready"):
                assert client.get(page).status_code == 404
            assert client.post("/v1/recommend", content=b" " * 2**21).status_code == 413
            statuses = [client.get("/v1/models").status_code for _ in range(100)]
            assert statuses[0] == 200 and statuses[-1] == 429


@pytest.mark.skipif(NGINX is None, reason="no nginx")
def test_what_one_server_lost_another_answers(tmp_path):
    folder, port = tiny_folder(tmp_path), free_port()
    at = lambda url: int(url.rpartition(":")[2])  # noqa: E731
    with listening(folder, tmp_path / "0") as (front, url), listening(folder, tmp_path / "1") as (writer, changes):
        ports = {"front_0": at(url), "front_1": free_port(), "catalogue": at(changes)}  # front_1 is not there
        path = nginx_configuration(tmp_path, port, **ports)
        with proxied(path, f"http://127.0.0.1:{port}", timeout=30) as client:
            found = [client.post("/v1/recommend", json=BODY) for _ in range(20)]
            assert [len(answer.json()["items"]) for answer in found] == [5] * 20
            assert client.post("/v1/catalogue", json={"remove": ["item-00"]}).status_code == 200
            assert writer.published == [1] and not front.published
            assert client.get("/metrics").status_code == 404


@pytest.mark.skipif(NGINX is None, reason="no nginx")
def test_where_no_server_is_who_asks_is_told_when_to_come_back(tmp_path):
    port = free_port()
    path = nginx_configuration(tmp_path, port, front_0=free_port(), front_1=free_port(), catalogue=free_port())
    with proxied(path, f"http://127.0.0.1:{port}", ("/", 404)) as client:
        for path, body in (("/v1/recommend", BODY), ("/v1/catalogue", {"remove": ["item-00"]})):
            answer = client.post(path, json=body)
            assert answer.status_code == 503 and answer.headers["retry-after"]
            assert answer.json()["error"]["code"] == "unavailable"
