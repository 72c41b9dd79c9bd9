"""DingTalk's event streams: WebSockets that push the events of an app until it has acknowledged them.

An event goes to one of the app's connections. If it is not acknowledged, or put off (``LATER``), it is
delivered again, to any of them; an app that has never asked for its events gets none. DingTalk's documents do
not say how long DingTalk waits; its SDK for Node says 60 seconds.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from aiohttp import WSMsgType, web
from pydantic_core import from_json

from airflow_provider_dingconf.dingtalk.events import SUITE_TICKET
from airflow_provider_dingconf.sandbox.state import CORP_ID, THIRD_PARTY_APP, App, State, now

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

_GOODBYE: Final = 0.2  # seconds between announcing that a connection closes, and closing it


def hang_up(request: web.BaseRequest) -> None:
    """Close the connection over which a request came."""
    if request.transport is not None:
        request.transport.close()


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
    """One WebSocket; ``sent`` has, by message id, what is not acknowledged, and what ends the wait for it."""

    request: web.BaseRequest
    socket: web.WebSocketResponse
    sent: dict[str, tuple[Event, asyncio.Future[None]]] = field(default_factory=dict)
    closing: bool = False

    async def send(self, kind: str, topic: str, data: Any, **headers: str) -> None:
        always = {"messageId": uuid.uuid4().hex, "topic": topic, "contentType": "application/json"}
        headers = {**always, "time": str(now()), **headers}
        frame = {"specVersion": "1.0", "type": kind, "headers": headers, "data": json.dumps(data)}
        with suppress(ConnectionError):  # it broke a moment ago
            await self.socket.send_str(json.dumps(frame))

    def read(self, text: str) -> None:
        """Read an acknowledgement; ignore what is none, such as the response to a ping."""
        try:
            received = from_json(text)
            message_id = received["headers"]["messageId"]
            data = from_json(received.get("data") or "{}")
            event, settled = self.sent[message_id]
        except (ValueError, KeyError, TypeError):
            return
        status = data.get("status", "SUCCESS") if isinstance(data, dict) else "SUCCESS"
        status = status if received.get("code") == 200 else f"code {received.get('code')}"
        event.acknowledgements.append(status)
        if status != "LATER" and received.get("code") == 200:  # otherwise it is delivered again in time
            event.acknowledged = True
            del self.sent[message_id]
            settled.set_result(None)


class Streams(State):
    """The event streams of all apps. What begins with an underscore runs in the server's loop."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.events: list[Event] = []
        """Every event until now, once for each app that asks for events."""
        self._loop: asyncio.AbstractEventLoop | None = None  # None while the server does not run
        self._connections: list[_Connection] = []
        self._ready: dict[App, tuple[asyncio.Lock, asyncio.Queue[_Connection]]] = {}
        """By app that has asked for events: whose turn it is to wait, and the next connections to use."""

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

        :param event_type: such as ``meeting_status_change``; a ``suite_ticket`` is for third-party apps.
        :param data: the JSON document of the event.
        :param event_id: None for a new one; that of an earlier event pushes the event again.
        :param corp_id: the organisation of the event.
        """
        if not event_type:
            raise ValueError("event_type: it is empty")
        event_id = event_id or uuid.uuid4().hex
        for app in self._ready:
            if event_type != SUITE_TICKET or app == THIRD_PARTY_APP:
                self.events.append(Event(event_type, data or {}, app, event_id, corp_id))
                self._soon(self._deliver, self.events[-1])
        return event_id

    def renew_suite_ticket(self) -> str:
        """Make a new suite ticket, the only valid one from now on; push and return it."""
        self.suite_ticket = f"sandbox-{uuid.uuid4().hex}"
        self.push_event(SUITE_TICKET, {"suiteTicket": self.suite_ticket})
        return self.suite_ticket

    @property
    def streams(self) -> int:
        """How many connections to event streams there are."""
        return len([connection for connection in self._connections if not connection.closing])

    def disconnect_streams(self, *, politely: bool = True) -> None:
        """Close the connections to event streams: announced as by DingTalk, or as by a broken network."""
        self._soon(self._disconnect, politely)

    def _soon(self, work: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Do something in the server's loop, if it runs."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(lambda: asyncio.ensure_future(work(*args)))

    def _resume(self) -> None:
        """Go on to deliver what an earlier run of the server left."""
        self._ready = {app: (asyncio.Lock(), asyncio.Queue()) for app in self._ready}
        for event in self.events:
            if not event.acknowledged:
                self._soon(self._deliver, event)

    async def _stream(self, app: App, request: web.BaseRequest) -> web.WebSocketResponse:
        """Serve one connection until it ends."""
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        connection = _Connection(request, socket)
        with self.lock:
            _, ready = self._ready.setdefault(app, (asyncio.Lock(), asyncio.Queue()))
        self._connections.append(connection)
        await connection.send("SYSTEM", "ping", {"opaque": uuid.uuid4().hex})
        ready.put_nowait(connection)
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT:
                    connection.read(message.data)
        finally:
            connection.closing = True
            self._connections.remove(connection)
            for _, settled in connection.sent.values():
                settled.cancel()
        return socket

    async def _deliver(self, event: Event) -> None:
        """Send an event over one connection of its app after the other, until it is acknowledged."""
        while not event.acknowledged:
            connection = await self._next(event.app)
            message_id, settled = uuid.uuid4().hex, asyncio.get_running_loop().create_future()
            connection.sent[message_id] = event, settled
            event.deliveries += 1
            headers = {
                "messageId": message_id,
                "eventType": event.event_type,
                "eventId": event.event_id,
                "eventCorpId": event.corp_id,
                "eventBornTime": str(event.born_at),
                "eventUnifiedAppId": f"app-{event.app.client_id}",
            }
            await connection.send("EVENT", "*", event.data, **headers)
            await asyncio.wait([settled], timeout=self.redelivery)
            connection.sent.pop(message_id, None)

    async def _next(self, app: App) -> _Connection:
        """Return the connection whose turn it is; wait for one in the order of the events."""
        turn, ready = self._ready[app]
        async with turn:
            while (connection := await ready.get()).closing:
                pass
            ready.put_nowait(connection)
        return connection

    async def _disconnect(self, politely: bool) -> None:
        connections = list(self._connections)
        for connection in connections:
            connection.closing = True
            if politely:
                reason = {"reason": "the sandbox closes the connection"}
                await connection.send("SYSTEM", "disconnect", reason)
        await asyncio.sleep(_GOODBYE if politely else 0)
        for connection in connections:
            hang_up(connection.request)
