"""`scripts/nginx.conf` before the real front, where nginx is installed."""

import os
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
from http_fixtures import listening, tiny_folder, wait_for
from server_process import free_port

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
