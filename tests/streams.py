"""What the tests of event streams share: waiting for what happens, and ending when it does not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from airflow_provider_dingconf.client import token_cache
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.sandbox import Sandbox

PATIENCE = 120.0


def drive(steps: Callable[[], Awaitable[object]]) -> None:
    asyncio.run(asyncio.wait_for(steps(), PATIENCE))


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def acknowledged(sandbox: Sandbox) -> bool:
    return all(event.acknowledged for event in sandbox.events)


def sweep_due() -> bool:
    """Return whether the stream sees a need to tick: a sweep may be ahead."""
    return token_cache.seen_events_of(DingTalkConferenceHook().settings).sweep_due


class Client:
    """A client of DingTalk, as an event stream needs it."""

    def __init__(self, hook: DingTalkConferenceHook, settings: Any) -> None:
        self.settings = settings
        self.events_address = hook.aevents_address


async def connect(conn_id: str) -> Client:
    """Return a client of an Airflow connection."""
    hook = DingTalkConferenceHook(conn_id, max_attempts=1, max_seconds=30.0)
    return Client(hook, await hook._asettings())
