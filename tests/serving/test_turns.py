"""Turns in virtual time, at an engine that is imitated: how long a client waits beside a flood, and what a client
alone gets done. Nothing here reads a clock."""

import pytest

from llmrec.serving.http.turns import Turns, Waiting

GAP_S = 0.005  # from the end of a step to the next request that a front sends


class Client:
    """Asks for `parts` of a cost at a time, `users` times side by side, and again when it was answered."""

    def __init__(
        self, name: str, cost: float, parts: int = 1, users: int = 1, begins: float = 0.0, pause: float = 0.0
    ):
        self.name, self.costs, self.users, self.begins, self.pause = name, [cost] * parts, users, begins, pause
        self.seconds: list[float] = []
        self.done = 0.0


class Engine:
    """Runs what is asked together in steps of `fixed + each * cost` seconds, and sees what was asked meanwhile only
    when a step has ended."""

    def __init__(self, turns: Turns, fixed: float, each: float):
        self.turns, self.fixed, self.each = turns, fixed, each
        self._events: list[tuple[float, int, object]] = []
        self._asked, self._steps = [], []
        self._free, self.now = True, 0.0

    def at(self, when: float, call) -> None:
        self._events.append((when, len(self._events), call))

    def run(self, clients: list[Client], seconds: float) -> None:
        for client in clients:
            for _ in range(client.users):
                self.at(client.begins, lambda client=client: self.ask(client))
        while self._events:
            event = min(self._events, key=lambda one: one[:2])
            self._events.remove(event)
            self.now = event[0]
            if self.now > seconds:
                break
            event[2]()
            if self._asked and self._free:
                self.step()

    def ask(self, client: Client) -> None:
        asked, left = self.now, len(client.costs)

        def begin(_, turn) -> None:
            self._asked.append((turn, end))

        def end(turn) -> None:
            nonlocal left
            left -= 1
            client.done += turn.cost
            self.turns.end(turn, self.now)
            if not left:
                client.seconds.append(self.now - asked)
                self.at(self.now + client.pause, lambda: self.ask(client))
            self.at(self.now + GAP_S, lambda: self.turns.give(self.now))

        self.turns.add(Waiting(client.name, client.costs, begin, lambda: None), self.now)
        self.turns.give(self.now)

    def step(self) -> None:
        together, self._asked, self._free = self._asked, [], False
        self._steps.append(sum(turn.cost for turn, _ in together))

        def ended() -> None:
            self._free = True
            for turn, end in together:
                end(turn)

        self.at(self.now + self.fixed + self.each * self._steps[-1], ended)


def test_beside_a_flood_a_request_waits_for_one_search():
    flood, good = Client("flood", 4.0, parts=100, users=8), Client("good", 1.0, begins=3.0, pause=0.013)
    Engine(Turns(64, (1.0, 0.025)), fixed=0.0, each=0.025).run([flood, good], 12.0)
    first, *later = good.seconds
    assert first <= 0.5 + 0.025 + 0.1  # what ran for the flood alone is no more than 0.5 s, and one search
    assert max(later) <= 0.1 + 0.025 + 1e-9 and len(later) > 50
    assert flood.done > 0.4 * 12.0 / 0.025  # which goes on


def test_two_floods_and_one_that_asks_a_lot_get_equal_shares():
    clients = [Client(name, cost, parts=20, users=4) for name, cost in [("a", 1.0), ("b", 3.0), ("c", 1.0)]]
    Engine(Turns(64, (1.0, 0.01)), fixed=0.0, each=0.01).run(clients, 20.0)
    total = sum(client.done for client in clients)
    assert total > 0.8 * 20.0 / 0.01
    for client in clients:
        assert client.done == pytest.approx(total / 3, rel=0.1)


@pytest.mark.parametrize("cost", [3.0, 10.0, 40.0])
def test_one_large_request_at_a_time_gets_no_more_than_its_share(cost):
    """It is idle for a moment after each, and what it was given still counts."""
    one, other = Client("one", cost), Client("other", 1.0, users=16)
    Engine(Turns(64, (1.0, 0.025)), fixed=0.0, each=0.025).run([one, other], 60.0)
    assert 0.4 < one.done / (one.done + other.done) < 0.55


