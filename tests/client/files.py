"""Helpers for the tests of shared files: other users, and which files and warnings there are."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import stat
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_dingconf.client import shared_files
from airflow_provider_dingconf.client.settings import Settings
from airflow_provider_dingconf.client.token_cache import (
    TokenCache,
    address_ban_of,
    seen_events_of,
    suite_ticket_of,
    token_cache_of,
)
from airflow_provider_dingconf.dingtalk.tokens import App, Token
from airflow_provider_dingconf.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = 65534
LIFETIME = 7_200.0
APP = App("the-id", "the-secret", "dingcorp")
SETTINGS = Settings(conn_id="dingtalk_default", base_url="https://api.dingtalk.io", app=APP)
TOKEN = Token("the-token", 1_000, LIFETIME)


def fetched(sandbox: Sandbox) -> int:
    """Return how many access tokens were fetched."""
    return len(sandbox.calls_of("token"))


def token_file(directory: Path) -> Path:
    (file,) = directory.glob("*.token")
    return file


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == shared_files.__name__]


def give_away(path: Path) -> None:
    """Make something another user's or, where only root could do that, open to other users."""
    if os.geteuid() == 0:
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    else:
        path.chmod(path.stat().st_mode | 0o004)


def let_others_enter(path: Path) -> None:
    """Let other users enter the directories of the tests that lead to one."""
    for parent in path.parents:
        if mode(parent) & 0o1000:  # the directory that all users share
            break
        if parent.stat().st_uid == os.geteuid():
            parent.chmod(mode(parent) | 0o011)
    path.chmod(mode(path) | 0o011)


class Warnings(logging.Handler):
    """Counts the warnings of a process about the shared files."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0
        logging.getLogger(shared_files.__name__).addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1


@contextmanager
def as_ordinary_user(*paths: Path) -> Iterator[None]:
    """Do without root's power to ignore permissions; ``paths`` then belong to the user."""
    root = os.geteuid() == 0
    if root:
        for path in paths:
            os.chown(path, NOBODY, NOBODY)
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


async def put_while_fetching(cache: TokenCache, token: Token) -> None:
    async with cache.fetching(seconds=60):
        cache.put(token, time.monotonic())


def put_all(settings: Settings) -> None:
    """Write a file of each kind."""
    asyncio.run(put_while_fetching(token_cache_of(settings), TOKEN))
    suite_ticket_of(settings).put("the-ticket", 1.0)
    address_ban_of(settings).put(time.monotonic(), 300)
    seen_events_of(settings).add(["an-event"])
    seen_events_of(settings).save()


def found_of_all(settings: Settings) -> list[bool]:
    """Return whether the content of each kind of file is found."""
    token, events = token_cache_of(settings).get(None, time.monotonic()), seen_events_of(settings)
    events.load()
    return [
        token is not None and token.value == TOKEN.value,
        suite_ticket_of(settings).pushed == "the-ticket",
        address_ban_of(settings).seconds_left(time.monotonic()) > 0,
        "an-event" in events,
    ]


def replace(value: Any, **changes: Any) -> Any:
    """Return settings, or an app, with other values."""
    if isinstance(value, Settings):
        return value.model_copy(update=changes)
    return dataclasses.replace(value, **changes)
