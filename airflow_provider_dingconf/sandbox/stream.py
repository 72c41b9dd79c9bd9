"""DingTalk's event streams: WebSockets over which the events of an app are pushed, until it has taken them.

An event goes to one of the app's connections. Where it is not acknowledged, or put off (``LATER``), it is
delivered again, to any of them; an app that has never asked for its events gets none. DingTalk's documents do
not say how long it waits; its SDK for Node says 60 seconds.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from aiohttp import WSMsgType, web

from airflow_provider_dingconf.sandbox.api import details
from airflow_provider_dingconf.sandbox.state import APPS, CORP_ID, THIRD_PARTY_APP, App, from_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_dingconf.sandbox.state import Conference

REDELIVERY: Final = 60.0
"""Seconds after which an event that nobody acknowledged is delivered again."""

_GOODBYE: Final = 0.2
"""Seconds between saying that a connection will be closed, and closing it."""

_MEMBER_JOINED: Final = 1


@dataclass
class Event:
    """One event for one app, and what became of it."""

    event_type: str
    data: dict[str, Any]
    app: App
    event_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    corp_id: str = CORP_ID
    born_at: int = field(default_factory=lambda: int(time.time() * 1000))
    """Milliseconds since the epoch."""
    deliveries: int = 0
    """How often it was sent."""
    acknowledged: bool = False
    acknowledgements: list[str] = field(default_factory=list)
    """What each of them said, such as ``SUCCESS`` or ``LATER``."""


@dataclass(eq=False)
class _Connection:
    """One WebSocket of an app's."""

    app: App
    socket: web.WebSocketResponse
    transport: asyncio.BaseTransport | None
    sent: dict[str, tuple[Event, asyncio.TimerHandle]] = field(default_factory=dict)
    """What is not acknowledged yet, by message id."""
    outbox: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    closing: bool = False


def conference_event(scene: str, conference: Conference, user: str | None, sequence: int) -> dict[str, Any]:
    """Return the data of the event of something that happened in a meeting."""
    about = {"statusSeqNum": sequence, "changeScene": scene}
    if user is not None:
        member = {
            "conferenceId": conference.conference_id,
            "userId": user,
            "userNick": user,
            "attendStatus": _MEMBER_JOINED,
            "host": False,
            "coHost": False,
            "joinTime": int(time.time() * 1000),
        }
        return {"openMemberModels": [member], **about}
    attended = len(conference.participants)
    numbers = {"activeNum": attended, "attendNum": attended, "invitedNum": 0}
    return {"openConfModel": {**details(conference), **numbers}, **about}


