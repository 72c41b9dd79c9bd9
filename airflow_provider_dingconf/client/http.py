"""Requests and responses over the HTTP provider's ``AsyncHttpSession``, and the WebSocket of events.

What the HTTP provider would add is switched off: the connection's login as an ``Authorization`` header,
unknown extras as headers, plain http by default, exceptions without the response's body, retries. Redirects
are not followed, and cookies are not kept. Network faults become errors of this package;
``dingtalk/responses.py`` decides what a response means.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakSet

import aiohttp
import certifi
from airflow.providers.http.hooks.http import AsyncHttpSession, HttpAsyncHook, SessionConfig
from yarl import URL

from airflow_provider_dingconf.client.settings import load_certificate
from airflow_provider_dingconf.client.sync import keep_after_fork, within
from airflow_provider_dingconf.dingtalk import errors as e
from airflow_provider_dingconf.dingtalk.calls import TOKEN_HEADER, Request, Response
from airflow_provider_dingconf.dingtalk.responses import MAX_RESPONSE_BYTES, masked, one_line

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable

    from airflow_provider_dingconf.client.proxies import Proxy
    from airflow_provider_dingconf.client.settings import Settings
    from airflow_provider_dingconf.dingtalk.events import Address

CLOSE_SECONDS = 0.5
_AUTHORITIES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Environment variables that name the certificate authorities to trust, as for requests and curl."""
_PROXY_LOGIN = (
    "Check the user name and the password in the proxy's URL, http://user:password@host:port. Only Basic "
    "authentication is supported, not NTLM or Kerberos."
)
_FAULTS = (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError)


class _Received(Response):
    """A response for ``AsyncHttpSession`` that never raises, because error bodies are read, too."""

    def raise_for_status(self) -> None:
        pass


class HttpSession:
    """Open connections to DingTalk, for one event loop; with ``stays_open``, also while nobody uses them."""

    def __init__(self, settings: Settings, *, stays_open: bool) -> None:
        self.users = 0
        self.stays_open = stays_open
        self._settings = settings
        # For an empty id, no connection is looked up. The method only makes the session send a body.
        self._http: Any = AsyncHttpSession(  # its run() takes bytes, and returns what _request returns
            HttpAsyncHook(http_conn_id="", retry_limit=1),
            cast("Any", self._request),
            SessionConfig(base_url=settings.base_url),
            method="POST",
        )
        url, proxy = settings.base_url, settings.proxy
        headers = {"Accept-Encoding": "identity"}
        self._session = _session(
            settings, url, proxy, headers=headers, auto_decompress=False, request_class=_NotedRequest
        )
        self.close = self._session.close
        self._proxy = _through(proxy)
        _open_sessions.add(self)

    def send(self, request: Request, seconds: float, sent: list[str]) -> Awaitable[Response]:
        """Return what sends a request when awaited, and gives the response.

        :param seconds: the time limit of the whole exchange.
        :param sent: receives the request's method when the request is sent.
        """
        limits = self._settings.timeout
        timeout = aiohttp.ClientTimeout(
            total=seconds,
            connect=limits.connect + limits.read,  # with the response of a name server, and of a proxy
            sock_connect=limits.connect,
            sock_read=limits.read,
        )
        _sent.set(sent)
        options = {"verb": request.method, "timeout": timeout}
        response: Awaitable[Response] = self._http.run(
            request.target, data=request.content, headers=request.headers, extra_options=options
        )
        return response

    async def _request(
        self, url: str, *, verb: str, data: bytes | None, headers: dict[str, str], timeout: Any, **_: Any
    ) -> Response:
        content = b""
        try:
            async with self._session.request(
                verb,
                URL(url, encoded=True),
                data=data,
                headers=headers,
                timeout=timeout,
                allow_redirects=False,
                **self._proxy,
            ) as response:
                async for chunk in response.content.iter_any():
                    content += chunk
                    if len(content) > MAX_RESPONSE_BYTES:
                        response.close()
                        break
                return _Received(response.status, response.headers, content)
        except _FAULTS as error:
            token = headers.get(TOKEN_HEADER, "")
            raise _network_error(self._settings, error, secrets=(token,)) from None


_sent: ContextVar[list[str]] = ContextVar("sent")


class _NotedRequest(aiohttp.ClientRequest):
    """A request that notes that it is sent: what it takes to connect, a proxy included, came before."""

    async def send(self, conn: Any) -> Any:
        _sent.get().append(self.method)
        return await super().send(conn)


def _session(
    settings: Settings, url: str, proxy: Proxy | None, *, headers: dict[str, str], **options: Any
) -> aiohttp.ClientSession:
    if proxy and not _has_tls(url):
        headers = {**headers, **proxy.headers}  # for https, the CONNECT request has them
    connector = aiohttp.TCPConnector(ssl=_tls(settings, url), limit=0)
    jar = aiohttp.DummyCookieJar()
    session = aiohttp.ClientSession(connector=connector, cookie_jar=jar, headers=headers, **options)
    # aiohttp would repeat a GET, PUT or DELETE whose connection broke, and has no public switch for that.
    session._retry_connection = False
    return session


