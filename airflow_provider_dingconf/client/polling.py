"""Wait for many meetings with few calls.

All waits with one connection and one interval share a :class:`Poll`. Each of its rounds makes one batch query
for up to a hundred meetings. The batch query lists only running meetings, without all of their facts. A
meeting is queried alone if that can give something new:

- it was running, and is no longer listed: it has ended;
- it has started, and a wait is for the start: only the single query has all facts;
- it has not been listed for many rounds: it may have run between two of them.

A round ends at the first error that shows that DingTalk takes no calls for now. The next round begins with
the meetings that were not queried.

A single meeting can make a batch query fail. So a batch is halved if it is refused, or if it met faults in
several rounds in a row, until a query succeeds or the meeting is alone.
"""

from __future__ import annotations

import asyncio
import logging
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakValueDictionary

from airflow_provider_dingconf.dingtalk.conferences import BATCH, ConferenceStatus, reached, started_of
from airflow_provider_dingconf.dingtalk.errors import DingTalkError, Outcome, TransientError
from airflow_provider_dingconf.dingtalk.limits import CONCURRENCY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from airflow_provider_dingconf.client.client import DingTalkClient
    from airflow_provider_dingconf.dingtalk.conferences import Conference, Reference

    _Key = tuple[asyncio.AbstractEventLoop, str, float]
    Connect = Callable[[], Awaitable[DingTalkClient]]
    Query = Callable[[list["_Meeting"]], Awaitable[None]]

log = logging.getLogger(__name__)

_longest_ago = attrgetter("queried", "misses")  # sorts meetings by their last query


@dataclass(frozen=True)
class PollSettings:
    """How often a poll makes which call."""

    first_query: int = 10  # rounds until a meeting that has not started is queried alone; doubles each time
    last_query: int = 320  # the limit of that; also the rounds that a refused meeting is in no batch
    patience: int = 4  # rounds in a row in which a batch meets a fault before it is halved
    least_seconds: float = 1.0  # between two rounds, however short the interval
    most_seconds: float = 3_600.0  # between two rounds, whatever DingTalk asks for
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep  # between two rounds


@dataclass
class Poll:
    """The polls with one connection and one interval: get one by :meth:`of`, then :meth:`wait`.

    :param connect: returns the client for one round, which must not retry calls. If it raises a
        :class:`~airflow_provider_dingconf.dingtalk.errors.TransientError`, the next round calls it again.
    :param interval: seconds between two rounds.
    """

    connect: Connect
    interval: float
    settings: PollSettings
    number: int = 0  # of the latest round
    _meetings: dict[Reference, _Meeting] = field(default_factory=dict)
    _rounds: asyncio.Task[None] | None = None

    shared: ClassVar[WeakValueDictionary[_Key, Poll]] = WeakValueDictionary()

    @classmethod
    def of(cls, key: str, interval: float, connect: Connect, settings: PollSettings | None = None) -> Poll:
        """Return the poll that all waits with this key and interval share in this event loop."""
        poll = cls(connect, interval, settings or PollSettings())
        return cls.shared.setdefault((asyncio.get_running_loop(), key, interval), poll)

    async def wait(
        self,
        reference: Reference,
        wanted: ConferenceStatus,
        seen: ConferenceStatus | None = None,
        on_error: Mapping[str, Outcome] | None = None,
    ) -> Conference:
        """Return the meeting once it has started or ended.

        :param seen: the current status of the meeting; None if not known.
        :param on_error: outcomes that replace the defaults. The wait goes on after an error with RETRY.
        :raises ConferenceClosedError: the start was waited for, and the meeting has ended.
        """
        waiter = _Waiter(wanted, on_error or {}, asyncio.get_running_loop().create_future())
        meeting = self._meetings.setdefault(reference, _Meeting(self, reference))
        meeting.join(waiter, seen)
        if self._rounds is None:
            # In no task's context, because the logs of a round concern all.
            self._rounds = Context().run(asyncio.create_task, self._run())
            self._rounds.add_done_callback(self._ended)
        try:
            return await waiter.result
        finally:
            meeting.waiters.remove(waiter)
            if not meeting.waiters:
                del self._meetings[reference]
            if not self._meetings and self._rounds:
                self._rounds.cancel()
                self._rounds = None

    def _ended(self, rounds: asyncio.Task[None]) -> None:
        """Cancel all waits if something else cancelled the rounds."""
        if rounds is self._rounds:
            self._rounds = None
            for meeting in self._meetings.values():
                for waiter in meeting.waiters:
                    waiter.result.cancel()

    async def _run(self) -> None:
        asked, limits = 0.0, self.settings
        while self._rounds is asyncio.current_task():
            await limits.pause(max(min(asked, limits.most_seconds), self.interval, limits.least_seconds))
            meetings, asked = list(self._meetings.values()), 0.0
            try:
                async with await self.connect() as client:
                    self.number += 1
                    asked = await _Round(self, client, meetings).run()
            except Exception as error:
                if isinstance(error, DingTalkError):
                    log.warning("%s; this round of polls made no call", error.summary)
                    asked = error.retry_after or 0.0
                for meeting in meetings:
                    meeting.refuse(error)


