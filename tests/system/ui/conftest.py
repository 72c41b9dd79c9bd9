"""A DingTalk, and a window to look through."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_dingconf.sandbox import Sandbox
from system.ui.window import Window, chromium


@pytest.fixture(scope="module")
def dingtalk() -> Iterator[Sandbox]:
    """Return the DingTalk that the tasks call."""
    with Sandbox() as running:
        yield running


@pytest.fixture
def window(tmp_path: Path) -> Iterator[Window]:
    """Return a window of a browser that knows nothing."""
    with chromium(tmp_path / "profile", tmp_path) as opened:
        yield opened
