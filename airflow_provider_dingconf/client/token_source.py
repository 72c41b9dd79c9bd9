"""``TokenSource``: the access token of a connection, from the cache or from DingTalk."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

from airflow_provider_dingconf.client.token_cache import suite_ticket_of, token_cache_of
from airflow_provider_dingconf.dingtalk.errors import CallTimeoutError, CredentialsError
from airflow_provider_dingconf.dingtalk.tokens import read_token

if TYPE_CHECKING:
    import logging
    from collections.abc import Awaitable, Callable, Iterable

    from airflow_provider_dingconf.client.settings import Settings
    from airflow_provider_dingconf.dingtalk.calls import Call
    from airflow_provider_dingconf.dingtalk.responses import CallResult
    from airflow_provider_dingconf.dingtalk.tokens import App, Token

    Send = Callable[[Call, str | None, float, tuple[str, ...]], Awaitable[CallResult]]


class TokenSource:
    """The access token of a connection with an app: the shared one, or else a fresh one.

    :param settings: what the Airflow connection says.
    :param send: makes one attempt of a call: with this token, until then, and with these secrets.
    :param mask: is awaited with each new secret, before the secret is used.
    :param log: where a fetched token is noted.
    """

    def __init__(
        self,
        settings: Settings,
        send: Send,
        mask: Callable[[Iterable[str]], Awaitable[None]],
        log: logging.Logger,
    ) -> None:
        self._settings, self._app = settings, cast("App", settings.app)
        self._send, self._mask, self._log = send, mask, log
        self._cache = token_cache_of(settings)
        self._masked: Token | None = None

    async def get(self, refused: Token | None, until: float) -> Token:
        """Return a token other than the one that DingTalk refused.

        :param until: when the call ends that needs the token, by the monotonic clock.
        """
        token = self._cache.get(refused, time.monotonic())
        if token is None:
            # Half of the time that is left is kept for the call itself.
            async with self._cache.fetching(seconds_left(until) / 2):
                token = self._cache.get(refused, time.monotonic()) or await self._fetch(until)
        if token != self._masked:  # another process may have fetched it
            await self._mask([token.value])
            self._masked = token
        return token

    async def fetch(self, until: float) -> Token:
        """Return a fresh token, even if there is a shared one."""
        async with self._cache.fetching(seconds_left(until) / 2):
            return await self._fetch(until)

    async def _fetch(self, until: float) -> Token:
        """Fetch a token, and share it; the caller is the one that may (``fetching``)."""
        app, token = self._app, None
        pushed = suite_ticket_of(self._settings).pushed if app.suite_ticket else None
        if pushed and pushed != app.suite_ticket:
            await self._mask([pushed])
            try:
                token = await self._token_of(replace(app, suite_ticket=pushed), until)
            except CredentialsError as error:
                if error.code != "invalidSuiteTicket":
                    raise  # else the ticket of the Airflow connection may be the newer one
        token = token or await self._token_of(app, until)
        self._log.info("access token: fetched for the %s %s", app.kind, app.client_id)
        self._cache.put(token, time.monotonic())
        return token

    async def _token_of(self, app: App, until: float) -> Token:
        call = replace(app.token_call(), read=partial(read_token, fetched_at=time.time()))
        return cast("Token", (await self._send(call, None, until, app.secrets)).content)


def seconds_left(until: float) -> float:
    """Return the seconds that are left of a call's time.

    :raises CallTimeoutError: there are none.
    """
    left = until - time.monotonic()
    if left <= 0:
        raise CallTimeoutError("no time is left for the call (max_seconds)", code="timeout")
    return left
