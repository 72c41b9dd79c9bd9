"""An app's event stream, which all watchers of the app in this process share.

DingTalk gives an event to one of an app's connections. So all watchers of an app share one connection,
whichever Airflow connection names the app, and each of them gets every event. DingTalk gets the
acknowledgement when the last watcher is done. If an event that started something comes again, it is dropped,
also after a restart. Nothing here blocks the event loop, and a cancellation takes effect at once.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Hashable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from aiohttp import ClientWebSocketResponse, WSMsgType

from airflow_provider_dingconf.client import token_cache
from airflow_provider_dingconf.client.http import websocket
from airflow_provider_dingconf.client.sweeps import Sweeps
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

if TYPE_CHECKING:
    from airflow_provider_dingconf.client.client import DingTalkClient
    from airflow_provider_dingconf.client.settings import Settings
    from airflow_provider_dingconf.dingtalk.events import Address

_SWEEP = ""  # in place of an event id; no event has it
_ENDS = {WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StreamOptions:
    """The times of a stream, in seconds."""

    ping: float = 30.0  # a peer that does not respond to a ping in half this time is gone
    join: tuple[float, float] = (5.0, 60.0)  # without a new watcher until it connects; the limit of that wait
    wait: tuple[float, float] = (1.0, 60.0)  # after the first failed attempt to connect; the limit
    retry_after: float = 3_600.0  # before the next attempt at most, whatever DingTalk asks for
    warn: float = 600.0  # between two warnings about events that could not be read
    refused: tuple[float, float] = (60.0, 600.0)  # to read a wrong connection again; to call DingTalk again
    restart: float = 10.0  # in which a lost watcher comes back, or its whole process ends
    lasted: float = 60.0  # after a connection that lasted this long, the waits start again
    sweeps: tuple[float, ...] = (10.0, 40.0, 160.0, 640.0)  # after Airflow has stored an event
    tick: float = 5.0  # between two checks whether a sweep is due
    stored: float = 5.0  # before Airflow 3.3: after which an event counts as stored
    unconfirmed: float = 0.5  # on Airflow 3.3: an event that is confirmed sooner was not stored
    max_open: int = 10_000  # unacknowledged events, before DingTalk is asked to deliver more of them later
    jitter: Callable[[float], float] = lambda least: random.uniform(least, 1.0)  # noqa: S311  # nosec B311


Connect = Callable[[str], Awaitable["DingTalkClient"]]
"""Reads an Airflow connection again, and returns its client."""


@dataclass(eq=False)
class Delivery:
    """A DingTalk event, or a sweep, until all watchers are done with it."""

    event_id: str
    events: list[ConferenceEvent]  # one for each meeting; none for a sweep
    waiting: set[Watch]
    receipts: list[tuple[ClientWebSocketResponse, Frame]]  # the messages that brought it, and where to reply
    sweep_of: dict[Hashable, float] = field(default_factory=dict)  # which triggers sweep, and when each fired
    fired: set[Hashable] = field(default_factory=set)  # the triggers that have fired for it
    refused: bool = False

    def is_swept_by(self, trigger: Hashable, began: float) -> bool:
        """Return whether a trigger must fire for a sweep."""
        # A trigger that began after another one fired may be its successor.
        return trigger in self.sweep_of or any(at < began for at in self.sweep_of.values())


class EventStream:
    """One app's event stream, as long as it has a watcher."""

    joined_at: ClassVar[float] = float("-inf")  # when a watcher last joined a stream of this process

    def __init__(self, client: DingTalkClient, connect: Connect, options: StreamOptions, key: object) -> None:
        self._client, self._settings = client, client.settings
        self._connect, self._options, self._key = connect, options, key
        self._watches: set[Watch] = set()
        self._open: dict[str, Delivery] = {}
        self._finished: asyncio.Queue[Delivery] = asyncio.Queue()
        self._sweeps = Sweeps(options.sweeps)
        self._unsaved = False
        self._seen: set[token_cache.SeenEvents] = set()
        self._connected_at = self._warned_at = self._lost_at = float("-inf")
        self._task: asyncio.Task[None] | None = None

    def join(self, watch: Watch) -> None:
        """Add a watcher; the first one starts the stream."""
        note_join()
        self._watches.add(watch)
        seen = token_cache.seen_events_of(watch.settings)
        self._seen.add(seen)
        if self._task is None:
            if seen.sweep_due:
                self._sweeps.restart(time.monotonic())
            self._task = asyncio.create_task(self._run(), name="dingtalk-event-stream")

    def leave(self, watch: Watch) -> None:
        """Remove a watcher, and refuse what it has not acknowledged; the last one ends the stream."""
        self._watches.discard(watch)
        self._lost_at = time.monotonic()
        for delivery in list(self._open.values()):
            self.finish(delivery, watch, refused=True)
        if not self._watches:
            self._forget()
            if self._task is not None:
                self._task.cancel()

    def finish(self, delivery: Delivery, watch: Watch, *, refused: bool = False) -> None:
        """Note that a watcher is done with a delivery. After the last watcher, reply to DingTalk."""
        if watch not in delivery.waiting:
            return
        delivery.waiting.remove(watch)
        if refused:
            self._lost_at = time.monotonic()
        delivery.refused |= refused or self._lost_watcher()
        if not delivery.waiting:
            del self._open[delivery.event_id]
            if delivery.fired:  # also if it was refused: Airflow may have stored it
                self._sweeps.fired(delivery.event_id, delivery.fired, time.monotonic())
            if delivery.refused:
                self._sweeps.refused(delivery.sweep_of, time.monotonic())
            elif delivery.fired or not delivery.events:
                for seen in self._seen:
                    seen.add([delivery.event_id] if delivery.fired else [], swept=not self._sweeps)
                self._unsaved = True
            self._finished.put_nowait(delivery)

    def _lost_watcher(self) -> bool:
        # A lost watcher may come back, and may be the only one that wants an event.
        return time.monotonic() - self._lost_at < self._options.restart

    def _forget(self) -> None:
        if _streams.get(self._key) is self:
            del _streams[self._key]

    async def _run(self) -> None:
        """Hold the stream until it is cancelled, or somebody changes an Airflow connection of a watcher."""
        coroutines = self._stay_connected(), self._reply_to_finished(), self._keep_sweeping()
        parts = [*map(asyncio.create_task, coroutines)]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            end = done.pop().exception()
        finally:
            if self._unsaved:  # begun at once: a loop that is being closed may run no other task
                asyncio.get_running_loop().run_in_executor(None, self._save)
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
        self._forget()
        for watch in self._watches:
            watch.arrived.put_nowait(end)

    async def _stay_connected(self) -> None:
        """Connect again and again, until somebody changes an Airflow connection."""
        failures, options = 0, self._options
        while True:
            await _all_joined(options)
            self._connected_at, asked, lost = float("inf"), 0.0, False
            try:
                await self._hold()
            except TransientError as error:
                log.warning("event stream: %s", error.summary)
                asked, lost = min(error.retry_after or 0.0, options.retry_after), True
            except DingTalkError as error:
                log.error("no events are received: %s", error)
                if await self._connection_changed():
                    return
                continue
            lasted = time.monotonic() - self._connected_at >= options.lasted
            if lasted:
                failures = 0
            if lost or not lasted:
                wait = min(options.wait[0] * 2.0 ** min(failures, 30), options.wait[1])
                failures += 1
                await asyncio.sleep(max(wait * options.jitter(0.1), asked))

    async def _connection_changed(self) -> bool:
        """Wait until DingTalk may be called again; return early and True if an Airflow connection changes."""
        look, longest = self._options.refused
        until = time.monotonic() + longest * self._options.jitter(0.8)
        while (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(look, left))
            for conn_id, before in {each.conn_id: each.settings for each in self._watches}.items():
                with suppress(Exception):  # whatever reading a connection raises
                    if (await self._connect(conn_id)).settings != before:
                        return True
        return False

    async def _hold(self) -> None:
        """Connect, and read until DingTalk announces that it closes the connection.

        After a long silence, open a new connection, and then close the old one.
        """
        async with AsyncExitStack() as current:
            while True:
                address = await self._client.events_address()
                async with AsyncExitStack() as new:
                    connecting = websocket(self._settings, address, self._options.ping)
                    socket = await new.enter_async_context(connecting)
                    await current.aclose()
                    current.push_async_exit(new.pop_all())
                self._connected_at = time.monotonic()
                log.info("event stream: connected, for the app %s", self._settings.events_app.client_id)
                if await self._read(socket, address):
                    log.info("event stream: DingTalk is about to close the connection; opening another")
                    return
                log.info("event stream: no message for a long time; opening another connection")

    async def _read(self, socket: ClientWebSocketResponse, address: Address) -> bool:
        """Read a connection; return True if DingTalk is about to close it, and False after a long silence."""
        while True:
            try:
                message = await socket.receive(self._settings.stream_silence)
            except asyncio.TimeoutError:
                return False
            if message.type in _ENDS:
                break
            try:
                frame = read_frame(message.data if message.type is WSMsgType.TEXT else "")
            except FrameError as error:
                log.warning("event stream: a message was ignored: %s", error)
                continue
            with suppress(ConnectionError):  # the next read says what is wrong
                await self._receive(socket, frame)
            if frame.says_goodbye:
                return True
        why = str(socket.exception() or f"it was closed ({socket.close_code})")
        detail = one_line(masked(why, (*self._settings.secrets, *address.secrets)))
        raise ConnectionLostError(f"the event stream was lost: {detail}", code="connectionLost")

    async def _receive(self, socket: ClientWebSocketResponse, frame: Frame) -> None:
        """Deliver an event to all watchers; acknowledge at once what concerns none of them."""
        ticket = suite_ticket(frame)
        if ticket:
            made_at = frame.born_at.timestamp() if frame.born_at else None
            for kept in {token_cache.suite_ticket_of(watch.settings) for watch in self._watches}:
                await asyncio.to_thread(kept.put, ticket, made_at)
            log.info("event stream: DingTalk pushed a suite ticket, which is kept")
        events = conference_events(frame)
        if not events:
            self._warn_of(frame)
        elif events[0].event_id in self._open:  # it came again before it was acknowledged
            self._open[events[0].event_id].receipts.append((socket, frame))
            return
        corps = {None, frame.corp_id}
        watching = {each for each in self._watches if each.settings.events_app.corp_id in corps}
        if not events or not watching or any(events[0].event_id in seen for seen in self._seen):
            await socket.send_str(reply(frame, taken=not (events and self._lost_watcher())))
        elif len(self._open) >= self._options.max_open:
            await socket.send_str(reply(frame, taken=False))
        else:
            self._deliver(Delivery(events[0].event_id, events, watching, [(socket, frame)]))

    def _warn_of(self, frame: Frame) -> None:
        if frame.is_of_meetings and time.monotonic() - self._warned_at > self._options.warn:
            self._warned_at = time.monotonic()
            text = "event stream: an event %s names no meeting and is ignored; it holds %.300s"
            log.warning(text, frame.event_type, frame.outline)

    def _deliver(self, delivery: Delivery) -> None:
        self._open[delivery.event_id] = delivery
        for watch in delivery.waiting:
            watch.arrived.put_nowait(delivery)

    async def _keep_sweeping(self) -> None:
        """Deliver sweeps when they are due, even while events come."""
        while True:
            await asyncio.sleep(self._options.tick)
            if _SWEEP not in self._open and (due := self._sweeps.pop_due(time.monotonic())):
                self._deliver(Delivery(_SWEEP, [], set(self._watches), [], due))

    async def _reply_to_finished(self) -> None:
        """Save the ids of events that started something, then reply to DingTalk."""
        while True:
            done = [await self._finished.get()]
            while not self._finished.empty():
                done.append(self._finished.get_nowait())
            if self._unsaved:
                await asyncio.to_thread(self._save)
            for delivery in done:
                for socket, frame in delivery.receipts:
                    with suppress(ConnectionError, RuntimeError):  # DingTalk then delivers the event again
                        if not socket.closed:
                            await socket.send_str(reply(frame, taken=not delivery.refused))

    def _save(self) -> None:
        self._unsaved = False
        for seen in list(self._seen):
            seen.save()


