"""What the benchmark and the load test of serving share: random model folders, a server and its processes, clients."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import psutil
import pyarrow as pa
import torch
from bench_decoding import random_model

from llmrec.catalogue.semids import SemIDIndex
from llmrec.files import atomic_path, write_json
from llmrec.instructions import load_prompt
from llmrec.models.folder import RecommenderConfig, plain_generation_config, write_sidecars
from llmrec.models.from_scratch import train_tokenizer

LEVELS, SIZE = 3, 256
NGINX_CONF = Path(__file__).parents[1] / "deploy/nginx.conf"
_NGINX_SCRATCH = "client_body", "proxy", "fastcgi", "uwsgi", "scgi"


def random_index(num_items: int) -> SemIDIndex:
    """Distinct SemIDs of 3 levels of 256 codes."""
    numbers = np.random.default_rng(0).permutation(SIZE**LEVELS)[:num_items]
    codes = np.stack(np.unravel_index(numbers, (SIZE,) * LEVELS), 1).astype(np.int32)
    return SemIDIndex([f"item-{number}" for number in range(num_items)], codes, [SIZE] * LEVELS)


def random_items(num_items: int) -> pa.Table:
    """Titles, prices, 20 categories, 1,000 brands, and what is in stock."""
    rng = np.random.default_rng(1)
    names = pa.array([f"category {number}" for number in range(20)])
    return pa.table(
        {
            "item_id": [f"item-{number}" for number in range(num_items)],
            "title": [f"thing {number}" for number in range(num_items)],
            "category": pa.DictionaryArray.from_arrays(rng.integers(0, 20, num_items).astype(np.int32), names).cast(
                pa.string()
            ),
            "brand": pa.array(rng.integers(0, 1000, num_items)).cast(pa.string()),
            "price": rng.uniform(1, 100, num_items).round(2),
            "in_stock": rng.random(num_items) < 0.8,
        }
    )


def random_folder(folder: Path, num_items: int, vocab_size: int, normalize: str, num_beams: int = 50) -> Path:
    """A model folder around `bench_decoding.random_model`: 4 layers of width 256, untied."""
    if folder.is_dir():
        return folder
    tokenizer = train_tokenizer([f"thing {number}" for number in range(1000)], 400)
    index = random_index(num_items)
    tokenizer.add_tokens(index.tokens)
    model = random_model(max(vocab_size, len(tokenizer)))
    model.config.eos_token_id = tokenizer.eos_token_id
    model.generation_config = plain_generation_config(tokenizer)
    config = RecommenderConfig(
        load_prompt("stream").to_dict(), 50, num_beams, normalize, semid_fingerprint=index.fingerprint
    )
    with atomic_path(folder) as path:
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        write_sidecars(path, config, index, random_items(num_items))
    return folder


def random_histories(num_items: int, count: int, seed: int = 2) -> list[list[str]]:
    """Of 46 to 50 items, which makes prompts of about 150 tokens."""
    rng = np.random.default_rng(seed)
    return [[f"item-{n}" for n in rng.integers(0, num_items, rng.integers(46, 51))] for _ in range(count)]


def nginx_configuration(directory: Path, port: int, **ports: int) -> Path:
    """deploy/nginx.conf for servers on this machine: it listens on `port`, and its names are `ports`."""
    text = NGINX_CONF.read_text(encoding="utf-8").replace("listen 80;", f"listen 127.0.0.1:{port};")
    for name, at in ports.items():
        text = text.replace(f"server {name}:8000", f"server 127.0.0.1:{at}")
    return nginx_file(directory, text)


def nginx_file(directory: Path, servers: str) -> Path:
    """A configuration with these blocks of `http`, for an nginx that needs no folder but `directory`."""
    scratch = "".join(f"{kind}_temp_path {directory}/{kind};" for kind in _NGINX_SCRATCH)
    user = "user root;" if os.getuid() == 0 else ""
    path = directory / "nginx.conf"
    path.write_text(
        f"{user} daemon off; pid {directory}/pid; error_log {directory}/error; events {{}}\n"
        f"http {{ access_log off; {scratch}\n{servers} }}\n"
    )
    return path


class Server:
    """`python -m llmrec.serving` and the processes that it starts."""

    def __init__(self, process: subprocess.Popen, url: str):
        self.process, self.url = process, url

    def processes(self) -> list[psutil.Process]:
        """The front first."""
        front = psutil.Process(self.process.pid)
        return [front, *front.children(recursive=True)]

    def engine(self) -> psutil.Process:
        return next(one for one in self.processes()[1:] if "VLLM" in " ".join(one.cmdline()))

    def cpu_s(self) -> float:
        """CPU seconds of all its processes so far."""
        times = [process.cpu_times() for process in self.processes()]
        return sum(one.user + one.system for one in times)

    def memory_gib(self) -> float:
        """Resident memory of all its processes; pages that they share count once for each."""
        return sum(process.memory_info().rss for process in self.processes()) / 2**30


@contextmanager
def running_server(
    folder: Path, *flags: str, port: int = 8199, log: Path | None = None, checkout: Path | None = None
) -> Iterator[Server]:
    """Starts a server, waits until it is healthy, and stops it at the end, which SIGTERM is too. `checkout`: whose, by
    default this."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    command = [sys.executable, "-m", "llmrec.serving", str(folder), "--port", str(port), "--dtype", "float32", *flags]
    log = log or folder / "server.log"
    environment = {**os.environ, "PYTHONPATH": str(checkout)} if checkout else None
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=checkout)
    url, began = f"http://127.0.0.1:{port}", time.monotonic()
    try:
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"the server stopped (exit status {process.returncode}); see {log}")
            try:
                if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.5)
            if time.monotonic() - began > 900:
                raise RuntimeError(f"the server was not healthy within 15 minutes; see {log}")
        yield Server(process, url)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def closed_loop(
    call: Callable[[httpx.AsyncClient, dict], object], url: str, bodies: Sequence[dict], users: int
) -> list[float]:
    """Seconds of every request; each of `users` sends its next one when the last was answered.

    Args:
        call: an async function that sends a body and raises where the answer is not right.
    """
    seconds: list[float] = []

    async def run() -> None:
        waiting = iter(bodies)
        limits = httpx.Limits(max_connections=users, max_keepalive_connections=users)
        async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:

            async def user() -> None:
                for body in waiting:
                    began = time.perf_counter()
                    await call(client, body)
                    seconds.append(time.perf_counter() - began)

            await asyncio.gather(*(user() for _ in range(users)))

    asyncio.run(run())
    return seconds


def percentile_ms(seconds: Sequence[float], share: float) -> float:
    return float(np.percentile(seconds, share)) * 1e3


def save_json(path: str | None, figures: dict, **context) -> None:
    """Writes figures, and where they come from."""
    if path:
        write_json(path, {"figures": figures, "torch": torch.__version__, **context})
