"""What the tests of event streams share: waiting for what happens, and ending when it does not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from conftest import PATIENCE

from airflow_provider_dingconf.client import token_cache
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.sandbox import Sandbox


def drive(steps: Callable[[], Awaitable[object]]) -> None:
    asyncio.run(asyncio.wait_for(steps(), PATIENCE))


def acknowledged(sandbox: Sandbox) -> bool:
    return all(event.acknowledged for event in sandbox.events)


def sweep_due() -> bool:
    """Return whether a sweep is ahead."""
    return token_cache.seen_events_of(DingTalkConferenceHook().settings).sweep_due


async def connect(conn_id: str) -> Any:
    """Return a client of an Airflow connection."""
    return await DingTalkConferenceHook(conn_id, max_attempts=1, max_seconds=30.0)._aconnect()
