"""Waiting until something happens, and waits in the triggerer, polled as often as a test wants."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from conftest import PATIENCE

from airflow_provider_dingconf.client.polling import PollSettings
from airflow_provider_dingconf.triggers import ConferenceTrigger

QUICK = PollSettings(least_seconds=0.0)


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def wait_until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "it did not happen"
        time.sleep(0.005)


class QuickTrigger(ConferenceTrigger):
    """A trigger whose interval may be short."""

    poll_settings = QUICK


async def event_of(trigger: ConferenceTrigger) -> dict[str, Any]:
    """Let a trigger run, and return its event."""
    return (await trigger.run().__anext__()).payload