_streams: dict[object, EventStream] = {}  # by loop and app


def note_join() -> None:
    """Note that a watcher joined: the stream waits until no more of them join, and then connects."""
    EventStream.joined_at = time.monotonic()


async def _all_joined(options: StreamOptions) -> None:
    alone, longest = options.join
    until = time.monotonic() + longest
    while (left := min(EventStream.joined_at + alone, until) - time.monotonic()) > 0:
        await asyncio.sleep(left)


class Watch:
    """One watcher of the events of a connection's app.

    An error that a retry cannot change, such as wrong credentials, does not end the watcher: nobody would
    start it again after correcting the connection. The error is logged, and the connection is read again
    later.

    :param options: the times of the stream; those of an app's first watcher hold for all.
    """

    def __init__(self, conn_id: str, connect: Connect, options: StreamOptions | None = None) -> None:
        self.conn_id, self._connect = conn_id, connect
        self.settings: Settings
        self.options = options or StreamOptions()
        self._stream: EventStream | None = None
        self.arrived: asyncio.Queue[Delivery | BaseException | None] = asyncio.Queue()  # the others end it

    async def deliveries(self) -> AsyncGenerator[Delivery, None]:
        """Yield the deliveries, until cancelled."""
        try:
            while True:
                await self._join()
                while (arrived := await self.arrived.get()) is not None:
                    if isinstance(arrived, BaseException):
                        raise arrived
                    yield arrived
                self.close()  # somebody changed an Airflow connection
        finally:
            self.close()

    def acknowledge(self, delivery: Delivery) -> None:
        """Acknowledge a delivery: Airflow has stored it. Otherwise, DingTalk delivers the event again."""
        if self._stream is not None:
            self._stream.finish(delivery, self)

    def refuse(self, delivery: Delivery) -> None:
        """Ask DingTalk to deliver the event again later."""
        if self._stream is not None:
            self._stream.finish(delivery, self, refused=True)

    def close(self) -> None:
        """Stop watching."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.leave(self)

    async def _join(self) -> None:
        last = ""
        while True:
            try:
                client = await self._connect(self.conn_id)
                self.settings, app = client.settings, client.settings.events_app
                await asyncio.to_thread(token_cache.seen_events_of(self.settings).load)
                break
            except Exception as error:  # a secrets backend may raise anything
                problem = f"{type(error).__name__}: {one_line(str(error))}"
                if problem != last:
                    log.error("no events are received: %s", problem)
                last = problem
            look = self.options.refused[0]
            await asyncio.sleep(look - time.time() % look)  # all read it at the same time, and join together
        key = (asyncio.get_running_loop(), self.settings.base_url, app.client_id, app.client_secret)
        if key not in _streams:
            _streams[key] = EventStream(client, self._connect, self.options, key)
        self._stream = _streams[key]
        self._stream.join(self)
