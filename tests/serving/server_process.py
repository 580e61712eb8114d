"""A real server in processes of its own, for tests."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class ServerProcess:
    """`command` with `--port`; it answers at `ready` when the constructor returns.

    Attributes:
        http (`httpx.Client`): for its routes.
    """

    def __init__(self, command: list[str], log: Path, ready: str = "/health", **environment: str):
        self.port = free_port()
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, *command, "--port", str(self.port)],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", **environment},
                start_new_session=True,
            )
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=120)
        until = time.monotonic() + 400
        while True:
            try:
                if self.http.get(ready).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.5)
            if self.process.poll() is not None or time.monotonic() > until:
                self.kill()
                raise RuntimeError("the server did not start:\n" + log.read_text()[-3000:])

    def stop(self) -> int:
        """SIGTERM; gives the exit status."""
        self.http.close()
        self.process.terminate()
        try:
            return self.process.wait(60)
        finally:
            self.kill()

    def kill(self) -> None:
        """SIGKILL to everything that it started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


def serve(folder: Path, *flags: str, **environment: str) -> ServerProcess:
    command = ["-m", "llmrec.serving", str(folder), "--dtype", "float32", *flags]
    return ServerProcess(command, folder.with_suffix(".log"), **environment)