class Streams:
    """The event streams of all apps. All of it runs in the server's loop but what says otherwise.

    :param redelivery: seconds after which an event that nobody acknowledged is delivered again.
    """

    def __init__(self, redelivery: float = REDELIVERY) -> None:
        self.events: list[Event] = []
        """Every event pushed so far, once for each app that asks for events."""
        self._redelivery = redelivery
        self._apps: set[App] = set()
        self._connections: list[_Connection] = []
        self._waiting: dict[App, list[Event]] = {app: [] for app in APPS.values()}
        self._sequence = count(1)
        self._loop: asyncio.AbstractEventLoop | None = None

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serve in this loop."""
        self._loop = loop

    # From any thread, with the sandbox's lock held

    def tell(self, scene: str, conference: Conference, user: str | None) -> None:
        """Push the event of something that happened in a meeting."""
        kind = "meeting_status_change" if user is None else "meeting_member_status_change"
        self.push(kind, conference_event(scene, conference, user, next(self._sequence)))

    def push(
        self, event_type: str, data: dict[str, Any], event_id: str | None = None, corp_id: str | None = None
    ) -> str:
        """Push an event to every app that asks for events, and return its id.

        :param event_id: None for a new one; one that was there before stands for the same event.
        """
        event_id = event_id or uuid.uuid4().hex
        for app in self._receivers(event_type):
            event = Event(event_type, data, app, event_id, corp_id or CORP_ID)
            self.events.append(event)
            self._soon(self._queue, event)
        return event_id

    def disconnect(self, *, politely: bool = True) -> None:
        """Close every connection: after saying so, or as a network does that breaks."""
        self._soon(self._disconnect, politely)

    @property
    def connected(self) -> int:
        """How many connections there are."""
        return len([connection for connection in self._connections if not connection.closing])

    def _receivers(self, event_type: str) -> Iterator[App]:
        for app in APPS.values():
            if app in self._apps and (event_type != "suite_ticket" or app == THIRD_PARTY_APP):
                yield app

    def _soon(self, what: Any, *args: Any) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(what, *args)

    # In the loop

    async def serve(self, app: App, request: web.Request) -> web.WebSocketResponse:
        """Serve one connection until it ends."""
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        connection = _Connection(app, socket, request.transport)
        self._apps.add(app)
        self._connections.append(connection)
        sender = asyncio.ensure_future(self._send(connection))
        self._system(connection, "ping", json.dumps({"opaque": uuid.uuid4().hex}))
        self._deliver(app)
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    self._answered(connection, message.data)
        finally:
            sender.cancel()
            self._connections.remove(connection)
            for event, timer in connection.sent.values():
                timer.cancel()
                self._waiting[app].append(event)
            self._deliver(app)
        return socket

    async def _send(self, connection: _Connection) -> None:
        while True:
            await connection.socket.send_str(await connection.outbox.get())

    def _queue(self, event: Event) -> None:
        self._waiting[event.app].append(event)
        self._deliver(event.app)

    def _deliver(self, app: App) -> None:
        """Send what waits, to the app's connections in turn."""
        open_ones = [one for one in self._connections if one.app == app and not one.closing]
        if not open_ones:
            return
        waiting, self._waiting[app] = self._waiting[app], []
        for number, event in enumerate(waiting):
            self._send_event(open_ones[number % len(open_ones)], event)
        # Whom the next one goes to: not always the same.
        self._connections.append(self._connections.pop(self._connections.index(open_ones[0])))

    def _send_event(self, connection: _Connection, event: Event) -> None:
        event.deliveries += 1
        message_id = uuid.uuid4().hex
        headers = {
            "topic": "*",
            "messageId": message_id,
            "eventType": event.event_type,
            "eventId": event.event_id,
            "eventCorpId": event.corp_id,
            "eventBornTime": str(event.born_at),
            "eventUnifiedAppId": f"app-{event.app.client_id}",
        }
        timer = self._later(self._redelivery, self._again, connection, message_id)
        connection.sent[message_id] = event, timer
        self._put(connection, "EVENT", headers, json.dumps(event.data))

    def _system(self, connection: _Connection, topic: str, data: str) -> None:
        self._put(connection, "SYSTEM", {"topic": topic, "messageId": uuid.uuid4().hex}, data)

    def _put(self, connection: _Connection, kind: str, headers: dict[str, str], data: str) -> None:
        always = {"contentType": "application/json", "time": str(int(time.time() * 1000))}
        frame = {"specVersion": "1.0", "type": kind, "headers": {**always, **headers}, "data": data}
        connection.outbox.put_nowait(json.dumps(frame))

    def _answered(self, connection: _Connection, text: str) -> None:
        """Read an answer: what is none that an event waits for is left alone, as an answer to a ping."""
        try:
            answer = from_json(text)
            message_id = answer["headers"]["messageId"]
            data = from_json(answer.get("data") or "{}")
            event, timer = connection.sent[message_id]
        except (ValueError, KeyError, TypeError):
            return
        said = data.get("status", "SUCCESS") if isinstance(data, dict) else "SUCCESS"
        said = said if answer.get("code") == 200 else f"code {answer.get('code')}"
        event.acknowledgements.append(said)
        if said == "LATER" or answer.get("code") != 200:
            return  # it is delivered again when its time is up
        timer.cancel()
        del connection.sent[message_id]
        event.acknowledged = True

    def _again(self, connection: _Connection, message_id: str) -> None:
        sent = connection.sent.pop(message_id, None)
        if sent is not None:
            self._waiting[connection.app].append(sent[0])
            self._deliver(connection.app)

    def _disconnect(self, politely: bool) -> None:
        for connection in self._connections:
            connection.closing = True
            if politely:
                self._system(connection, "disconnect", json.dumps({"reason": "the sandbox was asked to"}))
                self._later(_GOODBYE, _cut, connection)
            else:
                _cut(connection)

    def _later(self, seconds: float, what: Any, *args: Any) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, what, *args)


def _cut(connection: _Connection) -> None:
    if connection.transport is not None:
        connection.transport.close()
