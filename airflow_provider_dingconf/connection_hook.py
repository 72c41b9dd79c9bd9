"""``ConnectionHook``, the base of ``DingTalkConferenceHook``: all that concerns the Airflow connection.

It reads the connection, masks the secrets, holds the client that makes the calls, and tests the connection.
"""

from __future__ import annotations

import asyncio
import atexit
import weakref
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, cast

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook

from airflow_provider_dingconf.client.client import DingTalkClient
from airflow_provider_dingconf.client.settings import read_connection
from airflow_provider_dingconf.client.sync import run, run_at_exit, run_later
from airflow_provider_dingconf.compat import get_async_connection, mask_secret
from airflow_provider_dingconf.dingtalk.errors import DingTalkError, TransientError
from airflow_provider_dingconf.dingtalk.limits import MAX_ATTEMPTS, MAX_SECONDS, check_limits
from airflow_provider_dingconf.metrics import count_request

if TYPE_CHECKING:
    import logging
    from collections.abc import Iterable

    from typing_extensions import Self

    from airflow_provider_dingconf.client.settings import Settings


class ConnectionHook(BaseHook):
    """A hook with an Airflow connection to DingTalk; parameters as in ``DingTalkConferenceHook``."""

    conn_name_attr = "dingtalk_conn_id"
    default_conn_name = "dingtalk_default"
    conn_type = "dingtalk"
    hook_name = "DingTalk"

    def __init__(
        self,
        dingtalk_conn_id: str = default_conn_name,
        *,
        max_attempts: int = MAX_ATTEMPTS,
        max_seconds: float = MAX_SECONDS,
    ) -> None:
        super().__init__()
        check_limits(max_attempts, max_seconds)
        self.dingtalk_conn_id = dingtalk_conn_id
        self.max_attempts = max_attempts
        self.max_seconds = max_seconds
        self._client: DingTalkClient | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a pickle holds: no open connection, no logger and so no secret."""
        return {**vars(self), "_client": None, "_log": None}

    @property
    def settings(self) -> Settings:
        """What the Airflow connection says, checked.

        :raises InvalidConnectionError: a field is missing, contradictory, unknown, or of a wrong type.
        """
        return self._connect().settings

    def _connect(self) -> DingTalkClient:
        if self._client is None:
            settings = read_connection(self.get_connection(self.dingtalk_conn_id), self.dingtalk_conn_id)
            _mask(settings.secrets)
            self._client = self._client or self._client_of(settings)
        return self._client

    async def _aconnect(self) -> DingTalkClient:
        if self._client is None:
            conn = await get_async_connection(self.dingtalk_conn_id, hook=self)
            settings = read_connection(conn, self.dingtalk_conn_id)
            await _amask(settings.secrets)
            self._client = self._client or self._client_of(settings)  # others may have awaited it, too
        return self._client

    @classmethod
    async def _aconnect_to(cls, dingtalk_conn_id: str, **limits: Any) -> DingTalkClient:
        """Return the client for a trigger; raise a TransientError if looking it up may work later."""
        try:
            return await cls(dingtalk_conn_id, **limits)._aconnect()
        except (DingTalkError, AirflowNotFoundException):
            raise
        except Exception as error:  # Airflow's: its message may quote the connection
            problem = f"the connection {dingtalk_conn_id} could not be looked up ({type(error).__name__})"
            raise TransientError(problem) from None

    def _client_of(self, settings: Settings) -> DingTalkClient:
        log = cast("logging.Logger", self.log)
        client = DingTalkClient(
            settings, self.max_attempts, self.max_seconds, mask=_amask, count=count_request, log=log
        )
        weakref.finalize(self, run_later, client.close).atexit = False
        _clients.add(client)
        return client

    def close(self) -> None:
        """Close the connections to DingTalk; the next call opens new ones."""
        if self._client is not None:
            run_later(self._client.close)

    async def __aenter__(self) -> Self:
        """Keep the connections to DingTalk open for the async calls of the block, in this event loop."""
        await (await self._aconnect()).__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close the connections to DingTalk, once no call uses them."""
        await (await self._aconnect()).__aexit__(*exc_info)

    async def atest_connection(self) -> tuple[bool, str]:
        """Fetch an access token, or try the connection's own with the cheapest call that reads.

        :returns: whether that worked, and a sentence for the person who pressed the Test button.
        """
        try:
            client = await self._aconnect()
            token = await client.test()
        except DingTalkError as error:
            return False, str(error)
        app, url = client.settings.app, client.settings.base_url
        if app is None or token is None:
            return True, f"{url} accepts the access token of the connection."
        until = datetime.fromtimestamp(token.fetched_at + (token.lifetime or 0), timezone.utc)
        return True, (
            f"{url} gave an access token for the {app.kind} {app.client_id}, "
            f"valid until {until:%Y-%m-%d %H:%M:%S} UTC."
        )

    def test_connection(self) -> tuple[bool, str]:
        """Fetch an access token, or try the connection's own; see :meth:`atest_connection`."""
        try:
            self._connect()
        except DingTalkError as error:
            return False, str(error)
        return run(self.atest_connection)


_clients: weakref.WeakSet[DingTalkClient] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Close the connections of hooks that are still open when the process ends; aiohttp would log errors."""
    run_at_exit([client.close for client in _clients])


def _mask(secrets: Iterable[str]) -> None:
    for secret in secrets:
        mask_secret(secret)


async def _amask(secrets: Iterable[str]) -> None:
    # In the triggerer, the masker waits for the supervisor. Not asgiref's thread: a forked child lacks it.
    await asyncio.to_thread(_mask, list(secrets))
