"""Waiting for many meetings with few calls.

The waiting tasks of one connection share their polls: one batch query tells which of a hundred meetings are
running. It knows running meetings only, so what it does not list is asked for singly, where that can tell
something new: when a meeting that ran is not listed any more, and now and then in between, since a meeting
can be shorter than the interval. A meeting that is waited for and has started is asked for singly, too: the
batch query does not tell all of it.

A call is made once. A round ends at the first answer by which DingTalk takes no calls for now; the next one
begins with those that were not asked for.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from contextlib import AsyncExitStack
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from airflow.providers.common.compat.sdk import AirflowNotFoundException

from airflow_provider_dingconf.client.bulk import Pace
from airflow_provider_dingconf.dingtalk.conferences import (
    BATCH,
    Conference,
    ConferenceStatus,
    Reference,
    reached,
    started_of,
)
from airflow_provider_dingconf.dingtalk.errors import (
    DingTalkError,
    ResponseError,
    ServerError,
    TransientError,
)
from airflow_provider_dingconf.dingtalk.limits import CALLS_PER_SECOND, CONCURRENCY
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.outcomes import Outcome, outcome_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence

FIRST_ASK = 10
"""Rounds after which a meeting that has not started is asked for singly; each time twice as many."""

LAST_ASK = 320
"""Rounds after which it is asked for at the latest, and for which one that breaks a batch is in none."""

PATIENCE = 4
"""Rounds in which a batch is not answered before it is halved; then after each time twice as many."""

LEAST_SECONDS = 1.0
"""Between two rounds, however short the interval."""

MOST_SECONDS = 3_600.0
"""Between two rounds, whatever DingTalk asks for."""

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Waiter:
    """One waiting task."""

    wanted: ConferenceStatus
    on_error: Mapping[str, Outcome]
    answer: asyncio.Future[Conference]
    context: Context = field(default_factory=copy_context)
    """What tells Airflow whose log is written to."""

    def told(self, conference: Conference) -> None:
        """Take note of how the meeting is."""
        try:
            if reached(conference, self.wanted):
                self.end(conference)
        except DingTalkError as error:
            self.refused(error)

    def ends_with(self, error: DingTalkError) -> bool:
        """Return whether the wait is over with an error, and not to be gone on with."""
        return outcome_of(error, self.on_error) is not Outcome.RETRY

    def refused(self, error: DingTalkError) -> None:
        if self.ends_with(error):
            self.fail(error)
        else:
            self.context.run(log.warning, "%s; asked again in a later round", error.summary)

    def end(self, conference: Conference) -> None:
        if not self.answer.done():
            self.answer.set_result(conference)

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


@dataclass(eq=False)
class _Meeting:
    """What some tasks wait for: a meeting, or that one of a room code or schedule runs.

    :param seen: how it was last; None where that is not known.
    :param asked: the round in which it was last asked for.
    :param failed: how often in a row that failed for a reason that passes.
    :param due: whether it is to be asked for singly, since the batch query does not tell enough.
    :param alone_until: the round up to which it is in no batch, having broken one.
    :param found: what the batch query told, while the rest is asked for.
    :param unlisted: how often in a row the batch query has not listed it.
    :param ask_after: after how many of these it is asked for singly.
    """

    reference: Reference
    waiters: list[_Waiter] = field(default_factory=list)
    seen: ConferenceStatus | None = None
    asked: int = 0
    failed: int = 0
    due: bool = False
    alone_until: int = 0
    found: Conference | None = None
    unlisted: int = 0
    ask_after: int = 0

    def join(self, waiter: _Waiter, seen: ConferenceStatus | None) -> None:
        """Let one more task wait, which has seen the meeting so."""
        if not self.waiters or seen is not ConferenceStatus.NOT_STARTED:
            self.seen = seen
        self.unlisted, self.ask_after = 0, FIRST_ASK
        self.waiters.append(waiter)

    def listed(self, conference: Conference) -> None:
        """Take note that the batch query lists it: it is running."""
        self.seen = conference.status
        self.unlisted, self.ask_after = 0, FIRST_ASK
        if any(waiter.wanted is conference.status for waiter in self.waiters):
            self.found, self.due = conference, True

    def not_listed(self) -> None:
        """Take note that the batch query does not list it."""
        self.unlisted += 1
        self.due = self.seen is not ConferenceStatus.NOT_STARTED or self.unlisted >= self.ask_after

    def told(self, conference: Conference | None) -> None:
        """Take note of what the single query says; None: none of its meetings is running."""
        found, self.found = self.found, None
        self._answered()
        if conference is None:
            return
        # Of one that has ended and is waited for all the same, no more can be expected than of one to come.
        running = conference.status is ConferenceStatus.STARTED
        self.seen = conference.status if running else ConferenceStatus.NOT_STARTED
        for waiter in list(self.waiters):
            if found and waiter.wanted is found.status is not conference.status:
                waiter.end(found)  # it has started, as was waited for, and ended since
            else:
                waiter.told(conference)

    def make_do(self) -> None:
        """Where the batch query has told enough for the task, give what it told."""
        if self.found:
            self.told(self.found)

    def _answered(self) -> None:
        if self.unlisted >= self.ask_after:
            self.ask_after = min(2 * self.ask_after, LAST_ASK)
            self.unlisted = 0
        self.failed, self.due = 0, False

    def refused(self, error: DingTalkError) -> None:
        """Tell who waits for it what DingTalk said of it, or of all."""
        if not isinstance(error, TransientError):
            self._answered()
            self.seen = ConferenceStatus.NOT_STARTED
        for waiter in self.waiters:
            waiter.refused(error)

    def fail(self, error: Exception) -> None:
        for waiter in self.waiters:
            waiter.fail(error)


@dataclass
class Poll:
    """The polls of one connection, at one interval.

    :param dingtalk_conn_id: the connection.
    :param interval: seconds between two rounds.
    """

    dingtalk_conn_id: str
    interval: float
    _meetings: dict[Reference, _Meeting] = field(default_factory=dict)
    _rounds: asyncio.Task[None] | None = None
    _number: int = 0

    shared: ClassVar[
        WeakKeyDictionary[asyncio.AbstractEventLoop, WeakValueDictionary[tuple[str, float], Poll]]
    ] = WeakKeyDictionary()

    @classmethod
    def of(cls, dingtalk_conn_id: str, interval: float) -> Poll:
        """Return the poll that all share who wait in this event loop for the same."""
        polls = cls.shared.setdefault(asyncio.get_running_loop(), WeakValueDictionary())
        return polls.setdefault((dingtalk_conn_id, interval), cls(dingtalk_conn_id, interval))

    async def wait(
        self,
        reference: Reference,
        wanted: ConferenceStatus,
        seen: ConferenceStatus | None = None,
        on_error: Mapping[str, Outcome] | None = None,
    ) -> Conference:
        """Return the meeting once it has started or ended.

        :param reference: the meeting, or what stands for it.
        :param wanted: what is waited for.
        :param seen: how the meeting was just now; None where that is not known.
        :param on_error: outcomes by error code, in place of the defaults: the wait goes on where it is RETRY.
        :raises ConferenceClosedError: a start is waited for, and the meeting has ended.
        :raises DingTalkError: DingTalk refuses the calls.
        """
        waiter = _Waiter(wanted, on_error or {}, asyncio.get_running_loop().create_future())
        meeting = self._meetings.setdefault(reference, _Meeting(reference))
        meeting.join(waiter, seen)
        if self._rounds is None:
            # In no task's context: what the rounds log concerns all who wait.
            self._rounds = Context().run(asyncio.create_task, self._run())
            self._rounds.add_done_callback(self._ended)
        try:
            return await waiter.answer
        finally:
            meeting.waiters.remove(waiter)
            if not meeting.waiters:
                del self._meetings[reference]
            if not self._meetings and self._rounds:
                self._rounds.cancel()
                self._rounds = None

    def _ended(self, rounds: asyncio.Task[None]) -> None:
        """Leave nobody waiting for rounds that were ended from outside."""
        if rounds is self._rounds:
            self._rounds = None
            for meeting in self._meetings.values():
                for waiter in meeting.waiters:
                    waiter.answer.cancel()

    async def _run(self) -> None:
        delay = 0.0
        while self._rounds is asyncio.current_task():
            await self._pause(delay)
            meetings, delay = list(self._meetings.values()), 0.0
            try:
                delay = await self._round(meetings)
            except DingTalkError as error:
                for meeting in meetings:
                    meeting.refused(error)
            except Exception as error:
                for meeting in meetings:
                    meeting.fail(error)

    async def _pause(self, asked: float) -> None:
        """Wait until the next round is due; as long as DingTalk asks, in seconds, where that is longer."""
        await asyncio.sleep(max(min(asked, MOST_SECONDS), self.interval, LEAST_SECONDS))

    async def _round(self, meetings: Sequence[_Meeting]) -> float:
        """Ask once for all, and return the seconds that DingTalk asks to wait."""
        hook = DingTalkConferenceHook(self.dingtalk_conn_id, max_attempts=1)
        async with AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(hook)
            except (DingTalkError, AirflowNotFoundException):
                raise
            except Exception as error:  # of Airflow's; what it says may quote the connection
                log.warning(
                    "the connection %s could not be looked up (%s); tried again in the next round",
                    self.dingtalk_conn_id,
                    type(error).__name__,
                )
                return 0.0
            self._number += 1
            return await _Round(hook, self._number, meetings).run()


class _Round:
    """One round of polls: each meeting is asked for at most once, or until DingTalk takes no more calls."""

    def __init__(self, hook: DingTalkConferenceHook, number: int, meetings: Sequence[_Meeting]) -> None:
        self._hook = hook
        self._number = number
        self._meetings = meetings
        self._over = False
        self._wait = 0.0
        self._pace = Pace(CALLS_PER_SECOND)
        self._batch_answered = False
        by_turn = sorted(meetings, key=_turn)
        others = [one for one in by_turn if not self._is_single(one)]
        self._singles = deque(one for one in by_turn if self._is_single(one))
        self._batches = deque(others[first : first + BATCH] for first in range(0, len(others), BATCH))

    def _is_single(self, meeting: _Meeting) -> bool:
        by_id = meeting.reference.name == "conference_id"
        return not by_id or meeting.due or meeting.alone_until >= self._number

    async def run(self) -> float:
        """Make the calls, and return the seconds that DingTalk asks to wait."""
        self._at_a_time = 1  # the first call finds out alone whether DingTalk takes any
        while not self._over and (self._singles or self._batches):
            turns, self._at_a_time = self._at_a_time, CONCURRENCY
            await asyncio.gather(*islice(self._turns(), turns))
        for meeting in self._meetings:
            meeting.make_do()
        return self._wait

    def _turns(self) -> Iterator[Awaitable[None]]:
        """Yield the calls whose turn it is: for one meeting, or for a batch."""
        while self._singles or self._batches:
            if self._singles and not (self._batches and _turn(self._batches[0][0]) < _turn(self._singles[0])):
                one = self._singles.popleft()
                yield self._guarded(partial(self._ask_singly, one), [one])
            else:
                some = self._batches.popleft()
                yield self._guarded(partial(self._ask_together, some), some)

    async def _guarded(self, ask: Callable[[], Awaitable[None]], meetings: Sequence[_Meeting]) -> None:
        await self._pace.turn()
        try:
            await ask()
        except Exception as error:  # nobody expects one; it is for those to whom it happens
            for meeting in meetings:
                meeting.fail(error)

    async def _ask_singly(self, meeting: _Meeting) -> None:
        """Ask for one meeting, or for those of a room code or schedule, and tell who waits for it."""
        meeting.asked = self._number
        try:
            conference = await self._look_for(meeting.reference)
        except DingTalkError as error:
            meeting.make_do()
            self._failed(error, [meeting])
        else:
            meeting.told(conference)

    async def _look_for(self, reference: Reference) -> Conference | None:
        if reference.name == "conference_id":
            return await self._hook.aget_conference(reference.value)
        return started_of(await self._hook.afind_conferences(**{reference.name: reference.value}), reference)

    def _failed(self, error: DingTalkError, meetings: Iterable[_Meeting]) -> None:
        """Tell whom the error concerns, and end the round where no call would succeed."""
        passes = isinstance(error, TransientError)
        if passes:
            log.warning("%s; asked again in the next round", error.summary)
        elif error.concerns_all:
            meetings = self._meetings
        if passes or error.concerns_all:
            self._over = True
            self._wait = max(self._wait, error.retry_after or 0.0)
        for meeting in meetings:
            meeting.failed += passes
            meeting.refused(error)

    # Batches

    async def _ask_together(self, meetings: list[_Meeting]) -> None:
        """Ask for some meetings with one call, and tell who waits for one that is as it should be.

        One of them may be why it is refused: it is found by halving the batch, and asked for singly from then
        on. Where DingTalk has a fault for some rounds, that may be why as well.
        """
        is_half = meetings[0].asked == self._number
        for meeting in meetings:
            meeting.asked = self._number
        try:
            running = await self._hook.arunning_of([one.reference.value for one in meetings])
        except DingTalkError as error:
            if not _may_concern_one(error):
                self._failed(error, meetings)
            elif not isinstance(error, TransientError):
                self._halve(meetings)
            else:
                self._fault(error, meetings, is_half=is_half)
            return
        self._batch_answered = True
        for meeting in meetings:
            meeting.failed = 0
            conference = running.get(meeting.reference.value)
            if conference is None:
                meeting.not_listed()
            else:
                meeting.listed(conference)
        self._singles.extendleft(meeting for meeting in meetings if meeting.due)

    def _halve(self, meetings: list[_Meeting]) -> None:
        middle = len(meetings) // 2
        if middle:
            self._batches.extendleft([meetings[middle:], meetings[:middle]])
        else:
            meetings[0].alone_until = self._number + LAST_ASK
            self._singles.appendleft(meetings[0])

    def _fault(self, error: DingTalkError, meetings: list[_Meeting], *, is_half: bool) -> None:
        """End the round; or where the batch has met a fault for long, see whether one meeting is why."""
        log.warning("%s; asked again in the next round", error.summary)
        for meeting in meetings:
            meeting.failed += not is_half
            meeting.due = any(waiter.ends_with(error) for waiter in meeting.waiters)
        failed = max(meeting.failed for meeting in meetings)
        patient = not is_half and (failed < PATIENCE or failed & (failed - 1) != 0)
        if patient or (len(meetings) == 1 and not self._batch_answered):  # it is DingTalk's own
            self._over = True
        else:
            self._at_a_time = 1
            self._halve(meetings)


def _turn(meeting: _Meeting) -> tuple[int, int]:
    """Return what is the less, the longer the meeting was not asked for."""
    return meeting.asked, meeting.failed


def _may_concern_one(error: DingTalkError) -> bool:
    """Return whether a batch query may have failed because of one of its meetings."""
    if isinstance(error, TransientError):
        return isinstance(error, (ServerError, ResponseError))
    return not error.concerns_all
