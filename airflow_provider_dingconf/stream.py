"""An app's event stream, held for all who watch it in this process.

DingTalk gives an event to one of an app's connections. Whoever watches an app here therefore shares one
connection, whichever Airflow connection it names the app by: each gets every event, and DingTalk is told that
an event is taken when all have taken it. What was told once is remembered, also across a restart; an event
that comes again starts nothing.

Nothing here blocks the loop, and cancelling ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import aiohttp
from airflow.providers.common.compat.sdk import AirflowNotFoundException

from airflow_provider_dingconf.dingtalk.answers import masked, one_line
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
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.token_store import seen_events_of, suite_ticket_of
from airflow_provider_dingconf.transport import websocket, within

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from airflow_provider_dingconf.connection import Settings

PING_SECONDS = 30.0
"""Between two pings; a peer that does not answer one in half that time is gone."""

JOIN_SECONDS = 1.0
"""How long those who watch the same app have to join, before the first event can come."""

WAIT_SECONDS = (1.0, 60.0)
"""Between attempts to connect: about so long after the first one that failed, and at most."""

REFUSED_SECONDS = (60.0, 600.0)
"""After an error that repeating does not change: the Airflow connection is read again after the first, and
DingTalk is asked again after the second, or as soon as the connection has been changed."""

LASTED_SECONDS = 10.0
"""A connection that lasted so long was none that failed."""

QUIET_SECONDS = 10.0
"""How long after events a watcher is told that no more have come."""

MAX_OPEN = 10_000
"""How many events may wait until they are taken, before DingTalk is asked to keep them."""

log = logging.getLogger(__name__)


class Delivery:
    """Events of meetings, as one watcher gets them; all of one event of DingTalk's.

    It is to say :meth:`taken` once they are safe. Where it never does, DingTalk delivers the event again.
    """

    def __init__(self, events: list[ConferenceEvent], pending: _Pending, subscription: Subscription) -> None:
        self.events = events
        self._pending = pending
        self._subscription = subscription

    def taken(self, after: float = 0.0) -> None:
        """Say that the events are safe.

        :param after: seconds from now, when they will be.
        """
        if after:
            asyncio.get_running_loop().call_later(after, self.taken)
        else:
            self._subscription.settle(self._pending, taken=True)

    def refused(self) -> None:
        """Say that the events could not be taken: DingTalk is to deliver them again later."""
        self._subscription.settle(self._pending, taken=False)


@dataclass(eq=False)
class _Pending:
    """One event of DingTalk's, until all who watch have taken it.

    :param receipts: the messages it came in, and the connections that an answer to them goes to.
    """

    event_id: str
    receipts: list[tuple[aiohttp.ClientWebSocketResponse, Frame]]
    waiting: set[Subscription] = field(default_factory=set)
    refused: bool = False


class Subscription:
    """One watcher's part of an app's event stream.

    :param corp_id: the organisation whose events are wanted; None for all.
    """

    def __init__(self, stream: EventStream, corp_id: str | None) -> None:
        self._stream = stream
        self._arrived: asyncio.Queue[Delivery | Exception] = asyncio.Queue()
        self.corp_id = corp_id

    async def next(self, seconds: float | None = None) -> Delivery | None:
        """Return what comes next; None where nothing comes in time.

        :param seconds: how long to wait; None for ever.
        :raises DingTalkError: the stream ended for a reason that repeating does not change.
        :raises Exception: it ended for a fault of this package's.
        """
        try:
            found = await within(self._arrived.get(), seconds)
        except asyncio.TimeoutError:
            return None
        if isinstance(found, Exception):
            raise found
        return found

    def put(self, arrived: Delivery | Exception) -> None:
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

    def __init__(self, hook: DingTalkConferenceHook, key: object) -> None:
        self._hook = hook
        self._key = key
        self._settings: Settings = hook.settings
        self._subscriptions: set[Subscription] = set()
        self._open: dict[str, _Pending] = {}
        self._settled: asyncio.Queue[_Pending] = asyncio.Queue()
        self._seen = seen_events_of(self._settings)
        self._task: asyncio.Task[None] | None = None

    def join(self, corp_id: str | None) -> Subscription:
        """Return a new watcher's part, and begin where it is the first."""
        subscription = Subscription(self, corp_id)
        self._subscriptions.add(subscription)
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
        """Hold the stream until it is cancelled, or DingTalk refuses it for good."""
        parts = [asyncio.create_task(part) for part in (self._hold_on(), self._answer_settled())]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
        except Exception as error:
            self._forget()
            for subscription in self._subscriptions:
                subscription.put(error)
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    async def _hold_on(self) -> None:
        """Connect, again and again.

        :raises DingTalkError: an error that repeating does not change.
        """
        await asyncio.to_thread(self._seen.load)
        await asyncio.sleep(JOIN_SECONDS)
        failures = 0
        while True:
            began, asked, lost = time.monotonic(), 0.0, False
            try:
                await self._hold()
            except TransientError as error:
                log.warning("event stream: %s", error.summary)
                asked, lost = error.retry_after or 0.0, True
            lasted = time.monotonic() - began > LASTED_SECONDS
            failures = int(lost) if lasted else failures + 1
            if failures:
                first, longest = WAIT_SECONDS
                wait = min(first * 2.0 ** min(failures - 1, 30), longest)
                await asyncio.sleep(max(wait * _jitter(0.1), asked))

    async def _hold(self) -> None:
        """Connect, and read until DingTalk says that it is about to close.

        :raises DingTalkError: there was no connection, or it was lost.
        """
        address = await self._hook.aevents_address()
        async with websocket(self._settings, address, PING_SECONDS) as socket:
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
            await asyncio.to_thread(suite_ticket_of(self._settings).put, ticket, born)
            log.info("event stream: a suite ticket was pushed, and is kept")
        pending = self._open.get(frame.event_id or "")
        if pending is not None:  # it came again, before it was taken
            pending.receipts.append((socket, frame))
            return
        events = conference_events(frame)
        watching = [one for one in self._subscriptions if one.corp_id in {None, frame.corp_id}]
        if not events or not watching or events[0].event_id in self._seen:
            await socket.send_str(reply(frame))
        elif len(self._open) >= MAX_OPEN:
            await socket.send_str(reply(frame, taken=False))
        else:
            pending = _Pending(events[0].event_id, [(socket, frame)], set(watching))
            self._open[pending.event_id] = pending
            for subscription in watching:
                subscription.put(Delivery(events, pending, subscription))

    async def _answer_settled(self) -> None:
        """Remember what was taken, then tell DingTalk."""
        done: list[_Pending] = []
        try:
            while True:
                done = [await self._settled.get()]
                while not self._settled.empty():
                    done.append(self._settled.get_nowait())
                if self._remember(done):
                    await asyncio.to_thread(self._seen.save)
                for pending in done:
                    for socket, frame in pending.receipts:
                        with contextlib.suppress(ConnectionError, RuntimeError):  # then it comes again
                            if not socket.closed:
                                await socket.send_str(reply(frame, taken=not pending.refused))
        except asyncio.CancelledError:
            while not self._settled.empty():
                done.append(self._settled.get_nowait())
            if self._remember(done):
                self._seen.save()
            raise

    def _remember(self, done: list[_Pending]) -> list[str]:
        """Take events out of those that are open, and remember those that were taken."""
        for pending in done:
            self._open.pop(pending.event_id, None)
        taken = [pending.event_id for pending in done if not pending.refused]
        self._seen.add(taken)
        return taken


