"""What scripts that measure servers do when they are told to stop."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from serving_runs import running_server

SCRIPTS = Path(__file__).parents[1] / "scripts"
WAITS = "import time; print('up', flush=True); time.sleep(600)"


def run(folder: Path) -> None:
    with running_server(folder, log=folder / "log", checkout=folder):
        pass


def test_sigterm_stops_the_server_of_a_script(tmp_path):
    serving = tmp_path / "llmrec/serving"
    serving.mkdir(parents=True)
    for folder in (serving, serving.parent):
        (folder / "__init__.py").touch()
    (serving / "__main__.py").write_text(WAITS)  # a server that is never healthy
    script = multiprocessing.get_context("fork").Process(target=run, args=(tmp_path,))
    script.start()
    try:
        while not (log := tmp_path / "log").exists() or "up" not in log.read_text():
            assert script.is_alive()
        (server,) = psutil.Process(script.pid).children()
        script.terminate()
        script.join(30)
        assert script.exitcode == 1 and not server.is_running()
    finally:
        script.kill()


@pytest.mark.slow
def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
    command = [sys.executable, str(SCRIPTS / "bench_serving.py"), "--beside", "."]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS.parent)}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ended.returncode == 2 and "--beside . is no checkout of llmrec" in ended.stderr
