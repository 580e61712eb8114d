"""`Followers`: what the writer of a catalogue knows of the servers that follow it (`following.py`)."""

import asyncio
import logging
import math
import time
from collections.abc import Callable

logger = logging.getLogger("llmrec.serving")
LEASE_S = 10.0  # a follower that was not heard for so long is no longer waited for
ADOPT_S = 300.0  # a follower that was heard, and did not take a version for so long, is left out
POLL_S = 2.0  # how long a question of a follower stays open where there is nothing new
_MARGIN_S = 1.0  # clocks of two machines run alike, but what is sent takes its time


class Followers:
    """Which version each follower answers from, so that a change is acknowledged when all of them have it.

    Whoever wrote before may have had followers that are not known here; they were told that it may be gone for
    `LEASE_S` at the most. So nothing is acknowledged before that is over, counted from `since()` (`time.monotonic`;
    -inf: nobody ever followed).

    Who is behind what was acknowledged is told that it is not waited for, and answers nothing until it has everything
    (`Following`). So is, after `ADOPT_S`, one that goes on asking and does not take a version: from then on it is
    waited for as one that was not heard any more. A change is held up for `ADOPT_S` and a lease at the most.
    """

    def __init__(self, since: Callable[[], float]):
        self._since = since
        self._serving: dict[str, tuple[int, float]] = {}  # by name: the version, and when it was said
        self._left_out: dict[str, float] = {}  # by name: when one was heard that is not waited for
        self._required = 0  # who is behind this version is not waited for
        self._news = asyncio.Condition()

    def __len__(self) -> int:
        return len(self._there())

    @property
    def left_out(self) -> int:
        """How many ask, and are not waited for."""
        return sum(said > _least() for said in self._left_out.values())

    async def heard(self, name: str, version: int) -> bool:
        """A follower says which version it answers from; gives whether it is waited for, as long as it is heard."""
        self._left_out = {other: said for other, said in self._left_out.items() if said > _least() and other != name}
        if version < self._required:
            self._left_out[name] = time.monotonic()
            return False
        self._serving = self._there() | {name: (version, time.monotonic())}
        await self.tell()
        return True

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
        """Until every follower answers from this version or a later one, is gone, or was left out."""
        await self._wait_for(version, ADOPT_S)
        for name, (serving, _) in self._there().items():
            if serving < version:
                text = "follower %s is at version %d and did not take %d within %g s: it is not waited for any more"
                logger.warning(text, name, serving, version, ADOPT_S)
        self._required = max(self._required, version)
        await self._wait_for(version, math.inf)  # until they know, or have not heard for too long

    async def _wait_for(self, version: int, longest_s: float) -> None:
        until = time.monotonic() + longest_s
        while (left := min(self._waiting_s(version), until - time.monotonic())) > 0:
            await self.wait(lambda: self._waiting_s(version) <= 0, left)

    def _waiting_s(self, version: int) -> float:
        """How long to wait for those that are behind, if they say nothing more."""
        behind = [said for serving, said in self._serving.values() if serving < version]
        return max([self._since(), *behind]) + LEASE_S + _MARGIN_S - time.monotonic()

    def _there(self) -> dict[str, tuple[int, float]]:
        return {name: one for name, one in self._serving.items() if one[1] > _least()}


def _least() -> float:
    """Who was heard before is gone."""
    return time.monotonic() - LEASE_S - _MARGIN_S
