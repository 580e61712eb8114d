"""Turns at the engines: equal shares for clients, whatever one of them sends, and no work that nobody waits for."""

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from http_fixtures import serving, tiny_folder, wait_for

from llmrec.serving.http.errors import ApiError
from llmrec.serving.http.limits import Gate
from llmrec.serving.in_flight import remembered


class Turns:
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
        turns = Turns(Gate(1, 1000, 60))
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
        assert not turns.gate._given

    asyncio.run(ask())


def test_shares_are_of_work_and_not_of_requests():
    async def ask():
        turns = Turns(Gate(1, 1000, 60))
        tasks = [turns.ask("large", 8.0) for _ in range(20)] + [turns.ask("small") for _ in range(160)]
        await asyncio.sleep(0.01)
        await turns.end(90)
        assert 8 <= turns.order[:90].count("large") <= 12
        await turns.end(200)
        await asyncio.gather(*tasks)

    asyncio.run(ask())


def test_what_runs_for_several_clients_is_little_of_each(monkeypatch):
    monkeypatch.setattr(Gate, "rate", 16.0)  # so 4 at a time are a quarter of a second

    async def ask():
        turns = Turns(Gate(8, 1000, 60))
        tasks = [turns.ask("flood") for _ in range(8)]
        await asyncio.sleep(0.01)
        assert turns.gate.running == 8  # alone
        tasks += [turns.ask(client) for client in ["flood"] * 20 + ["good"] * 20]
        await asyncio.sleep(0.01)
        await turns.end(16)
        assert turns.gate._running == {"flood": [1.0] * 2, "good": [1.0] * 2}
        tasks.append(turns.ask("large", 50.0))
        await turns.end(2)
        assert turns.gate._running["large"] == [50.0]  # one of each may always run
        await turns.end(200)
        await asyncio.gather(*tasks)

    asyncio.run(ask())


def test_where_the_queue_is_full_the_longest_loses_its_last():
    async def ask():
        turns = Turns(Gate(1, 5, 60))
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
        turns = Turns(Gate(1, 100, 0.05))
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
        task = asyncio.create_task(gate.run(call))
        await asyncio.sleep(0.05)
        if how == "gone":
            task.cancel()
        with pytest.raises(ApiError if how == "too late" else asyncio.CancelledError):
            await task
        assert asked.cancelled()
        await asyncio.sleep(0.05)
        assert gate.running == 0  # its thread has ended, too
        return (await gate.run(lambda: remembered(Future()) and 7))[0]

    assert asyncio.run(ask()) == 7


def test_a_batch_leaves_turns_to_others(tmp_path):
    open_, started = threading.Event(), []

    def hold():
        started.append(threading.current_thread())
        assert open_.wait(60)

    folder = tiny_folder(tmp_path)
    body = {"history": ["item-03"], "k": 5}
    with serving(folder, tmp_path / "log", max_concurrent=2) as (server, client), ThreadPoolExecutor(1) as pool:
        server.hold = hold
        batch = pool.submit(client.post, "/v1/recommend/batch", json={"requests": [body] * 100})
        wait_for(lambda: "llmrec_waiting 23.0" in client.get("/metrics").text)
        assert len(started) == 2  # 100 requests in parts of 4
        open_.set()
        answers = batch.result().json()["data"]
        assert len(answers) == 100 and len({answer["id"] for answer in answers}) == 100
        assert all([item["item_id"] for item in one["items"]] == [i["item_id"] for i in answers[0]["items"]]
                   for one in answers)  # fmt: skip
