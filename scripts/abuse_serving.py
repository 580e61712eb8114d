"""What one client's flood costs another: the latency of single requests, quiet and beside 64 connections of batches.

    python scripts/abuse_serving.py --json abuse.json --kill   # needs vLLM
    python scripts/abuse_serving.py --seconds 20

A random model with 3,500 items. The well-behaved client sends one request after the other (k = 10), from 127.0.0.1;
the other one, from 127.0.0.2, keeps 64 connections busy with the largest batches that are allowed (128 requests, k =
200). With `--kill` the engine is killed at the end, and the seconds until the next right answer are measured.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
from serving_runs import Server, percentile_ms, random_folder, random_histories, running_server, save_json

ITEMS, CONNECTIONS, BATCH, K = 3_500, 64, 128, 200


async def behave(url: str, seconds: float) -> tuple[list[float], Counter]:
    """`(seconds of every answer, statuses)` of a client that sends one request after the other."""
    took, statuses, histories = [], Counter(), cycle(random_histories(ITEMS, 1000, seed=3))
    until = time.monotonic() + seconds
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        for history in histories:
            if (began := time.monotonic()) > until:
                break
            answer = await client.post("/v1/recommend", json={"history": history, "k": 10})
            statuses[answer.status_code] += 1
            if answer.status_code == 200:
                took.append(time.monotonic() - began)
    return took, statuses


@contextmanager
def flooded(url: str) -> Iterator[Counter]:
    """A flood of batches on all connections. It comes from a process of its own with the lowest priority, for a real
    one comes from another machine; the statuses of its answers are there at the end."""
    statuses: Counter = Counter()
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_flood, args=(url, theirs), daemon=True)
    process.start()
    ours.recv()
    try:
        yield statuses
    finally:
        ours.send("stop")
        statuses.update(ours.recv())
        process.join()


def _flood(url: str, told: Connection) -> None:
    os.nice(19)
    statuses: Counter = Counter()
    requests = [{"history": history, "k": K} for history in random_histories(ITEMS, BATCH)]
    body, headers = json.dumps({"requests": requests}), {"Content-Type": "application/json"}

    async def run() -> None:
        transport = httpx.AsyncHTTPTransport(local_address="127.0.0.2", limits=httpx.Limits(max_connections=None))
        async with httpx.AsyncClient(base_url=url, transport=transport, timeout=120) as client:

            async def one() -> None:
                while True:
                    try:
                        answer = await client.post("/v1/recommend/batch", content=body, headers=headers)
                        statuses[answer.status_code] += 1
                    except httpx.HTTPError as error:  # of a server that starts again
                        statuses[type(error).__name__] += 1
                    else:
                        if answer.status_code == 200:
                            continue
                    await asyncio.sleep(0.1)

            running = [asyncio.create_task(one()) for _ in range(CONNECTIONS)]
            told.send("ready")
            await asyncio.to_thread(told.recv)
            for task in running:
                task.cancel()

    asyncio.run(run())
    told.send(statuses)


def summary(seconds: list[float], statuses: Counter) -> dict:
    return {"p50": percentile_ms(seconds, 50), "p99": percentile_ms(seconds, 99), "statuses": statuses}


def killed(server: Server, url: str) -> float:
    """Seconds from the death of an engine to the next right answer."""
    server.engine().kill()
    began = time.monotonic()
    while True:
        try:
            answer = httpx.post(f"{url}/v1/recommend", json={"history": ["item-7"], "k": 10}, timeout=60)
            if answer.status_code == 200 and len(answer.json()["items"]) == 10:
                return time.monotonic() - began
        except httpx.TransportError:
            pass
        time.sleep(0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30, help="of each of the two measurements")
    parser.add_argument("--kill", action="store_true", help="kill the engine at the end")
    parser.add_argument("--json", type=Path, help="where the figures go")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = random_folder(Path(scratch) / "model", ITEMS, 4000, "vocabulary")
        with running_server(folder, "--restarts", "1") as server:
            quiet, statuses = asyncio.run(behave(server.url, args.seconds))
            with flooded(server.url) as other:
                time.sleep(5)
                beside, own = asyncio.run(behave(server.url, args.seconds))
            figures = {"quiet": summary(quiet, statuses), "beside a flood": summary(beside, own)}
            figures["the flood"] = {"statuses": other}
            if args.kill:
                figures["engine's death to the next answer, s"] = round(killed(server, server.url), 1)
    for what, figure in figures.items():
        print(f"{what}: {figure}")
    if args.json:
        save_json(args.json, figures)


if __name__ == "__main__":
    main()
