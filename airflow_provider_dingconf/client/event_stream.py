"""An app's event stream, held for all who watch it in this process.

DingTalk gives an event to one of an app's connections. Whoever watches an app here therefore shares one
connection, whichever Airflow connection it names the app by: each gets every event, and DingTalk is told that
an event is taken when all have taken it. What started something is remembered, also across a restart; an
event that comes again starts nothing. One place connects, waits after a failure, and tells all who watch.

Nothing here blocks the loop, and cancelling ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import aiohttp

from airflow_provider_dingconf.client.http import websocket
from airflow_provider_dingconf.client.token_cache import (
    SeenEvents,
    SuiteTicket,
    seen_events_of,
    suite_ticket_of,
)
from airflow_provider_dingconf.dingtalk.errors import ConnectionLostError, DingTalkError, TransientError
from airflow_provider_dingconf.dingtalk.events import (
    ConferenceEvent,
    Frame,
    FrameError,
    conference_events,
    read_frame,
    reply,
    suite_ticket,
)
from airflow_provider_dingconf.dingtalk.responses import masked, one_line
from airflow_provider_dingconf.hooks import DingTalkConferenceHook

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from airflow_provider_dingconf.client.settings import Settings

PING_SECONDS = 30.0
"""Between two pings; a peer that does not answer one in half that time is gone."""

JOIN_SECONDS = (5.0, 60.0)
"""How long nobody is to have joined before a connection is made, so that all who watch see the first event;
and how long is waited for that at most."""

WAIT_SECONDS = (1.0, 60.0)
"""Between attempts to connect: about so long after the first one that failed, and at most."""

MOST_SECONDS = 3_600.0
"""Before the next attempt, whatever DingTalk asks for."""

REFUSED_SECONDS = (60.0, 600.0)
"""After an error that repeating does not change: the Airflow connection is read again after the first, and
DingTalk is asked again after the second, or as soon as the connection has been changed."""

LASTED_SECONDS = 60.0
"""A connection that lasted so long makes up for one that failed."""

TICK_SECONDS = 5.0
"""Between two deliveries without events, from which watchers see that time passes."""

QUIET_SECONDS = 10.0
"""How long after the last event that started something a tick is the last one, too."""

WARN_SECONDS = 600.0
"""Between two warnings of events that could not be read."""

MAX_OPEN = 10_000
"""How many events may wait until they are taken, before DingTalk is asked to keep them."""

_TICK = ""
"""Stands for an event id; no event has it."""

log = logging.getLogger(__name__)


class Delivery:
    """What one watcher gets: all events of meetings in one of DingTalk's events; or, as a tick, none.

    Ticks come for as long as events have started something not long ago. A watcher is to set :attr:`fired`
    where it started something, and to say :meth:`taken` once that is safe. Where it never does, DingTalk
    delivers the event again.

    :param overdue: of a tick: events had started something before this stream began, and no tick came after.
    """

    def __init__(
        self,
        events: list[ConferenceEvent],
        pending: _Pending,
        subscription: Subscription,
        *,
        overdue: bool = False,
    ) -> None:
        self.events = events
        self.overdue = overdue
        self.fired = False
        self._pending = pending
        self._subscription = subscription

    def taken(self) -> None:
        """Say that what the watcher made of it is safe."""
        self._pending.fired = self._pending.fired or self.fired
        self._subscription.settle(self._pending, taken=True)

    def refused(self) -> None:
        """Say that the events could not be taken: DingTalk is to deliver them again later."""
        self._subscription.settle(self._pending, taken=False)


@dataclass(eq=False)
class _Pending:
    """One event of DingTalk's, or a tick, until all who watch have taken it.

    :param receipts: the messages it came in, and the connections that an answer to them goes to.
    :param fired: whether it started anything.
    """

    event_id: str
    receipts: list[tuple[aiohttp.ClientWebSocketResponse, Frame]]
    waiting: set[Subscription]
    fired: bool = False
    refused: bool = False
    began: float = field(default_factory=time.monotonic)


class Subscription:
    """One watcher's part of an app's event stream.

    :param conn_id: the Airflow connection it names the app by.
    :param settings: what that said.
    """

    def __init__(self, stream: EventStream, conn_id: str, settings: Settings) -> None:
        self._stream = stream
        self._arrived: asyncio.Queue[Delivery | Exception | None] = asyncio.Queue()
        self.conn_id = conn_id
        self.settings = settings
        self.corp_id = settings.events_app.corp_id

    async def next(self) -> Delivery | None:
        """Return what comes next; None at the end, when an Airflow connection has been changed.

        :raises Exception: the stream ended for a fault of this package's.
        """
        found = await self._arrived.get()
        if isinstance(found, Exception):
            raise found
        return found

    def put(self, arrived: Delivery | Exception | None) -> None:
        """Hand the watcher what came."""
        self._arrived.put_nowait(arrived)

    def settle(self, pending: _Pending, *, taken: bool) -> None:
        """Say that the watcher has taken an event, or could not."""
        self._stream.settle(pending, self, taken=taken)

    def close(self) -> None:
        """Leave the stream; what was not taken is refused."""
        self._stream.leave(self)


class EventStream:
    """One app's event stream, for as long as anybody watches it.

    :param hook: of a connection to the app.
    :param key: where the stream stands in the table of streams.
    """

    joined_at: ClassVar[float] = float("-inf")
    """When somebody last joined a stream of this process."""

    def __init__(self, hook: DingTalkConferenceHook, key: object) -> None:
        self._hook = hook
        self._key = key
        self._settings: Settings = hook.settings
        self._subscriptions: set[Subscription] = set()
        self._open: dict[str, _Pending] = {}
        self._settled: asyncio.Queue[_Pending] = asyncio.Queue()
        self._seen: set[SeenEvents] = set()
        self._tickets: set[SuiteTicket] = set()
        self._connected_at = self._fired_at = self._warned_at = float("-inf")
        self._task: asyncio.Task[None] | None = None

    def join(self, conn_id: str, settings: Settings) -> Subscription:
        """Return a new watcher's part, and begin where it is the first.

        What is to be remembered goes to the directories of all who have joined.
        """
        note_join()
        subscription = Subscription(self, conn_id, settings)
        self._subscriptions.add(subscription)
        self._seen.add(seen_events_of(settings))
        self._tickets.add(suite_ticket_of(settings))
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="dingtalk-event-stream")
        return subscription

    def leave(self, subscription: Subscription) -> None:
        """Take a watcher out, and end where it was the last."""
        if subscription not in self._subscriptions:
            return
        self._subscriptions.remove(subscription)
        for pending in list(self._open.values()):
            self.settle(pending, subscription, taken=False)
        if not self._subscriptions:
            self._forget()
            if self._task is not None:
                self._task.cancel()

    def settle(self, pending: _Pending, subscription: Subscription, *, taken: bool) -> None:
        """Note that a watcher has taken an event, or could not; the last one's word goes to DingTalk."""
        if subscription not in pending.waiting:
            return
        pending.waiting.remove(subscription)
        pending.refused = pending.refused or not taken
        if not pending.waiting:
            self._settled.put_nowait(pending)

    def _forget(self) -> None:
        if _streams.get(self._key) is self:
            del _streams[self._key]

    async def _run(self) -> None:
        """Hold the stream until it is cancelled, or an Airflow connection that leads to it is changed."""
        parts = [
            asyncio.create_task(part)
            for part in (self._hold_on(), self._answer_settled(), self._keep_ticking())
        ]
        end: Exception | None = None
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
        except Exception as error:
            end = error
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
        self._forget()
        for subscription in self._subscriptions:
            subscription.put(end)

    async def _hold_on(self) -> None:
        """Connect, again and again, until an Airflow connection is found to have been changed."""
        failures = 0.0
        while True:
            await _all_joined()
            self._connected_at, asked, lost = float("inf"), 0.0, False
            try:
                await self._hold()
            except TransientError as error:
                log.warning("event stream: %s", error.summary)
                asked, lost = min(error.retry_after or 0.0, MOST_SECONDS), True
            except DingTalkError as error:
                log.error("no events are received: %s", error)
                if await self._connection_changed():
                    return
                continue
            lasted = max(time.monotonic() - self._connected_at, 0.0)
            failures = max(failures - lasted / LASTED_SECONDS, 0.0)
            if lost or lasted < LASTED_SECONDS:
                first, longest = WAIT_SECONDS
                wait = min(first * 2.0 ** min(failures, 30.0), longest)
                failures += 1.0
                await asyncio.sleep(max(wait * _jitter(0.1), asked))

    async def _connection_changed(self) -> bool:
        """Wait until DingTalk may be asked again; return whether that is for a changed Airflow connection."""
        look, longest = REFUSED_SECONDS
        until = time.monotonic() + longest * _jitter(0.8)
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(look, left))
            for conn_id, before in {one.conn_id: one.settings for one in self._subscriptions}.items():
                with contextlib.suppress(Exception):  # whatever reading a connection raises
                    if await _hook_of(conn_id)._asettings() != before:
                        return True
        return False

    async def _hold(self) -> None:
        """Connect, and read until DingTalk says that it is about to close.

        :raises DingTalkError: there was no connection, or it was lost.
        """
        address = await self._hook.aevents_address()
        async with websocket(self._settings, address, PING_SECONDS) as socket:
            self._connected_at = time.monotonic()
            log.info("event stream: connected, for the app %s", self._settings.events_app.client_id)
            async for message in socket:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    continue
                try:
                    frame = read_frame(message.data)
                except FrameError as error:
                    log.warning("event stream: a message was left out: %s", error)
                    continue
                with contextlib.suppress(ConnectionError):  # the next reading says what is wrong
                    await self._receive(socket, frame)
                if frame.says_goodbye:
                    log.info("event stream: DingTalk is about to close the connection; opening another")
                    return
            why = str(socket.exception() or f"it was closed ({socket.close_code})")
        said = one_line(masked(why, (*self._settings.secrets, *address.secrets)))
        raise ConnectionLostError(f"the event stream was lost: {said}", code="connectionLost")

    async def _receive(self, socket: aiohttp.ClientWebSocketResponse, frame: Frame) -> None:
        """Hand an event to all who watch, or answer what is none for them at once."""
        ticket = suite_ticket(frame)
        if ticket:
            born = frame.born_at.timestamp() if frame.born_at else time.time()
            for kept in self._tickets:
                await asyncio.to_thread(kept.put, ticket, born)
            log.info("event stream: a suite ticket was pushed, and is kept")
        pending = self._open.get(frame.event_id) if frame.event_id else None
        if pending is not None:  # it came again, before it was taken
            pending.receipts.append((socket, frame))
            return
        events = conference_events(frame)
        if not events:
            self._warn_of(frame)
        watching = {one for one in self._subscriptions if one.corp_id in {None, frame.corp_id}}
        if not events or not watching or any(events[0].event_id in seen for seen in self._seen):
            await socket.send_str(reply(frame))
        elif len(self._open) >= MAX_OPEN:
            await socket.send_str(reply(frame, taken=False))
        else:
            self._deliver(events, _Pending(events[0].event_id, [(socket, frame)], watching))

    def _warn_of(self, frame: Frame) -> None:
        """Say that an event of a meeting names none, with what it holds in its place."""
        now = time.monotonic()
        if frame.is_of_meetings and now - self._warned_at > WARN_SECONDS:
            self._warned_at = now
            log.warning(
                "event stream: an event %s names no meeting and is left out; it holds %.300s",
                frame.event_type,
                frame.outline,
            )

    def _deliver(self, events: list[ConferenceEvent], pending: _Pending, *, overdue: bool = False) -> None:
        self._open[pending.event_id] = pending
        for subscription in set(pending.waiting):
            subscription.put(Delivery(events, pending, subscription, overdue=overdue))

    async def _keep_ticking(self) -> None:
        """Deliver ticks for as long as events may call for one, however many events come meanwhile."""
        await _all_joined()
        overdue = self._is_restless()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            if self._is_restless() and _TICK not in self._open and self._subscriptions:
                self._deliver([], _Pending(_TICK, [], set(self._subscriptions)), overdue=overdue)
                overdue = False

    def _is_restless(self) -> bool:
        return any(seen.sweep_due for seen in self._seen)

    async def _answer_settled(self) -> None:
        """Remember what started something, then tell DingTalk what was taken."""
        done: list[_Pending] = []
        try:
            while True:
                done = [await self._settled.get()]
                while not self._settled.empty():
                    done.append(self._settled.get_nowait())
                if self._remember(done):
                    await asyncio.to_thread(self._save)
                for pending in done:
                    for socket, frame in pending.receipts:
                        with contextlib.suppress(ConnectionError, RuntimeError):  # then it comes again
                            if not socket.closed:
                                await socket.send_str(reply(frame, taken=not pending.refused))
        except asyncio.CancelledError:
            while not self._settled.empty():
                done.append(self._settled.get_nowait())
            if self._remember(done):
                # Begun at once: a loop that is being closed may run no other task.
                await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, self._save))
            raise

    def _remember(self, done: list[_Pending]) -> bool:
        """Take events out of those that are open, and remember those that started something.

        :returns: whether there is anything to be saved.
        """
        for pending in done:
            self._open.pop(pending.event_id, None)
        taken = [pending for pending in done if not pending.refused]
        fired = [pending.event_id for pending in taken if pending.fired and pending.event_id != _TICK]
        if fired:
            self._fired_at = time.monotonic()
        quiet = any(
            pending.event_id == _TICK and pending.began - self._fired_at >= QUIET_SECONDS for pending in taken
        )
        for seen in self._seen:
            seen.add(fired)
            if quiet:
                seen.note_sweep()
        return bool(fired) or quiet

    def _save(self) -> None:
        for seen in self._seen:
            seen.save()


