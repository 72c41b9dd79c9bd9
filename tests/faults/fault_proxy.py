"""A layer in front of the sandbox that breaks real TCP connections, according to a plan.

What goes wrong is data: a row of :data:`FAULTS` holds whether the request is read, whether the sandbox receives
it, what goes back, how fast, and how the connection ends. Each :class:`Route` is another address in front of the
sandbox, with another plan and other records: many faults can be tried side by side.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import random
import re
import socket
import struct
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import ssl

    from typing_extensions import Self

    from airflow_provider_dingconf.sandbox import Sandbox

MIB = 1024 * 1024


@dataclass(frozen=True)
class Fault:
    """How a connection breaks.

    :param says: what goes back, piece by piece.
    :param ends: what becomes of the connection: it is closed, reset, kept for the next request, or nothing more
        happens on it until the client hangs up.
    :param reads: whether the request is read; otherwise the connection breaks as soon as it stands.
    :param takes_effect: whether the sandbox receives the request: only its response is lost.
    :param pause: seconds between the pieces.
    :param endless: whether the last piece is repeated for ever.
    """

    says: tuple[bytes, ...] = ()
    ends: Literal["close", "reset", "keep", "wait"] = "close"
    reads: bool = True
    takes_effect: bool = False
    pause: float = 0.0
    endless: bool = False


def http(status: int | str, body: bytes = b"", **headers: str | None) -> bytes:
    """Return a response as it goes over the wire, without the headers that are None."""
    usual = {"Content_Type": "application/json", "Content_Length": str(len(body))} | headers
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in usual.items() if value is not None]
    return "\r\n".join([f"HTTP/1.1 {status} Reason", *lines, "", ""]).encode() + body


def chunked(*chunks: bytes, last: bytes = b"0\r\n\r\n") -> bytes:
    """Return a good status and a body in chunks."""
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return http(200, Content_Length=None, Transfer_Encoding="chunked") + body + last


def responds(status: int, body: bytes = b"", **headers: str | None) -> Fault:
    """Return the fault that is one response, after which the connection is kept."""
    return Fault((http(status, body, **headers),), ends="keep")


def redirect(status: int, to: str) -> Fault:
    """Return the fault that is a redirect to another place."""
    return responds(status, HTML, Location=to, Content_Type="text/html")


def refusal(status: int, code: str, *, old: bool = False, **headers: str | None) -> Fault:
    """Return the fault that is an error of DingTalk's, in its usual or its older form."""
    usual = f'{{"code":"{code}","requestid":"R1","message":"no"}}'
    body = f'{{"errcode":{code},"errmsg":"no"}}' if old else usual
    return responds(status, body.encode(), **headers)


GOOD = b'{"success":true}'
HTML = b"<!DOCTYPE html>\n<html><head><title>Oops</title></head><body>Oops</body></html>"
BAN_PAGE = b'<!DOCTYPE html>\n<html><script src="/_____tmd_____/punish?x5secdata=1"></script></html>'
GARBAGE = random.Random(1).randbytes(500)  # noqa: S311 - the same each time
_HEAD = http(200, GOOD)[: -len(GOOD)]
_LINES = http(200, GOOD).partition(b"Content-Length")[0]