def _jitter(least: float) -> float:
    return random.uniform(least, 1.0)  # noqa: S311 - no secret  # nosec B311


_streams: dict[object, EventStream] = {}
"""The streams of this process, by loop and app."""


async def subscribe(dingtalk_conn_id: str) -> tuple[Subscription, Settings]:
    """Join the event stream of a connection's app.

    :returns: the watcher's part of it, and what the connection says.
    :raises DingTalkError: the connection is wrong.
    """
    hook = DingTalkConferenceHook(dingtalk_conn_id, max_attempts=1, max_seconds=30.0)
    settings = await hook._asettings()
    app = settings.events_app
    key = (asyncio.get_running_loop(), settings.base_url, app.client_id, app.client_secret)
    if key not in _streams:
        _streams[key] = EventStream(hook, key)
    return _streams[key].join(app.corp_id), settings


class Watch:
    """What one watcher sees of the events of a connection's app, for as long as it wants to.

    An error that repeating does not change, such as wrong credentials, does not end it: nobody would begin it
    again when the connection is put right. It is logged, and the connection looked at again later.

    :param dingtalk_conn_id: the Airflow connection, of type ``dingtalk``.
    """

    def __init__(self, dingtalk_conn_id: str) -> None:
        self._conn_id = dingtalk_conn_id
        self._subscription: Subscription | None = None

    async def deliveries(self) -> AsyncIterator[Delivery | None]:
        """Yield what comes; and None when nothing has come for :data:`QUIET_SECONDS` after something did."""
        settings: Settings | None = None
        try:
            while True:
                try:
                    self._subscription, settings = await subscribe(self._conn_id)
                    async for delivery in _with_pauses(self._subscription):
                        yield delivery
                except (DingTalkError, AirflowNotFoundException) as error:
                    self.close()
                    log.error("no events are received: %s", error)
                await self._until_it_may_work(settings)
        finally:
            self.close()

    def close(self) -> None:
        """Stop watching."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.close()

    async def _until_it_may_work(self, before: Settings | None) -> None:
        """Wait until the Airflow connection has been changed, or for long enough."""
        look, longest = REFUSED_SECONDS
        until = time.monotonic() + longest * _jitter(0.8)
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(look, left))
            with contextlib.suppress(DingTalkError, AirflowNotFoundException):
                if await DingTalkConferenceHook(self._conn_id)._asettings() != before:
                    return


async def _with_pauses(subscription: Subscription) -> AsyncIterator[Delivery | None]:
    last: float | None = None
    while True:
        left = None if last is None else last + QUIET_SECONDS - time.monotonic()
        delivery = await subscription.next(left if left is None else max(left, 0.0))
        last = None if delivery is None else time.monotonic()
        yield delivery
