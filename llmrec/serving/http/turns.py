"""Whose turn it is, and how much may run at a time: plain bookkeeping, which knows neither threads nor clocks."""

from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

_GONE_S = 10.0  # a client that asked for nothing so long is gone
_SHARED_S, _ALONE_S = 0.1, 0.5  # what may run takes so long
_MEMORY = 0.95  # of what is known of the rate, when one more turn has ended


@dataclass(eq=False)
class Waiting:
    """A request that waits for turns, one for each of its parts.

    Args:
        costs: of the parts.
        begin: called with a part's number and its turn.
        refuse: called where the queue has no room for it.
        place: where it stands among the requests of its client.
    """

    client: str
    costs: Sequence[float]
    begin: Callable[[int, "Turn"], None]
    refuse: Callable[[], None]
    place: float = 0.0
    begun: int = 0


@dataclass(eq=False)
class Turn:
    """What runs: a part of a request.

    Args:
        began: when.
        shared: whether another client was there, or was seconds ago.
        work: how much had run at all until then: the integral of the costs that ran.
    """

    client: str
    cost: float
    began: float
    shared: bool
    work: float = field(default=0.0, repr=False)


class Turns:
    """Equal shares of the work for clients, and no more of it at a time than is done soon.

    A turn goes to the client that has been given the least (start-time fair queueing), and of its requests to the one
    that would have ended first had each been begun as it came, so that a short one passes by a long one and a long one
    comes to its end. What runs for a client is an equal share of what takes 0.1 s at the rate at which work was done
    lately, or four times what a turn takes alone: half of that runs in one step of an engine while the other half
    waits. While another client was there seconds ago it is half as much; who was given the least may always have one.
    A client alone may have what takes 0.5 s, so that it fills the engine whatever a search of its takes; who comes
    waits for that once.

    Args:
        width: turns at a time.
        alone: the cost of a turn, and the seconds that it takes where nothing runs beside it; without it what may run
            is `width` turns.
    """

    def __init__(self, width: int, alone: tuple[float, float] | None = None):
        self.width, self.shared_s = width, None
        self._queues: dict[str, list[Waiting]] = {}  # of clients that wait
        self._running: dict[str, set[Turn]] = {}
        self._given: dict[str, float] = {}  # of clients that are there: where their next turn stands at the earliest
        self._clock = 0.0  # where the last turn stood
        self._seen: dict[str, float] = {}  # when clients were there last, the one that is away for longest first
        self._now, self._work = 0.0, 0.0  # of the integral of the costs that run
        self._beside, self._seconds = alone or (0.0, 0.0)  # of the turns that ended: the costs that ran, and how long
        if alone is not None:
            self.shared_s = max(_SHARED_S, 4 * alone[1])

    @property
    def running(self) -> int:
        return sum(map(len, self._running.values()))

    @property
    def waiting(self) -> int:
        """Requests, some of whose parts may have begun."""
        return sum(map(len, self._queues.values()))

    @property
    def rate(self) -> float:
        """Cost that is done in a second: as much as runs at a time, over the seconds that a turn takes."""
        return self._beside / self._seconds if self._seconds else 0.0

    @property
    def cost_waiting(self) -> float:
        queued = (waiting for queue in self._queues.values() for waiting in queue)
        return sum(sum(waiting.costs[waiting.begun :]) for waiting in queued)

    def add(self, waiting: Waiting, now: float) -> None:
        client = waiting.client
        waiting.place = self._stands(client) + sum(waiting.costs)
        insort(self._queues.setdefault(client, []), waiting, key=attrgetter("place"))
        self._see(client, now)

    def remove(self, waiting: Waiting) -> None:
        """Takes what has not begun of a request out of the queue."""
        if waiting in (queue := self._queues.get(waiting.client, [])):
            queue.remove(waiting)
            if not queue:
                del self._queues[waiting.client]

    def last(self, client: str) -> Waiting:
        """The last request of the client with the most of them in the queue; of several such clients this one's."""
        return max(self._queues.items(), key=lambda one: (len(one[1]), one[0] == client))[1][-1]

    def give(self, now: float) -> None:
        """Begins what may run."""
        self._forget(now)
        while self.running < self.width and (client := self._next()) is not None:
            waiting = self._queues[client][0]
            number, cost = waiting.begun, waiting.costs[waiting.begun]
            waiting.begun += 1
            if waiting.begun == len(waiting.costs):
                self.remove(waiting)
            self._clock = self._stands(client)
            self._given[client] = self._clock + cost
            self._pass(now)
            turn = Turn(client, cost, now, len(self._seen) > 1, self._work)
            self._running.setdefault(client, set()).add(turn)
            waiting.begin(number, turn)

    def end(self, turn: Turn, now: float, worked: bool = True) -> None:
        """`worked`: it was no turn that was taken back, or found nothing to do."""
        self._pass(now)
        self._running[turn.client].remove(turn)
        if not self._running[turn.client]:
            del self._running[turn.client]
        if worked and now > turn.began:
            seconds = now - turn.began
            self._beside = _MEMORY * self._beside + (self._work - turn.work) / seconds
            self._seconds = _MEMORY * self._seconds + seconds
        self._see(turn.client, now)

    def _see(self, client: str, now: float) -> None:
        self._seen.pop(client, None)
        self._seen[client] = now

    def _forget(self, now: float) -> None:
        """Clients that are gone. What was given to one that asks again sooner still counts: who has one request at a
        time is idle after each."""
        while self._seen and now - self._seen[longest := next(iter(self._seen))] > _GONE_S:
            if longest in self._queues or longest in self._running:
                self._see(longest, now)
            else:
                del self._seen[longest]
                self._given.pop(longest, None)

    def _stands(self, client: str) -> float:
        return max(self._clock, self._given.get(client, 0.0))

    def _pass(self, now: float) -> None:
        costs = sum(turn.cost for turns in self._running.values() for turn in turns)
        self._work += costs * (now - self._now)
        self._now = now

    def _next(self) -> str | None:
        """The client whose turn it is, if any."""
        clients = max(len(self._queues.keys() | self._running.keys()), min(2, len(self._seen)))
        if self.shared_s is None:
            most = self.width / clients
        elif clients > 1:
            most = self.rate * self.shared_s / clients
        else:
            most = self.rate * max(self.shared_s, _ALONE_S)
        stands = {client: self._stands(client) for client in self._queues}
        for client in sorted(stands, key=stands.get):
            waiting, runs = self._queues[client][0], self._running.get(client, set())
            costs = [*(turn.cost for turn in runs), waiting.costs[waiting.begun]]
            if (len(costs) if self.shared_s is None else sum(costs)) <= most:
                return client
            if not runs and stands[client] == min(stands.values()):
                return client
        return None
