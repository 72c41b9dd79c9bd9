"""The sandbox as a server on the loopback address, in a thread of this process."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from airflow_provider_dingconf.sandbox import api, connections, control
from airflow_provider_dingconf.sandbox.faults import Response
from airflow_provider_dingconf.sandbox.state import (
    APPS,
    CORP_ID,
    INTERNAL_APP,
    SUITE_TICKET,
    THIRD_PARTY_APP,
    Call,
    locked,
)
from airflow_provider_dingconf.sandbox.stream import Streams

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    from airflow_provider_dingconf.sandbox.connections import Kind
    from airflow_provider_dingconf.sandbox.faults import Fault

HOST: Final = "127.0.0.1"


@locked
@dataclass(eq=False, repr=False)
class Sandbox(Streams):
    """A DingTalk on this machine, for the length of a ``with`` block.

    Any thread may call its methods.

    :param port: to listen on; 0 for any free one, whose number it then becomes.
    :param token_lifetime: of access tokens, in seconds.
    :param stream_ticket_lifetime: of a ticket for a connection to an event stream, in seconds.
    :param slow: seconds after which the reserved slow meeting gets its response.
    :param redelivery: seconds after which an event that was not acknowledged is delivered again.
    :param quota: calls until the organisation's quota is used up; None: no limit.
    :param calls_per_second: of one app to one API; None: no limit.
    :param clock: monotonic seconds, by which access tokens, tickets, faults and the rate limit expire.
    :param ssl_context: to serve https with.
    :param on_call: receives every call that has its response, in the sandbox's thread.
    """

    port: int = 0
    ssl_context: ssl.SSLContext | None = field(default=None, kw_only=True)
    on_call: Callable[[Call], object] | None = field(default=None, kw_only=True)

    client_id = INTERNAL_APP.client_id
    client_secret = INTERNAL_APP.client_secret
    suite_key = THIRD_PARTY_APP.client_id
    suite_secret = THIRD_PARTY_APP.client_secret
    suite_ticket = SUITE_TICKET
    corp_id = CORP_ID

    def __enter__(self) -> Sandbox:
        """Start to serve.

        :raises OSError: the port is in use.
        """
        # Listening before the thread runs: no caller comes too early, and an error is raised here.
        self._socket = socket.create_server((HOST, self.port))
        self.port = self._socket.getsockname()[1]
        self.stream_endpoint = f"{self.url.replace('http', 'ws', 1)}{api.CONNECT_PATH}"
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(
            target=self._loop.run_until_complete, args=(self._serve(),), name="dingtalk-sandbox", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop, break off the responses under way, and end all faults, bans included."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()
        self._socket.close()
        self.heal()
        self._forget_ban()

    def _forget_ban(self) -> None:
        """Delete the file in which the hooks of this user remember a ban by this sandbox."""
        directory = Path(tempfile.gettempdir()) / f"airflow-provider-dingconf-{os.geteuid()}"
        name = sha256(self.url.encode()).hexdigest()
        with suppress(OSError):
            (directory / f"{name}.ban").unlink()

    @property
    def url(self) -> str:
        """The host of a connection to the sandbox."""
        return f"{'https' if self.ssl_context else 'http'}://{HOST}:{self.port}"

    def connection(self, kind: Kind = "internal", **overrides: Any) -> dict[str, Any]:
        """Return the fields of an Airflow connection to the sandbox.

        :param kind: ``internal``, ``third_party``, ``unified``, ``static_token`` (with a new access token),
            or ``unpermitted`` (an app without the permission points).
        :param overrides: other values for single fields; an ``extra`` is added to that of the kind.
        """
        app, names = connections.KINDS[kind]
        extra: dict[str, Any] = {"corp_id": CORP_ID, "suite_ticket": SUITE_TICKET}
        if "access_token" in names:
            extra["access_token"] = self.issue_token()
        fields = {
            "conn_type": "dingtalk",
            "host": self.url,
            "login": app.client_id,
            "password": app.client_secret,
        }
        return fields | overrides | {"extra": {n: extra[n] for n in names} | overrides.get("extra", {})}

    def connection_json(self, kind: Kind = "internal", **overrides: Any) -> str:
        """Return :meth:`connection` as JSON, for an environment variable."""
        fields = self.connection(kind, **overrides)
        return json.dumps({name: value for name, value in fields.items() if value})

    def connection_uri(self, kind: Kind = "internal", **overrides: Any) -> str:
        """Return :meth:`connection` as a URI, for an environment variable."""
        return connections.as_uri(self.connection(kind, **overrides))

    # The server

    async def _serve(self) -> None:
        app = web.Application()
        for row in control.ROUTES:
            method, path = row.split()
            app.router.add_route(method, path, partial(self._control, row))
        app.router.add_route("*", "/sandbox{rest:.*}", partial(self._control, None))
        for route in api.ROUTES:
            app.router.add_route(route.method, route.path, partial(self._dingtalk, route))
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.SockSite(runner, self._socket, ssl_context=self.ssl_context).start()
        await self._stop.wait()
        await runner.cleanup()
        for responding in asyncio.all_tasks() - {asyncio.current_task()}:
            responding.cancel()
            await asyncio.wait([responding])

    async def _control(self, row: str | None, request: web.Request) -> web.Response:
        names = [request.headers.get("Host", ""), request.headers.get("Origin", "http://localhost")]
        if not all(map(control.loopback, names)):
            return web.json_response({"error": "Only this machine may call the sandbox."}, status=403)
        if row is None:
            error = f"The sandbox has no such call. It has {', '.join(control.ROUTES)}."
            return web.json_response({"error": error}, status=404)
        try:
            status, body = control.respond(self, row, request.match_info, await request.read())
        except web.HTTPRequestEntityTooLarge as large:
            status, body = large.status, {"error": large.text}
        return web.json_response(body, status=status)

    async def _dingtalk(self, route: api.Route, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        call = Call(
            name=api.call_name(route, body),
            method=request.method,
            path=request.raw_path,
            headers=[(_text(name), _text(value)) for name, value in request.raw_headers],
            body=body,
            conference_id=request.match_info.get("conferenceId"),
            parameters={**request.query, **request.match_info},
        )
        self.record(call)
        response = await _through(self.take_fault(call), partial(self._admitted, route, call))
        call.status, call.code = (response.status, response.code) if response else (None, None)
        if self.on_call is not None:
            self.on_call(call)
        if response and response.status == api.SWITCHING:
            return await self._stream(APPS[response.body], request)
        return await _sent(response, call, request)

    async def _admitted(self, route: api.Route, call: Call) -> Response | None:
        try:
            with self.lock:
                api.admit(self, route, call)
                fault = self.reserved_fault(api.rehearsed_id(call))
            return await _through(fault, partial(self._response, route, call))
        except api.RefusalError as refusal:
            return refusal.response

    async def _response(self, route: api.Route, call: Call) -> Response | None:
        with self.lock:
            result = route.respond(self, call)
        return result if isinstance(result, Response) else Response(200, result)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


async def _through(fault: Fault | None, proceed: Callable[[], Awaitable[Response | None]]) -> Response | None:
    """Return the response to a call that a fault may hit."""
    if fault is None:
        return await proceed()
    if not fault.after:
        await asyncio.sleep(fault.delay)
    response = await proceed() if fault.after or not fault.replaces else None
    if fault.after:
        await asyncio.sleep(fault.delay)
    return fault.response if fault.replaces else response


async def _sent(response: Response | None, call: Call, request: web.Request) -> web.StreamResponse:
    """Send a response, and hang up if that is part of it."""
    sent: web.StreamResponse = web.Response()
    if response is not None:
        body, headers = response.payload(call.request_id)
        if response.complete:
            return web.Response(status=response.status, body=body, headers=headers)
        sent = web.StreamResponse(status=response.status, headers=headers)
        sent.content_length = len(body)
        await sent.prepare(request)
        await sent.write(body[: len(body) // 2])
    if request.transport is not None:
        request.transport.close()
    return sent