def _through(proxy: Proxy | None) -> dict[str, Any]:
    return {"proxy": proxy.url, "proxy_headers": proxy.headers} if proxy else {}


_open_sessions: WeakSet[HttpSession] = WeakSet()
keep_after_fork(lambda: list(_open_sessions))


@asynccontextmanager
async def websocket(
    settings: Settings, address: Address, ping_seconds: float
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """Connect to an event stream for a block. The end of the block closes it, whatever the peer does.

    :param ping_seconds: seconds between two pings. A peer that does not reply in half that time is gone.
    """
    where, proxy = address.url.partition("?")[0], settings.proxy_for(address.url)
    secrets = (*address.secrets, *(proxy.secrets if proxy else ()))
    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(_refuse_redirect)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=settings.timeout.connect)
    session = _session(settings, address.url, proxy, headers={}, timeout=timeout, trace_configs=[trace])
    async with session:
        try:
            socket = await within(
                session.ws_connect(
                    address.url,
                    heartbeat=ping_seconds,
                    timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_SECONDS),
                    **_through(proxy),
                ),
                settings.timeout.connect + settings.timeout.read,
            )
        except aiohttp.WSServerHandshakeError as error:
            said = f"{where} refused the connection: HTTP {error.status}"
            raise e.ConnectionLostError(said, code="connectionLost", http_status=error.status) from None
        except _FAULTS as error:
            raise _network_error(settings, error, where=where, secrets=secrets) from None
        try:
            yield socket
        finally:
            with suppress(OSError, aiohttp.ClientError):
                await socket.close()


async def _refuse_redirect(_session: object, _context: object, _parameters: object) -> None:
    raise e.RedirectError("the event stream responds with a redirect, which is not followed", code="redirect")


def _has_tls(url: str) -> bool:
    return url.startswith(("https:", "wss:"))


def _tls(settings: Settings, url: str) -> ssl.SSLContext | bool:
    if not _has_tls(url):
        return True
    trusted, cert = settings.verify, settings.cert
    if trusted is True:
        trusted = next(filter(None, map(os.environ.get, _AUTHORITIES)), False)
    trusted = trusted or certifi.where()
    pair = (cert,) if isinstance(cert, str) else cert or ()
    try:
        changed = tuple(Path(file).stat().st_mtime_ns for file in (trusted, *pair))
        return _cached_tls(trusted, settings.verify is not False, pair, changed)
    except OSError as error:
        said = f"a file of certificates cannot be read: {one_line(str(error))}"
        remedy = f"Check verify and cert in the connection, and the variables {' and '.join(_AUTHORITIES)}."
        raise e.ConnectionLostError(said, code="connectionLost", remedy=remedy) from None


@lru_cache(maxsize=8)  # reading the authorities takes tens of milliseconds
def _cached_tls(
    trusted: str,
    verifies: bool,
    cert: tuple[str, ...],
    changed: tuple[int, ...],  # noqa: ARG001 - part of the cache's key, so a renewed file is read again
) -> ssl.SSLContext:
    file, directory = (None, trusted) if Path(trusted).is_dir() else (trusted, None)
    context = ssl.create_default_context(cafile=file, capath=directory)
    if not verifies:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if cert:
        load_certificate(context, cert)
    return context


def _network_error(
    settings: Settings, error: Exception, *, where: str = "", secrets: tuple[str, ...] = ()
) -> e.DingTalkError:
    causes = _causes(error)
    where = where or settings.base_url
    if proxy := settings.proxy_for(where):
        where += f" through the proxy {proxy.url}"
    hidden = list(filter(None, (*settings.secrets, *secrets)))  # a server may quote the request
    reason = one_line(masked(str(causes[-1]), hidden)) or type(causes[-1]).__name__
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes):
        return e.CertificateError(f"the certificate of {where} is not valid: {reason}", code="badCertificate")
    if isinstance(error, aiohttp.ClientHttpProxyError):
        refused = f"no connection to {where}: it responded HTTP {error.status} {error.message}"
        remedy = _PROXY_LOGIN if error.status == 407 else None
        return e.ConnectionLostError(one_line(masked(refused, hidden)), code="connectionLost", remedy=remedy)
    if any(isinstance(cause, (asyncio.TimeoutError, TimeoutError)) for cause in causes):
        return e.CallTimeoutError(f"no response from {where} in time", code="timeout")
    return e.ConnectionLostError(f"no response from {where}: {reason}", code="connectionLost")


def _causes(error: BaseException) -> list[BaseException]:
    causes: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in causes:
        causes.append(at)
        at = at.__cause__
    return causes