@dataclass(eq=False)
class _Waiter:
    wanted: ConferenceStatus
    on_error: Mapping[str, Outcome]
    result: asyncio.Future[Conference]
    context: Context = field(default_factory=copy_context)  # by which Airflow finds the task's log

    def see(self, conference: Conference) -> None:
        try:
            if reached(conference, self.wanted) and not self.result.done():
                self.result.set_result(conference)
        except DingTalkError as error:
            self.refuse(error)

    def refuse(self, error: Exception) -> None:
        if isinstance(error, DingTalkError) and error.outcome_with(self.on_error) is Outcome.RETRY:
            if not isinstance(error, TransientError):  # those are logged once for all
                self.context.run(log.warning, "%s; the wait goes on, as on_error says", error.summary)
        elif not self.result.done():
            self.result.set_exception(error)


@dataclass(eq=False)
class _Meeting:
    """A meeting, or the running one of a room code or schedule, and the waits for it."""

    poll: Poll
    reference: Reference
    waiters: list[_Waiter] = field(default_factory=list)
    may_run: bool = False  # it ran when last seen, or nothing is known: the batch query should list it
    queried: int = 0  # the last round that queried it
    misses: int = 0  # faults since a batch query with it succeeded
    batch: int = BATCH  # how many meetings may be in a batch query with it
    due: bool = False  # to be queried alone
    next_query: int = 0  # the round in which it is due although it has not started
    distance: int = 0  # rounds between two such queries
    alone_until: int = 0  # the last round in which it is in no batch, because a batch of it alone was refused
    listed: Conference | None = None  # by the batch query, until the single query adds the other facts

    def join(self, waiter: _Waiter, seen: ConferenceStatus | None) -> None:
        self.may_run = self.may_run or seen is not ConferenceStatus.NOT_STARTED
        self._query_again_after(self.poll.settings.first_query)
        self.waiters.append(waiter)

    def see_in_batch(self, conference: Conference | None) -> None:
        """Note the result of a batch query: the meeting, or None if it is not running."""
        self.misses, self.batch = 0, BATCH
        if conference is None:
            self.due = self.may_run or self.poll.number >= self.next_query
            return
        if not self.may_run:
            for waiter in self.waiters:
                waiter.context.run(log.info, "%s", conference)
        self.may_run = True
        self._query_again_after(self.poll.settings.first_query)
        if any(waiter.wanted is conference.status for waiter in self.waiters):
            self.listed, self.due = conference, True

    def see(self, conference: Conference | None) -> None:
        """Note the result of a single query: the meeting, or None if none runs under the name."""
        listed, self.listed = self.listed, None
        self._was_queried()
        if conference is None:
            return
        # An ended meeting stays ended, even if a wait is for its start.
        self.may_run = conference.status is ConferenceStatus.STARTED
        for waiter in list(self.waiters):
            # It may have ended after the batch query listed it as started, and the wait may be for the start.
            waiter.see(
                listed if listed and waiter.wanted is listed.status is not conference.status else conference
            )

    def see_as_listed(self) -> None:
        if self.listed:  # the single query, which would have all facts, failed
            self.see(self.listed)

    def refuse(self, error: Exception) -> None:
        if not isinstance(error, TransientError):
            self._was_queried()
            self.may_run = False
        for waiter in self.waiters:
            waiter.refuse(error)

    def _was_queried(self) -> None:
        self.due = False
        if self.poll.number >= self.next_query:
            self._query_again_after(min(2 * self.distance, self.poll.settings.last_query))

    def _query_again_after(self, rounds: int) -> None:
        self.distance, self.next_query = rounds, self.poll.number + rounds


