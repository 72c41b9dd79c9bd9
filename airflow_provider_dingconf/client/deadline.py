"""A deadline for a whole call, in requests.

The connect timeout of requests is one for each address of a host, and the read timeout one for each piece of
an answer: a name with many addresses, or a server that drips its answer byte by byte, could hold a call for
long. With :class:`DeadlineAdapter` the time set by :func:`deadline` bounds it as a whole. (aiohttp has
``ClientTimeout(total=…)`` for that.)
"""

from __future__ import annotations

import http.client
import io
import socket
import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar

from requests.exceptions import InvalidProxyURL
from requests_toolbelt.adapters.socket_options import TCPKeepAliveAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError
from urllib3.util.connection import allowed_gai_family

if TYPE_CHECKING:
    from collections.abc import Iterator

_LEAST_SECONDS = 0.001  # a timeout of 0 means none

_until: ContextVar[float] = ContextVar("until")


@contextmanager
def deadline(until: float) -> Iterator[None]:
    """Bound the connections that are made and the answers that are read inside.

    :param until: the moment, in seconds of ``time.monotonic``.
    """
    token = _until.set(until)
    try:
        yield
    finally:
        _until.reset(token)


def _left() -> float:
    return _until.get() - time.monotonic()


def _addresses(host: str, port: int) -> list[str]:
    """Return a host's addresses; none where its name cannot be resolved, of which urllib3 tells better."""
    try:
        found = socket.getaddrinfo(host, port, allowed_gai_family(), socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class _TimedSocketReader(io.RawIOBase):
    """Reads a socket, each piece in no more time than is left for all of them."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw = raw
        self._sock = sock
        self._piece_seconds = sock.gettimeout()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = _left()
        if left <= 0:
            raise TimeoutError("the answer as a whole took too long")
        self._sock.settimeout(min(left, self._piece_seconds or left))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _TimedResponse(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_TimedSocketReader(self.fp.detach(), sock))


class _HTTPConnection(HTTPConnection):
    response_class = _TimedResponse

    def _new_conn(self) -> socket.socket:
        """Try one address of the host after the other, each for its share of the time that is left."""
        host, timeout = self._dns_host, self.timeout
        addresses = _addresses(host, self.port) or [host]
        try:
            for tried, self._dns_host in enumerate(addresses):
                share = max(_left() / (len(addresses) - tried), _LEAST_SECONDS)
                self.timeout = share if timeout is None else min(timeout, share)
                try:
                    return super()._new_conn()
                except (NewConnectionError, ConnectTimeoutError) as error:
                    failed = error
            raise failed
        finally:
            self._dns_host, self.timeout = host, timeout


class _HTTPSConnection(_HTTPConnection, HTTPSConnection):
    pass


class _HTTPConnectionPool(HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSConnectionPool(HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


class DeadlineAdapter(TCPKeepAliveAdapter):
    """An adapter of requests whose answers keep to :func:`deadline`."""

    pools: ClassVar[dict[str, Any]] = {"http": _HTTPConnectionPool, "https": _HTTPSConnectionPool}

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the pools of connections."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self.pools

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        """Make the pools of connections through a proxy.

        :raises InvalidProxyURL: it is a SOCKS proxy, which the environment may name: it has other pools.
        """
        if proxy.lower().startswith("socks"):
            raise InvalidProxyURL("a SOCKS proxy cannot be used")
        manager = super().proxy_manager_for(proxy, **kwargs)
        manager.pool_classes_by_scheme = self.pools
        return manager

    def close(self) -> None:
        """Close the connections at once; urllib3 waits until the garbage of a pool is collected."""
        for manager in (self.poolmanager, *self.proxy_manager.values()):
            for key in list(manager.pools.keys()):
                manager.pools[key].close()
        super().close()
