"""How a request goes out and an answer comes in: over ``HttpHook``'s session, or, awaited, aiohttp's.

The HTTP provider brings the session, its keep-alive and proxies. What it would add of its own is left
out: the connection's login as an ``Authorization`` header, unknown extras as headers, plain http by
default. ``HttpAsyncHook`` would bring nothing but that, and a second loop of retries, for a fifth of the
time of a call: the async transport is on aiohttp, of which that hook is made. No redirect is followed, no
cookie is kept, ``.netrc`` is not read. Both transports raise the same errors for the same faults; what an
answer means is not decided here.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
from contextlib import asynccontextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import aiohttp
import requests
from airflow.providers.common.compat.sdk import Connection
from airflow.providers.http.hooks.http import HttpHook
from requests.structures import CaseInsensitiveDict
from requests.utils import select_proxy
from urllib3.exceptions import HTTPError as Urllib3Error
from urllib3.exceptions import ReadTimeoutError
from yarl import URL

from airflow_provider_dingconf.client.deadline import DeadlineAdapter, deadline
from airflow_provider_dingconf.dingtalk.calls import TOKEN_HEADER, Request, Response
from airflow_provider_dingconf.dingtalk.errors import (
    CallTimeoutError,
    CertificateError,
    ConnectionLostError,
    DingTalkError,
    RedirectError,
)
from airflow_provider_dingconf.dingtalk.responses import MAX_RESPONSE_BYTES, masked, one_line

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping

    from typing_extensions import Self

    from airflow_provider_dingconf.client.settings import Settings
    from airflow_provider_dingconf.dingtalk.events import Address

T = TypeVar("T")

_CHUNK = 64 * 1024
_CLOSE_SECONDS = 0.5
_NO_COMPRESSION = {"Accept-Encoding": "identity"}


class Transport:
    """Sends requests over one session, and waits.

    :param settings: what the connection says.
    """

    def __init__(self, settings: Settings) -> None:
        self.process = os.getpid()
        self._settings = settings
        self._session = _TransportHook(settings).get_conn()
        self._adapter = self._session.get_adapter(settings.base_url)
        self._options = _with_environment(self._session, settings)

    def send(self, request: Request, seconds: float) -> Response:
        """Send a request and return the answer.

        :param request: what goes over the wire.
        :param seconds: how long it may take.
        :raises DingTalkError: there was no complete answer.
        """
        settings = self._settings
        timeout = min(settings.timeout.connect, seconds), min(settings.timeout.read, seconds)
        try:
            with (
                deadline(time.monotonic() + seconds),
                # The session itself would read all of a redirect's answer, whatever its size.
                self._adapter.send(
                    _prepared(settings.base_url, request), timeout=timeout, **self._options
                ) as response,
            ):
                content = bytearray()
                for chunk in response.raw.stream(_CHUNK, decode_content=False):
                    content += chunk
                    if len(content) > MAX_RESPONSE_BYTES:
                        break
                return _answer(response.status_code, response.headers, bytes(content))
        except (requests.RequestException, Urllib3Error, OSError) as error:
            raise _transport_error(settings, error, request) from None

    def close(self) -> None:
        """Close the session's connections."""
        self._session.close()


class AsyncTransport:
    """Sends requests over one session, and awaits: to be used with ``async with``.

    :param settings: what the connection says.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        with requests.Session() as session:
            options = _with_environment(session, settings)
        self._proxy = select_proxy(settings.base_url, options["proxies"])
        try:
            self._tls = settings.base_url.startswith("https:") and _tls_context(
                options["verify"], options["cert"]
            )
        except OSError as error:  # a file that the environment names
            raise _transport_error(settings, error) from None
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the session, in the loop that uses it."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close the session's connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def send(self, request: Request, seconds: float) -> Response:
        """Send a request and return the answer.

        :param request: what goes over the wire.
        :param seconds: how long it may take.
        :raises DingTalkError: there was no complete answer.
        """
        settings = self._settings
        timeout = aiohttp.ClientTimeout(
            total=seconds, sock_connect=settings.timeout.connect, sock_read=settings.timeout.read
        )
        session = cast("aiohttp.ClientSession", self._session)
        try:
            async with session.request(
                request.method,
                URL(settings.base_url + request.target, encoded=True),
                data=request.content,
                headers={**request.headers, **_NO_COMPRESSION},
                timeout=timeout,
                allow_redirects=False,
                proxy=self._proxy,
            ) as response:
                content = bytearray()
                async for chunk in response.content.iter_chunked(_CHUNK):
                    content += chunk
                    if len(content) > MAX_RESPONSE_BYTES:
                        response.close()
                        break
                return _answer(response.status, response.headers, bytes(content))
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError) as error:
            raise _transport_error(settings, error, request) from None


async def within(awaitable: Awaitable[T], seconds: float | None) -> T:
    """Return what comes in time; ``asyncio.wait_for`` can lose a cancellation before Python 3.12.

    :param seconds: how long to wait; None for ever.
    :raises asyncio.TimeoutError: nothing came.
    """
    task = asyncio.ensure_future(awaitable)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
        if not done:
            raise asyncio.TimeoutError
        return task.result()
    finally:
        task.cancel()


@asynccontextmanager
async def websocket(
    settings: Settings, address: Address, ping_seconds: float
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """Connect to an event stream for a block; it ends at once, whatever the peer does.

    :param settings: what the connection says.
    :param address: where to.
    :param ping_seconds: between the pings that find a peer that went silent; its answer has half as long.
    :raises DingTalkError: there was no connection.
    """
    secrets, where = (*settings.secrets, *address.secrets), address.url.partition("?")[0]
    # What the environment and requests make of a URL, they make of http and https.
    url = f"http{address.url.removeprefix('ws')}"
    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(_refuse_redirect)
    seconds = settings.timeout.connect + settings.timeout.read
    try:
        with requests.Session() as environment:
            options = _with_environment(environment, settings, url)
        tls = _tls_context(options["verify"], options["cert"]) if url.startswith("https:") else True
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=settings.timeout.connect),
            trace_configs=[trace],
        )
    except OSError as error:
        raise _transport_error(settings, error, where=where) from None
    async with session:
        try:
            socket = await within(
                session.ws_connect(
                    address.url,
                    heartbeat=ping_seconds,
                    proxy=select_proxy(url, options["proxies"]),
                    timeout=aiohttp.ClientWSTimeout(ws_close=_CLOSE_SECONDS),
                ),
                seconds,
            )
        except aiohttp.WSServerHandshakeError as error:
            said = f"{where} refuses the connection: HTTP {error.status}"
            raise ConnectionLostError(said, code="connectionLost", http_status=error.status) from None
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError) as error:
            raise _transport_error(settings, error, where=where, secrets=secrets) from None
        try:
            yield socket
        finally:
            with suppress(OSError, aiohttp.ClientError):
                await socket.close()


async def _refuse_redirect(_session: object, _context: object, _parameters: object) -> None:
    raise RedirectError("the event stream answers with a redirect, which is not followed", code="redirect")


class _TransportHook(HttpHook):
    """``HttpHook`` over a connection that holds how to get there, and nothing of who we are."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(
            http_conn_id=settings.conn_id, adapter=DeadlineAdapter(idle=120, count=20, interval=30)
        )
        self._settings = settings

    def get_connection(self, conn_id: str) -> Any:  # type: ignore[override]
        settings = self._settings
        extra = {"proxies": settings.proxies, "verify": settings.verify, "cert": settings.cert}
        return Connection(conn_id=conn_id, conn_type="http", host=settings.base_url, extra=json.dumps(extra))