class _Round:
    """One round: it queries each meeting once at most, until DingTalk takes no more calls."""

    def __init__(self, poll: Poll, client: DingTalkClient, meetings: Sequence[_Meeting]) -> None:
        self._client, self._meetings = client, meetings
        self._number, self._settings = poll.number, poll.settings
        self._asked, self._over = 0.0, False
        self._calls: list[tuple[Query, list[_Meeting]]] = []
        self._plan(meetings)

    async def run(self) -> float:
        """Make the calls, and return the seconds of the wait that DingTalk asks for."""
        at_once = 1  # the first call shows whether DingTalk takes any
        while self._calls and not self._over:
            self._calls.sort(key=lambda call: _longest_ago(call[1][0]))
            now, self._calls = self._calls[:at_once], self._calls[at_once:]
            at_once = CONCURRENCY
            await asyncio.gather(*(self._call(*each) for each in now))
        for meeting in self._meetings:
            meeting.see_as_listed()
        return self._asked

    def _plan(self, meetings: Sequence[_Meeting]) -> None:
        batched: dict[int, list[_Meeting]] = {}
        for one in sorted(meetings, key=_longest_ago):
            if one.reference.name != "conference_id" or one.due or one.alone_until >= self._number:
                self._calls.append((self._query_alone, [one]))
            else:
                batched.setdefault(one.batch, []).append(one)
        for size, alike in batched.items():
            for first in range(0, len(alike), size):
                self._calls.append((self._query_batch, alike[first : first + size]))

    async def _call(self, query: Query, meetings: list[_Meeting]) -> None:
        await self._client.limiter.wait()
        if self._over:  # since the wait
            return
        for meeting in meetings:
            meeting.queried = self._number
        try:
            await query(meetings)
        except Exception as error:  # an unexpected one ends the waits for these meetings only
            for meeting in meetings:
                meeting.refuse(error)

    async def _query_alone(self, meetings: list[_Meeting]) -> None:
        meeting = meetings[0]
        reference = meeting.reference
        try:
            if reference.name == "conference_id":
                meeting.see(await self._client.get_conference(reference))
            else:
                meeting.see(started_of(await self._client.find_conferences(reference), reference))
        except DingTalkError as error:
            meeting.see_as_listed()
            self._failed(error, meetings)

    async def _query_batch(self, meetings: list[_Meeting]) -> None:
        try:
            running = await self._client.running_of([one.reference.value for one in meetings])
        except DingTalkError as error:
            passes = isinstance(error, TransientError)
            if passes or error.concerns_all:
                self._failed(error, meetings)
            patient = passes and max(one.misses for one in meetings) < self._settings.patience
            if not error.concerns_all and not patient:
                self._halve(meetings, passes=passes)
            return
        for meeting in meetings:
            meeting.see_in_batch(running.get(meeting.reference.value))
        self._plan([meeting for meeting in meetings if meeting.due])

    def _halve(self, meetings: list[_Meeting], *, passes: bool) -> None:
        """Halve a batch to find the meeting that makes it fail; in this round, if that continues."""
        for meeting in meetings:
            meeting.batch = (len(meetings) + 1) // 2
        if len(meetings) == 1:
            meetings[0].due = True
            meetings[0].alone_until = 0 if passes else self._number + self._settings.last_query
        if not passes:
            self._plan(meetings)

    def _failed(self, error: DingTalkError, meetings: Sequence[_Meeting]) -> None:
        """Pass an error to the meetings that it concerns, and end the round if no call would succeed."""
        passes = isinstance(error, TransientError)
        if passes or error.concerns_all:
            log.warning("%s; this round of polls ends", error.summary)
            self._over = True
            self._asked = max(self._asked, error.retry_after or 0.0)
        for meeting in meetings:
            meeting.misses += passes
        for meeting in self._meetings if error.concerns_all else meetings:
            meeting.refuse(error)
