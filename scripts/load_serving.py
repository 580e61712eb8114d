"""Overloads a server while its catalogue changes, kills it, and says whether anything went wrong.

    python scripts/load_serving.py --json load.json            # about 7 minutes, needs vLLM
    python scripts/load_serving.py --minutes 0.5

A random model with 3,500 items. Requests come at twice the rate that the server managed in a closed loop, whether or
not earlier ones were answered. Every 5 seconds ten items are removed, or put back. Then the server is killed with
SIGKILL and started again.

Counted are answers that name an item which their catalogue version lacks, answers from a version older than one that
was acknowledged before the request was sent, requests without an answer, refusals without Retry-After, and other
statuses; memory is watched. All counts should be 0; the exit status says so.
"""

import argparse
import asyncio
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import httpx
from bench_serving import recommend
from serving_runs import Server, closed_loop, percentile_ms, random_folder, random_histories, running_server, save_json

ITEMS, SWAP_S, WIDTH = 3_500, 5.0, 16
FLAGS = "--modes", "recommend", "--max_concurrent", str(WIDTH), "--max_queue", str(WIDTH), "--timeout_s", "20"


class Watch:
    """What was acknowledged, and what came back."""

    def __init__(self) -> None:
        self.removed: dict[int, frozenset[str]] = {0: frozenset()}  # by version
        self.acknowledged = 0
        self.counts: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.memory: list[float] = []

    async def request(self, client: httpx.AsyncClient, body: dict) -> None:
        least, began = self.acknowledged, time.perf_counter()
        self.counts["sent"] += 1
        try:
            answer = await client.post("/v1/recommend", json=body, timeout=60)
        except httpx.HTTPError:
            self.counts["lost"] += 1
            return
        if answer.status_code == 200:
            self.seconds.append(time.perf_counter() - began)
            self.counts["answered"] += 1
            recommended = answer.json()
            version = recommended["catalogue_version"]
            self.counts["stale"] += version < least
            gone = self.removed.get(version)
            if gone is None:  # its change is acknowledged to us only after this answer
                await asyncio.sleep(2 * SWAP_S)
                gone = self.removed.get(version)
            if gone is None:
                self.counts["unknown_version"] += 1
                return
            named = {item["item_id"] for item in recommended["items"]}
            known = {f"item-{number}" for number in range(ITEMS)}
            self.counts["invalid"] += not named <= known - gone or len(named) != body["k"]
        elif answer.status_code in (429, 503):
            self.counts["refused"] += 1
            self.counts["refused_without_retry_after"] += "retry-after" not in answer.headers
        else:
            self.counts["other_status"] += 1

    async def swap(self, client: httpx.AsyncClient, until: float) -> None:
        out: list[str] = []
        while time.monotonic() < until:
            began = time.monotonic()
            if out:
                body = {"put": [{"item_id": item, "title": "back again", "price": 1.0} for item in out]}
            else:
                body = {"remove": random.sample([f"item-{number}" for number in range(ITEMS)], 10)}
            answer = await client.post("/v1/catalogue", json=body, timeout=60)
            if answer.status_code == 200:
                out = body.get("remove", [])
                version = answer.json()["version"]
                self.removed[version] = frozenset(out)
                self.acknowledged = version
                self.counts["swaps"] += 1
            else:
                self.counts["failed_swaps"] += 1
            await asyncio.sleep(max(0.0, SWAP_S - (time.monotonic() - began)))

    async def weigh(self, server: Server, until: float) -> None:
        while time.monotonic() < until:
            self.memory.append(server.memory_gib())
            await asyncio.sleep(2)


async def overload(server: Server, watch: Watch, rate: float, seconds: float) -> None:
    """Requests at exponential distances, swaps and a scale beside them; waits until all are answered."""
    bodies = [{"history": history, "k": 10} for history in random_histories(ITEMS, 500, seed=3)]
    until = time.monotonic() + seconds
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, limits=limits) as client:
        beside = [watch.swap(client, until), watch.weigh(server, until)]
        running = [asyncio.create_task(one) for one in beside]
        while time.monotonic() < until:
            running.append(asyncio.create_task(watch.request(client, random.choice(bodies))))
            await asyncio.sleep(random.expovariate(rate))
        await asyncio.gather(*running)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--json", help="write the figures here")
    args = parser.parse_args()
    random.seed(0)
    watch = Watch()
    with tempfile.TemporaryDirectory() as temporary:
        folder = random_folder(Path(temporary) / "shop", ITEMS, 0, "vocabulary", num_beams=20)
        with running_server(folder, *FLAGS) as server:
            bodies = [{"history": history, "k": 10} for history in random_histories(ITEMS, 12 * WIDTH)]

            async def call(client, body):
                await recommend([], client, body)

            closed_loop(call, server.url, bodies[: 2 * WIDTH], WIDTH)
            began = time.perf_counter()
            closed_loop(call, server.url, bodies, WIDTH)
            capacity = len(bodies) / (time.perf_counter() - began)
            print(f"capacity {capacity:.1f} requests per second; {args.minutes:g} minutes at twice that", flush=True)
            asyncio.run(overload(server, watch, 2 * capacity, 60 * args.minutes))
            server.process.send_signal(signal.SIGKILL)  # the engine dies with its front
        with running_server(folder, *FLAGS) as server:
            state = httpx.get(f"{server.url}/v1/catalogue", timeout=60).json()
        gone = watch.removed[watch.acknowledged]
    third = len(watch.memory) // 3
    figures = {
        "capacity_requests_per_s": capacity,
        "p50_ms": percentile_ms(watch.seconds, 50),
        "p99_ms": percentile_ms(watch.seconds, 99),
        "memory_last_over_second_third": sum(watch.memory[-third:]) / sum(watch.memory[third : 2 * third]),
        "memory_gib": watch.memory[-1],
        "back_after_kill": int((state["version"], state["items"]) == (watch.acknowledged, ITEMS - len(gone))),
        **watch.counts,
    }
    for name, value in figures.items():
        print(f"  {name:<32} {value:>10.4g}")
    save_json(args.json, figures, minutes=args.minutes)
    wrong = "unknown_version invalid stale lost refused_without_retry_after other_status failed_swaps".split()
    flat = figures["memory_last_over_second_third"] <= 1.05
    sys.exit(int(any(watch.counts[name] for name in wrong) or not figures["back_after_kill"] or not flat))


if __name__ == "__main__":
    main()