def test_who_was_there_long_ago_is_not_there():
    given: list = []
    turns = Turns(4, (1.0, 0.1))
    for client, now in (("a", 0.0), ("b", 1.0), ("b", 3600.0)):
        turns.add(Waiting(client, [1.0], lambda _, turn: given.append(turn), lambda: None), now)
        turns.give(now)
        if now < 3600:
            turns.end(given[-1], now + 0.1)
    assert [turn.shared for turn in given] == [False, True, False]
    assert [*turns._given] == [*turns._seen] == ["b"]


def test_who_waits_for_long_is_there():
    given: list = []
    turns = Turns(1)
    for client in "aab":
        turns.add(Waiting(client, [1.0], lambda _, turn: given.append(turn), lambda: None), 0.0)
    for now in (0.0, 60.0, 120.0):
        turns.give(now)
        turns.end(given[-1], now + 60.0)
    assert [(turn.client, turn.shared) for turn in given] == [("a", True), ("b", True), ("a", True)]


@pytest.mark.parametrize(
    ("fixed", "each", "measured", "longer"),
    [(0.0, 0.025, 0, 1.2), (0.02, 0.0002, 0, 1.2), (0.12, 0.001, 0, 1.2), (0.05, 0.01, 0.01, 1.4)],
)
def test_a_client_alone_gets_what_the_engine_can_give(fixed, each, measured, longer):
    """On a CPU, where searches take as long together as one by one, on two GPUs, where they hardly do, and where a
    search takes longer than the one that was measured, which had no history."""
    turns, alone = Turns(64, (1.0, measured or fixed + each)), Client("alone", 1.0, users=64)
    Engine(turns, fixed, each).run([alone], 15.0)
    best = Client("alone", 1.0, users=64)
    Engine(Turns(64), fixed, each).run([best], 15.0)
    assert alone.done > 0.85 * best.done
    assert max(alone.seconds[len(alone.seconds) // 2 :]) < longer * max(best.seconds[len(best.seconds) // 2 :])


def test_a_client_with_one_request_at_a_time_does_not_wait():
    one = Client("one", 1.0)
    Engine(Turns(64, (1.0, 0.5)), fixed=0.0, each=0.5).run([one], 30.0)
    assert max(one.seconds) == pytest.approx(0.5)


def test_a_short_request_passes_by_a_long_one_of_its_client_and_the_long_one_ends():
    long, short = Client("same", 1.0, parts=200), Client("same", 1.0, begins=1.0)
    Engine(Turns(64, (1.0, 0.025)), fixed=0.0, each=0.025).run([long, short], 12.0)
    assert short.seconds[0] < 0.5 + 0.05 and long.seconds[0] < 2 * 200 * 0.025 + 1


def test_batches_of_a_client_end_one_after_the_other():
    order: list[tuple[int, int]] = []
    turns = Turns(1)
    for batch in range(3):
        begin = lambda number, turn, batch=batch: order.append((batch, number)) or given.append(turn)  # noqa: E731
        turns.add(Waiting("one", [1.0] * 4, begin, lambda: None), 0.0)
    given: list = []
    for now in range(12):
        turns.give(now)
        turns.end(given[-1], now)
    assert order == [(batch, number) for batch in range(3) for number in range(4)]


def test_what_was_not_done_says_nothing_of_the_rate():
    given: list = []
    turns = Turns(4, (1.0, 0.1))
    for now in range(300):
        turns.add(Waiting("a", [1.0], lambda _, turn: given.append(turn), lambda: None), now)
        turns.give(now)
        turns.end(given.pop(), now + (0.5 if now < 200 else 0.001), worked=now < 200)
    assert turns.rate == pytest.approx(2.0, rel=1e-3) and turns.running == turns.waiting == 0


def test_clients_of_a_slow_engine_are_searched_together():
    done = []
    for names in ("a", "abc"):
        clients = [Client(name, 1.0, users=64) for name in names]
        Engine(Turns(64, (1.0, 0.121)), fixed=0.12, each=0.001).run(clients, 15.0)
        done.append(sum(client.done for client in clients))
    assert done[1] > 0.9 * done[0]
