"""`scripts/nginx.conf` before the real front, and `deploy/nginx.conf` before several, where nginx is installed."""

import os
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
from http_fixtures import listening, tiny_folder, wait_for
from server_process import free_port
from serving_runs import nginx_configuration

CONFIG = Path(__file__).parents[2] / "scripts" / "nginx.conf"
BODY = {"history": ["item-03", "item-04"], "k": 5}
NGINX = shutil.which("nginx")


@pytest.mark.skipif(NGINX is None or shutil.which("openssl") is None, reason="no nginx")
def test_what_users_need_passes_and_nothing_else(tmp_path):
    made = ["-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem", "-subj", "/CN=localhost", "-days", "1"]
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *made], check=True)
    port = free_port()
    with listening(tiny_folder(tmp_path), tmp_path / "log") as (_, behind):
        text = CONFIG.read_text().replace("http://127.0.0.1:8000", behind).replace("/etc/ssl/llmrec", str(tmp_path))
        own = "".join(
            f"{one}_temp_path {tmp_path}/{one};" for one in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        text = f"access_log off; {own} {text.replace('443', f'127.0.0.1:{port}')}"
        user = "user root; " if os.geteuid() == 0 else ""
        files = f"{user} daemon off; pid {tmp_path}/pid; error_log {tmp_path}/error;"
        (tmp_path / "nginx.conf").write_text(f"{files} events {{}} http {{ {text} }}")
        with subprocess.Popen([NGINX, "-c", tmp_path / "nginx.conf", "-e", tmp_path / "error"]) as nginx:
            try:
                with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=False) as client:
                    wait_for(lambda: answers(client))
                    assert len(client.post("/v1/recommend", json=BODY).json()["items"]) == 5
                    assert client.get("/v1/catalogue").status_code == 200
                    for path, body in (("", {"remove": ["item-00"]}), ("/rollback", {"version": 0})):
                        assert client.post(f"/v1/catalogue{path}", json=body).status_code == 403
                    for page in ("/docs", "/openapi.json", "/metrics", "/ready"):
                        assert client.get(page).status_code == 404
                    assert client.post("/v1/recommend", content=b" " * 2**21).status_code == 413
                    statuses = [client.get("/v1/models").status_code for _ in range(100)]
                    assert statuses[0] == 200 and statuses[-1] == 429
            finally:
                nginx.terminate()


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.skipif(NGINX is None, reason="no nginx")
def test_what_one_server_lost_another_answers(tmp_path):
    folder, port = tiny_folder(tmp_path), free_port()
    at = lambda url: int(url.rpartition(":")[2])  # noqa: E731
    with listening(folder, tmp_path / "0") as (front, url), listening(folder, tmp_path / "1") as (writer, changes):
        ports = {"front_0": at(url), "front_1": free_port(), "catalogue": at(changes)}  # front_1 is not there
        path = nginx_configuration(tmp_path, port, **ports)
        with subprocess.Popen([NGINX, "-c", path, "-e", tmp_path / "error"]) as nginx:
            try:
                with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                    wait_for(lambda: answers(client))
                    found = [client.post("/v1/recommend", json=BODY) for _ in range(20)]
                    assert [len(answer.json()["items"]) for answer in found] == [5] * 20
                    assert client.post("/v1/catalogue", json={"remove": ["item-00"]}).status_code == 200
                    assert writer.published == [1] and not front.published
                    assert client.get("/metrics").status_code == 404
            finally:
                nginx.terminate()


@pytest.mark.skipif(NGINX is None, reason="no nginx")
def test_where_no_server_is_who_asks_is_told_when_to_come_back(tmp_path):
    port = free_port()
    path = nginx_configuration(tmp_path, port, front_0=free_port(), front_1=free_port(), catalogue=free_port())
    with subprocess.Popen([NGINX, "-c", path, "-e", tmp_path / "error"]) as nginx:
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
                wait_for(lambda: reached(client))
                for path, body in (("/v1/recommend", BODY), ("/v1/catalogue", {"remove": ["item-00"]})):
                    answer = client.post(path, json=body)
                    assert answer.status_code == 503 and answer.headers["retry-after"]
                    assert answer.json()["error"]["code"] == "unavailable"
        finally:
            nginx.terminate()


def reached(client: httpx.Client) -> bool:
    try:
        return client.get("/").status_code == 404
    except httpx.TransportError:
        return False