def _jitter(least: float) -> float:
    return random.uniform(least, 1.0)  # noqa: S311 - no secret  # nosec B311


_streams: dict[object, EventStream] = {}
"""The streams of this process, by loop and app."""


def note_join() -> None:
    """Say that somebody new watches, for whom new connections are to wait."""
    EventStream.joined_at = time.monotonic()


async def _all_joined() -> None:
    """Wait until nobody has joined for a while."""
    alone, longest = JOIN_SECONDS
    until = time.monotonic() + longest
    while (left := min(EventStream.joined_at + alone, until) - time.monotonic()) > 0:
        await asyncio.sleep(left)


def _hook_of(dingtalk_conn_id: str) -> DingTalkConferenceHook:
    return DingTalkConferenceHook(dingtalk_conn_id, max_attempts=1, max_seconds=30.0)


async def subscribe(dingtalk_conn_id: str) -> Subscription:
    """Join the event stream of a connection's app.

    :raises DingTalkError: the connection is wrong.
    :raises Exception: it could not be read.
    """
    hook = _hook_of(dingtalk_conn_id)
    settings = await hook._asettings()
    app = settings.events_app
    await asyncio.to_thread(seen_events_of(settings).load)
    key = (asyncio.get_running_loop(), settings.base_url, app.client_id, app.client_secret)
    if key not in _streams:
        _streams[key] = EventStream(hook, key)
    return _streams[key].join(dingtalk_conn_id, settings)


