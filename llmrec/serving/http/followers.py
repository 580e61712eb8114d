"""`Followers`: what the writer of a catalogue knows of the servers that follow it (`following.py`)."""

import asyncio
import time
from collections.abc import Callable

LEASE_S = 10.0  # a follower that was not heard for so long is no longer waited for
POLL_S = 2.0  # how long a question of a follower stays open where there is nothing new
_MARGIN_S = 1.0  # clocks of two machines run alike, but what is sent takes its time


class Followers:
    """Which version each follower answers from, so that a change is acknowledged when all of them have it.

    Whoever wrote before may have had followers that are not known here; they were told that it may be gone for
    `LEASE_S` at the most. So nothing is acknowledged before that is over, counted from `since()` (`time.monotonic`;
    -inf: nobody ever followed).
    """

    def __init__(self, since: Callable[[], float]):
        self._since = since
        self._serving: dict[str, tuple[int, float]] = {}  # by name: the version, and when it was said
        self._news = asyncio.Condition()

    def __len__(self) -> int:
        return len(self._there())

    async def heard(self, name: str, version: int) -> None:
        """A follower says which version it answers from."""
        self._serving = self._there() | {name: (version, time.monotonic())}
        await self.tell()

    async def tell(self) -> None:
        """Wakes who waits: there is a new version, or a follower was heard."""
        async with self._news:
            self._news.notify_all()

    async def wait(self, until: Callable[[], bool], longest_s: float) -> None:
        """Until a condition holds that is looked at when there is news, or time is over."""
        try:
            async with asyncio.timeout(longest_s), self._news:
                await self._news.wait_for(until)
        except TimeoutError:
            pass

    async def have(self, version: int) -> None:
        """Until every follower answers from this version or a later one, or is gone."""
        while (left := self._waiting_s(version)) > 0:
            await self.wait(lambda: self._waiting_s(version) <= 0, left)

    def _waiting_s(self, version: int) -> float:
        """How long to wait for those that are behind, if they say nothing more."""
        behind = [said for serving, said in self._serving.values() if serving < version]
        return max([self._since(), *behind]) + LEASE_S + _MARGIN_S - time.monotonic()

    def _there(self) -> dict[str, tuple[int, float]]:
        least = time.monotonic() - LEASE_S - _MARGIN_S
        return {name: one for name, one in self._serving.items() if one[1] > least}
