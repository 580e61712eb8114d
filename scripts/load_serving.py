"""Overloads a server while its catalogue changes, kills it, and says whether anything went wrong.

    python scripts/load_serving.py --json load.json            # about 7 minutes, needs vLLM
    python scripts/load_serving.py --minutes 60 --strangers --kill_every 300

A random model with 3,500 items. Requests come at twice the rate that the server managed in a closed loop, whether or
not earlier ones were answered. Every 5 seconds ten items are removed, or put back. With `--strangers` an abuser at
another address keeps 64 connections busy with the largest batches, a third one sends batches and leaves before the
answer, and a fourth is a well-behaved client that asks once at a time. With `--kill_every` an engine is killed every
so many seconds and started again. At last the server is killed with SIGKILL and started again.

Counted are answers that name an item which their catalogue version lacks, answers from a version older than one that
was acknowledged before the request was sent, requests without an answer (`stuck`: within a minute), refusals without
Retry-After, and other statuses; memory is watched. All counts should be 0, also while an engine that was killed is
started again; the exit status says so. A line a minute says how far it is. SIGTERM ends it early: what was counted
until then is written, with the minutes that it took.
"""

import argparse
import asyncio
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import httpx
from abuse_serving import flooded
from bench_serving import recommend
from serving_runs import Server, closed_loop, percentile_ms, random_folder, random_histories, running_server, save_json

ITEMS, SWAP_S, WIDTH = 3_500, 5.0, 16
FLAGS = "--modes", "recommend", "--max_concurrent", str(WIDTH), "--max_queue", str(WIDTH), "--timeout_s", "20"


def client_at(server: Server, address: str) -> httpx.AsyncClient:
    transport = httpx.AsyncHTTPTransport(local_address=address, limits=httpx.Limits(max_connections=None))
    return httpx.AsyncClient(base_url=server.url, transport=transport, timeout=60)


class Watch:
    """What was acknowledged, and what came back."""

    def __init__(self) -> None:
        self.removed: dict[int, frozenset[str]] = {0: frozenset()}  # by version
        self.acknowledged = 0
        self.counts: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.polite_seconds: list[float] = []
        self.memory: list[float] = []
        self.back_after: list[float] = []
        self.lost: list[str] = []
        self.down = False  # what changes the catalogue was killed, and gave no right answer since
        self.began = self.until = 0.0

    def begin(self, minutes: float) -> None:
        """For so long, or until SIGTERM."""
        self.began = time.monotonic()
        self.until = self.began + 60 * minutes
        signal.signal(signal.SIGTERM, self.stop)  # of the loop it would end with that, before servers are stopped

    def stop(self, *_) -> None:
        self.until = min(self.until, time.monotonic())

    @property
    def minutes(self) -> float:
        return (self.until - self.began) / 60

    async def tell(self) -> None:
        while (left := self.until - time.monotonic()) > 0:
            counts = ", ".join(f"{count:,} {what}" for what, count in self.counts.items() if count)
            print(f"{left / 60:.0f} of {self.minutes:.0f} minutes are left; {counts or 'it begins'}", flush=True)
            await asyncio.sleep(min(60, left))

    async def request(self, client: httpx.AsyncClient, body: dict, seconds: list[float]) -> None:
        least, began = self.acknowledged, time.perf_counter()
        self.counts["sent"] += 1
        try:
            answer = await client.post("/v1/recommend", json=body)
        except httpx.TimeoutException:
            self.counts["stuck"] += 1
            return
        except httpx.HTTPError as error:
            self.counts["lost"] += 1
            self.lost.append(f"{error!r} after {time.perf_counter() - began:.2f} s, engine dead: {self.down}")
            return
        if answer.status_code == 200:
            seconds.append(time.perf_counter() - began)
            self.counts["answered"] += 1
            recommended = answer.json()
            version = recommended["catalogue_version"]
            self.counts["stale"] += version < least
            until = time.monotonic() + 60
            while (gone := self.removed.get(version)) is None and time.monotonic() < until:
                await asyncio.sleep(SWAP_S / 5)  # its change is acknowledged to us only after this answer
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

    async def swap(self, client: httpx.AsyncClient) -> None:
        out: list[str] = []
        while time.monotonic() < self.until:
            began = time.monotonic()
            if out:
                body = {"put": [{"item_id": item, "title": "back again", "price": 1.0} for item in out]}
            else:
                body = {"remove": random.sample([f"item-{number}" for number in range(ITEMS)], 10)}
            version, acknowledged = await self._changed(client, body)
            if version is not None:
                out = body.get("remove", [])
                self.removed[version] = frozenset(out)
                self.counts["swaps"] += 1
            if acknowledged:
                self.acknowledged = version
            await asyncio.sleep(max(0.0, SWAP_S - (time.monotonic() - began)))

    async def _changed(self, client: httpx.AsyncClient, body: dict) -> tuple[int | None, bool]:
        """The version that a change made, and whether it was acknowledged; `None` where it was not made, which is a
        fault unless a process is dead."""
        try:
            answer = await client.post("/v1/catalogue", json=body)
            if answer.status_code == 200:
                return answer.json()["version"], True
        except httpx.HTTPError:
            pass
        if not self.down:
            self.counts["failed_swaps"] += 1
            return None, False
        while self.down:
            await asyncio.sleep(0.2)
        version = (await client.get("/v1/catalogue")).json()["version"]  # made, where only its answer was lost
        return (version if version > max(self.removed) else None), False

    async def weigh(self, server: Server) -> None:
        while time.monotonic() < self.until:
            if not self.down:
                self.memory.append(server.memory_gib())
            await asyncio.sleep(2)

    async def be_polite(self, client: httpx.AsyncClient, bodies: list[dict]) -> None:
        while time.monotonic() < self.until:
            await self.request(client, random.choice(bodies), self.polite_seconds)
            await asyncio.sleep(0.2)

    async def leave(self, client: httpx.AsyncClient, bodies: list[dict]) -> None:
        """Batches whose sender is gone before the answer."""
        while time.monotonic() < self.until:
            sending = client.post("/v1/recommend/batch", json={"requests": bodies[:64]})
            try:
                await asyncio.wait_for(sending, random.uniform(0.01, 0.5))
            except (TimeoutError, httpx.HTTPError):
                self.counts["left"] += 1

    async def kill_engines(self, server: Server, every: float) -> None:
        due = self.began + every
        while due < self.until:
            await asyncio.sleep(0.2)
            if time.monotonic() < due:
                continue
            self.down, began = True, time.monotonic()
            server.engine().kill()
            async with client_at(server, "127.0.0.5") as client:
                while self.down and time.monotonic() - began < 300:
                    await asyncio.sleep(0.2)
                    try:
                        answer = await client.post("/v1/recommend", json={"history": ["item-7"], "k": 10})
                        self.down = answer.status_code != 200 or len(answer.json()["items"]) != 10
                    except httpx.HTTPError:
                        continue
            self.back_after.append(time.monotonic() - began)
            self.counts["kills"] += 1
            self.counts["not_back"] += self.down
            due = time.monotonic() + every


