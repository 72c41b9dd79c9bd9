"""The sandbox as a server on the loopback address, in a thread of this process."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import tempfile
import threading
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from airflow_provider_dingconf.sandbox import api, connections, control, stream
from airflow_provider_dingconf.sandbox.state import (
    APPS,
    CORP_ID,
    INTERNAL_APP,
    SUITE_TICKET,
    THIRD_PARTY_APP,
    TOKEN_LIFETIME,
    App,
    Call,
    Conference,
    State,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Mapping
    from types import TracebackType

    from airflow_provider_dingconf.sandbox.connections import Kind
    from airflow_provider_dingconf.sandbox.faults import Answer, Fault
    from airflow_provider_dingconf.sandbox.reserved import Status
    from airflow_provider_dingconf.sandbox.stream import Event

HOST: Final = "127.0.0.1"


class Sandbox:
    """A DingTalk on this machine, for the length of a ``with`` block.

    Its methods may be called from any thread.

    :param port: to listen on; 0: any free one.
    :param token_lifetime: of access tokens, in seconds.
    :param slow: seconds after which the reserved slow meeting answers.
    :param redelivery: seconds after which an event that was not acknowledged is delivered again.
    :param ssl_context: to serve https with.
    :param on_call: is told of every call when it has been answered, in the sandbox's thread.
    """

    client_id = INTERNAL_APP.client_id
    client_secret = INTERNAL_APP.client_secret
    suite_key = THIRD_PARTY_APP.client_id
    suite_secret = THIRD_PARTY_APP.client_secret
    suite_ticket = SUITE_TICKET
    corp_id = CORP_ID

    def __init__(
        self,
        port: int = 0,
        *,
        token_lifetime: float = TOKEN_LIFETIME,
        slow: float = 5.0,
        redelivery: float = stream.REDELIVERY,
        ssl_context: ssl.SSLContext | None = None,
        on_call: Callable[[Call], object] = lambda _call: None,
    ) -> None:
        self.port = port
        """0 until the sandbox is entered, when any free one will do."""
        self._state = State(token_lifetime, slow)
        self._streams = stream.Streams(redelivery)
        self._state.on_change = self._streams.tell
        # The server's thread and the callers' share the state.
        self._lock = threading.RLock()
        self._ssl_context = ssl_context
        self._on_call = on_call

    def __enter__(self) -> Sandbox:
        """Start to answer.

        :raises OSError: when the port is taken.
        """
        # Listening before the thread runs: no caller comes too early, and an error is raised here.
        self._socket = socket.create_server((HOST, self.port))
        self.port = self._socket.getsockname()[1]
        self._state.stream_endpoint = f"{self.url.replace('http', 'ws', 1)}{api.CONNECT_PATH}"
        self._loop = asyncio.new_event_loop()
        self._streams.begin(self._loop)
        self._stop = asyncio.Event()
        self._thread = threading.Thread(
            target=self._loop.run_until_complete, args=(self._serve(),), name="dingtalk-sandbox", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop, and cut off what is still being answered."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()
        self._socket.close()
        self._forget_ban()

    def _forget_ban(self) -> None:
        """Delete the file in which the hooks of this user remember a ban by this sandbox."""
        directory = Path(tempfile.gettempdir()) / f"airflow-provider-dingconf-{os.geteuid()}"
        name = sha256(self.url.encode()).hexdigest()
        with suppress(OSError):
            (directory / f"{name}.ban").unlink()

    # What a caller needs

    @property
    def url(self) -> str:
        """What goes into the host of a connection."""
        return f"{'https' if self._ssl_context else 'http'}://{HOST}:{self.port}"

    def connection(self, kind: Kind = "internal", **overrides: Any) -> dict[str, Any]:
        """Return the fields of an Airflow connection to the sandbox.

        :param kind: ``internal``, ``third_party``, ``unified``, ``static_token`` (an access token made for
            it), or ``unpermitted`` (an app without the permission points).
        :param overrides: other values for single fields; an ``extra`` is added to that of the kind.
        """
        app, names = connections.KINDS[kind]
        extra: dict[str, Any] = {"corp_id": CORP_ID, "suite_ticket": SUITE_TICKET}
        if "access_token" in names:
            extra["access_token"] = self.issue_token()
        fields = {
            "conn_type": "dingtalk",
            "host": self.url,
            "login": app.client_id if app else "",
            "password": app.client_secret if app else "",
        }
        kept = {name: extra[name] for name in names}
        return fields | overrides | {"extra": kept | overrides.get("extra", {})}

    def connection_json(self, kind: Kind = "internal", **overrides: Any) -> str:
        """Return :meth:`connection` as JSON, for an environment variable."""
        return connections.as_json(self.connection(kind, **overrides))

    def connection_uri(self, kind: Kind = "internal", **overrides: Any) -> str:
        """Return :meth:`connection` as a URI, for an environment variable."""
        return connections.as_uri(self.connection(kind, **overrides))

    # Meetings

    def create_conference(
        self,
        title: str = "Meeting",
        *,
        conference_id: str | None = None,
        status: Status = "started",
        **more: Any,
    ) -> str:
        """Create a meeting and return its id.

        :param conference_id: None for one as DingTalk makes them.
        :param status: ``not_started``, ``started`` or ``ended``.
        :param more: ``room_code``, which several meetings can have, ``creator_id``, or
            ``schedule_conference_id``.
        :raises ValueError: for an id that is taken, or a status that is none.
        """
        with self._lock:
            return self._state.create_conference(title, conference_id, status, **more).conference_id

    def conference(self, conference_id: str) -> Conference:
        """Return a meeting, which goes on changing with the calls.

        :raises KeyError: when there is none of this id; likewise in the methods below.
        """
        with self._lock:
            return self._state.conference(conference_id)

    def start(self, conference_id: str) -> None:
        """Start a meeting."""
        with self._lock:
            self._state.start(conference_id)

    def end(self, conference_id: str) -> None:
        """End a meeting."""
        with self._lock:
            self._state.end(conference_id)

    def join(self, conference_id: str, user: str) -> bool:
        """Let a user try to join a meeting, and return whether that worked."""
        with self._lock:
            return self._state.join(conference_id, user) is None

    # Events

    def push_event(
        self,
        event_type: str,
        data: Mapping[str, Any],
        *,
        event_id: str | None = None,
        corp_id: str = CORP_ID,
    ) -> str:
        """Push an event to the apps that ask for events, and return its id.

        Meetings that start and end, and people who join, push theirs by themselves.

        :param event_id: None for a new one; an event that was there before is pushed again with its id.
        :param corp_id: the organisation that the event is of.
        """
        with self._lock:
            return self._streams.push(event_type, dict(data), event_id, corp_id)

    def renew_suite_ticket(self) -> str:
        """Make a new suite ticket, the only one that is valid from now on; push and return it."""
        with self._lock:
            self._state.suite_ticket = f"sandbox-{secrets.token_hex(8)}"
            self._streams.push("suite_ticket", {"suiteTicket": self._state.suite_ticket})
            return self._state.suite_ticket

    @property
    def events(self) -> list[Event]:
        """Every event pushed so far, once for each app that asks for events, and what became of it."""
        with self._lock:
            return list(self._streams.events)

    @property
    def streams(self) -> int:
        """How many connections to event streams there are."""
        return self._streams.connected

    def disconnect_streams(self, *, politely: bool = True) -> None:
        """Close the connections to event streams.

        :param politely: whether they are told so first, as DingTalk does; a network that breaks does not.
        """
        self._streams.disconnect(politely=politely)

    # Access tokens

    def issue_token(self, app: App = INTERNAL_APP) -> str:
        """Return an access token, as if the app had asked for one."""
        with self._lock:
            return self._state.issue_token(app)

    def revoke_tokens(self) -> None:
        """Make every access token issued so far unknown."""
        with self._lock:
            self._state.revoke_tokens()

    def expire_tokens(self) -> None:
        """End the lifetime of every access token issued so far."""
        with self._lock:
            self._state.expire_tokens()

    # Faults

    def fail(self, fault: Fault) -> None:
        """Put a fault in force. The first one in force that hits a call applies to it."""
        with self._lock:
            self._state.fail(fault)

    def heal(self) -> None:
        """End all faults."""
        with self._lock:
            self._state.heal()

    # Records

    @property
    def calls(self) -> list[Call]:
        """Every call so far, in the order in which they came; not those of the control interface."""
        with self._lock:
            return list(self._state.calls)

    def calls_of(self, *names: str) -> list[Call]:
        """Return the calls of these names (see ``faults.CALLS``)."""
        return [call for call in self.calls if call.name in names]

    def clear(self) -> None:
        """Forget the calls so far."""
        with self._lock:
            self._state.calls.clear()

    # The server

    async def _serve(self) -> None:
        app = web.Application()
        for control_route in control.ROUTES:
            app.router.add_route(
                control_route.method, control_route.path, partial(self._control, control_route)
            )
        for route in api.ROUTES:
            app.router.add_route(route.method, route.path, partial(self._dingtalk, route))
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.SockSite(runner, self._socket, ssl_context=self._ssl_context).start()
        await self._stop.wait()
        await runner.cleanup()
        for answering in asyncio.all_tasks() - {asyncio.current_task()}:
            answering.cancel()
            await asyncio.wait([answering])

    async def _control(self, route: control.Route, request: web.Request) -> web.Response:
        names = [request.headers.get("Host", ""), request.headers.get("Origin", "http://localhost")]
        if not all(map(control.loopback, names)):
            return web.json_response({"error": "Only this machine may call the sandbox."}, status=403)
        try:
            body = control.payload(route, await request.read())
            asked = control.Asked(self._state, self._streams, request.match_info, body)
            with self._lock:
                return web.json_response(route.answer(asked))
        except control.MissingError as missing:
            return web.json_response({"error": str(missing)}, status=404)
        except ValueError as wrong:
            return web.json_response({"error": str(wrong)}, status=400)
        except web.HTTPRequestEntityTooLarge as large:
            return web.json_response({"error": large.text}, status=large.status)

    async def _dingtalk(self, route: api.Route, request: web.Request) -> web.StreamResponse:
        call = await _received(route, request)
        with self._lock:
            self._state.calls.append(call)
            fault = self._state.take_fault(call)
        answer = await _through(fault, partial(self._admitted, route, call))
        call.status, call.code = (answer.status, answer.code) if answer else (None, None)
        self._on_call(call)
        if answer and answer.status == api.SWITCHING:
            return await self._streams.serve(APPS[answer.body], request)
        return await _sent(answer, call, request)

    async def _admitted(self, route: api.Route, call: Call) -> Answer | None:
        try:
            with self._lock:
                api.admit(self._state, route, call)
                fault = self._state.reserved_fault(call.conference_id)
            return await _through(fault, partial(self._answer, route, call))
        except api.RefusalError as refusal:
            return refusal.answer

    async def _answer(self, route: api.Route, call: Call) -> Answer | None:
        with self._lock:
            return route.answer(self._state, call)


async def _received(route: api.Route, request: web.Request) -> Call:
    body = await request.read()
    return Call(
        name=api.call_name(route, body),
        method=request.method,
        path=request.raw_path,
        headers=[(_text(name), _text(value)) for name, value in request.raw_headers],
        body=body,
        conference_id=request.match_info.get("conferenceId"),
        parameters={**request.query, **request.match_info},
    )


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


async def _through(fault: Fault | None, proceed: Callable[[], Awaitable[Answer | None]]) -> Answer | None:
    """Return what a call is answered when it goes through a fault, if there is one."""
    if fault is None:
        return await proceed()
    if not fault.after:
        await asyncio.sleep(fault.delay)
    takes_effect = fault.after or not fault.answers
    answer = await proceed() if takes_effect else None
    if fault.after:
        await asyncio.sleep(fault.delay)
    return fault.answer if fault.answers else answer


async def _sent(answer: Answer | None, call: Call, request: web.Request) -> web.StreamResponse:
    """Put an answer on the wire, and hang up where that is part of it."""
    response: web.StreamResponse = web.Response()
    if answer is not None:
        body, headers = answer.payload(call.request_id)
        if answer.complete:
            return web.Response(status=answer.status, body=body, headers=headers)
        response = web.StreamResponse(status=answer.status, headers=headers)
        response.content_length = len(body)
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
    if request.transport is not None:
        request.transport.close()
    return response
