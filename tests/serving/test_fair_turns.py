"""Turns at the engines: equal shares for clients, whatever one of them sends, and no work that nobody waits for."""

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import pytest
from fastapi import Request
from http_fixtures import serving, tiny_folder, wait_for

from llmrec.serving.http.errors import ApiError
from llmrec.serving.http.limits import Gate, client_of
from llmrec.serving.in_flight import remembered


class Asking:
    """Requests at a gate: each holds its turn until `end` says so."""

    def __init__(self, gate: Gate):
        self.gate, self.order, self.refused = gate, [], []
        self._free = asyncio.Semaphore(0)

    def ask(self, client: str, cost: float = 1.0) -> asyncio.Task:
        return asyncio.create_task(self._ask(client, cost))

    async def _ask(self, client: str, cost: float) -> None:
        try:
            async with self.gate.slot(client, cost):
                self.order.append(client)
                await self._free.acquire()
        except ApiError as error:
            self.refused.append((client, error.status_code, error.code))

    async def end(self, number: int = 1) -> None:
        for _ in range(number):
            self._free.release()
            await asyncio.sleep(0.001)


def test_a_flood_waits_for_itself():
    async def ask():
        turns = Asking(Gate(1, 1000, 60))
        flood = [turns.ask("flood") for _ in range(100)]
        await asyncio.sleep(0.01)
        for _ in range(5):
            one = turns.ask("good")
            await asyncio.sleep(0.001)
            await turns.end(2)
            assert turns.order[-2:] == ["good", "flood"]
            await turns.end(0)
            await one
        await turns.end(200)
        await asyncio.gather(*flood)
        assert turns.order.count("flood") == 100 and turns.gate.running == turns.gate.waiting == 0
        assert {*turns.gate._turns._given} == {"flood", "good"}  # what they were given counts when they come again

    asyncio.run(ask())


def test_shares_are_of_work_and_not_of_requests():
    async def ask():
        turns = Asking(Gate(1, 1000, 60))
        tasks = [turns.ask("large", 8.0) for _ in range(20)] + [turns.ask("small") for _ in range(160)]
        await asyncio.sleep(0.01)
        await turns.end(90)
        assert 8 <= turns.order[:90].count("large") <= 12
        await turns.end(200)
        await asyncio.gather(*tasks)

    asyncio.run(ask())


def test_where_the_queue_is_full_the_longest_loses_its_last():
    async def ask():
        turns = Asking(Gate(1, 5, 60))
        tasks = [turns.ask("flood") for _ in range(8)]
        await asyncio.sleep(0.01)
        assert turns.refused == [("flood", 429, "queue_full")] * 2
        tasks += [turns.ask("good") for _ in range(2)]
        await asyncio.sleep(0.01)
        assert turns.refused == [("flood", 429, "queue_full")] * 4 and turns.gate.waiting == 5
        await turns.end(20)
        await asyncio.gather(*tasks)
        assert turns.order.count("good") == 2

    asyncio.run(ask())


def test_who_leaves_the_queue_costs_nobody_a_turn():
    async def ask():
        turns = Asking(Gate(1, 100, 0.05))
        first, gone, late = turns.ask("a"), turns.ask("b"), turns.ask("c")
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        await asyncio.sleep(0.1)  # and one waits too long
        assert turns.refused == [("c", 503, "timeout")] and turns.gate.waiting == 0
        await turns.end()
        await asyncio.gather(first, late)
        assert turns.gate.running == 0

    asyncio.run(ask())


@pytest.mark.parametrize("how", ["too late", "gone"])
def test_work_that_nobody_waits_for_is_taken_back(how):
    asked = Future()  # of an engine

    def call():
        return remembered(asked).result()

    async def ask():
        gate = Gate(1, 10, 0.1 if how == "too late" else 60)
        task = asyncio.create_task(gate.run([(1.0, call)]))
        await asyncio.sleep(0.05)
        if how == "gone":
            task.cancel()
        with pytest.raises(ApiError if how == "too late" else asyncio.CancelledError):
            await task
        assert asked.cancelled()
        await asyncio.sleep(0.05)
        assert gate.running == 0  # its thread has ended, too
        return await gate.run([(1.0, lambda: remembered(Future()) and 7)])

    assert asyncio.run(ask()) == [7]


def test_what_has_not_begun_of_a_batch_never_does_when_its_client_is_gone():
    asked = Future()

    async def ask():
        gate, begun = Gate(1, 10, 60), []

        def call(number: int):
            begun.append(number)
            return remembered(asked).result()

        task = asyncio.create_task(gate.run([(1.0, partial(call, number)) for number in range(9)]))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await gate.run([(1.0, lambda: 7)]) == [7] and begun == [0]
        assert gate.running == gate.waiting == 0

    asyncio.run(ask())


def test_a_single_request_passes_by_a_batch_of_its_client(tmp_path):
    go_on = threading.Semaphore(0)
    folder = tiny_folder(tmp_path)
    body = {"history": ["item-03"], "k": 5}
    with serving(folder, tmp_path / "log", max_concurrent=1) as (server, client), ThreadPoolExecutor(2) as pool:
        server.hold = go_on.acquire
        batch = pool.submit(client.post, "/v1/recommend/batch", json={"requests": [body] * 100})
        wait_for(lambda: "llmrec_running 1.0" in client.get("/metrics").text)
        single = pool.submit(client.post, "/v1/recommend", json=body)
        wait_for(lambda: "llmrec_waiting 2.0" in client.get("/metrics").text)
        go_on.release(3)
        assert len(single.result().json()["items"]) == 5 and not batch.done()
        go_on.release(200)
        answers = batch.result().json()["data"]
        assert len(answers) == 100 and len({answer["id"] for answer in answers}) == 100
        assert all([item["item_id"] for item in one["items"]] == [i["item_id"] for i in answers[0]["items"]]
                   for one in answers)  # fmt: skip


def test_a_full_queue_turns_away_before_a_body_is_parsed(tmp_path):
    open_ = threading.Event()
    folder = tiny_folder(tmp_path)
    body = {"history": ["item-03"], "k": 5}
    with (
        serving(folder, tmp_path / "log", max_concurrent=1, max_queue=1) as (server, client),
        ThreadPoolExecutor(2) as pool,
    ):
        server.hold = open_.wait
        asked = [pool.submit(client.post, "/v1/recommend", json=body) for _ in range(2)]
        wait_for(lambda: "llmrec_waiting 1.0" in client.get("/metrics").text)
        refused = client.post("/v1/recommend", content=b"{no JSON", headers={"Content-Type": "application/json"})
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        open_.set()
        assert [one.result().status_code for one in asked] == [200, 200]


def test_a_network_of_ipv6_is_one_client_however_its_addresses_are_written():
    def clients(*hosts: str) -> set[str]:
        return {client_of(Request({"type": "http", "client": (host, 1)})) for host in hosts}

    assert len(clients("2001:db8::1", "2001:db8::2", "2001:db8::a:b:c:d", "2001:db8:0:0:1::")) == 1
    assert len(clients("2001:db8:0:1::1", "2001:db8:0:2::1", "2001:db8::1")) == 3
    assert clients("::ffff:192.0.2.1", "192.0.2.1") == {"192.0.2.1"} != clients("::ffff:192.0.2.2")
    assert len(clients("fe80::1%eth0", "fe80::2")) == 1 and clients("unknown", "") == {"unknown", ""}