HANGING_UP = {
    "reset before reading": Fault(reads=False, ends="reset"),
    "closed before reading": Fault(reads=False),
    "reset after reading": Fault(ends="reset"),
    "closed after reading": Fault(),
    "response lost by reset": Fault(ends="reset", takes_effect=True),
    "response lost by closing": Fault(takes_effect=True),
    "closed in the status line": Fault((b"HTTP/1.1 2",)),
    "reset in the headers": Fault((_LINES,), ends="reset"),
    "closed before the body": Fault((_HEAD,)),
    "closed in the body": Fault((_HEAD, GOOD[:8])),
    "reset in the body": Fault((_HEAD, GOOD[:8]), ends="reset"),
    "closed in a chunk": Fault((chunked(GOOD)[:-10],)),
    "closed before the last chunk": Fault((chunked(GOOD, last=b""),)),
}
SLOW = {
    "silent from the beginning": Fault(reads=False, ends="wait"),
    "silent": Fault(ends="wait"),
    "silent after the headers": Fault((_HEAD,), ends="wait"),
    "headers dripped": Fault((_LINES + b"X-More: ", b"1"), pause=0.05, endless=True),
    "body dripped": Fault((http(200, GOOD, Content_Length="1000"), b" "), pause=0.05, endless=True),
    "chunks dripped": Fault((chunked(GOOD, last=b""), b"1\r\n \r\n"), pause=0.05, endless=True),
    "headers slower than the timeout": Fault((_HEAD[:9], _HEAD[9:]), pause=9.0),
    "body slower than the timeout": Fault((_HEAD, GOOD[:4], GOOD[4:8], GOOD[8:]), pause=9.0),
    "100 Continue for ever": Fault((b"HTTP/1.1 100 Continue\r\n\r\n",), pause=0.01, endless=True),
}
DRIPPED = frozenset(name for name, fault in SLOW.items() if fault.endless)
BIG = {
    "body without end": Fault((http(200, Content_Length=None), b"[" * 65536), endless=True),
    "chunks without end": Fault((chunked(last=b""), b"8000\r\n%s\r\n" % (b" " * 32768)), endless=True),
    "length of a terabyte": Fault((http(200, Content_Length=str(2**40)), b" " * 65536), endless=True),
    "body of 1 MiB and a byte": responds(200, GOOD.ljust(MIB + 1)),
    "gzip bomb": responds(200, gzip.compress(bytes(64 * MIB)), Content_Encoding="gzip"),
    "deflate bomb": responds(200, zlib.compress(bytes(64 * MIB)), Content_Encoding="deflate"),
}
IN_THE_HEADERS = {
    "closed in the headers": Fault((_LINES,)),
    "closed in a header": Fault((_LINES[:-9],)),
}
BIG_HEADERS = {
    "headers without end": Fault((b"HTTP/1.1 200 OK\r\n", b"X-More: 1\r\n" * 4096), endless=True),
    "header without end": Fault((b"HTTP/1.1 200 OK\r\nX-More: ", b"1" * 65536), endless=True),
    "status line without end": Fault((b"HTTP/1.1 200 ", b"O" * 65536), endless=True),
}
NO_HTTP = {
    "garbage": Fault((GARBAGE,)),
    "NULs": Fault((bytes(500),)),
    "another protocol": Fault((b"SSH-2.0-OpenSSH_9.6\r\n",)),
    "TLS alert": Fault((b"\x15\x03\x01\x00\x02\x02\x28",)),
    "no status": Fault((b"HTTP/1.1 \r\n\r\n",)),
    "status of letters": Fault((b"HTTP/1.1 abc OK\r\n\r\n",)),
    "chunk size of letters": Fault((chunked(last=b"xyz\r\n"),)),
    "length too long": Fault((http(200, GOOD, Content_Length="99"),)),
    "length too short": Fault((http(200, GOOD, Content_Length="9"),)),
}
TOLERABLE = {
    "length of letters": Fault((http(200, GOOD, Content_Length="many"),)),
    "negative length": Fault((http(200, GOOD, Content_Length="-5"),)),
    "two lengths": Fault((http(200, GOOD, X="1\r\nContent-Length: 5"),)),
    "length and chunks": Fault((chunked(GOOD).replace(b"\r\n", b"\r\nContent-Length: 5\r\n", 1),)),
}
WRONG_BODIES = {
    "no gzip": responds(200, b"\x1f\x8bnone", Content_Encoding="gzip"),
    "half a gzip": responds(200, gzip.compress(GOOD)[:12], Content_Encoding="gzip"),
    "unknown encoding": responds(200, b"\x0b\x07\x80", Content_Encoding="br"),
    "gzip within gzip": responds(200, gzip.compress(gzip.compress(GOOD)), Content_Encoding="gzip, gzip"),
    "no content": responds(204, Content_Length=None, Content_Type=None),
    "empty": responds(200),
    "text": responds(200, b"OK", Content_Type="text/plain"),
    "garbage in the body": responds(200, GARBAGE),
    "half a JSON": responds(200, b'{"success":'),
    "JSON list": responds(200, b"[true]"),
    "JSON string": responds(200, b'"success"'),
    "JSON number": responds(200, b"1"),
    "JSON null": responds(200, b"null"),
    "JSON object in a list": responds(200, b"[%s]" % GOOD),
    "JSON 100,000 deep": responds(200, b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "JSON number of 10,000 digits": responds(200, b'{"success":%s}' % (b"1" * 10_000)),
    "JSON of another call": responds(200, b'{"result":{"success":true}}'),
    "empty JSON": responds(200, b"{}"),
}
NOT_CONFIRMED = {
    f"success is {value.decode()}": responds(200, b'{"success":%s}' % value)
    for value in (b"false", b"null", b"1", b'"true"', b"[true]", b'{"success":true}', b"NaN")
}
GATEWAY = {
    f"{status} {name}": responds(status, body)
    for status in (502, 503, 504)
    for name, body in {"with HTML": HTML, "with nothing": b"", "with JSON": b'{"code":"x"}'}.items()
}
BANS = {
    "ban in JSON": responds(200, b'{"status":1111,"wait":5,"source":"x5","punish":"deny","uuid":"u"}'),
    "ban in JSON, 403": responds(403, b'{"status":1111,"wait":5,"source":"x5","punish":"deny"}'),
    "ban in HTML": responds(200, BAN_PAGE, Content_Type="text/html"),
    "ban in HTML, 403": responds(403, HTML, Content_Type="text/html"),
}


FAULTS: Mapping[str, Fault] = {
    **HANGING_UP,
    **IN_THE_HEADERS,
    **SLOW,
    **BIG,
    **BIG_HEADERS,
    **NO_HTTP,
    **TOLERABLE,
    **WRONG_BODIES,
    **NOT_CONFIRMED,
    **GATEWAY,
    **BANS,
}
"""The faults by name."""


@dataclass(frozen=True)
class Request:
    """A request as it came over the wire."""

    kind: str
    """``token``, ``lock``, ``unlock`` or ``other``."""
    conference_id: str
    """Empty if the call is about none."""
    wire: bytes = field(repr=False)


Plan = Mapping[str, Iterable["Fault | None"]]
"""What goes wrong with one request after another: by conference id, by kind, or (``connection``) with each new
connection. None is no fault, and so is whatever comes after the last."""


class Route:
    """An address in front of the sandbox.

    :param url: what leads here, over http.
    :param https_url: what leads here, over https.
    :param plan: what goes wrong.
    """

    def __init__(self, url: str, https_url: str, plan: Plan) -> None:
        self.url = url
        self.https_url = https_url
        self._plan = {key: iter(faults) for key, faults in plan.items()}
        self.requests: list[Request] = []
        self.hit: list[tuple[str, Fault]] = []
        """Kind and fault of each request, or connection, that met one."""
        self.connections = 0
        self.open = 0
        """Connections that stand now."""
        self.sent = 0
        """Bytes sent by faults."""

    def count(self, *kinds: str) -> int:
        """Return how many requests of these kinds came; of any kind, if none is named."""
        return sum(request.kind in kinds or not kinds for request in self.requests)

    def next_fault(self, kind: str, conference_id: str = "") -> Fault | None:
        """Return what goes wrong now."""
        plan = next((self._plan[key] for key in (conference_id, kind) if key in self._plan), iter(()))
        fault = next(plan, None)
        if fault:
            self.hit.append((kind, fault))
        return fault


class FaultProxy:
    """The layer, in a thread, for the length of a ``with`` block.

    :param sandbox: what is behind it, served over http.
    :param ssl_context: what serves https.
    """

    def __init__(self, sandbox: Sandbox, ssl_context: ssl.SSLContext | None = None) -> None:
        self._sandbox = sandbox
        self._ssl_context = ssl_context
        self._routes: dict[str, Route] = {}
        self._numbers = itertools.count(2)

    def __enter__(self) -> Self:
        self._http, self._https = (socket.create_server(("0.0.0.0", 0), backlog=1024) for _ in range(2))  # noqa: S104 - each route is another loopback address
        # A port that is taken, but on which nobody listens: it refuses.
        self._refusing = socket.socket()
        self._refusing.bind(("127.0.0.1", 0))
        self.refused_url = f"http://127.0.0.1:{self._refusing.getsockname()[1]}"
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._refusing.close()

    def route(self, plan: Plan | None = None) -> Route:
        """Return a new address, on which the plan holds."""
        number = next(self._numbers)
        address = f"127.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        http, https = (each.getsockname()[1] for each in (self._http, self._https))
        route = Route(f"http://{address}:{http}", f"https://{address}:{https}", plan or {})
        self._routes[address] = route
        return route

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        servers = [await asyncio.start_server(self._accepted, sock=self._http, limit=MIB)]
        if self._ssl_context:
            server = await asyncio.start_server(self._accepted, sock=self._https, ssl=self._ssl_context)
            servers.append(server)
        await self._stop.wait()
        for server in servers:
            server.close()
        self._https.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        route = self._routes[writer.get_extra_info("sockname")[0]]
        route.connections += 1
        route.open += 1
        upstream = _Upstream(self._sandbox.port)
        try:
            with suppress(OSError, asyncio.CancelledError, asyncio.IncompleteReadError):
                await _connection(route, reader, writer, upstream)
        finally:
            route.open -= 1
            upstream.close()
            writer.close()
            self._tasks.discard(task)


class _Upstream:
    """A connection to the sandbox, made when it is first needed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def response(self, wire: bytes) -> bytes:
        reader, writer = self._streams = self._streams or await asyncio.open_connection(
            "127.0.0.1", self._port
        )
        writer.write(wire)
        return await _message(reader)

    def close(self) -> None:
        if self._streams:
            self._streams[1].close()


async def _connection(
    route: Route, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upstream: _Upstream
) -> None:
    """Serve a connection until it ends."""
    fault = route.next_fault("connection")
    if fault:
        await _break(fault, route, reader, writer)
        return
    while True:
        request = _request(await _message(reader))
        route.requests.append(request)
        fault = route.next_fault(request.kind, request.conference_id)
        response = b"" if fault and not fault.takes_effect else await upstream.response(request.wire)
        if fault is None:
            writer.write(response)
            await writer.drain()
        elif not await _break(fault, route, reader, writer):
            return


async def _message(reader: asyncio.StreamReader) -> bytes:
    """Return a request, or a response of the sandbox, which all declare their length."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return head + await reader.readexactly(int(length[1]) if length else 0)


def _request(wire: bytes) -> Request:
    line, _, rest = wire.partition(b"\r\n")
    found = re.search(rb"/videoConferences/([^/ ?]+)/lock ", line)
    if found:
        return Request("unlock" if b'"unlock"' in rest else "lock", found[1].decode(), wire)
    return Request("token" if b"/oauth2/" in line else "other", "", wire)


async def _break(
    fault: Fault, route: Route, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> bool:
    """Do what a fault says, and return whether the connection is kept."""
    pieces: Iterator[bytes] = iter(fault.says)
    if fault.endless:
        pieces = itertools.chain(pieces, itertools.repeat(fault.says[-1]))
    for number, piece in enumerate(pieces):
        if number and fault.pause:
            with suppress(asyncio.TimeoutError):  # a client that hangs up needs no more pieces
                await asyncio.wait_for(reader.read(), fault.pause)
                return False
        writer.write(piece)
        await writer.drain()
        route.sent += len(piece)
    if fault.ends == "wait":
        await reader.read()
    elif fault.ends == "reset":
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    return fault.ends == "keep"
