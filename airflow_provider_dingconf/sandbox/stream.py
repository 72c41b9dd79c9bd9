"""DingTalk's event streams: WebSockets that push the events of an app until it has acknowledged them.

An event goes to one of the app's connections. If it is not acknowledged, or put off (``LATER``), it is
delivered again, to any of them; an app that has never asked for its events gets none. DingTalk's documents do
not say how long DingTalk waits; its SDK for Node says 60 seconds.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from aiohttp import WSMsgType, web
from pydantic_core import from_json

from airflow_provider_dingconf.sandbox.meetings import event_data
from airflow_provider_dingconf.sandbox.state import (
    CORP_ID,
    THIRD_PARTY_APP,
    App,
    Conference,
    State,
    locked,
    now,
)

if TYPE_CHECKING:
    from collections.abc import Callable

REDELIVERY: Final = 60.0
"""Seconds after which an event that nobody acknowledged is delivered again."""

_GOODBYE: Final = 0.2
"""Seconds between announcing that a connection closes, and closing it."""


@dataclass
class Event:
    """One event for one app; the acknowledgements are what each said, such as ``SUCCESS`` or ``LATER``."""

    event_type: str
    data: dict[str, Any]
    app: App
    event_id: str
    corp_id: str
    born_at: int = field(default_factory=now)  # milliseconds since the epoch
    deliveries: int = 0
    acknowledged: bool = False
    acknowledgements: list[str] = field(default_factory=list)


@dataclass(eq=False)
class _Connection:
    """One WebSocket of an app; ``sent`` holds, by message id, what it has not acknowledged."""

    app: App
    socket: web.WebSocketResponse
    transport: asyncio.BaseTransport | None
    sent: dict[str, tuple[Event, asyncio.TimerHandle]] = field(default_factory=dict)
    outbox: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    closing: bool = False

    def put(self, kind: str, data: Any, **headers: str) -> str:
        """Send a frame, and return its message id."""
        always = {"messageId": uuid.uuid4().hex, "contentType": "application/json", "time": str(now())}
        frame = {"specVersion": "1.0", "type": kind, "headers": always | headers, "data": json.dumps(data)}
        self.outbox.put_nowait(json.dumps(frame))
        return always["messageId"]

    async def send(self) -> None:
        while True:
            await self.socket.send_str(await self.outbox.get())

    def cut(self) -> None:
        if self.transport is not None:
            self.transport.close()


@locked
@dataclass(kw_only=True, eq=False, repr=False)
class Streams(State):
    """The event streams of all apps. What begins with an underscore runs in the server's loop."""

    redelivery: float = REDELIVERY
    _loop: asyncio.AbstractEventLoop = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.events: list[Event] = []
        """Every event until now, once for each app that asks for events."""
        self._sequence = count(1)
        self._connections: list[_Connection] = []
        self._waiting: dict[App, list[Event]] = {}  # of the apps that have asked for events

    def push_event(
        self,
        event_type: str,
        data: dict[str, Any] | None = None,
        *,
        event_id: str | None = None,
        corp_id: str = CORP_ID,
    ) -> str:
        """Push an event to the apps that ask for events, and return its id.

        Meetings that start and end, and people who join and leave, push their events by themselves.

        :param event_id: None for a new one; the id of an earlier event pushes that event again.
        :param corp_id: the organisation of the event.
        """
        if not event_type:
            raise ValueError("event_type: it is empty")
        event_id = event_id or uuid.uuid4().hex
        for app in self._waiting:
            if event_type != "suite_ticket" or app == THIRD_PARTY_APP:
                self.events.append(Event(event_type, data or {}, app, event_id, corp_id))
                self._soon(self._queue, self.events[-1])
        return event_id

    def renew_suite_ticket(self) -> str:
        """Make a new suite ticket, the only valid one from now on; push and return it."""
        self.valid_suite_ticket = f"sandbox-{uuid.uuid4().hex}"
        self.push_event("suite_ticket", {"suiteTicket": self.valid_suite_ticket})
        return self.valid_suite_ticket

    @property
    def streams(self) -> int:
        """How many connections to event streams there are."""
        return len([connection for connection in self._connections if not connection.closing])

    def disconnect_streams(self, *, politely: bool = True) -> None:
        """Close the connections to event streams: announced as by DingTalk, or as by a broken network."""
        self._soon(self._disconnect, politely)

    def _changed(self, scene: str, conference: Conference, user: str | None = None) -> None:
        if conference.conference_id not in self._reserved:
            kind = "meeting_status_change" if user is None else "meeting_member_status_change"
            self.push_event(kind, event_data(scene, conference, user, next(self._sequence)))

    def _soon(self, what: Callable[..., object], *args: Any) -> None:
        if self._waiting and not self._loop.is_closed():  # otherwise nobody has connected yet
            self._loop.call_soon_threadsafe(what, *args)

    async def _stream(self, app: App, request: web.Request) -> web.WebSocketResponse:
        """Serve one connection until it ends."""
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        connection = _Connection(app, socket, request.transport)
        with self.lock:
            self._waiting.setdefault(app, [])
        self._connections.append(connection)
        sender = asyncio.ensure_future(connection.send())
        connection.put("SYSTEM", {"opaque": uuid.uuid4().hex}, topic="ping")
        self._deliver(app)
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    self._read(connection, message.data)
        finally:
            sender.cancel()
            self._connections.remove(connection)
            for event, timer in connection.sent.values():
                timer.cancel()
                self._waiting[app].append(event)
            self._deliver(app)
        return socket

    def _queue(self, event: Event) -> None:
        self._waiting[event.app].append(event)
        self._deliver(event.app)

    def _deliver(self, app: App) -> None:
        """Send what waits, to the app's connections in turn."""
        connections = [one for one in self._connections if one.app == app and not one.closing]
        if not connections:
            return
        waiting, self._waiting[app] = self._waiting[app], []
        for number, event in enumerate(waiting):
            self._send_event(connections[number % len(connections)], event)
        # The next event goes to another one.
        self._connections.append(self._connections.pop(self._connections.index(connections[0])))

    def _send_event(self, connection: _Connection, event: Event) -> None:
        event.deliveries += 1
        message_id = connection.put(
            "EVENT",
            event.data,
            topic="*",
            eventType=event.event_type,
            eventId=event.event_id,
            eventCorpId=event.corp_id,
            eventBornTime=str(event.born_at),
            eventUnifiedAppId=f"app-{event.app.client_id}",
        )
        again = asyncio.get_running_loop().call_later(self.redelivery, self._again, connection, message_id)
        connection.sent[message_id] = event, again

    def _again(self, connection: _Connection, message_id: str) -> None:
        sent = connection.sent.pop(message_id, None)
        if sent is not None:
            self._queue(sent[0])

    def _read(self, connection: _Connection, text: str) -> None:
        """Read an acknowledgement; ignore what is none, such as the response to a ping."""
        try:
            received = from_json(text)
            message_id = received["headers"]["messageId"]
            data = from_json(received.get("data") or "{}")
            event, timer = connection.sent[message_id]
        except (ValueError, KeyError, TypeError):
            return
        status = data.get("status", "SUCCESS") if isinstance(data, dict) else "SUCCESS"
        status = status if received.get("code") == 200 else f"code {received.get('code')}"
        event.acknowledgements.append(status)
        if status != "LATER" and received.get("code") == 200:  # otherwise it is delivered again in time
            timer.cancel()
            del connection.sent[message_id]
            event.acknowledged = True

    def _disconnect(self, politely: bool) -> None:
        for connection in self._connections:
            connection.closing = True
            if politely:
                connection.put("SYSTEM", {"reason": "the sandbox closes the connection"}, topic="disconnect")
                asyncio.get_running_loop().call_later(_GOODBYE, connection.cut)
            else:
                connection.cut()