async def overload(server: Server, watch: Watch, rate: float, args: argparse.Namespace) -> None:
    """Requests at exponential distances, swaps and a scale beside them; waits until all are answered."""
    bodies = [{"history": history, "k": 10} for history in random_histories(ITEMS, 500, seed=3)]
    watch.begin(args.minutes)
    async with (
        client_at(server, "127.0.0.1") as client,
        client_at(server, "127.0.0.3") as leaving,
        client_at(server, "127.0.0.4") as polite,
    ):
        beside = [watch.swap(client), watch.weigh(server), watch.tell()]
        if args.strangers:
            beside += [watch.be_polite(polite, bodies), watch.leave(leaving, bodies)]
        if args.kill_every:
            beside.append(watch.kill_engines(server, args.kill_every))
        running = [asyncio.create_task(one) for one in beside]
        while time.monotonic() < watch.until:
            running.append(asyncio.create_task(watch.request(client, random.choice(bodies), watch.seconds)))
            await asyncio.sleep(random.expovariate(rate))
        await asyncio.gather(*running)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument(
        "--strangers", action="store_true", help="an abuser, one who leaves, and a well-behaved client"
    )
    parser.add_argument("--kill_every", type=float, default=0.0, help="seconds between kills of an engine; 0: none")
    parser.add_argument("--json", help="write the figures here")
    args = parser.parse_args()
    random.seed(0)
    watch = Watch()
    with tempfile.TemporaryDirectory() as temporary:
        folder = random_folder(Path(temporary) / "shop", ITEMS, 0, "vocabulary", num_beams=20)
        with running_server(folder, *FLAGS, "--restarts", "1000") as server:
            bodies = [{"history": history, "k": 10} for history in random_histories(ITEMS, 12 * WIDTH)]

            async def call(client, body):
                await recommend([], client, body)

            closed_loop(call, server.url, bodies[: 2 * WIDTH], WIDTH)
            began = time.perf_counter()
            closed_loop(call, server.url, bodies, WIDTH)
            capacity = len(bodies) / (time.perf_counter() - began)
            print(f"capacity {capacity:.1f} requests per second; {args.minutes:g} minutes at twice that", flush=True)
            with flooded(server.url) if args.strangers else nullcontext():
                asyncio.run(overload(server, watch, 2 * capacity, args))
            if len(watch.memory) < 3 or not watch.seconds:
                parser.exit(1, "it ended before anything was counted\n")
            server.process.send_signal(signal.SIGKILL)  # the engine dies with its front
        with running_server(folder, *FLAGS) as server:
            state = httpx.get(f"{server.url}/v1/catalogue", timeout=60).json()
        gone = watch.removed[watch.acknowledged]
    polite = {}
    if watch.polite_seconds:
        polite = {f"polite_p{share}_ms": percentile_ms(watch.polite_seconds, share) for share in (50, 99)}
    if watch.back_after:
        polite["slowest_back_s"] = max(watch.back_after)
    third = len(watch.memory) // 3
    figures = {
        "capacity_requests_per_s": capacity,
        "p50_ms": percentile_ms(watch.seconds, 50),
        "p99_ms": percentile_ms(watch.seconds, 99),
        **polite,
        "memory_last_over_second_third": sum(watch.memory[-third:]) / sum(watch.memory[third : 2 * third]),
        "memory_mib_first": 1024 * watch.memory[0],
        "memory_mib_last": 1024 * watch.memory[-1],
        "back_after_kill": int((state["version"], state["items"]) == (watch.acknowledged, ITEMS - len(gone))),
        **watch.counts,
    }
    for name, value in figures.items():
        print(f"  {name:<32} {value:>10.4g}")
    for one in watch.lost[:20]:
        print(f"  lost: {one}")
    save_json(args.json, figures, minutes=round(watch.minutes, 1))
    wrong = "unknown_version invalid stale lost stuck refused_without_retry_after other_status failed_swaps not_back"
    flat = figures["memory_last_over_second_third"] <= 1.05
    sys.exit(int(any(watch.counts[name] for name in wrong.split()) or not figures["back_after_kill"] or not flat))


if __name__ == "__main__":
    main()
