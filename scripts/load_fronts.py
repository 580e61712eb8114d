"""Two servers that follow one catalogue, behind nginx, while it changes every 5 seconds and they are killed.

    python scripts/load_fronts.py --minutes 3 --json fronts.json     # and 2 minutes to start; needs vLLM and nginx

deploy/nginx.conf sends requests to both, changes to the writer. One after the other, each when all are well again: the
engine of a server is killed, a server, the writer, and a server is told to stop (SIGTERM). Whoever ends is started
again. Requests come at half the rate that both managed in a closed loop.

Counted is what scripts/load_serving.py counts, through nginx alone: answers that name an item which their version
lacks, or from a version older than one that was acknowledged before the request was sent, requests without an answer.
All faults should be 0, and an engine and a server have been killed; the exit status says so. SIGTERM ends it early.
"""

import argparse
import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import psutil
from bench_serving import recommend
from load_serving import ITEMS, Watch
from serving_runs import (
    closed_loop,
    nginx_configuration,
    percentile_ms,
    random_folder,
    random_histories,
    save_json,
)

PORTS = {"front_0": 8201, "front_1": 8202, "catalogue": 8203}
BALANCER, WIDTH, CALM_S = 8200, 16, 8.0
FAULTS = "unknown_version invalid stale lost stuck refused_without_retry_after other_status failed_swaps not_back"


class Kept:
    """A server that is started again whenever it ends, as a supervisor does."""

    def __init__(self, name: str, folder: Path, directory: Path, *flags: str):
        self.name, self.url = name, f"http://127.0.0.1:{PORTS[name]}"
        self._log = (directory / f"{name}.log").open("w")
        self._command = [sys.executable, "-m", "llmrec.serving", str(folder), "--port", str(PORTS[name])]
        self._command += ["--catalogue_dir", str(directory / name), "--dtype", "float32", *flags]
        self.starts = 0
        self.start()

    def start(self) -> None:
        self.starts += 1
        self.process = subprocess.Popen(self._command, stdout=self._log, stderr=subprocess.STDOUT)

    def engine(self) -> psutil.Process:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return next(one for one in children if "VLLM" in " ".join(one.cmdline()))

    async def keep(self) -> None:
        while True:
            await asyncio.sleep(0.2)
            if self.process.poll() is not None:
                self.start()

    async def ready(self, longest_s: float = 300) -> bool:
        until = time.monotonic() + longest_s
        async with httpx.AsyncClient(base_url=self.url, timeout=5) as client:
            while time.monotonic() < until:
                try:
                    if (await client.get("/ready")).status_code == 200:
                        return True
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(0.3)
        return False

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()


async def harm(servers: dict[str, Kept], watch: Watch) -> None:
    """Kills one after the other, for as long as all come back."""
    ways = [
        ("kills of an engine", "front_0", lambda one: one.engine().kill()),
        ("kills of a server", "front_1", lambda one: one.process.kill()),
        ("kills of the writer", "catalogue", lambda one: one.process.kill()),
        ("servers told to stop", "front_0", lambda one: one.process.send_signal(signal.SIGTERM)),
    ]
    while True:
        for what, name, kill in ways:
            await asyncio.sleep(CALM_S)
            if time.monotonic() + CALM_S > watch.until:
                return
            server, began = servers[name], time.monotonic()
            starts, watch.down = server.starts, name == "catalogue"
            kill(server)
            while server.starts == starts and time.monotonic() - began < 60:
                await asyncio.sleep(0.1)
            watch.counts["not_back"] += server.starts == starts or not await server.ready()
            watch.down = False
            watch.counts[what] += 1
            watch.back_after.append(time.monotonic() - began)


