"""A deadline for a whole answer, in requests.

The read timeout of requests is one for each piece of an answer: a server that drips its answer byte by byte
could hold a call for ever. With :class:`DeadlineAdapter` the time set by :func:`deadline` bounds it as a
whole. (aiohttp has ``ClientTimeout(total=…)`` for that.)
"""

from __future__ import annotations

import http.client
import io
import time
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar

from requests.exceptions import InvalidProxyURL
from requests_toolbelt.adapters.socket_options import TCPKeepAliveAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

_until: ContextVar[float] = ContextVar("until")


@contextmanager
def deadline(until: float) -> Iterator[None]:
    """Bound the answers that are read inside.

    :param until: the moment, in seconds of ``time.monotonic``.
    """
    token = _until.set(until)
    try:
        yield
    finally:
        _until.reset(token)


class _TimedSocketReader(io.RawIOBase):
    """Reads a socket, each piece in no more time than is left for all of them."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw = raw
        self._sock = sock
        self._piece_seconds = sock.gettimeout()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = _until.get() - time.monotonic()
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


class _HTTPSConnection(HTTPSConnection):
    response_class = _TimedResponse


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