def _prepared(base_url: str, request: Request) -> requests.PreparedRequest:
    """Return the request as it is: requests would rewrite its address, add cookies, and look into .netrc."""
    prepared = requests.PreparedRequest()
    prepared.method = request.method
    prepared.url = base_url + request.target
    prepared.headers = CaseInsensitiveDict({**request.headers, **_NO_COMPRESSION})
    prepared.body = request.content
    prepared.prepare_content_length(request.content)
    return prepared


def _with_environment(
    session: requests.Session, settings: Settings, url: str | None = None
) -> dict[str, Any]:
    """Return proxies, verify, cert and stream, with what the environment adds to the connection.

    The environment's proxies do not know this machine's loopback address: only the connection's own do.
    """
    proxies = dict(settings.proxies)
    merged = session.merge_environment_settings(
        url or settings.base_url, dict(proxies), True, settings.verify, settings.cert
    )
    return {**merged, "proxies": proxies} if settings.on_this_machine else dict(merged)


def _tls_context(verify: bool | str, cert: str | tuple[str, str] | None) -> ssl.SSLContext:
    """Return what requests would make of the same options.

    :raises OSError: a file cannot be read.
    """
    trusted = verify if isinstance(verify, str) else requests.utils.DEFAULT_CA_BUNDLE_PATH
    pair = (cert,) if isinstance(cert, str) else cert or ()
    changed = tuple(Path(file).stat().st_mtime_ns for file in (trusted, *pair))
    return _cached_tls_context(trusted, verify is not False, pair, changed)


@lru_cache(maxsize=8)  # reading the authorities takes tens of milliseconds
def _cached_tls_context(
    trusted: str,
    verifies: bool,
    cert: tuple[str, ...],
    changed: tuple[int, ...],  # noqa: ARG001 - part of the cache's key: a renewed file is read anew
) -> ssl.SSLContext:
    file, directory = (None, trusted) if Path(trusted).is_dir() else (trusted, None)
    context = ssl.create_default_context(cafile=file, capath=directory)
    if not verifies:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if cert:
        context.load_cert_chain(*cert)
    return context


def _answer(status: int, headers: Mapping[str, str], content: bytes) -> Response:
    return Response(status, {name.lower(): value for name, value in headers.items()}, content)


def _transport_error(
    settings: Settings,
    error: Exception,
    request: Request | None = None,
    *,
    where: str | None = None,
    secrets: tuple[str, ...] = (),
) -> DingTalkError:
    """Return the one of our errors that says what the library's error means."""
    causes = list(_causes(error))
    where = where or settings.base_url
    token = request.headers.get(TOKEN_HEADER) if request else None
    secrets = (*settings.secrets, *secrets, *([token] if token else []))  # a server may echo the request
    said = one_line(masked(str(causes[-1]), secrets)) or type(causes[-1]).__name__
    if any(isinstance(cause, (ssl.SSLCertVerificationError, ssl.CertificateError)) for cause in causes):
        return CertificateError(f"the certificate of {where} is not valid: {said}", code="badCertificate")
    timeouts = (asyncio.TimeoutError, TimeoutError, requests.Timeout, ReadTimeoutError)
    if any(isinstance(cause, timeouts) for cause in causes):
        return CallTimeoutError(f"{where} did not answer in time", code="timeout")
    return ConnectionLostError(f"no answer from {where}: {said}", code="connectionLost")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and what it wraps: urllib3 keeps that in ``reason``, requests in ``args``."""
    seen: set[int] = set()
    at: object = error
    while isinstance(at, BaseException) and id(at) not in seen:
        seen.add(id(at))
        yield at
        inner = [getattr(at, "reason", None), *at.args, at.__cause__, at.__context__]
        at = next((one for one in inner if isinstance(one, BaseException)), None)