class Watch:
    """What one watcher sees of the events of a connection's app, for as long as it wants to.

    An error that repeating does not change, such as wrong credentials, does not end it: nobody would begin it
    again when the connection is put right. It is logged, and the connection looked at again later.

    :param dingtalk_conn_id: the Airflow connection, of type ``dingtalk``.
    """

    def __init__(self, dingtalk_conn_id: str) -> None:
        self._conn_id = dingtalk_conn_id
        self._subscription: Subscription | None = None

    async def deliveries(self) -> AsyncIterator[Delivery]:
        """Yield what comes."""
        try:
            while True:
                self._subscription = await self._subscribed()
                while (delivery := await self._subscription.next()) is not None:
                    yield delivery
                self.close()
        finally:
            self.close()

    def close(self) -> None:
        """Stop watching."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.close()

    async def _subscribed(self) -> Subscription:
        """Join, as soon as the Airflow connection can be read and is right."""
        last = ""
        while True:
            try:
                return await subscribe(self._conn_id)
            except Exception as error:  # a backend of secrets may raise anything
                said = f"{type(error).__name__}: {one_line(str(error))}"
                if said != last:
                    log.error("no events are received: %s", said)
                last = said
            look = REFUSED_SECONDS[0]
            await asyncio.sleep(look - time.time() % look)  # all look in the same moment, and join together
