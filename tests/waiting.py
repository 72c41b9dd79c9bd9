"""Waits in the triggerer, polled as often as a test wants."""

from __future__ import annotations

from typing import Any

from airflow_provider_dingconf.client.polling import PollSettings
from airflow_provider_dingconf.triggers import ConferenceTrigger

QUICK = PollSettings(least_seconds=0.0)


class QuickTrigger(ConferenceTrigger):
    """A trigger whose interval may be short."""

    poll_settings = QUICK


async def event_of(trigger: ConferenceTrigger) -> dict[str, Any]:
    """Let a trigger run, and return its event."""
    return (await trigger.run().__anext__()).payload
