"""A DingTalk, and a window to look through."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from airflow_provider_dingconf.sandbox import Sandbox
from system.ui.window import Window, chromium


@pytest.fixture(scope="module")
def dingtalk() -> Iterator[Sandbox]:
    """Return the DingTalk that the tasks call."""
    with Sandbox() as running:
        yield running


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Window]:
    """Return a window of a browser that knows nothing of other modules' tests."""
    directory = tmp_path_factory.mktemp("window")
    with chromium(directory / "profile", directory) as opened:
        yield opened
