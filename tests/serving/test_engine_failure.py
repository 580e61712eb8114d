"""Engines that die or hang under a server as users start it: it starts again, or ends for its supervisor."""

import os
import signal
import time

import psutil
import pytest
from safetensors.torch import load_file, save_file
from server_process import ServerProcess, serve
from serving_folders import random_folder

from llmrec.models.folder import write_checksums

BODY = {"history": ["item-0009"], "k": 5}


def engines(server: ServerProcess) -> list[psutil.Process]:
    children = psutil.Process(server.process.pid).children(recursive=True)
    there = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in there if "VLLM" in " ".join(child.cmdline())]


@pytest.mark.vllm
def test_a_dead_engine_is_replaced_and_a_hung_one_ends_the_server(tmp_path):
    folder = random_folder(tmp_path / "shop", depth=3, num_items=60, fixed=True)
    server = serve(folder, "--restarts", "1", "--engine_timeout_s", "8")
    try:
        assert server.http.get("/ready").json()["status"] == "ok"
        assert server.http.post("/v1/catalogue", json={"remove": ["item-0003"]}).status_code == 200
        expected = server.http.post("/v1/recommend", json=BODY).json()["items"]
        (engine,) = engines(server)
        engine.kill()
        waits, until = [], time.monotonic() + 120
        while (answer := server.http.post("/v1/recommend", json=BODY)).status_code != 200:  # the front goes on
            assert answer.status_code == 503 and answer.json()["error"]["code"] == "engine", answer.text
            waits.append(int(answer.headers["retry-after"]))
            assert server.http.get("/health").status_code == 200
            if len(waits) == 3:
                assert server.http.get("/ready").status_code == 503
                assert server.http.post("/v1/catalogue", json={"remove": ["item-0004"]}).status_code == 503
            assert time.monotonic() < until, server.log.read_text()[-3000:]
            time.sleep(0.2)
        assert waits[0] > waits[-1] >= 1  # it says what is left of the time that a start takes
        assert server.http.get("/ready").status_code == 200
        assert answer.json()["catalogue_version"] == 1
        assert [item["item_id"] for item in answer.json()["items"]] == [item["item_id"] for item in expected]

        (engine,) = engines(server)
        os.kill(engine.pid, signal.SIGSTOP)
        assert server.process.wait(60) == 3
        assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE
        assert "has not answered for 8 s: giving up" in server.log.read_text()
    finally:
        server.kill()


@pytest.mark.vllm
def test_a_server_that_is_told_to_stop_does_not_wait_for_an_engine_that_starts(tmp_path):
    folder = random_folder(tmp_path / "shop", depth=3, num_items=60, fixed=True)
    server = serve(folder, "--restarts", "1", "--drain_s", "1")
    try:
        (dead,) = engines(server)
        dead.kill()
        until = time.monotonic() + 60
        while not (new := [one for one in engines(server) if one.pid != dead.pid]):
            assert time.monotonic() < until, server.log.read_text()[-3000:]
            time.sleep(0.1)
        new[0].suspend()  # it never comes to be ready
        assert server.http.get("/ready").status_code == 503
        assert server.stop() == 0, server.log.read_text()[-3000:]
        assert not psutil.pid_exists(new[0].pid)
    finally:
        server.kill()


@pytest.mark.vllm
def test_weights_that_are_no_numbers_end_the_start(tmp_path):
    folder = random_folder(tmp_path / "shop", depth=3, num_items=60, fixed=True)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][:] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    write_checksums(folder)
    with pytest.raises(RuntimeError, match="error: .*shop recommends nothing, its weights may be damaged"):
        serve(folder)
