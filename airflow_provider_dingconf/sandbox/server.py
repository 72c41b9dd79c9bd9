"""The sandbox as a server on the loopback address, in a thread of this process."""

import asyncio
import json
import os
import re
import socket
import tempfile
import threading
from collections.abc import Awaitable, Callable, Mapping
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlencode

from aiohttp import web

from airflow_provider_dingconf.sandbox import calls, control
from airflow_provider_dingconf.sandbox.faults import REQUEST_ID, Call, Fault, Response
from airflow_provider_dingconf.sandbox.state import CORP_ID, HOST, INTERNAL_APP, KINDS, THIRD_PARTY_APP, Kind


class Sandbox(calls.Calls):
    """A simulated DingTalk, which runs during a ``with`` block. Any thread may call its methods.

    :param port: the port to listen on; 0 for any free one. It is then the number of that port.
    :param token_lifetime: the lifetime of access tokens, in seconds.
    :param stream_ticket_lifetime: the lifetime of a ticket for an event stream, in seconds.
    :param slow: seconds after which the reserved slow meeting gets its response.
    :param redelivery: seconds after which an event that was not acknowledged is delivered again.
    :param quota: the number of calls until the organisation's quota is used up; None for no limit.
    :param calls_per_second: the rate limit of one app and API; None for no limit.
    :param clock: returns monotonic seconds; access tokens, tickets, faults and the rate limit expire by it.
    :param ssl_context: makes the sandbox serve https.
    :param on_call: receives every call that has its response, in the sandbox's thread.
    """

    client_id, client_secret, corp_id = INTERNAL_APP.client_id, INTERNAL_APP.client_secret, CORP_ID
    suite_key, suite_secret = THIRD_PARTY_APP.client_id, THIRD_PARTY_APP.client_secret

    def __enter__(self) -> "Sandbox":
        """Start the server; raise OSError if the port is in use."""
        # Listen before the thread runs: no caller comes too early, and an error is raised here.
        self._socket = socket.create_server((HOST, self.port))
        self.port = self._socket.getsockname()[1]
        started = threading.Event()
        run = partial(asyncio.run, self._serve(started))
        self._thread = threading.Thread(target=run, name="dingtalk-sandbox", daemon=True)
        self._thread.start()
        started.wait()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop the server, break off current responses, and end all faults, including bans."""
        with self.lock:
            self._soon(self._stopped.set)
            self._loop = None
        self._thread.join()
        self.heal()
        # The file in which the hooks of this user remember a ban.
        directory = Path(tempfile.gettempdir()) / f"airflow-provider-dingconf-{os.geteuid()}"
        (directory / f"{sha256(self.url.encode()).hexdigest()}.ban").unlink(missing_ok=True)

    def connection(self, kind: Kind = "internal", **overrides: Any) -> dict[str, Any]:
        """Return the fields of an Airflow connection to the sandbox.

        :param kind: ``internal``, ``third_party``, ``unified``, ``static_token`` (with a new access token),
            or ``unpermitted`` (an app without the permissions).
        :param overrides: other values for single fields; an ``extra`` is added to that of the kind.
        """
        app, extra_of = KINDS[kind]
        fields = {"conn_type": "dingtalk", "host": self.url}
        fields |= {"login": app.client_id, "password": app.client_secret}
        return fields | overrides | {"extra": extra_of(self) | overrides.get("extra", {})}

    def connection_json(self, kind: Kind = "internal", **overrides: Any) -> str:
        """Return :meth:`connection` as JSON, for an environment variable."""
        fields = self.connection(kind, **overrides)
        return json.dumps({name: value for name, value in fields.items() if value})

    def connection_uri(self, kind: Kind = "internal", **overrides: Any) -> str:
        """Return :meth:`connection` as a URI, written as Airflow's ``Connection.get_uri`` writes it."""
        fields = self.connection(kind, **overrides)
        scheme, separator, address = fields["host"].rpartition("://")
        login, password = (quote(fields[name] or "", safe="") for name in ("login", "password"))
        user = f"{login}:{password}@" if login or password else ""
        port = f":{fields['port']}" if fields.get("port") else ""
        path = f"/{quote(fields.get('schema') or '', safe='')}"
        extra = fields["extra"]
        flat = all(isinstance(value, str) for value in extra.values())
        query = f"?{urlencode(extra if flat else {'__extra__': json.dumps(extra)})}"
        uri = f"{fields['conn_type']}://{scheme}{separator}{user}{quote(address, safe='')}{port}{path}{query}"
        return uri.removesuffix("?").removesuffix("/")

    async def _serve(self, started: threading.Event) -> None:
        """Serve until stopped; responses under way are then cancelled."""
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        server = web.Server(self._handle, access_log=None)
        listening = await self._loop.create_server(server, sock=self._socket, ssl=self.ssl_context)
        self._resume()
        started.set()
        await self._stopped.wait()
        listening.close()
        await server.shutdown(0.01)  # 0 would wait for the responses

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge as large:
            return web.json_response({"error": large.text}, status=large.status)
        headers = [(k.decode(), v.decode(errors="surrogateescape")) for k, v in request.raw_headers]
        call = Call("unknown", request.method, request.raw_path, headers, body)
        path = request.rel_url.raw_path
        if path.startswith("/sandbox"):
            row, parameters = _match(control.ROUTES, call.method, path)
            return control.respond(self, call, row, parameters).sent(REQUEST_ID)
        route, parameters = _match(calls.ROUTES, call.method, path)
        route = route or calls.UNKNOWN
        # DingTalk has one call to lock and to unlock.
        unlocks = route.name == "lock" and re.search(rb'"action"\s*:\s*"unlock"', body)
        call.name = "unlock" if unlocks else route.name
        call.parameters = {**request.query, **parameters}
        call.conference_id = parameters.get("conferenceId")
        self._calls.append(call)
        response = await _through(self.take_fault(call), partial(self._respond, route, call))
        call.status, call.code = response.status or None, response.code
        if self.on_call is not None:
            self.on_call(call)
        if response.status == calls.SWITCHING:
            return await self._stream(response.body, request)
        if not response.status and request.transport is not None:
            request.transport.close()
        return response.sent(call.request_id)

    async def _respond(self, route: calls.Route, call: Call) -> Response:
        async def respond() -> Response:
            with self.lock:
                result = route.respond(self, call)
            return result if isinstance(result, Response) else Response(200, result)

        try:
            return await _through(self.admit(route, call), respond)
        except calls.RefusalError as refusal:
            return refusal.response


async def _through(fault: Fault | None, proceed: Callable[[], Awaitable[Response]]) -> Response:
    """Return the response to a call that a fault may hit."""
    if fault is None:
        return await proceed()
    response = await proceed() if fault.after else None
    await asyncio.sleep(fault.delay)
    return fault.response or response or await proceed()


def _match(rows: Mapping[str, Any], method: str, path: str) -> tuple[Any, dict[str, str]]:
    """Return the first row for a method and a path, and the parameters in the path."""
    for row, value in rows.items():
        if found := _pattern(row).fullmatch(f"{method} {path}"):
            return value, {name: unquote(part) for name, part in found.groupdict().items()}
    return None, {}


@cache
def _pattern(row: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(row)))