async def run(servers: dict[str, Kept], watch: Watch, rate: float, minutes: float) -> None:
    bodies = [{"history": history, "k": 10} for history in random_histories(ITEMS, 500, seed=3)]
    watch.begin(minutes)
    keeping = [asyncio.create_task(server.keep()) for server in servers.values()]
    url = f"http://127.0.0.1:{BALANCER}"
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=None)) as client:
        running = [asyncio.create_task(one) for one in (watch.swap(client), harm(servers, watch), watch.tell())]
        while time.monotonic() < watch.until:
            running.append(asyncio.create_task(watch.request(client, random.choice(bodies), watch.seconds)))
            await asyncio.sleep(random.expovariate(rate))
        await asyncio.gather(*running)
        watch.counts["not_back"] += [await server.ready() for server in servers.values()].count(False)
        newest = {(await client.get(f"{one.url}/health")).json()["catalogue_version"] for one in servers.values()}
        watch.counts["not_level"] = int(newest != {max(watch.removed)})
    for task in keeping:
        task.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--json", help="write the figures here")
    parser.add_argument("--logs", type=Path, help="keep the logs of the servers in this folder")
    args = parser.parse_args()
    if (nginx := shutil.which("nginx")) is None:
        parser.exit(2, "error: nginx is not installed (on Debian and Ubuntu: apt-get install nginx)\n")
    random.seed(0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # servers are stopped, too
    watch = Watch()
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        folder = random_folder(scratch / "shop", ITEMS, 0, "vocabulary", num_beams=20)
        limits = "--max_concurrent", str(WIDTH), "--max_queue", str(4 * WIDTH), "--timeout_s", "30"
        follow = "--follow", f"http://127.0.0.1:{PORTS['catalogue']}", "--never_stale", "--drain_s", "3"
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"  # an engine is a process, which can be killed
        servers = {"catalogue": Kept("catalogue", folder, scratch, "--modes", "catalogue")}
        configuration = nginx_configuration(scratch, BALANCER, **PORTS)
        balancer = subprocess.Popen([nginx, "-c", configuration, "-e", scratch / "error"])
        try:
            servers |= {name: Kept(name, folder, scratch, *limits, *follow) for name in ("front_0", "front_1")}
            for server in servers.values():
                if not asyncio.run(server.ready(600)):
                    raise RuntimeError(f"{server.name} did not start: {(scratch / f'{server.name}.log').read_text()}")
            bodies = [{"history": history, "k": 10} for history in random_histories(ITEMS, 12 * WIDTH)]

            async def call(client, body):
                await recommend([], client, body)

            began = time.perf_counter()
            closed_loop(call, f"http://127.0.0.1:{BALANCER}", bodies, WIDTH)
            capacity = len(bodies) / (time.perf_counter() - began)
            print(f"capacity {capacity:.1f} requests a second; {args.minutes:g} minutes at half of that", flush=True)
            asyncio.run(run(servers, watch, capacity / 2, args.minutes))
        finally:
            for server in reversed(servers.values()):
                server.stop()
            balancer.terminate()
            if args.logs:
                args.logs.mkdir(parents=True, exist_ok=True)
                for log in [*scratch.glob("*.log"), scratch / "error"]:
                    shutil.copy(log, args.logs)
    if not watch.seconds:
        parser.exit(1, "it ended before anything was counted\n")
    figures = {
        "capacity_requests_per_s": capacity,
        "p50_ms": percentile_ms(watch.seconds, 50),
        "p99_ms": percentile_ms(watch.seconds, 99),
        "slowest_back_s": max(watch.back_after, default=0.0),
        **dict.fromkeys(FAULTS.split(), 0),
        **watch.counts,
    }
    for name, value in figures.items():
        print(f"  {name:<32} {value:>10.4g}")
    for one in watch.lost[:20]:
        print(f"  lost: {one}")
    save_json(args.json, figures, minutes=round(watch.minutes, 1))
    killed = watch.counts["kills of an engine"] and watch.counts["kills of a server"]
    sys.exit(int(any(watch.counts[name] for name in [*FAULTS.split(), "not_level"]) or not killed))


if __name__ == "__main__":
    main()
