"""Waiting for many meetings with few calls.

The waiting tasks of one connection share their polls: one batch query tells which of a hundred meetings are
running. It knows running meetings only, so what it does not list is asked for singly, where that can tell
something new: when a meeting that ran is not listed any more, and now and then in between, since a meeting
can be shorter than the interval.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakKeyDictionary

from airflow_provider_dingconf.dingtalk.conferences import (
    BATCH,
    Conference,
    ConferenceStatus,
    Reference,
    reached,
    started_of,
)
from airflow_provider_dingconf.dingtalk.errors import DingTalkError, ParameterError, TransientError
from airflow_provider_dingconf.dingtalk.limits import CONCURRENCY
from airflow_provider_dingconf.hooks import DingTalkConferenceHook

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

FIRST_ASK = 10
"""Rounds after which a meeting that has not started is asked for singly; each time twice as many."""

LAST_ASK = 320
"""Rounds after which it is asked for at the latest."""

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Waiter:
    """One waiting task."""

    reference: Reference
    wanted: ConferenceStatus
    seen: ConferenceStatus | None
    answer: asyncio.Future[Conference]
    unlisted: int = 0
    ask_after: int = FIRST_ASK

    def told(self, conference: Conference) -> None:
        """Take note of how the meeting is."""
        self.seen = conference.status
        self.unlisted = 0
        try:
            if reached(conference, self.wanted):
                self.end(conference)
        except DingTalkError as error:
            self.fail(error)

    def must_ask(self) -> bool:
        """Return whether the meeting, which is not listed, is to be asked for singly."""
        self.unlisted += 1
        if self.seen is not ConferenceStatus.NOT_STARTED:
            return True
        if self.unlisted < self.ask_after:
            return False
        self.ask_after = min(2 * self.ask_after, LAST_ASK)
        return True

    def end(self, conference: Conference) -> None:
        if not self.answer.done():
            self.answer.set_result(conference)

    def fail(self, error: BaseException) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


@dataclass
class Poll:
    """The polls of one connection, at one interval.

    :param dingtalk_conn_id: the connection.
    :param interval: seconds between two rounds.
    """

    dingtalk_conn_id: str
    interval: float
    _waiters: set[_Waiter] = field(default_factory=set)
    _rounds: asyncio.Task[None] | None = None

    shared: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, float], Poll]]] = (
        WeakKeyDictionary()
    )

    @classmethod
    def of(cls, dingtalk_conn_id: str, interval: float) -> Poll:
        """Return the poll that all share who wait in this event loop for the same."""
        polls = cls.shared.setdefault(asyncio.get_running_loop(), {})
        return polls.setdefault((dingtalk_conn_id, interval), cls(dingtalk_conn_id, interval))

    async def wait(
        self, reference: Reference, wanted: ConferenceStatus, seen: ConferenceStatus | None = None
    ) -> Conference:
        """Return the meeting once it has started or ended.

        :param reference: the meeting, or what stands for it.
        :param wanted: what is waited for.
        :param seen: how the meeting was just now; None where that is not known.
        :raises ConferenceClosedError: a start is waited for, and the meeting has ended.
        :raises DingTalkError: DingTalk refuses the calls.
        """
        waiter = _Waiter(reference, wanted, seen, asyncio.get_running_loop().create_future())
        self._waiters.add(waiter)
        self._rounds = self._rounds or asyncio.create_task(self._run())
        try:
            return await waiter.answer
        finally:
            self._waiters.discard(waiter)
            if not self._waiters and self._rounds:
                self._rounds.cancel()
                self._rounds = None

    async def _run(self) -> None:
        delay = self.interval
        while True:
            await asyncio.sleep(delay)
            delay = self.interval
            waiters = list(self._waiters)
            try:
                async with DingTalkConferenceHook(self.dingtalk_conn_id) as hook:
                    delay = max(delay, await self._round(hook, waiters))
            except Exception as error:
                for waiter in waiters:
                    waiter.fail(error)

    async def _round(self, hook: DingTalkConferenceHook, waiters: Iterable[_Waiter]) -> float:
        """Ask once for all, and return the seconds that DingTalk asks to wait."""
        by_reference: dict[Reference, list[_Waiter]] = {}
        for waiter in waiters:
            by_reference.setdefault(waiter.reference, []).append(waiter)
        ids = [reference.value for reference in by_reference if reference.name == "conference_id"]
        asks: list[Reference] = [one for one in by_reference if one.name != "conference_id"]
        waits = [0.0]
        for first in range(0, len(ids), BATCH):
            batch = ids[first : first + BATCH]
            of_batch = {one: by_reference[Reference("conference_id", one)] for one in batch}
            wait, unlisted = await self._query(hook, of_batch)
            waits.append(wait)
            asks += [Reference("conference_id", one) for one in unlisted]
        gate = asyncio.Semaphore(CONCURRENCY)

        async def ask(reference: Reference) -> None:
            async with gate:
                waits.append(await self._ask(hook, reference, by_reference[reference]))

        await asyncio.gather(*map(ask, asks))
        return max(waits)

    async def _query(
        self, hook: DingTalkConferenceHook, waiters: dict[str, list[_Waiter]]
    ) -> tuple[float, Sequence[str]]:
        """Tell who waits for a running meeting, and return which others are to be asked for singly."""
        running: dict[str, Conference] = {}

        async def query() -> None:
            running.update(await hook.arunning_of(list(waiters)))

        try:
            wait = await _patiently(query)
        except ParameterError:  # of one of them; which one is not said
            return 0.0, list(waiters)
        except DingTalkError as error:
            for one in _flat(waiters.values()):
                one.fail(error)
            return 0.0, []
        if wait is not None:
            return wait, []
        for conference_id, conference in running.items():
            for one in waiters.get(conference_id, []):
                one.told(conference)
        unlisted = [key for key in waiters if key not in running]
        asks = dict.fromkeys(key for key in unlisted for one in waiters[key] if one.must_ask())
        return 0.0, list(asks)

    async def _ask(
        self, hook: DingTalkConferenceHook, reference: Reference, waiters: Iterable[_Waiter]
    ) -> float:
        """Ask for one meeting, or for those of a room code or schedule, and tell who waits for it."""
        found: list[Conference] = []

        async def ask() -> None:
            if reference.name == "conference_id":
                found.append(await hook.aget_conference(reference.value))
                return
            named = await hook.afind_conferences(**{reference.name: reference.value})
            started = started_of(named, reference)
            found.extend([started] if started else [])

        try:
            wait = await _patiently(ask)
        except DingTalkError as error:
            for waiter in waiters:
                waiter.fail(error)
            return 0.0
        for waiter in waiters:
            for conference in found:
                waiter.told(conference)
        return wait or 0.0


async def _patiently(call: Callable[[], Awaitable[None]]) -> float | None:
    """Make a call, and return how long to wait where it failed for a reason that will pass; else None."""
    try:
        await call()
    except TransientError as error:
        log.warning("%s; asked again in the next round", error.summary)
        return error.retry_after or 0.0
    return None


def _flat(lists: Iterable[list[_Waiter]]) -> list[_Waiter]:
    return [one for each in lists for one in each]
