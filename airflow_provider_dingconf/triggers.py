"""``ConferenceTrigger``, which waits in the triggerer for a sensor.

``ConferenceEventTrigger`` and ``triggering_conferences`` can be imported from here, too. They need Airflow 3,
and on Airflow 2 the import says so.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_dingconf.dingtalk.conferences import ConferenceStatus, check_reference
from airflow_provider_dingconf.dingtalk.errors import DingTalkError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from airflow_provider_dingconf.client.client import DingTalkClient
    from airflow_provider_dingconf.client.polling import PollSettings
    from airflow_provider_dingconf.event_triggers import ConferenceEventTrigger, triggering_conferences

__all__ = ["ConferenceEventTrigger", "ConferenceTrigger", "triggering_conferences"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from airflow_provider_dingconf import event_triggers

        return getattr(event_triggers, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class ConferenceTrigger(BaseTrigger):
    """Wait until a meeting has started, or has ended.

    The triggers of one connection and interval share their polls: see
    :mod:`~airflow_provider_dingconf.client.polling`. The trigger yields one event: a dict with
    ``conference``, the meeting as plain values, or with ``error``, the error that ended the wait.

    :param status: the status to wait for, ``started`` or ``ended``.
    :param named: one parameter that names the meeting, such as ``conference_id``, and its value.
    :param dingtalk_conn_id: the Airflow connection, of type ``dingtalk``.
    :param poke_interval: seconds between two polls.
    :param seen: the meeting's status when the wait began, if known.
    :param on_error: outcomes that replace the defaults. The wait goes on after an error whose outcome is
        ``retry``.
    :param delay: seconds from the start of the meeting to the end of the wait, without a call.
    :param found: the meeting as plain values, if it is known to have started. The trigger then only waits
        for the delay.
    """

    poll_settings: PollSettings | None = None

    def __init__(
        self,
        status: str,
        named: dict[str, str],
        dingtalk_conn_id: str = "dingtalk_default",
        poke_interval: float = 60.0,
        seen: str | None = None,
        *,
        on_error: dict[str, str] | None = None,
        delay: float = 0.0,
        found: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.status = status
        self.named = named
        self.dingtalk_conn_id = dingtalk_conn_id
        self.poke_interval = poke_interval
        self.seen = seen
        self.on_error = on_error
        self.delay = delay
        self.found = found

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class and its arguments, which hold no secret."""
        names = "status", "named", "dingtalk_conn_id", "poke_interval", "seen", "on_error", "delay", "found"
        return f"{__name__}.ConferenceTrigger", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield one event."""
        try:
            found = self.found or await self._wait()
        except DingTalkError as error:
            yield TriggerEvent({"error": error.as_dict()})  # type: ignore[no-untyped-call]
            return
        now = datetime.now(timezone.utc)
        start = datetime.fromisoformat(found["start_time"]) if found["start_time"] else now
        end = start + timedelta(seconds=self.delay)
        if self.delay and end > now:
            self.log.info("%s has started; the wait ends at %s", found["conference_id"], end.isoformat())
            await asyncio.sleep((end - now).total_seconds())
        yield TriggerEvent({"conference": found})  # type: ignore[no-untyped-call]

    async def _wait(self) -> dict[str, Any]:
        from airflow_provider_dingconf.client.polling import Poll
        from airflow_provider_dingconf.outcomes import check_on_error

        make_client = partial(connect, self.dingtalk_conn_id)
        poll = Poll.of(self.dingtalk_conn_id, self.poke_interval, make_client, self.poll_settings)
        conference = await poll.wait(
            check_reference(**self.named),
            ConferenceStatus(self.status),
            ConferenceStatus(self.seen) if self.seen else None,
            check_on_error(self.on_error),
        )
        return conference.as_dict()


async def connect(dingtalk_conn_id: str) -> DingTalkClient:
    """Return the client for one round of polls."""
    from airflow_provider_dingconf.hooks import DingTalkConferenceHook

    return await DingTalkConferenceHook._aconnect_to(dingtalk_conn_id, max_attempts=1)
