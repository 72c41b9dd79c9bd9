"""What the tests of shared files get."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_dingconf.client import token_cache
from airflow_provider_dingconf.hooks import DingTalkConferenceHook
from airflow_provider_dingconf.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def lock(sandbox: Sandbox, conn: Any) -> Callable[..., None]:
    """Return a function that locks a meeting as a new process does."""

    def lock(**options: Any) -> None:
        token_cache.forget()
        hook = DingTalkConferenceHook(**options)
        try:
            hook.lock_conference("sandbox-open")
        finally:
            hook.close()

    return lock


@pytest.fixture
def directory(tmp_path: Path, conn: Any) -> Path:
    """Return the directory of the connection's files, which does not exist yet."""
    conn(extra={"token_cache": str(tmp_path / "cache")})
    return tmp_path / "cache"
