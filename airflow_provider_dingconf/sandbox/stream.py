"""DingTalk's event streams: WebSockets that push the events of an app until it has acknowledged them.

An event goes to one of the app's connections. If the app does not acknowledge it, or puts it off (``LATER``),
it is delivered again, over any of them. An app that has never connected gets no events. DingTalk's
documentation does not say how long DingTalk waits; its SDK for Node says 60 seconds.
"""

import asyncio
import json
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import WSMsgType, web
from pydantic_core import from_json

from airflow_provider_dingconf.dingtalk.events import SUITE_TICKET
from airflow_provider_dingconf.sandbox.state import CORP_ID, THIRD_PARTY_APP, App, State

_GOODBYE: Final = 0.2  # seconds between announcing that a connection closes, and closing it


def now() -> int:
    """Return the time as DingTalk gives it, in milliseconds since the epoch."""
    return int(time.time() * 1000)


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
    """One WebSocket of an app. Events without an acknowledgement go back to those that wait."""

    request: web.BaseRequest
    socket: web.WebSocketResponse
    waiting: asyncio.Queue[Event]  # the events that the connections of the app must push
    sent: dict[str, Event] = field(default_factory=dict)  # the unacknowledged events, by message id

    async def push(self, redelivery: float) -> None:
        """Push the waiting events; give each acknowledgement ``redelivery`` seconds."""
        await self.send("SYSTEM", "ping", {"opaque": uuid.uuid4().hex})
        while True:
            event = await self.waiting.get()
            message_id = uuid.uuid4().hex
            self.sent[message_id] = event
            event.deliveries += 1
            headers = {
                "messageId": message_id,
                "eventType": event.event_type,
                "eventId": event.event_id,
                "eventCorpId": event.corp_id,
                "eventBornTime": str(event.born_at),
                "eventUnifiedAppId": f"app-{event.app.client_id}",
            }
            await self.send("EVENT", "*", event.data, **headers)
            asyncio.get_running_loop().call_later(redelivery, self.put_back, message_id)
            await asyncio.sleep(0)  # another connection of the app pushes the next event

    async def send(self, kind: str, topic: str, data: Any, **headers: str) -> None:
        always = {"messageId": uuid.uuid4().hex, "topic": topic, "contentType": "application/json"}
        headers = {**always, "time": str(now()), **headers}
        frame = {"specVersion": "1.0", "type": kind, "headers": headers, "data": json.dumps(data)}
        with suppress(ConnectionError):  # it broke a moment ago
            await self.socket.send_str(json.dumps(frame))

    def put_back(self, message_id: str) -> None:
        if message_id in self.sent:
            self.waiting.put_nowait(self.sent.pop(message_id))

    def read(self, text: str) -> None:
        """Read an acknowledgement; ignore anything else, such as the response to a ping."""
        try:
            received = from_json(text)
            message_id = received["headers"]["messageId"]
            data = from_json(received.get("data") or "{}")
            event = self.sent[message_id]
        except (ValueError, KeyError, TypeError):
            return
        status = data.get("status", "SUCCESS") if isinstance(data, dict) else "SUCCESS"
        status = status if received.get("code") == 200 else f"code {received.get('code')}"
        event.acknowledgements.append(status)
        if status != "LATER" and received.get("code") == 200:  # otherwise it is delivered again in time
            event.acknowledged = True
            del self.sent[message_id]


class Streams(State):
    """The event streams of all apps. Private methods run in the server's loop."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.events: list[Event] = []  # each once for each app that asks for events
        self._loop: asyncio.AbstractEventLoop | None = None  # None while the server does not run
        self._connections: dict[_Connection, asyncio.Task[None]] = {}  # and what pushes events over them
        self._waiting: dict[App, asyncio.Queue[Event]] = {}  # by app that has asked for events

    def push_event(
        self,
        event_type: str,
        data: dict[str, Any] | None = None,
        *,
        event_id: str | None = None,
        corp_id: str = CORP_ID,
    ) -> str:
        """Push an event to the apps that ask for events, and return its id.

        The sandbox itself pushes events when meetings start or end, and when people join or leave.

        :param event_type: such as ``meeting_status_change``; a ``suite_ticket`` is for third-party apps.
        :param data: the JSON document of the event.
        :param event_id: None for a new one; that of an earlier event pushes the event again.
        :param corp_id: the organisation of the event.
        :raises ValueError: the type is empty.
        """
        if not event_type:
            raise ValueError("event_type: it is empty")
        event_id = event_id or uuid.uuid4().hex
        for app, waiting in self._waiting.items():
            if event_type != SUITE_TICKET or app == THIRD_PARTY_APP:
                self.events.append(Event(event_type, data or {}, app, event_id, corp_id))
                self._soon(waiting.put_nowait, self.events[-1])
        return event_id

    def renew_suite_ticket(self) -> str:
        """Make a new suite ticket, the only valid one from now on; push and return it."""
        self.suite_ticket = f"sandbox-{uuid.uuid4().hex}"
        self.push_event(SUITE_TICKET, {"suiteTicket": self.suite_ticket})
        return self.suite_ticket

    @property
    def streams(self) -> int:
        """How many connections to event streams there are."""
        return len(self._connections)

    def disconnect_streams(self, *, politely: bool = True) -> None:
        """Close the connections to event streams.

        :param politely: whether to announce it, as DingTalk does; otherwise as if the network broke.
        """
        self._soon(lambda: asyncio.ensure_future(self._disconnect(politely)))

    def _soon(self, work: Callable[..., object], *args: Any) -> None:
        """Do something in the server's loop, if it runs."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(work, *args)

    def _resume(self) -> None:
        """Continue to push the events that an earlier run of the server left."""
        self._waiting = {app: asyncio.Queue() for app in self._waiting}
        for event in self.events:
            if not event.acknowledged:
                self._waiting[event.app].put_nowait(event)

    async def _stream(self, app: App, request: web.BaseRequest) -> web.WebSocketResponse:
        """Serve one connection until it ends."""
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        with self.lock:
            waiting = self._waiting.setdefault(app, asyncio.Queue())
        connection = _Connection(request, socket, waiting)
        self._connections[connection] = pushing = asyncio.ensure_future(connection.push(self.redelivery))
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    connection.read(message.data)
        finally:
            pushing.cancel()
            self._connections.pop(connection, None)
            for message_id in list(connection.sent):
                connection.put_back(message_id)
        return socket

    async def _disconnect(self, politely: bool) -> None:
        closing, self._connections = self._connections, {}
        for connection, pushing in closing.items():
            pushing.cancel()
            if politely:
                await connection.send("SYSTEM", "disconnect", {"reason": "the sandbox closes it"})
        await asyncio.sleep(_GOODBYE if politely else 0)
        for connection in closing:
            if connection.request.transport is not None:
                connection.request.transport.close()
