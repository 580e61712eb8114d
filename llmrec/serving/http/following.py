"""`Following`: the catalogue of a server that follows another one, the writer, over HTTP.

The follower asks the writer for what its own log lacks, loads it, writes it down, and asks again, which tells the
writer what it answers from. So a change is acknowledged when every follower that was heard lately has it
(`followers.py`). One that is behind that, or takes too long, is told that changes do not wait for it, and answers
nothing until it has everything. A follower that is cut off goes on with what it has, or (`never_stale`) answers
nothing from before the writer could acknowledge what it does not know.
"""

import asyncio
import json
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Sequence
from uuid import uuid4

import httpx

import llmrec
from llmrec.serving.http.errors import ApiError
from llmrec.serving.http.followers import LEASE_S, POLL_S
from llmrec.serving.http.service import ChangeFailed, Service
from llmrec.serving.living_catalogue.store import CatalogueStore, Row

logger = logging.getLogger("llmrec.serving")
_START_S = 60.0  # how long the writer is waited for at the start, since it was heard
_DEAD_S = 0.5  # between two looks at an engine that is dead


class WriterAway(RuntimeError):
    """The writer did not answer at the start."""


class Following:
    """Keeps a store up with the writer's.

    Args:
        url: of the writer, e.g. `http://catalogue:8000`.
        key: that of the writer's admin, if it has one.
        never_stale: `check` refuses where the writer was not heard for `LEASE_S`.

    Attributes:
        level (`asyncio.Event`): the store had everything, and the writer waits for this follower since; not while an
            engine is dead, for which the writer need not wait, nor since the writer waits no more.
    """

    def __init__(self, url: str, store: CatalogueStore, key: str | None = None, never_stale: bool = False):
        self.url, self.store, self.never_stale = url, store, never_stale
        self._name = f"{socket.gethostname()[:16]}:{os.getpid()}:{uuid4().hex}"
        self._heard = self._moved = time.monotonic()
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self.level = asyncio.Event()

    @property
    def silent_s(self) -> float:
        """Seconds since a question was sent that the writer has answered."""
        return time.monotonic() - self._heard

    def check(self) -> None:
        """Raises `ApiError` where the catalogue may be older than an acknowledged one, and that is not wanted."""
        if not self.level.is_set():
            message = "this server catches up with the writer of its catalogue: try again later"
            raise ApiError(503, message, code="catching_up", headers={"Retry-After": "1"})
        if self.never_stale and self.silent_s > LEASE_S:
            message = f"the writer of the catalogue was not heard for {self.silent_s:.0f} s: try again later"
            raise ApiError(503, message, code="cut_off", headers={"Retry-After": "1"})

    async def catch_up(self) -> None:
        """Everything that the writer has, before anybody is served.

        Raises:
            WriterAway: it did not answer within a minute.
            ValueError: it refuses, or its log is no continuation of this one.
        """
        until = time.monotonic() + _START_S
        self.store.note_follower()  # others follow too, and this store may be the next that is written to
        async with self._client() as client:
            while True:
                try:
                    rows, _ = await self._ask(client, self.store.end, None, 0)
                except httpx.TransportError as error:
                    if time.monotonic() > until:
                        message = f"{self.url}, which this server follows, does not answer ({error or repr(error)})"
                        raise WriterAway(message) from error
                    await asyncio.sleep(0.5)
                    continue
                if not rows:
                    return
                await asyncio.to_thread(self.store.catch_up, rows)

    async def run(self, service: Service) -> None:
        """Follows until it is cancelled.

        Raises:
            ChangeFailed: engines that are well did not take a version.
            ValueError: as `catch_up`.
        """
        known, waiting, cut_off, self._moved = self.store.end, deque(), False, time.monotonic()
        adopting: asyncio.Future | None = None
        async with self._client() as client:
            while True:
                if dead := _is_dead(service):
                    self.level.clear()
                elif adopting is None and waiting:
                    adopting = asyncio.ensure_future(asyncio.to_thread(service.adopt, waiting[0]))
                sent, serving = time.monotonic(), service.current.number
                if dead or adopting:
                    self._moved = sent  # that has limits of its own
                wait_s = _DEAD_S if dead else POLL_S if adopting or self.level.is_set() else 0
                asking = asyncio.ensure_future(self._ask(client, known, None if dead else serving, wait_s))
                busy = {asking} | ({adopting} if adopting else set())
                try:
                    await asyncio.wait(busy, return_when=asyncio.FIRST_COMPLETED)
                    if asking.done():
                        rows, waits = asking.result()
                        if not waits or time.monotonic() - self._heard > LEASE_S:
                            self.level.clear()  # the writer has not waited for this follower
                        self._heard = self._moved = sent
                        waiting.extend(rows)
                        known = _end(rows[-1]) if rows else known
                        if serving == known[0] and waits:
                            self.level.set()
                        if cut_off:
                            logger.warning("%s answers again", self.url)
                            cut_off = False
                except httpx.TransportError as error:
                    if not cut_off:
                        logger.warning("%s does not answer: %r", self.url, error)
                        cut_off = True
                    await asyncio.sleep(0.5)
                finally:
                    asking.cancel()
                if adopting is not None and adopting.done():
                    try:
                        adopting.result()
                        waiting.popleft()
                    except ChangeFailed:  # to an engine that died it is given again, when that was started again
                        if not _is_dead(service):
                            raise
                    adopting = None

    async def until_level(self, beside: Sequence[asyncio.Task]) -> None:
        """Until `run` has everything, or one of the tasks has ended; raises `WriterAway` where the writer does not
        answer for a minute, and nothing is loaded."""
        waited_for = [*beside, asyncio.ensure_future(self.level.wait())]
        try:
            while (left := self._moved + _START_S - time.monotonic()) > 0:
                done, _ = await asyncio.wait(waited_for, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if done:
                    return
        finally:
            waited_for[-1].cancel()
        raise WriterAway(f"{self.url}, which this server follows, does not answer any more")

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, headers=self._headers, timeout=POLL_S + 5)

    async def _ask(self, client, known: tuple[int, str], serving: int | None, wait_s: float) -> tuple[list[Row], bool]:
        """What the writer has after `known`, and whether it waits for this follower, which `serving` asks for."""
        asked = {"after": known[0], "chain": known[1], "wait_s": wait_s}
        asked |= {} if serving is None else {"follower": self._name, "serving": serving}
        answer = await client.get("/v1/catalogue/records", params=asked)
        if answer.status_code == 429 or answer.status_code >= 500:
            raise httpx.ReadError(f"status {answer.status_code}")
        if answer.status_code != 200:
            raise ValueError(f"{self.url}, which this server follows, says: {_message(answer)}")
        try:
            found = answer.json()
            return [Row(**row) for row in found["rows"]], bool(found["waits"])
        except (ValueError, KeyError, TypeError) as error:
            message = (
                f"{self.url}, which this server follows, does not answer as a writer of llmrec {llmrec.__version__}"
            )
            raise ValueError(f"{message}: is it one? If it is older, start it with this version first") from error


def _is_dead(service: Service) -> bool:
    """Whether an engine is; it may be started again."""
    try:
        service.check()
    except Exception:
        return True
    return False


def _end(row: Row) -> tuple[int, str]:
    return json.loads(row.record)["number"], row.chain


def _message(answer: httpx.Response) -> str:
    try:
        return answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status_code}, {answer.text[:200]!r}: is it a server of llmrec?"
