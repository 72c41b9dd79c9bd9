"""Triggers: what waits in the triggerer.

``ConferenceEventTrigger`` and ``triggering_conferences`` stand here as well. They need Airflow 3: importing
them on an older one says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_dingconf.dingtalk.conferences import ConferenceStatus, check_reference
from airflow_provider_dingconf.dingtalk.errors import DingTalkError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

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
    :mod:`~airflow_provider_dingconf.client.polling`. The one event is a dict of ``conference``, the meeting as plain
    values, or of ``error``, what DingTalk refused.

    :param status: what is waited for, ``started`` or ``ended``.
    :param named: what the meeting is named by, such as ``conference_id``: see
        :meth:`~airflow_provider_dingconf.hooks.DingTalkConferenceHook.lock_conference`.
    :param dingtalk_conn_id: the Airflow connection, of type ``dingtalk``.
    :param poke_interval: seconds between two polls.
    :param seen: the meeting's status when the wait began, if known.
    :param on_error: outcomes by error code, in place of the defaults: the wait goes on where it is ``retry``.
    """

    def __init__(
        self,
        status: str,
        named: dict[str, str],
        dingtalk_conn_id: str = "dingtalk_default",
        poke_interval: float = 60.0,
        seen: str | None = None,
        *,
        on_error: dict[str, str] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.status = status
        self.named = named
        self.dingtalk_conn_id = dingtalk_conn_id
        self.poke_interval = poke_interval
        self.seen = seen
        self.on_error = on_error

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what the trigger is made of; no secret is among it."""
        arguments = {
            "status": self.status,
            "named": self.named,
            "dingtalk_conn_id": self.dingtalk_conn_id,
            "poke_interval": self.poke_interval,
            "seen": self.seen,
            "on_error": self.on_error,
        }
        return f"{__name__}.ConferenceTrigger", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Wait, and yield one event."""
        from airflow_provider_dingconf.client.polling import Poll
        from airflow_provider_dingconf.outcomes import check_on_error

        poll = Poll.of(self.dingtalk_conn_id, self.poke_interval)
        try:
            conference = await poll.wait(
                check_reference(**self.named),
                ConferenceStatus(self.status),
                ConferenceStatus(self.seen) if self.seen else None,
                check_on_error(self.on_error),
            )
        except DingTalkError as error:
            yield _event({"error": error.as_dict()})
        else:
            yield _event({"conference": conference.as_dict()})


def _event(payload: dict[str, Any]) -> TriggerEvent:
    return TriggerEvent(payload)  # type: ignore[no-untyped-call]
